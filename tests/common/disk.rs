//! File systems that fill up soon.

use super::process::run;
use super::user::database_user;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory, of so many MB. For root.
pub(crate) struct SmallDisk {
    point: PathBuf,
}

impl SmallDisk {
    pub(crate) fn mount(point: &Path, megabytes: u32) -> Self {
        let user = database_user();
        let options = format!("size={megabytes}m,mode=755,uid={},gid={}", user.uid, user.gid);
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(point))
        .ok();
        Self {
            point: point.to_owned(),
        }
    }

    pub(crate) fn grow(&self, megabytes: u32) {
        run(Command::new("mount")
            .args(["-o", &format!("remount,size={megabytes}m")])
            .arg(&self.point))
        .ok();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.point).status();
    }
}
