//! The process that serves a mount, as somebody sees it who takes the mount down.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

/// What a mount says of itself.
const STATUS: &str = ".barmanfs/status.json";

/// A mount that does not answer within this time is hung, and there is nothing to be waited for.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// What the program is called, as the kernel knows it.
const NAME: &str = "barmanfs";

/// A daemon. Its process cannot be taken for another one that gets its number later.
#[derive(Debug)]
pub(super) struct Daemon {
    process: OwnedFd,
}

impl Daemon {
    /// Who serves the tree at `mount_point`; none when it does not answer, or is this process.
    pub(super) fn of(mount_point: &Path) -> Option<Self> {
        let status = mount_point.join(STATUS);
        let (answer, answered) = mpsc::sync_channel(1);
        // Nothing can interrupt who reads from a hung mount: that thread ends with the process.
        thread::Builder::new()
            .name("status".to_owned())
            .spawn(move || answer.send(fs::read(status)))
            .ok()?;
        let text = answered.recv_timeout(ANSWERS_WITHIN).ok()?.ok()?;
        let status: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let pid = Pid::from_raw(i32::try_from(status.get("pid")?.as_i64()?).ok()?)?;
        if pid == getpid() {
            return None;
        }
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // In another container the number may mean another process here.
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == NAME).then_some(Self { process })
    }

    /// Waits until it has ended; says whether it has.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let timeout = Timespec::try_from(patience).ok();
        let mut process = [PollFd::new(&self.process, PollFlags::IN)];
        matches!(poll(&mut process, timeout.as_ref()), Ok(1..))
    }
}
