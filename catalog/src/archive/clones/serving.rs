//! Which mount served a clone last.
//!
//! What a mount's kernel has seen of a clone is so only until another mount serves it. So each leaves a mark of its own in the
//! clone's directory, under the clone's lock and before anything in the clone can change. The mark need not outlive a loss of
//! power: no kernel remembers anything then.

use std::fs::File;
use std::io::{ErrorKind, Write};

use barmanfs_store::RecordId;

use super::CloneLock;
use crate::error::{Error, Result};
use crate::home::regular;
use crate::index::repository::Repository;
use crate::names::{CloneName, ServerName};

/// In a clone's directory: the mark of the mount that served it last.
const SERVED_BY: &str = "served_by";

impl Repository {
    /// The mark of the mount that served a clone last; none before the first.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn clone_served_by(&self, server: &ServerName, name: &CloneName) -> Result<Option<RecordId>> {
        let path = self.clone_directory(server, name).join(SERVED_BY);
        match regular::read(&path) {
            // One that was killed while it wrote its mark has served nothing yet.
            Ok(text) => Ok(String::from_utf8_lossy(&text).parse().ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::io("read", &path, source)),
        }
    }

    /// Leaves the mark of a mount that is about to serve a clone.
    ///
    /// # Errors
    /// When it cannot be written: then the clone must not be served.
    pub fn mark_clone_served(
        &self,
        _lock: &CloneLock,
        server: &ServerName,
        name: &CloneName,
        by: RecordId,
    ) -> Result<()> {
        let _acting = self.as_owner()?;
        let path = self.clone_directory(server, name).join(SERVED_BY);
        // Over the one that is there: that works on a full disk too.
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        let written = regular::open_with(&path, &mut options)
            .and_then(|mut file| file.write_all(by.to_string().as_bytes()));
        written.map_err(|source| Error::io("write", &path, source))
    }
}
