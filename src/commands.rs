//! The commands, one module each, and their shared code.

pub(crate) mod archive_wal;
pub(crate) mod backup;
pub(crate) mod check;
pub(crate) mod check_wal_archive;
pub(crate) mod clone;
pub(crate) mod config;
pub(crate) mod config_switch;
mod copy;
pub(crate) mod cron;
pub(crate) mod delete;
pub(crate) mod diagnose;
pub(crate) mod explain;
mod export;
pub(crate) mod get_wal;
pub(crate) mod history;
pub(crate) mod import;
pub(crate) mod index_wal;
pub(crate) mod init;
pub(crate) mod keep;
mod key;
pub(crate) mod list_backups;
pub(crate) mod list_files;
pub(crate) mod list_processes;
pub(crate) mod list_servers;
pub(crate) mod metrics;
pub(crate) mod mount;
pub(crate) mod nothing_to_do;
pub(crate) mod put_wal;
pub(crate) mod quarantine;
pub(crate) mod rebuild_catalog;
pub(crate) mod receive_wal;
pub(crate) mod replication_status;
pub(crate) mod restore;
pub(crate) mod retention;
pub(crate) mod show_backup;
pub(crate) mod show_servers;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod sweep;
pub(crate) mod switch_wal;
pub(crate) mod sync;
pub(crate) mod terminate_process;
pub(crate) mod timeline;
pub(crate) mod umount;
pub(crate) mod verify;
pub(crate) mod version;
pub(crate) mod wal_archive;
pub(crate) mod wal_restore;

use std::path::PathBuf;
use std::str::FromStr;

use barmanfs_catalog::retention::RetentionRules;
use barmanfs_catalog::{Backup, BackupSelector, Error as CatalogError, Repository, ServerName};
use tracing::level_filters::LevelFilter;

use crate::cli::restore::AgentArgs;
use crate::cli::wal::WalRestoreArgs;
use crate::cli::{Cli, Command, GlobalOptions};
use crate::config::{Config, ConfigError, Misnamed, ServerConfig};
use crate::error::{Error, Outcome};
use crate::logging::{self, LogFile};
use crate::output::{self, Form, Format, Kept, Output};
use crate::ownership;
use crate::place::Place;

/// The word for all servers on the command line.
const ALL: &str = "all";

/// The name under which this program is installed on another host.
const OWN_NAME: &str = "barmanfs";

/// The environment of every command.
#[derive(Debug)]
pub(crate) struct App {
    /// The configuration.
    pub(crate) config: Config,
    /// Where the repository is.
    pub(crate) place: Place,
    /// The options of every command.
    pub(crate) options: GlobalOptions,
    /// Standard output.
    pub(crate) out: Output,
}

/// Runs the requested command, and prints in this form.
pub(crate) fn run(cli: Cli, form: Form) -> Result<Outcome, Error> {
    output::choose_colours(cli.global.color);
    let form = match (&cli.command, cli.global.format) {
        // It has no other form.
        (Command::Diagnose(_), None) => Form::Json,
        _ => form,
    };
    let mut out = Output::stdout(form);
    if form == Form::Json && cli.global.format == Some(Format::Json) {
        let error =
            Error::usage("--json is barmanfs's own JSON, --format json Barman's: only one can be printed");
        return out.end(Err(error), Kept::default());
    }
    let done = match cli.command {
        Command::Version(json) => version::run(&mut out, json),
        Command::Umount(args) => umount::run(&args),
        // The configuration is on the other host, and so are the backups.
        Command::Agent(args) if args.packs.is_none() => agent(&args),
        Command::Init(args) => init::run(&mut out, &cli.global, &args),
        // It works without a readable configuration, too.
        Command::Diagnose(_) => {
            let config = load(&cli.global);
            if let Ok(config) = &config {
                crate::keys::use_those_of(config);
                start_log(&cli.global, config, false, form);
            }
            diagnose::run(&mut out, &cli.global, config.as_ref())
        }
        // The archive is on another host, and so is its configuration.
        Command::WalRestore(args) => restore_wal(&cli.global, &args),
        Command::WalArchive(args) if args.remote.is_some() => wal_archive::send(&cli.global, &args),
        command => match configured(&cli.global, &command, form) {
            Ok(config) => {
                let options = cli.global;
                let place = Place::of(&config);
                let mut app = App {
                    config,
                    place,
                    options,
                    out,
                };
                let done = app.run(command);
                out = app.out;
                done
            }
            Err(error) => Err(error),
        },
    };
    out.end(done, logging::take_kept())
}

