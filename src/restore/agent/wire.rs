//! What goes over a connection: frames of a kind, a length and bytes.

use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;

use barmanfs_catalog::Backup;
use barmanfs_fs::entry::Stat;
use barmanfs_store::{ChunkId, Secret, Window};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};
use crate::output::printable;
use crate::restore::Pattern;
use crate::restore::catch_up::{CatchUp, CaughtUp};
use crate::restore::source::PartWindows;
use crate::restore::space::TreeSize;
use crate::restore::tablespaces::Relocations;

/// Both sides must have the same.
pub(super) const PROTOCOL: u32 = 4;

/// A frame has at most so many bytes. A window has at most a few MiB.
pub(super) const MAX_FRAME_BYTES: usize = 8 << 20;

/// A window is smaller than that, and than a part of a file.
const MAX_WINDOW_BYTES: u32 = 4 << 20;

/// Bytes of a message that are shown.
const SHOWN_BYTES: usize = 2000;

/// Bytes of a window's row: whether it is no hole, its chunk, its CRC-32C.
const ROW_BYTES: usize = 1 + ChunkId::BYTES + 4;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A message of the control connection, or a request, as JSON.
    Message,
    /// Entries of a directory, as JSON.
    Entries,
    /// Rows of windows.
    Windows,
    /// The bytes of a window.
    Content,
    /// Why there is no answer, as JSON.
    Failure,
}

impl Frame {
    fn byte(self) -> u8 {
        match self {
            Self::Message => b'M',
            Self::Entries => b'E',
            Self::Windows => b'W',
            Self::Content => b'C',
            Self::Failure => b'F',
        }
    }

    fn of(byte: u8) -> Option<Self> {
        let all = [
            Self::Message,
            Self::Entries,
            Self::Windows,
            Self::Content,
            Self::Failure,
        ];
        all.into_iter().find(|frame| frame.byte() == byte)
    }
}

/// Bytes in JSON: each is the character of its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = self.0.iter().map(|byte| char::from(*byte)).collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
        bytes
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("a character that is no byte"))
    }
}

/// What this side tells the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToAgent {
    Hello {
        protocol: u32,
    },
    Prepare(Box<Assignment>),
    Run {
        dry_run: bool,
    },
    /// This side is still there.
    Beat,
}

/// What is restored, and how.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Assignment {
    pub(super) backup: Backup,
    pub(super) directory: PathBuf,
    pub(super) relocations: Relocations,
    pub(super) stat: FarStat,
    pub(super) size: TreeSize,
    pub(super) jobs: usize,
    pub(super) delta: bool,
    pub(super) keep: Vec<Pattern>,
    /// Whether a standby is caught up, and how.
    pub(super) catch_up: Option<CatchUp>,
    /// The key of chunk ids, if they have one.
    pub(super) chunk_key: Option<ChunkKey>,
}

/// A key on its way, which nothing shows.
#[derive(Serialize, Deserialize)]
pub(super) struct ChunkKey(pub(super) [u8; Secret::BYTES]);

impl std::fmt::Debug for ChunkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChunkKey")
    }
}

/// What the agent tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromAgent {
    Hello {
        protocol: u32,
    },
    /// Nothing stands in the way of the restore.
    Prepared {
        state: FarState,
        directory: PathBuf,
        relocations: Relocations,
        /// What there is to say about the directory.
        notes: Vec<String>,
        /// What a standby was, if it is caught up.
        caught_up: Option<CaughtUp>,
    },
    /// Where further connections go.
    Listening {
        socket: PathBuf,
    },
    Progress {
        done: u64,
    },
    Stage(String),
    Removed(Vec<Bytes>),
    Done {
        written_bytes: u64,
    },
}

/// What a directory holds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FarState {
    Vacant,
    Incomplete,
    Older,
}

/// What the agent asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// The entries of a directory: frames of entries.
    List { path: Bytes },
    /// The windows that begin in a part of a file: one frame.
    Windows { path: Bytes, from: u64, to: u64 },
    /// The bytes of windows: one frame for each.
    Content { path: Bytes, windows: Vec<u64> },
}

/// Entries of a directory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entries {
    pub(super) entries: Vec<FarEntry>,
    /// More of them follow.
    pub(super) more: bool,
}

