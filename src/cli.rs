//! The command line and its help.
//!
//! Names and words are Barman's where Barman has them. The help of every command ends with examples, and the
//! list of commands is grouped by a DBA's tasks. Tests verify both.

pub(crate) mod backup;
pub(crate) mod catchup;
pub(crate) mod check;
pub(crate) mod clone;
pub(crate) mod config;
pub(crate) mod copy;
pub(crate) mod export;
pub(crate) mod history;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod keys;
pub(crate) mod metrics;
pub(crate) mod mount;
pub(crate) mod patroni;
pub(crate) mod quarantine;
pub(crate) mod restore;
pub(crate) mod retention;
pub(crate) mod server;
pub(crate) mod sync;
pub(crate) mod upkeep;
pub(crate) mod wal;

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::barman::grammar::NOTHING_TO_DO;
use crate::output::{ColorChoice, Format};

/// The commands by task, for the help. A test keeps them in step with [`Command`].
const GROUPS: &[(&str, &[&str])] = &[
    (
        "Back up and archive",
        &[
            "backup",
            "receive-wal",
            "wal-archive",
            "put-wal",
            "archive-wal",
            "get-wal",
            "wal-restore",
            "switch-wal",
        ],
    ),
    (
        "Inspect",
        &[
            "list-servers",
            "show-servers",
            "status",
            "replication-status",
            "list-processes",
            "list-backups",
            "show-backup",
            "list-files",
            "timeline",
            "explain",
            "stats",
        ],
    ),
    (
        "Use a backup",
        &["restore", "catchup", "patroni", "mount", "umount", "clone"],
    ),
    (
        "Move in and out",
        &[
            "import",
            "export",
            "copy",
            "sync",
            "sync-backup",
            "sync-wals",
            "sync-info",
        ],
    ),
    (
        "Check",
        &[
            "check",
            "check-wal-archive",
            "verify",
            "metrics",
            "diagnose",
            "config",
        ],
    ),
    (
        "Maintain",
        &[
            "cron",
            "init",
            "retention",
            "keep",
            "delete",
            "sweep",
            "key",
            "encrypt",
            "quarantine",
            "rebuild-catalog",
            "index-wal",
            "history",
            "config-switch",
            "config-update",
            "terminate-process",
            "version",
        ],
    ),
];

/// Ends `barmanfs --help`.
const AFTER_HELP: &str = "\
Recovery needs no command:
  barmanfs mount /mnt/backups
  cp -a /mnt/backups/main/latest $PGDATA && pg_ctl start
and there is one: barmanfs restore main auto $PGDATA

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration,
3 done, and problems found.
'barmanfs COMMAND --help' says more, with examples.";

/// PostgreSQL backups and WAL, deduplicated, and shown as directories
#[derive(Debug, Parser)]
#[command(
    name = "barmanfs",
    version,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub(crate) global: GlobalOptions,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct GlobalOptions {
    /// Configuration to read [default: ~/.barmanfs.conf, /etc/barmanfs.conf, or Barman's]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Only report problems; no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Report more; twice for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// error, warning, info, debug or trace; wins over the configuration's log_level
    #[arg(long, global = true, value_name = "LEVEL", value_parser = log_level)]
    pub(crate) log_level: Option<tracing::level_filters::LevelFilter>,
    /// The same as --log-level debug
    #[arg(short, long, global = true, hide = true)]
    pub(crate) debug: bool,
    /// Print as Barman does, console or json; before the command, -f is the same
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        hide_possible_values = true
    )]
    pub(crate) format: Option<Format>,
    /// When to use colours: never, always or auto
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        value_enum,
        default_value = "auto",
        hide_possible_values = true
    )]
    pub(crate) color: ColorChoice,
}

