//! How threads that work together stop after an error of one of them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use barmanfs_store::sync::lock;

use crate::error::Error;

/// The first error of several threads. Those of the others follow from it.
#[derive(Debug, Default)]
pub(super) struct FirstError {
    happened: AtomicBool,
    error: Mutex<Option<Error>>,
}

impl FirstError {
    /// Keeps the error, if it is the first one.
    pub(super) fn set(&self, error: Error) {
        lock(&self.error).get_or_insert(error);
        self.happened.store(true, Ordering::Release);
    }

    /// Whether there was one.
    pub(super) fn happened(&self) -> bool {
        self.happened.load(Ordering::Acquire)
    }

    /// The error.
    pub(super) fn take(&self) -> Option<Error> {
        lock(&self.error).take()
    }
}
