//! `backup.manifest`: every file of a backup, and where it is.
//!
//! Files are named `pg_data/<path>`, those of tablespaces `pg_tblspc/<oid>/<path>`. Owners and modes are left out where they are
//! those of the sections `target:file:default` and `target:path:default`, which come last. Links other than those of tablespaces
//! are not taken over: what they point to is listed under their names, and becomes a part of the data directory, as
//! `pgbackrest restore` does it without `--link-all`.

use std::io::BufRead;

use barmanfs_pg::{Lsn, ServerVersion, SystemId, TimelineId, TimestampMicros};

use super::info::{self, InfoError};
use super::{Compression, Label, Passphrase, Sha1Sum};

mod draft;
mod lines;

/// Who owns a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A name, by its number in [`Manifest::names`].
    Named(u32),
    /// Its number had no name where the backup was taken.
    Unknown,
}

/// A part of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The number of the bundle.
    pub bundle: u64,
    /// Where it begins.
    pub offset: u64,
}

/// How a file is cut into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// The size of a block.
    pub block_bytes: u64,
    /// The size of a block's checksum in the map.
    pub checksum_bytes: usize,
    /// The size of the map, as it is stored: the last bytes of what is stored of the file.
    pub map_bytes: u64,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path in the data directory; in a tablespace, `pg_tblspc/<oid>/…`.
    pub path: Box<[u8]>,
    /// It is in a tablespace.
    pub is_in_tablespace: bool,
    /// Permission bits.
    pub mode: u32,
    /// Its user.
    pub user: Owner,
    /// Its group.
    pub group: Owner,
    /// When it was changed, in seconds since 1970.
    pub mtime_s: i64,
    /// Its size.
    pub size_bytes: u64,
    /// SHA-1 of its content.
    pub checksum: Sha1Sum,
    /// SHA-1 of what is stored of it, if that is known.
    pub stored_checksum: Option<Sha1Sum>,
    /// How much is stored of it.
    pub stored_bytes: u64,
    /// The backup that has it, by its number in [`Manifest::references`]; none if it is this one.
    pub reference: Option<u32>,
    /// Where it is in a bundle; none if it has a file of its own.
    pub piece: Option<Piece>,
    /// By blocks, if it is stored so.
    pub blocks: Option<Blocks>,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Its path as that of a [`File`]; empty for the data directory itself.
    pub path: Box<[u8]>,
    /// Permission bits.
    pub mode: u32,
    /// Its user.
    pub user: Owner,
    /// Its group.
    pub group: Owner,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its number.
    pub oid: u32,
    /// Its name.
    pub name: Option<String>,
    /// Where it was.
    pub location: String,
}

/// A backup.
#[derive(Debug)]
pub struct Manifest {
    /// The release that made it: "2.60.0".
    pub version: String,
    /// What the backup's files are encrypted with.
    pub passphrase: Option<Passphrase>,
    /// Its name.
    pub label: Label,
    /// When it began.
    pub start_time: TimestampMicros,
    /// When it ended.
    pub stop_time: TimestampMicros,
    /// Where replay begins, and on which timeline. None if the server was stopped.
    pub start: Option<(TimelineId, Lsn)>,
    /// Where it is complete.
    pub stop_lsn: Option<Lsn>,
    /// The number that `initdb` gave the database.
    pub system_id: SystemId,
    /// Its version, without the minor one.
    pub server_version: ServerVersion,
    /// How files are compressed.
    pub compression: Compression,
    /// Pieces of bundles are encrypted and compressed without what a file has in front.
    pub is_bundle_raw: bool,
    /// The WAL that it needs is among its files.
    pub has_wal: bool,
    /// Its files were read from a standby.
    pub is_from_standby: bool,
    /// The backups that have its files.
    pub references: Vec<Label>,
    /// Names of users and groups.
    pub names: Vec<String>,
    /// Tablespaces, in the order of their numbers.
    pub tablespaces: Vec<Tablespace>,
    /// Directories, each after the one that it is in.
    pub directories: Vec<Directory>,
    /// Files, in the order of their paths.
    pub files: Vec<File>,
}

impl Manifest {
    /// Reads it, decrypted.
    ///
    /// # Errors
    /// When it is cut, damaged, not as pgBackRest writes it, or of a backup that was not finished.
    pub fn parse(source: impl BufRead) -> Result<Self, InfoError> {
        let mut draft = draft::Draft::default();
        let frame = info::read(source, |entry| draft.take(&entry))?;
        draft.finish(frame.version, frame.passphrase)
    }

    /// The name of an owner.
    #[must_use]
    pub fn name(&self, owner: Owner) -> Option<&str> {
        match owner {
            Owner::Named(number) => self.names.get(number as usize).map(String::as_str),
            Owner::Unknown => None,
        }
    }

    /// The backup that has a file.
    #[must_use]
    pub fn holder(&self, file: &File) -> &Label {
        let reference = file
            .reference
            .and_then(|number| self.references.get(number as usize));
        reference.unwrap_or(&self.label)
    }

    /// Where a backup's directory has a file that is not in a bundle, with what is behind its name.
    #[must_use]
    pub fn stored_path(&self, file: &File) -> Vec<u8> {
        let root = if file.is_in_tablespace {
            b"".as_slice()
        } else {
            b"pg_data/"
        };
        let extension = file.blocks.map_or(self.compression.extension(), |_| ".pgbi");
        [root, &file.path, extension.as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests;
