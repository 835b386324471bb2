//! The file that marks an incomplete restore. It is for people, and for the command that continues.

use std::io::{Read, Write};

use barmanfs_catalog::{Backup, BackupId, ServerName};
use barmanfs_pg::TimestampMicros;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::pattern::Pattern;
use super::place::Place;
use super::tablespaces::Relocations;
use crate::error::Error;

/// Its name.
pub(super) const NAME: &str = ".barmanfs-restore-incomplete";

/// The commands that write it.
pub(super) const RESTORE: &str = "restore";
pub(super) const CATCHUP: &str = "catchup";

/// It has a few lines and the patterns that a person typed.
const MAX_BYTES: u64 = 1 << 20;

/// Its content.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Marker {
    /// For the person who finds it.
    about: String,
    pub(super) server: ServerName,
    pub(super) backup: BackupId,
    started_at: TimestampMicros,
    /// What must not be removed: it was there before, and is not of the backup.
    pub(super) keep: Vec<Pattern>,
    /// Whether a standby is caught up, whose own files stay.
    #[serde(default)]
    pub(super) catches_up: bool,
    /// The tablespaces outside the directory that belong to the restore.
    pub(super) tablespaces: Relocations,
}

impl Marker {
    /// The marker of a restore that begins now.
    pub(super) fn new(
        backup: &Backup,
        keep: Vec<Pattern>,
        tablespaces: Relocations,
        catches_up: bool,
    ) -> Self {
        let command = if catches_up { CATCHUP } else { RESTORE };
        Self {
            about: format!(
                "This directory holds an incomplete restore. Run 'barmanfs {command}' with the same arguments \
                    to continue: what is here is then overwritten or removed."
            ),
            catches_up,
            server: backup.server.clone(),
            backup: backup.id,
            started_at: std::time::SystemTime::now().into(),
            keep,
            tablespaces,
        }
    }

    /// Reads the marker in a directory; `None` if there is none. One that a crash has cut short is like an empty one.
    pub(super) fn read(place: &Place) -> Result<Option<Option<Self>>, Error> {
        let Some(file) = place.open_file(NAME.as_bytes(), true)? else {
            return Ok(None);
        };
        let mut text = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut text)
            .map_err(|error| place.failed("read", NAME.as_bytes(), error))?;
        Ok(Some(serde_json::from_slice(&text).ok()))
    }

    /// Writes it durably. It is locked as long as the file is open, so that another restore notices this one.
    pub(super) fn write(&self, place: &Place) -> Result<std::fs::File, Error> {
        let name = NAME.as_bytes();
        let fail = |error| place.failed("write", name, error);
        let mut file = match place.open_file(name, false)? {
            Some(file) => file,
            None => place.make_file(name)?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::failed(format!(
                    "Another restore writes to {} now",
                    place.path().display()
                )));
            }
            locked => locked.map_err(|error| fail(error.into()))?,
        }
        let text = serde_json::to_vec_pretty(self).map_err(|error| fail(error.into()))?;
        file.set_len(0)
            .and_then(|()| file.write_all(&text))
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| file.sync_all())
            .map_err(fail)?;
        place.sync()?;
        Ok(file)
    }
}
