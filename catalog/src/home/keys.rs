//! The keys of an encrypted repository: files in `keys/`, in which they are wrapped for those who may have them, and what
//! opens them in this process.
//!
//! `keys/<key id>/<n>.age` is the key, wrapped for one recipient; `<n>.json` says for whom. A file is written once. The keys
//! that open them belong to the process, as its user does: [`use_keys_of`] says where they come from, and opening a repository
//! finds them there.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use barmanfs_pg::TimestampMicros;
use barmanfs_store::age::{self, Identity, Recipient};
use barmanfs_store::sync::lock;
use barmanfs_store::{Error as StoreError, IdHash, KeyId, Keys, PlainPacks, SealedKey};
use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{now, regular, sync_directory, write_durably};
use crate::error::{Error, Result};

/// The directory of the keys.
pub(crate) const KEYS: &str = "keys";

const WRAPPED: &str = "age";
const DESCRIBED: &str = "json";

/// Where this process has its keys from.
pub trait KeySource: fmt::Debug + Send + Sync {
    /// What opens the keys of repositories. Asked only where a key has to be opened.
    ///
    /// # Errors
    /// Why there is none, in words.
    fn identities(&self) -> Result<Vec<Identity>, String>;

    /// Whether the repository in this directory must be encrypted: then nothing is written into a plain one.
    fn expects(&self, repository: &Path) -> bool;
}

static SOURCES: Mutex<Vec<Arc<dyn KeySource>>> = Mutex::new(Vec::new());

/// From now on, keys of repositories are opened by what `source` has, too.
pub fn use_keys_of(source: Arc<dyn KeySource>) {
    lock(&SOURCES).push(source);
}

fn sources() -> Vec<Arc<dyn KeySource>> {
    lock(&SOURCES).clone()
}

/// Has the keys of this process read while it has its own rights: root takes on those of the repository's owner, who may not
/// be able to read them.
pub(crate) fn prepare() -> Result<()> {
    identities().map(drop)
}

fn identities() -> Result<Vec<Identity>> {
    let mut all = Vec::new();
    for source in sources() {
        all.extend(source.identities().map_err(Error::Invalid)?);
    }
    Ok(all)
}

/// Refuses a plain repository where an encrypted one is expected: else what is meant to be sealed would be written plain.
///
/// # Errors
/// [`Error::Invalid`] where the process has keys for the repository in this directory.
pub fn refuse_plain(path: &Path) -> Result<()> {
    if sources().iter().any(|source| source.expects(path)) {
        return Err(Error::Invalid(format!(
            "The repository {} is not encrypted, and the configuration names a key for it: make it with `barmanfs init --encrypt`, \
             or encrypt it with `barmanfs key init` if it is there already, or remove key_file, key_command and passphrase_file",
            path.display()
        )));
    }
    Ok(())
}

/// For whom a key is wrapped.
#[derive(Clone)]
pub enum NewRecipient {
    /// Who has the secret key that belongs to this one.
    Key(Recipient),
    /// Who knows this passphrase.
    Passphrase(zeroize::Zeroizing<String>),
}

impl fmt::Debug for NewRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl NewRecipient {
    fn describe(&self) -> String {
        match self {
            Self::Key(recipient) => recipient.to_string(),
            Self::Passphrase(_) => PASSPHRASE.to_owned(),
        }
    }

    fn wrap(&self, key: &SealedKey) -> Result<Vec<u8>> {
        let text = key.to_text();
        Ok(match self {
            Self::Key(recipient) => age::wrap(text.as_bytes(), recipient)?,
            Self::Passphrase(passphrase) => age::wrap_with_passphrase(text.as_bytes(), passphrase)?,
        })
    }
}

/// What stands in place of a recipient for a passphrase.
const PASSPHRASE: &str = "passphrase";

/// A key, wrapped for one recipient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyFile {
    /// Which key.
    pub key: KeyId,
    /// The number of its file.
    pub number: u32,
    /// For whom: `age1…` or `passphrase`; nobody knows when the description is lost.
    pub recipient: Option<String>,
    /// Since when.
    pub added_at: Option<TimestampMicros>,
    /// The file.
    pub path: PathBuf,
}

