//! The command line of `barmanfs import`.

use std::path::PathBuf;

use clap::Args;

use super::JsonOption;
use crate::import::wal::Extent;

/// Ends `barmanfs import --help`.
pub(super) const IMPORT_HELP: &str = "\
The source is only read, and its own tool may go on meanwhile. It can be repeated: what is here is not read again.
Exit code 3: something could not be taken, and is named.

Examples:
  barmanfs import main --pg-basebackup /srv/base-2026-11-28 --dry-run
  barmanfs import main --pg-basebackup /srv/full --pg-basebackup /srv/incremental
  barmanfs import main --pgbackrest /var/lib/pgbackrest --stanza main --cipher-passphrase-file /etc/pgbackrest.pass
  barmanfs import main --walg /var/lib/walg
  barmanfs import main --pg-basebackup /srv/old --move
  barmanfs import main --data-directory /srv/cold-copy
  barmanfs import main --barman-home /var/lib/barman --dry-run
  barmanfs import main --barman-home /var/lib/barman --passphrase-command 'cat /etc/barman/passphrase'
  barmanfs import main --barman-export backup-export-main-20261128T155501-20261129T080000-0123abcd.tar.gz";

/// `import`
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The server whose backups and WAL these are
    pub(crate) server: String,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) pgbackrest: PgBackRestArgs,
    #[command(flatten)]
    pub(crate) barman: BarmanArgs,
    /// Only this backup of the source, by its name there; may be repeated
    #[arg(long = "backup", value_name = "NAME")]
    pub(crate) backups: Vec<String>,
    /// Which WAL to take
    #[arg(long, value_enum, default_value = "all")]
    pub(crate) wal: Extent,
    /// Delete each backup from the source when it is here and was read again without a fault; only what pg_basebackup or
    /// `barman export-backup` has written
    #[arg(long = "move", conflicts_with = "dry_run")]
    pub(crate) moves: bool,
    /// Say what would be taken, and take nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// Where from: exactly one kind.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct SourceArgs {
    /// A directory that pg_basebackup has written, plain or tar; may be repeated
    #[arg(long, value_name = "DIR")]
    pub(crate) pg_basebackup: Vec<PathBuf>,
    /// The repository of a pgBackRest, as in repo1-path
    #[arg(long, value_name = "DIR", requires = "stanza")]
    pub(crate) pgbackrest: Option<PathBuf>,
    /// The storage of a WAL-G, as in WALG_FILE_PREFIX
    #[arg(long, value_name = "DIR")]
    pub(crate) walg: Option<PathBuf>,
    /// The home of a Barman (`barman_home`), which may be running
    #[arg(long, value_name = "DIR")]
    pub(crate) barman_home: Option<PathBuf>,
    /// A backup that `barman export-backup` has written
    #[arg(long, value_name = "FILE")]
    pub(crate) barman_export: Option<PathBuf>,
    /// The data directory of a server that was shut down cleanly, or a copy of it
    #[arg(long, value_name = "DIR")]
    pub(crate) data_directory: Option<PathBuf>,
    /// Take nothing: print the section for the server from this configuration of Barman, `/etc/barman.conf`
    #[arg(long, value_name = "FILE")]
    pub(crate) print_config: Option<PathBuf>,
}

/// What a repository of pgBackRest is read with.
#[derive(Debug, Args)]
pub(crate) struct PgBackRestArgs {
    /// The stanza of --pgbackrest
    #[arg(long, value_name = "NAME", requires = "pgbackrest")]
    pub(crate) stanza: Option<String>,
    /// The file with the passphrase of --pgbackrest, as in repo1-cipher-pass
    #[arg(long, value_name = "FILE", requires = "pgbackrest")]
    pub(crate) cipher_passphrase_file: Option<PathBuf>,
    /// The command that prints the passphrase of --pgbackrest
    #[arg(
        long,
        value_name = "COMMAND",
        requires = "pgbackrest",
        conflicts_with = "cipher_passphrase_file"
    )]
    pub(crate) cipher_passphrase_command: Option<String>,
}

/// What reading a Barman's files may need.
#[derive(Debug, Args)]
pub(crate) struct BarmanArgs {
    /// The server in the home or configuration, if it has another name there
    #[arg(long = "from-server", value_name = "NAME", conflicts_with = "pg_basebackup")]
    pub(crate) from_server: Option<String>,
    /// A shell command that prints the passphrase for what is encrypted with gpg or OpenPGP: Barman's `encryption_passphrase_command`
    #[arg(long, value_name = "COMMAND")]
    pub(crate) passphrase_command: Option<String>,
    /// A shell command that decompresses WAL from its input to its output: Barman's `custom_decompression_filter`
    #[arg(long, value_name = "COMMAND")]
    pub(crate) custom_decompress: Option<String>,
    /// The time zone of times that have none, as early releases of Barman wrote them: `Europe/Rome`; else that of this host
    #[arg(long, value_name = "ZONE")]
    pub(crate) time_zone: Option<String>,
    /// Take backups, too, whose WAL is not complete there (WAITING_FOR_WALS)
    #[arg(long, requires = "barman_home")]
    pub(crate) include_waiting: bool,
    /// Take the segment, too, that Barman was receiving last. Its receive-wal must be stopped
    #[arg(long, requires = "barman_home")]
    pub(crate) with_partial: bool,
}
