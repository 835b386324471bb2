//! Progress reports of long operations; the library itself never prints.

/// What an operation counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of data.
    Bytes,
    /// Chunks.
    Chunks,
    /// Packs.
    Packs,
}

/// Receives the progress of an operation. Implementing any of its methods is optional.
pub trait Monitor {
    /// A heading for the current step: "Checking backup 20261120T101500 of server main".
    fn stage(&mut self, what: &str) {
        let _ = what;
    }

    /// `done` of `total` are done; `total` is `None` while it is not known. Called often: it must be quick.
    fn progress(&mut self, done: u64, total: Option<u64>, unit: Unit) {
        let _ = (done, total, unit);
    }
}

/// A monitor that ignores all reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Monitor for Silent {}
