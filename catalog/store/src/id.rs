//! Ids. A chunk's id is the hash of its content; the ids of packs and records are new each time.
//!
//! Each is a newtype, so that a pack's id can never be used for a chunk's. As text (file names, JSON,
//! messages) they are lower-case hex.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Not a {kind} id: {text:?} (expected {digits} lower-case hex digits)")]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
    digits: usize,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// Length of the id in bytes.
            pub const BYTES: usize = $bytes;

            /// The id's bytes.
            pub fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> std::result::Result<Self, ParseIdError> {
                parse_hex(text)
                    .map(Self)
                    .ok_or_else(|| ParseIdError { kind: $kind, text: text.to_owned(), digits: 2 * $bytes })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(
    /// A chunk: the BLAKE3 of its bytes, under a key where the repository was made encrypted.
    ChunkId,
    32,
    "chunk"
);

hex_id!(
    /// A pack. Its storage chooses it ([`PackStorage::begin`](crate::PackStorage::begin)); nothing is read from it but
    /// the pack's place.
    PackId,
    16,
    "pack"
);

hex_id!(
    /// A record: random. A deletion refers to the record it annuls by this id.
    RecordId,
    16,
    "record"
);

hex_id!(
    /// A key of an encrypted repository. It follows from the secret, see [`SealedKey`](crate::SealedKey).
    KeyId,
    16,
    "key"
);

impl ChunkId {
    /// The id of these bytes, where ids are made without a key; [`Keys::id_of`](crate::Keys::id_of) knows how.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

pub(crate) fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair
            .iter()
            .try_fold(0, |high, &digit| Some(high << 4 | hex_value(digit)?))?;
    }
    Some(bytes)
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let id = ChunkId::of(b"barmanfs");
        assert_eq!(id.to_string().len(), 64);
        assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
        assert_eq!(
            serde_json::from_str::<ChunkId>(&serde_json::to_string(&id).unwrap()).unwrap(),
            id
        );
    }

    #[test]
    fn a_chunk_is_named_by_blake3() {
        assert_eq!(
            ChunkId::of(b"").to_string(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn other_text_is_refused() {
        let good = PackId([0xab; 16]).to_string();
        for bad in [
            "",
            &good[1..],
            &format!("{good}00"),
            &good.to_uppercase(),
            &format!("{}xy", &good[2..]),
        ] {
            let error = bad.parse::<PackId>().unwrap_err().to_string();
            assert!(error.contains("32 lower-case hex digits"), "{error}");
        }
        assert!(
            "é".repeat(16).parse::<PackId>().is_err(),
            "32 bytes of text that are not 32 digits"
        );
    }

    #[test]
    fn random_ids_differ() {
        assert_ne!(PackId::random().unwrap(), PackId::random().unwrap());
        assert_ne!(RecordId::random().unwrap(), RecordId::random().unwrap());
    }
}
