//! The command lines of the commands that archive, receive, fetch and index WAL.

use std::path::{Path, PathBuf};

use clap::Args;

use super::JsonOption;
use crate::error::Error;
use crate::wal_transfer::bundle::Hash;
use crate::wal_transfer::compression::Compression;

/// Ends `barmanfs receive-wal --help`.
pub(super) const RECEIVE_WAL_HELP: &str = "\
Runs until it is stopped; whatever fails is tried again. What it has reported to the server is safely on
disk, so it can be a synchronous standby: put its name, streaming_archiver_name, into the server's
synchronous_standby_names.

Examples:
  barmanfs receive-wal main --create-slot --if-not-exists
  barmanfs receive-wal main
  barmanfs receive-wal main --stop";

/// Ends `barmanfs wal-archive --help`.
pub(super) const WAL_ARCHIVE_HELP: &str = "\
Exits with 0 only when the file is verified and safely on disk. The same file again is fine; a different
file of the same name is refused and put aside.

With --remote the archive is on another host, over ssh, and nothing is configured here; further segments that wait
go through the same connection. Exits with 2 for what fails here, 3 when ssh fails, and otherwise as put-wal there.

Examples:
  archive_command = '/usr/local/bin/barmanfs wal-archive main %p'
  archive_command = '/usr/local/bin/barmanfs wal-archive --remote barman@backup main %p'
  barmanfs wal-archive --remote barman@backup:2222 --program barman --test main";

/// Ends `barmanfs put-wal --help`.
pub(super) const PUT_WAL_HELP: &str = "\
Reads what barman-wal-archive and 'barmanfs wal-archive --remote' send: a tar of WAL files, and SHA256SUMS or MD5SUMS.
Exits with 0 only when each file is verified and safely on disk. A different file of the same name is refused.

Examples:
  cat segments.tar | barmanfs put-wal main
  barmanfs put-wal main --test";

/// Ends `barmanfs archive-wal --help`.
pub(super) const ARCHIVE_WAL_HELP: &str = "\
Archives what lies in incoming_wals_directory, and what receive-wal has left behind; prints the names. 'barmanfs cron'
does so every minute. What is no WAL goes into the directory errors beside it.

Examples:
  barmanfs archive-wal main";

/// Ends `barmanfs wal-restore --help`.
pub(super) const WAL_RESTORE_HELP: &str = "\
The exit codes are those of get-wal: 1 only when the file is certainly not in the archive, 200 or more for every trouble,
255 when ssh fails. PostgreSQL then stops, and does not promote. -c is the configuration on the other host.

Examples:
  restore_command = '/usr/local/bin/barmanfs wal-restore -p 4 -U barman backup main %f %p'
  barmanfs wal-restore --program barman --test backup main";

/// Ends `barmanfs get-wal --help`.
pub(super) const GET_WAL_HELP: &str = "\
Exits with 1 only when the archive was read and the file is not in it; every trouble is 200 or more, which
stops a recovery instead of ending it early.

Examples:
  restore_command = '/usr/local/bin/barmanfs get-wal main %f %p'
  barmanfs get-wal main 000000010000000000000042 > segment
  barmanfs get-wal main 000000010000000000000042 --partial -o /tmp
  barmanfs get-wal main 000000010000000000000042 --peek 8";

/// Ends `barmanfs index-wal --help`.
pub(super) const INDEX_WAL_HELP: &str = "\
What WAL says about points in time, tablespaces and settings is found when it is archived. A release that
looks for more, or reads another PostgreSQL version, finds the rest with this. Nothing else has to stop.

Examples:
  barmanfs index-wal main";

/// `receive-wal`
#[derive(Debug, Args)]
pub(crate) struct ReceiveWalArgs {
    /// Server of the configuration
    pub(crate) server: String,
    /// Stop the process that receives the server's WAL, and wait for its end
    #[arg(long, group = "instead")]
    pub(crate) stop: bool,
    /// Start again at the segment the server is writing now; WAL in between is not received
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
    #[arg(required_unless_present = "test")]
    pub(crate) path: Option<PathBuf>,
    /// The archive is on this host, [user@]host[:port]: send it there over ssh. -c is the configuration there
    #[arg(long, value_name = "HOST")]
    pub(crate) remote: Option<String>,
    /// How to send it.
    #[command(flatten)]
    pub(crate) send: SendOptions,
}

