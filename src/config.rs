//! The configuration: one INI file with Barman's key names.
//!
//! `[barmanfs]` names the repository; every other section is a server. A wrong value or a malformed line
//! is an error with file, line and what is allowed; a key that has no effect is a warning with its line.
//! Connection strings may hold passwords: they are never printed, and [`Secret`] keeps them out of
//! debug output.

mod ini;
mod keys;
mod limits;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use barmanfs_catalog::{Action, ServerName};
use barmanfs_fs::CloneLimits;
use keys::Known;
pub(crate) use limits::{Age, Limits};
use tracing::level_filters::LevelFilter;

use crate::error::Error;
use crate::postgres::{MAX_RATE_KIB, is_slot_name};

/// The section of barmanfs itself.
const GLOBAL_SECTION: &str = "barmanfs";
/// Where the configuration of the whole host is.
const SYSTEM_FILE: &str = "/etc/barmanfs.conf";
/// The name of a user's own configuration, in the home directory.
const USER_FILE: &str = ".barmanfs.conf";

/// The name of streams where none is given. It goes into `synchronous_standby_names` as it is, without quotes.
const STREAMING_ARCHIVER_NAME: &str = "barmanfs_receive_wal";

/// A string that may hold a password: shown by no formatter.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// The text itself, for the connection alone.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// Whether WAL of a server is known to come in through `wal-archive`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Archiver {
    /// Found out at each backup: the server archives, and a segment of it has arrived.
    #[default]
    Auto,
    /// Backups rely on it and wait for their segments.
    On,
    /// Backups bring their own WAL.
    Off,
}

/// Whether backups of a server are incremental. Either way each is stored as a full one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Incremental {
    /// Where the server can (PostgreSQL 17 and later, summarize_wal = on); otherwise it sends everything.
    #[default]
    Auto,
    /// Where the server cannot, the backup fails.
    Always,
    /// The server sends everything.
    Never,
}

/// What `receive-wal` does when its replication slot is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum CreateSlot {
    /// It fails: somebody creates it with `receive-wal --create-slot`.
    #[default]
    Manual,
    /// It creates it.
    Auto,
}

/// One server's section.
#[derive(Debug, Clone)]
pub(crate) struct ServerConfig {
    /// The section's name.
    pub(crate) name: ServerName,
    /// Free text for the lists.
    pub(crate) description: Option<String>,
    /// `active = off`: left out of `all`, refused for backups.
    pub(crate) active: bool,
    /// How to connect for SQL.
    pub(crate) conninfo: Option<Secret>,
    /// How to connect for replication, when that differs.
    pub(crate) streaming_conninfo: Option<Secret>,
    /// How to connect to the primary for SQL, where the server is a standby.
    pub(crate) primary_conninfo: Option<Secret>,
    /// See [`Archiver`].
    pub(crate) archiver: Archiver,
    /// See [`Incremental`].
    pub(crate) incremental: Incremental,
    /// WAL is received as a stream: `receive-wal` is, or should be, running.
    pub(crate) streaming_archiver: bool,
    /// `application_name` of the stream, by which `synchronous_standby_names` knows it.
    pub(crate) streaming_archiver_name: String,
    /// The replication slot of the stream.
    pub(crate) slot_name: Option<String>,
    /// See [`CreateSlot`].
    pub(crate) create_slot: CreateSlot,
    /// Start backups with a fast checkpoint.
    pub(crate) immediate_checkpoint: bool,
    /// Limit of a backup's transfer, in kB/s.
    pub(crate) bandwidth_limit_kb: Option<u32>,
    /// `application_name` of the backup's connection, when the connection string shall not decide.
    pub(crate) streaming_backup_name: Option<String>,
    /// What its clones may take.
    pub(crate) clone_limits: CloneLimits,
    /// Where PostgreSQL's programs are looked for first.
    pub(crate) path_prefix: Option<PathBuf>,
    /// Complete backups that no deletion goes below.
    pub(crate) minimum_redundancy: usize,
    /// What `check` holds it against.
    pub(crate) limits: Limits,
}

