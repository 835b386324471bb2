//! The configuration: one INI file with Barman's key names.
//!
//! `[barmanfs]` names the repository; every other section is a server. A wrong value or a malformed line is
//! an error with the file, the line and the allowed values. A key without effect is a warning with its line.
//! Connection strings may contain passwords: they are never printed, and [`Secret`] keeps them out of debug
//! output.

mod ini;
mod keys;
mod limits;
mod server;
mod values;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use barmanfs_catalog::{Action, ServerName};
use keys::Known;
pub(crate) use limits::{Age, Limits, unless_zero};
pub(crate) use server::{Archiver, CreateSlot, Incremental, ServerConfig};
use tracing::level_filters::LevelFilter;
pub(crate) use values::{DailyShare, log_level, recovery_target_action};
use values::{absolute, boolean, daily_share};

use crate::error::Error;

/// The section of barmanfs itself.
const GLOBAL_SECTION: &str = "barmanfs";
/// The configuration of the whole host.
const SYSTEM_FILE: &str = "/etc/barmanfs.conf";
/// The name of a user's own configuration, in the home directory.
const USER_FILE: &str = ".barmanfs.conf";

/// A string that may contain a password. No formatter shows it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
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

/// A configuration file that was read.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Path of the file.
    pub(crate) file: PathBuf,
    /// The directory of the repository.
    pub(crate) repository: PathBuf,
    /// The log level if the command line does not set it.
    pub(crate) log_level: Option<LevelFilter>,
    /// The log file of a mount in the background.
    pub(crate) log_file: Option<PathBuf>,
    /// What a copy for a point in time does at its target, unless something else specifies it.
    pub(crate) recovery_target_action: Option<Action>,
    /// How much of the repository `cron` reads back on each day.
    pub(crate) verify_budget: DailyShare,
    /// The servers, in the order of the file.
    pub(crate) servers: Vec<ServerConfig>,
    /// Warnings about lines without effect: complete messages with file and line number.
    pub(crate) warnings: Vec<String>,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// None of the usual files exists.
    #[error("No configuration found: looked for {}", .0.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and "))]
    NotFound(Vec<PathBuf>),
    /// The file exists or was given explicitly, but cannot be read.
    #[error("Cannot read the configuration {}: {source}", .file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line that is wrong.
    #[error("{}:{line}: {message}", .file.display())]
    At {
        /// Which file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
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
    /// Reads `explicit`, otherwise the user's file if it exists, otherwise the host's.
    pub(crate) fn load(explicit: Option<&Path>, home: Option<&Path>) -> Result<Self, ConfigError> {
        let candidates = match explicit {
            Some(file) => vec![file.to_owned()],
            None => home
                .map(|home| home.join(USER_FILE))
                .into_iter()
                .chain([SYSTEM_FILE.into()])
                .collect(),
        };
        for file in &candidates {
            match std::fs::read(file) {
                Ok(bytes) => return Self::parse(file, &bytes),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && explicit.is_none() => {}
                Err(source) => {
                    return Err(ConfigError::Read {
                        file: file.clone(),
                        source,
                    });
                }
            }
        }
        Err(ConfigError::NotFound(candidates))
    }

    /// Parses the bytes of `file`.
    pub(crate) fn parse(file: &Path, bytes: &[u8]) -> Result<Self, ConfigError> {
        let at = |line, message| ConfigError::At {
            file: file.to_owned(),
            line,
            message,
        };
        let text = str::from_utf8(bytes).map_err(|error| {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            at(
                1 + valid.iter().filter(|b| **b == b'\n').count(),
                "The line is not UTF-8 text".to_owned(),
            )
        })?;
        let sections = ini::parse(text).map_err(|error| at(error.line, error.message))?;
        Reader::new(file).read(&sections)
    }

    /// The server called `name`.
    pub(crate) fn server(&self, name: &str) -> Option<&ServerConfig> {
        self.servers.iter().find(|server| server.name.as_str() == name)
    }
}

/// Converts sections into a [`Config`], and collects warnings.
struct Reader<'a> {
    file: &'a Path,
    /// With their line numbers.
    warnings: Vec<(usize, String)>,
}

impl<'a> Reader<'a> {
    fn new(file: &'a Path) -> Self {
        Self {
            file,
            warnings: Vec::new(),
        }
    }

    fn read(mut self, sections: &[ini::Section]) -> Result<Config, ConfigError> {
        let mut config = Config {
            file: self.file.to_owned(),
            repository: PathBuf::new(),
            log_level: None,
            log_file: None,
            recovery_target_action: None,
            verify_budget: DailyShare::default(),
            servers: Vec::new(),
            warnings: Vec::new(),
        };
        let mut defaults = Vec::new();
        let (global, servers): (Vec<_>, Vec<_>) = sections.iter().partition(|s| s.name == GLOBAL_SECTION);
        self.warn_repeated(global.iter().flat_map(|section| &section.entries));
        for entry in global.iter().flat_map(|section| &section.entries) {
            self.global(&mut config, &mut defaults, entry)?;
        }
        for section in servers {
            self.server(&mut config, &defaults, section)?;
        }
        if config.repository.as_os_str().is_empty() {
            return Err(ConfigError::Incomplete {
                file: self.file.to_owned(),
                message:
                    "[barmanfs] has no 'repository': set it to the directory that shall hold the backups"
                        .to_owned(),
            });
        }
        self.warnings.sort();
        config.warnings = self.warnings.into_iter().map(|(_, warning)| warning).collect();
        Ok(config)
    }

