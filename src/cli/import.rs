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
  barmanfs import main --pgbackrest /var/lib/pgbackrest --stanza main --cipher-passphrase-file /etc/pgbackrest.pass";

/// `import`
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The server whose backups and WAL these are
    pub(crate) server: String,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) pgbackrest: PgBackRestArgs,
    /// Only this backup of the source, by its name there; may be repeated
    #[arg(long = "backup", value_name = "NAME")]
    pub(crate) backups: Vec<String>,
    /// Which WAL to take
    #[arg(long, value_enum, default_value = "all")]
    pub(crate) wal: Extent,
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