impl ServerConfig {
    fn new(name: ServerName) -> Self {
        Self {
            name,
            description: None,
            active: true,
            conninfo: None,
            streaming_conninfo: None,
            primary_conninfo: None,
            archiver: Archiver::Auto,
            incremental: Incremental::Auto,
            streaming_archiver: false,
            streaming_archiver_name: STREAMING_ARCHIVER_NAME.to_owned(),
            slot_name: None,
            create_slot: CreateSlot::Manual,
            immediate_checkpoint: false,
            bandwidth_limit_kb: None,
            streaming_backup_name: None,
            clone_limits: CloneLimits::default(),
            path_prefix: None,
            minimum_redundancy: 0,
            limits: Limits::default(),
        }
    }

    /// How to connect for replication.
    pub(crate) fn replication_conninfo(&self) -> Option<&Secret> {
        self.streaming_conninfo.as_ref().or(self.conninfo.as_ref())
    }

    /// The same, where there must be one.
    pub(crate) fn require_replication_conninfo(&self) -> Result<&Secret, Error> {
        self.replication_conninfo().ok_or_else(|| {
            Error::usage(format!("Server '{}' has no connection string", self.name)).hint(format!(
                "Add a line like 'conninfo = host=db1 user=barmanfs' to its section [{}]",
                self.name
            ))
        })
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "description" => self.description = given(value),
            "active" => self.active = boolean(value)?,
            "conninfo" => self.conninfo = given(value).map(Secret),
            "streaming_conninfo" => self.streaming_conninfo = given(value).map(Secret),
            "primary_conninfo" => self.primary_conninfo = given(value).map(Secret),
            "archiver" => {
                self.archiver = match value.to_lowercase().as_str() {
                    "auto" => Archiver::Auto,
                    _ => match boolean(value)
                        .map_err(|_| format!("is '{value}': allowed are on, off and auto"))?
                    {
                        true => Archiver::On,
                        false => Archiver::Off,
                    },
                };
            }
            "incremental" => {
                self.incremental = <Incremental as clap::ValueEnum>::from_str(value, true)
                    .map_err(|_| format!("is '{value}': allowed are auto, always and never"))?;
            }
            "streaming_archiver" => self.streaming_archiver = boolean(value)?,
            "streaming_archiver_name" => {
                self.streaming_archiver_name =
                    given(value).unwrap_or_else(|| STREAMING_ARCHIVER_NAME.to_owned());
            }
            "slot_name" => self.slot_name = given(value).map(slot_name).transpose()?,
            "create_slot" => {
                self.create_slot = match value.to_lowercase().as_str() {
                    "manual" => CreateSlot::Manual,
                    "auto" => CreateSlot::Auto,
                    _ => return Err(format!("is '{value}': allowed are manual and auto")),
                };
            }
            "immediate_checkpoint" => self.immediate_checkpoint = boolean(value)?,
            "bandwidth_limit" => self.bandwidth_limit_kb = rate(value)?,
            "streaming_backup_name" => self.streaming_backup_name = given(value),
            "clone_max_size" => self.clone_limits.max_bytes = size(value)?,
            "clone_max_count" => self.clone_limits.max_count = count(value)?,
            "minimum_redundancy" => self.minimum_redundancy = limits::redundancy(value)?,
            "last_backup_maximum_age" => self.limits.backup_age = limits::age(value)?,
            "last_backup_minimum_size" => self.limits.backup_size = limits::si_size(value)?,
            "last_wal_maximum_age" => self.limits.wal_age = limits::age(value)?,
            "path_prefix" => self.path_prefix = given(value).map(|value| absolute(&value)).transpose()?,
            // The table of keys and this match are kept in step by a test.
            _ => return Err("has no meaning here".to_owned()),
        }
        Ok(())
    }
}

