//! What WAL-G writes into its storage, format 005 (read in the sources of 0.2 to 3.0.9).
//!
//! ```text
//! basebackups_005/<name>_backup_stop_sentinel.json       the backup is complete                [`Sentinel`]
//! basebackups_005/<name>/metadata.json                   times, permanence, user data           [`Metadata`]
//! basebackups_005/<name>/files_metadata.json             every file, and what is stored of it   [`FilesMetadata`]
//! basebackups_005/<name>/tar_partitions/part_001.tar.lz4 files, in any order
//! basebackups_005/<name>/tar_partitions/copy_0.tar.lz4   the same, copied from the backup before
//! basebackups_005/<name>/tar_partitions/pg_control.tar.lz4       global/pg_control
//! basebackups_005/<name>/tar_partitions/backup_label.tar.lz4     backup_label, tablespace_map
//! wal_005/000000010000000000000004.lz4                   a WAL file
//! ```
//!
//! - A full backup is `base_000000010000000000000002`, for the segment where it begins. A delta is
//!   `base_000000010000000000000006_D_000000010000000000000002`, for the one that it builds on.
//! - Archives are cut between files only. Which composer has chosen the archive of a file (regular, rating, copy, database)
//!   makes no difference.
//! - A backup of a local directory has names with a slash before them (`/base/5/1259`), and archives with their end blocks. It
//!   has `pg_control` and the label in archives of their own. A `backup_label` in another archive is somebody else's.
//! - A backup over the replication protocol has names without that slash. Its `pg_control` is in the last part too, and two
//!   of its archives have no end blocks: the last part of each tablespace and `pg_control.tar`.
//! - Directories are members. Tablespaces are in `pg_tblspc/<oid>/`; the sentinel knows their places ([`Sentinel::tablespaces`]).
//! - Of a delta, each file is stored as a whole, as an increment ([`Increment`]), or not at all when it has the time that it had in
//!   the backup before ([`FileState`]). The backup before may be a delta as well. What is not listed does not exist any more.
//! - Data is compressed, then encrypted. The name shows the compression; nothing shows the encryption.

mod files;
mod increment;
mod names;
mod sentinel;

pub use files::{FileState, FilesError, FilesMetadata};
pub use increment::{Increment, IncrementError, PAGE_BYTES};
pub use names::{ArchiveName, ArchiveRole, BackupName, Compression, WalFile, is_temporary, sentinel_name};
pub use sentinel::{Metadata, Sentinel, Tablespace};