    fn global<'e>(
        &mut self,
        config: &mut Config,
        defaults: &mut Vec<&'e ini::Entry>,
        entry: &'e ini::Entry,
    ) -> Result<(), ConfigError> {
        match keys::known(&entry.key) {
            Known::Global => self.set_global(config, entry),
            Known::ServerOrGlobal => {
                defaults.push(entry);
                Ok(())
            }
            Known::Server => Err(self.at(
                entry.line,
                format!(
                    "'{}' belongs into a server's section, not into [{GLOBAL_SECTION}]",
                    entry.key
                ),
            )),
            known => {
                self.warn_useless(entry, known);
                Ok(())
            }
        }
    }

    fn set_global(&self, config: &mut Config, entry: &ini::Entry) -> Result<(), ConfigError> {
        let wrong = |message: String| self.at(entry.line, format!("'{}' {message}", entry.key));
        match entry.key.as_str() {
            "repository" => config.repository = absolute(&entry.value).map_err(wrong)?,
            "log_file" => config.log_file = Some(absolute(&entry.value).map_err(wrong)?),
            "recovery_target_action" => {
                config.recovery_target_action = Some(recovery_target_action(&entry.value).map_err(wrong)?);
            }
            "verify_budget" => config.verify_budget = daily_share(&entry.value).map_err(wrong)?,
            _ => config.log_level = Some(log_level(&entry.value).map_err(wrong)?),
        }
        Ok(())
    }

    fn server(
        &mut self,
        config: &mut Config,
        defaults: &[&ini::Entry],
        section: &ini::Section,
    ) -> Result<(), ConfigError> {
        // Sections of Barman and of Python's reader that are not servers.
        if matches!(section.name.as_str(), "barman" | "DEFAULT") {
            let message = format!(
                "[{}] has no meaning here: put it into [{GLOBAL_SECTION}]",
                section.name
            );
            return Err(self.at(section.line, message));
        }
        let name =
            ServerName::from_str(&section.name).map_err(|error| self.at(section.line, error.to_string()))?;
        if section
            .entries
            .iter()
            .any(|e| e.key == "model" && boolean(&e.value) == Ok(true))
        {
            self.warn(
                section.line,
                format!("[{name}] is a model: models are not supported, the section is ignored"),
            );
            return Ok(());
        }
        if config.servers.iter().any(|server| server.name == name) {
            return Err(self.at(
                section.line,
                format!("Server [{name}] is there twice: put all its keys into one section"),
            ));
        }
        self.warn_repeated(section.entries.iter());
        let mut server = ServerConfig::new(name);
        for entry in defaults.iter().copied().chain(&section.entries) {
            match keys::known(&entry.key) {
                Known::Server | Known::ServerOrGlobal => server
                    .set(&entry.key, &entry.value)
                    .map_err(|message| self.at(entry.line, format!("'{}' {message}", entry.key)))?,
                Known::Global => {
                    let message = format!(
                        "'{}' belongs into [{GLOBAL_SECTION}], not into a server's section",
                        entry.key
                    );
                    return Err(self.at(entry.line, message));
                }
                known => self.warn_useless(entry, known),
            }
        }
        config.servers.push(server);
        Ok(())
    }

    fn at(&self, line: usize, message: String) -> ConfigError {
        ConfigError::At {
            file: self.file.to_owned(),
            line,
            message,
        }
    }

    fn warn(&mut self, line: usize, message: impl fmt::Display) {
        self.warnings
            .push((line, format!("{}:{line}: {message}", self.file.display())));
    }

    fn warn_useless(&mut self, entry: &ini::Entry, known: Known) {
        let key = &entry.key;
        match (known, keys::nearest(key)) {
            (Known::NoEffect(why), _) => self.warn(entry.line, format!("'{key}' has no effect: {why}")),
            (_, Some(meant)) => self.warn(
                entry.line,
                format!("Unknown key '{key}' ignored: did you mean '{meant}'?"),
            ),
            (_, None) => self.warn(entry.line, format!("Unknown key '{key}' ignored")),
        }
    }

    fn warn_repeated<'e>(&mut self, entries: impl Iterator<Item = &'e ini::Entry>) {
        let mut seen = std::collections::HashMap::new();
        for entry in entries {
            if let Some(first) = seen.insert(entry.key.as_str(), entry.line) {
                self.warn(
                    entry.line,
                    format!("'{}' was already set on line {first}: this one counts", entry.key),
                );
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
