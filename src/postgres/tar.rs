//! A push parser for the tar archives PostgreSQL makes of a data directory.
//!
//! PostgreSQL writes plain ustar headers with names and link targets below 100 bytes, numbers in octal or,
//! where that is too small, in base 256 (`src/port/tar.c`). Everything else in the wide world of tar is refused:
//! what this server never sends is either damage or an attack, and names that lead out of the directory are
//! the classic one.
//!
//! Memory does not depend on the input: one header is kept, data is handed through in the slices it came in.

use super::SinkError;

/// The unit of a tar archive.
const BLOCK_BYTES: usize = 512;

/// Larger than any file of a server can be. Relations are cut at 1 GiB.
const MAX_FILE_BYTES: u64 = 1 << 46;

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
    /// Relative, without `.` and `..`, without slashes at either end: `base/5/1259`.
    pub(crate) path: Vec<u8>,
    /// What it is.
    pub(crate) kind: TarKind,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner on the server.
    pub(crate) uid: u32,
    /// Group on the server.
    pub(crate) gid: u32,
    /// Seconds since the Unix epoch.
    pub(crate) mtime_s: i64,
    /// Bytes of data that follow; 0 for everything but files.
    pub(crate) size_bytes: u64,
    /// Where a symbolic link points; empty for everything else.
    pub(crate) link_target: Vec<u8>,
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
    /// Two of them; without them it was cut. PostgreSQL 15 and later.
    Required,
    /// None are sent. PostgreSQL 14 and earlier.
    Optional,
}

/// An archive that is not what PostgreSQL makes.
#[derive(Debug, thiserror::Error)]
#[error("{archive}, byte {offset}{}: {reason}", member_part(member))]
pub(crate) struct TarError {
    /// The archive's name.
    pub(crate) archive: String,
    /// Where in the archive the block with the problem begins.
    pub(crate) offset: u64,
    /// The member's name as it stands in the archive, empty if there is none.
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

/// Where the parser stands.
#[derive(Debug)]
enum State {
    /// Collecting a header block.
    Header,
    /// In a file's data.
    Data { left: u64, padding: u64 },
    /// In the zeros that fill a file's last block.
    Padding { left: u64 },
    /// After this many blocks of zeros.
    Ended { zero_blocks: u64 },
}

/// The parser of one archive.
#[derive(Debug)]
pub(crate) struct TarReader {
    archive: String,
    end_blocks: EndBlocks,
    state: State,
    block: [u8; BLOCK_BYTES],
    block_filled: usize,
    offset: u64,
    member: String,
}

impl TarReader {
    /// A parser at the start of an archive; the name is for messages.
    pub(crate) fn new(archive: impl Into<String>, end_blocks: EndBlocks) -> Self {
        Self {
            archive: archive.into(),
            end_blocks,
            state: State::Header,
            block: [0; BLOCK_BYTES],
            block_filled: 0,
            offset: 0,
            member: String::new(),
        }
    }

    /// Takes the next bytes of the archive, in slices of any size.
    ///
    /// # Errors
    /// [`super::Error::Tar`] for an archive PostgreSQL would not make, [`super::Error::Sink`] for what the sink says.
    /// The parser must not be fed any more after either.
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

    /// The archive has ended.
    ///
    /// # Errors
    /// If it ended within a member or, where they are required, without its end blocks.
    pub(crate) fn finish(&self) -> Result<(), TarError> {
        match self.state {
            State::Data { left, .. } => Err(self.error(
                self.offset,
                format!("the archive ends with {left} bytes of this file missing"),
            )),
            State::Padding { .. } => Err(self.error(self.offset, "the archive ends within a block")),
            _ if self.block_filled != 0 => Err(self.error(self.offset, "the archive ends within a block")),
            State::Ended { zero_blocks: 2.. } => Ok(()),
            State::Header | State::Ended { .. } => match self.end_blocks {
                EndBlocks::Optional => Ok(()),
                EndBlocks::Required => Err(self.error(self.offset, "the archive has no end, it was cut off")),
            },
        }
    }

