//! What is stored of a server.

use barmanfs_catalog::{
    Backup, BackupId, BackupStatus, CrossingRecord, Receiver, RecoveryWindow, Repository, ServerName,
};
use barmanfs_pg::{SegmentSize, SystemId, TimestampMicros};
use serde::Serialize;

use crate::config::ServerConfig;
use crate::error::Error;

/// The facts.
#[derive(Debug)]
pub(crate) struct Stored {
    /// The cluster.
    pub(crate) system_id: Option<SystemId>,
    /// The server's own backups that are DONE, oldest first.
    pub(crate) backups: Vec<BackupId>,
    /// The last file of WAL that arrived: archived, or being received.
    pub(crate) last_wal: Option<LastWal>,
    /// The process that receives its WAL.
    pub(crate) receiver: Option<Receiver>,
    /// From when on and up to when it can be recovered.
    pub(crate) window: RecoveryWindow,
    /// Timelines with two histories without a decision.
    pub(crate) open_forks: usize,
    /// Size of the packs of the whole repository, in bytes.
    pub(crate) repository_bytes: u64,
}

/// The last WAL that arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LastWal {
    /// The segment.
    pub(crate) name: String,
    /// When it arrived; for a segment that is being received, when something of it last did.
    pub(crate) time: TimestampMicros,
    /// Whether it is still being received.
    pub(crate) is_partial: bool,
}

impl Stored {
    /// Reads them.
    ///
    /// # Errors
    /// When the catalog or the spool cannot be read.
    pub(crate) fn of(repository: &Repository, server: &ServerName) -> Result<Self, Error> {
        let backups = repository.backups(server)?;
        let is_done =
            |backup: &&Backup| backup.status == BackupStatus::Done && backup.is_of_current_history();
        let own = backups.iter().filter(is_done);
        Ok(Self {
            system_id: repository.system_id(server)?,
            backups: own.map(|Backup { id, .. }| *id).collect(),
            last_wal: last_wal(repository, server)?,
            receiver: repository.receiver(server)?,
            window: repository.recovery_window(server, &backups)?,
            open_forks: repository.open_forks(server)?.len(),
            repository_bytes: repository.pack_totals()?.bytes,
        })
    }

    /// The record that goes on behind the newest state; the server has segments of this size.
    pub(super) fn crossing(
        &self,
        repository: &Repository,
        server: &ServerConfig,
        size: SegmentSize,
    ) -> Result<CrossingRecord, Error> {
        match &self.window.newest {
            Some(newest) => Ok(repository.crossing_record(&server.name, newest, size)?),
            None => Ok(CrossingRecord::Unknown),
        }
    }
}

fn last_wal(repository: &Repository, server: &ServerName) -> Result<Option<LastWal>, Error> {
    let receiving = repository.receiving(server)?.into_iter().map(|segment| LastWal {
        name: segment.name.to_string(),
        time: segment.modified,
        is_partial: !segment.complete,
    });
    let archived = repository.wal(server).newest_segment()?.map(|entry| LastWal {
        name: entry.name.to_string(),
        time: entry.archived_at,
        is_partial: false,
    });
    Ok(receiving.chain(archived).max_by_key(|last| last.time))
}
