//! The frame of all info files and manifests: sections, keys, values in JSON, and a checksum over them.
//!
//! The checksum is the SHA-1 of the whole file as one JSON object of objects, without spaces, sections and keys in their order
//! in the file, without itself.

use std::io::{self, BufRead};

use serde::de::{DeserializeOwned, IgnoredAny};
use sha1::{Digest, Sha1};

use super::Passphrase;

/// The longest line that is read. A line of a manifest has a few hundred bytes, and a path at most 4096.
const LONGEST_LINE_BYTES: u64 = 1 << 20;

/// The format that this understands, and all releases since 1.0 write.
const FORMAT: u64 = 5;

/// Why an info file or manifest is not taken.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// It cannot be read; also when it cannot be decrypted.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    /// A line is not as pgBackRest writes it.
    #[error("line {line}: {reason}")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Its checksum is another one, or is missing: it is cut or changed.
    #[error("its checksum does not agree with its content: it is damaged or not complete")]
    Checksum,
    /// Something is missing that pgBackRest always writes.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// What it says cannot be.
    #[error("{0}")]
    Contradiction(String),
}

/// One value.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Its section, without brackets.
    pub section: &'a str,
    /// Its key.
    pub key: &'a [u8],
    json: &'a [u8],
    line: u64,
}

impl Entry<'_> {
    /// The value.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn value<T: DeserializeOwned>(&self) -> Result<T, InfoError> {
        serde_json::from_slice(self.json).map_err(|error| self.refused(error.to_string()))
    }

    /// The key as text.
    ///
    /// # Errors
    /// When it is not UTF-8.
    pub fn key_text(&self) -> Result<&str, InfoError> {
        std::str::from_utf8(self.key).map_err(|_| self.refused("the key is not UTF-8"))
    }

    /// An error with the number of this line.
    #[must_use]
    pub fn refused(&self, reason: impl Into<String>) -> InfoError {
        let (line, reason) = (self.line, reason.into());
        InfoError::Line { line, reason }
    }
}

/// What the frame itself says.
#[derive(Debug)]
pub struct Frame {
    /// The release that wrote it: "2.60.0".
    pub version: String,
    /// What the files are encrypted with that this one describes.
    pub passphrase: Option<Passphrase>,
}

/// Gives `each` the entries of all sections but the frame's own. What it made of them counts only when this succeeds: the
/// checksum is at the end.
///
/// # Errors
/// [`InfoError`], also those of `each`.
pub fn read(
    mut source: impl BufRead,
    mut each: impl FnMut(Entry<'_>) -> Result<(), InfoError>,
) -> Result<Frame, InfoError> {
    let mut frame = Reader::default();
    let mut line = Vec::new();
    while next_line(&mut source, &mut line, &mut frame.line)? {
        if let Some(entry) = frame.take(&line)? {
            each(entry)?;
        }
    }
    frame.finish()
}

/// Reads a line without its end. False at the end of the file.
fn next_line(source: &mut impl BufRead, line: &mut Vec<u8>, number: &mut u64) -> Result<bool, InfoError> {
    line.clear();
    *number += 1;
    io::Read::take(&mut *source, LONGEST_LINE_BYTES).read_until(b'\n', line)?;
    match line.pop() {
        None => Ok(false),
        Some(b'\n') => Ok(true),
        Some(last) if (line.len() as u64) + 1 < LONGEST_LINE_BYTES => {
            line.push(last);
            Ok(true)
        }
        Some(_) => Err(InfoError::Line {
            line: *number,
            reason: format!("longer than {LONGEST_LINE_BYTES} bytes"),
        }),
    }
}

#[derive(Default)]
struct Reader {
    line: u64,
    section: String,
    /// The section that the checksum is in.
    summed: Option<String>,
    sum: Sha1,
    expected: Option<String>,
    is_known_format: bool,
    version: Option<String>,
    passphrase: Option<Passphrase>,
}

impl Reader {
    /// The entry of a line, if it is not one of the frame's.
    fn take<'a>(&'a mut self, line: &'a [u8]) -> Result<Option<Entry<'a>>, InfoError> {
        let number = self.line;
        let refused = |reason: &str| InfoError::Line {
            line: number,
            reason: reason.to_owned(),
        };
        if line.is_empty() {
            return Ok(None);
        }
        if let Some(name) = line.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")) {
            let name = std::str::from_utf8(name).map_err(|_| refused("the section is not UTF-8"))?;
            name.clone_into(&mut self.section);
            return Ok(None);
        }
        if self.section.is_empty() {
            return Err(refused("a value before the first section"));
        }
        let (key, json) = split(line).ok_or_else(|| refused("not a key with a value in JSON"))?;
        if (self.section.as_str(), key) != ("backrest", b"backrest-checksum".as_slice()) {
            self.add(key, json);
        }
        let section = self.section.as_str();
        let entry = Entry {
            section,
            key,
            json,
            line: number,
        };
        match (section, key) {
            ("backrest", b"backrest-format") if entry.value::<u64>()? == FORMAT => {
                self.is_known_format = true;
            }
            ("backrest", b"backrest-format") => return Err(entry.refused("another format than 5")),
            ("backrest", b"backrest-version") => self.version = Some(entry.value()?),
            ("backrest", b"backrest-checksum") => self.expected = Some(entry.value()?),
            ("cipher", b"cipher-pass") => {
                self.passphrase = Some(entry.value::<String>()?.into_bytes().into());
            }
            ("backrest" | "cipher", _) => {}
            _ => return Ok(Some(entry)),
        }
        Ok(None)
    }

    fn add(&mut self, key: &[u8], json: &[u8]) {
        if self.summed.as_ref() == Some(&self.section) {
            self.sum.update(b",");
        } else {
            self.sum.update(if self.summed.is_some() {
                b"},\"".as_slice()
            } else {
                b"{\""
            });
            self.sum.update(&self.section);
            self.sum.update(b"\":{");
            self.summed = Some(self.section.clone());
        }
        self.sum.update(b"\"");
        for byte in key {
            match byte {
                b'"' => self.sum.update(b"\\\""),
                b'\\' => self.sum.update(b"\\\\"),
                b'\t' => self.sum.update(b"\\t"),
                b'\r' => self.sum.update(b"\\r"),
                0x08 => self.sum.update(b"\\b"),
                0x0c => self.sum.update(b"\\f"),
                other => self.sum.update([*other]),
            }
        }
        self.sum.update(b"\":");
        self.sum.update(json);
    }

    fn finish(mut self) -> Result<Frame, InfoError> {
        self.sum.update(b"}}");
        // As text: with its digits in the other case, it is changed too.
        if self.expected != Some(barmanfs_pg::hex::encode(&self.sum.finalize())) {
            return Err(InfoError::Checksum);
        }
        if !self.is_known_format {
            return Err(InfoError::Missing("backrest-format"));
        }
        Ok(Frame {
            version: self.version.ok_or(InfoError::Missing("backrest-version"))?,
            passphrase: self.passphrase,
        })
    }
}

