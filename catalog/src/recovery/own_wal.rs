//! Checks whether the archive continues the WAL that came with a backup.
//!
//! Such a backup can be older than the archive. If a snapshot of the server was restored in between, the archive has
//! another history from there on. This could not be detected when the WAL was archived. PostgreSQL would replay one
//! history and continue with the other.

use barmanfs_pg::Lsn;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::{FileMap, Node};

use crate::error::Result;
use crate::recovery::planner::{Planner, Start};
use crate::recovery::route::Route;

/// How many bytes before the backup's end are compared: they contain the checkpoint that the backup began with or, on a
/// busy server, other records with times.
const COMPARED_BYTES: u64 = 128 * 1024;

impl Planner<'_> {
    /// Why a backup that came with its WAL cannot be recovered with the archive's WAL; none if it can, or if one of
    /// them cannot be read.
    pub(super) fn left_by_archive(&self, start: &Start, route: &Route) -> Option<String> {
        let differs = self.ends_otherwise(start, route).unwrap_or_else(|error| {
            tracing::debug!("The WAL of backup {} is not compared: {error}", start.backup.id);
            false
        });
        differs.then(|| {
            format!(
                "the archived WAL is not the one that it ended with at {}: the server's history has changed since, and it \
                 is good for its own moment only",
                start.stop
            )
        })
    }

    fn ends_otherwise(&self, start: &Start, route: &Route) -> Result<bool> {
        let backup = &start.backup;
        let Some(root) = backup.root.as_ref().filter(|_| backup.wal_included) else {
            return Ok(false);
        };
        let number = route.number_before(start.stop);
        let name = SegmentName::from_lsn(start.timeline, route.start(number), route.size);
        let path = format!("pg_wal/{name}");
        let entry = self.repository.trees().find(&root.directory, path.as_bytes())?;
        let Some(Node::File(own)) = entry.map(|entry| entry.node) else {
            return Ok(false);
        };
        let archive = self.repository.wal(self.archive);
        if let Some(archived) = archive.find(&WalName::Segment(route.name(number)))? {
            return self.differ(&own, &archived.map, route.start(number), start.stop);
        }
        let next = route.name(number.saturating_add(1));
        let Some(archived) = archive.find(&WalName::Segment(next))? else {
            return Ok(false);
        };
        let link = self.repository.link(&archived, next)?;
        let last = self.repository.last_record_start(&own, name)?;
        Ok(link.zip(last).is_some_and(|(link, last)| link.previous != last))
    }

    /// Whether two segments that begin at `begin` differ before `end`.
    fn differ(&self, one: &FileMap, other: &FileMap, begin: Lsn, end: Lsn) -> Result<bool> {
        let length = end.0.saturating_sub(begin.0);
        let offset = length.saturating_sub(COMPARED_BYTES);
        let length = usize::try_from(length - offset).unwrap_or_default();
        let (mut a, mut b) = (vec![0; length], vec![0; length]);
        let trees = self.repository.trees();
        let (read, of_other) = (
            trees.read_at(one, offset, &mut a)?,
            trees.read_at(other, offset, &mut b)?,
        );
        Ok(a.get(..read) != b.get(..of_other))
    }
}
