//! Which blocks have changed since an earlier backup, by the server's summaries of its WAL.
//!
//! The rules are those of PostgreSQL's incremental backups (`GetFileBackupMethod` in
//! `src/backend/backup/basebackup_incremental.c`), or stricter: what is behind a length that a relation once had is read, and so
//! are visibility maps, which some minor releases leave out of their summaries. Reading a block more is never wrong: it is what a
//! full backup reads. A block that is not read had no change in the WAL between the start of the earlier backup and that of this
//! one, and replay brings what comes later.

use std::fs::{self, File};
use std::io::{BufReader, ErrorKind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use barmanfs_catalog::Backup;
use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::relation_name::{Fork, RelationFile};
use barmanfs_pg::wal_summary::{ChangedBlocks, ForkChanges, ForkName, SummaryName};
use barmanfs_pg::{Lsn, TimelineId};
use barmanfs_store::layout::{BLOCK_BYTES, DATA_WINDOW_BYTES};
use barmanfs_store::sync::lock;
use barmanfs_store::{DirectoryRef, FileMap, Finder, TreeReader};

use super::place::DataDirectory;
use crate::backup::files::file_map;
use crate::backup::incremental::{self, NoIncrement};
use crate::backup::pages::SEGMENT_PAGES;
use crate::backup::stop::Stop;
use crate::cluster::ServerSettings;
use crate::error::Error;
use crate::postgres::Connection;
use crate::progress::Progress;
use crate::walk::cannot_read;

/// Blocks of a window.
const WINDOW_BLOCKS: u32 = DATA_WINDOW_BYTES / BLOCK_BYTES as u32;

/// Windows of a whole file of a relation.
const SEGMENT_WINDOWS: u64 = (SEGMENT_PAGES / WINDOW_BLOCKS) as u64;

/// How long the server may make no progress with its summaries.
const SUMMARIZED_WITHIN: Duration = Duration::from_secs(60);

/// How often to look for new summaries.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The directory of the summaries.
const SUMMARIES: &str = "pg_wal/summaries";

/// A range of WAL of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    timeline: TimelineId,
    from: Lsn,
    to: Lsn,
}

/// Waits until the server has summarized its WAL from the start of `parent` to `start`, and returns what has changed.
///
/// # Errors
/// [`NoIncrement::Impossible`] when it does not have the summaries.
pub(super) fn wait(
    (data, progress): (&DataDirectory, &Progress),
    (cluster, connection): (&ServerSettings, &mut Connection),
    (parent, start): (&Backup, Lsn),
    stop: &Stop,
) -> Result<ChangedBlocks, NoIncrement> {
    let (Some(timeline), Some(from), Some(end)) = (parent.timeline, parent.start_lsn, parent.stop_lsn) else {
        return Err(NoIncrement::Impossible(format!(
            "nobody knows where backup {} began",
            parent.id
        )));
    };
    if end > start {
        return Err(NoIncrement::Impossible(format!(
            "backup {} ended at {end}, behind the start of this one at {start}: a standby had little activity",
            parent.id
        )));
    }
    let history = incremental::history(cluster.timeline, std::slice::from_ref(parent), connection)?;
    let ranges = ranges(&history, (timeline, from), start);
    let place = data.path().join(SUMMARIES);
    progress.note("waiting for summaries of the WAL");
    let (mut known, mut since) = (Lsn::INVALID, Instant::now());
    let names = loop {
        let names = list(&place)?;
        match covering(&names, &ranges) {
            Ok(chosen) => break chosen,
            Err(missing) => {
                let newest = names.iter().map(|name| name.end).max().unwrap_or(Lsn::INVALID);
                if newest > known {
                    (known, since) = (newest, Instant::now());
                }
                // Summaries are removed and never come again: only those at the end are waited for.
                let may_come = missing.from >= newest && missing.timeline == cluster.timeline;
                if !may_come || since.elapsed() >= SUMMARIZED_WITHIN {
                    return Err(NoIncrement::Impossible(format!(
                        "the server has no summary of the WAL of timeline {} from {} on",
                        missing.timeline, missing.from
                    )));
                }
            }
        }
        if stop.requested() {
            return Err(NoIncrement::Failed(Error::failed("Interrupted")));
        }
        stop.signals().sleep(LOOK_EVERY);
    };
    progress.note("");
    let mut changed = ChangedBlocks::new(WINDOW_BLOCKS);
    for name in names {
        let place = place.join(name.to_string());
        let file = File::open(&place).map_err(|error| impossible(&place, &error.to_string()))?;
        changed
            .read(BufReader::new(file))
            .map_err(|error| impossible(&place, &error.to_string()))?;
    }
    Ok(changed)
}

