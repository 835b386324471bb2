//! What a program makes of a source while it is read: its input is the source, its output is what is read here.
//!
//! One thread serves all pipes of the program, so the source needs no copy and no thread of its own. The program has a process
//! group of its own. All of that is killed when nobody reads any more, at an interruption, and when the program does nothing for
//! too long.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::output::printable;
use crate::signals::Noticed;

/// Bytes to hand over at a time.
const COPY_BYTES: usize = 128 << 10;

/// The most that is kept of what the program says.
const TEXT_BYTES: usize = 64 << 10;

/// How long a program may neither take its input, nor give output, nor end.
const SILENT_FOR: Duration = Duration::from_secs(300);

/// How soon an interruption is noticed.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// How often to look whether the program has ended, once its output has.
const ENDED_WITHIN: Duration = Duration::from_millis(5);

/// The output of a program. Its end is an error unless the program succeeded.
pub(crate) struct Piped<R> {
    name: &'static str,
    program: Program,
    source: R,
    /// `None` when the program has all of its input.
    input: Option<ChildStdin>,
    /// What is to be given to the program next, and how much of it is.
    next: Vec<u8>,
    given: usize,
    /// Bytes that were given to it, and that it has said.
    moved_bytes: u64,
    output: ChildStdout,
    /// `None` at their end.
    errors: Option<ChildStderr>,
    /// The last of what it has said.
    said: Vec<u8>,
    silent_for: Duration,
    noticed: Noticed,
    is_at_end: bool,
}

/// A process with all that it has started.
struct Program {
    child: Child,
    /// How it ended.
    status: Option<ExitStatus>,
}

impl Program {
    fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.status.is_some() {
            return;
        }
        // The number stays that of its group until it is waited for.
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl<R: Read> Piped<R> {
    /// Runs `command`, whose input is `first` and then `source`. `name` is for messages.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(crate) fn begin(command: Command, name: &'static str, first: Vec<u8>, source: R) -> io::Result<Self> {
        Self::begin_within(command, name, (first, source), SILENT_FOR)
    }

    fn begin_within(
        mut command: Command,
        name: &'static str,
        (first, source): (Vec<u8>, R),
        silent_for: Duration,
    ) -> io::Result<Self> {
        let noticed = Noticed::begin()?;
        let child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{name} cannot be run: {error}")))?;
        let mut program = Program { child, status: None };
        let child = &mut program.child;
        let (Some(input), Some(output), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("there are no pipes"));
        };
        for pipe in [input.as_fd(), output.as_fd(), errors.as_fd()] {
            fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
        }
        Ok(Self {
            name,
            program,
            source,
            input: Some(input),
            next: first,
            given: 0,
            moved_bytes: 0,
            output,
            errors: Some(errors),
            said: Vec::new(),
            silent_for,
            noticed,
            is_at_end: false,
        })
    }

    /// Waits until something can be done, for a moment. Returns whether anything can.
    fn wait(&self) -> io::Result<bool> {
        let mut pipes = vec![PollFd::new(&self.output, PollFlags::IN)];
        if let Some(errors) = &self.errors {
            pipes.push(PollFd::new(errors, PollFlags::IN));
        }
        if let Some(input) = &self.input {
            pipes.push(PollFd::new(input, PollFlags::OUT));
        }
        match poll(&mut pipes, Some(&TICK)) {
            Err(rustix::io::Errno::INTR) => Ok(false),
            ready => Ok(ready? > 0),
        }
    }

    /// Refuses to wait for ever.
    fn still(&self, since: Instant) -> io::Result<()> {
        if self.noticed.requested() {
            return Err(io::Error::other("Interrupted"));
        }
        match since.elapsed() < self.silent_for {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "{} has done nothing for {} seconds, and was ended",
                self.name,
                self.silent_for.as_secs()
            ))),
        }
    }

    /// Gives the program the next bytes of its input.
    fn give(&mut self) -> io::Result<()> {
        if self.given == self.next.len() {
            self.next.resize(COPY_BYTES, 0);
            self.given = 0;
            let length = loop {
                match self.source.read(&mut self.next) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    length => break length?,
                }
            };
            self.next.truncate(length);
            if length == 0 {
                self.input = None;
                return Ok(());
            }
        }
        let Some(input) = &mut self.input else {
            return Ok(());
        };
        match unblocked(input.write(self.next.get(self.given..).unwrap_or_default())) {
            // It wants no more. Whether it has enough, its end shows.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.input = None,
            length => {
                let length = length?.unwrap_or(0);
                self.given += length;
                self.moved_bytes += length as u64;
            }
        }
        Ok(())
    }

    /// Reads what the program says.
    fn listen(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let Some(errors) = &mut self.errors else {
            return Ok(());
        };
        match unblocked(errors.read(&mut buffer))? {
            None => {}
            Some(0) => self.errors = None,
            Some(length) => {
                self.moved_bytes += length as u64;
                self.said
                    .extend_from_slice(buffer.get(..length).unwrap_or_default());
                let surplus = self.said.len().saturating_sub(TEXT_BYTES);
                self.said.drain(..surplus);
            }
        }
        Ok(())
    }

    /// Waits for the program, which must have succeeded.
    fn ended(&mut self) -> io::Result<()> {
        self.input = None;
        let since = Instant::now();
        let status = loop {
            self.listen()?;
            match self.program.ended()? {
                Some(status) => break status,
                None => self.still(since)?,
            }
            std::thread::sleep(ENDED_WITHIN);
        };
        self.listen()?;
        self.is_at_end = true;
        if status.success() {
            return Ok(());
        }
        let line = self.said.trim_ascii_end().rsplit(|byte| *byte == b'\n').next();
        let why = match line.unwrap_or_default() {
            [] => status.to_string(),
            line => printable(line).to_string(),
        };
        Err(io::Error::other(format!("{} failed: {why}", self.name)))
    }
}

