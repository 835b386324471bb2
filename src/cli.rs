//! The command line: what can be asked, and the help.
//!
//! Names and words are Barman's where Barman has them. Every command's help ends with examples, and the
//! list of commands is grouped by what a DBA is about to do; tests hold both to it.

pub(crate) mod clone;
pub(crate) mod history;
pub(crate) mod quarantine;

use std::path::PathBuf;

use barmanfs_catalog::Action;
use barmanfs_fs::DEFAULT_CACHE_BYTES;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::{self, Incremental};
use crate::instance::Setting;
use crate::postgres::MAX_RATE_KIB;
use crate::size;

/// The commands by task, for the help; a test holds it equal to [`Command`].
const GROUPS: &[(&str, &[&str])] = &[
    (
        "Back up and archive",
        &["backup", "receive-wal", "wal-archive", "get-wal"],
    ),
    (
        "Look",
        &[
            "list-servers",
            "list-backups",
            "show-backup",
            "list-files",
            "timeline",
            "explain",
            "stats",
        ],
    ),
    ("Use a backup", &["mount", "umount", "clone"]),
    ("Be sure", &["check", "verify"]),
    (
        "Keep house",
        &[
            "delete",
            "sweep",
            "quarantine",
            "rebuild-catalog",
            "index-wal",
            "history",
            "version",
        ],
    ),
];

/// Ends `barmanfs --help`.
const AFTER_HELP: &str = "\
Recovery needs no command:
  barmanfs mount /mnt/backups
  cp -a /mnt/backups/main/latest $PGDATA && pg_ctl start

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration,
3 done and problems found (check, verify).
'barmanfs COMMAND --help' tells more, with examples.";

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
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct GlobalOptions {
    /// Configuration to read [default: ~/.barmanfs.conf, else /etc/barmanfs.conf]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Say nothing of what goes well; no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more; twice for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// error, warning, info, debug or trace; wins over the configuration's log_level
    #[arg(long, global = true, value_name = "LEVEL", value_parser = log_level)]
    pub(crate) log_level: Option<tracing::level_filters::LevelFilter>,
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
    #[command(after_help = "\
Every backup is a full one: it can be deleted at any time and never needs another. Stored is only what
changed; from PostgreSQL 17 on, with summarize_wal = on, no more than that is sent either.

When WAL of the server arrives through 'wal-archive', the backup waits for its segments;
otherwise it brings them itself.

Examples:
  barmanfs backup main
  barmanfs backup main --fast-checkpoint --label before_upgrade
  barmanfs backup main --incremental never
  barmanfs backup all --max-rate 50M")]
    Backup(BackupArgs),

    /// Receive WAL as a stream while the server writes it
    #[command(after_help = "\
Runs until it is stopped; whatever fails is tried again. What it has reported to the server is safely on
disk, so it can be a synchronous standby: put its name, streaming_archiver_name, into the server's
synchronous_standby_names.

Examples:
  barmanfs receive-wal main --create-slot --if-not-exists
  barmanfs receive-wal main
  barmanfs receive-wal main --stop")]
    ReceiveWal(ReceiveWalArgs),

    /// Store one WAL file; for archive_command
    #[command(after_help = "\
Exits with 0 only when the file is verified and safely on disk. The same file again is fine; a different
file of the same name is refused and put aside.

Examples:
  archive_command = '/usr/local/bin/barmanfs wal-archive main %p'")]
    WalArchive(WalArchiveArgs),

    /// Fetch one WAL file; for restore_command
    #[command(after_help = "\
Exits with 1 only when the archive was read and the file is not in it; every trouble is 200 or more, which
stops a recovery instead of ending it early.

Examples:
  restore_command = '/usr/local/bin/barmanfs get-wal main %f %p'
  barmanfs get-wal main 000000010000000000000042 > segment")]
    GetWal(GetWalArgs),

    /// List the configured servers
    #[command(
        alias = "list-server",
        after_help = "Examples:\n  barmanfs list-servers\n  barmanfs list-servers --json"
    )]
    ListServers(JsonOption),

    /// List the backups of a server, or of all
    #[command(
        alias = "list-backup",
        after_help = "Examples:\n  barmanfs list-backups\n  barmanfs list-backups main\n  barmanfs list-backups all --json"
    )]
    ListBackups(ListBackupsArgs),

    /// Show all that is known about one backup
    #[command(
        alias = "show-backups",
        after_help = "Examples:\n  barmanfs show-backup main latest\n  barmanfs show-backup main 20261120T101500 --json"
    )]
    ShowBackup(ShowBackupArgs),

    /// List the files of a backup
    #[command(after_help = "\
