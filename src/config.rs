//! The configuration: INI files with Barman's key names. A Barman site's own files are read as they are.
//!
//! - [`files`]: which files there are, and how they are put on each other. `[barmanfs]`, or Barman's `[barman]`, names the
//!   repository; every other section is a server.
//! - [`interpolation`]: `%(key)s`, only in files written for Barman.
//! - [`keys`]: all keys of Barman and barmanfs. [`server`]: what those of a server do.
//! - [`reader`]: what a wrong value does.
//!
//! Only what makes the whole unusable is an error: no repository, or a main file that cannot be opened. A wrong value, a line
//! that is not INI and bytes that are no text disable the server that they belong to ([`ServerConfig::errors`]), or are
//! ignored with a warning where Barman ignores a wrong value and that is as safe. While an included file cannot be read,
//! nothing is deleted. A key without effect is a warning. Every message has the file, the line and what is allowed.
//! Connection strings may contain passwords: they are never printed, and [`Secret`] keeps them out of debug output.
//! [`secrets`] keeps them out of other values and messages.

mod bucket;
mod files;
mod hooks;
mod ini;
mod interpolation;
mod key_places;
pub(crate) mod keys;
mod limits;
mod model;
mod origin;
mod reader;
pub(crate) mod secrets;
mod server;
mod setting;
mod snapshots;
mod state;
pub(crate) mod update;
mod values;

use std::fmt;
use std::path::{Path, PathBuf};

use barmanfs_bucket::Location;
use barmanfs_catalog::{Action, ServerName};
pub(crate) use bucket::BucketKeys;
pub(crate) use hooks::HookScripts;
pub(crate) use key_places::KeyPlaces;
pub(crate) use limits::{Age, Limits, unless_zero};
pub(crate) use model::Model;
pub(crate) use origin::{Notice, Origin, Problem};
pub(crate) use secrets::Secrets;
pub(crate) use server::{Archiver, BackupMethod, CreateSlot, Incremental, PrimaryKind, ServerConfig, Value};
pub(crate) use setting::{Effect, Setting, Source};
pub(crate) use snapshots::{Snapshots, TablespacePlace};
pub(crate) use state::{AUTOMATIC, model_file};
use tracing::level_filters::LevelFilter;
pub(crate) use values::{DailyShare, log_level, recovery_target_action};

use crate::error::Error;
use files::{Candidate, Files};
use reader::Reader;

/// A string that may contain a password. No formatter shows it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text itself, only for connecting.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// A configuration that was read.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Path of the main file.
    pub(crate) file: PathBuf,
    /// The directory of the repository, or the cache of one in an object store.
    pub(crate) repository: PathBuf,
    /// The object store that the repository is in, if it is in one.
    pub(crate) location: Option<Location>,
    /// How much of its packs is kept on this host.
    pub(crate) cache_max_bytes: u64,
    /// The log level if the command line does not set it.
    pub(crate) log_level: Option<LevelFilter>,
    /// The log file of all commands.
    pub(crate) log_file: Option<PathBuf>,
    /// The user of this host in commands for other hosts.
    pub(crate) barman_user: Option<String>,
    /// What a copy for a point in time does at its target, unless something else specifies it.
    pub(crate) recovery_target_action: Option<Action>,
    /// It was written for Barman.
    pub(crate) is_barmans: bool,
    /// How object stores are reached.
    pub(crate) bucket: BucketKeys,
    /// What opens the repository, if it is encrypted.
    pub(crate) keys: KeyPlaces,
    /// How much of the repository `cron` reads back on each day.
    pub(crate) verify_budget: DailyShare,
    /// The servers, in the order of the files. Some may be disabled ([`ServerConfig::errors`]).
    pub(crate) servers: Vec<ServerConfig>,
    /// The models that servers can be switched to.
    pub(crate) models: Vec<Model>,
    /// Sections that cannot be servers because of their names, and files that cannot be read.
    pub(crate) misnamed: Vec<Misnamed>,
    /// Every key of the global section, and what it does.
    pub(crate) settings: Vec<Setting>,
    /// Warnings, in the order of files and lines.
    pub(crate) notices: Vec<Notice>,
    /// The passwords in it.
    pub(crate) secrets: Secrets,
}

/// A section whose name no server can have, or a file that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misnamed {
    /// The name, or the path.
    pub(crate) name: String,
    /// What is wrong with it.
    pub(crate) problem: Problem,
}

impl Misnamed {
    /// Whether it is a file.
    pub(crate) fn is_a_file(&self) -> bool {
        self.name.starts_with('/')
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// None of the usual files exists.
    #[error("No configuration found: looked for {}", .0.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    NotFound(Vec<PathBuf>),
    /// A file or directory exists or was given explicitly, but cannot be read.
    #[error("Cannot read the configuration {}: {source}", .file.display())]
    Read {
        /// Which one.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line that is wrong.
    #[error("{origin}: {message}")]
    At {
        /// Which line.
        origin: Origin,
        /// What is wrong, and what is allowed.
        message: String,
    },
    /// Something required is missing.
    #[error("{}: {message}", .file.display())]
    Incomplete {
        /// Which file.
        file: PathBuf,
        /// What is missing.
        message: String,
    },
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        let hint = match &error {
            ConfigError::NotFound(_) => Some("Write one (the README shows how), or name it with -c FILE"),
            ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Some("Run this as the user the backups belong to")
            }
            ConfigError::Read { .. } | ConfigError::At { .. } | ConfigError::Incomplete { .. } => None,
        };
        let usage = Self::usage(error.to_string());
        match hint {
            Some(hint) => usage.hint(hint),
            None => usage,
        }
    }
}

