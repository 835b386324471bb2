//! What a program makes of a source while it is read: its input is the source, its output is what is read here.

use std::io::{self, Read, Write};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use crate::output::printable;

/// Bytes to hand over at a time.
const COPY_BYTES: usize = 128 << 10;

/// The most that is kept of what the program says.
const TEXT_BYTES: u64 = 64 << 10;

/// The output of a program. Its end is an error unless the program succeeded.
pub(crate) struct Piped {
    name: &'static str,
    child: Child,
    /// `None` when nobody reads any more.
    output: Option<ChildStdout>,
    errors: Option<JoinHandle<String>>,
    feeder: Option<JoinHandle<()>>,
    is_at_end: bool,
}

impl Piped {
    /// Runs `command`, whose input is `first` and then `source`. `name` is for messages.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(crate) fn begin<R: Read + Send + 'static>(
        mut command: Command,
        name: &'static str,
        first: Vec<u8>,
        source: R,
    ) -> io::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{name} cannot be run: {error}")))?;
        let (Some(input), Some(output), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("there are no pipes"));
        };
        let feeder = std::thread::spawn(move || feed(source, &first, input));
        Ok(Self {
            name,
            child,
            output: Some(output),
            errors: Some(std::thread::spawn(move || last_line(errors))),
            feeder: Some(feeder),
            is_at_end: false,
        })
    }

    /// Waits for the program, which must have succeeded.
    fn ended(&mut self) -> io::Result<()> {
        self.is_at_end = true;
        let status = self.child.wait()?;
        let said = self.errors.take().and_then(|errors| errors.join().ok());
        match status.success() {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "{} failed: {}",
                self.name,
                said.filter(|said| !said.is_empty())
                    .unwrap_or_else(|| status.to_string())
            ))),
        }
    }
}

impl Read for Piped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_at_end || buffer.is_empty() {
            return Ok(0);
        }
        let Some(output) = &mut self.output else {
            return Ok(0);
        };
        let length = output.read(buffer)?;
        if length == 0 {
            self.ended()?;
        }
        Ok(length)
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        // What a shell has started lives on without it, and ends when its output has no reader. Until then the feeder waits.
        self.output = None;
        if !self.is_at_end {
            // It may still wait for somebody to read: nobody does.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
        }
    }
}

/// Writes the input. An error ends it early, and then the program reports what is missing.
fn feed(mut source: impl Read, first: &[u8], mut input: impl Write) {
    let mut buffer = vec![0; COPY_BYTES];
    let mut written = input.write_all(first);
    while written.is_ok() {
        let length = match source.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        written = input.write_all(buffer.get(..length).unwrap_or_default());
    }
}

/// Reads all that is said, and returns the last line of it.
fn last_line(mut errors: ChildStderr) -> String {
    let mut text = Vec::new();
    let _ = errors.by_ref().take(TEXT_BYTES).read_to_end(&mut text);
    let _ = io::copy(&mut errors, &mut io::sink());
    let line = text.trim_ascii_end().rsplit(|byte| *byte == b'\n').next();
    printable(line.unwrap_or_default()).to_string()
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
        let mut piped =
            Piped::begin(shell("cat"), "cat", b"first".to_vec(), io::Cursor::new(content)).unwrap();
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
    fn a_program_that_nobody_reads_any_more_is_ended() {
        let mut piped = Piped::begin(shell("cat"), "cat", Vec::new(), io::repeat(1)).unwrap();
        piped.read_exact(&mut [0; 10]).unwrap();
        drop(piped);
    }
}
