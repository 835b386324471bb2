//! The mount table, `/proc/self/mountinfo` (see proc(5)), and the mounts of barmanfs in it.

use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::helper;
use super::holders;
use crate::error::{Error, Holder, Result};

/// The type of our mounts in the mount table.
pub(super) const TYPE: &str = "fuse.barmanfs";

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// A mount of barmanfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    path: PathBuf,
    /// The mount's id, and its device as "major:minor". The kernel reuses both after the mount is gone.
    id: u64,
    device: String,
    /// The mount's options: "rw,user_id=0,group_id=0,default_permissions,allow_other".
    options: String,
}

impl Mounted {
    /// The mount visible at `path`, if it is a mount of barmanfs.
    pub(super) fn at(path: &Path) -> Result<Option<Self>> {
        Ok(seen_at(&table()?, path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its device, "major:minor".
    pub(super) fn device(&self) -> &str {
        &self.device
    }

    /// The user who mounted it.
    pub(super) fn user(&self) -> u32 {
        let mut options = self.options.split(',');
        let user = options.find_map(|option| option.strip_prefix("user_id="));
        user.and_then(|user| user.parse().ok()).unwrap_or(0)
    }

    /// Whether other users may access it.
    pub(super) fn allow_other(&self) -> bool {
        self.options.split(',').any(|option| option == "allow_other")
    }

    /// Unmounts it lazily, if it is still what is mounted there.
    pub(super) fn detach(&self) -> Result<()> {
        if Self::at(&self.path)?.as_ref() != Some(self) {
            return Ok(());
        }
        match rustix::mount::unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Err(Errno::PERM) => helper::detach(&self.path),
            // Another process unmounted it at this moment.
            Err(Errno::INVAL) => Ok(()),
            result => result.map_err(|source| Error::io("unmount", &self.path, source)),
        }
    }

    /// Unmounts it if it is unused and still what is mounted there. Returns whether it is gone.
    pub(super) fn release(&self) -> Result<bool> {
        if Self::at(&self.path)?.as_ref() != Some(self) {
            return Ok(true);
        }
        match rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL) => Ok(true),
            Err(Errno::BUSY) => Ok(false),
            Err(Errno::PERM) => helper::release(&self.path),
            Err(errno) => Err(Error::io("unmount", &self.path, errno)),
        }
    }

    /// The processes that use it, as far as this user may see them, without the process `but`.
    pub(super) fn holders(&self, but: Option<u32>) -> Vec<Holder> {
        holders::holders(self.id, &self.device, but)
    }

    /// The mounts inside it.
    pub(super) fn mounted_inside(&self) -> Result<Vec<PathBuf>> {
        let table = table()?;
        let lines = table.split(|&byte| byte == b'\n').filter_map(parsed);
        let inside =
            lines.filter(|(mounted, _)| mounted.path != self.path && mounted.path.starts_with(&self.path));
        Ok(inside.map(|(mounted, _)| mounted.path).collect())
    }
}

/// All mounts in this process's mount namespace.
pub(super) fn table() -> Result<Vec<u8>> {
    std::fs::read(MOUNTINFO).map_err(|source| Error::io("read", MOUNTINFO, source))
}

/// Every mount of barmanfs visible at its path, in the order of the table.
pub(super) fn all_seen(table: &[u8]) -> Vec<Mounted> {
    let lines = table.split(|&byte| byte == b'\n').filter_map(parsed);
    let ours = lines.filter(|(_, kind)| *kind == TYPE);
    ours.map(|(mounted, _)| mounted)
        .filter(|mounted| seen_at(table, &mounted.path).as_ref() == Some(mounted))
        .collect()
}

/// Whether a file is in a mount of barmanfs.
///
/// # Errors
/// When the system call fails.
pub fn is_shown(file: &File, path: &Path) -> Result<bool> {
    let failed = |errno: Errno| Error::io("inspect", path, errno);
    if rustix::fs::fstatfs(file).map_err(failed)?.f_type != libc::FUSE_SUPER_MAGIC {
        return Ok(false);
    }
    let device = rustix::fs::fstat(file).map_err(failed)?.st_dev;
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let table = table()?;
    let mut lines = table.split(|&byte| byte == b'\n').filter_map(parsed);
    Ok(lines.any(|(mounted, kind)| kind == TYPE && mounted.device == device))
}

/// The topmost mount at a path hides those below it, and is the last one in the table.
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
    let mut fields = fields.skip_while(|field| *field != b"-");
    let kind = std::str::from_utf8(fields.nth(1)?).ok()?;
    // The mount source is between them.
    let options = fields.nth(1).and_then(text).unwrap_or_default();
    let mounted = Mounted {
        path,
        id,
        device,
        options,
    };
    Some((mounted, kind))
}

/// Space, tab, newline and backslash are written as three octal digits.
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

/// Whether a path needs no quoting in an option list or a command line.
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
    fn only_the_topmost_mount_at_a_path_counts() {
        let found = seen_at(TABLE, Path::new("/mnt/a b")).unwrap();
        assert_eq!((found.id, found.device.as_str()), (36, "0:50"));
        assert_eq!(
            seen_at(TABLE, Path::new("/mnt/covered")),
            None,
            "another file system covers it"
        );
        assert_eq!(seen_at(TABLE, Path::new("/mnt/twice")).unwrap().id, 40);
        assert_eq!(seen_at(TABLE, Path::new("/mnt")), None);
        let all: Vec<u64> = all_seen(TABLE).iter().map(|mounted| mounted.id).collect();
        assert_eq!(all, [36, 40]);
    }

    #[test]
    fn the_owner_and_allow_other_are_read() {
        let line =
            b"41 25 0:53 / /mnt ro shared:2 - fuse.barmanfs barmanfs rw,user_id=112,group_id=5,allow_other";
        let (mounted, _) = parsed(line).unwrap();
        assert_eq!((mounted.user(), mounted.allow_other()), (112, true));
        let (mounted, _) = parsed(TABLE.split(|&byte| byte == b'\n').next().unwrap()).unwrap();
        assert_eq!((mounted.user(), mounted.allow_other()), (0, false));
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