Paths are as they stand below the server's directory of the mount.

Examples:
  barmanfs list-files main latest
  barmanfs list-files main oldest --target wal
  barmanfs list-files main latest --target data --json")]
    ListFiles(ListFilesArgs),

    /// Draw a server's timelines, backups and WAL, and what cannot be recovered
    #[command(
        alias = "timelines",
        after_help = "\
The picture runs from the oldest WAL down to the newest. A dot is a backup, a diamond a restore point, a cross
a gap: WAL that is missing, so that what follows cannot be recovered until the next backup.

Examples:
  barmanfs timeline main
  barmanfs timeline main --json"
    )]
    Timeline(TimelineArgs),

    /// Tell how a point in time would be recovered, or why it cannot be
    #[command(after_help = "\
TARGET is what stands below pitr/ of a mount: now, immediate, a time, an LSN, xid:N or name:TEXT, with options
behind commas: exclusive, timeline=N|latest|current, action=pause|promote|shutdown, backup=ID, self-contained.
A time has any unambiguous form that PostgreSQL reads; without a zone the server's is meant.
Exits with 1 when the target cannot be reached.

Examples:
  barmanfs explain main now
  barmanfs explain main '2026-11-20 14:03:07+00'
  barmanfs explain main 'Nov 20, 2026 2:03:07 PM Europe/Paris,exclusive'
  barmanfs explain main 0/5A3F10C8,timeline=2
  barmanfs explain main name:before_migration --json")]
    Explain(ExplainArgs),

    /// Show where a timeline has two histories, and decide which one counts
    #[command(after_help = history::AFTER_HELP)]
    History(history::HistoryArgs),

    /// Show sizes, and what deduplication and compression save
    #[command(after_help = "Examples:\n  barmanfs stats\n  barmanfs stats main --json")]
    Stats(StatsArgs),

    /// Show all backups and WAL as directories
    #[command(after_help = "\
Returns when the directory answers; the file system is then served in the background until
'barmanfs umount DIR' (or plain 'umount DIR'). New backups and WAL appear by themselves.

Examples:
  barmanfs mount /mnt/backups
  barmanfs mount /mnt/backups --allow-other --uid postgres --gid postgres
  barmanfs mount /mnt/backups --server main --foreground")]
    Mount(MountArgs),

    /// Take a mounted directory down again
    #[command(
        alias = "unmount",
        after_help = "\
Returns when everything written to clones is on disk. A mount that somebody uses stays, and who that is is told.

Examples:
  barmanfs umount /mnt/backups"
    )]
    Umount(UmountArgs),

    /// Make writable copies of backups at once, and run PostgreSQL on them
    #[command(subcommand, disable_help_subcommand = true, after_help = clone::AFTER_HELP)]
    Clone(clone::CloneCommand),

    /// Check the server's settings, its archiving and the repository
    #[command(after_help = "Examples:\n  barmanfs check main\n  barmanfs check all --nagios")]
    Check(CheckArgs),

    /// Read everything back and check it against its checksums
    #[command(after_help = "\
Without SERVER: all servers, backups and WAL. Damage is named by backup, file and page.

With --boot the backup is not compared but tried: PostgreSQL starts on a clone of it, recovers and
answers in every database. It runs on a private socket, as the user of the repository, with nothing
running by itself (no jobs, no subscriptions). 'list-backups' and 'show-backup' tell the result.

Examples:
  barmanfs verify
  barmanfs verify main
  barmanfs verify main latest
  barmanfs verify main wal
  barmanfs verify main latest --boot --amcheck
  barmanfs verify main latest --boot --sql /etc/barmanfs/check.sql")]
    Verify(VerifyArgs),

    /// Delete backups; 'sweep' then frees the space nothing else uses
    #[command(after_help = "\
