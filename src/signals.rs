//! SIGINT, SIGTERM and SIGHUP, for work that must end in order: a user who presses Ctrl-C, a service manager, and a terminal or
//! an ssh session that was closed.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use barmanfs_store::threads;
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::error::Error;

/// How soon a sleeping thread notices a signal.
const NOTICED_WITHIN: Duration = Duration::from_millis(100);

/// The signals that ask a process to end. `nohup` has it ignore SIGHUP, and that must stay so.
fn ending() -> Vec<c_int> {
    let mut signals = vec![SIGINT, SIGTERM];
    if !is_ignored(
        SIGHUP,
        &std::fs::read_to_string("/proc/self/status").unwrap_or_default(),
    ) {
        signals.push(SIGHUP);
    }
    signals
}

/// Whether a process ignores a signal, by its `/proc/<pid>/status` (proc(5)): bit 0 is signal 1.
fn is_ignored(signal: c_int, status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Watches for the signals until it is dropped. A signal is a request to end in order, however often it arrives: some
/// senders (`timeout`, for one) signal twice. A user who cannot wait can use SIGKILL, which the repository survives.
#[derive(Debug)]
pub(crate) struct Interruption {
    flag: Arc<AtomicBool>,
    handle: Handle,
}

impl Interruption {
    /// Starts watching. Calls `on_signal` in a thread of its own, once for each signal.
    pub(crate) fn watch(on_signal: impl Fn() + Send + 'static) -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::failed(format!("Cannot watch for signals: {error}"));
        let flag = Arc::new(AtomicBool::new(false));
        let ending = ending();
        for signal in &ending {
            signal_hook::flag::register(*signal, Arc::clone(&flag)).map_err(failed)?;
        }
        let mut signals = Signals::new(&ending).map_err(failed)?;
        let handle = signals.handle();
        threads::start("signals", move || signals.forever().for_each(|_| on_signal()))?;
        Ok(Self { flag, handle })
    }

    /// Whether a signal has arrived.
    pub(crate) fn requested(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// The same as a signal.
    pub(crate) fn request(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Waits this long, or until a signal arrives.
    pub(crate) fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.requested() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(NOTICED_WITHIN));
        }
    }
}

/// Notices the signals until it is dropped, without a thread: for what would otherwise wait, in work that an [`Interruption`]
/// watches over.
#[derive(Debug)]
pub(crate) struct Noticed {
    flag: Arc<AtomicBool>,
    ids: Vec<SigId>,
}

impl Noticed {
    pub(crate) fn begin() -> std::io::Result<Self> {
        let mut noticed = Self {
            flag: Arc::new(AtomicBool::new(false)),
            ids: Vec::new(),
        };
        for signal in ending() {
            let flag = Arc::clone(&noticed.flag);
            noticed.ids.push(signal_hook::flag::register(signal, flag)?);
        }
        Ok(noticed)
    }

    /// Whether a signal has arrived.
    pub(crate) fn requested(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

impl Drop for Noticed {
    fn drop(&mut self) {
        for id in &self.ids {
            signal_hook::low_level::unregister(*id);
        }
    }
}

impl Drop for Interruption {
    fn drop(&mut self) {
        self.handle.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nohup_has_set_is_seen() {
        assert!(is_ignored(SIGHUP, "Name:\tx\nSigIgn:\t0000000000001001\n"));
        assert!(!is_ignored(SIGHUP, "Name:\tx\nSigIgn:\t0000000000001000\n"));
        assert!(!is_ignored(SIGHUP, ""));
    }
}
