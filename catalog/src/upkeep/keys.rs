//! Changes of a repository's keys, and the encryption of one that was plain.
//!
//! A plain repository gets a key first (`encrypt_from_now`): from then on new packs are sealed, and those from before are
//! accepted. [`Repository::encrypt`] is a sweep that copies everything in use out of plain packs into sealed ones, and
//! gives the plain packs up as it does with any pack. So it can be killed at any moment, goes on where it was, and others
//! read and write meanwhile. When no plain pack is left, none is accepted any more.

use std::path::Path;
use std::sync::Arc;

use barmanfs_store::{
    Error as StoreError, IdHash, KeyId, PackStorage, PlainPacks, SealedKey, SealedPacks, key_of_pack,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::home::Home;
use crate::home::keys::{
    self, Encryption, FirstKey, KeyFile, NewRecipient, key_files, make_first, newest, open_all,
};
use crate::home::locks::{FileLocks, Lock, Locks};
use crate::home::presence;
use crate::home::regular;
use crate::home::settings::{
    CreateOptions, SETTINGS, Settings, parse_settings, read_settings, write_settings,
};
use crate::index::repository::Repository;
use crate::monitor::Monitor;
use crate::upkeep::sweep::{SweepOptions, SweepReport};

/// The lock of a process that changes the keys.
const CHANGING: &str = "keys";

/// A key, and whether this process can open it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedKey {
    /// Which key.
    pub key: KeyId,
    /// How often it is wrapped.
    pub recipients: usize,
    /// Why it cannot be opened here; `None` when it can.
    pub problem: Option<String>,
}

/// What an encryption has done.
#[derive(Debug, Clone, Serialize)]
pub struct EncryptReport {
    /// What the sweep did that sealed the packs.
    pub sweep: SweepReport,
    /// Plain packs that are left.
    pub plain_packs: u64,
    /// Whether all is sealed, and plain packs are refused from now on.
    pub complete: bool,
    /// Why not.
    pub waiting_for: Option<String>,
}

impl Repository {
    /// Creates an encrypted repository.
    ///
    /// # Errors
    /// As [`create`](Self::create); [`barmanfs_store::Error::NoKey`] when this process cannot open what it has made.
    pub fn create_encrypted(
        path: &Path,
        options: CreateOptions,
        first: &FirstKey,
        recipients: &[NewRecipient],
    ) -> Result<Self> {
        Self::make(path, options, Some((first, recipients)))?;
        Self::open(path)
    }

    /// Seals the packs of a plain repository from now on. Those that are there stay as they are.
    ///
    /// # Errors
    /// When it is encrypted already; when it cannot be written.
    pub fn encrypt_from_now(path: &Path, recipients: &[NewRecipient]) -> Result<KeyId> {
        let home = Home::at(path)?;
        keys::prepare()?;
        let _acting = home.act()?;
        let _lock = changing(&home)?;
        let settings = read_settings(&home)?;
        if settings.encryption.is_some() {
            return Err(Error::Invalid(format!(
                "The repository {} is encrypted already: `barmanfs key list` says for whom, `barmanfs key add` adds a recipient",
                path.display()
            )));
        }
        let key = make_first(path, &FirstKey::New(IdHash::Blake3), recipients)?;
        encrypted(path, settings, &key, PlainPacks::Accepted)?;
        Ok(key.id())
    }

