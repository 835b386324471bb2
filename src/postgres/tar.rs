//! A push parser for PostgreSQL's tar archives of a data directory.
//!
//! PostgreSQL writes plain ustar headers with names and link targets below 100 bytes. Numbers are octal or, if that is
//! too small, in base 256 (`src/port/tar.c`). The additional forms of POSIX and GNU for files, directories and links
//! are supported, too: long names, pax records, negative numbers ([`header`], [`extension`], [`number`]). Kinds of
//! members that a data directory cannot have are refused: they are either damage or an attack, and names that lead out
//! of the directory are the classic attack.
//!
//! The memory does not depend on the input: the parser keeps one header and its extensions, with a limit. It passes
//! data on in the slices in which it arrives.
//!
//! The crate `tar` cannot take its place: it accepts an archive that was cut between two members, and data after the
//! end; it reads a name of any length into memory; and it copies all data once more, so that parsing and a CRC-32C
//! together ran at 0.73 to 0.79 of this parser's speed.

mod extension;
mod header;
mod number;

use barmanfs_store::Attributes;

use super::SinkError;
use extension::Extensions;
use header::{Header, Member};

/// The unit of a tar archive.
const BLOCK_BYTES: usize = 512;

/// Blocks of zeros that an archive may end with. Programs fill it up to the unit of a tape, which is smaller.
const MAX_ZERO_BLOCKS: u64 = (16 << 20) / BLOCK_BYTES as u64;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TarKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; PostgreSQL sends them for tablespaces.
    Symlink,
}

/// The header of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TarEntry {
    /// Relative, without `.` and `..`, and without slashes at either end: `base/5/1259`.
    pub(crate) path: Vec<u8>,
    /// What it is.
    pub(crate) kind: TarKind,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner on the server.
    pub(crate) uid: u32,
    /// Group on the server.
    pub(crate) gid: u32,
    /// Seconds since the Unix epoch; negative before it.
    pub(crate) mtime_s: i64,
    /// Nanoseconds after that second; PostgreSQL sends none.
    pub(crate) mtime_ns: u32,
    /// Bytes of data that follow; 0 for everything but files.
    pub(crate) size_bytes: u64,
    /// The target of a symbolic link; empty for everything else.
    pub(crate) link_target: Vec<u8>,
}

impl TarEntry {
    /// Owner, permissions and time.
    pub(crate) fn attributes(&self) -> Attributes {
        Attributes {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime_s: self.mtime_s,
            mtime_ns: self.mtime_ns,
        }
    }
}

/// Receives an archive, member by member.
pub(crate) trait TarSink {
    /// A member begins.
    fn entry(&mut self, entry: &TarEntry) -> Result<(), SinkError>;
    /// The next bytes of the file that began last.
    fn data(&mut self, bytes: &[u8]) -> Result<(), SinkError>;
    /// The member is complete.
    fn end_entry(&mut self) -> Result<(), SinkError>;
}

/// Whether an archive must end with blocks of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndBlocks {
    /// Two of them, otherwise the archive was cut. PostgreSQL 15 and later.
    Required,
    /// None are sent. PostgreSQL 14 and earlier.
    Optional,
    /// Two of them where names begin with a slash. WAL-G does not close its other archives: end blocks, and the zeros behind
    /// the last file, may be missing.
    AsOfWalG,
}

/// Which names an archive may have beside those that PostgreSQL sends, and which it had.
#[derive(Debug, Default)]
struct Names {
    /// One for the directory itself: `./`.
    takes_root: bool,
    /// Such with one slash before them: `/base/5/1259`.
    takes_slash: bool,
    /// Whether there was one with a slash.
    had_slash: bool,
}

/// An archive that is not in PostgreSQL's form.
#[derive(Debug, thiserror::Error)]
#[error("{archive}, byte {offset}{}: {reason}", member_part(member))]
pub(crate) struct TarError {
    /// The archive's name.
    pub(crate) archive: String,
    /// The position in the archive of the block with the problem.
    pub(crate) offset: u64,
    /// The member's name in the archive, empty if there is none.
    pub(crate) member: String,
    /// What is wrong.
    pub(crate) reason: String,
}

fn member_part(member: &str) -> String {
    if member.is_empty() {
        String::new()
    } else {
        format!(", member \"{member}\"")
    }
}