/// Key and value. A key may have `=`: the value is what is JSON as a whole.
fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let places = line.iter().enumerate().filter(|(_, byte)| **byte == b'=');
    places.filter(|(at, _)| *at > 0).find_map(|(at, _)| {
        let (key, rest) = line.split_at_checked(at)?;
        let json = rest.get(1..)?;
        serde_json::from_slice::<IgnoredAny>(json)
            .ok()
            .map(|_| (key, json))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file with a correct checksum, as pgBackRest writes it.
    pub(in super::super) fn file(sections: &[(&str, &[(&str, &str)])]) -> Vec<u8> {
        let mut text = String::from("[backrest]\nbackrest-format=5\nbackrest-version=\"2.60.0\"\n");
        let mut sum = String::from(r#"{"backrest":{"backrest-format":5,"backrest-version":"2.60.0""#);
        for (section, entries) in sections {
            text += &format!("\n[{section}]\n");
            sum += &format!("}},\"{section}\":{{");
            for (number, (key, value)) in entries.iter().enumerate() {
                text += &format!("{key}={value}\n");
                let comma = if number == 0 { "" } else { "," };
                let key = key.replace('\\', "\\\\").replace('"', "\\\"");
                sum += &format!("{comma}\"{key}\":{value}");
            }
        }
        let sum = Sha1::digest(format!("{sum}}}}}"));
        let digits: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        text += &format!("\n[backrest]\nbackrest-checksum=\"{digits}\"\n");
        text.into_bytes()
    }

    /// Section, key and value.
    type Found = (String, String, String);

    fn entries(bytes: &[u8]) -> Result<(Frame, Vec<Found>), InfoError> {
        let mut found = Vec::new();
        let frame = read(bytes, |entry| {
            let json = String::from_utf8_lossy(entry.json).into_owned();
            found.push((entry.section.to_owned(), entry.key_text()?.to_owned(), json));
            Ok(())
        })?;
        Ok((frame, found))
    }

    #[test]
    fn a_file_is_read_with_its_sections_and_odd_keys() {
        let bytes = file(&[
            (
                "a",
                &[("k", "1"), ("x=y", "\"=z\""), ("q\"\\", "{\"b\":\"a=\\\"c\"}")],
            ),
            ("cipher", &[("cipher-pass", "\"s3cret\"")]),
        ]);
        let (frame, found) = entries(&bytes).unwrap();
        assert_eq!(frame.version, "2.60.0");
        assert!(!format!("{frame:?}").contains("s3cret"));
        let keys: Vec<&str> = found.iter().map(|(_, key, _)| key.as_str()).collect();
        assert_eq!(keys, ["k", "x=y", "q\"\\"]);
        assert_eq!(found[1].2, "\"=z\"");
    }

    #[test]
    fn what_is_cut_or_changed_is_refused() {
        let bytes = file(&[("a", &[("k", "1"), ("l", "22")])]);
        // Without its last end of line it is complete.
        for length in 0..bytes.len() - 1 {
            assert!(entries(&bytes[..length]).is_err(), "{length}");
        }
        let text = String::from_utf8(bytes).unwrap();
        let (head, sum) = text.rsplit_once("checksum=").unwrap();
        for changed in [
            text.replace("k=1", "k=2"),
            format!("{head}checksum={}", sum.to_uppercase()),
        ] {
            assert!(matches!(entries(changed.as_bytes()), Err(InfoError::Checksum)));
        }
        let other = b"[backrest]\nbackrest-format=6\n";
        assert!(entries(other).unwrap_err().to_string().contains("another format"));
        let long = vec![b'x'; 2 << 20];
        assert!(entries(&long).unwrap_err().to_string().contains("longer"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = entries(&bytes);
        }

        #[test]
        fn no_change_goes_unseen(at in 0_usize..120, to in any::<u8>()) {
            let mut bytes = file(&[("a", &[("k", "1"), ("l", "22"), ("long", "\"something\"")])]);
            let before = bytes[at];
            prop_assume!(before != to);
            bytes[at] = to;
            prop_assert!(entries(&bytes).is_err() || to == b'\n' || before == b'\n');
        }
    }
}
