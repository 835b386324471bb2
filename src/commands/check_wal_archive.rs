//! `barmanfs check-wal-archive`: whether a new server would archive into an empty archive.

use barmanfs_catalog::{Repository, ServerName};
use barmanfs_pg::TimelineId;

use super::App;
use crate::cli::server::CheckWalArchiveArgs;
use crate::error::{Error, Outcome};
use crate::report::CheckedArchive;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &CheckWalArchiveArgs) -> Result<Outcome, Error> {
    let server = app.configured(&args.server)?.name.clone();
    let from = TimelineId(args.timeline.unwrap_or(0));
    let found = match app.repository_if_made()? {
        Some(repository) => first_since(&repository, &server, from)?,
        None => None,
    };
    let checked = CheckedArchive {
        ok: found.is_none(),
        found,
        server,
    };
    let passed = checked.ok;
    if args.json.json {
        app.out.json(&checked)?;
    } else {
        match &checked.found {
            None => app.out.line(format_args!(
                " - WAL archive check for server {} passed",
                checked.server
            ))?,
            Some(found) => {
                return Err(Error::failed(format!(
                    "WAL archive check failed for server {}: Expected empty archive, and it has {found}",
                    checked.server
                ))
                .hint("Use another server name for a new cluster"));
            }
        }
    }
    Ok(if passed {
        Outcome::Done
    } else {
        Outcome::Unreachable
    })
}

/// The first file of WAL of this timeline or of a later one: archived, or being received.
fn first_since(
    repository: &Repository,
    server: &ServerName,
    from: TimelineId,
) -> Result<Option<String>, Error> {
    if let Some(entry) = repository.wal(server).first_since(from)? {
        return Ok(Some(entry.name.to_string()));
    }
    let receiving = repository.receiving(server)?;
    let first = receiving.iter().find(|segment| segment.name.timeline >= from);
    Ok(first.map(|segment| segment.name.to_string()))
}
