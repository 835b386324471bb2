//! Starts threads. The standard library's shortest ways panic where the system refuses one: at the limit of processes of a user, of
//! a service or of a container, or without memory for a stack. Here that is an error, or, for work that any number of threads
//! can do, fewer threads. `clippy.toml` forbids the ways that panic.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// The system refuses a thread. What the thread would have done is not done.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "Cannot start a thread ({name}): {source}; a limit of this user, service or container is reached (ulimit -u, \
     TasksMax, pids.max), or memory is short"
)]
pub struct NoThread {
    name: String,
    source: Arc<io::Error>,
}

impl NoThread {
    /// The system's number for the error, if it gave one.
    #[must_use]
    pub fn os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

impl From<NoThread> for io::Error {
    fn from(error: NoThread) -> Self {
        Self::new(error.source.kind(), error)
    }
}

/// Starts a thread that may outlive the caller.
///
/// # Errors
/// When the system refuses it. `work` is dropped then.
pub fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, NoThread> {
    let started = Builder::new().name(name.to_owned()).spawn(work);
    started.map_err(|source| refused(name, source))
}

/// Starts a thread that ends within `scope`.
///
/// # Errors
/// When the system refuses it. `work` is dropped then.
pub fn start_in<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, NoThread> {
    let started = Builder::new().name(name.to_owned()).spawn_scoped(scope, work);
    started.map_err(|source| refused(name, source))
}

/// Starts as many as `wanted` threads for work that one can do as well, only slower. `work` makes what each of them runs.
///
/// # Errors
/// When the system refuses the first one.
pub fn start_up_to<'scope, T: Send + 'scope, W: FnOnce() -> T + Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    wanted: usize,
    mut work: impl FnMut() -> W,
) -> Result<Vec<ScopedJoinHandle<'scope, T>>, NoThread> {
    let mut started = Vec::with_capacity(wanted);
    for _ in 0..wanted.max(1) {
        match start_in(scope, name, work()) {
            Ok(thread) => started.push(thread),
            Err(refused) if started.is_empty() => return Err(refused),
            Err(refused) => {
                tracing::warn!("Going on with {} of {wanted} threads: {refused}", started.len());
                break;
            }
        }
    }
    Ok(started)
}

/// How many of `wanted` threads can be had now: for a library that starts them itself.
///
/// # Errors
/// When the system refuses the first one.
pub fn can_start(wanted: usize) -> Result<usize, NoThread> {
    std::thread::scope(|scope| {
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let started = start_up_to(scope, "probe", wanted, || {
            let ended = ended.clone();
            // All are alive until the last one is started.
            move || {
                let _end = ended.recv();
            }
        });
        drop(end);
        started.map(|started| started.len())
    })
}

fn refused(name: &str, source: io::Error) -> NoThread {
    NoThread {
        name: name.to_owned(),
        source: Arc::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_thread_is_an_error_that_names_the_limits() {
        let error = refused("restore", io::Error::from_raw_os_error(11));
        assert_eq!(error.os_error(), Some(11));
        let text = io::Error::from(error).to_string();
        assert!(text.starts_with("Cannot start a thread (restore): "), "{text}");
        assert!(text.contains("ulimit -u, TasksMax"), "{text}");
    }

    #[test]
    fn as_many_threads_start_as_are_wanted_and_one_at_least() {
        for (wanted, started) in [(0, 1), (1, 1), (3, 3)] {
            let ended = std::thread::scope(|scope| {
                let threads = start_up_to(scope, "count", wanted, || || 1)?;
                Ok::<usize, NoThread>(threads.into_iter().map(|thread| thread.join().unwrap()).sum())
            });
            assert_eq!(ended.unwrap(), started);
            assert_eq!(can_start(wanted).unwrap(), started);
        }
    }
}
