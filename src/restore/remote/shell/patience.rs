//! How long the other host may say nothing.
//!
//! One thread reads what a command prints as errors. Where nothing comes for too long, it ends the command, and whatever
//! waits for it on this side ends, too: also where the connection belongs to another process (ssh's `ControlMaster`, a script
//! around ssh), which still holds the other ends of the pipes.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStderr, ChildStdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::Error;
use crate::readiness::is_ready;

/// Bytes that are kept of what a command says about its failure.
const ERROR_BYTES: usize = 4 << 10;

/// What tar says when it cannot write any more. It goes on all the same, with the next file.
const FULL: &[u8] = b"No space left on device";

/// The byte that shows that a script runs.
const BEAT: u8 = 0;

/// How soon it is noticed that a command was given up.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);

/// How long a command has for its end before it is killed.
const TO_END: Duration = Duration::from_secs(5);

/// How often each side shows that it is there.
pub(crate) const BEAT_EVERY: Duration = Duration::from_secs(10);

/// How long the other side may say nothing.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

/// How long is waited.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// How often a script shows that it runs.
    pub(super) beat_every: Duration,
    /// For the connection.
    connect: Duration,
    /// For the next sign.
    silence: Duration,
}

impl Patience {
    /// A person may have to type a password.
    pub(super) const USUAL: Self = Self {
        beat_every: BEAT_EVERY,
        connect: Duration::from_secs(120),
        silence: SILENCE,
    };

    /// The error after a command was given up.
    pub(super) fn lost(&self, heard: &Heard, said: &str) -> Error {
        let said = match said {
            "" => String::new(),
            said => format!(". Before that: {said}"),
        };
        let what = match heard.is_connected.load(Ordering::Acquire) {
            true => format!(
                "does not answer any more: it has said nothing for {} seconds",
                self.silence.as_secs()
            ),
            false => format!("was not reached within {} seconds", self.connect.as_secs()),
        };
        Error::failed(format!("The other host {what}{said}"))
            .hint("Look at the network between the hosts, and whether ssh asks for something there")
    }
}

/// What was heard of a command.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// It has begun.
    is_connected: AtomicBool,
    /// The file system over there is full.
    is_full: AtomicBool,
    /// Nothing any more, so it was ended.
    given_up: AtomicBool,
}

impl Heard {
    pub(super) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Acquire)
    }

    pub(super) fn given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }
}

/// Reads what a command prints as errors.
#[derive(Debug)]
pub(super) struct Listener {
    patience: Patience,
    process: Option<OwnedFd>,
    heard: Arc<Heard>,
}

impl Listener {
    pub(super) fn new(patience: Patience, child: &Child) -> Self {
        let process = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Self {
            patience,
            process: process.and_then(|process| pidfd_open(process, PidfdFlags::empty()).ok()),
            heard: Arc::default(),
        }
    }

    pub(super) fn heard(&self) -> Arc<Heard> {
        Arc::clone(&self.heard)
    }

    /// Reads all, and keeps the end of it.
    pub(super) fn listen(&self, mut errors: ChildStderr) -> Vec<u8> {
        let (mut kept, mut buffer) = (Vec::new(), [0; ERROR_BYTES]);
        let mut until = Instant::now() + self.patience.connect;
        loop {
            if !is_ready(
                &errors,
                PollFlags::IN,
                until.saturating_duration_since(Instant::now()),
            ) {
                self.give_up();
                return kept;
            }
            let Ok(count @ 1..) = errors.read(&mut buffer) else {
                return kept;
            };
            let bytes = buffer.get(..count).unwrap_or_default();
            // What ssh says before it is connected may be followed by a question of a person's password.
            if bytes.contains(&BEAT) {
                self.heard.is_connected.store(true, Ordering::Release);
            }
            if self.heard.is_connected.load(Ordering::Acquire) {
                until = Instant::now() + self.patience.silence;
            }
            kept.extend(bytes.iter().filter(|byte| **byte != BEAT));
            if kept.windows(FULL.len()).any(|part| part == FULL) {
                self.heard.is_full.store(true, Ordering::Release);
            }
            kept.drain(..kept.len().saturating_sub(ERROR_BYTES));
        }
    }

    fn give_up(&self) {
        self.heard.given_up.store(true, Ordering::Release);
        let Some(process) = &self.process else { return };
        // One that has ended cannot be ended.
        let _ = pidfd_send_signal(process, Signal::TERM);
        // It can be read when the process has ended.
        if !is_ready(process, PollFlags::IN, TO_END) {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

/// One end of a pipe, whose other end may belong to a process that does not end.
#[derive(Debug)]
pub(crate) struct Patient<T> {
    pipe: T,
    heard: Arc<Heard>,
}

impl<T: AsFd> Patient<T> {
    pub(super) fn reading(pipe: T, heard: &Arc<Heard>) -> Self {
        let heard = Arc::clone(heard);
        Self { pipe, heard }
    }

    fn wait(&self, what: PollFlags) -> io::Result<()> {
        loop {
            if is_ready(&self.pipe, what, NOTICED_WITHIN) {
                return Ok(());
            }
            if self.heard.given_up() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl Patient<ChildStdin> {
    /// A write passes on as much as there is room for, and never waits in the kernel.
    pub(super) fn writing(pipe: ChildStdin, heard: &Arc<Heard>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self::reading(pipe, heard))
    }
}

impl<T: AsFd + Read> Read for Patient<T> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.wait(PollFlags::IN)?;
        self.pipe.read(into)
    }
}

impl<T: AsFd + Write> Write for Patient<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.wait(PollFlags::OUT)?;
            match self.pipe.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pipe.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::RemoteShell;
    use super::*;

    /// A host that is gone as soon as the script has this in it.
    fn shell(lost: &str, patience: Patience) -> RemoteShell {
        let mut shell = RemoteShell::new(&format!("/bin/sh -c '{lost}; exec /bin/sh -c \"$0\"'")).unwrap();
        shell.patience = patience;
        shell
    }

    /// Of these, a test waits for the one that it is about. A busy machine needs seconds to begin a script.
    fn patience(connect_secs: u64, silence_secs: u64) -> Patience {
        Patience {
            beat_every: Duration::from_secs(1),
            connect: Duration::from_secs(connect_secs),
            silence: Duration::from_secs(silence_secs),
        }
    }

    #[test]
    fn a_silent_host_is_given_up() {
        let never_reached = (
            "sleep 100",
            patience(2, 60),
            ":",
            "was not reached within 2 seconds",
        );
        // What it began is still there, and the pipes are open.
        let then_silent = "kill -STOP $b; exec sleep 100";
        let silent = (":", patience(60, 3), then_silent, "does not answer any more");
        for (lost, patience, script, reason) in [never_reached, silent] {
            let began = Instant::now();
            let mut session = shell(lost, patience).start("wait", script).unwrap();
            let written = session.write_all(&vec![0; 4 << 20]);
            assert!(written.is_err());
            let error = session.finish().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert!(session.is_lost() && began.elapsed() < Duration::from_secs(60));
        }
    }

    #[test]
    fn a_host_that_works_is_waited_for() {
        let shell = || shell(":", patience(60, 8));
        let said = shell().run("work", "sleep 10; echo done", b"").unwrap();
        assert_eq!(said, b"done\n");
        let error = shell()
            .run("work", "echo why >&2; sleep 9; exit 7", b"")
            .unwrap_err()
            .to_string();
        assert_eq!(error, "Cannot work on the other host (code 7): why");
    }
}