/// Reads the configuration and starts the log.
fn configured(options: &GlobalOptions, command: &Command, form: Form) -> Result<Config, Error> {
    let config = load(options)?;
    crate::keys::use_those_of(&config);
    let mention = Mention::by(command);
    // PostgreSQL runs these for every segment, so unchanging facts are not logged each time.
    let repetitive = is_repetitive(command);
    start_log(options, &config, repetitive, form);
    warn_of(&config, mention);
    Ok(config)
}

impl App {
    /// The configuration as it is now.
    fn reload(&self) -> Result<Config, Error> {
        Ok(load(&self.options)?)
    }

    /// The configuration as it would be with this text in the file of `config-update`.
    fn reload_with(&self, automatic: &str) -> Result<Config, ConfigError> {
        Config::load_with(
            self.options.config.as_deref(),
            home().as_deref(),
            Some(automatic.as_bytes()),
        )
    }

    fn run(&mut self, command: Command) -> Result<Outcome, Error> {
        match command {
            Command::Backup(args) => backup::run(self, &args),
            Command::ReceiveWal(args) => receive_wal::run(self, &args),
            Command::WalArchive(args) => wal_archive::run(self, &args),
            Command::PutWal(args) => put_wal::run(self, &args),
            Command::ArchiveWal(args) => archive_wal::run(self, &args),
            Command::GetWal(args) => get_wal::run(self, &args),
            Command::WalRestore(args) => restore_wal(&self.options, &args),
            Command::SwitchWal(args) => switch_wal::run(self, &args),
            Command::ListServers(args) => list_servers::run(self, args),
            Command::ReplicationStatus(args) => replication_status::run(self, &args),
            Command::ListProcesses(args) => list_processes::run(self, &args),
            Command::TerminateProcess(args) => terminate_process::run(self, &args),
            Command::Status(args) => status::run(self, &args),
            Command::ShowServers(args) => show_servers::run(self, &args),
            Command::ListBackups(args) => list_backups::run(self, &args),
            Command::ShowBackup(args) => show_backup::run(self, &args),
            Command::ListFiles(args) => list_files::run(self, &args),
            Command::Stats(args) => stats::run(self, &args),
            Command::Timeline(args) => timeline::run(self, &args),
            Command::Explain(args) => explain::run(self, &args),
            Command::History(args) => history::run(self, &args),
            Command::Restore(args) => restore::run(self, &args),
            Command::Catchup(args) => restore::catch_up(self, &args),
            Command::Patroni(command) => restore::patroni(self, &command),
            Command::Mount(args) => mount::run(self, args),
            Command::Umount(args) => umount::run(&args),
            Command::Agent(args) => match &args.packs {
                None => agent(&args),
                Some(server) => {
                    self.place.refuse_remote("A passive node")?;
                    crate::sync::serve::run(&self.config.repository, server).map(|()| Outcome::Done)
                }
            },
            Command::Init(args) => init::run(&mut self.out, &self.options, &args),
            Command::Export(args) => export::run(self, &args),
            Command::Clone(command) => clone::run(self, &command),
            Command::Check(args) => check::run(self, &args),
            Command::CheckWalArchive(args) => check_wal_archive::run(self, &args),
            Command::Metrics(args) => metrics::run(self, &args),
            Command::Diagnose(_) => diagnose::run(&mut self.out, &self.options, Ok(&self.config)),
            Command::Config(command) => config::run(self, &command),
            Command::ConfigSwitch(args) => config_switch::switch(self, &args),
            Command::ConfigUpdate(args) => config_switch::update(self, &args),
            Command::Verify(args) => verify::run(self, &args),
            Command::Cron(args) => cron::run(self, &args),
            Command::Delete(args) => delete::run(self, &args),
            Command::Retention(args) => retention::run(self, &args),
            Command::Keep(args) => keep::run(self, &args),
            Command::Sweep(args) => sweep::run(self, &args),
            Command::Key(args) => key::run(self, &args),
            Command::Encrypt(json) => key::encrypt(self, json),
            Command::Copy(args) => copy::run(self, &args),
            Command::Sync(args) => sync::run(self, &args),
            Command::SyncBackup(args) => sync::backup(self, &args),
            Command::SyncWals(args) => sync::wals(self, &args),
            Command::SyncInfo(args) => sync::info(self, &args),
            Command::Quarantine(args) => quarantine::run(self, &args),
            Command::RebuildCatalog(args) => rebuild_catalog::run(self, &args),
            Command::Import(args) => import::run(self, &args),
            Command::IndexWal(args) => index_wal::run(self, &args),
            Command::NothingToDo(args) => nothing_to_do::run(self, &args),
            Command::Version(json) => version::run(&mut self.out, json),
        }
    }

