//! File systems that fill up quickly.

use super::Site;
use super::process::run;
use super::user::{database_user, give};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory, of this many MB. Needs root.
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

/// A file system with a quota (btrfs, in an image). Needs root.
pub(crate) struct QuotaDisk {
    point: PathBuf,
}

impl QuotaDisk {
    /// `None` if its programs are missing.
    pub(crate) fn mount(site: &Site, name: &str, megabytes: u32) -> Option<Self> {
        Command::new("mkfs.btrfs").arg("--version").output().ok()?;
        let point = site.make_directory(name);
        let image = site.path("image");
        run(Command::new("truncate")
            .arg(format!("-s{megabytes}M"))
            .arg(&image))
        .ok();
        // mkfs.btrfs checks the backing file of every loop device, and fails if a test beside this one has cut the
        // power of one.
        let script = "awk '$1 ~ \"^/dev/loop\" {print $2}' /proc/self/mounts | xargs -r umount -l; mkfs.btrfs -q \"$1\"";
        run(Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .arg(&image))
        .ok();
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &point])).ok();
        give(&point);
        run(Command::new("btrfs").args(["quota", "enable"]).arg(&point)).ok();
        Some(Self { point })
    }

    /// Limits the file system to its present size.
    pub(crate) fn allow_no_more(&self) {
        let point = self.point.display();
        let script = format!(
            "btrfs filesystem sync '{point}' && btrfs quota rescan -w '{point}' >/dev/null && \
             btrfs qgroup limit $(btrfs qgroup show --raw '{point}' | awk '/^0.5 / {{print $2}}') '{point}'"
        );
        run(Command::new("sh").args(["-c", &script])).ok();
    }

    pub(crate) fn allow_all(&self) {
        run(Command::new("btrfs")
            .args(["qgroup", "limit", "none"])
            .arg(&self.point))
        .ok();
    }
}

impl Drop for QuotaDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.point).status();
    }
}
