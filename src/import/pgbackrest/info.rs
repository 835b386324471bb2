//! Reads info files and manifests, or their copies.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use barmanfs_foreign::pgbackrest::info::InfoError;
use barmanfs_foreign::pgbackrest::{Decrypted, Header, Passphrase};
use barmanfs_store::open_unlinked;

use crate::error::Error;

/// How an encrypted file begins.
const SALTED: &[u8] = b"Salted__";

/// Reads the info file at `path`, or its copy if that one is damaged or missing.
///
/// # Errors
/// When neither can be read.
pub(super) fn load<T>(
    path: &Path,
    passphrase: Option<&Passphrase>,
    parse: impl Fn(&mut dyn BufRead) -> Result<T, InfoError>,
) -> Result<T, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".copy");
    let copy = PathBuf::from(name);
    let first = match load_one(path, passphrase, &parse) {
        Ok(info) => return Ok(info),
        Err(error) => error,
    };
    match load_one(&copy, passphrase, &parse) {
        Ok(info) => {
            tracing::warn!("{first}; its copy is used");
            Ok(info)
        }
        // The copy of what is not there is not there either.
        Err(_) => Err(first),
    }
}

fn load_one<T>(
    path: &Path,
    passphrase: Option<&Passphrase>,
    parse: &impl Fn(&mut dyn BufRead) -> Result<T, InfoError>,
) -> Result<T, Error> {
    let cannot = |error: InfoError| Error::failed(format!("Cannot read {}: {error}", path.display()));
    let file = open_unlinked(path).map_err(|error| cannot(error.into()))?;
    let mut stored = BufReader::new(file);
    let is_encrypted = begins_with(&mut stored, SALTED).map_err(|error| cannot(error.into()))?;
    match (passphrase, is_encrypted) {
        (Some(passphrase), true) => {
            let plain = Decrypted::new(stored, passphrase, Header::Magic);
            parse(&mut BufReader::new(plain)).map_err(cannot)
        }
        (None, true) => Err(Error::failed(format!("{} is encrypted", path.display()))
            .hint("Give its passphrase with --cipher-passphrase-file or --cipher-passphrase-command")),
        (Some(_), false) => Err(Error::failed(format!("{} is not encrypted", path.display()))
            .hint("Leave the passphrase out, if the repository is not encrypted")),
        (None, false) => parse(&mut stored).map_err(cannot),
    }
}

fn begins_with(source: &mut impl BufRead, magic: &[u8]) -> io::Result<bool> {
    source.fill_buf().map(|bytes| bytes.starts_with(magic))
}
