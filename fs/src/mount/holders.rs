//! The processes that keep a mount busy: they have a file of it open, work in it, or run from it.
//!
//! Only the kernel decides whether a mount is in use; this finds the processes for a message. It compares mount ids in
//! `/proc` and does not access the mount, which may hang. A path would not tell what is mounted where a process has
//! its root.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};

use crate::error::Holder;

/// Maximum number of processes in a message.
const MOST: usize = 8;

/// Time limit. Checking every descriptor of a host usually takes milliseconds. After this time the result is what was
/// found.
const LONGEST: Duration = Duration::from_secs(5);

/// The processes that use the mount with this id and this device ("major:minor"), as far as this user may see them;
/// one entry for each process, and at most [`MOST`]. Leaves out this process and `but`.
pub(super) fn holders(mount: u64, device: &str, but: Option<u32>) -> Vec<Holder> {
    let began = Instant::now();
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = std::process::id();
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|process| *process != own && Some(*process) != but)
        .take_while(|_| began.elapsed() < LONGEST)
        .filter_map(|process| holder(process, mount, device))
        .take(MOST)
        .collect()
}

fn holder(process: u32, mount: u64, device: &str) -> Option<Holder> {
    let at = PathBuf::from(format!("/proc/{process}"));
    let (doing, path) = use_of(&at, mount, device)?;
    let command = fs::read_to_string(at.join("comm")).unwrap_or_default();
    Some(Holder {
        process,
        user: fs::metadata(&at).ok()?.uid(),
        command: command.trim_end().to_owned(),
        doing,
        path,
    })
}

/// The first way in which a process uses the mount.
fn use_of(process: &Path, mount: u64, device: &str) -> Option<(&'static str, PathBuf)> {
    let links = [("works in", "cwd"), ("has its root in", "root"), ("runs", "exe")];
    for (doing, name) in links {
        let link = process.join(name);
        if mount_of_link(&link).is_ok_and(|of| of == Some(mount)) {
            return Some((doing, fs::read_link(link).unwrap_or_default()));
        }
    }
    for entry in fs::read_dir(process.join("fdinfo"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let info = fs::read_to_string(entry.path()).unwrap_or_default();
        if mount_in(&info) == Some(mount) {
            let link = process.join("fd").join(entry.file_name());
            return Some(("has open", fs::read_link(link).unwrap_or_default()));
        }
    }
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    let mapped = maps
        .split(|&byte| byte == b'\n')
        .find_map(|line| mapped_on(line, device));
    mapped.map(|path| ("has mapped", path))
}

/// The mount that a link in `/proc` leads to. Opening the link does not access the file system behind it.
fn mount_of_link(link: &Path) -> io::Result<Option<u64>> {
    let opened = rustix::fs::openat(CWD, link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", opened.as_raw_fd()))?;
    Ok(mount_in(&info))
}

/// The mount id in `/proc/PID/fdinfo/N`, see proc_pid_fdinfo(5).
fn mount_in(info: &str) -> Option<u64> {
    info.lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))?
        .trim()
        .parse()
        .ok()
}

/// The file in a line of `/proc/PID/maps`, if it is on the device: "7f12a000-7f12b000 r--p 00000000 00:32 4711
/// /mnt/main/latest/x", the device in hexadecimal.
fn mapped_on(line: &[u8], device: &str) -> Option<PathBuf> {
    let line = String::from_utf8_lossy(line);
    let mut fields = line.splitn(6, ' ');
    let (major, minor) = fields.nth(3)?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let of = format!("{}:{}", number(major)?, number(minor)?);
    (of == device).then(|| PathBuf::from(fields.nth(1).unwrap_or_default().trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_read() {
        assert_eq!(
            mount_in("pos:\t0\nflags:\t0100000\nmnt_id:\t36\nino:\t4711\n"),
            Some(36)
        );
        assert_eq!(mount_in("pos:\t0\n"), None);
        let line = b"7f12a000-7f12b000 r--p 00000000 00:32 4711                       /mnt/a b";
        assert_eq!(mapped_on(line, "0:50"), Some(PathBuf::from("/mnt/a b")));
        assert_eq!(mapped_on(line, "0:32"), None);
        assert_eq!(
            mapped_on(b"7f12a000-7f12b000 rw-p 00000000 00:00 0", "0:50"),
            None
        );
        assert_eq!(mapped_on(b"", "0:50"), None);
    }

    #[test]
    fn a_process_is_found_by_its_files_in_a_mount() {
        let mount = mount_of_link(Path::new("/proc/self/cwd")).unwrap().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = holder(child.id(), mount, "none").unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((found.doing, found.process), ("works in", child.id()));
        assert_eq!(found.path, std::env::current_dir().unwrap());
        assert_eq!(holder(std::process::id(), u64::MAX, "none"), None);
    }
}
