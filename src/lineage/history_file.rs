//! Timeline history files. The archive must have one before the first segment of its timeline: recovery finds timelines
//! by these files.

use barmanfs_catalog::{Repository, ServerName, WalOutcome};
use barmanfs_pg::TimelineId;
use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_name::WalName;

use crate::error::Error;
use crate::postgres::Connection;

/// Fetches the history of a timeline. When this returns, the history is archived, with `origin` as its source, or it
/// was put aside.
pub(crate) fn fetch(
    repository: &Repository,
    connection: &mut Connection,
    server: &ServerName,
    timeline: TimelineId,
    origin: &str,
) -> Result<TimelineHistory, Error> {
    let Some(file) = connection.timeline_history(timeline)? else {
        return Ok(TimelineHistory::without_ancestors(timeline));
    };
    let history = TimelineHistory::parse(&file.content, timeline)
        .map_err(|error| Error::failed(format!("The server's history of timeline {timeline}: {error}")))?;
    archive(repository, server, timeline, &file.content, origin)?;
    Ok(history)
}

fn archive(
    repository: &Repository,
    server: &ServerName,
    timeline: TimelineId,
    content: &[u8],
    origin: &str,
) -> Result<(), Error> {
    let name = WalName::History(timeline);
    let size_bytes = content.len() as u64;
    let writer = repository.writer(&format!("{origin} of {server}"))?;
    match writer.archive_wal(server, &name, &mut &*content, size_bytes, origin)? {
        WalOutcome::Stored(_) => {
            tracing::info!("Archived the history of timeline {timeline} of server {server}");
        }
        WalOutcome::AlreadyThere(_) => {}
        WalOutcome::Refused(refused) => tracing::error!(
            "The history of timeline {timeline} of server {server} is put aside: {}",
            refused.quarantined.reason
        ),
        WalOutcome::Conflict(conflict) => tracing::error!(
            "Timeline {timeline} of server {server} has another history than the one archived at {}: two servers were \
             promoted to the same timeline. The received one is put aside, and so will be its segments that differ",
            conflict.archived.archived_at
        ),
    }
    Ok(())
}