/// The state of the parser.
#[derive(Debug)]
enum State {
    /// Collecting a header block.
    Header,
    /// In a file's data.
    Data { left: u64, padding: u64 },
    /// In the data of a member that extends the next header.
    Extension {
        kind: extension::Kind,
        left: u64,
        padding: u64,
    },
    /// In the zeros after the data in a file's last block.
    Padding { left: u64 },
    /// After this many blocks of zeros.
    Ended { zero_blocks: u64 },
}

/// The parser of one archive.
#[derive(Debug)]
pub(crate) struct TarReader {
    archive: String,
    end_blocks: EndBlocks,
    names: Names,
    state: State,
    block: [u8; BLOCK_BYTES],
    block_filled: usize,
    offset: u64,
    member: String,
    extensions: Extensions,
    /// The data of the current extension.
    extension: Vec<u8>,
}

impl TarReader {
    /// A parser at the start of an archive; the name is for messages.
    pub(crate) fn new(archive: impl Into<String>, end_blocks: EndBlocks) -> Self {
        Self {
            archive: archive.into(),
            end_blocks,
            names: Names::default(),
            state: State::Header,
            block: [0; BLOCK_BYTES],
            block_filled: 0,
            offset: 0,
            member: String::new(),
            extensions: Extensions::default(),
            extension: Vec::new(),
        }
    }

    /// Takes a member for the directory itself, `./`, whose path is empty. PostgreSQL sends none; other tools do.
    pub(crate) fn with_root(mut self) -> Self {
        self.names.takes_root = true;
        self
    }

    /// Takes what WAL-G writes: a slash before names, and a member for the directory itself, `/`.
    pub(crate) fn of_walg(archive: impl Into<String>) -> Self {
        let mut reader = Self::new(archive, EndBlocks::AsOfWalG).with_root();
        reader.names.takes_slash = true;
        reader
    }

