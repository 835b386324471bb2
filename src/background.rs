//! Serving a mount in the background, and other work that outlives the process that starts it ([`detach`]).
//!
//! A fork is not possible, because threads may already run. The program starts itself again with the same arguments and
//! a hidden flag. The child creates a session of its own, mounts, and writes "ready" to a pipe once the mount answers.
//! Only then does the parent exit with 0. Until then the child has the parent's standard error, so the user sees errors
//! where they typed the command. If the child fails, the parent exits with its exit code.
//!
//! The child keeps no descriptor of the process that started it: it might be a lock, or a pipe that another process
//! reads to its end.
//!
//! In the foreground, a service manager that waits for the mount is notified: [`notify`].

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::FdFlags;

use crate::error::{Error, Outcome};
use crate::logging;

/// The hidden flag of `mount` that marks the child; see `cli::MountArgs`.
const CHILD_FLAG: &str = "--background-child";
/// The child's message once the mount answers.
const READY: &[u8] = b"ready\n";

/// Starts the child with `arguments` (those of `mount`, made absolute) and waits until it is ready.
pub(crate) fn start(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Outcome, Error> {
    let failed = |doing: &str, error: io::Error| {
        Error::failed(format!("Cannot {doing} the background process: {error}"))
    };
    let program = std::env::current_exe().map_err(|error| failed("find", error))?;
    let mut child = Command::new(program)
        .args(arguments)
        .arg(CHILD_FLAG)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed("start", error))?;
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // Ends when the child has written this much or is gone: it closes the pipe right after its message.
        let limit = READY.len().try_into().unwrap_or(u64::MAX);
        stdout
            .take(limit)
            .read_to_end(&mut said)
            .map_err(|error| failed("hear from", error))?;
    }
    if said == READY {
        return Ok(Outcome::Done);
    }
    let status = child.wait().map_err(|error| failed("wait for", error))?;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        // The child has already printed the error.
        Some(code) if code != 0 => Ok(Outcome::Told(code)),
        _ => Err(Error::failed(format!(
            "The background process ended before the mount answered ({status})"
        ))),
    }
}

/// In the child, before anything else: leaves the terminal's session, and closes all inherited descriptors except the
/// standard ones.
pub(crate) fn enter_background() -> Result<(), Error> {
    close_inherited();
    rustix::process::setsid()
        .map(drop)
        .map_err(|error| Error::failed(format!("Cannot leave the terminal's session: {error}")))
}

/// In a process that was started to outlive its parent, and whose standard streams are no terminal's: leaves the parent's
/// session and directory, and logs to `log_file` or syslog, unless it is to keep the parent's standard error.
pub(crate) fn detach(log_file: Option<&Path>, keep_descriptors: bool) -> Result<(), Error> {
    let failed = |doing: &str, error: io::Error| Error::failed(format!("Cannot {doing}: {error}"));
    // This fails for the leader of a process group, which has been started by a shell: then there is nothing to leave.
    let _already_apart = rustix::process::setsid();
    if !keep_descriptors {
        logging::leave_stderr(log_file).map_err(|error| failed("open the log file", error))?;
    }
    std::env::set_current_dir("/").map_err(|error| failed("change to /", error))
}

/// The non-standard descriptors that were open before this program was started. They have no close-on-exec flag; all
/// descriptors that the program opens itself have it.
#[allow(unsafe_code)]
fn inherited() -> Vec<BorrowedFd<'static>> {
    const FIRST: RawFd = 3;
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    open.flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok())
        .filter(|number| *number >= FIRST)
        // SAFETY: nothing in this process knows the descriptors that are kept, so only `close_inherited` closes them.
        // For all others this reads only the flags, and the kernel refuses a number that is not open any more.
        .map(|number| unsafe { BorrowedFd::borrow_raw(number) })
        .filter(|open| rustix::io::fcntl_getfd(open).is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC)))
        .collect()
}

#[allow(unsafe_code)]
fn close_inherited() {
    for open in inherited() {
        // SAFETY: nothing in this process owns the descriptor, see `inherited`.
        drop(unsafe { OwnedFd::from_raw_fd(open.as_raw_fd()) });
    }
}

/// Call this before starting a program that outlives this one. That program then gets only the standard descriptors of
/// those that this one has inherited.
pub(crate) fn keep_inherited() {
    for open in inherited() {
        // This fails if another thread has closed the descriptor meanwhile. Then it is not passed on either.
        let _ = rustix::io::fcntl_setfd(open, FdFlags::CLOEXEC);
    }
}

/// In the child, once the mount answers: lets the parent exit, and releases the parent's directory and standard
/// streams.
pub(crate) fn ready(log_file: Option<&Path>) -> Result<(), Error> {
    let failed = |doing: &str, error: io::Error| Error::failed(format!("Cannot {doing}: {error}"));
    logging::leave_stderr(log_file).map_err(|error| failed("open the log file", error))?;
    // A service must not keep a file system busy with its working directory.
    std::env::set_current_dir("/").map_err(|error| failed("change to /", error))?;
    io::stdout()
        .write_all(READY)
        .and_then(|()| io::stdout().flush())
        .map_err(|e| failed("report to the parent", e))?;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|e| failed("open /dev/null", e))?;
    rustix::stdio::dup2_stdout(&null).map_err(|error| failed("close standard output", error.into()))?;
    rustix::stdio::dup2_stderr(&null).map_err(|error| failed("close standard error", error.into()))
}

/// Notifies systemd (`Type=notify`) that the mount answers, if systemd wants that. Only in the foreground.
pub(crate) fn notify() -> io::Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let socket = UnixDatagram::unbound()?;
    // sd_notify(3): a name that begins with '@' is in the abstract namespace.
    match name.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(&name)?,
    }
    socket.send(b"READY=1").map(drop)
}
