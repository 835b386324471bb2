//! The command line of `barmanfs export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::JsonOption;
use crate::restore::Relocation;

/// Ends `barmanfs export --help`.
pub(super) const EXPORT_HELP: &str = "\
tar, plain: what pg_basebackup writes in these formats. barman: the tarball that 'barman import-backup' takes;
if OUT is a directory, it gets the name there that Barman demands. barman-home: OUT is a directory of Barman,
and gets one for the server with the backups (BACKUP may be 'all') and the WAL.
OUT must not exist yet. It appears when all of it is on disk; what is written until then has a name that ends
in '.exporting'. '-' is standard output, for one archive.

Examples:
  barmanfs export main latest /srv/handover --as barman
  barmanfs export main 20261120T101500 /srv/monday --as tar --compression zstd
  barmanfs export main latest /srv/data --as plain --tablespace-mapping fast:/srv/fast
  barmanfs export main latest - --as tar --compression gzip > /srv/main.tar.gz
  barmanfs export main all /var/lib/barman --as barman-home";

/// A format of another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// The tarball of 'barman export-backup'
    Barman,
    /// pg_basebackup --format=tar
    Tar,
    /// pg_basebackup --format=plain
    Plain,
    /// A directory of Barman, with several backups
    BarmanHome,
}

impl ExportFormat {
    /// Its word on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Barman => "barman",
            Self::Tar => "tar",
            Self::Plain => "plain",
            Self::BarmanHome => "barman-home",
        }
    }
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportCompression {
    /// Not at all
    None,
    /// gzip
    Gzip,
    /// bzip2
    Bzip2,
    /// xz
    Xz,
    /// zstd
    Zstd,
    /// lz4
    Lz4,
}

/// Which WAL comes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportedWal {
    /// From the start of each backup to its end
    Needed,
    /// None
    None,
    /// All that is archived; only for barman-home
    All,
}

/// `export`
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Server
    pub(crate) server: String,
    /// Id or name of the backup, or latest, oldest; for barman-home also 'all'
    pub(crate) backup: String,
    /// Where to write it; - for standard output
    pub(crate) out: PathBuf,
    /// Format of another program; behind 'export', --format is the same
    #[arg(long = "as", value_enum, value_name = "FORMAT", default_value = "barman")]
    pub(crate) form: ExportFormat,
    /// How to compress archives
    #[arg(long, value_enum, value_name = "FORM", default_value = "none")]
    pub(crate) compression: ExportCompression,
    /// Which WAL comes along; for barman-home all of it is the default
    #[arg(long, value_enum, value_name = "WAL")]
    pub(crate) wal: Option<ExportedWal>,
    /// In format plain, put a tablespace there, and a symbolic link into OUT; repeatable
    #[arg(long, value_name = "NAME:LOCATION")]
    pub(crate) tablespace_mapping: Vec<Relocation>,
    /// Number of threads that write directories; one for each core unless parallel_jobs is set
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: Option<u16>,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}
