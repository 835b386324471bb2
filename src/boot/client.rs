//! Runs one of PostgreSQL's client programs until it ends or the user interrupts it, with bounded memory for its
//! output.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::error::Error;
use crate::signals::Interruption;
use barmanfs_store::threads;

/// How much of a program's output is kept: this many bytes of its beginning, and as many of its end. The middle of a
/// long list of errors only repeats them.
const KEPT_BYTES: usize = 16 * 1024;

/// How often a running program is polled.
const POLL: Duration = Duration::from_millis(20);

/// A client program that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// Its output.
    pub(super) said: String,
}

/// The destination of a program's standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdout {
    /// It is kept with the errors.
    Kept,
    /// It goes to this program's standard output.
    Shared,
    /// It is shown among this program's messages.
    Shown,
}

/// Runs a program. An interruption kills it.
pub(super) fn run(mut command: Command, stdout: Stdout, interruption: &Interruption) -> Result<Ended, Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |error: io::Error| Error::failed(format!("Cannot run {name}: {error}"));
    let (mut reader, writer) = io::pipe().map_err(failed)?;
    match stdout {
        Stdout::Kept => command.stdout(writer.try_clone().map_err(failed)?),
        Stdout::Shared => command.stdout(Stdio::inherit()),
        Stdout::Shown => command.stdout(io::stderr()),
    };
    let mut child = command.stderr(writer).spawn().map_err(failed)?;
    // Closes our own ends of the pipe: with them open, reading would never end.
    drop(command);
    let reading = threads::start("client", move || keep(&mut reader));
    let waited = reading.map_err(Error::from).and_then(|reading| {
        let status = wait(&mut child, interruption)?;
        Ok((status, reading.join()))
    });
    if waited.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let (status, said) = waited?;
    Ok(Ended {
        status,
        said: said.unwrap_or_default(),
    })
}

fn wait(child: &mut Child, interruption: &Interruption) -> Result<ExitStatus, Error> {
    loop {
        let ended = child.try_wait();
        // This comes first: the same signal may have ended the program.
        if interruption.requested() {
            return Err(super::interrupted());
        }
        match ended {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => interruption.sleep(POLL),
            Err(error) => return Err(Error::failed(format!("Cannot wait for a program: {error}"))),
        }
    }
}

/// Reads all output, and keeps its beginning and its end.
fn keep(reader: &mut impl Read) -> String {
    let (mut head, mut tail) = (Vec::new(), VecDeque::new());
    let mut left_out = 0_u64;
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = reader.read(&mut buffer) {
        for &byte in buffer.get(..length).unwrap_or_default() {
            if head.len() < KEPT_BYTES {
                head.push(byte);
                continue;
            }
            if tail.len() == KEPT_BYTES {
                tail.pop_front();
                left_out += 1;
            }
            tail.push_back(byte);
        }
    }
    if left_out > 0 {
        head.extend_from_slice(format!("\n... {left_out} bytes are left out ...\n").as_bytes());
    }
    head.extend(tail);
    String::from_utf8_lossy(&head).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_output_keeps_its_beginning_and_end() {
        assert_eq!(keep(&mut &b"short"[..]), "short");
        let long = format!("begin{}end", "x".repeat(100_000));
        let kept = keep(&mut long.as_bytes());
        assert!(kept.len() < 2 * KEPT_BYTES + 100, "{}", kept.len());
        assert!(kept.starts_with("begin") && kept.ends_with("end"));
        assert!(
            kept.contains("... 67240 bytes are left out ..."),
            "{}",
            long.len()
        );
    }

    #[test]
    fn both_outputs_are_kept_and_the_status_too() {
        let interruption = Interruption::watch(|| {}).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let ended = run(command, Stdout::Kept, &interruption).unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert!(ended.said.contains("out") && ended.said.contains("err"));
    }
}
