//! Mounts through `fusermount3`, the set-user-id helper, for users who may not mount. The helper passes the FUSE
//! device over a socket.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::mountinfo::is_plain;
use crate::error::{Error, Result};

const PROGRAM: &str = "fusermount3";

/// The descriptor of the helper's end of the socket: its standard input, which it does not use otherwise.
const SOCKET: (&str, &str) = ("_FUSE_COMMFD", "0");

/// Mounts at `mount_point` and returns the device.
pub(super) fn mount(mount_point: &Path, allow_other: bool) -> Result<OwnedFd> {
    let cannot = |reason: String| Error::CannotMount {
        path: mount_point.to_path_buf(),
        reason,
    };
    let io = |source| Error::io("run fusermount3 for", mount_point, source);
    if !is_plain(mount_point) {
        return Err(cannot("its name cannot be given to fusermount3".to_owned()));
    }
    let (ours, theirs) = UnixStream::pair().map_err(io)?;
    let mut options = "nodev,nosuid,noatime,default_permissions,fsname=barmanfs,subtype=barmanfs".to_owned();
    if allow_other {
        options.push_str(",allow_other");
    }
    let child = Command::new(PROGRAM)
        .args(["-o", &options, "--"])
        .arg(mount_point)
        .env(SOCKET.0, SOCKET.1)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                cannot("mounting needs root, or the program fusermount3 (package fuse3)".to_owned())
            }
            _ => io(error),
        })?;
    let device = receive(&ours).map_err(io)?;
    let output = child.wait_with_output().map_err(io)?;
    device.ok_or_else(|| cannot(said(&output.stderr)))
}

/// Part of its message when a mount is in use, in the language it is run in.
const BUSY: &str = "busy";

/// Unmounts lazily.
pub(super) fn detach(mount_point: &Path) -> Result<()> {
    match unmount(mount_point, &["-u", "-z"])? {
        None => Ok(()),
        Some(said) => Err(refused(mount_point, said)),
    }
}

/// Unmounts if the mount is unused. Returns whether it did.
pub(super) fn release(mount_point: &Path) -> Result<bool> {
    match unmount(mount_point, &["-u"])? {
        None => Ok(true),
        Some(said) if said.contains(BUSY) => Ok(false),
        Some(said) => Err(refused(mount_point, said)),
    }
}

fn refused(mount_point: &Path, said: String) -> Error {
    Error::io("unmount", mount_point, io::Error::other(said))
}

/// The helper's error message, if it failed.
fn unmount(mount_point: &Path, options: &[&str]) -> Result<Option<String>> {
    let output = Command::new(PROGRAM)
        .args(options)
        .arg("--")
        .arg(mount_point)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::io("run fusermount3 for", mount_point, source))?;
    Ok((!output.status.success()).then(|| said(&output.stderr)))
}

/// The helper's error message in one line.
fn said(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("fusermount3 failed");
    line.trim_start_matches("fusermount3: ").to_owned()
}

/// The device in the helper's only message; `None` if it ends without one.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut room);
    let mut byte = [0];
    loop {
        let mut into = [IoSliceMut::new(&mut byte)];
        match recvmsg(socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => break,
        }
    }
    let device = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(device)
}