impl WalArchiveArgs {
    /// The file. It may be missing only from a test of the connection.
    pub(crate) fn path(&self) -> Result<&Path, Error> {
        let missing = || Error::usage("The path of the WAL file is missing");
        self.path.as_deref().ok_or_else(missing)
    }
}

/// How `wal-archive --remote` and `barman-wal-archive` send files.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct SendOptions {
    /// With --remote: program on that host, which takes 'put-wal'
    #[arg(long, value_name = "NAME", default_value = "barmanfs")]
    pub(crate) program: String,
    /// With --remote: send nothing, but ask whether the server is ready to accept WAL
    #[arg(short = 't', long)]
    pub(crate) test: bool,
    /// With --remote: MD5 instead of SHA-256, for an old Barman
    #[arg(long)]
    pub(crate) md5: bool,
    /// With --remote: compress with gzip
    #[arg(short = 'z', long, group = "compression")]
    pub(crate) gzip: bool,
    /// With --remote: compress with bzip2
    #[arg(short = 'j', long, group = "compression")]
    pub(crate) bzip2: bool,
    /// With --remote: compress with xz
    #[arg(long, group = "compression")]
    pub(crate) xz: bool,
    /// With --remote: compress with snappy
    #[arg(long, group = "compression")]
    pub(crate) snappy: bool,
    /// With --remote: compress with zstd
    #[arg(long, group = "compression")]
    pub(crate) zstd: bool,
    /// With --remote: compress with lz4
    #[arg(long, group = "compression")]
    pub(crate) lz4: bool,
    /// With --remote: level of the compression, or low, medium or high
    #[arg(long, value_name = "LEVEL", value_parser = level, allow_hyphen_values = true)]
    pub(crate) compression_level: Option<i32>,
}

impl SendOptions {
    /// Whether any of the options that need `--remote` is given.
    pub(crate) fn is_any(&self) -> bool {
        self.test || self.md5 || self.compression().is_some() || self.compression_level.is_some()
    }

    /// The checksums.
    pub(crate) fn hash(&self) -> Hash {
        match self.md5 {
            true => Hash::Md5,
            false => Hash::Sha256,
        }
    }

    /// The form in which files travel.
    pub(crate) fn compression(&self) -> Option<Compression> {
        let forms = [
            (self.gzip, Compression::Gzip),
            (self.bzip2, Compression::Bzip2),
            (self.xz, Compression::Xz),
            (self.snappy, Compression::Snappy),
            (self.zstd, Compression::Zstd),
            (self.lz4, Compression::Lz4),
        ];
        forms.into_iter().find_map(|(asked, form)| asked.then_some(form))
    }
}

/// Barman's words for levels are the lowest, the middle and the highest that all forms have.
fn level(text: &str) -> Result<i32, String> {
    match text.to_lowercase().as_str() {
        "low" => Ok(1),
        "medium" => Ok(5),
        "high" => Ok(9),
        number => number
            .parse()
            .map_err(|_| format!("'{text}' is no level: allowed are low, medium, high and a number")),
    }
}

/// `put-wal`
#[derive(Debug, Args)]
pub(crate) struct PutWalArgs {
    /// Server the WAL belongs to
    pub(crate) server: String,
    /// Only say whether WAL of the server would be accepted
    #[arg(short, long)]
    pub(crate) test: bool,
}

/// `archive-wal`
#[derive(Debug, Args)]
pub(crate) struct ArchiveWalArgs {
    /// Server of the configuration
    pub(crate) server: String,
}