    /// Seals what is plain, as far as writers let it.
    ///
    /// # Errors
    /// As [`sweep`](Self::sweep); when the repository has no key.
    pub fn encrypt(&self, options: &SweepOptions, monitor: &mut dyn Monitor) -> Result<EncryptReport> {
        if self.settings().encryption.is_none() {
            return Err(Error::Invalid(
                "The repository has no key yet: make one with `barmanfs key init --recipient age1…`"
                    .to_owned(),
            ));
        }
        let options = SweepOptions {
            seal_plain: true,
            ..*options
        };
        let sweep = self.sweep(&options, monitor)?;
        let mut report = EncryptReport {
            plain_packs: self.plain_packs()?,
            complete: false,
            waiting_for: None,
            sweep,
        };
        if report.plain_packs > 0 {
            let writers = report.sweep.waiting_for.join("; ");
            report.waiting_for = Some(match writers.is_empty() {
                true => "what is said of these packs above: run again".to_owned(),
                false => format!("{writers}: run again when this has ended"),
            });
            return Ok(report);
        }
        match self.refuse_plain_packs() {
            Ok(()) => report.complete = true,
            Err(error @ Error::Occupied { .. }) => report.waiting_for = Some(error.to_string()),
            Err(error) => return Err(error),
        }
        Ok(report)
    }

    /// How many packs of the store are not sealed.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn plain_packs(&self) -> Result<u64> {
        let mut plain = 0;
        self.storage.list(&mut |pack| {
            plain += match key_of_pack(self.storage.as_ref(), pack) {
                Ok(Some(_)) | Err(StoreError::MissingPack(_)) => 0,
                Ok(None) => 1,
                // It may be a plain one, whose frames can still be read.
                Err(error) if error.is_damage() => 1,
                Err(error) => return Err(error),
            };
            Ok(())
        })?;
        Ok(plain)
    }

    /// A writer that opened the repository before it had a key may still write a plain pack: so no writer is at work now.
    fn refuse_plain_packs(&self) -> Result<()> {
        keys::prepare()?;
        let _acting = self.as_owner()?;
        let _alone = presence::keep_writers_out(self.locks.as_ref(), "encrypt")?;
        let _lock = changing(&self.home)?;
        let settings = read_settings(&self.home)?;
        let is_done = settings
            .encryption
            .as_ref()
            .is_some_and(|encryption| !encryption.plain_packs);
        if is_done || self.plain_packs()? > 0 {
            return Ok(());
        }
        let opened = open_all(self.path())?;
        let first = keys::first(&opened).ok_or_else(no_key)?;
        encrypted(self.path(), settings, first, PlainPacks::Refused)
    }

    /// Wraps all keys for one more recipient.
    ///
    /// # Errors
    /// When this process cannot open them; when they cannot be written.
    pub fn add_recipient(path: &Path, recipient: &NewRecipient) -> Result<Vec<KeyFile>> {
        let home = Home::at(path)?;
        keys::prepare()?;
        let _acting = home.act()?;
        let _lock = changing(&home)?;
        let opened = open_all(path)?;
        if opened.is_empty() {
            return Err(no_key());
        }
        opened.iter().map(|key| keys::add(path, key, recipient)).collect()
    }

    /// Removes what `is_meant` chooses. This takes no key from anybody who had it.
    ///
    /// # Errors
    /// When nothing is chosen; when a key would be left without a recipient.
    pub fn remove_recipient(path: &Path, is_meant: &dyn Fn(&KeyFile) -> bool) -> Result<Vec<KeyFile>> {
        let home = Home::at(path)?;
        let _acting = home.act()?;
        let _lock = changing(&home)?;
        let (gone, kept): (Vec<KeyFile>, Vec<KeyFile>) = key_files(path)?.into_iter().partition(is_meant);
        if gone.is_empty() {
            return Err(Error::Invalid(
                "There is no such recipient: `barmanfs key list` has them".to_owned(),
            ));
        }
        let orphan = gone
            .iter()
            .find(|gone| !kept.iter().any(|kept| kept.key == gone.key));
        if let Some(orphan) = orphan {
            return Err(Error::Invalid(format!(
                "This is the last recipient of key {}: without it, nobody could ever read what is sealed under this key",
                orphan.key
            )));
        }
        gone.iter().try_for_each(keys::remove)?;
        Ok(gone)
    }

    /// Makes a new key for the packs from now on, for the recipients of the newest one. Passphrases must be given again.
    ///
    /// # Errors
    /// When this process cannot open the keys; when it cannot be written.
    pub fn rotate_key(path: &Path, passphrase: Option<&NewRecipient>) -> Result<KeyId> {
        let home = Home::at(path)?;
        keys::prepare()?;
        let _acting = home.act()?;
        let _lock = changing(&home)?;
        let opened = open_all(path)?;
        let before = newest(&opened).ok_or_else(no_key)?;
        let mut wanted = Vec::new();
        for file in keys::recipients(path, before)? {
            let recipient = file.recipient.unwrap_or_default();
            match (recipient.parse(), passphrase) {
                (Ok(recipient), _) => wanted.push(NewRecipient::Key(recipient)),
                (Err(_), Some(passphrase)) => wanted.push(passphrase.clone()),
                (Err(_), None) => {
                    return Err(Error::Invalid(format!(
                        "A recipient of key {} is a passphrase: give it again with --passphrase-file, or remove it first",
                        before.id()
                    )));
                }
            }
        }
        let next: SealedKey = before.next()?;
        // The newest key counts as soon as it is there: with its first recipient, who must be able to open it.
        for recipient in &wanted {
            keys::add(path, &next, recipient)?;
        }
        Ok(next.id())
    }

    /// Which keys this process can open.
    ///
    /// # Errors
    /// When the keys cannot be listed, or those of the process cannot be had.
    pub fn check_keys(path: &Path) -> Result<Vec<CheckedKey>> {
        let files = key_files(path)?;
        let mut ids: Vec<KeyId> = files.iter().map(|file| file.key).collect();
        ids.dedup();
        let check = |key: KeyId| {
            let of: Vec<KeyFile> = files.iter().filter(|file| file.key == key).cloned().collect();
            Ok(CheckedKey {
                key,
                recipients: of.len(),
                problem: keys::try_open(path, key, &of)?,
            })
        };
        ids.into_iter().map(check).collect()
    }

    /// Whether the repository in this directory is encrypted, and how. Needs no key.
    ///
    /// # Errors
    /// When there is no repository.
    pub fn encryption_of(path: &Path) -> Result<Option<Encryption>> {
        Ok(read_settings(&Home::at(path)?)?.encryption)
    }
}