    /// Collects one block and acts when it is complete. Gives the bytes taken.
    fn feed_block(&mut self, bytes: &[u8], sink: &mut dyn TarSink) -> Result<usize, super::Error> {
        let room = self.block.get_mut(self.block_filled..).unwrap_or_default();
        let taken = room.len().min(bytes.len());
        room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.block_filled += taken;
        if self.block_filled < BLOCK_BYTES {
            return Ok(taken);
        }
        self.block_filled = 0;
        // The block began this far back; the bytes of this call are not counted in the offset yet.
        let block_offset = (self.offset + taken as u64).saturating_sub(BLOCK_BYTES as u64);
        let is_zero = self.block.iter().all(|&byte| byte == 0);
        match (&self.state, is_zero) {
            (State::Ended { zero_blocks }, true) => {
                self.state = State::Ended {
                    zero_blocks: zero_blocks + 1,
                }
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
        // A name is worth showing even when the rest of the header is wrong; it is cut where it has a NUL.
        let shown = header.0.split(|&byte| byte == 0).next().unwrap_or_default();
        let member = String::from_utf8_lossy(shown.get(..100).unwrap_or(shown))
            .escape_debug()
            .to_string();
        let entry = header.entry();
        self.member = member;
        let entry = entry.map_err(|reason| self.error(block_offset, reason))?;
        sink.entry(&entry).map_err(super::Error::Sink)?;
        let padding = entry.size_bytes.next_multiple_of(BLOCK_BYTES as u64) - entry.size_bytes;
        self.data_advanced(entry.size_bytes, padding, sink)
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

/// The smaller of a 64-bit count and a length.
fn clamp(left: u64, length: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(length)
}

/// The fields of a ustar header: offset and length of each.
mod field {
    pub(super) const NAME: (usize, usize) = (0, 100);
    pub(super) const MODE: (usize, usize) = (100, 8);
    pub(super) const UID: (usize, usize) = (108, 8);
    pub(super) const GID: (usize, usize) = (116, 8);
    pub(super) const SIZE: (usize, usize) = (124, 12);
    pub(super) const MTIME: (usize, usize) = (136, 12);
    pub(super) const CHECKSUM: (usize, usize) = (148, 8);
    pub(super) const TYPE: (usize, usize) = (156, 1);
    pub(super) const LINK: (usize, usize) = (157, 100);
    pub(super) const MAGIC: (usize, usize) = (257, 6);
    pub(super) const PREFIX: (usize, usize) = (345, 155);
}

/// One header block.
struct Header<'a>(&'a [u8; BLOCK_BYTES]);

impl<'a> Header<'a> {
    fn field(&self, (offset, length): (usize, usize)) -> &'a [u8] {
        self.0.get(offset..offset + length).unwrap_or_default()
    }

    /// Reads and checks everything.
    fn entry(&self) -> Result<TarEntry, String> {
        self.check_sum()?;
        if self.field(field::MAGIC) != b"ustar\0" {
            return Err("this is not a ustar header".to_owned());
        }
        if self.field(field::PREFIX).iter().any(|&byte| byte != 0) {
            return Err("the name continues in the prefix field, which PostgreSQL does not use".to_owned());
        }
        let kind = self.kind()?;
        let path = relative_path(self.text(field::NAME, "name")?)?;
        let size_bytes = self.number(field::SIZE, "size")?;
        if size_bytes > MAX_FILE_BYTES {
            return Err(format!("a size of {size_bytes} bytes is absurd"));
        }
        if kind != TarKind::File && size_bytes != 0 {
            return Err(format!("a directory or link with {size_bytes} bytes of data"));
        }
        Ok(TarEntry {
            path,
            kind,
            mode: self.small_number(field::MODE, "mode")? & 0o7777,
            uid: self.small_number(field::UID, "owner")?,
            gid: self.small_number(field::GID, "group")?,
            mtime_s: self
                .number(field::MTIME, "time")?
                .try_into()
                .map_err(|_| "the time is out of range")?,
            size_bytes,
            link_target: self.link_target(kind)?,
        })
    }

    /// The sum of all bytes, those of the sum itself counted as blanks.
    fn check_sum(&self) -> Result<(), String> {
        let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
        let own = sum(self.field(field::CHECKSUM));
        let expected = sum(self.0) - own + u64::from(b' ') * field::CHECKSUM.1 as u64;
        match self.number(field::CHECKSUM, "checksum") {
            Ok(stored) if stored == expected => Ok(()),
            Ok(stored) => Err(format!(
                "the header's checksum is {stored} but its bytes sum up to {expected}"
            )),
            Err(reason) => Err(reason),
        }
    }

    fn kind(&self) -> Result<TarKind, String> {
        let what = match self.field(field::TYPE).first().copied().unwrap_or_default() {
            b'0' | 0 => return Ok(TarKind::File),
            b'5' => return Ok(TarKind::Directory),
            b'2' => return Ok(TarKind::Symlink),
            b'1' => "a hard link".to_owned(),
            b'3' | b'4' => "a device node".to_owned(),
            b'6' => "a named pipe".to_owned(),
            b'L' | b'K' => "a GNU long name".to_owned(),
            b'x' | b'g' => "a pax header".to_owned(),
            other => format!("a member of unknown type '{}'", other.escape_ascii()),
        };
        Err(format!("this is {what}, which PostgreSQL never sends"))
    }

    fn link_target(&self, kind: TarKind) -> Result<Vec<u8>, String> {
        let target = self.text(field::LINK, "link target")?;
        match (kind, target.is_empty()) {
            (TarKind::Symlink, true) => Err("a symbolic link that points nowhere".to_owned()),
            (TarKind::Symlink, false) => Ok(target.to_vec()),
            (_, true) => Ok(Vec::new()),
            (_, false) => Err("a link target in something that is not a link".to_owned()),
        }
    }

    /// A text that fills its field or ends with NULs alone.
    fn text(&self, at: (usize, usize), what: &str) -> Result<&'a [u8], String> {
        let bytes = self.field(at);
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let (text, rest) = bytes.split_at(end);
        match rest.iter().all(|&byte| byte == 0) {
            true => Ok(text),
            false => Err(format!("the {what} has a NUL in it")),
        }
    }

    fn small_number(&self, at: (usize, usize), what: &str) -> Result<u32, String> {
        self.number(at, what)?
            .try_into()
            .map_err(|_| format!("the {what} is out of range"))
    }

    /// Octal digits, or base 256 when the first bit is set.
    fn number(&self, at: (usize, usize), what: &str) -> Result<u64, String> {
        let out_of_range = || format!("the {what} is out of range");
        match self.field(at) {
            [0x80, rest @ ..] => rest
                .iter()
                .try_fold(0_u64, |value, &byte| {
                    value.checked_mul(256)?.checked_add(u64::from(byte))
                })
                .ok_or_else(out_of_range),
            [0xFF, ..] => Err(format!("the {what} is negative")),
            [0x81..=0xFE, ..] => Err(out_of_range()),
            bytes => octal(bytes).ok_or_else(|| format!("the {what} is not a number")),
        }
    }
}

/// Digits with blanks before and blanks or NULs after them.
fn octal(bytes: &[u8]) -> Option<u64> {
    let digits = bytes.trim_ascii_start();
    let end = digits
        .iter()
        .position(|&byte| byte == b' ' || byte == 0)
        .unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    let ends_clean = rest.iter().all(|&byte| byte == b' ' || byte == 0);
    if digits.is_empty() || !ends_clean {
        return None;
    }
    // At most 12 digits of 3 bits: this cannot overflow.
    digits.iter().try_fold(0_u64, |value, &digit| {
        matches!(digit, b'0'..=b'7').then(|| value << 3 | u64::from(digit - b'0'))
    })
}

/// The name without what PostgreSQL puts around it: `./` before some, `/` after directories and links.
fn relative_path(name: &[u8]) -> Result<Vec<u8>, String> {
    if name.starts_with(b"/") {
        return Err("the name is absolute".to_owned());
    }
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let name = name.strip_suffix(b"/").unwrap_or(name);
    for component in name.split(|&byte| byte == b'/') {
        match component {
            b"" => return Err("the name has an empty component".to_owned()),
            b"." | b".." => return Err("the name has a component \".\" or \"..\"".to_owned()),
            _ => {}
        }
    }
    Ok(name.to_vec())
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
