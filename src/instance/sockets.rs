//! Where a clone's server has its socket: only users that can read the clone's files can reach it.
//!
//! `pg_hba.conf` is the original's, and may trust everybody who could reach the original's socket. So the socket is in
//! the clone itself, and only the user the server runs as may use it. Where a group is to connect as well, or the clone's
//! path is too long for a socket, it is in a directory of its own:
//!
//! ```text
//! /tmp/barmanfs-clone-ID-XXXXXX/     the server's user's alone; or also for the group, which the socket inherits
//! ```
//!
//! The name cannot be guessed, and no other user can rename what is in `/tmp`. Directories with such a name are removed when
//! the server is stopped or started again, and when the clone is removed. Root follows no symbolic link there.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use barmanfs_pg::socket::{SOCKET_PREFIX, is_socket_lock};
use nix::unistd::{Gid, Group, Uid};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};

use super::postmaster::{holder_of, is_alive, is_zombie};
use crate::error::Error;

/// Every user can use this directory, and no other user can remove or rename an entry.
const PARENT: &str = "/tmp";

/// The names of the directories begin so; the clone's id follows.
const PREFIX: &str = "barmanfs-clone-";

/// This much of a clone's id distinguishes it from all others of a host.
const ID_LENGTH: usize = 16;

/// Longest path of a socket that all systems take (`sockaddr_un` has 108 bytes, the last of them zero).
const MAX_PATH_BYTES: usize = 107;

/// The longest name of a socket.
const LONGEST_NAME: &str = ".s.PGSQL.65535";

/// For the server's user alone.
const PRIVATE: u32 = 0o700;

/// For a group as well; the socket that is made in it gets the group, too.
const SHARED: u32 = 0o2750;

/// The socket directory for a server on a clone.
///
/// # Errors
/// When a directory cannot be made, when the group is not known, or when the directory cannot be given to it.
pub(crate) fn place(data: &Path, clone: &str, uid: u32, share: Option<&str>) -> Result<PathBuf, Error> {
    remove(clone);
    let group = share.map(group).transpose()?;
    if group.is_none() && fits(data) {
        return Ok(data.to_owned());
    }
    let made = tempfile::Builder::new()
        .prefix(&format!("{}-", prefix(clone)))
        .permissions(Permissions::from_mode(PRIVATE))
        .tempdir_in(PARENT)
        .map_err(|error| {
            Error::failed(format!(
                "Cannot make a directory for the socket in {PARENT}: {error}"
            ))
        })?;
    give(made.path(), uid, group).map_err(|error| {
        let error = Error::failed(format!(
            "Cannot give the directory of the socket, {}, to {}: {error}",
            made.path().display(),
            share.map_or_else(|| format!("uid {uid}"), |group| format!("group {group}"))
        ));
        match share {
            Some(_) => error.hint("The user the server runs as must be in the group; or run this as root"),
            None => error,
        }
    })?;
    Ok(made.keep())
}

/// Removes the socket directories of a clone whose server does not run. What cannot be removed is logged, and stays.
pub(crate) fn remove(clone: &str) {
    let prefix = format!("{}-", prefix(clone));
    let Ok(entries) = fs::read_dir(PARENT) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        let path = entry.path();
        match remove_directory(&path) {
            Ok(()) => {}
            Err(error) => tracing::warn!("{} is left behind: {error}", path.display()),
        }
    }
}

/// Nothing is done to what is another user's, unless by root, whose servers are other users'; nor while a server has its
/// socket there.
fn remove_directory(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let owner = rustix::fs::fstat(&directory)?.st_uid;
    let me = Uid::effective();
    if owner != me.as_raw() && !me.is_root() {
        return Ok(());
    }
    let names = names(&directory)?;
    if names.iter().any(|name| is_held(&directory, name)) {
        return Ok(());
    }
    for name in names.iter().filter(|name| name.starts_with(SOCKET_PREFIX)) {
        rustix::fs::unlinkat(&directory, OsStr::from_bytes(name), AtFlags::empty())?;
    }
    fs::remove_dir(path)
}