fn impossible(place: &std::path::Path, why: &str) -> NoIncrement {
    NoIncrement::Impossible(format!("the summary {} cannot be read: {why}", place.display()))
}

/// From a position of one of its timelines to `to` on the last one.
fn ranges(history: &TimelineHistory, (timeline, mut from): (TimelineId, Lsn), to: Lsn) -> Vec<Range> {
    let mut ranges = Vec::new();
    for entry in history
        .entries()
        .iter()
        .filter(|entry| entry.timeline >= timeline)
    {
        ranges.push(Range {
            timeline: entry.timeline,
            from,
            to: entry.switch_lsn,
        });
        from = entry.switch_lsn;
    }
    ranges.push(Range {
        timeline: history.timeline(),
        from,
        to,
    });
    ranges
}

/// The summaries that there are.
fn list(place: &PathBuf) -> Result<Vec<SummaryName>, NoIncrement> {
    let entries = match fs::read_dir(place) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| cannot_read(place, &error))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| cannot_read(place, &error))?;
        if let Some(name) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The summaries that cover all ranges; otherwise what is missing first.
fn covering(names: &[SummaryName], ranges: &[Range]) -> Result<Vec<SummaryName>, Range> {
    let mut chosen = Vec::new();
    for range in ranges {
        let mut covered = range.from;
        let of_range = names
            .iter()
            .filter(|name| name.timeline == range.timeline && name.end > range.from && name.start < range.to);
        // By their starts: the names are sorted.
        for name in of_range {
            if name.start > covered {
                break;
            }
            covered = covered.max(name.end);
            chosen.push(*name);
        }
        if covered < range.to {
            return Err(Range {
                from: covered,
                ..*range
            });
        }
    }
    Ok(chosen)
}

/// The files of an earlier backup, and what has changed since.
pub(super) struct Base {
    trees: TreeReader,
    /// All threads share what it has read. It is locked for one look-up at a time.
    files: Mutex<Finder>,
    changed: ChangedBlocks,
}

/// A file of the earlier backup that need not be read as a whole.
pub(super) struct Known<'b> {
    trees: &'b TreeReader,
    map: FileMap,
    changed: Option<&'b ForkChanges>,
    /// The number of the file's first window in its fork.
    first: u64,
    /// Windows before this one are read only if they have changed.
    end: u64,
}

impl Base {
    pub(super) fn new((trees, root): (TreeReader, DirectoryRef), changed: ChangedBlocks) -> Self {
        Self {
            files: Mutex::new(Finder::new(trees.clone(), root)),
            trees,
            changed,
        }
    }

