//! A mount that is always unmounted.

use super::Site;
use super::postgres::servers_in;
use super::process::{until, wait};
use super::user::is_root;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A mounted repository.
#[derive(Debug)]
pub(crate) struct Mount<'a> {
    site: &'a Site,
    pub(crate) point: PathBuf,
    daemon: Option<Child>,
}

impl<'a> Mount<'a> {
    /// Mounts as a DBA does: the command returns when the mount answers.
    #[track_caller]
    pub(crate) fn new(site: &'a Site) -> Self {
        let mount = Self::prepare(site, "mnt");
        site.ok(&["mount", &mount.point.to_string_lossy()]);
        mount
    }

    /// Mounts in the foreground, as the user of the tests, with access for all users.
    #[track_caller]
    pub(crate) fn for_all(site: &'a Site) -> Self {
        let mut mount = Self::prepare(site, "mnt");
        let mut command =
            site.own_barmanfs_command(&["mount", &mount.text(), "--foreground", "--allow-other"]);
        let daemon = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        mount.daemon = Some(daemon.spawn().expect("Cannot run barmanfs"));
        until("the mount answers", || mount.is_alive());
        mount
    }

    /// Mounts as systemd does; the daemon is a child that can be killed.
    #[track_caller]
    pub(crate) fn foreground(site: &'a Site, options: &[&str]) -> Self {
        let mut mount = Self::prepare(site, "mnt");
        let point = mount.point.to_string_lossy().into_owned();
        mount.daemon = Some(site.spawn(&[&["mount", &point, "--foreground"], options].concat()));
        until("the mount answers", || mount.is_alive());
        mount
    }

    /// Only a mount point, unmounted at the end if something was mounted there.
    pub(crate) fn prepare(site: &'a Site, name: &str) -> Self {
        Self {
            site,
            point: site.make_directory(name),
            daemon: None,
        }
    }

    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.point.join(inside)
    }

    /// For command lines.
    pub(crate) fn text(&self) -> String {
        self.point.to_string_lossy().into_owned()
    }

    /// Whether a daemon serves it.
    pub(crate) fn is_alive(&self) -> bool {
        self.site
            .sh(&format!("test -e '{}/.barmanfs/alive'", self.point.display()))
            .code()
            == Some(0)
    }

    /// Whether the kernel has a mount there, alive or dead.
    pub(crate) fn is_mounted(&self) -> bool {
        let mounts =
            std::fs::read_to_string("/proc/self/mountinfo").expect("Cannot read /proc/self/mountinfo");
        let point = self.point.to_string_lossy();
        mounts.lines().any(|line| line.split(' ').nth(4) == Some(&*point))
    }

    /// The process of a foreground mount.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("mounted in the foreground").id()
    }

    /// `kill -9`: the mount point stays behind, dead.
    pub(crate) fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("mounted in the foreground");
        daemon.kill().expect("Cannot kill the daemon");
        daemon.wait().expect("Cannot wait for the daemon");
    }

    /// Sends a signal and waits. Returns the daemon's exit code.
    pub(crate) fn end_by(&mut self, signal: Signal) -> Option<i32> {
        let mut daemon = self.daemon.take().expect("mounted in the foreground");
        let pid = Pid::from_child(&daemon);
        kill_process(pid, signal).expect("Cannot signal the daemon");
        wait(&mut daemon, Duration::from_secs(20))
            .expect("the daemon ends")
            .code()
    }

    #[track_caller]
    pub(crate) fn unmount(mut self) {
        self.site.ok(&["umount", &self.point.to_string_lossy()]);
        if let Some(mut daemon) = self.daemon.take() {
            wait(&mut daemon, Duration::from_secs(20)).expect("the daemon ends when its mount does");
        }
        assert!(!self.is_mounted(), "{} is still mounted", self.point.display());
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // A failed test may have left servers on clones. They could not be found once the mount is gone.
        if self.is_alive() {
            for server in servers_in(&self.point) {
                let _ = kill_process(server, Signal::QUIT);
            }
        }
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // More than once: a test may have mounted over a dead mount.
        for _ in 0..3 {
            if !self.is_mounted() {
                return;
            }
            lazily_unmount(&self.point, self.site);
        }
    }
}

fn lazily_unmount(point: &Path, site: &Site) {
    if is_root() {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(point)
            .stderr(Stdio::null())
            .status();
    } else {
        let _ = site.sh(&format!("fusermount3 -u -z '{}'", point.display()));
    }
}
