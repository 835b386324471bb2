//! The file that marks an incomplete restore. It is for people, and for the command that continues.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use barmanfs_catalog::{Backup, BackupId, ServerName};
use barmanfs_pg::{SystemId, TimestampMicros};
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
    /// Its system identifier.
    #[serde(default)]
    pub(super) system_id: Option<SystemId>,
    pub(super) backup: BackupId,
    started_at: TimestampMicros,
    /// What must not be removed: it was there before, and is not of the backup.
    pub(super) keep: Vec<Pattern>,
    /// Whether a standby is caught up, whose own files stay.
    #[serde(default)]
    pub(super) catches_up: bool,
    /// The tablespaces outside the directory that belong to the restore, and the WAL if that is outside.
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
            system_id: Some(backup.system_id),
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

    /// Writes it durably into the file that [`lock`] gave.
    pub(super) fn write(&self, place: &Place, file: &File) -> Result<(), Error> {
        let fail = |error| place.failed("write", NAME.as_bytes(), error);
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| fail(error.into()))?;
        // The old text is overwritten, and what it has more is filled up: a crash in between must not leave an empty file,
        // which says nothing of what must stay.
        let old = file.metadata().map_err(fail)?.len().min(MAX_BYTES);
        text.resize(text.len().max(usize::try_from(old).unwrap_or(0)), b'\n');
        file.write_all_at(&text, 0)
            .and_then(|()| file.sync_all())
            .map_err(fail)?;
        place.sync()
    }
}

/// Opens or makes the marker, and locks it as long as the file is open, so that another restore notices this one. Returns
/// whether it was there.
///
/// # Errors
/// While another restore writes to the directory, or if one has just ended.
pub(super) fn lock(place: &Place) -> Result<(File, bool), Error> {
    let name = NAME.as_bytes();
    let (file, was_there) = match place.open_file(name, false)? {
        Some(file) => (file, true),
        None => (place.make_file(name)?, false),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            return Err(Error::failed(format!(
                "Another restore writes to {} now",
                place.path().display()
            )));
        }
        locked => locked.map_err(|error| place.failed("lock", name, error))?,
    }
    // The other one has removed it with its last step, and this lock keeps nobody away.
    if !place.has(name, &file)? {
        return Err(changed(place));
    }
    Ok((file, was_there))
}

/// The directory is not what it was when it was examined.
pub(super) fn changed(place: &Place) -> Error {
    Error::failed(format!(
        "Another restore has just written to {}",
        place.path().display()
    ))
    .hint("Look at what is there now")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn two_restores_never_have_one_directory() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, done) = (AtomicU32::new(0), AtomicU32::new(0));
        let restore = || {
            let place = Place::open(directory.path()).unwrap();
            for _ in 0..5000 {
                let Ok(locked) = lock(&place) else {
                    continue;
                };
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                done.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
                inside.fetch_sub(1, Ordering::SeqCst);
                place.unlink(NAME.as_bytes()).unwrap();
                drop(locked);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(restore);
            }
        });
        assert!(done.load(Ordering::SeqCst) > 100);
    }
}