fn names(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if !matches!(name.as_slice(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

/// Whether it is the lock file of a server that runs.
fn is_held(directory: &OwnedFd, name: &[u8]) -> bool {
    is_socket_lock(name) && holder(directory, name).is_some_and(is_alive)
}

/// Removes the lock files of sockets whose server has ended and was not waited for: PostgreSQL takes it for alive.
pub(super) fn remove_locks_of_zombies(directory: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, directory, flags, Mode::empty())?;
    for name in names(&directory)?.iter().filter(|name| is_socket_lock(name)) {
        if holder(&directory, name).is_some_and(is_zombie) {
            rustix::fs::unlinkat(&directory, OsStr::from_bytes(name), AtFlags::empty())?;
        }
    }
    Ok(())
}

/// The process that a lock file names in its first line.
fn holder(directory: &OwnedFd, name: &[u8]) -> Option<i32> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut text = [0; 32];
    let length = rustix::fs::openat(directory, OsStr::from_bytes(name), flags, Mode::empty())
        .and_then(|file| rustix::io::read(&file, &mut text));
    let text = text.get(..length.unwrap_or(0)).unwrap_or_default();
    holder_of(text)
}

fn prefix(clone: &str) -> String {
    let id = clone.get(..ID_LENGTH).unwrap_or(clone);
    format!("{PREFIX}{id}")
}

/// Whether a client finds a socket in this directory: by a path of limited length, in a list parted by commas.
fn fits(directory: &Path) -> bool {
    let path = directory.join(LONGEST_NAME);
    path.as_os_str().len() <= MAX_PATH_BYTES && !path.as_os_str().as_bytes().contains(&b',')
}

/// A group by its name or number.
fn group(text: &str) -> Result<Gid, Error> {
    let known = Group::from_name(text).ok().flatten().map(|group| group.gid);
    let numbered = || text.parse().ok().map(Gid::from_raw);
    known.or_else(numbered).ok_or_else(|| {
        Error::usage(format!("There is no group \"{text}\" on this host"))
            .hint("'getent group' lists those there are")
    })
}

/// Works on the opened directory: its new owner may put another directory in its place at once.
fn give(path: &Path, uid: u32, group: Option<Gid>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let owner = (uid != Uid::effective().as_raw()).then_some(uid);
    if owner.is_some() || group.is_some() {
        std::os::unix::fs::fchown(&directory, owner, group.map(Gid::as_raw))?;
    }
    if group.is_some() {
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(SHARED))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn directories(clone: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(PARENT).unwrap().flatten().map(|entry| entry.path());
        let is_its = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().as_bytes();
            name.starts_with(prefix(clone).as_bytes())
        };
        entries.filter(is_its).collect()
    }

    #[test]
    fn a_socket_lies_in_the_clone_where_its_path_is_short_enough() {
        let uid = Uid::effective().as_raw();
        let data = Path::new("/mnt/backups/main/live/a");
        assert_eq!(place(data, "0123456789abcdef", uid, None).unwrap(), data);
        for data in ["/long".repeat(19), "/mnt/a,b".to_owned()] {
            assert!(!fits(Path::new(&data)), "{data}");
        }
        let clone = format!("{:016x}", std::process::id());
        let made = place(Path::new(&"/long".repeat(19)), &clone, uid, None).unwrap();
        let found = fs::metadata(&made).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (uid, PRIVATE));
        assert!(fits(&made));
        // Of a server that runs, and of one that was killed.
        let lock = made.join(".s.PGSQL.25432.lock");
        fs::write(&lock, format!("{}\n/data\n", std::process::id())).unwrap();
        remove(&clone);
        assert_eq!(directories(&clone), [made]);
        fs::write(&lock, format!("{}\n/data\n", i32::MAX)).unwrap();
        remove(&clone);
        assert_eq!(directories(&clone), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn removing_sockets_follows_no_link() {
        let elsewhere = tempfile::tempdir().unwrap();
        let socket = elsewhere.path().join(".s.PGSQL.5432");
        fs::write(&socket, "").unwrap();
        let clone = format!("{:016x}", u64::from(std::process::id()) << 32);
        let link = Path::new(PARENT).join(format!("{}-link", prefix(&clone)));
        std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
        remove(&clone);
        assert!(socket.exists());
        fs::remove_file(link).unwrap();
    }

    #[test]
    fn a_missing_group_is_named() {
        let error = group("no such group").unwrap_err().to_string();
        assert!(error.contains("no such group"), "{error}");
        assert_eq!(group("0").unwrap().as_raw(), 0);
    }
}
