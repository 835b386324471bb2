//! Commands of a shell on the other host.
//!
//! What runs them is a command line of this host, as `ssh postgres@db2` or `ssh -p 2222 -i key db2`: a shell here takes it
//! apart, and adds one word: `sh -c` and the script, quoted. ssh hands that to the login shell of the other host, which may be
//! any, or to a command like `sudo -u postgres` that is in the command line, too.
//!
//! While a script runs, it shows every few seconds that the other host is there ([`beating`]). A connection that is silent
//! for longer was dropped somewhere on the way, which TCP may not notice for hours: then it is given up ([`patience`]).

mod patience;

use std::io::{BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use barmanfs_store::sync::lock;
use barmanfs_store::threads;
pub(crate) use patience::{BEAT_EVERY, SILENCE};
use patience::{Heard, Listener, Patience, Patient};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::Error;
use crate::output::printable;
use crate::restore::tree_writer::interrupted;

/// With this code ssh itself ends when it fails.
const SSH_FAILED: i32 = 255;

/// Characters of that in a message.
const SHOWN_CHARACTERS: usize = 600;

/// How each script begins. No message of a person's command has it, unless the command has taken the script for its own
/// argument.
const SCRIPT_BEGINS: &str = "LC_ALL=C; export LC_ALL; ";

/// A script prints little.
const ANSWER_BYTES: u64 = 1 << 20;

/// How long what a command has said is waited for after its end, and how often that is looked for.
const LEFT_BEHIND: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Bytes that are passed to a command at a time.
const WRITE_BYTES: usize = 256 << 10;

/// The command line that runs a command on the other host.
#[derive(Debug, Clone)]
pub(crate) struct RemoteShell {
    command: String,
    running: Running,
    patience: Patience,
}

/// The processes that run now, to be ended by a signal.
#[derive(Debug, Clone, Default)]
pub(crate) struct Running {
    stopped: Arc<AtomicBool>,
    processes: Arc<Mutex<Vec<(u32, OwnedFd)>>>,
}

impl Running {
    /// Ends all, and lets no new one begin.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        for (_, process) in lock(&self.processes).iter() {
            // One that has ended cannot be ended.
            let _ = pidfd_send_signal(process, Signal::TERM);
        }
    }

    fn add(&self, child: &Child) {
        let process = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let Some(Ok(process)) = process.map(|process| pidfd_open(process, PidfdFlags::empty())) {
            lock(&self.processes).push((child.id(), process));
        }
        if self.stopped.load(Ordering::Acquire) {
            self.stop();
        }
    }

    fn remove(&self, id: u32) {
        lock(&self.processes).retain(|(other, _)| *other != id);
    }
}

/// A script that shows that it runs, from its first moment on, by a byte that nothing else prints. What sleeps holds no
/// connection open.
fn beating(script: &str, patience: &Patience) -> String {
    let seconds = patience.beat_every.as_secs();
    format!(
        "{SCRIPT_BEGINS}printf '\\000' >&2; {{ while sleep {seconds} </dev/null >/dev/null 2>&1; do \
         printf '\\000' >&2; done; }} >/dev/null & b=$!; ( {script} ); c=$?; kill $b 2>/dev/null; exit $c"
    )
}