    /// The repository, for reading.
    pub(crate) fn repository(&self) -> Result<Repository, Error> {
        Ok(self.place.open()?)
    }

    /// The repository; `None` before the first backup makes it, which is not an error for what only looks.
    pub(crate) fn repository_if_made(&self) -> Result<Option<Repository>, Error> {
        match self.place.open() {
            Err(CatalogError::NoRepository { .. }) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// The repository, for those who want to know what is really stored: in an object store, past the cache of this host.
    pub(crate) fn repository_as_stored(&self) -> Result<Repository, Error> {
        Ok(self.place.open_uncached()?)
    }

    /// The repository, for writing. Fails for a user whose files the repository's owner could not use
    /// afterwards.
    pub(crate) fn repository_for_writing(&self) -> Result<Repository, Error> {
        self.refuse_foreign_root()?;
        self.repository()
    }

    /// See [`ownership::refuse_foreign_root`].
    pub(crate) fn refuse_foreign_root(&self) -> Result<(), Error> {
        ownership::refuse_foreign_root(&self.config.repository)
    }

    /// The section of the server called `name`.
    pub(crate) fn configured(&self, name: &str) -> Result<&ServerConfig, Error> {
        self.config
            .server(name)
            .ok_or_else(|| self.unknown_server(name, &[]))
    }

    /// The sections with these names, or all, that cannot be servers because of their names.
    pub(crate) fn misnamed<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = &'a Misnamed> {
        let is_named = |name: &str| names.iter().any(|asked| asked == ALL || asked == name);
        let misnamed = self.config.misnamed.iter();
        misnamed.filter(move |section| is_named(&section.name))
    }

    /// The servers with these names, each once. Inactive ones are included only by their own name.
    pub(crate) fn configured_servers(&self, names: &[String]) -> Result<Vec<ServerConfig>, Error> {
        let mut servers: Vec<ServerConfig> = Vec::new();
        for name in names {
            let named: Vec<&ServerConfig> = match name.as_str() {
                ALL => self
                    .config
                    .servers
                    .iter()
                    .filter(|server| server.active)
                    .collect(),
                name => vec![self.configured(name)?],
            };
            for server in named {
                if servers.iter().all(|known| known.name != server.name) {
                    servers.push(server.clone());
                }
            }
        }
        if servers.is_empty() {
            return Err(Error::usage(format!(
                "No active server in {}",
                self.config.file.display()
            )));
        }
        Ok(servers)
    }

    /// The server called `name`: from the configuration or, if it has been removed there, from the
    /// repository.
    pub(crate) fn known_server(&self, repository: &Repository, name: &str) -> Result<ServerName, Error> {
        if let Some(server) = self.config.server(name) {
            return Ok(server.name.clone());
        }
        let mut stored = repository.servers()?;
        let is_known = |stored: &[ServerName]| stored.iter().any(|server| server.as_str() == name);
        if !is_known(&stored) && repository.adopt_unknown_packs()? {
            stored = repository.servers()?;
        }
        match stored.iter().find(|server| server.as_str() == name) {
            Some(server) => Ok(server.clone()),
            None => Err(self.unknown_server(name, &stored)),
        }
    }

    /// The servers that match `name`: one server or, for `all`, those of the configuration followed by the
    /// others in the repository.
    pub(crate) fn known_servers(
        &self,
        repository: &Repository,
        name: &str,
    ) -> Result<Vec<ServerName>, Error> {
        if name != ALL {
            return Ok(vec![self.known_server(repository, name)?]);
        }
        let mut servers: Vec<ServerName> = self
            .config
            .servers
            .iter()
            .map(|server| server.name.clone())
            .collect();
        for server in repository.servers()? {
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        Ok(servers)
    }

    /// The retention rules of a server. A server that is no longer configured has none.
    pub(crate) fn retention_rules(&self, server: &ServerName) -> RetentionRules {
        self.config
            .server(server.as_str())
            .map(ServerConfig::retention_rules)
            .unwrap_or_default()
    }

    /// The backup of `server` that `selector` selects.
    pub(crate) fn backup(
        &self,
        repository: &Repository,
        server: &ServerName,
        selector: &str,
    ) -> Result<Backup, Error> {
        let selector = BackupSelector::from_str(selector).map_err(|error| Error::usage(error.to_string()))?;
        repository.backup(server, &selector).map_err(|error| {
            Error::from(error).hint(format!("'barmanfs list-backups {server}' shows those there are"))
        })
    }

    fn unknown_server(&self, name: &str, stored: &[ServerName]) -> Error {
        if let Some(section) = self.config.misnamed.iter().find(|section| section.name == name) {
            return Error::usage(section.problem.to_string());
        }
        let configured = self.config.servers.iter().map(|server| &server.name);
        let mut names: Vec<&str> = configured.chain(stored).map(ServerName::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let hint = match names.as_slice() {
            [] => format!("Add a section [{name}] to {}", self.config.file.display()),
            names => format!("There are: {}", names.join(", ")),
        };
        let unread = self.config.misnamed.iter().find(|section| section.is_a_file());
        let hint = unread.map_or(hint, |file| {
            format!("It may be in a file that cannot be read: {}", file.problem)
        });
        Error::usage(format!(
            "Server '{name}' is not in {}",
            self.config.file.display()
        ))
        .hint(hint)
    }
}

fn load(options: &GlobalOptions) -> Result<Config, ConfigError> {
    Config::load(options.config.as_deref(), home().as_deref())
}

fn home() -> Option<PathBuf> {
    let home = std::env::var_os("HOME");
    home.filter(|home| !home.is_empty()).map(PathBuf::from)
}

/// How much a command says about the lines of the configuration that it cannot obey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mention {
    /// Each line.
    All,
    /// Their number.
    Number,
    /// Nothing.
    Nothing,
}

impl Mention {
    fn by(command: &Command) -> Self {
        match command {
            Command::Check(_) | Command::Backup(_) | Command::ShowServers(_) => Self::All,
            // cron would send a mail every minute. The other one prints them anyway.
            Command::Cron(_) | Command::Config(_) => Self::Nothing,
            command if is_repetitive(command) => Self::Nothing,
            _ => Self::Number,
        }
    }
}

/// Logs what the configuration has that is not obeyed.
fn warn_of(config: &Config, mention: Mention) {
    match mention {
        Mention::All => {
            config
                .notices
                .iter()
                .for_each(|notice| tracing::warn!("{notice}"));
            config.errors().for_each(|error| tracing::error!("{error}"));
        }
        Mention::Number => {
            if let Some(summary) = config.summary() {
                tracing::warn!("{summary}");
            }
        }
        Mention::Nothing => {}
    }
}

/// Whether PostgreSQL runs the command for every segment.
fn is_repetitive(command: &Command) -> bool {
    matches!(
        command,
        Command::WalArchive(_) | Command::PutWal(_) | Command::GetWal(_)
    )
}

/// Starts the log of a command that reads no configuration.
fn start_client_log(options: &GlobalOptions) {
    logging::start(asked_level(options).unwrap_or(LevelFilter::WARN), None, false);
}

fn restore_wal(options: &GlobalOptions, args: &WalRestoreArgs) -> Result<Outcome, Error> {
    start_client_log(options);
    let config = options.config.as_ref().map(|path| path.display().to_string());
    wal_restore::run(&args.fetch, None, OWN_NAME, config)
}

fn agent(args: &AgentArgs) -> Result<Outcome, Error> {
    crate::restore::agent::engine::run(args.join.as_deref()).map(|()| Outcome::Done)
}

/// Starts the log. A log file that cannot be opened stops nothing.
fn start_log(options: &GlobalOptions, config: &Config, repetitive: bool, form: Form) {
    let stderr = level(options, config, repetitive);
    let opened = config
        .log_file
        .as_ref()
        .map(|path| LogFile::open(path, &config.repository).map_err(|error| (path, error)));
    let level = config.log_level.unwrap_or(LevelFilter::INFO);
    let keep = form == Form::BarmanJson;
    match opened {
        Some(Ok(file)) => logging::start(stderr, Some((file, level.max(stderr))), keep),
        None => logging::start(stderr, None, keep),
        Some(Err((path, error))) => {
            logging::start(stderr, None, keep);
            if !repetitive {
                tracing::warn!("Nothing is logged to {}: {error}", path.display());
            }
        }
    }
}

/// The command line overrides the configuration.
fn level(options: &GlobalOptions, config: &Config, repetitive: bool) -> LevelFilter {
    let usual = if repetitive {
        LevelFilter::WARN
    } else {
        LevelFilter::INFO
    };
    asked_level(options).or(config.log_level).unwrap_or(usual)
}

fn asked_level(options: &GlobalOptions) -> Option<LevelFilter> {
    match (options.quiet, options.verbose) {
        (true, _) => Some(LevelFilter::WARN),
        _ if options.debug => Some(LevelFilter::DEBUG),
        (false, 0) => options.log_level,
        (false, 1) => Some(LevelFilter::DEBUG),
        (false, _) => Some(LevelFilter::TRACE),
    }
}
