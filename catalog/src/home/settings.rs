//! `repository.json`: the version of a repository's formats, its name, and how new data is compressed.

use std::io;
use std::path::Path;

use barmanfs_pg::TimestampMicros;
use barmanfs_store::layout::{DATA_WINDOW_BYTES, FORMAT_VERSION, SEALED_FORMAT_VERSION, STREAM_WINDOW_BYTES};
use barmanfs_store::{DepositOptions, RecordId};
use serde::{Deserialize, Serialize};

use super::cache_of::refuse_cache;
use super::keys::Encryption;
use super::{COPYING, Home, has_packs, now, regular, write_durably};
use crate::error::{Error, Result};

/// The file in the repository's directory. It is written last when a repository is created.
pub(crate) const SETTINGS: &str = "repository.json";

/// zstd levels for new data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compression {
    /// Of whole chunks of data.
    pub data_level: i32,
    /// Of delta chunks.
    pub delta_level: i32,
    /// Of WAL.
    pub wal_level: i32,
}

impl Default for Compression {
    fn default() -> Self {
        let options = DepositOptions::default();
        Self {
            data_level: options.whole_level,
            delta_level: options.delta_level,
            wal_level: options.stream_level,
        }
    }
}

/// Options for creating a repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// How new data is compressed.
    pub compression: Compression,
}

/// The content of repository.json. It is written once, and once more when a repository is encrypted and when all of it is. Reading
/// stored data does not need it: if it was lost, the file of a new repository replaces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Version of the formats in this repository.
    pub format_version: u32,
    /// Its random name, which distinguishes it from other repositories.
    pub id: String,
    /// When it was created.
    pub created_at: TimestampMicros,
    /// Window size of data files.
    pub data_window_bytes: u32,
    /// Window size of WAL.
    pub wal_window_bytes: u32,
    /// How new data is compressed.
    pub compression: Compression,
    /// Of an encrypted repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

impl Settings {
    /// Those of a new repository.
    pub(crate) fn new(options: CreateOptions) -> Result<Self> {
        Ok(Self {
            format_version: FORMAT_VERSION,
            id: RecordId::random()?.to_string(),
            created_at: now(),
            data_window_bytes: DATA_WINDOW_BYTES,
            wal_window_bytes: STREAM_WINDOW_BYTES,
            compression: options.compression,
            encryption: None,
        })
    }

    fn to_json(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_string_pretty(self).map_err(|error| Error::Invalid(error.to_string()))?;
        Ok(format!("{json}\n").into_bytes())
    }

    /// The same of the repository when it is encrypted.
    pub(crate) fn encrypted(self, encryption: Encryption) -> Self {
        Self {
            format_version: SEALED_FORMAT_VERSION,
            encryption: Some(encryption),
            ..self
        }
    }
}

/// Writes repository.json.
pub(crate) fn write_settings(path: &Path, settings: &Settings) -> Result<()> {
    write_durably(&path.join(SETTINGS), &settings.to_json()?)
}

/// The content of repository.json of a new repository.
///
/// # Errors
/// When the system has no random numbers.
pub fn new_settings(options: CreateOptions) -> Result<Vec<u8>> {
    Settings::new(options)?.to_json()
}

/// The id of the repository in a directory, for those who read no more of it than its packs.
///
/// # Errors
/// When there is none, or it is of a later release.
pub fn repository_id(path: &Path) -> Result<String> {
    refuse_cache(path)?;
    Ok(read_settings(&Home::at(path)?)?.id)
}

/// Reads and checks repository.json.
pub(crate) fn read_settings(home: &Home) -> Result<Settings> {
    let _acting = home.act()?;
    let path = home.path();
    let file = path.join(SETTINGS);
    let text = match regular::read(&file) {
        Ok(text) => text,
        Err(source)
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            let path = path.to_path_buf();
            if path.join(COPYING).exists() {
                return Err(Error::Invalid(format!(
                    "{} is an unfinished copy of a repository: run the same `barmanfs copy` again, which completes it",
                    path.display()
                )));
            }
            if !has_packs(&path)? {
                return Err(Error::NoRepository { path });
            }
            // Another process may just have made the repository: its first pack comes after this file.
            regular::read(&file).map_err(|_| Error::SettingsMissing { path })?
        }
        Err(source) => return Err(Error::io("read", &file, source)),
    };
    parse_settings(&text, path, &file)
}

/// Checks the bytes of `file`, which is the repository.json of `repository`.
pub(crate) fn parse_settings(text: &[u8], repository: &Path, file: &Path) -> Result<Settings> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let bad = |error: serde_json::Error| Error::BadSettings {
        path: file.to_path_buf(),
        reason: error.to_string(),
    };
    let Version {
        format_version: found,
    } = serde_json::from_slice(text).map_err(bad)?;
    if found > SEALED_FORMAT_VERSION {
        let what = format!("The repository {}", repository.display());
        return Err(Error::NewerFormat {
            what,
            found,
            newest: SEALED_FORMAT_VERSION,
        });
    }
    let settings: Settings = serde_json::from_slice(text).map_err(bad)?;
    if settings.encryption.is_some() != (found == SEALED_FORMAT_VERSION) {
        return Err(Error::BadSettings {
            path: file.to_path_buf(),
            reason: format!("format_version {found} does not go with what it says of encryption"),
        });
    }
    Ok(settings)
}
