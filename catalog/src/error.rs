//! Errors of the catalog. Each message names the object and says what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use barmanfs_pg::wal_check::WalError;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SystemId};
use rustix::io::Errno;

use crate::names::{BackupId, CloneName, InvalidName, ServerName};

mod convert;

/// Result of the catalog's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation of the catalog failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// WAL whose replay would write outside the copy it runs in.
    #[error("The replay of {name} of server {server} cannot be kept within a copy: {reason}")]
    NotConfined {
        /// Whose it is.
        server: ServerName,
        /// The segment.
        name: SegmentName,
        /// Why not.
        reason: String,
    },
    /// The operating system refused.
    #[error("Cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "create".
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// The file system is full, or the user's quota is used up.
    #[error("No space left to write {}: everything acknowledged before is safe; free space and run again", path.display())]
    Full {
        /// The file that could not be written.
        path: PathBuf,
    },
    /// The directory is not a repository.
    #[error("{} is not a barmanfs repository: it has no repository.json", path.display())]
    NoRepository {
        /// The directory.
        path: PathBuf,
    },
    /// The directory has packs but no repository.json.
    #[error("{} has packs but no repository.json: make a repository of them again with `barmanfs rebuild-catalog`", path.display())]
    SettingsMissing {
        /// The directory.
        path: PathBuf,
    },
    /// A repository cannot be created here.
    #[error("Cannot create a repository in {}: {reason}", path.display())]
    CannotCreate {
        /// The directory.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// repository.json is not as barmanfs writes it.
    #[error("{} is damaged: {reason}; put it back from any copy of the repository, it never changes, or move it away and run `barmanfs rebuild-catalog`, which makes it again", path.display())]
    BadSettings {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A repository or record was written by a later release.
    #[error(
        "{what} has format version {found}, this barmanfs reads versions up to {newest}: use the newer barmanfs that wrote it"
    )]
    NewerFormat {
        /// The repository or a record.
        what: String,
        /// The version found.
        found: u32,
        /// The newest version this release reads.
        newest: u32,
    },
    /// There is no catalog.sqlite.
    #[error("The catalog {} is missing: make it again from the packs with `barmanfs rebuild-catalog`", path.display())]
    CatalogMissing {
        /// The file.
        path: PathBuf,
    },
    /// catalog.sqlite has a layout that this release cannot convert to its own.
    #[error("The catalog {} has layout {found}, this barmanfs uses {expected}: make it again from the packs with `barmanfs rebuild-catalog`", path.display())]
    CatalogLayout {
        /// The file.
        path: PathBuf,
        /// The layout found.
        found: i64,
        /// The layout this release uses.
        expected: i64,
    },
    /// catalog.sqlite was created by a later release. A rebuild by this release might leave out what the later one
    /// wrote.
    #[error("The catalog {} has layout {found}, this barmanfs uses {expected}: use the newer barmanfs that made it", path.display())]
    CatalogNewer {
        /// The file.
        path: PathBuf,
        /// The layout found.
        found: i64,
        /// The layout this release uses.
        expected: i64,
    },
    /// catalog.sqlite is damaged.
    #[error("The catalog {} is damaged ({reason}): make it again from the packs with `barmanfs rebuild-catalog`", path.display())]
    CatalogDamaged {
        /// The file.
        path: PathBuf,
        /// SQLite's answer.
        reason: String,
    },
    /// The catalog can be read but not written.
    #[error("The catalog {} cannot be written: its file system is read-only, or it belongs to another user", path.display())]
    CatalogReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// Other processes kept catalog.sqlite locked for longer than any normal operation takes.
    #[error("The catalog {} stayed locked by another process: run again", path.display())]
    CatalogBusy {
        /// The file.
        path: PathBuf,
    },
    /// SQLite failed in another way.
    #[error("The catalog {} cannot be used: {reason}", path.display())]
    Catalog {
        /// The file.
        path: PathBuf,
        /// SQLite's answer.
        reason: String,
    },
    /// A record is not as barmanfs writes it.
    #[error("Record {id} is damaged: {reason}")]
    BadRecord {
        /// The record.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A record of a later release.
    #[error(
        "Record {id} is of kind {kind}, which this barmanfs does not know; what it uses is not known either, so nothing is freed: use the newer barmanfs that wrote it"
    )]
    UnknownRecord {
        /// The record.
        id: String,
        /// Its kind.
        kind: u8,
    },
    /// A pack that is not in the catalog is damaged.
    #[error(
        "What the records of a pack use is not known, so nothing is freed: {0}; put the pack back from a copy of the repository, or move it away to give up what it holds"
    )]
    UnknownPack(barmanfs_store::Error),
    /// Something is not in the catalog, but it may be in a pack that could not be read.
    #[error(
        "{count} packs of the repository are not read, so that nothing can be said of what they may hold; the first is {pack}: {reason}"
    )]
    NotProven {
        /// How many.
        count: u64,
        /// One of them.
        pack: String,
        /// Why it could not be read, and what to do.
        reason: String,
    },
    /// A rebuild would replace the catalog by an empty one.
    #[error(
        "There is no pack in {}, though the catalog knows {known}: is its file system mounted? The catalog stays as it is; to give it up all the same, add --force",
        path.display()
    )]
    NoPackLeft {
        /// The directory of packs.
        path: PathBuf,
        /// The number of packs in the catalog.
        known: usize,
    },
    /// The store failed.
    #[error(transparent)]
    Store(barmanfs_store::Error),
    /// A text that is not a valid name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// There is no such backup.
    #[error("Server {server} has no backup {selector}")]
    NoSuchBackup {
        /// The server asked for.
        server: ServerName,
        /// The id or word asked for.
        selector: String,
    },
    /// The server's name belongs to another cluster.
    #[error(
        "Server {server} is the cluster with system identifier {expected}, this one has {found}: after a new initdb or for another cluster, use another server name"
    )]
    OtherSystem {
        /// The server.
        server: ServerName,
        /// The cluster recorded under this name.
        expected: SystemId,
        /// The cluster that was found.
        found: SystemId,
    },
    /// The file's content does not match its name.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// A WAL file that cannot be archived because of its size.
    #[error("{name} {reason}")]
    WalSize {
        /// The file.
        name: WalName,
        /// "has 12 bytes but 16 were read", "is larger than …".
        reason: String,
    },
    /// A `.history` or `.backup` file that does not match its name or cannot be read.
    #[error("{name} of server {server} is not what its name says: {reason}")]
    BadWalFile {
        /// The file.
        name: WalName,
        /// Whose.
        server: ServerName,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such file in quarantine.
    #[error("Server {server} has no {name} in quarantine")]
    NotInQuarantine {
        /// The server asked for.
        server: ServerName,
        /// The name or id asked for.
        name: String,
    },
    /// Several files in quarantine have the name.
    #[error("Several files in quarantine are called {name}: name one by its id, {}", ids.join(" or "))]
    SeveralInQuarantine {
        /// The name asked for.
        name: String,
        /// Their ids.
        ids: Vec<String>,
    },
    /// There is no such file in the archive.
    #[error("{name} of server {server} is not in the archive")]
    NotArchived {
        /// The file.
        name: WalName,
        /// Whose.
        server: ServerName,
    },
    /// The archive has a file of that name and keeps it.
    #[error(
        "The archive has a {name} of server {server} {}",
        if *replaceable { "that cannot be used: add --replace to put it into quarantine in exchange" } else { "that is as it should be: it stays" }
    )]
    ArchivedIsGood {
        /// The file.
        name: WalName,
        /// Whose.
        server: ServerName,
        /// Whether the archived file is unusable and may be replaced.
        replaceable: bool,
    },
    /// A quarantined file would mix two histories.
    #[error(
        "{name} of server {server} is not of the history that is archived: {why}. 'barmanfs history {server} list' tells how to decide which one counts"
    )]
    OfAnotherHistory {
        /// The file.
        name: WalName,
        /// Whose.
        server: ServerName,
        /// How the difference shows.
        why: String,
    },
    /// A `.history` file says where its timeline branched off, and something on this timeline is still stored.
    #[error(
        "Not taking {name} of server {server} out of the archive: {needs} is on its timeline, and nobody could recover along it"
    )]
    HistoryIsNeeded {
        /// The file.
        name: WalName,
        /// Whose.
        server: ServerName,
        /// A file of the archive or a backup.
        needs: String,
    },
    /// Reading the WAL file to be archived failed.
    #[error("Cannot read {name}: {source}")]
    WalSource {
        /// The file.
        name: WalName,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// A backup of this server is already running.
    #[error("A backup of server {server} is already running ({holder}): wait for it to end")]
    BackupRunning {
        /// The server.
        server: ServerName,
        /// Who runs it.
        holder: String,
    },
    /// Another process receives the server's WAL.
    #[error("WAL of server {server} is already being received ({holder}): one process does that at a time")]
    Receiving {
        /// The server.
        server: ServerName,
        /// Who does it.
        holder: String,
    },
    /// The server now sends different WAL than before.
    #[error(
        "The server sends other WAL for segment {name} than it did before, within what follows {lsn}: it is not the same history"
    )]
    SpoolDiverges {
        /// The segment.
        name: SegmentName,
        /// Where the compared bytes begin.
        lsn: Lsn,
    },
    /// A file in the spool does not have the length of a segment.
    #[error("{} has {found} bytes, but segments of its server have {expected}: move it away if it is of another server", path.display())]
    SpoolSize {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// A segment's.
        expected: u64,
    },
    /// A backup is being read.
    #[error("Backup {id} of server {server} is being read ({holder}): close what reads it, or use --force")]
    BackupInUse {
        /// Its server.
        server: ServerName,
        /// Its id.
        id: BackupId,
        /// Who reads it.
        holder: String,
    },
    /// Somebody keeps a backup.
    #[error(
        "Backup {id} of server {server} is kept by somebody: release it first ('barmanfs keep {server} {id} --release')"
    )]
    BackupKept {
        /// Its server.
        server: ServerName,
        /// Its id.
        id: BackupId,
    },
    /// It is not known whether another backup is as good as this one.
    #[error(
        "Backup {id} of server {server} is not deleted, as it may be the only good one: a rebuild of the catalog did not end, \
         so it is not known what is lost; run 'barmanfs verify' first, or use --force"
    )]
    Unexamined {
        /// Its server.
        server: ServerName,
        /// Its id.
        id: BackupId,
    },
    /// Clones are based on a backup.
    #[error(
        "{} based on backup {id} of server {server}: destroy {} first, or use --force, which keeps the data",
        clones_are(clones),
        if clones.len() == 1 { "it" } else { "them" }
    )]
    BackupHasClones {
        /// Its server.
        server: ServerName,
        /// Its id.
        id: BackupId,
        /// The clones.
        clones: Vec<CloneName>,
    },
    /// There is no such clone.
    #[error("Server {server} has no clone {name}")]
    NoSuchClone {
        /// The server asked for.
        server: ServerName,
        /// The name asked for.
        name: CloneName,
    },
    /// A clone of this name exists already.
    #[error("Server {server} has a clone {name} already: destroy it first, or use another name")]
    CloneExists {
        /// The server.
        server: ServerName,
        /// The name.
        name: CloneName,
    },
    /// Another process serves, creates or removes the clone.
    #[error("Clone {name} of server {server} is in use ({holder})")]
    CloneInUse {
        /// The server.
        server: ServerName,
        /// The clone.
        name: CloneName,
        /// Who has it.
        holder: String,
    },
    /// clone.json is not as barmanfs writes it.
    #[error("{} is damaged: {reason}; what the clone needs is not known, so nothing is freed: destroy the clone by removing its directory", path.display())]
    BadClone {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An operation that excludes this one is in progress.
    #[error("{what} is going on ({holder}): {advice}")]
    Occupied {
        /// "A sweep", "A rebuild of the catalog", "A writer".
        what: &'static str,
        /// Who does it.
        holder: String,
        /// What to do.
        advice: &'static str,
    },
    /// The caller made a mistake.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Wraps an operating system error, with the action and the file. A full file system becomes [`Error::Full`].
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            _ => Self::Io {
                action,
                path,
                source: Arc::new(source),
            },
        }
    }

    /// Fills in the catalog's path in an error that came from SQLite.
    pub(crate) fn in_catalog(mut self, catalog: &Path) -> Self {
        match &mut self {
            Self::Full { path }
            | Self::CatalogDamaged { path, .. }
            | Self::CatalogBusy { path }
            | Self::CatalogReadOnly { path }
            | Self::Catalog { path, .. }
                if path.as_os_str().is_empty() =>
            {
                *path = catalog.to_path_buf();
            }
            _ => {}
        }
        self
    }

    /// Whether the file system is full.
    pub(crate) fn is_full(&self) -> bool {
        matches!(
            self,
            Self::Full { .. } | Self::Store(barmanfs_store::Error::Full { .. })
        )
    }

    /// The number of the operating system's error that caused this one.
    pub fn os_error(&self) -> Option<Errno> {
        match self {
            Self::Io { source, .. } | Self::WalSource { source, .. } => Errno::from_io_error(source),
            Self::Full { .. } => Some(Errno::NOSPC),
            Self::CatalogReadOnly { .. } => Some(Errno::ROFS),
            Self::Store(error) | Self::UnknownPack(error) => error.os_error(),
            Self::NotConfined { .. }
            | Self::NoRepository { .. }
            | Self::SettingsMissing { .. }
            | Self::CannotCreate { .. }
            | Self::BadSettings { .. }
            | Self::NewerFormat { .. }
            | Self::CatalogMissing { .. }
            | Self::CatalogLayout { .. }
            | Self::CatalogNewer { .. }
            | Self::CatalogDamaged { .. }
            | Self::CatalogBusy { .. }
            | Self::Catalog { .. }
            | Self::BadRecord { .. }
            | Self::UnknownRecord { .. }
            | Self::NotProven { .. }
            | Self::NoPackLeft { .. }
            | Self::Name(_)
            | Self::NoSuchBackup { .. }
            | Self::OtherSystem { .. }
            | Self::Wal(_)
            | Self::WalSize { .. }
            | Self::BadWalFile { .. }
            | Self::NotInQuarantine { .. }
            | Self::SeveralInQuarantine { .. }
            | Self::NotArchived { .. }
            | Self::ArchivedIsGood { .. }
            | Self::OfAnotherHistory { .. }
            | Self::HistoryIsNeeded { .. }
            | Self::BackupRunning { .. }
            | Self::Receiving { .. }
            | Self::SpoolDiverges { .. }
            | Self::SpoolSize { .. }
            | Self::BackupInUse { .. }
            | Self::BackupHasClones { .. }
            | Self::BackupKept { .. }
            | Self::Unexamined { .. }
            | Self::NoSuchClone { .. }
            | Self::CloneExists { .. }
            | Self::CloneInUse { .. }
            | Self::BadClone { .. }
            | Self::Occupied { .. }
            | Self::Invalid(_) => None,
        }
    }

    /// Whether the error means that the repository or this file can be read but not written.
    pub fn is_read_only(&self) -> bool {
        let refused = |source: &io::Error| {
            matches!(
                source.kind(),
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
            )
        };
        match self {
            Self::CatalogReadOnly { .. } => true,
            Self::Io { source, .. } | Self::Store(barmanfs_store::Error::Io { source, .. }) => {
                refused(source)
            }
            _ => false,
        }
    }

    /// Whether stored data is lost or unreadable. The other errors are operations that failed and may be retried.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Store(error) | Self::UnknownPack(error) => error.is_damage(),
            Self::BadRecord { .. } => true,
            _ => false,
        }
    }
}

/// "Clones a, b are", "Clone a is".
fn clones_are(clones: &[CloneName]) -> String {
    let names: Vec<&str> = clones.iter().map(CloneName::as_str).collect();
    match names.as_slice() {
        [name] => format!("Clone {name} is"),
        names => format!("Clones {} are", names.join(", ")),
    }
}
