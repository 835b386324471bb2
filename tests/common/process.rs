//! Runs a command to its end, with a limit, and reports everything about it when it did not do what it should.

use std::fmt;
use std::fs;
use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Far longer than any command here takes on a busy machine; a command that reaches it hangs.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(180);

const POLL: Duration = Duration::from_millis(2);

/// Between two checks of a condition.
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(200);

/// A command that has ended.
pub(crate) struct Run {
    line: String,
    status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// Runs it to its end. Output goes through files, not pipes: a daemon it leaves behind cannot keep us waiting.
pub(crate) fn run(command: &mut Command) -> Run {
    let line = format!("{command:?}");
    let mut stdout = tempfile::tempfile().expect("Cannot make a temporary file");
    let mut stderr = tempfile::tempfile().expect("Cannot make a temporary file");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().expect("Cannot share a file"))
        .stderr(stderr.try_clone().expect("Cannot share a file"))
        .spawn()
        .unwrap_or_else(|error| panic!("Cannot run {line}: {error}"));
    let status = wait(&mut child, COMMAND_LIMIT);
    let mut run = Run {
        line,
        status: status.unwrap_or_default(),
        stdout: Vec::new(),
        stderr: String::new(),
    };
    for (file, name) in [(&mut stdout, "output"), (&mut stderr, "errors")] {
        file.rewind()
            .unwrap_or_else(|error| panic!("Cannot read the {name} of {}: {error}", run.line));
    }
    stdout
        .read_to_end(&mut run.stdout)
        .expect("Cannot read a temporary file");
    let mut errors = Vec::new();
    stderr
        .read_to_end(&mut errors)
        .expect("Cannot read a temporary file");
    run.stderr = String::from_utf8_lossy(&errors).into_owned();
    assert!(
        status.is_some(),
        "Still running after {COMMAND_LIMIT:?}, killed: {run}"
    );
    run
}

/// Waits for a child. If it reaches the limit, kills it and returns `None`.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("Cannot wait for a child") {
            return Some(status);
        }
        if began.elapsed() > limit {
            child.kill().expect("Cannot kill a child");
            child.wait().expect("Cannot wait for a child");
            return None;
        }
        thread::sleep(POLL);
    }
}

/// Waits until the condition holds; panics with the description after a while.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "Waited a minute in vain: {what}"
        );
        // A check takes work itself, most often a process: the longer the wait, the fewer checks.
        thread::sleep((began.elapsed() / 8).clamp(MIN_PAUSE, MAX_PAUSE));
    }
}

/// The state of a process, one letter as `ps` shows it; `None` when there is no such process.
pub(crate) fn state_of(process: &str) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.chars().next()
}

/// The processes that this one has started and not waited for.
pub(crate) fn children_of(process: &str) -> Vec<String> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    children
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

impl Run {
    /// The exit code; `None` for a process ended by a signal.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Its output, without the newline at the end.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout)
            .trim_end_matches('\n')
            .to_owned()
    }

    /// Both outputs, to search for a message.
    pub(crate) fn all(&self) -> String {
        format!("{}\n{}", self.text(), self.stderr)
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert!(self.status.success(), "Should have succeeded: {self}");
        self
    }

    /// It failed, because of an error found at once (2) or during its work (1), and printed the reason.
    #[track_caller]
    pub(crate) fn rejected(self) -> Self {
        let code = if self.code() == Some(2) { 2 } else { 1 };
        self.refused(code)
    }

    /// It ended with this exit code and an error message, and did not panic.
    #[track_caller]
    pub(crate) fn refused(self, code: i32) -> Self {
        assert_eq!(
            self.code(),
            Some(code),
            "Should have ended with exit code {code}: {self}"
        );
        assert!(
            !self.stderr.trim().is_empty() || !self.stdout.is_empty(),
            "Refused without a word: {self}"
        );
        assert!(!self.stderr.contains("panicked at"), "Panicked: {self}");
        self
    }

    /// Its output contains all of these, in any case.
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Self {
        let said = self.all().to_lowercase();
        for word in words {
            assert!(
                said.contains(&word.to_lowercase()),
                "Should have said {word:?}: {self}"
            );
        }
        self
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n  command  {}", self.line)?;
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => writeln!(f, "  ended with exit code {code}")?,
            (None, signal) => writeln!(f, "  ended by signal {signal:?}")?,
        }
        for (name, text) in [
            ("stdout", self.text()),
            ("stderr", self.stderr.trim_end().to_owned()),
        ] {
            writeln!(f, "  {name}")?;
            for line in text.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev() {
                writeln!(f, "    {line}")?;
            }
        }
        Ok(())
    }
}
