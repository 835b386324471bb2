//! Directory listings: the entries of a directory, stored as chunks.
//!
//! A listing is the directory's entries, sorted by name, in pages. The hash of the next entry's name decides where a
//! page ends, never a count. So an added or removed file changes its own page and no other, and the unchanged pages of
//! the next backup are the same chunks. The same entries always give the same pages.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod indexed;
mod page;

pub(crate) use indexed::IndexedPage;
pub(crate) use page::{Page, encode_entry, encode_page_header, ends_page};

use crate::file_map::FileMap;
use crate::id::ChunkId;

/// Owner, permissions and time of a file, directory or symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits, with set-user-id, set-group-id and sticky: the lower twelve bits of `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970 (UTC).
    pub mtime_s: i64,
    /// Modification time: nanoseconds within the second.
    pub mtime_ns: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A regular file.
    File(FileMap),
    /// A directory.
    Directory(DirectoryRef),
    /// A symbolic link and where it points.
    Symlink(Vec<u8>),
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name within the directory, in the bytes of the system that was backed up.
    pub name: Vec<u8>,
    /// Owner, permissions and time.
    pub attributes: Attributes,
    /// What it is.
    pub node: Node,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRef {
    /// Name of the page's first entry.
    #[serde(serialize_with = "hex_of", deserialize_with = "from_hex")]
    pub first: Vec<u8>,
    /// The page.
    pub chunk: ChunkId,
}

/// A directory's listing. The record of a backup holds its root's listing, so a listing can be read from JSON (names
/// in hex: they need not be UTF-8).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryRef {
    /// Its pages, in order. None when the directory is empty.
    pub pages: Vec<PageRef>,
    /// How many entries they hold together.
    pub entries: u64,
}

/// Maximum length of a name in bytes: the limit of Linux file systems, and so the limit of a mount.
pub const MAX_NAME_BYTES: usize = 255;

/// Maximum length of a symbolic link's target: `PATH_MAX` less the NUL.
pub const MAX_TARGET_BYTES: usize = 4095;

impl DirectoryRef {
    /// The only page that can have an entry of this name.
    pub(crate) fn page_of(&self, name: &[u8]) -> Option<&PageRef> {
        let after = self.pages.partition_point(|page| page.first.as_slice() <= name);
        self.pages.get(after.checked_sub(1)?)
    }
}

impl Attributes {
    /// Makes the checks that every reader must make; returns what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.mode > 0o7777 {
            return Err(format!("Mode {:o} has more than permission bits", self.mode));
        }
        if self.mtime_ns >= 1_000_000_000 {
            return Err(format!("Its time has {} nanoseconds in a second", self.mtime_ns));
        }
        Ok(())
    }
}

/// Checks that these bytes can be a name in a directory; returns what is wrong.
pub(crate) fn check_name(name: &[u8]) -> Result<(), String> {
    let reason = match name {
        b"" => "empty",
        b"." | b".." => "not a name of its own",
        _ if name.len() > MAX_NAME_BYTES => "longer than 255 bytes",
        _ if name.contains(&b'/') => "more than one name",
        _ if name.contains(&0) => "with a NUL byte",
        _ => return Ok(()),
    };
    Err(format!("The name \"{}\" is {reason}", name.escape_ascii()))
}

/// Checks that these bytes can be a symbolic link's target; returns what is wrong.
pub(crate) fn check_target(target: &[u8]) -> Result<(), String> {
    if target.is_empty() || target.len() > MAX_TARGET_BYTES || target.contains(&0) {
        return Err(format!(
            "A link of {} bytes cannot point to \"{}\"",
            target.len(),
            target.escape_ascii()
        ));
    }
    Ok(())
}

fn hex_of<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    serializer.serialize_str(&digits)
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digit = |c: u8| char::from(c).to_digit(16).filter(|_| !c.is_ascii_uppercase());
    let pair = |pair: &[u8]| match *pair {
        [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
        _ => None,
    };
    text.as_bytes()
        .chunks(2)
        .map(pair)
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(|| {
            serde::de::Error::custom(format!("a name in lower-case hex was expected, not {text:?}"))
        })
}
