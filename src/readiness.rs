//! Waiting for a descriptor, with a limit.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Waits until something can be read or written, or the other end is closed. Whether that is so within the limit.
pub(crate) fn is_ready(file: &impl AsFd, what: PollFlags, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(left) = Timespec::try_from(left) else {
            return true;
        };
        match poll(&mut [PollFd::new(file, what)], Some(&left)) {
            Ok(count) => return count > 0,
            Err(Errno::INTR) => {}
            // Reading or writing says what is wrong.
            Err(_) => return true,
        }
    }
}
