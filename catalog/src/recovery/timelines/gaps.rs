//! The gaps in a server's WAL alone, for lists: where there is none, only an index is read.

use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, SegmentSize};
use rusqlite::params;

use super::{Gap, Ranges, WalRange};
use crate::archive::backup::Backup;
use crate::error::Result;
use crate::index::repository::Repository;
use crate::names::ServerName;
use crate::recovery::segments::Segments;

/// The most timelines whose segments are counted: each reads the index of all.
const OUTLINED: usize = 3;

impl Repository {
    /// The gaps in a server's WAL, as [`timelines`](Self::timelines) reports them; `backups` are all of the server's. Where there
    /// is none, this counts the segments and reads no more of them.
    ///
    /// # Errors
    /// As for `timelines`.
    pub fn gaps(&self, server: &ServerName, backups: &[Backup]) -> Result<Vec<Gap>> {
        let size = self.size_of_segments(server, backups)?;
        if let Some(outlines) = self.outlines(server, size)? {
            let (survey, timelines, _) = self.look(server, backups, outlines)?;
            if survey.gaps(&timelines).is_empty() {
                return Ok(Vec::new());
            }
        }
        let (survey, timelines, _) = self.look(server, backups, self.ranges(server, size)?)?;
        Ok(survey.gaps(&timelines))
    }

    /// The range of each timeline, if each has only one: first and last segment, and nothing of those between them.
    fn outlines(&self, server: &ServerName, size: SegmentSize) -> Result<Option<Ranges>> {
        let timelines = Segments::of(self, server).timelines()?;
        if timelines.len() > OUTLINED {
            return Ok(None);
        }
        self.db.read(|db| {
            // This index has nothing but these columns.
            let mut query = db.prepare_cached(
                "SELECT count(*), min(number), max(number) FROM segments INDEXED BY segments_by_number
                 WHERE server = ?1 AND timeline = ?2",
            )?;
            let mut outlines = Ranges::new();
            for timeline in timelines {
                let counted = query.query_row(params![server.as_str(), timeline.0], |row| {
                    Ok((
                        row.get::<_, u64>(0)?,
                        row.get::<_, u64>(1)?,
                        row.get::<_, u64>(2)?,
                    ))
                });
                let (segments, first, last) = counted?;
                if last - first + 1 != segments {
                    return Ok(None);
                }
                let start = |number: u64| Lsn(number.saturating_mul(size.bytes()));
                outlines.entry(timeline).or_default().push(WalRange {
                    first: SegmentName::from_lsn(timeline, start(first), size),
                    last: SegmentName::from_lsn(timeline, start(last), size),
                    segments,
                    start_lsn: start(first),
                    end_lsn: start(last),
                    from: None,
                    to: None,
                    commits: 0,
                });
            }
            Ok(Some(outlines))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::db::statements;
    use crate::index::repository::temporary;
    use barmanfs_pg::wal_name::WalName;
    use barmanfs_pg::{SystemId, testing};

    /// How many statements read the rows of all segments.
    fn walks(repository: &Repository, server: &ServerName, gaps: usize) -> usize {
        let counted = statements::counted(|| {
            let found = repository.gaps(server, &[]).unwrap();
            assert_eq!(found, repository_gaps(repository, server));
            assert_eq!(found.len(), gaps);
        });
        let of_timelines = 1;
        let walks = counted
            .iter()
            .filter(|(statement, _)| statement.contains("end_lsn, time_min"));
        walks.map(|(_, count)| count).sum::<usize>() - of_timelines
    }

    fn repository_gaps(repository: &Repository, server: &ServerName) -> Vec<Gap> {
        repository.timelines(server).unwrap().gaps
    }

    #[test]
    fn gaps_are_those_of_the_report_and_without_one_no_segment_is_read() {
        let (_directory, repository) = temporary();
        let server: ServerName = "main".parse().unwrap();
        let writer = repository.writer("test").unwrap();
        let archive = |number| {
            let content = vec![7; usize::try_from(SegmentSize::MIN.bytes()).unwrap()];
            let (name, bytes) = testing::segment(number, SystemId(9), content);
            let length = bytes.len() as u64;
            writer
                .archive_wal(&server, &WalName::Segment(name), &mut &*bytes, length, "test")
                .unwrap();
        };
        assert_eq!(walks(&repository, &server, 0), 0);
        [3, 4, 5].into_iter().for_each(archive);
        assert_eq!(walks(&repository, &server, 0), 0);
        [7, 8, 11].into_iter().for_each(archive);
        assert_eq!(walks(&repository, &server, 2), 1);
        [6, 9, 10].into_iter().for_each(archive);
        assert_eq!(walks(&repository, &server, 0), 0);
    }
}