impl Config {
    /// Where the repository is, for messages.
    pub(crate) fn shown_repository(&self) -> String {
        match &self.location {
            Some(location) => location.to_string(),
            None => self.repository.display().to_string(),
        }
    }

    /// Reads `explicit`, otherwise the first of the usual files that exists: the user's, the host's, then Barman's.
    pub(crate) fn load(explicit: Option<&Path>, home: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_with(explicit, home, None)
    }

    /// The same as if the file of `config-update` had these bytes.
    pub(crate) fn load_with(
        explicit: Option<&Path>,
        home: Option<&Path>,
        automatic: Option<&[u8]>,
    ) -> Result<Self, ConfigError> {
        let candidates = match explicit {
            Some(file) => vec![Candidate {
                // `cron` names the file that it has found to the processes that it starts.
                is_barmans_place: files::usual(home)
                    .iter()
                    .any(|usual| usual.is_barmans_place && usual.path == file),
                path: file.to_owned(),
            }],
            None => files::usual(home),
        };
        for candidate in &candidates {
            match std::fs::File::open(&candidate.path).and_then(state::bytes) {
                Ok(bytes) => return Self::parse(candidate, &bytes, home, automatic),
                Err(error)
                    if explicit.is_none()
                        && matches!(
                            error.kind(),
                            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                        ) => {}
                Err(source) => {
                    return Err(ConfigError::Read {
                        file: candidate.path.clone(),
                        source,
                    });
                }
            }
        }
        let looked_for = candidates.into_iter().map(|candidate| candidate.path);
        Err(ConfigError::NotFound(looked_for.collect()))
    }

    /// Reads a configuration of Barman that nobody has prepared for barmanfs: it names no repository.
    pub(crate) fn load_barmans(file: &Path, home: Option<&Path>) -> Result<Self, ConfigError> {
        let bytes = std::fs::read(file).map_err(|source| ConfigError::Read {
            file: file.to_owned(),
            source,
        })?;
        let main = Candidate {
            is_barmans_place: true,
            path: file.to_owned(),
        };
        let files = Files::read(&main, &bytes, home);
        Reader::new(&files).without_need_of_repository().read()
    }

    /// Parses the bytes of a main file, and reads the files that belong to it.
    fn parse(
        main: &Candidate,
        bytes: &[u8],
        home: Option<&Path>,
        automatic: Option<&[u8]>,
    ) -> Result<Self, ConfigError> {
        let mut files = Files::read(main, bytes, home);
        if let Some(repository) = files.repository() {
            files.add_automatic(&state::file(&repository, AUTOMATIC), automatic);
        }
        Reader::new(&files).read()
    }

    /// The server called `name`.
    pub(crate) fn server(&self, name: &str) -> Option<&ServerConfig> {
        self.servers.iter().find(|server| server.name.as_str() == name)
    }

    /// Refuses to delete anything of a server while a part of the configuration cannot be read: it may say that more is
    /// kept, or have the server's section. A person mends it first, so no option overrides this.
    ///
    /// # Errors
    /// What cannot be read.
    pub(crate) fn refuse_deletions(&self, server: &ServerName) -> Result<(), Error> {
        match self.misnamed.iter().find(|section| section.is_a_file()) {
            None => Ok(()),
            Some(lost) => Err(Error::usage(format!(
                "Nothing of server '{server}' is deleted, because a part of the configuration cannot be read: {}",
                lost.problem
            ))
            .hint("Mend or remove it first; 'barmanfs config check' lists all that is wrong")),
        }
    }

    /// How many lines have no effect or deserve a look, in one sentence; `None` if there are none.
    pub(crate) fn summary(&self) -> Option<String> {
        let keys = self
            .notices
            .iter()
            .filter(|notice| notice.is_without_effect)
            .count();
        let files = self.misnamed.iter().filter(|section| section.is_a_file()).count();
        let errors = self.errors().count() - files;
        let others = self.notices.len() - keys;
        let parts = [
            (errors, "error disables a server", "errors disable servers"),
            (
                files,
                "part cannot be read, so nothing is deleted",
                "parts cannot be read, so nothing is deleted",
            ),
            (keys, "key has no effect", "keys have no effect"),
            (others, "line deserves a look", "lines deserve a look"),
        ];
        let parts = parts
            .iter()
            .filter(|(number, ..)| *number > 0)
            .map(|(number, one, many)| {
                let what = if *number == 1 { one } else { many };
                format!("{number} {what}")
            });
        let parts: Vec<String> = parts.collect();
        (!parts.is_empty()).then(|| {
            format!(
                "{}: {}; 'barmanfs config check' lists them",
                self.file.display(),
                parts.join(", ")
            )
        })
    }

    /// Why servers are disabled, as lines for a log.
    pub(crate) fn errors(&self) -> impl Iterator<Item = String> {
        let servers = self.servers.iter().flat_map(|server| {
            server
                .errors
                .iter()
                .map(|problem| format!("{problem}: server {} is disabled", server.name))
        });
        let misnamed = self.misnamed.iter().map(|section| section.problem.to_string());
        let models = self.models.iter().flat_map(|model| {
            model
                .errors
                .iter()
                .map(|problem| format!("{problem}: model {} cannot be used", model.name))
        });
        servers.chain(models).chain(misnamed)
    }
}

#[cfg(test)]
pub(crate) mod tests;
