//! Detects file systems that should be mounted but are not.
//!
//! If a repository were created in the empty directory of an unmounted disk, it would receive backups and WAL that
//! nobody finds once the disk is mounted again.

use std::path::{Path, PathBuf};

/// The mount point of `path` according to /etc/fstab, if it is not mounted.
pub(crate) fn missing_mount(path: &Path) -> Option<PathBuf> {
    // On hosts without one of these files, nothing is missing.
    let fstab = std::fs::read_to_string("/etc/fstab").unwrap_or_default();
    let mounted = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let missing = find(path, &fstab, &mounted);
    missing.or_else(|| find(&resolved(path)?, &fstab, &mounted))
}

/// The path without symbolic links, as far as it exists.
fn resolved(path: &Path) -> Option<PathBuf> {
    let there = path.ancestors().find(|there| there.symlink_metadata().is_ok())?;
    let rest = path.strip_prefix(there).ok()?;
    let target = match std::fs::canonicalize(there) {
        Ok(target) => target,
        // A link to something that is not there.
        Err(_) => there.parent()?.join(std::fs::read_link(there).ok()?),
    };
    Some(target.join(rest))
}

fn find(path: &Path, fstab: &str, mountinfo: &str) -> Option<PathBuf> {
    // fstab(5): the second field.
    let mounted: Vec<PathBuf> = mountinfo.lines().filter_map(mounted_at).collect();
    fstab
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| mount_point(line, 1))
        .filter(|point| point != Path::new("/") && path.starts_with(point))
        .find(|point| !mounted.contains(point))
}

/// The mount point in a line of `/proc/self/mountinfo`: proc_pid_mountinfo(5), the fifth field.
pub(crate) fn mounted_at(line: &str) -> Option<PathBuf> {
    mount_point(line, 4)
}

/// Decodes blanks in names: both files have them as octal escapes.
fn mount_point(line: &str, field: usize) -> Option<PathBuf> {
    let field = line
        .split_ascii_whitespace()
        .nth(field)
        .filter(|field| field.starts_with('/'))?;
    let name = field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\");
    Some(PathBuf::from(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FSTAB: &str = "# disks\nUUID=1 / ext4 defaults 0 1\n/dev/sdb1 /mnt/nas\\040one ext4 noauto 0 2\n/dev/sdc1 /srv xfs\tdefaults 0 2\nproc none swap sw 0 0\n";
    const MOUNTED: &str = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 8:33 / /srv rw - xfs /dev/sdc1 rw\n";

    #[test]
    fn a_listed_mount_point_must_be_mounted() {
        assert_eq!(
            find(Path::new("/mnt/nas one/repo"), FSTAB, MOUNTED),
            Some(PathBuf::from("/mnt/nas one"))
        );
        assert_eq!(find(Path::new("/srv/repo"), FSTAB, MOUNTED), None);
        assert_eq!(find(Path::new("/var/lib/repo"), FSTAB, MOUNTED), None);
        assert_eq!(find(Path::new("/mnt/nas"), FSTAB, MOUNTED), None);
    }
}