/// A word of a shell, whatever is in it.
pub(crate) fn word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl RemoteShell {
    /// Takes a command line.
    ///
    /// # Errors
    /// When it is empty.
    pub(crate) fn new(command: &str) -> Result<Self, Error> {
        match command.trim().is_empty() {
            true => Err(Error::usage(
                "--remote-ssh-command is empty: name a command like 'ssh postgres@db2'",
            )),
            false => Ok(Self {
                command: command.trim().to_owned(),
                running: Running::default(),
                patience: Patience::USUAL,
            }),
        }
    }

    /// The processes that run now.
    pub(crate) fn running(&self) -> &Running {
        &self.running
    }

    /// Starts a script. `doing` is for messages.
    pub(crate) fn start(&self, doing: &'static str, script: &str) -> Result<Session, Error> {
        if self.running.stopped.load(Ordering::Acquire) {
            return Err(interrupted());
        }
        let script = beating(script, &self.patience);
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("exec {} \"$@\"", self.command), "sh"])
            .arg(format!("sh -c {}", word(&script)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Error::failed(format!("Cannot run a shell: {error}")))?;
        self.running.add(&child);
        let listener = Listener::new(self.patience, &child);
        let heard = listener.heard();
        let errors = child.stderr.take();
        let listening = errors.map(|errors| threads::start("listen", move || listener.listen(errors)));
        let errors = listening.transpose().inspect_err(|_| drop(child.kill()))?;
        let input = child.stdin.take().map(|input| Patient::writing(input, &heard));
        let input = input
            .transpose()
            .map_err(|error| Error::failed(format!("Cannot run a shell: {error}")))?;
        Ok(Session {
            doing,
            input: input.map(|input| BufWriter::with_capacity(WRITE_BYTES, input)),
            output: child.stdout.take().map(|output| Patient::reading(output, &heard)),
            errors,
            heard,
            is_lost: false,
            patience: self.patience,
            child,
            running: self.running.clone(),
        })
    }

    /// Runs a script to its end, with this input. Returns what it prints.
    pub(in crate::restore) fn run(
        &self,
        doing: &'static str,
        script: &str,
        input: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let mut session = self.start(doing, script)?;
        // A script that has ended early says why.
        let written = session.write_all(input).and_then(|()| session.flush());
        drop(session.input.take());
        let mut answer = Vec::new();
        if let Some(output) = session.output.take() {
            let read = output.take(ANSWER_BYTES).read_to_end(&mut answer);
            read.map_err(|error| Error::failed(format!("Cannot {doing} on the other host: {error}")))?;
        }
        session.finish()?;
        written.map_err(|error| Error::failed(format!("Cannot {doing} on the other host: {error}")))?;
        Ok(answer)
    }
}

/// What a script prints.
pub(crate) type Output = Patient<ChildStdout>;

/// A script that runs.
#[derive(Debug)]
pub(crate) struct Session {
    doing: &'static str,
    input: Option<BufWriter<Patient<ChildStdin>>>,
    pub(crate) output: Option<Output>,
    errors: Option<JoinHandle<Vec<u8>>>,
    heard: Arc<Heard>,
    is_lost: bool,
    patience: Patience,
    child: Child,
    running: Running,
}

impl Session {
    /// Whether the file system over there is full.
    pub(super) fn is_full(&self) -> bool {
        self.heard.is_full()
    }

    /// Whether its end was that of the connection.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Closes its input, and waits for its end.
    ///
    /// # Errors
    /// When it fails, with what it says about that in one line.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        let flushed = self.flush();
        drop(self.input.take());
        // Nobody needs what else it prints, as the greeting of a login shell. It must neither wait for a reader nor end for
        // want of one. What it has left behind may hold the pipe open, so this thread is not waited for.
        if let Some(mut output) = self.output.take() {
            let read = move || std::io::copy(&mut output, &mut std::io::sink());
            // Without a thread, a script that still prints fails, which is reported.
            let _may_be_refused = threads::start("unread", read);
        }
        self.result(flushed)
    }

    /// Ends it after an error of this side.
    pub(crate) fn abort(&mut self) {
        drop(self.input.take());
        let _ends_soon = self.child.kill();
        let _ended = self.result(Ok(()));
    }

    /// What it has said. A process that it has left behind may hold the pipe open, and is not waited for.
    fn said(&mut self) -> Vec<u8> {
        let Some(errors) = self.errors.take() else {
            return Vec::new();
        };
        let until = Instant::now() + LEFT_BEHIND;
        while !errors.is_finished() && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
        match errors.is_finished() {
            true => errors.join().unwrap_or_default(),
            false => Vec::new(),
        }
    }

    fn result(&mut self, flushed: std::io::Result<()>) -> Result<(), Error> {
        let doing = self.doing;
        self.running.remove(self.child.id());
        let status = self.child.wait();
        let said = self.said();
        let status = status.map_err(|error| Error::failed(format!("Cannot wait for a process: {error}")))?;
        let said = one_line(&said);
        if self.heard.given_up() {
            self.is_lost = true;
            return Err(self.patience.lost(&self.heard, &said));
        }
        self.is_lost = status.code() == Some(SSH_FAILED);
        match status.code() {
            Some(0) => {
                flushed.map_err(|error| Error::failed(format!("Cannot {doing} on the other host: {error}")))
            }
            Some(SSH_FAILED) => Err(Error::failed(match said.is_empty() {
                true => "The connection to the other host has failed".to_owned(),
                false => format!("The connection to the other host has failed: {said}"),
            })),
            _ => Err(self.failed(status, &said)),
        }
    }

    /// The error of a command that has failed.
    fn failed(&self, status: ExitStatus, said: &str) -> Error {
        let doing = self.doing;
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("code {code}"),
            (None, Some(signal)) => format!("ended by signal {signal}"),
            (None, None) => "no code".to_owned(),
        };
        let what = format!("Cannot {doing} on the other host ({how})");
        if said.contains(SCRIPT_BEGINS) {
            return Error::failed(format!(
                "{what}: the command has not run the script that it was given"
            ))
            .hint(
                "--remote-ssh-command must run the command that is added to it, as 'ssh postgres@db2' does",
            );
        }
        let error = match said.is_empty() {
            true => Error::failed(format!("{what}, without a reason"))
                .hint("See what the command of --remote-ssh-command runs there, and the log of its ssh"),
            false => Error::failed(format!("{what}: {said}")),
        };
        match self.is_full() {
            true => error.hint("The file system there is full: make room"),
            false => error,
        }
    }
}

