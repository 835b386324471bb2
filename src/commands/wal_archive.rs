//! `barmanfs wal-archive`: stores one WAL file in the archive, for `archive_command`.
//!
//! It is started for every segment: it parses one small file, opens the repository and stores. It never creates a
//! repository: WAL that is acknowledged in an empty directory, where a disk should be mounted, would not be found
//! again.

use std::fs::File;
use std::str::FromStr;

use barmanfs_catalog::{RefusedWal, ServerName, WalOutcome};
use barmanfs_pg::wal_name::WalName;

use super::App;
use crate::cli::wal::WalArchiveArgs;
use crate::error::{Error, Outcome};
use crate::forks;
use crate::versions;

/// Runs the command.
pub(crate) fn run(app: &App, args: &WalArchiveArgs) -> Result<Outcome, Error> {
    let configured = app.configured(&args.server)?;
    configured.refuse_storing()?;
    let server = &configured.name;
    let path = &args.path;
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = WalName::from_str(&file_name).map_err(|error| Error::usage(error.to_string()))?;
    let unreadable = |error| Error::failed(format!("Cannot read {}: {error}", path.display()));
    let mut file = File::open(path).map_err(unreadable)?;
    if barmanfs_fs::is_shown(&file, path)? {
        return Err(Error::failed(format!(
            "{} is a file on a mount of barmanfs, and no copy or clone there archives: its WAL would mix with that of {server}",
            std::path::absolute(path).unwrap_or_else(|_| path.clone()).display()
        ))
        .hint("Set archive_mode = off for the server that runs there, and restart it"));
    }
    let size_bytes = file.metadata().map_err(unreadable)?.len();
    let writer = app.repository_for_writing()?.writer("wal-archive")?;
    match writer.archive_wal(server, &name, &mut file, size_bytes, "wal-archive")? {
        WalOutcome::Stored(file) => {
            tracing::debug!("Archived {name} of server {server}");
            versions::warn_of_wal(&file);
        }
        WalOutcome::AlreadyThere(_) => {
            tracing::debug!("WAL file {name} of server {server} was archived before");
        }
        WalOutcome::Conflict(conflict) => {
            return Err(Error::failed(format!(
                "WAL file {name} of server {server} has other content than the one archived at {}: not archived, put aside",
                conflict.archived.archived_at
            ))
            .hint(match &conflict.fork {
                Some(fork) => forks::advice(server, fork),
                None => format!("It is of the history that was left: end the server that archives it as '{server}'"),
            }));
        }
        WalOutcome::Refused(refused) => return Err(refusal(server, &name, &refused)),
    }
    Ok(Outcome::Done)
}

fn refusal(server: &ServerName, name: &WalName, refused: &RefusedWal) -> Error {
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
