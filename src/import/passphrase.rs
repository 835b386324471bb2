//! The passphrase of a source. It comes from a file or a command, never from the command line, and is in no message.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use barmanfs_store::open_regular;

use super::directory::cannot_read;
use crate::error::Error;

/// More than any passphrase has.
const MOST_BYTES: u64 = 64 << 10;

/// The passphrase in a file: all of it but the end of its last line.
///
/// # Errors
/// When it cannot be read, or is empty.
pub(crate) fn of_file(path: &Path) -> Result<Vec<u8>, Error> {
    let file = open_regular(path).map_err(|error| cannot_read(path, &error))?;
    let bytes = limited(file).map_err(|error| cannot_read(path, &error))?;
    checked(bytes).ok_or_else(|| Error::usage(format!("{} holds no passphrase", path.display())))
}

/// The passphrase that a command of a shell prints. `option` gave the command.
///
/// # Errors
/// When it cannot be run, fails, or prints nothing.
pub(crate) fn of_command(option: &str, command: &str) -> Result<Vec<u8>, Error> {
    let failed = |why: String| Error::failed(format!("The command of {option} {why}"));
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot be run: {error}")))?;
    let printed = child.stdout.take().map(limited);
    let status = child
        .wait()
        .map_err(|error| failed(format!("cannot be waited for: {error}")))?;
    if !status.success() {
        return Err(failed(format!("failed: {status}")));
    }
    let bytes = printed
        .transpose()
        .map_err(|error| failed(format!("cannot be read: {error}")))?;
    bytes
        .and_then(checked)
        .ok_or_else(|| failed("printed no passphrase".to_owned()))
}

fn limited(source: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn checked(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    (!bytes.is_empty()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_file_without_the_end_of_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pass");
        for (content, passphrase) in [
            ("a b\n", "a b"),
            ("a b", "a b"),
            ("a\r\n", "a"),
            (" a \n\n", " a \n"),
        ] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(of_file(&path).unwrap(), passphrase.as_bytes());
        }
        std::fs::write(&path, "\n").unwrap();
        assert!(of_file(&path).is_err());
        assert!(of_file(&directory.path().join("nowhere")).is_err());
    }

    #[test]
    fn a_command_prints_it() {
        assert_eq!(of_command("--x", "echo 'a b'").unwrap(), b"a b");
        let error = of_command("--x", "echo secret; exit 3").unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && !error.contains("secret"),
            "{error}"
        );
        assert!(of_command("--x", "true").is_err());
    }
}
