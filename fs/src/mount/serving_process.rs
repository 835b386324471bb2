//! The process that serves a mount, as seen by a process that unmounts it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use super::status::Status;

/// The program's name in the kernel.
const NAME: &str = "barmanfs";

/// A process that serves a mount. The handle cannot refer to a later process with the same id.
#[derive(Debug)]
pub(super) struct ServingProcess {
    number: u32,
    process: OwnedFd,
}

impl ServingProcess {
    /// The process that serves the tree at `mount_point`; `None` if it does not answer, or is this process.
    pub(super) fn of(mount_point: &Path) -> Option<Self> {
        let process = Status::of(mount_point).ok()?.process?;
        let pid = Pid::from_raw(process.cast_signed())?;
        if pid == getpid() {
            return None;
        }
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // In another container the id may belong to another process here.
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == NAME).then_some(Self {
            number: pid.as_raw_nonzero().get().cast_unsigned(),
            process,
        })
    }

    /// Its process id.
    pub(super) fn process(&self) -> u32 {
        self.number
    }

    /// Asks it to end, as a service manager does. If that is refused, it ends with the last open file.
    pub(super) fn end(&self) {
        let _ = pidfd_send_signal(&self.process, Signal::TERM);
    }

    /// Waits until it has ended. Returns whether it has.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let timeout = Timespec::try_from(patience).ok();
        let mut process = [PollFd::new(&self.process, PollFlags::IN)];
        matches!(poll(&mut process, timeout.as_ref()), Ok(1..))
    }
}