    /// What is known about the file of a relation that has this size now; `None` if all of it must be read.
    ///
    /// # Errors
    /// When the earlier backup cannot be read.
    pub(super) fn known(
        &self,
        (path, file): (&[u8], &RelationFile),
        size_bytes: u64,
    ) -> Result<Option<Known<'_>>, NoIncrement> {
        let is_odd = !size_bytes.is_multiple_of(BLOCK_BYTES as u64)
            || size_bytes > u64::from(SEGMENT_PAGES) * BLOCK_BYTES as u64;
        // Only changes of the main fork and of the init fork are all in the WAL.
        if is_odd || !matches!(file.fork, Fork::Main | Fork::Init) {
            return Ok(None);
        }
        let name = fork_name(file);
        if self.changed.has_new_database(&name) {
            return Ok(None);
        }
        let first = u64::from(file.segment) * SEGMENT_WINDOWS;
        let changed = self.changed.of(&name);
        let limit = changed.and_then(ForkChanges::limit_block);
        // A window in which the limit is, is read.
        let limit = limit.map_or(u64::MAX, |block| u64::from(block / WINDOW_BLOCKS));
        if limit <= first {
            return Ok(None);
        }
        let found = lock(&self.files).find(path)?;
        let Some(map) = found.and_then(file_map) else {
            return Ok(None);
        };
        if map.window_bytes != DATA_WINDOW_BYTES {
            return Ok(None);
        }
        // A window that was not full then, and is longer now, is read.
        let whole = match map.size_bytes == size_bytes {
            true => u64::MAX,
            false => map.size_bytes.min(size_bytes) / u64::from(DATA_WINDOW_BYTES),
        };
        Ok(Some(Known {
            trees: &self.trees,
            map,
            changed,
            first,
            end: whole.min(limit - first),
        }))
    }
}

impl Known<'_> {
    /// The content that the file had.
    pub(super) fn base(&self) -> (&TreeReader, &FileMap) {
        (self.trees, &self.map)
    }

    /// Whether this window of the file must be read.
    pub(super) fn has_changed(&self, window: u64) -> bool {
        window >= self.end
            || self
                .changed
                .is_some_and(|changed| changed.has(self.first + window))
    }
}

/// The built-in tablespaces have fixed numbers.
fn fork_name(file: &RelationFile) -> ForkName {
    const DEFAULT: u32 = 1663;
    const GLOBAL: u32 = 1664;
    let built_in = match file.database {
        Some(_) => DEFAULT,
        None => GLOBAL,
    };
    ForkName {
        tablespace: file.tablespace.unwrap_or(built_in),
        database: file.database.unwrap_or(0),
        filenode: file.filenode,
        fork: match file.fork {
            Fork::Main => 0,
            Fork::FreeSpaceMap => 1,
            Fork::VisibilityMap => 2,
            Fork::Init => 3,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(timeline: u32, start: u64, end: u64) -> SummaryName {
        SummaryName {
            timeline: TimelineId(timeline),
            start: Lsn(start),
            end: Lsn(end),
        }
    }

    fn range(timeline: u32, from: u64, to: u64) -> Range {
        Range {
            timeline: TimelineId(timeline),
            from: Lsn(from),
            to: Lsn(to),
        }
    }

    #[test]
    fn summaries_must_cover_everything_without_a_gap() {
        let names = [name(1, 0, 10), name(1, 10, 20), name(1, 20, 30), name(2, 25, 40)];
        let chosen = |ranges: &[Range]| covering(&names, ranges);
        assert_eq!(chosen(&[range(1, 5, 20)]), Ok(names[..2].to_vec()));
        assert_eq!(
            chosen(&[range(1, 10, 25), range(2, 25, 40)]),
            Ok(names[1..].to_vec())
        );
        assert_eq!(chosen(&[range(1, 10, 31)]), Err(range(1, 30, 31)));
        assert_eq!(chosen(&[range(2, 20, 30)]), Err(range(2, 20, 30)));
        let gap = [name(1, 0, 10), name(1, 12, 20)];
        assert_eq!(covering(&gap, &[range(1, 0, 20)]), Err(range(1, 10, 20)));
    }

    #[test]
    fn ranges_follow_the_history_from_where_the_parent_began() {
        let text = b"1\t0/10\tx\n2\t0/20\tx\n";
        let history = TimelineHistory::parse(text, TimelineId(3)).unwrap();
        let of = |timeline, from| ranges(&history, (TimelineId(timeline), Lsn(from)), Lsn(0x30));
        assert_eq!(
            of(1, 5),
            [range(1, 5, 0x10), range(2, 0x10, 0x20), range(3, 0x20, 0x30)]
        );
        assert_eq!(of(3, 0x25), [range(3, 0x25, 0x30)]);
    }
}