/// `--json`, on every command that reads.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct JsonOption {
    /// Print JSON for programs instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// One variant for each command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take a base backup over the replication protocol
    #[command(after_help = backup::BACKUP_HELP)]
    Backup(backup::BackupArgs),

    /// Receive WAL as a stream while the server writes it
    #[command(after_help = wal::RECEIVE_WAL_HELP)]
    ReceiveWal(wal::ReceiveWalArgs),

    /// Store one WAL file; for archive_command
    #[command(after_help = wal::WAL_ARCHIVE_HELP)]
    WalArchive(wal::WalArchiveArgs),

    /// Store WAL files that another host sends
    #[command(after_help = wal::PUT_WAL_HELP)]
    PutWal(wal::PutWalArgs),

    /// Archive the WAL files that were put into a directory
    #[command(after_help = wal::ARCHIVE_WAL_HELP)]
    ArchiveWal(wal::ArchiveWalArgs),

    /// Fetch one WAL file; for restore_command
    #[command(after_help = wal::GET_WAL_HELP)]
    GetWal(wal::GetWalArgs),

    /// Fetch one WAL file from another host; for restore_command
    #[command(after_help = wal::WAL_RESTORE_HELP)]
    WalRestore(wal::WalRestoreArgs),

    /// Make a server close the WAL segment that it is writing
    #[command(alias = "switch-xlog", after_help = server::SWITCH_WAL_HELP)]
    SwitchWal(server::SwitchWalArgs),

    /// List the configured servers
    #[command(
        alias = "list-server",
        after_help = "Examples:\n  barmanfs list-servers\n  barmanfs list-servers --minimal\n  barmanfs list-servers --json"
    )]
    ListServers(inspect::ListServersArgs),

    /// Show every key of a server with its value, and what the server says
    #[command(alias = "show-server", after_help = server::SHOW_SERVERS_HELP)]
    ShowServers(server::ShowServersArgs),

    /// Show how a server stands, what is recoverable, and what would be lost with it
    #[command(after_help = server::STATUS_HELP)]
    Status(server::StatusArgs),

    /// Show what receives a server's WAL as a stream, and how far behind it is
    #[command(after_help = server::REPLICATION_STATUS_HELP)]
    ReplicationStatus(server::ReplicationStatusArgs),

    /// List the processes that work on a server now
    #[command(alias = "list-process", after_help = server::LIST_PROCESSES_HELP)]
    ListProcesses(server::ListProcessesArgs),

    /// List the backups of a server, or of all
    #[command(
        alias = "list-backup",
        after_help = "Examples:\n  barmanfs list-backups\n  barmanfs list-backups main\n  barmanfs list-backups all --json\n  barmanfs list-backups main --annotation release=4.2"
    )]
    ListBackups(inspect::ListBackupsArgs),

    /// Show all that is known about one backup
    #[command(
        alias = "show-backups",
        after_help = "Examples:\n  barmanfs show-backup main latest\n  barmanfs show-backup main 20261120T101500 --json"
    )]
    ShowBackup(inspect::ShowBackupArgs),

    /// List the files of a backup
    #[command(after_help = inspect::LIST_FILES_HELP)]
    ListFiles(inspect::ListFilesArgs),

    /// Draw a server's timelines, backups and WAL, and what cannot be recovered
    #[command(
        alias = "timelines",
        after_help = inspect::TIMELINE_HELP
    )]
    Timeline(inspect::TimelineArgs),

    /// Explain how a point in time would be recovered, or why it cannot be
    #[command(after_help = inspect::EXPLAIN_HELP)]
    Explain(inspect::ExplainArgs),

    /// Show where a timeline has two histories, and decide which one counts
    #[command(after_help = history::AFTER_HELP)]
    History(history::HistoryArgs),

    /// Show sizes, and what deduplication and compression save
    #[command(after_help = "Examples:\n  barmanfs stats\n  barmanfs stats main --json")]
    Stats(inspect::StatsArgs),

    /// Write a data directory that recovers to any point in time
    #[command(alias = "recover", after_help = restore::RESTORE_HELP)]
    Restore(Box<restore::RestoreArgs>),

    /// Update a standby that fell behind, or make one of a failed primary
    #[command(after_help = catchup::CATCHUP_HELP)]
    Catchup(Box<catchup::CatchupArgs>),

    /// Make members of a Patroni cluster; for its configuration
    #[command(subcommand, after_help = patroni::PATRONI_HELP)]
    Patroni(patroni::PatroniCommand),

    /// Write for a restore of another host, which speaks to this through standard input and output
    #[command(hide = true)]
    Agent(restore::AgentArgs),

    /// Show all backups and WAL as directories
    #[command(after_help = mount::MOUNT_HELP)]
    Mount(mount::MountArgs),

    /// Unmount a mounted directory
    #[command(
        alias = "unmount",
        after_help = mount::UMOUNT_HELP
    )]
    Umount(mount::UmountArgs),

    /// Make writable copies of backups at once, and run PostgreSQL on them
    #[command(subcommand, disable_help_subcommand = true, after_help = clone::AFTER_HELP)]
    Clone(clone::CloneCommand),

    /// Write a backup in the format of another program
    #[command(alias = "export-backup", after_help = export::EXPORT_HELP)]
    Export(Box<export::ExportArgs>),

    /// Check the server's settings, its archiving and the repository
    #[command(after_help = "Examples:\n  barmanfs check main\n  barmanfs check all --nagios")]
    Check(check::CheckArgs),

    /// Check that nothing is archived of a new server
    #[command(after_help = server::CHECK_WAL_ARCHIVE_HELP)]
    CheckWalArchive(server::CheckWalArchiveArgs),

    /// Show every key of the configuration and what it does
    #[command(subcommand, after_help = config::AFTER_HELP)]
    Config(config::ConfigCommand),

    /// Read everything back and check it against its checksums
    #[command(after_help = check::VERIFY_HELP)]
    Verify(check::VerifyArgs),

    /// Print what the checks have counted, for Prometheus
    #[command(after_help = metrics::METRICS_HELP)]
    Metrics(metrics::MetricsArgs),

    /// Print all that is known of this site as JSON, for support; passwords are left out
    #[command(after_help = metrics::DIAGNOSE_HELP)]
    Diagnose(JsonOption),

    /// Do what is due; once a minute, from cron or a timer
    #[command(after_help = upkeep::CRON_HELP)]
    Cron(upkeep::CronArgs),

    /// Make a repository, and show what to set on a server
    #[command(after_help = upkeep::INIT_HELP)]
    Init(upkeep::InitArgs),

    /// Show which backups and WAL the policies keep, and what is deleted next
    #[command(after_help = retention::RETENTION_HELP)]
    Retention(retention::RetentionArgs),

    /// Keep a backup whatever the policy says
    #[command(after_help = retention::KEEP_HELP)]
    Keep(retention::KeepArgs),

    /// Delete backups; 'sweep' then frees the space nothing else uses
    #[command(after_help = upkeep::DELETE_HELP)]
    Delete(upkeep::DeleteArgs),

    /// Free the space of deleted and failed backups
    #[command(after_help = upkeep::SWEEP_HELP)]
    Sweep(upkeep::SweepArgs),

    /// Make, list and change the keys of an encrypted repository
    #[command(after_help = keys::KEY_HELP)]
    Key(keys::KeyArgs),

    /// Seal what is still plain in an encrypted repository
    #[command(after_help = keys::ENCRYPT_HELP)]
    Encrypt(JsonOption),

    /// Show WAL files that were put aside, accept them or delete them
    #[command(after_help = quarantine::AFTER_HELP)]
    Quarantine(quarantine::QuarantineArgs),

    /// Rebuild catalog.sqlite from the packs
    #[command(after_help = upkeep::REBUILD_CATALOG_HELP)]
    RebuildCatalog(upkeep::RebuildArgs),

    /// Take over backups and WAL from other tools
    #[command(after_help = import::IMPORT_HELP)]
    Import(import::ImportArgs),

    /// Copy the repository to an object store, or back
    #[command(after_help = copy::COPY_HELP)]
    Copy(copy::CopyArgs),

    /// Take over what the primary of a passive server has
    #[command(after_help = sync::SYNC_HELP)]
    Sync(sync::SyncArgs),

    /// Take over one backup of the primary, whatever the policy says
    #[command(after_help = sync::SYNC_BACKUP_HELP)]
    SyncBackup(sync::SyncBackupArgs),

    /// Take over the WAL of the primary alone
    #[command(after_help = sync::SYNC_WALS_HELP)]
    SyncWals(sync::SyncWalsArgs),

    /// Show what is known of the last sync
    #[command(after_help = sync::SYNC_INFO_HELP)]
    SyncInfo(sync::SyncInfoArgs),

    /// Read archived WAL again that an earlier release could not read
    #[command(after_help = wal::INDEX_WAL_HELP)]
    IndexWal(wal::IndexWalArgs),

    /// Do what needs no doing: commands of Barman
    #[command(name = NOTHING_TO_DO, hide = true)]
    NothingToDo(upkeep::NothingArgs),

    /// Switch a server to a model, or back
    #[command(after_help = config::CONFIG_SWITCH_HELP)]
    ConfigSwitch(config::ConfigSwitchArgs),

    /// Change settings of servers and models
    #[command(after_help = config::CONFIG_UPDATE_HELP)]
    ConfigUpdate(config::ConfigUpdateArgs),

    /// End a process that works on a server
    #[command(after_help = server::TERMINATE_PROCESS_HELP)]
    TerminateProcess(server::TerminateProcessArgs),

    /// Show the version
    #[command(after_help = "Examples:\n  barmanfs version --json")]
    Version(JsonOption),
}

/// The command line with the grouped list of commands in its help.
pub(crate) fn command() -> clap::Command {
    let command = Cli::command();
    let groups = grouped(&command);
    command.after_help(AFTER_HELP).help_template(format!(
        "{{about}}\n\n{{usage-heading}} {{usage}}\n\n{groups}Options of every command:\n{{options}}{{after-help}}\n"
    ))
}

fn grouped(command: &clap::Command) -> String {
    let width = command
        .get_subcommands()
        .map(|sub| sub.get_name().len())
        .max()
        .unwrap_or_default();
    let about = |name: &&str| {
        let about = command.find_subcommand(name).and_then(clap::Command::get_about);
        format!(
            "  {name:width$}  {}\n",
            about.map(ToString::to_string).unwrap_or_default()
        )
    };
    GROUPS
        .iter()
        .map(|(title, names)| format!("{title}:\n{}\n", names.iter().map(about).collect::<String>()))
        .collect()
}

fn log_level(text: &str) -> Result<tracing::level_filters::LevelFilter, String> {
    crate::config::log_level(text)
}

#[cfg(test)]
mod tests;