impl Write for Session {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &mut self.input {
            Some(input) => input.write(bytes),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.input.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// What a command said, in one line.
fn one_line(said: &[u8]) -> String {
    let lines = said.split(|byte| matches!(byte, b'\n' | b'\r'));
    let lines: Vec<String> = lines
        .map(|line| printable(line.trim_ascii()))
        .filter(|line| !line.is_empty())
        .collect();
    let text = lines.join("; ");
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_runs_with_its_input() {
        let shell = RemoteShell::new("/bin/sh -c").unwrap();
        let script = format!("printf %s {}; cat", word("it's \"$HOME\" `x` "));
        let said = shell.run("test", &script, b"and input").unwrap();
        assert_eq!(said, b"it's \"$HOME\" `x` and input");
    }

    #[test]
    fn a_failure_is_told_in_one_line() {
        let shell = RemoteShell::new("/bin/sh -c").unwrap();
        let failed = |script: &str| shell.run("look", script, b"").unwrap_err().to_string();
        assert_eq!(
            failed("echo one >&2; echo; echo two >&2; exit 3"),
            "Cannot look on the other host (code 3): one; two"
        );
        assert_eq!(
            failed("echo refused >&2; exit 255"),
            "The connection to the other host has failed: refused"
        );
        assert_eq!(
            failed("exit 4"),
            "Cannot look on the other host (code 4), without a reason"
        );
        let long = failed("head -c 9000 /dev/zero | tr '\\0' x >&2; exit 1");
        assert!(long.len() < 700 && long.ends_with("..."), "{long}");
        assert!(RemoteShell::new(" ").is_err());
    }

    #[test]
    fn a_command_that_greets_is_no_failure() {
        let shell =
            RemoteShell::new(r#"sh -c 'sleep 0.2; yes welcome | head -n 20000; eval "$1"' x"#).unwrap();
        let mut session = shell.start("write", "cat >/dev/null").unwrap();
        session.write_all(b"some").unwrap();
        session.finish().unwrap();
    }

    #[test]
    fn a_command_that_runs_no_script_is_named() {
        for command in ["cat", "ls"] {
            let shell = RemoteShell::new(command).unwrap();
            let error = shell.run("look", "true", b"").unwrap_err();
            assert!(
                !error.to_string().contains("LC_ALL")
                    && error.hint_text().unwrap().contains("ssh postgres@db2"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_runs_ends_with_a_signal() {
        let shell = RemoteShell::new("/bin/sh -c").unwrap();
        let mut session = shell.start("wait", "exec sleep 100").unwrap();
        shell.running().stop();
        assert!(session.finish().is_err());
        assert!(shell.run("wait", "exec sleep 100", b"").is_err());
    }
}
