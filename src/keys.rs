//! What opens encrypted repositories, as the configuration names it: `key_file`, `key_command`, `passphrase_file`.
//!
//! Nothing is read before a repository asks for it, and once for a process. From then on the process leaves no core dump, and
//! other processes of the user cannot look into its memory. Nothing shows a key: messages name files and commands only.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use barmanfs_catalog::{KeySource, NewRecipient, use_keys_of};
use barmanfs_store::age::{Identity, Recipient};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use zeroize::Zeroizing;

use crate::config::{Config, KeyPlaces};
use crate::error::Error;

/// A key or a passphrase has fewer bytes.
const BYTES_MAX: u64 = 64 * 1024;

/// From now on repositories are opened by what this configuration names.
pub(crate) fn use_those_of(config: &Config) {
    if config.keys.are_named() {
        use_keys_of(Arc::new(Configured {
            repository: config.repository.clone(),
            places: config.keys.clone(),
            found: OnceLock::new(),
        }));
    }
}

/// What a configuration names.
#[derive(Debug)]
struct Configured {
    repository: PathBuf,
    places: KeyPlaces,
    found: OnceLock<Result<Vec<Identity>, String>>,
}

impl KeySource for Configured {
    fn identities(&self) -> Result<Vec<Identity>, String> {
        self.found.get_or_init(|| identities(&self.places)).clone()
    }

    fn expects(&self, repository: &Path) -> bool {
        repository == self.repository
    }
}

fn identities(places: &KeyPlaces) -> Result<Vec<Identity>, String> {
    // Before a key is in memory.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!("A core dump of this process could have keys in it: {error}");
    }
    let mut found = Vec::new();
    if let Some(file) = &places.file {
        let parsed = Identity::parse_all(&secret_file("key_file", file)?);
        found.extend(parsed.map_err(|error| format!("key_file {} has no key: {error}", file.display()))?);
    }
    if let Some(command) = &places.command {
        let parsed = Identity::parse_all(&output_of(command)?);
        found.extend(parsed.map_err(|error| format!("What key_command prints is no key: {error}"))?);
    }
    if let Some(file) = &places.passphrase_file {
        found.push(Identity::Passphrase(passphrase("passphrase_file", file)?));
    }
    Ok(found)
}

/// The public keys that belong to what the configuration names.
pub(crate) fn own_recipients(config: &Config) -> Result<Vec<NewRecipient>, Error> {
    let found = identities(&config.keys).map_err(Error::failed)?;
    let own = found.iter().filter_map(|identity| match identity {
        Identity::Passphrase(passphrase) => Some(NewRecipient::Passphrase(passphrase.clone())),
        Identity::Key(_) => identity.recipient().map(NewRecipient::Key),
    });
    Ok(own.collect())
}

/// The recipients in a file: one a line, among empty ones and comments.
pub(crate) fn recipients_in(file: &Path) -> Result<Vec<NewRecipient>, Error> {
    let text = fs::read_to_string(file);
    let text = text.map_err(|error| Error::failed(format!("Cannot read {}: {error}", file.display())))?;
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| recipient(line).map_err(|why| Error::usage(format!("{}: {why}", file.display()))))
        .collect()
}

/// A recipient of the command line.
pub(crate) fn recipient(text: &str) -> Result<NewRecipient, String> {
    // A secret key that somebody gives by mistake is not repeated.
    let parsed: Result<Recipient, _> = text.parse();
    parsed.map(NewRecipient::Key).map_err(|error| error.to_string())
}

/// The first line of a file.
pub(crate) fn passphrase(what: &str, file: &Path) -> Result<Zeroizing<String>, String> {
    let bytes = secret_file(what, file)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{what} {} is not text", file.display()))?;
    match text.lines().next().filter(|line| !line.is_empty()) {
        Some(line) => Ok(Zeroizing::new(line.to_owned())),
        None => Err(format!(
            "{what} {} has no passphrase in its first line",
            file.display()
        )),
    }
}

fn secret_file(what: &str, file: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let failed = |error| format!("Cannot read {what} {}: {error}", file.display());
    let mut opened = fs::File::open(file).map_err(failed)?;
    let found = opened.metadata().map_err(failed)?;
    if found.is_file() && found.permissions().mode() & 0o004 != 0 {
        tracing::warn!(
            "{what} {} can be read by everybody on this host: chmod 600",
            file.display()
        );
    }
    read_all(&mut opened).map_err(failed)
}

/// With room for everything: a buffer that grows would leave copies behind.
fn read_all(from: &mut impl Read) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES_MAX as usize + 1));
    from.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn output_of(command: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let failed = |error| format!("key_command cannot be run: {error}");
    let started = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = started.map_err(failed)?;
    let mut output = child.stdout.take().ok_or("key_command has no output")?;
    let read = read_all(&mut output);
    drop(output);
    let ended = child.wait().map_err(failed)?;
    let read = read.map_err(failed)?;
    match ended.success() {
        true => Ok(read),
        false => Err(format!(
            "key_command failed ({ended}); what it said about it is above"
        )),
    }
}
