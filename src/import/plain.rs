//! Makes plain what a source has compressed or encrypted. Names do not show it: the first bytes do.

use std::io::{self, Cursor, Read};
use std::process::Command;

use barmanfs_pg::wal_name::WalName;

use super::gpg::{self, Passphrase};
use super::piped::Piped;
use crate::wal_transfer::compression::{self, Compression};

/// As many bytes as decide about a file.
const BEGINNING_BYTES: u64 = 32;

/// What is needed to read a source's files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plain {
    /// For what is encrypted with gpg.
    pub(crate) passphrase: Option<Passphrase>,
    /// The site's own program for its WAL: compressed bytes in, a WAL file out.
    pub(crate) custom_decompress: Option<String>,
}

/// A source from its beginning on, of which some bytes were looked at.
type Whole<R> = io::Chain<Cursor<Vec<u8>>, R>;

impl Plain {
    /// What `source` is, decrypted and decompressed.
    ///
    /// # Errors
    /// When it cannot be read, or is encrypted and there is no passphrase.
    pub(crate) fn of<'a>(&self, source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let (beginning, whole) = look(source)?;
        match gpg::is_encrypted(&beginning) {
            true => compression::decoded(self.decrypted(whole)?),
            false => compression::decoded(whole),
        }
    }

    /// The same of a WAL file, which may be compressed by the site's own program.
    ///
    /// # Errors
    /// As [`Plain::of`].
    pub(crate) fn wal<'a>(&self, name: &WalName, source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let (beginning, whole) = look(source)?;
        match gpg::is_encrypted(&beginning) {
            true => {
                let (beginning, whole) = look(self.decrypted(whole)?)?;
                self.decompressed(name, &beginning, whole)
            }
            false => self.decompressed(name, &beginning, whole),
        }
    }

    fn decrypted<R: Read>(&self, source: R) -> io::Result<Piped<R>> {
        let Some(passphrase) = &self.passphrase else {
            return Err(io::Error::other(
                "it is encrypted with gpg, and there is no --passphrase-command",
            ));
        };
        gpg::decrypted(source, passphrase)
    }

    fn decompressed<'a>(
        &self,
        name: &WalName,
        beginning: &[u8],
        whole: impl Read + 'a,
    ) -> io::Result<Box<dyn Read + 'a>> {
        match (&self.custom_decompress, Compression::of(beginning)) {
            (_, Some(form)) => form.reader(whole),
            (Some(command), None) if !is_plain(name, beginning) => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", command]);
                Ok(Box::new(Piped::begin(
                    shell,
                    "the command of --custom-decompress",
                    Vec::new(),
                    whole,
                )?))
            }
            (_, None) => Ok(Box::new(whole)),
        }
    }
}

/// Whether a WAL file with this name may begin like this. Pages of WAL begin with `0xD0..` or `0xD1..`, in the byte order of
/// the server; the other files are text.
fn is_plain(name: &WalName, beginning: &[u8]) -> bool {
    match name {
        WalName::Segment(_) | WalName::Partial(_) => matches!(beginning, [_, 0xd0 | 0xd1, ..]),
        WalName::BackupHistory { .. } | WalName::History(_) => beginning.is_ascii(),
    }
}

fn look<R: Read>(mut source: R) -> io::Result<(Vec<u8>, Whole<R>)> {
    let mut beginning = Vec::new();
    source
        .by_ref()
        .take(BEGINNING_BYTES)
        .read_to_end(&mut beginning)?;
    Ok((beginning.clone(), Cursor::new(beginning).chain(source)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(plain: &Plain, name: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        plain
            .wal(&name.parse().unwrap(), Cursor::new(bytes.to_vec()))?
            .read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn the_sites_own_program_is_asked_for_what_is_in_no_known_form() {
        let plain = Plain {
            passphrase: None,
            custom_decompress: Some("tr a-z A-Z".to_owned()),
        };
        let segment = "000000010000000000000006";
        assert_eq!(read(&plain, segment, b"abc").unwrap(), b"ABC");
        assert_eq!(read(&plain, segment, b"\x16\xd1abc").unwrap(), b"\x16\xd1abc");
        assert_eq!(read(&plain, "00000002.history", b"1\tx").unwrap(), b"1\tx");
        let mut zipped = Vec::new();
        Compression::Gzip
            .encode(None, &mut &b"abc"[..], &mut zipped)
            .unwrap();
        assert_eq!(read(&plain, segment, &zipped).unwrap(), b"abc");
        assert_eq!(read(&Plain::default(), segment, b"abc").unwrap(), b"abc");
    }

    #[test]
    fn what_is_encrypted_needs_a_passphrase() {
        let refused = read(&Plain::default(), "000000010000000000000006", b"\x85\x02\x0c\x03").unwrap_err();
        assert!(refused.to_string().contains("--passphrase-command"));
    }
}
