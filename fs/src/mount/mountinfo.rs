//! Which mounts there are, and which of them is ours: `/proc/self/mountinfo`, see proc(5).

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::helper;
use crate::error::{Error, Result};

/// The type under which our mounts stand in the mount table.
pub(super) const TYPE: &str = "fuse.barmanfs";

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mount of a barmanfs tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    path: PathBuf,
    /// The mount's id, and its device as "major:minor". Both are given away again once the mount is gone.
    id: u64,
    device: String,
}

impl Mounted {
    /// The mount that is seen at `path`, if it is one of ours.
    pub(super) fn at(path: &Path) -> Result<Option<Self>> {
        let table = std::fs::read(MOUNTINFO).map_err(|source| Error::io("read", MOUNTINFO, source))?;
        Ok(seen_at(&table, path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its device, "major:minor".
    pub(super) fn device(&self) -> &str {
        &self.device
    }

    /// Takes it out of the file system at once, if it is still what is mounted there.
    pub(super) fn detach(&self) -> Result<()> {
        if Self::at(&self.path)?.as_ref() != Some(self) {
            return Ok(());
        }
        match rustix::mount::unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Err(Errno::PERM) => helper::unmount(&self.path),
            // Unmounted by somebody else this very moment.
            Err(Errno::INVAL) => Ok(()),
            result => result.map_err(|source| Error::io("unmount", &self.path, source)),
        }
    }
}

/// The topmost mount at a path hides those below it, and is the last in the table.
fn seen_at(table: &[u8], path: &Path) -> Option<Mounted> {
    let lines = table.split(|&byte| byte == b'\n').rev();
    let (line, kind) = lines
        .filter_map(parsed)
        .find(|(mounted, _)| mounted.path == path)?;
    (kind == TYPE).then_some(line)
}

/// A line: "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw".
fn parsed(line: &[u8]) -> Option<(Mounted, &str)> {
    let mut fields = line.split(|&byte| byte == b' ');
    let text = |field: &[u8]| std::str::from_utf8(field).ok().map(str::to_owned);
    let id = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.nth(1)?)?;
    let path = unescaped(fields.nth(1)?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some((Mounted { path, id, device }, std::str::from_utf8(kind).ok()?))
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'\\'
            && let Some((digits, after)) = rest.split_at_checked(3)
            && let Some(code) = std::str::from_utf8(digits)
                .ok()
                .and_then(|text| u8::from_str_radix(text, 8).ok())
        {
            bytes.push(code);
            rest = after;
        } else {
            bytes.push(byte);
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Whether a path may stand in an option list or a command line as it is.
pub(super) fn is_plain(path: &Path) -> bool {
    !path.as_os_str().as_bytes().contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
36 25 0:50 / /mnt/a\\040b rw,noatime shared:1 - fuse.barmanfs barmanfs ro,user_id=0\n\
37 25 0:51 / /mnt/covered ro - fuse.barmanfs barmanfs ro\n\
38 37 8:1 / /mnt/covered rw - ext4 /dev/sda1 rw\n\
39 25 0:52 / /mnt/twice ro - fuse.barmanfs barmanfs ro\n\
40 39 0:53 / /mnt/twice ro - fuse.barmanfs barmanfs ro\n";

    #[test]
    fn only_what_is_seen_at_a_path_counts() {
        let found = seen_at(TABLE, Path::new("/mnt/a b")).unwrap();
        assert_eq!((found.id, found.device.as_str()), (36, "0:50"));
        assert_eq!(
            seen_at(TABLE, Path::new("/mnt/covered")),
            None,
            "another file system covers it"
        );
        assert_eq!(seen_at(TABLE, Path::new("/mnt/twice")).unwrap().id, 40);
        assert_eq!(seen_at(TABLE, Path::new("/mnt")), None);
    }

    #[test]
    fn the_real_table_is_read() {
        let table = std::fs::read(MOUNTINFO).unwrap();
        let lines = table.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        for line in lines {
            assert!(parsed(line).is_some(), "{}", line.escape_ascii());
        }
    }
}
