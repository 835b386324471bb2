//! The limit of bytes per second that the threads of a backup or a restore share, where a signal ends the wait.

use std::time::Instant;

pub(crate) use barmanfs_store::Throttle;

use crate::signals::Interruption;

/// Waits until so many bytes may pass, or until a signal arrives.
pub(crate) fn take_or_stop(throttle: &Throttle, bytes: u64, signals: &Interruption) {
    let delay = throttle.delay(bytes, Instant::now());
    if !delay.is_zero() {
        signals.sleep(delay);
    }
}
