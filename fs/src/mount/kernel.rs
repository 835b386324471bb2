//! Mounts by the system call, for users who may.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use super::mountinfo::TYPE;

const DEVICE: &str = "/dev/fuse";

/// Opens a FUSE connection and mounts it.
pub(super) fn mount(mount_point: &Path, allow_other: bool) -> io::Result<OwnedFd> {
    let device =
        rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
            let hint = match error {
                rustix::io::Errno::NOENT | rustix::io::Errno::NODEV => {
                    " (load the kernel module: modprobe fuse)"
                }
                _ => "",
            };
            io::Error::new(
                io::Error::from(error).kind(),
                format!("{DEVICE} cannot be opened: {error}{hint}"),
            )
        })?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data)?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
    rustix::mount::mount("barmanfs", mount_point, TYPE, flags, data.as_c_str())?;
    Ok(device)
}
