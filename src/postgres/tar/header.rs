//! One header block of a tar archive: its fields and their allowed values.

use super::extension::{self, Extended, Extensions, Kind};
use super::{BLOCK_BYTES, Names, TarEntry, TarKind, number};

/// More than the size of any file of a server. Relations are split at 1 GiB.
const MAX_FILE_BYTES: u64 = 1 << 46;

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

/// The magic numbers of POSIX and of GNU.
const POSIX_MAGIC: &[u8] = b"ustar\0";
const GNU_MAGIC: &[u8] = b"ustar ";

/// The meaning of a header.
#[derive(Debug)]
pub(super) enum Member {
    /// An entry of the data directory.
    Entry(TarEntry),
    /// This many bytes that extend the header of the next member.
    Extension(Kind, u64),
}

/// One header block.
pub(super) struct Header<'a>(pub(super) &'a [u8; BLOCK_BYTES]);

impl<'a> Header<'a> {
    fn field(&self, (offset, length): (usize, usize)) -> &'a [u8] {
        self.0.get(offset..offset + length).unwrap_or_default()
    }

    /// Reads and checks all fields, including the extended ones.
    pub(super) fn read(&self, extensions: &mut Extensions, names: &mut Names) -> Result<Member, String> {
        self.check_sum()?;
        let magic = self.field(field::MAGIC);
        if magic != POSIX_MAGIC && magic != GNU_MAGIC {
            return Err("this is not a ustar header".to_owned());
        }
        match self.extension() {
            Some(kind) => {
                let size_bytes = self.size()?;
                match size_bytes <= extension::MAX_BYTES {
                    true => Ok(Member::Extension(kind, size_bytes)),
                    false => Err(format!("an extended header of {size_bytes} bytes is absurd")),
                }
            }
            None => self.entry(&extensions.of_member()?, names).map(Member::Entry),
        }
    }

    fn entry(&self, extended: &Extended, names: &mut Names) -> Result<TarEntry, String> {
        let kind = self.kind()?;
        let name = match &extended.path {
            Some(path) => path.clone(),
            None => self.name()?,
        };
        let slash = name.strip_prefix(b"/").filter(|_| names.takes_slash);
        names.had_slash |= slash.is_some();
        let path = match slash.unwrap_or(&name) {
            b"./" | b"." if names.takes_root && kind == TarKind::Directory => Vec::new(),
            b"" if slash.is_some() && kind == TarKind::Directory => Vec::new(),
            name => relative_path(name)?,
        };
        let size_bytes = match extended.size {
            Some(size_bytes) => size_bytes,
            None => self.size()?,
        };
        if size_bytes > MAX_FILE_BYTES {
            return Err(format!("a size of {size_bytes} bytes is absurd"));
        }
        if kind != TarKind::File && size_bytes != 0 {
            return Err(format!("a directory or link with {size_bytes} bytes of data"));
        }
        let (mtime_s, mtime_ns) = match extended.mtime {
            Some(time) => time,
            None => (self.time()?, 0),
        };
        let id = |extended: Option<u32>, at, what| extended.map_or_else(|| self.small_number(at, what), Ok);
        Ok(TarEntry {
            path,
            kind,
            mode: self.small_number(field::MODE, "mode")? & 0o7777,
            uid: id(extended.uid, field::UID, "owner")?,
            gid: id(extended.gid, field::GID, "group")?,
            mtime_s,
            mtime_ns,
            size_bytes,
            link_target: self.link_target(kind, extended)?,
        })
    }

    /// The name. With POSIX, it may begin in a field of its own; GNU uses that field for other things.
    fn name(&self) -> Result<Vec<u8>, String> {
        let name = self.text(field::NAME, "name")?;
        let prefix = match self.field(field::MAGIC) == POSIX_MAGIC {
            true => self.text(field::PREFIX, "name's prefix")?,
            false => &[],
        };
        Ok(match prefix {
            [] => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        })
    }

    fn time(&self) -> Result<i64, String> {
        let number = number::read(self.field(field::MTIME)).ok_or("the time is not a number")?;
        number::seconds(number).ok_or_else(|| "the time is out of range".to_owned())
    }

    fn size(&self) -> Result<u64, String> {
        self.number(field::SIZE, "size")
    }

    fn extension(&self) -> Option<Kind> {
        match self.field(field::TYPE) {
            b"x" => Some(Kind::Next),
            b"g" => Some(Kind::Global),
            b"L" => Some(Kind::LongName),
            b"K" => Some(Kind::LongLink),
            _ => None,
        }
    }

    /// The sum of all bytes; those of the checksum itself count as blanks.
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
            // 7 requests a contiguous file, which POSIX treats like any other.
            b'0' | b'7' | 0 => return Ok(TarKind::File),
            b'5' => return Ok(TarKind::Directory),
            b'2' => return Ok(TarKind::Symlink),
            b'1' => "a hard link".to_owned(),
            b'3' | b'4' => "a device node".to_owned(),
            b'6' => "a named pipe".to_owned(),
            b'S' => "a sparse file".to_owned(),
            other => format!("a member of unknown type '{}'", other.escape_ascii()),
        };
        Err(format!("this is {what}, which PostgreSQL never sends"))
    }

    fn link_target(&self, kind: TarKind, extended: &Extended) -> Result<Vec<u8>, String> {
        let target = match &extended.link {
            Some(target) => target.as_slice(),
            None => self.text(field::LINK, "link target")?,
        };
        if target.contains(&0) {
            return Err("the link target has a NUL in it".to_owned());
        }
        match (kind, target.is_empty()) {
            (TarKind::Symlink, true) => Err("a symbolic link that points nowhere".to_owned()),
            (TarKind::Symlink, false) => Ok(target.to_vec()),
            (_, true) => Ok(Vec::new()),
            (_, false) => Err("a link target in something that is not a link".to_owned()),
        }
    }

    /// A text that fills its field, or is followed only by NULs.
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

    fn number(&self, at: (usize, usize), what: &str) -> Result<u64, String> {
        match number::read(self.field(at)) {
            None => Err(format!("the {what} is not a number")),
            Some(..0) => Err(format!("the {what} is negative")),
            Some(number) => u64::try_from(number).map_err(|_| format!("the {what} is out of range")),
        }
    }
}

/// The name without PostgreSQL's additions: `./` before some names, `/` after directories and links.
fn relative_path(name: &[u8]) -> Result<Vec<u8>, String> {
    if name.starts_with(b"/") {
        return Err("the name is absolute".to_owned());
    }
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let name = name.strip_suffix(b"/").unwrap_or(name);
    for component in name.split(|&byte| byte == b'/') {
        match component {
            b"" => return Err("the name has an empty component".to_owned()),
            _ if component.contains(&0) => return Err("the name has a NUL in it".to_owned()),
            b"." | b".." => return Err("the name has a component \".\" or \"..\"".to_owned()),
            _ => {}
        }
    }
    Ok(name.to_vec())
}
