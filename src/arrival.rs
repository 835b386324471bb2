//! One WAL file that arrives here and goes into the archive, whatever brought it.
//!
//! It never creates a repository: WAL that is acknowledged in an empty directory, where a disk should be mounted, would not
//! be found again.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use barmanfs_catalog::{RefusedWal, ServerName, WalOutcome, Writer};
use barmanfs_pg::wal_name::WalName;

use crate::error::Error;
use crate::forks;
use crate::versions;
use crate::wal_transfer::LARGEST_BYTES;
use crate::wal_transfer::compression::{self, Compression};

/// A file on its way into the archive.
#[derive(Debug)]
pub(crate) struct Arriving<'a> {
    /// Whose it is.
    pub(crate) server: &'a ServerName,
    /// Its name.
    pub(crate) name: WalName,
    /// Its content, from the start.
    pub(crate) file: File,
    /// What brings it.
    pub(crate) origin: &'a str,
}

impl Arriving<'_> {
    /// Decompresses the file into a nameless one in `directory`, if it is compressed.
    ///
    /// # Errors
    /// When it is cut, or larger than any WAL file.
    pub(crate) fn decompressed(mut self, directory: &Path) -> io::Result<Self> {
        let mut beginning = Vec::with_capacity(compression::MAGIC_BYTES);
        let limit = compression::MAGIC_BYTES as u64;
        self.file.by_ref().take(limit).read_to_end(&mut beginning)?;
        self.file.rewind()?;
        let Some(form) = Compression::of(&beginning) else {
            return Ok(self);
        };
        let mut plain = tempfile::tempfile_in(directory)?;
        let mut content = form.reader(&self.file)?.take(LARGEST_BYTES + 1);
        let size_bytes = io::copy(&mut content, &mut plain)?;
        if size_bytes > LARGEST_BYTES {
            return Err(io::Error::other("it holds more than any WAL file"));
        }
        plain.rewind()?;
        drop(content);
        Ok(Self { file: plain, ..self })
    }

    /// Archives it. It is durable when this returns, whatever became of it.
    ///
    /// # Errors
    /// Those of [`Writer::archive_wal`].
    pub(crate) fn archive(mut self, writer: &Writer) -> Result<WalOutcome, barmanfs_catalog::Error> {
        let (server, name) = (self.server, self.name);
        let size_bytes = self.file.metadata().map_or(0, |found| found.len());
        let outcome = writer.archive_wal(server, &name, &mut self.file, size_bytes, self.origin)?;
        match &outcome {
            WalOutcome::Stored(file) => {
                tracing::debug!("Archived {name} of server {server}");
                versions::warn_of_wal(file);
            }
            WalOutcome::AlreadyThere(_) => {
                tracing::debug!("WAL file {name} of server {server} was archived before");
            }
            WalOutcome::Conflict(_) | WalOutcome::Refused(_) => {}
        }
        Ok(outcome)
    }
}

/// Why a file was put aside and not archived; `None` if it is archived.
pub(crate) fn refusal(server: &ServerName, name: &WalName, outcome: &WalOutcome) -> Option<Error> {
    match outcome {
        WalOutcome::Stored(_) | WalOutcome::AlreadyThere(_) => None,
        WalOutcome::Conflict(conflict) => Some(
            Error::failed(format!(
                "WAL file {name} of server {server} has other content than the one archived at {}: not archived, put aside",
                conflict.archived.archived_at
            ))
            .hint(match &conflict.fork {
                Some(fork) => forks::advice(server, fork),
                None => format!("It is of the history that was left: end the server that archives it as '{server}'"),
            }),
        ),
        WalOutcome::Refused(refused) => Some(of_other_history(server, name, refused)),
    }
}

fn of_other_history(server: &ServerName, name: &WalName, refused: &RefusedWal) -> Error {
    match &refused.fork {
        Some(fork) => Error::failed(format!(
            "WAL file {name} of server {server} is not archived, put aside: {fork}"
        ))
        .hint(forks::advice(server, fork)),
        None => Error::failed(format!(
            "WAL file {name} of server {server} is of the history that was left: not archived, put aside"
        ))
        .hint(format!("End the server that archives it as '{server}'")),
    }
}