/// A configuration file, read.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The file it came from.
    pub(crate) file: PathBuf,
    /// The directory that holds everything.
    pub(crate) repository: PathBuf,
    /// How much is logged, when the command line does not say.
    pub(crate) log_level: Option<LevelFilter>,
    /// Where a mount in the background logs.
    pub(crate) log_file: Option<PathBuf>,
    /// What a copy made for a point in time does there, when nothing else says.
    pub(crate) recovery_target_action: Option<Action>,
    /// The servers, in the order of the file.
    pub(crate) servers: Vec<ServerConfig>,
    /// What was read and has no effect: complete lines with file and line number.
    pub(crate) warnings: Vec<String>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// No file at any of the usual places.
    #[error("No configuration found: looked for {}", .0.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and "))]
    NotFound(Vec<PathBuf>),
    /// The file is there, or was asked for, and cannot be read.
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
        /// What is wrong and what is allowed.
        message: String,
    },
    /// Something that must be there is not.
    #[error("{}: {message}", .file.display())]
    Incomplete {
        /// Which file.
        file: PathBuf,
        /// What is missing.
        message: String,
    },
}

impl Config {
    /// Reads `explicit`, or the user's file when there is one, or the host's.
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

    /// Reads the bytes of `file`.
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

/// Turns sections into a [`Config`], collecting warnings on the way.
struct Reader<'a> {
    file: &'a Path,
    /// With their lines.
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
        // The sections of Barman and of Python's reader that are no servers.
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

/// Barman writes "not set" as an empty value or `None`.
fn given(value: &str) -> Option<String> {
    (!value.is_empty() && value != "None").then(|| value.to_owned())
}

fn boolean(value: &str) -> Result<bool, String> {
    match value.to_lowercase().as_str() {
        "on" | "true" | "yes" | "t" | "y" | "1" => Ok(true),
        "off" | "false" | "no" | "f" | "n" | "0" => Ok(false),
        _ => Err(format!("is '{value}': allowed are on and off")),
    }
}

fn slot_name(name: String) -> Result<String, String> {
    if is_slot_name(&name) {
        Ok(name)
    } else {
        Err(format!(
            "is '{name}': it may have up to 63 lower-case letters, digits and underscores"
        ))
    }
}

fn rate(value: &str) -> Result<Option<u32>, String> {
    // Barman writes "no limit" as 0.
    match given(value).map(|value| value.parse::<u32>()) {
        None | Some(Ok(0)) => Ok(None),
        Some(Ok(rate)) if MAX_RATE_KIB.contains(&rate) => Ok(Some(rate)),
        Some(_) => Err(format!(
            "is '{value}': allowed is a number of kB per second from {} to {}, or 0 for no limit",
            MAX_RATE_KIB.start(),
            MAX_RATE_KIB.end()
        )),
    }
}

fn size(value: &str) -> Result<Option<u64>, String> {
    match given(value).map(|value| crate::cli::size(&value)) {
        None | Some(Ok(0)) => Ok(None),
        Some(Ok(bytes)) => Ok(Some(bytes)),
        Some(Err(_)) => Err(format!(
            "is '{value}': allowed is a size like 500M, 50G or 2T, or 0 for no limit"
        )),
    }
}

fn count(value: &str) -> Result<usize, String> {
    given(value).map_or(Ok(CloneLimits::DEFAULT_COUNT), |value| {
        value
            .parse()
            .map_err(|_| format!("is '{value}': allowed is a whole number"))
    })
}

fn absolute(value: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!("is '{value}': allowed is an absolute path"))
    }
}

/// PostgreSQL's words for what recovery does at its target.
pub(crate) fn recovery_target_action(value: &str) -> Result<Action, String> {
    value
        .to_lowercase()
        .parse()
        .map_err(|_| format!("is '{value}': allowed are promote, pause and shutdown"))
}

/// Barman's level names, and those of the log itself.
pub(crate) fn log_level(value: &str) -> Result<LevelFilter, String> {
    match value.to_lowercase().as_str() {
        "off" | "none" => Ok(LevelFilter::OFF),
        "critical" | "error" => Ok(LevelFilter::ERROR),
        "warning" | "warn" => Ok(LevelFilter::WARN),
        "info" | "notset" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(format!(
            "is '{value}': allowed are error, warning, info, debug, trace and off"
        )),
    }
}

#[cfg(test)]
pub(crate) mod tests;