/// What is written beside a wrapped key.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    recipient: String,
    added_at: TimestampMicros,
    /// Only who has the key can say this: a recipient that somebody else writes here gets no later key.
    proof: String,
}

/// The wrapped keys of the repository in this directory, by key and number. Needs no key.
///
/// # Errors
/// When they cannot be listed.
pub fn key_files(repository: &Path) -> Result<Vec<KeyFile>> {
    let directory = repository.join(KEYS);
    let mut files = Vec::new();
    for (name, path) in entries(&directory)? {
        let Ok(key) = name.parse::<KeyId>() else { continue };
        for (name, path) in entries(&path)? {
            let number = name.strip_suffix(WRAPPED).and_then(|name| name.strip_suffix('.'));
            let Some(number) = number.and_then(|number| number.parse().ok()) else {
                continue;
            };
            let described = describe(&path.with_extension(DESCRIBED));
            files.push(KeyFile {
                key,
                number,
                added_at: described.as_ref().map(|described| described.added_at),
                recipient: described.map(|described| described.recipient),
                path,
            });
        }
    }
    files.sort_by_key(|file| (file.key, file.number));
    Ok(files)
}

fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>> {
    let failed = |source| Error::io("list", directory, source);
    let entries = match fs::read_dir(directory) {
        Err(source)
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

fn describe(path: &Path) -> Option<Description> {
    serde_json::from_slice(&regular::read(path).ok()?).ok()
}

/// All keys of the repository in this directory, opened.
///
/// # Errors
/// [`StoreError::NoKey`] for the first that nothing here opens.
pub(crate) fn open_all(repository: &Path) -> Result<Vec<SealedKey>> {
    let mut files: BTreeMap<KeyId, Vec<KeyFile>> = BTreeMap::new();
    for file in key_files(repository)? {
        files.entry(file.key).or_default().push(file);
    }
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let identities = identities()?;
    let open = |(key, files): (KeyId, Vec<KeyFile>)| open_one(repository, key, &files, &identities);
    files.into_iter().map(open).collect()
}

fn open_one(repository: &Path, key: KeyId, files: &[KeyFile], identities: &[Identity]) -> Result<SealedKey> {
    let mut problem = None;
    for file in files {
        let wrapped = regular::read(&file.path).map_err(|source| Error::io("read", &file.path, source))?;
        let opened = match age::open(&wrapped, identities) {
            Ok(opened) => opened,
            Err(age::AgeError::NoMatch) => continue,
            Err(error) => {
                problem = Some(format!("{}: {error}", file.path.display()));
                continue;
            }
        };
        let parsed = std::str::from_utf8(&opened)
            .ok()
            .and_then(|text| SealedKey::parse(text).ok());
        match parsed.filter(|opened| opened.id() == key) {
            Some(opened) => return Ok(opened),
            None => {
                problem = Some(format!(
                    "{}: it holds another key than its name says",
                    file.path.display()
                ));
            }
        }
    }
    let mut what = format!("The repository {}", repository.display());
    if let Some(problem) = problem {
        what = format!("{what} ({problem})");
    } else if !identities.is_empty() {
        what = format!("{what}, which the keys of the configuration do not open,");
    }
    Err(StoreError::no_key(what, key).into())
}

/// Why this process cannot open a key; `None` when it can.
pub(crate) fn try_open(repository: &Path, key: KeyId, files: &[KeyFile]) -> Result<Option<String>> {
    match open_one(repository, key, files, &identities()?) {
        Ok(_) => Ok(None),
        Err(Error::Store(error @ StoreError::NoKey { .. })) => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

/// What repository.json says of an encrypted repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// How chunks are named.
    pub id_hash: IdHash,
    /// Its first key.
    pub key: KeyId,
    /// Whether packs from before may still be plain.
    pub plain_packs: bool,
    /// Only who has the first key can say this of the other fields and the repository's id.
    pub proof: String,
}

impl Encryption {
    /// That of the repository `id`, whose first key is the one of `keys`.
    pub(crate) fn new(id: &str, first: &SealedKey, plain: PlainPacks) -> Result<Self> {
        let keys = Keys::of(std::slice::from_ref(first), plain)?;
        let mut encryption = Self {
            id_hash: first.id_hash(),
            key: first.id(),
            plain_packs: plain == PlainPacks::Accepted,
            proof: String::new(),
        };
        encryption.proof = keys.proof(&encryption.proven(id)).unwrap_or_default();
        Ok(encryption)
    }

    fn proven(&self, id: &str) -> String {
        format!("{id} {} {} {}", self.key, self.id_hash.name(), self.plain_packs)
    }

    pub(crate) fn plain(&self) -> PlainPacks {
        match self.plain_packs {
            true => PlainPacks::Accepted,
            false => PlainPacks::Refused,
        }
    }
}

/// The keys of the repository in this directory; none for a plain one.
///
/// # Errors
/// [`StoreError::NoKey`]; when repository.json says something that its key does not prove.
pub(crate) fn unlock(repository: &Path, settings: &Settings) -> Result<Option<Arc<Keys>>> {
    let Some(encryption) = &settings.encryption else {
        return Ok(None);
    };
    let opened = open_all(repository)?;
    let first = opened.iter().find(|key| key.id() == encryption.key);
    let Some(first) = first else {
        let what = format!("The repository {} (keys/ does not have it)", repository.display());
        return Err(StoreError::no_key(what, encryption.key).into());
    };
    if Encryption::new(&settings.id, first, encryption.plain())? != *encryption {
        return Err(Error::Invalid(format!(
            "What repository.json in {} says of the encryption was changed by somebody without the key: put the file back from a \
             copy, or move it away and run `barmanfs rebuild-catalog`, which makes it again",
            repository.display()
        )));
    }
    Ok(Some(Arc::new(Keys::of(&opened, encryption.plain())?)))
}

/// The first of some keys: it is named in repository.json.
pub(crate) fn first(keys: &[SealedKey]) -> Option<&SealedKey> {
    keys.iter().min_by_key(|key| key.generation())
}

/// The key for new packs.
pub(crate) fn newest(keys: &[SealedKey]) -> Option<&SealedKey> {
    keys.iter().max_by_key(|key| key.generation())
}

/// How the first key of a repository is made.
#[derive(Debug, Clone)]
pub enum FirstKey {
    /// With a way to name chunks of its own.
    New(IdHash),
    /// With the way in which the repository in this directory names chunks, so that one can be synced from the other.
    LikeThatOf(PathBuf),
}

impl FirstKey {
    fn id_hash(&self) -> Option<IdHash> {
        match self {
            Self::New(hash) => Some(*hash),
            Self::LikeThatOf(_) => None,
        }
    }

    fn make(&self) -> Result<SealedKey> {
        match self {
            Self::New(hash) => Ok(SealedKey::first(*hash)?),
            Self::LikeThatOf(other) => {
                let opened = open_all(other)?;
                let like = newest(&opened).ok_or_else(|| {
                    Error::Invalid(format!(
                        "The repository {} is not encrypted: it has no key to go by",
                        other.display()
                    ))
                })?;
                Ok(like.next()?)
            }
        }
    }
}

/// The first key of a repository that has none yet, wrapped for these recipients. What an interrupted attempt left is taken
/// up again.
pub(crate) fn make_first(
    repository: &Path,
    how: &FirstKey,
    recipients: &[NewRecipient],
) -> Result<SealedKey> {
    if recipients.is_empty() {
        return Err(Error::Invalid(
            "A key that is wrapped for nobody is lost: name a recipient".to_owned(),
        ));
    }
    let there = key_files(repository)?;
    if there.is_empty() {
        let key = how.make()?;
        for recipient in recipients {
            add(repository, &key, recipient)?;
        }
        return Ok(key);
    }
    let directory = repository.join(KEYS);
    let refuse = |why: &str| {
        Error::Invalid(format!(
            "{} has keys already, {why}: if they are of an attempt that was interrupted, and no pack was sealed since, move them away",
            directory.display()
        ))
    };
    let opened = open_all(repository).map_err(|error| refuse(&format!("which cannot be used ({error})")))?;
    let [key] = opened.as_slice() else {
        return Err(refuse("and more than one"));
    };
    if how.id_hash().is_some_and(|hash| hash != key.id_hash()) {
        return Err(refuse("of another kind"));
    }
    for recipient in recipients {
        let known = |file: &KeyFile| file.recipient.as_deref() == Some(recipient.describe().as_str());
        if !there.iter().any(known) {
            add(repository, key, recipient)?;
        }
    }
    Ok(key.clone())
}

/// Wraps a key for one more recipient; returns the file.
pub(crate) fn add(repository: &Path, key: &SealedKey, recipient: &NewRecipient) -> Result<KeyFile> {
    let id = key.id();
    let top = repository.join(KEYS);
    let directory = top.join(id.to_string());
    for (made, parent) in [(&top, repository), (&directory, top.as_path())] {
        match fs::create_dir(made) {
            Ok(()) => sync_directory(parent)?,
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::io("create", made, source)),
        }
    }
    let files = key_files(repository)?;
    let number = files
        .iter()
        .filter(|file| file.key == id)
        .map(|file| file.number)
        .max()
        .unwrap_or(0)
        + 1;
    let path = directory.join(format!("{number}.{WRAPPED}"));
    let text = recipient.describe();
    let description = Description {
        proof: proof(key, number, &text)?,
        recipient: text.clone(),
        added_at: now(),
    };
    let json =
        serde_json::to_string_pretty(&description).map_err(|error| Error::Invalid(error.to_string()))?;
    // A description without its key is not seen.
    write_durably(&path.with_extension(DESCRIBED), format!("{json}\n").as_bytes())?;
    write_durably(&path, &recipient.wrap(key)?)?;
    Ok(KeyFile {
        key: id,
        number,
        recipient: Some(text),
        added_at: Some(description.added_at),
        path,
    })
}

fn proof(key: &SealedKey, number: u32, recipient: &str) -> Result<String> {
    let keys = Keys::of(std::slice::from_ref(key), PlainPacks::Refused)?;
    Ok(keys.proof(&format!("{number} {recipient}")).unwrap_or_default())
}

/// The recipients of a key, as far as they were written down by somebody who had it.
pub(crate) fn recipients(repository: &Path, key: &SealedKey) -> Result<Vec<KeyFile>> {
    let mut files = key_files(repository)?;
    files.retain(|file| file.key == key.id());
    for file in &files {
        let described = describe(&file.path.with_extension(DESCRIBED));
        let is_proven = match &described {
            Some(described) => proof(key, file.number, &described.recipient)? == described.proof,
            None => false,
        };
        if !is_proven {
            return Err(Error::Invalid(format!(
                "It is not proven for whom {} was made: remove that recipient with `barmanfs key remove {}:{}`, and add it again",
                file.path.display(),
                file.key,
                file.number
            )));
        }
    }
    Ok(files)
}

/// The files of all keys, by their place in the repository.
pub(crate) fn files_to_copy(repository: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for file in key_files(repository)? {
        // The description first: a key without one is complete, and a description without a key is not seen.
        for (extension, path) in [
            (DESCRIBED, file.path.with_extension(DESCRIBED)),
            (WRAPPED, file.path.clone()),
        ] {
            let name = format!("{KEYS}/{}/{}.{extension}", file.key, file.number);
            match regular::read(&path) {
                Ok(bytes) => files.push((name, bytes)),
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::io("read", &path, source)),
            }
        }
    }
    Ok(files)
}

/// Writes a file of a key that [`files_to_copy`] has found elsewhere.
pub(crate) fn write_copied(repository: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let parts: Vec<&str> = name.split('/').collect();
    let is_ours = match parts.as_slice() {
        [KEYS, key, file] => {
            let number = [WRAPPED, DESCRIBED]
                .iter()
                .find_map(|end| file.strip_suffix(end)?.strip_suffix('.'));
            key.parse::<KeyId>().is_ok() && number.is_some_and(|number| number.parse::<u32>().is_ok())
        }
        _ => false,
    };
    if !is_ours {
        return Err(Error::Invalid(format!("{name:?} is no place for a key")));
    }
    let path = repository.join(name);
    let directory = path.parent().unwrap_or(repository);
    fs::create_dir_all(directory).map_err(|source| Error::io("create", directory, source))?;
    write_durably(&path, bytes)
}

/// Removes a wrapped key.
pub(crate) fn remove(file: &KeyFile) -> Result<()> {
    for path in [file.path.clone(), file.path.with_extension(DESCRIBED)] {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path, source));
            }
            _ => {}
        }
    }
    sync_directory(file.path.parent().unwrap_or(Path::new(".")))
}