impl<R: Read> Read for Piped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_at_end || buffer.is_empty() {
            return Ok(0);
        }
        let mut since = Instant::now();
        loop {
            match unblocked(self.output.read(buffer))? {
                Some(0) => return self.ended().map(|()| 0),
                Some(length) => return Ok(length),
                None => {}
            }
            self.still(since)?;
            if self.wait()? {
                let before = self.moved_bytes;
                self.listen()?;
                self.give()?;
                if self.moved_bytes != before {
                    since = Instant::now();
                }
            }
        }
    }
}

/// `None` where the pipe is not ready.
fn unblocked(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Ok(length) => Ok(Some(length)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_output_is_read_and_a_failure_is_an_error_at_its_end() {
        let content = vec![7; 1 << 20];
        // The source is only borrowed.
        let mut piped = Piped::begin(shell("cat"), "cat", b"first".to_vec(), content.as_slice()).unwrap();
        let mut read = Vec::new();
        piped.read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), (1 << 20) + 5);

        let mut failing = Piped::begin(
            shell("head -c 3; echo no key >&2; exit 2"),
            "it",
            Vec::new(),
            io::repeat(1),
        )
        .unwrap();
        let mut read = Vec::new();
        let error = failing.read_to_end(&mut read).unwrap_err();
        assert_eq!((read.len(), error.to_string().as_str()), (3, "it failed: no key"));
    }

    #[test]
    fn an_error_of_the_source_is_told() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("damaged"))
            }
        }
        let mut piped = Piped::begin(shell("cat"), "cat", Vec::new(), Broken).unwrap();
        let error = piped.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "damaged");
    }

    /// The state of the process whose number is in a file, and of all in its group.
    fn is_alive(place: &std::path::Path) -> bool {
        let pid = std::fs::read_to_string(place).unwrap_or_default();
        std::path::Path::new(&format!("/proc/{}", pid.trim())).exists()
    }

    #[test]
    fn a_program_that_nobody_reads_any_more_is_ended_with_what_it_has_started() {
        let place = tempfile::tempdir().unwrap();
        let (own, other) = (place.path().join("own"), place.path().join("other"));
        let script = format!(
            "echo $$ >{}; sleep 1000 & echo $! >{}; cat",
            own.display(),
            other.display()
        );
        let mut piped = Piped::begin(shell(&script), "cat", Vec::new(), io::repeat(1)).unwrap();
        piped.read_exact(&mut [0; 10]).unwrap();
        assert!(is_alive(&own) && is_alive(&other));
        drop(piped);
        assert!(!is_alive(&own));
        // Whoever waits for the other one is not this process.
        let ended = || {
            let pid = std::fs::read_to_string(&other).unwrap();
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
        };
        let since = Instant::now();
        while !ended() {
            assert!(since.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        for script in ["exec sleep 1000", "exec >&-; exec sleep 1000", "sleep 1000"] {
            let source = io::repeat(1);
            let within = Duration::from_secs(1);
            let mut piped = Piped::begin_within(shell(script), "it", (Vec::new(), source), within).unwrap();
            let error = piped.read_to_end(&mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains("done nothing"), "{script}: {error}");
        }
        // One that is slow does not.
        let slow = "for i in 1 2 3; do sleep 0.5; echo x; done";
        let within = Duration::from_secs(1);
        let mut piped = Piped::begin_within(shell(slow), "it", (Vec::new(), io::empty()), within).unwrap();
        let mut read = Vec::new();
        piped.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"x\nx\nx\n");
    }
}
