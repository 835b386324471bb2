//! WAL that is still being received; recovery to `now` continues with it after the end
//! of the archive.

use barmanfs_pg::wal_scan::{ParameterChange, WalLevel};

use crate::archive::wal::confine::index_of_plain;
use crate::error::Result;
use crate::recovery::ends::End;
use crate::recovery::planner::Planner;
use crate::recovery::route::Route;

impl Planner<'_> {
    /// Continues from the end of the archive with the segments in the spool.
    pub(super) fn with_received(&self, route: &Route, mut end: End) -> Result<End> {
        if self.archive != self.server {
            return Ok(end);
        }
        let spool = self.repository.receiving(self.server)?;
        let next = |number: u64| spool.iter().find(|segment| segment.name == route.name(number));
        while let Some(segment) = next(end.number + 1) {
            let index = index_of_plain(segment.name, &segment.path, segment.size_bytes)?;
            let Some(index) = index else { break };
            end.number += 1;
            end.partial = true;
            end.reaches = index.commit_time_max.or(end.reaches);
            end.lsn = Some(index.end_lsn);
            let minimal = |change: &&ParameterChange| change.parameters.wal_level == WalLevel::Minimal;
            let minimal = index.parameter_changes.iter().find(minimal);
            end.minimal = end.minimal.or(minimal.map(|change| change.lsn));
            if index.stopped.is_some() {
                break;
            }
        }
        Ok(end)
    }
}
