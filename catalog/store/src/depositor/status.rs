//! The state of a run: the puts in progress, and the first error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use crate::error::{Error, Result};
use crate::sync::{lock, wait};
use crate::threads;

/// Shared by the caller and all threads of one depositor.
#[derive(Debug, Default)]
pub(super) struct Status {
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Puts that have not been answered.
    pending: usize,
    failure: Option<Error>,
}

/// One put in progress; dropped when it has been answered.
#[derive(Debug)]
pub(super) struct Ticket(Arc<Status>);

impl Status {
    /// The first error, if there was one.
    pub(super) fn check(&self) -> Result<()> {
        lock(&self.state).failure.clone().map_or(Ok(()), Err)
    }

    /// Stores the error if it is the first, and returns the first one.
    pub(super) fn fail(&self, error: Error) -> Error {
        lock(&self.state).failure.get_or_insert(error).clone()
    }

    /// The error for a panic in the pipeline, and for a caller that finds one of its threads gone.
    pub(super) fn panicked(&self) -> Error {
        self.fail(Error::Invalid(
            "A thread that stores chunks failed: this is a defect of barmanfs".to_owned(),
        ))
    }

    /// Registers a put, unless something failed.
    pub(super) fn begin(self: &Arc<Self>) -> Result<Ticket> {
        let mut state = lock(&self.state);
        if let Some(error) = &state.failure {
            return Err(error.clone());
        }
        state.pending += 1;
        Ok(Ticket(Arc::clone(self)))
    }

    /// Waits until every put has been answered.
    pub(super) fn wait_idle(&self) -> Result<()> {
        let mut state = lock(&self.state);
        while state.pending > 0 {
            state = wait(&self.idle, state);
        }
        state.failure.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.pending -= 1;
        if state.pending == 0 {
            self.0.idle.notify_all();
        }
    }
}

/// Starts one thread of the pipeline, which ends when `body` returns. If `body` panics, the run has failed, and `body`
/// runs again for what comes next: everything queued is answered, so nobody waits in vain.
pub(super) fn spawn(
    name: &str,
    status: &Arc<Status>,
    mut body: impl FnMut() + Send + 'static,
) -> Result<JoinHandle<()>> {
    let status = Arc::clone(status);
    let work = move || {
        while catch_unwind(AssertUnwindSafe(&mut body)).is_err() {
            status.panicked();
        }
    };
    Ok(threads::start(name, work)?)
}
