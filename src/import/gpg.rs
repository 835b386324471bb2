//! What is encrypted with gpg, decrypted by the program `gpg` while it is read.
//!
//! The passphrase goes to `gpg` as the first line of its input, and the encrypted bytes behind it: so it is in no command
//! line, no environment and no file.

use std::fmt;
use std::io::{self, Read};
use std::process::Command;

use super::passphrase;
use super::piped::Piped;
use crate::error::Error;

/// Opens the keys of the user who runs the import. Never shown.
#[derive(Clone)]
pub(crate) struct Passphrase(Vec<u8>);

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

impl Passphrase {
    /// What this command of a shell prints; its first line counts.
    ///
    /// # Errors
    /// When it fails or prints nothing.
    pub(crate) fn from_command(command: &str) -> Result<Self, Error> {
        let mut printed = passphrase::of_command("--passphrase-command", command)?;
        let line = printed.iter().position(|byte| *byte == b'\n');
        printed.truncate(line.unwrap_or(printed.len()));
        match printed.is_empty() {
            true => Err(Error::failed(
                "The command of --passphrase-command printed an empty first line",
            )),
            false => Ok(Self(printed)),
        }
    }
}

/// Whether these are the first bytes of an encrypted message. No WAL file and no archive begins like one.
pub(crate) fn is_encrypted(beginning: &[u8]) -> bool {
    // A packet with an encrypted session key: its tag is 1 (for a key) or 3 (for a passphrase), in the old or new form.
    const TAGS: [u8; 8] = [0x84, 0x85, 0x86, 0x8c, 0x8d, 0x8e, 0xc1, 0xc3];
    beginning.first().is_some_and(|first| TAGS.contains(first))
        || beginning.starts_with(b"-----BEGIN PGP MESSAGE")
}

/// What the message `source` says. Its end is an error unless `gpg` found it whole and unchanged.
///
/// # Errors
/// When `gpg` cannot be run.
pub(crate) fn decrypted<R: Read>(source: R, passphrase: &Passphrase) -> io::Result<Piped<R>> {
    let mut command = Command::new("gpg");
    command
        .args(["--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback"])
        .args(["--passphrase-fd", "0", "--decrypt"]);
    let first = [passphrase.0.as_slice(), b"\n"].concat();
    Piped::begin(command, "gpg", first, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_from_wal_and_archives() {
        for encrypted in [
            &b"\x85\x02\x0c\x03"[..],
            b"\x8c\x0d\x04",
            b"\x84\x5e\x03",
            b"-----BEGIN PGP MESSAGE-----",
        ] {
            assert!(is_encrypted(encrypted));
        }
        for other in [
            &b""[..],
            b"\x16\xd1",
            b"\x06\xd1",
            b"\x1f\x8b\x08",
            b"BZh",
            b"\xfd7zXZ",
            b"\x28\xb5",
            b"1\t0/3",
        ] {
            assert!(!is_encrypted(other));
        }
    }

    #[test]
    fn the_passphrase_is_the_first_line_of_a_command_and_is_not_shown() {
        let passphrase = Passphrase::from_command("echo secret; echo more").unwrap();
        assert_eq!(passphrase.0, b"secret");
        assert!(!format!("{passphrase:?}").contains("secret"));
        assert!(Passphrase::from_command("true").is_err());
        let refused = Passphrase::from_command("echo secret; exit 3").unwrap_err();
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }
}