Any backup can be deleted, in any order: none depends on another. WAL is kept. The last backup that the server, or
its newest state, can be recovered from is only deleted with --force; minimum_redundancy holds always.

Examples:
  barmanfs delete main oldest --dry-run
  barmanfs delete main oldest && barmanfs sweep
  barmanfs delete main 20261101T020000 20261102T020000")]
    Delete(DeleteArgs),

    /// Free the space of deleted and failed backups
    #[command(
        after_help = "Safe at any time, also while backups, archiving and mounts run.\n\nExamples:\n  barmanfs sweep"
    )]
    Sweep(JsonOption),

    /// Look at WAL files that were put aside, accept them or give them up
    #[command(after_help = quarantine::AFTER_HELP)]
    Quarantine(quarantine::QuarantineArgs),

    /// Make catalog.sqlite anew from the packs
    #[command(after_help = "\
The packs hold everything; the catalog is only their index. Nothing else may use the repository meanwhile.
The catalog before is kept as catalog.sqlite.old where something could not be read.

Examples:
  barmanfs rebuild-catalog")]
    RebuildCatalog(RebuildArgs),

    /// Read archived WAL again that an earlier release could not read
    #[command(after_help = "\
What WAL says about points in time, tablespaces and settings is found when it is archived. A release that
looks for more, or reads another PostgreSQL version, finds the rest with this. Nothing else has to stop.

Examples:
  barmanfs index-wal main")]
    IndexWal(IndexWalArgs),

    /// Show the version
    #[command(after_help = "Examples:\n  barmanfs version --json")]
    Version(JsonOption),
}

/// `backup`
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Servers of the configuration, or 'all' for every active one
    #[arg(required = true, value_name = "SERVER|all")]
    pub(crate) servers: Vec<String>,
    /// A text kept with the backup
    #[arg(long, value_name = "TEXT", value_parser = label)]
    pub(crate) label: Option<String>,
    /// Begin with a checkpoint at full speed instead of waiting for a spread one
    #[arg(long, alias = "immediate-checkpoint")]
    pub(crate) fast_checkpoint: bool,
    /// Most that is read from the server per second, in kB or with k, M or G
    #[arg(long, alias = "bwlimit", value_name = "RATE", value_parser = max_rate)]
    pub(crate) max_rate: Option<u32>,
    /// Let the server send only what has changed since an earlier backup [default: as configured, or auto]
    #[arg(long, value_name = "WHEN", value_enum)]
    pub(crate) incremental: Option<Incremental>,
    /// How long to wait for the backup's WAL to arrive in the archive, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) wait_timeout: u64,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `receive-wal`
#[derive(Debug, Args)]
pub(crate) struct ReceiveWalArgs {
    /// Server of the configuration
    pub(crate) server: String,
    /// Stop the process that receives the server's WAL, and wait for its end
    #[arg(long, group = "instead")]
    pub(crate) stop: bool,
    /// Begin anew with the segment the server is writing now; what is between is not received
    #[arg(long, group = "instead")]
    pub(crate) reset: bool,
    /// Create the replication slot slot_name
    #[arg(long, group = "instead")]
    pub(crate) create_slot: bool,
    /// Drop the replication slot slot_name
    #[arg(long, group = "instead")]
    pub(crate) drop_slot: bool,
    /// With --create-slot: do not fail when the slot is there
    #[arg(long, requires = "create_slot")]
    pub(crate) if_not_exists: bool,
}

/// `wal-archive`
#[derive(Debug, Args)]
pub(crate) struct WalArchiveArgs {
    /// Server the WAL belongs to
    pub(crate) server: String,
    /// The file; PostgreSQL's %p
    pub(crate) path: PathBuf,
}

/// `get-wal`
#[derive(Debug, Args)]
pub(crate) struct GetWalArgs {
    /// Server the WAL belongs to
    pub(crate) server: String,
    /// Name of the WAL file; PostgreSQL's %f
    pub(crate) name: String,
    /// File or directory to write to; PostgreSQL's %p [default: standard output]
    pub(crate) dest: Option<PathBuf>,
    /// Not from the archive, but of a history that was left, by its number in 'barmanfs history SERVER list'
    #[arg(long, value_name = "NUMBER")]
    pub(crate) left: Option<usize>,
}