/// What opens the packs of a repository, for who has the key: its settings and its wrapped keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Locked {
    settings: Vec<u8>,
    keys: Vec<(String, Vec<u8>)>,
}

impl Locked {
    /// That of the repository in this directory.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(path: &Path) -> Result<Self> {
        let file = path.join(SETTINGS);
        Ok(Self {
            settings: regular::read(&file).map_err(|source| Error::io("read", &file, source))?,
            keys: keys::files_to_copy(path)?,
        })
    }

    /// Its packs, with the keys that this process can open.
    ///
    /// # Errors
    /// [`barmanfs_store::Error::NoKey`].
    pub fn open(&self, packs: Arc<dyn PackStorage>) -> Result<Arc<dyn PackStorage>> {
        let place = Path::new("of the primary");
        let settings = parse_settings(&self.settings, place, &place.join(SETTINGS))?;
        if settings.encryption.is_none() {
            return Ok(packs);
        }
        let directory =
            tempfile::tempdir().map_err(|source| Error::io("make", Path::new("a directory"), source))?;
        for (name, bytes) in &self.keys {
            keys::write_copied(directory.path(), name, bytes)?;
        }
        Ok(match keys::unlock(directory.path(), &settings)? {
            None => packs,
            Some(keys) => Arc::new(SealedPacks::new(packs, keys)),
        })
    }
}

fn changing(home: &Home) -> Result<Lock> {
    FileLocks::of(home).wait_exclusive(CHANGING, "changing the keys")
}

fn no_key() -> Error {
    Error::Invalid("The repository is not encrypted: `barmanfs key init` makes its first key".to_owned())
}

fn encrypted(path: &Path, settings: Settings, first: &SealedKey, plain: PlainPacks) -> Result<()> {
    let encryption = Encryption::new(&settings.id, first, plain)?;
    write_settings(path, &settings.encrypted(encryption))
}

#[cfg(test)]
mod tests;