    /// Takes the next bytes of the archive, in slices of any size.
    ///
    /// # Errors
    /// [`super::Error::Tar`] for an archive that PostgreSQL would not write, [`super::Error::Sink`] for errors of the
    /// sink. After either, the parser must not be fed any more.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], sink: &mut dyn TarSink) -> Result<(), super::Error> {
        while !bytes.is_empty() {
            let taken = match self.state {
                State::Header | State::Ended { .. } => self.feed_block(bytes, sink)?,
                State::Data { left, padding } => {
                    let (now, _) = bytes.split_at(clamp(left, bytes.len()));
                    sink.data(now).map_err(super::Error::Sink)?;
                    self.data_advanced(left - now.len() as u64, padding, sink)?;
                    now.len()
                }
                State::Extension { kind, left, padding } => {
                    let (now, _) = bytes.split_at(clamp(left, bytes.len()));
                    self.extension.extend_from_slice(now);
                    self.extension_advanced(kind, left - now.len() as u64, padding)?;
                    now.len()
                }
                State::Padding { left } => {
                    let taken = clamp(left, bytes.len());
                    self.padding_advanced(left - taken as u64);
                    taken
                }
            };
            self.offset += taken as u64;
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// If it ended within a member, or without its end blocks although they are required.
    pub(crate) fn finish(&self) -> Result<(), TarError> {
        match self.state {
            State::Data { left, .. } => Err(self.error(
                self.offset,
                format!("the archive ends with {left} bytes of this file missing"),
            )),
            State::Extension { .. } => {
                Err(self.error(self.offset, "the archive ends within an extended header"))
            }
            State::Padding { .. } if self.is_never_closed() => Ok(()),
            State::Padding { .. } => Err(self.error(self.offset, "the archive ends within a block")),
            _ if self.extensions.is_open() => Err(self.error(
                self.offset,
                "the archive ends with an extended header, and without its member",
            )),
            _ if self.block_filled != 0 => Err(self.error(self.offset, "the archive ends within a block")),
            State::Ended { zero_blocks: 2.. } => Ok(()),
            State::Header | State::Ended { .. } => match self.end_blocks {
                EndBlocks::Optional => Ok(()),
                EndBlocks::AsOfWalG if self.is_never_closed() => Ok(()),
                EndBlocks::Required | EndBlocks::AsOfWalG => {
                    Err(self.error(self.offset, "the archive has no end, it was cut off"))
                }
            },
        }
    }

    fn is_never_closed(&self) -> bool {
        self.end_blocks == EndBlocks::AsOfWalG && !self.names.had_slash
    }

    /// Collects a block, and processes it when it is complete. Returns the number of bytes taken.
    fn feed_block(&mut self, bytes: &[u8], sink: &mut dyn TarSink) -> Result<usize, super::Error> {
        let room = self.block.get_mut(self.block_filled..).unwrap_or_default();
        let taken = room.len().min(bytes.len());
        room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.block_filled += taken;
        if self.block_filled < BLOCK_BYTES {
            return Ok(taken);
        }
        self.block_filled = 0;
        // The block began this many bytes earlier. The offset does not include the bytes of this call yet.
        let block_offset = (self.offset + taken as u64).saturating_sub(BLOCK_BYTES as u64);
        let is_zero = self.block.iter().all(|&byte| byte == 0);
        match (&self.state, is_zero) {
            (State::Ended { zero_blocks }, true) if *zero_blocks >= MAX_ZERO_BLOCKS => {
                return Err(self
                    .error(block_offset, "the archive does not end: zeros follow zeros")
                    .into());
            }
            (State::Ended { zero_blocks }, true) => {
                self.state = State::Ended {
                    zero_blocks: zero_blocks + 1,
                }
            }
            (_, true) if self.extensions.is_open() => {
                return Err(self
                    .error(block_offset, "an extended header without its member")
                    .into());
            }
            (_, true) => {
                self.member.clear();
                self.state = State::Ended { zero_blocks: 1 };
            }
            (State::Ended { .. }, false) => {
                return Err(self
                    .error(block_offset, "there is data after the end of the archive")
                    .into());
            }
            (_, false) => self.begin_member(block_offset, sink)?,
        }
        Ok(taken)
    }

    fn begin_member(&mut self, block_offset: u64, sink: &mut dyn TarSink) -> Result<(), super::Error> {
        let header = Header(&self.block);
        // The name is shown even if the rest of the header is wrong. It ends at the first NUL.
        let shown = header.0.split(|&byte| byte == 0).next().unwrap_or_default();
        let member = String::from_utf8_lossy(shown.get(..100).unwrap_or(shown))
            .escape_debug()
            .to_string();
        let read = header.read(&mut self.extensions, &mut self.names);
        self.member = member;
        match read.map_err(|reason| self.error(block_offset, reason))? {
            Member::Entry(entry) => {
                sink.entry(&entry).map_err(super::Error::Sink)?;
                self.data_advanced(entry.size_bytes, padding_of(entry.size_bytes), sink)
            }
            Member::Extension(kind, size_bytes) => {
                self.extension.clear();
                self.extension_advanced(kind, size_bytes, padding_of(size_bytes))
            }
        }
    }

    fn extension_advanced(
        &mut self,
        kind: extension::Kind,
        left: u64,
        padding: u64,
    ) -> Result<(), super::Error> {
        if left > 0 {
            self.state = State::Extension { kind, left, padding };
            return Ok(());
        }
        self.padding_advanced(padding);
        let taken = self.extensions.take(kind, &self.extension);
        taken.map_err(|reason| self.error(self.offset, reason).into())
    }

    fn data_advanced(&mut self, left: u64, padding: u64, sink: &mut dyn TarSink) -> Result<(), super::Error> {
        if left > 0 {
            self.state = State::Data { left, padding };
            return Ok(());
        }
        self.padding_advanced(padding);
        sink.end_entry().map_err(super::Error::Sink)
    }

    fn padding_advanced(&mut self, left: u64) {
        self.state = if left == 0 {
            State::Header
        } else {
            State::Padding { left }
        };
    }

    fn error(&self, offset: u64, reason: impl Into<String>) -> TarError {
        TarError {
            archive: self.archive.clone(),
            offset,
            member: self.member.clone(),
            reason: reason.into(),
        }
    }
}

/// Number of zeros after this much data, up to the end of its last block.
fn padding_of(size_bytes: u64) -> u64 {
    size_bytes.next_multiple_of(BLOCK_BYTES as u64) - size_bytes
}

/// The minimum of a 64-bit count and a length.
fn clamp(left: u64, length: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(length)
}

#[cfg(test)]
mod tests;
