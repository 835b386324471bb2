//! A storage that takes snapshots: btrfs in images. Needs root.

use super::Site;
use super::process::run;
use super::user::give;
use std::path::PathBuf;
use std::process::Command;

/// A disk: a file system in an image, whose subvolume `disk` is mounted at NAME, and all of it at NAME.all. Snapshots are in
/// NAME.all/snaps. The database user may take and delete them.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Where the server has it.
    pub(crate) point: PathBuf,
    /// Where the storage has all of it.
    pub(crate) all: PathBuf,
    device: String,
}

/// How the server has it mounted.
pub(crate) const OPTIONS: &str = "noatime,user_subvol_rm_allowed";

impl Disk {
    pub(crate) fn new(site: &Site, name: &str, megabytes: u32) -> Self {
        let (point, all) = (
            site.make_directory(name),
            site.make_directory(&format!("{name}.all")),
        );
        let image = site.path(&format!("{name}.image"));
        let sh = |script: &str| run(Command::new("sh").args(["-c", script])).ok().text();
        // mkfs.btrfs checks the backing file of every loop device, and fails if a test beside this one has cut the power of
        // one.
        let make = "awk '$1 ~ \"^/dev/loop\" {print $2}' /proc/self/mounts | xargs -r umount -l; mkfs.btrfs -q \"$1\"";
        sh(&format!("truncate -s{megabytes}M '{}'", image.display()));
        run(Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", make, "sh"])
            .arg(&image))
        .ok();
        let device = sh(&format!("losetup --find --show '{}'", image.display()));
        sh(&format!(
            "mount -o {OPTIONS} {device} '{0}' && btrfs -q subvolume create '{0}/disk' && mkdir '{0}/snaps'",
            all.display()
        ));
        let disk = Self { point, all, device };
        disk.mount("disk", OPTIONS);
        give(&disk.point);
        give(&disk.all.join("snaps"));
        disk
    }

    /// Mounts a subvolume where the server has the disk.
    pub(crate) fn mount(&self, subvolume: &str, options: &str) {
        run(Command::new("mount")
            .args(["-o", &format!("{options},subvol={subvolume}"), &self.device])
            .arg(&self.point))
        .ok();
    }

    pub(crate) fn umount(&self) {
        run(Command::new("umount").arg(&self.point)).ok();
    }

    /// Makes a disk of a snapshot: the subvolume NAME.
    pub(crate) fn clone_of(&self, snapshot: &str, name: &str) {
        run(Command::new("btrfs")
            .args(["-q", "subvolume", "snapshot"])
            .args([self.all.join("snaps").join(snapshot), self.all.join(name)]))
        .ok();
    }

    /// A shell command that takes the snapshot whose name is in a variable of the shell.
    pub(crate) fn take(&self, name: &str) -> String {
        format!(
            "btrfs -q subvolume snapshot '{}' '{}'/snaps/{name}",
            self.point.display(),
            self.all.display()
        )
    }

    /// The names of the snapshots.
    pub(crate) fn snapshots(&self, site: &Site) -> Vec<String> {
        site.list(&self.all.join("snaps"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for point in [&self.point, &self.all] {
            let _ = Command::new("umount").arg("-l").arg(point).status();
        }
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}
