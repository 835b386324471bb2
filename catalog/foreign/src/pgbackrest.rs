//! What pgBackRest writes into its repository, format 5 (since 1.0; measured with 2.45 and 2.60).
//!
//! ```text
//! backup/<stanza>/backup.info         which backups there are, of which databases      [`BackupInfo`]
//! backup/<stanza>/<label>/backup.manifest         every file of a backup and where it is   [`Manifest`]
//! backup/<stanza>/<label>/pg_data/<path>[.gz]     a file of its own
//! backup/<stanza>/<label>/pg_data/<path>.pgbi     the same, by blocks                  [`BlockMap`]
//! backup/<stanza>/<label>/bundle/<number>         many files, one after the other
//! archive/<stanza>/archive.info       which directories hold the WAL of which database  [`ArchiveInfo`]
//! archive/<stanza>/18-1/0000000100000000/000000010000000000000004-<SHA-1>[.gz]         [`ArchivedFile`]
//! archive/<stanza>/18-1/00000002.history
//! ```
//!
//! - Info files and manifests are lines of `[section]` and `key=JSON`, with a checksum of their own ([`info`]). Each has a copy
//!   beside it, with `.copy` behind its name.
//! - A full backup is `20261130-031850F`, one that builds on it `20261130-031850F_20261130-031853D` (differential) or `…I`
//!   (incremental). A file with a `reference` is in that backup's directory; all other files are in their own.
//! - A file in a bundle has the number of the bundle (`bni`) and where it begins (`bno`), and `repo-size` bytes there. With
//!   `backup-bundle-raw` such a file is encrypted without the magic, and compressed by gz with zlib's header.
//! - A file by blocks (`bi`, the size of a block in units of 8 KiB) has its new blocks first, then its map of `bim` bytes.
//! - Files of size 0 have no content in a bundle.
//! - Encryption is [`Decrypted`]'s. The user's passphrase opens `backup.info` and `archive.info`. These have a passphrase each:
//!   for the manifests, and for the WAL. Each manifest has one for its backup's files. Data is compressed, then encrypted.
//! - Checksums are SHA-1: of a file's content (`checksum`), and of what is stored of it (`rck`).

mod archive_info;
mod backup_info;
mod block_map;
mod cipher;
pub mod info;
mod manifest;
mod names;

pub use archive_info::ArchiveInfo;
pub use backup_info::{BackupInfo, Database, ListedBackup};
pub use block_map::{BlockMap, BlockMapError, Run, SuperBlock};
pub use cipher::{Decrypted, Header, Passphrase};
pub use manifest::{Blocks, Directory, File, Manifest, Owner, Piece, Tablespace};
pub use names::{ArchivedFile, BackupKind, Compression, Label, archive_directory_version, server_version};

/// SHA-1 of content.
pub type Sha1Sum = [u8; 20];

fn sha1_sum(digits: &str) -> Option<Sha1Sum> {
    barmanfs_pg::hex::decode(digits)?.try_into().ok()
}
