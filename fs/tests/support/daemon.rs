//! A mount in another process, which can be killed. Needs /dev/fuse.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use barmanfs_catalog::Repository;
use barmanfs_fs::{MountOptions, Unmounting, mount, unmount};
use rustix::mount::UnmountFlags;

use super::{Fixture, Thing};

/// Tells the test program to run as the daemon.
const DAEMON: &str = "BARMANFS_TEST_DAEMON";

const PATIENCE: Duration = Duration::from_secs(20);

/// Serves a mount until it is killed or unmounted.
pub struct Daemon {
    child: Child,
    pub point: PathBuf,
}

impl Daemon {
    /// The program must have a test named `daemon` that calls [`serve`].
    pub fn start(repository: &Path, point: &Path) -> Self {
        std::fs::create_dir_all(point).unwrap();
        let point = point.canonicalize().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "daemon", "--nocapture"])
            .env(DAEMON, format!("{}\n{}", repository.display(), point.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Self { child, point };
        until("it is mounted", || {
            is_mounted(&daemon.point) && daemon.point.join("README").exists()
        });
        daemon
    }

    /// `kill -9`: the dead mount point stays behind.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                // Ends all requests that wait for an answer.
                let _ = rustix::mount::unmount(&self.point, UnmountFlags::FORCE);
                panic!("The daemon was killed and is still there");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Like a signal to the daemon: it unmounts the tree, and ends soon even if files are still open.
    pub fn end(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn wait(&mut self) {
        until("the daemon ends", || self.child.try_wait().unwrap().is_some());
    }

    /// Unmounts like `umount`. All writes are durable then.
    pub fn unmount(mut self) {
        unmount(&self.point, Unmounting::Lazily).unwrap();
        self.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = unmount(&self.point, Unmounting::Lazily);
    }
}

/// A clone on a mount.
pub fn cloned(things: &[(&str, Thing)]) -> (Fixture, Daemon, PathBuf) {
    let fixture = Fixture::new();
    fixture.archive(2, 2);
    fixture.archive(3, 3);
    fixture.backup(things);
    let daemon = Daemon::start(fixture.repository.path(), &fixture.directory.path().join("mnt"));
    let clone = daemon.point.join("main/live/test1");
    std::fs::create_dir(&clone).unwrap();
    (fixture, daemon, clone)
}

/// The body of the test `daemon`: does nothing unless the process is to be the daemon. Ends with its standard
/// input.
pub fn serve() {
    let Ok(arguments) = std::env::var(DAEMON) else {
        return;
    };
    let (repository, point) = arguments.split_once('\n').unwrap();
    let repository = Repository::open(Path::new(repository)).unwrap();
    let mounted = mount(repository, options(Path::new(point))).unwrap();
    let unmounter = mounted.unmounter();
    std::thread::spawn(move || {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
        unmounter.unmount().unwrap();
    });
    mounted.serve().unwrap();
}

/// Visible to all users if this process may do that.
pub fn options(point: &Path) -> MountOptions {
    MountOptions {
        mount_point: point.to_path_buf(),
        allow_other: rustix::process::geteuid().is_root(),
        ..MountOptions::default()
    }
}

pub fn is_mounted(point: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == point.to_str())
}

#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "Waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
