//! Makes the server keep its WAL for as long as a backup needs it.
//!
//! PostgreSQL drops the temporary slots of a session as soon as any command of that session fails, and some failures
//! are part of a good backup: an incremental backup that turns out to be impossible, page checksum failures that are
//! reported after everything was sent, a missing history file. So the slot has a session of its own, in which nothing
//! else runs. If the server has no connection to spare, the slot belongs to the backup's own session and is created
//! again after a failure.

use std::sync::atomic::{AtomicU32, Ordering};

use barmanfs_catalog::BackupId;
use barmanfs_pg::ServerVersion;

use crate::error::Error;
use crate::postgres::{self, Connection};

/// The first version that can end a session because it is idle.
const FIRST_WITH_IDLE_TIMEOUT_MAJOR: u32 = 14;

/// The slot of one backup.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    /// The session of the slot, if it is not the backup's own.
    own: Option<Connection>,
    /// Whether the slot belongs to the backup's own session.
    shared: bool,
}

impl Hold {
    /// Makes the server keep all WAL from now on, until this is dropped. If the server has no slot to spare, the backup
    /// continues. It fails if the server removes WAL that it must send, and the server never removes WAL that its
    /// archiver has not archived.
    ///
    /// # Errors
    /// When the backup's own connection broke.
    pub(crate) fn begin(
        &mut self,
        connection: &mut Connection,
        version: ServerVersion,
        id: BackupId,
    ) -> Result<(), Error> {
        let options =
            (version.major() >= FIRST_WITH_IDLE_TIMEOUT_MAJOR).then_some("-c idle_session_timeout=0");
        match connection.another(options) {
            Ok(mut own) => match own.create_temporary_slot(&next_name(id)) {
                Ok(()) => {
                    self.own = Some(own);
                    Ok(())
                }
                Err(error) => {
                    warn(&error);
                    Ok(())
                }
            },
            Err(error) => {
                tracing::debug!("The slot of this backup shares its connection: {error}");
                self.shared = true;
                self.renew(connection, id)
            }
        }
    }

    /// Creates a shared slot again if it is gone: a command of the backup's session has failed, or the session is a new
    /// one.
    ///
    /// # Errors
    /// When the backup's own connection broke.
    pub(crate) fn renew(&mut self, connection: &mut Connection, id: BackupId) -> Result<(), Error> {
        if !self.shared || connection.temporary_slot().is_some() {
            return Ok(());
        }
        match connection.create_temporary_slot(&next_name(id)) {
            Ok(()) => Ok(()),
            Err(error @ postgres::Error::Server(_)) => {
                warn(&error);
                self.shared = false;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Each slot has a name of its own: several servers of the configuration may be one, and an earlier session may not have ended
/// yet.
fn next_name(id: BackupId) -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed) + 1;
    let id = id.to_string().to_lowercase();
    format!("barmanfs_{id}_{}_{number}", std::process::id())
}

fn warn(error: &postgres::Error) {
    tracing::warn!("No replication slot for this backup: {error}");
}