/// `list-backups`
#[derive(Debug, Args)]
pub(crate) struct ListBackupsArgs {
    /// Server, or 'all'
    #[arg(value_name = "SERVER|all", default_value = "all")]
    pub(crate) server: String,
    /// Print only the ids, the newest first
    #[arg(long)]
    pub(crate) minimal: bool,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// A backup of a server.
#[derive(Debug, Args)]
pub(crate) struct BackupName {
    /// Server of the backup
    pub(crate) server: String,
    /// Id of the backup, or latest, oldest, last-failed
    #[arg(value_name = "BACKUP")]
    pub(crate) backup: String,
}

/// `show-backup`
#[derive(Debug, Args)]
pub(crate) struct ShowBackupArgs {
    /// Which one
    #[command(flatten)]
    pub(crate) which: BackupName,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// What `list-files` lists; Barman's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileTarget {
    /// The data and the WAL that makes it consistent
    Standalone,
    /// The data alone
    Data,
    /// WAL from the backup's start to the next backup's, or to the end
    Wal,
    /// Data and that WAL
    Full,
}

/// `list-files`
#[derive(Debug, Args)]
pub(crate) struct ListFilesArgs {
    /// Which one
    #[command(flatten)]
    pub(crate) which: BackupName,
    /// What to list
    #[arg(long, value_enum, default_value = "standalone")]
    pub(crate) target: FileTarget,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `timeline`
#[derive(Debug, Args)]
pub(crate) struct TimelineArgs {
    /// Server to draw
    pub(crate) server: String,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `explain`
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Server to recover
    pub(crate) server: String,
    /// What to recover to
    #[arg(required = true)]
    pub(crate) target: Vec<String>,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `index-wal`
#[derive(Debug, Args)]
pub(crate) struct IndexWalArgs {
    /// Server whose WAL is read
    pub(crate) server: String,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `stats`
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Server, or 'all'
    #[arg(value_name = "SERVER|all", default_value = "all")]
    pub(crate) server: String,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `mount`
#[derive(Debug, Clone, Args)]
pub(crate) struct MountArgs {
    /// An existing directory
    #[arg(value_name = "DIR")]
    pub(crate) mount_point: PathBuf,
    /// Show this server only; may be repeated [default: all of the repository]
    #[arg(long = "server", value_name = "SERVER")]
    pub(crate) servers: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    pub(crate) foreground: bool,
    /// Let other users read too, as far as modes allow
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// Show this user, by name or number, as the owner of everything [default: as backed up]
    #[arg(long, value_name = "USER")]
    pub(crate) uid: Option<String>,
    /// Show this group, by name or number, as the group of everything [default: as backed up]
    #[arg(long, value_name = "GROUP")]
    pub(crate) gid: Option<String>,
    #[arg(long, value_name = "SIZE", value_parser = size::bytes, help = format!(
        "Memory for decoded data, in bytes or with K, M or G [default: {}M]", DEFAULT_CACHE_BYTES >> 20
    ))]
    pub(crate) cache_size: Option<u64>,
    /// What a copy out of pitr/ does at its target, where the target's name does not say: promote, pause or shutdown
    /// [default: as configured, or promote]
    #[arg(long, value_name = "ACTION", value_parser = config::recovery_target_action)]
    pub(crate) recovery_target_action: Option<Action>,
    /// Set on the copy of this program that serves a mount in the background
    #[arg(long, hide = true)]
    pub(crate) background_child: bool,
}

/// `umount`
#[derive(Debug, Args)]
pub(crate) struct UmountArgs {
    /// The mounted directory
    #[arg(value_name = "DIR")]
    pub(crate) mount_point: PathBuf,
    /// Even while it is in use: what others have open fails, and a server that runs on a clone in it ends as if its machine
    /// lost power; or when the mount hangs
    #[arg(short, long, conflicts_with = "lazy")]
    pub(crate) force: bool,
    /// Take it out of sight at once, and let others finish with what they have open
    #[arg(short, long)]
    pub(crate) lazy: bool,
}

/// `check`
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Servers of the configuration, or 'all' for every active one
    #[arg(required = true, value_name = "SERVER|all")]
    pub(crate) servers: Vec<String>,
    /// One line and the exit codes of a Nagios plugin
    #[arg(long, conflicts_with = "json")]
    pub(crate) nagios: bool,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `verify`
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Server, or 'all'
    #[arg(value_name = "SERVER|all", default_value = "all")]
    pub(crate) server: String,
    /// Id of a backup, latest, oldest, ..., or 'wal' for the WAL archive alone [default: everything]
    #[arg(value_name = "BACKUP|wal")]
    pub(crate) what: Option<String>,
    /// Start PostgreSQL on a throw-away clone of BACKUP instead; the result is kept with the backup
    #[arg(long, requires = "what")]
    pub(crate) boot: bool,
    /// With --boot: run this file with psql, in the database postgres; a statement that fails is a failure
    #[arg(long, requires = "boot", value_name = "FILE")]
    pub(crate) sql: Option<PathBuf>,
    /// With --boot: check all tables and indexes with pg_amcheck
    #[arg(long, requires = "boot")]
    pub(crate) amcheck: bool,
    /// With --boot: a setting of PostgreSQL, whatever its configuration says; several times for several
    #[arg(long = "set", requires = "boot", value_name = "NAME=VALUE")]
    pub(crate) settings: Vec<Setting>,
    /// With --boot: where PostgreSQL's programs are [default: the usual places of its version]
    #[arg(long, requires = "boot", value_name = "DIR")]
    pub(crate) bindir: Option<PathBuf>,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `delete`
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Server of the backups
    pub(crate) server: String,
    /// Ids of the backups, or latest, oldest, last-failed
    #[arg(required = true, value_name = "BACKUP")]
    pub(crate) backups: Vec<String>,
    /// Delete a backup even when it is the last to recover from, or the newest state depends on it, or it is being read
    /// through a mount, or clones stand on it: they keep what they need
    #[arg(long)]
    pub(crate) force: bool,
    /// Show what would be deleted and what could be recovered afterwards, and delete nothing
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `rebuild-catalog`
#[derive(Debug, Args)]
pub(crate) struct RebuildArgs {
    /// Replace the catalog even when none of the packs it knows is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
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
    config::log_level(text)
}

/// PostgreSQL takes 1 GiB paths as labels; ours stay on a line of a list.
fn label(text: &str) -> Result<String, String> {
    const MAX_LABEL_BYTES: usize = 256;
    if text.len() > MAX_LABEL_BYTES || text.chars().any(char::is_control) {
        return Err(format!("allowed are at most {MAX_LABEL_BYTES} bytes on one line"));
    }
    Ok(text.to_owned())
}

/// Kilobytes per second, as PostgreSQL counts them.
fn max_rate(text: &str) -> Result<u32, String> {
    let wrong = || {
        let (low, high) = (MAX_RATE_KIB.start(), MAX_RATE_KIB.end());
        format!("allowed is a rate from {low} to {high} kB per second, like 4000, 32M or 1G")
    };
    let kilobytes = match size::scaled(text) {
        Some((number, None)) => Some(number),
        Some((number, Some(unit))) => number.checked_mul(unit).map(|bytes| bytes / 1024),
        None => None,
    };
    let rate = kilobytes
        .and_then(|kb| u32::try_from(kb).ok())
        .ok_or_else(wrong)?;
    if MAX_RATE_KIB.contains(&rate) {
        Ok(rate)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;
    use std::collections::BTreeSet;

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_command_is_in_one_group_and_has_examples() {
        let command = command();
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        let names: BTreeSet<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(grouped.iter().copied().collect::<BTreeSet<_>>(), names);
        assert_eq!(grouped.len(), names.len());
        for sub in with_nested(&command) {
            let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                after.contains("Examples:\n"),
                "{} has no examples",
                sub.get_name()
            );
        }
    }

    /// All commands, and those of commands that have some.
    fn with_nested(command: &clap::Command) -> Vec<&clap::Command> {
        let mut all: Vec<&clap::Command> = command.get_subcommands().collect();
        all.extend(command.get_subcommands().flat_map(clap::Command::get_subcommands));
        all
    }

    /// As a shell parts them: what stands between quotes is one.
    fn words(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        for (nth, part) in line.split('\'').enumerate() {
            match nth % 2 {
                0 => words.extend(part.split_whitespace().map(str::to_owned)),
                _ => words.push(part.to_owned()),
            }
        }
        words
    }

    #[test]
    fn every_example_parses() {
        for sub in with_nested(&command()) {
            let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = after.split("Examples:\n").nth(1).unwrap_or_default();
            for line in examples.lines() {
                let line = line.split(" > ").next().unwrap_or_default();
                // The whole line of a setting is quoted.
                let line = line
                    .split_once("= '")
                    .map_or(line, |(_, command)| command.trim_end_matches('\''));
                for part in line.split(" && ") {
                    let words = words(part)
                        .into_iter()
                        .skip_while(|word| word.rsplit('/').next() != Some("barmanfs"));
                    let parsed = command().try_get_matches_from(words);
                    assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
                }
            }
        }
    }

    #[test]
    fn the_help_is_grouped() {
        assert_snapshot!(command().render_help(), @"
        PostgreSQL backups and WAL, deduplicated, and shown as directories

        Usage: barmanfs [OPTIONS] <COMMAND>

        Back up and archive:
          backup           Take a base backup over the replication protocol
          receive-wal      Receive WAL as a stream while the server writes it
          wal-archive      Store one WAL file; for archive_command
          get-wal          Fetch one WAL file; for restore_command

        Look:
          list-servers     List the configured servers
          list-backups     List the backups of a server, or of all
          show-backup      Show all that is known about one backup
          list-files       List the files of a backup
          timeline         Draw a server's timelines, backups and WAL, and what cannot be recovered
          explain          Tell how a point in time would be recovered, or why it cannot be
          stats            Show sizes, and what deduplication and compression save

        Use a backup:
          mount            Show all backups and WAL as directories
          umount           Take a mounted directory down again
          clone            Make writable copies of backups at once, and run PostgreSQL on them

        Be sure:
          check            Check the server's settings, its archiving and the repository
          verify           Read everything back and check it against its checksums

        Keep house:
          delete           Delete backups; 'sweep' then frees the space nothing else uses
          sweep            Free the space of deleted and failed backups
          quarantine       Look at WAL files that were put aside, accept them or give them up
          rebuild-catalog  Make catalog.sqlite anew from the packs
          index-wal        Read archived WAL again that an earlier release could not read
          history          Show where a timeline has two histories, and decide which one counts
          version          Show the version

        Options of every command:
          -c, --config <FILE>      Configuration to read [default: ~/.barmanfs.conf, else
                                   /etc/barmanfs.conf]
          -q, --quiet              Say nothing of what goes well; no progress
          -v, --verbose...         Say more; twice for debugging
              --log-level <LEVEL>  error, warning, info, debug or trace; wins over the configuration's
                                   log_level
          -h, --help               Print help
          -V, --version            Print version

        Recovery needs no command:
          barmanfs mount /mnt/backups
          cp -a /mnt/backups/main/latest $PGDATA && pg_ctl start

        Exit codes: 0 done, 1 failed, 2 wrong usage or configuration,
        3 done and problems found (check, verify).
        'barmanfs COMMAND --help' tells more, with examples.
        ");
    }

    #[test]
    fn rates_are_kilobytes() {
        assert_eq!(max_rate("4000"), Ok(4000));
        assert_eq!(max_rate("32M"), Ok(32 * 1024));
        assert_eq!(max_rate("1G"), Ok(1_048_576));
        assert!(max_rate("31").is_err() && max_rate("2G").is_err() && max_rate("M").is_err());
    }

    #[test]
    fn barmans_option_names_are_understood() {
        let words = [
            "barmanfs",
            "backup",
            "main",
            "--immediate-checkpoint",
            "--bwlimit",
            "4000",
        ];
        assert!(command().try_get_matches_from(words).is_ok());
    }
}
