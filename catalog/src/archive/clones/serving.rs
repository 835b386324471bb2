//! Records which mount served a clone last.
//!
//! What a mount's kernel has cached of a clone is valid only until another mount serves the clone. So each mount writes
//! its own mark into the clone's directory, under the clone's lock and before anything in the clone can change. The
//! mark need not survive a power loss: kernel caches do not survive it either.

use std::fs::File;
use std::io::{ErrorKind, Write};

use barmanfs_store::RecordId;

use super::CloneLock;
use crate::error::{Error, Result};
use crate::home::regular;
use crate::index::repository::Repository;
use crate::names::{CloneName, ServerName};

/// File in a clone's directory: the mark of the mount that served it last.
const SERVED_BY: &str = "served_by";

impl Repository {
    /// The mark of the mount that served a clone last; none before the first.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn clone_served_by(&self, server: &ServerName, name: &CloneName) -> Result<Option<RecordId>> {
        let path = self.clone_directory(server, name).join(SERVED_BY);
        match regular::read(&path) {
            // A mount that was killed while it wrote its mark has served nothing yet.
            Ok(text) => Ok(String::from_utf8_lossy(&text).parse().ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::io("read", &path, source)),
        }
    }

    /// Writes the mark of a mount that will serve a clone.
    ///
    /// # Errors
    /// When it cannot be written; then the clone must not be served.
    pub fn mark_clone_served(
        &self,
        _lock: &CloneLock,
        server: &ServerName,
        name: &CloneName,
        by: RecordId,
    ) -> Result<()> {
        let _acting = self.as_owner()?;
        let path = self.clone_directory(server, name).join(SERVED_BY);
        // The existing file is overwritten: that works on a full disk, too.
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        let written = regular::open_with(&path, &mut options)
            .and_then(|mut file| file.write_all(by.to_string().as_bytes()));
        written.map_err(|source| Error::io("write", &path, source))
    }
}
