//! `identity.json`: of which cluster a directory of Barman's has backups.

use barmanfs_pg::SystemId;
use serde::Deserialize;

use super::{BadFile, shown};

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's system identifier.
    pub system_id: SystemId,
    /// The server's major version: `18`, `9.6`.
    pub version: String,
}

/// More than such a file ever has.
pub const LONGEST_BYTES: usize = 64 << 10;

#[derive(Deserialize)]
struct Fields {
    systemid: Number,
    version: Number,
}

/// Barman writes both as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Text(String),
    Whole(u64),
}

impl Identity {
    /// Reads the file.
    ///
    /// # Errors
    /// When it is too long, no JSON, or has no system identifier and version.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadFile> {
        let wrong = |line: usize, reason: String| BadFile {
            file: "identity.json",
            line: line.max(1),
            reason,
        };
        if bytes.len() > LONGEST_BYTES {
            return Err(wrong(1, format!("The file has more than {LONGEST_BYTES} bytes")));
        }
        let fields: Fields =
            serde_json::from_slice(bytes).map_err(|error| wrong(error.line(), error.to_string()))?;
        let system_id = match fields.systemid {
            Number::Whole(number) => SystemId(number),
            Number::Text(text) => text
                .parse()
                .map_err(|_| wrong(1, format!("\"{}\" is no system identifier", shown(&text))))?,
        };
        let version = match fields.version {
            Number::Whole(number) => number.to_string(),
            Number::Text(text) => text,
        };
        Ok(Self { system_id, version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WRITTEN: &str = "{\n    \"systemid\": \"7713248381505869484\",\n    \"version\": \"18\"\n}";

    #[test]
    fn barmans_file_is_read_and_each_cut_of_it_is_refused() {
        let identity = Identity::parse(WRITTEN.as_bytes()).unwrap();
        assert_eq!(identity.system_id, SystemId(7_713_248_381_505_869_484));
        assert_eq!(identity.version, "18");
        for end in 0..WRITTEN.len() {
            assert!(Identity::parse(&WRITTEN.as_bytes()[..end]).is_err(), "{end}");
        }
        assert!(Identity::parse(b"{\"systemid\": \"x\", \"version\": \"18\"}").is_err());
        assert!(Identity::parse(&b" ".repeat(LONGEST_BYTES + 1)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Identity::parse(&bytes);
        }
    }
}