/// An entry of a directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FarEntry {
    pub(super) name: Bytes,
    pub(super) stat: FarStat,
    pub(super) kind: FarKind,
}

/// What an entry is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FarKind {
    Directory,
    File,
    Link(Bytes),
}

/// Attributes of an entry.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct FarStat {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime_s: i64,
    mtime_ns: u32,
    size_bytes: u64,
    allocated_bytes: u64,
}

impl From<&Stat> for FarStat {
    fn from(stat: &Stat) -> Self {
        Self {
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            mtime_s: stat.mtime_s,
            mtime_ns: stat.mtime_ns,
            size_bytes: stat.size_bytes,
            allocated_bytes: stat.allocated_bytes,
        }
    }
}

impl FarStat {
    /// As the tree has them.
    pub(super) fn stat(self) -> Stat {
        Stat {
            mode: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            mtime_s: self.mtime_s,
            mtime_ns: self.mtime_ns.min(999_999_999),
            size_bytes: self.size_bytes,
            allocated_bytes: self.allocated_bytes,
        }
    }
}

/// An error of the other side.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    is_usage: bool,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            message: error.to_string(),
            hint: error.hint_text().map(str::to_owned),
            is_usage: error.kind() == Kind::Usage,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let error = match failure.is_usage {
            true => Self::usage(shown(&failure.message)),
            false => Self::failed(shown(&failure.message)),
        };
        match failure.hint {
            Some(hint) => error.hint(shown(&hint)),
            None => error,
        }
    }
}

/// What the other side says, for people.
pub(crate) fn shown(text: &str) -> String {
    printable(text.as_bytes().get(..SHOWN_BYTES).unwrap_or(text.as_bytes()))
}

/// What came is not of this protocol.
pub(crate) fn garbled(what: &str) -> Error {
    Error::failed(format!("The other side does not speak as barmanfs does: {what}")).hint(
        "The same version of barmanfs must be on both hosts, and nothing else may write to the connection",
    )
}

fn broken(error: &std::io::Error) -> Error {
    Error::failed(format!("The connection to the other side has failed: {error}"))
}

/// Writes a frame.
pub(crate) fn write_frame(to: &mut impl Write, frame: Frame, bytes: &[u8]) -> Result<(), Error> {
    let length = u32::try_from(bytes.len())
        .ok()
        .filter(|_| bytes.len() <= MAX_FRAME_BYTES);
    let length = length.ok_or_else(|| Error::failed("A message is too long for the connection"))?;
    let [a, b, c, d] = length.to_be_bytes();
    to.write_all(&[frame.byte(), a, b, c, d])
        .and_then(|()| to.write_all(bytes))
        .map_err(|error| broken(&error))
}

/// Reads a frame; `None` at the end of the connection.
pub(crate) fn read_frame(from: &mut impl Read) -> Result<Option<(Frame, Vec<u8>)>, Error> {
    let mut head = [0; 5];
    let mut count = 0;
    while count < head.len() {
        match from.read(head.get_mut(count..).unwrap_or_default()) {
            Ok(0) if count == 0 => return Ok(None),
            Ok(0) => return Err(garbled("a frame was cut off")),
            Ok(read) => count += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(&error)),
        }
    }
    let [kind, a, b, c, d] = head;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    let frame = Frame::of(kind).filter(|_| length <= MAX_FRAME_BYTES);
    let frame = frame.ok_or_else(|| garbled("a frame of no known kind or length"))?;
    // A hostile length takes no memory before its bytes come.
    let mut bytes = Vec::new();
    let read = from.take(length as u64).read_to_end(&mut bytes);
    read.map_err(|error| broken(&error))?;
    match bytes.len() == length {
        true => Ok(Some((frame, bytes))),
        false => Err(garbled("a frame was cut off")),
    }
}

/// Writes JSON.
pub(crate) fn write_json<T: Serialize>(to: &mut impl Write, frame: Frame, value: &T) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| Error::failed(format!("Cannot write a message: {error}")))?;
    write_frame(to, frame, &bytes)?;
    to.flush().map_err(|error| broken(&error))
}