/// `get-wal`
#[derive(Debug, Args)]
pub(crate) struct GetWalArgs {
    /// Server the WAL belongs to
    pub(crate) server: String,
    /// Name of the WAL file; PostgreSQL's %f
    #[arg(required_unless_present_any = ["test", "feed"])]
    pub(crate) name: Option<String>,
    /// File or directory to write to; PostgreSQL's %p [default: standard output]
    pub(crate) dest: Option<PathBuf>,
    /// Directory to write to, under the name of the file
    #[arg(short, long, value_name = "DIR", conflicts_with = "dest")]
    pub(crate) output_directory: Option<PathBuf>,
    /// Also a segment that is not complete: the one that is being received, or a .partial
    #[arg(short = 'P', long)]
    pub(crate) partial: bool,
    /// Only list the names of up to so many files that are there one after the other, from this one on
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with_all = ["dest", "output_directory", "form"])]
    pub(crate) peek: Option<u32>,
    /// Compress it with gzip
    #[arg(short = 'z', long, short_alias = 'x', group = "form")]
    pub(crate) gzip: bool,
    /// Compress it with bzip2
    #[arg(short = 'j', long, group = "form")]
    pub(crate) bzip2: bool,
    /// Compress it quickly, so that every client can read it
    #[arg(long, group = "form")]
    pub(crate) keep_compression: bool,
    /// Only say whether WAL of the server can be retrieved
    #[arg(short, long)]
    pub(crate) test: bool,
    /// Not from the archive, but from a history that was left, by its number in 'barmanfs history SERVER list'
    #[arg(long, value_name = "NUMBER")]
    pub(crate) left: Option<usize>,
    /// For the restore_command of a copy: tablespaces that the WAL creates stay in the copy
    #[arg(long, conflicts_with_all = ["left", "peek"])]
    pub(crate) replay: bool,
    /// Several files over one connection: their names come on standard input
    #[arg(long, hide = true, conflicts_with_all = ["name", "test", "peek", "left", "partial", "form", "output_directory"])]
    pub(crate) feed: bool,
}

/// `wal-restore`
#[derive(Debug, Args)]
pub(crate) struct WalRestoreArgs {
    /// What to fetch, and how.
    #[command(flatten)]
    pub(crate) fetch: FetchOptions,
}

/// How `wal-restore` and `barman-wal-restore` fetch a file.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct FetchOptions {
    /// Host of the archive
    pub(crate) host: String,
    /// Server the WAL belongs to
    pub(crate) server: String,
    /// Name of the WAL file; PostgreSQL's %f
    #[arg(required_unless_present = "test")]
    pub(crate) name: Option<String>,
    /// File to write; PostgreSQL's %p
    #[arg(required_unless_present = "test")]
    pub(crate) dest: Option<PathBuf>,
    /// User on that host
    #[arg(short = 'U', long)]
    pub(crate) user: Option<String>,
    /// Port of ssh on that host
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Program on that host, which takes 'get-wal'
    #[arg(long, value_name = "NAME")]
    pub(crate) program: Option<String>,
    /// Fetch up to so many segments ahead while PostgreSQL replays, over connections that are kept
    #[arg(short, long, value_name = "JOBS", default_value_t = 0)]
    pub(crate) parallel: u8,
    /// Directory of what was fetched ahead [default: .barmanfs-spool beside the file]
    #[arg(long, value_name = "DIR")]
    pub(crate) spool_dir: Option<PathBuf>,
    /// Also a segment that is not complete
    #[arg(short = 'P', long)]
    pub(crate) partial: bool,
    /// For a copy: tablespaces that the WAL creates stay in the copy; needs barmanfs on the other host
    #[arg(long)]
    pub(crate) replay: bool,
    /// Have it compressed with gzip on its way
    #[arg(short = 'z', long, group = "form")]
    pub(crate) gzip: bool,
    /// Have it compressed with bzip2 on its way
    #[arg(short = 'j', long, group = "form")]
    pub(crate) bzip2: bool,
    /// Have it as it is stored on its way
    #[arg(long, group = "form")]
    pub(crate) keep_compression: bool,
    /// Fetch nothing, but ask whether WAL of the server can be retrieved
    #[arg(short, long)]
    pub(crate) test: bool,
    /// Sleep so long before the end when the file was not fetched
    #[arg(short, long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) sleep: u64,
    /// The process that fetches ahead
    #[arg(long, hide = true)]
    pub(crate) prefetch: bool,
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
