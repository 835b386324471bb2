//! Ends the server of a data directory. `pg_ctl stop` does the same, but its programs may be anywhere, or gone in an upgrade.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::postmaster::{PID_FILE, Process, Running, children_of, remove_locks_of_zombie, running};
use crate::error::Error;

/// How often a server that is to end is polled.
const POLL: Duration = Duration::from_millis(50);

/// How long a fast shutdown may take if the data are discarded after it.
const FAST: Duration = Duration::from_secs(5);

/// How long an immediate shutdown may take. The server itself kills its processes after 5 s.
const IMMEDIATE: Duration = Duration::from_secs(10);

/// How long a killed process may take until it has ended.
const KILLED: Duration = Duration::from_secs(10);

/// What becomes of the data of a server that is stopped.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    /// They stay: it shuts down as fast as its data allow, and may take this long.
    Keeping(Duration),
    /// They are discarded: it is killed in the end. A server whose disk is full cannot shut down.
    Discarding,
}

/// Stops the server that runs in a data directory, its sessions ended, and waits for that; nothing to do where none runs.
///
/// # Errors
/// When it may not be stopped, or does not stop.
pub(crate) fn stop(data: &Path, how: Stop) -> Result<(), Error> {
    let Some(server) = running(data) else {
        return Ok(());
    };
    stop_server(&server, &data.display().to_string(), how)?;
    // It could not remove its files.
    if server.has_outlived_its_mount {
        let file = data.join(PID_FILE);
        fs::remove_file(&file)
            .map_err(|error| Error::failed(format!("Cannot remove {}: {error}", file.display())))?;
        remove_locks_of_zombie(data, &server.socket_directory)?;
    }
    Ok(())
}

/// Stops a server; `place` is where it runs, in messages.
///
/// # Errors
/// As [`stop`].
pub(crate) fn stop_server(server: &Running, place: &str, how: Stop) -> Result<(), Error> {
    let Some(process) = Process::of(server.pid) else {
        return Ok(());
    };
    // PostgreSQL's documentation, "Shutting Down the Server". One without files cannot shut down.
    let (signals, kills): (&[(Signal, Duration)], bool) = match (server.has_outlived_its_mount, how) {
        (true, _) => (&[(Signal::SIGQUIT, IMMEDIATE)], true),
        (false, Stop::Discarding) => (&[(Signal::SIGINT, FAST), (Signal::SIGQUIT, IMMEDIATE)], true),
        (false, Stop::Keeping(timeout)) => (&[(Signal::SIGINT, timeout)], false),
    };
    let began = Instant::now();
    for (signal, patience) in signals {
        send(server.pid, *signal).map_err(|error| refused(server, place, error))?;
        if has_ended_within(server.pid, process, *patience) {
            return Ok(());
        }
    }
    if kills {
        // What it has started is known only as long as it lives.
        let children = children_of(server.pid);
        for pid in [server.pid].into_iter().chain(children) {
            send(pid, Signal::SIGKILL).map_err(|error| refused(server, place, error))?;
        }
        if has_ended_within(server.pid, process, KILLED) {
            return Ok(());
        }
    }
    let failed = Error::failed(format!(
        "The server in {place} did not stop within {} s (process {})",
        began.elapsed().as_secs(),
        server.pid
    ));
    Err(match kills {
        true => failed.hint("It was killed, and the kernel has not ended it: it waits for a disk or a mount"),
        false => failed.hint("It goes on stopping: try again later"),
    })
}

fn send(pid: i32, signal: Signal) -> Result<(), Errno> {
    match kill(Pid::from_raw(pid), signal) {
        Err(Errno::ESRCH) => Ok(()),
        sent => sent,
    }
}

fn refused(server: &Running, place: &str, error: Errno) -> Error {
    Error::failed(format!(
        "Cannot stop the server in {place} (process {}): {error}",
        server.pid
    ))
    .hint("Run this as the user it belongs to, or as root")
}

fn has_ended_within(pid: i32, process: Process, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while Process::of(pid) == Some(process) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}