/// Reads a frame of one kind; the other side's error is one here.
pub(crate) fn expect(from: &mut impl Read, frame: Frame) -> Result<Vec<u8>, Error> {
    match read_frame(from)? {
        Some((found, bytes)) if found == frame => Ok(bytes),
        Some((Frame::Failure, bytes)) => Err(json::<Failure>(&bytes)?.into()),
        Some(_) => Err(garbled("another frame than the expected one")),
        None => Err(Error::failed("The other side has ended the connection")),
    }
}

/// Takes JSON apart.
pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| garbled(&error.to_string()))
}

/// Whether it is the name of an entry.
pub(super) fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= 255
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// The rows of windows.
pub(super) fn rows(part: &PartWindows) -> Vec<u8> {
    let mut bytes = part.window_bytes.to_be_bytes().to_vec();
    bytes.extend_from_slice(&part.first.to_be_bytes());
    for window in &part.windows {
        bytes.push(u8::from(window.chunk.is_some()));
        bytes.extend_from_slice(window.chunk.unwrap_or(ChunkId([0; ChunkId::BYTES])).as_bytes());
        bytes.extend_from_slice(&window.crc32c.to_be_bytes());
    }
    bytes
}

/// Takes the rows of the windows that begin in a part of a file apart.
pub(super) fn windows(bytes: &[u8], size_bytes: u64, (from, to): (u64, u64)) -> Result<PartWindows, Error> {
    let wrong = || garbled("windows that are none of this file");
    let (head, rows) = bytes.split_first_chunk::<12>().ok_or_else(wrong)?;
    let (window_bytes, first) = head.split_first_chunk::<4>().ok_or_else(wrong)?;
    let window_bytes = u32::from_be_bytes(*window_bytes);
    let first = u64::from_be_bytes(first.try_into().map_err(|_| wrong())?);
    if !window_bytes.is_power_of_two() || window_bytes > MAX_WINDOW_BYTES {
        return Err(wrong());
    }
    let of = |at: u64| at.div_ceil(u64::from(window_bytes));
    let count = of(to.min(size_bytes)).saturating_sub(of(from));
    if first != of(from) || !rows.len().is_multiple_of(ROW_BYTES) || (rows.len() / ROW_BYTES) as u64 != count
    {
        return Err(wrong());
    }
    let row = |row: &[u8]| {
        let (present, rest) = row.split_first()?;
        let (chunk, crc) = rest.split_first_chunk::<{ ChunkId::BYTES }>()?;
        Some(Window {
            chunk: (*present != 0).then_some(ChunkId(*chunk)),
            crc32c: u32::from_be_bytes(crc.try_into().ok()?),
        })
    };
    let windows: Option<Vec<Window>> = rows.chunks_exact(ROW_BYTES).map(row).collect();
    Ok(PartWindows {
        window_bytes,
        first,
        windows: windows.ok_or_else(wrong)?,
    })
}

/// The bytes of a window, compressed where that is shorter.
pub(super) fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packed = vec![1];
    packed.resize(1 + zstd_safe::compress_bound(bytes.len()), 0);
    let target = packed.get_mut(1..).unwrap_or_default();
    match zstd_safe::compress(target, bytes, 1) {
        Ok(length) if length < bytes.len() => {
            packed.truncate(1 + length);
            packed
        }
        _ => [&[0], bytes].concat(),
    }
}

/// The bytes of a window of this length.
pub(super) fn unpacked(packed: &[u8], length: u32) -> Result<Vec<u8>, Error> {
    let wrong = || garbled("the bytes of a window are damaged");
    let length = usize::try_from(length.min(MAX_WINDOW_BYTES)).map_err(|_| wrong())?;
    let bytes = match packed.split_first() {
        Some((0, bytes)) => bytes.to_vec(),
        Some((1, compressed)) => {
            let mut bytes = vec![0; length];
            let count = zstd_safe::decompress(bytes.as_mut_slice(), compressed).map_err(|_| wrong())?;
            bytes.truncate(count);
            bytes
        }
        _ => return Err(wrong()),
    };
    match bytes.len() == length {
        true => Ok(bytes),
        false => Err(wrong()),
    }
}

#[cfg(test)]
mod tests;
