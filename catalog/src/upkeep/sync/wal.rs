//! Syncs WAL: records in the order in which the primary's packs were read.

use std::collections::{BTreeMap, BTreeSet};

use barmanfs_pg::TimelineId;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::{FileMap, Record, RecordId};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::archive::backup::{Backup, BackupStatus};
use crate::archive::history::records::placed_in;
use crate::archive::wal::{WalFile, removal};
use crate::error::{Error, Result};
use crate::home::now;
use crate::index::chunk_set::{Met, Role};
use crate::index::records::{self, Kind};
use crate::monitor::{Monitor, Unit};
use crate::names::BackupId;
use crate::retention::{RetentionState, WalPolicy};
use crate::upkeep::sync::offer::{Said, is_here};
use crate::upkeep::sync::{Sync, is_gone};

/// Records read at a time. Their files are durable together.
const PAGE: usize = 100;

/// Which WAL is wanted: without a policy all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wanted {
    /// The first segment that a backup needs, on the oldest timeline of those that recovery can begin on. Recovery goes on
    /// only to higher timelines.
    from: Option<SegmentName>,
    /// The WAL of backups that need only that for their own end.
    islands: Vec<(SegmentName, SegmentName)>,
}

impl Wanted {
    pub(super) fn has(&self, name: &WalName) -> bool {
        name.segment()
            .is_none_or(|segment| self.has_all(segment, segment))
    }

    fn has_all(&self, first: SegmentName, last: SegmentName) -> bool {
        let is_in = |(begin, end): &(SegmentName, SegmentName)| *begin <= first && last <= *end;
        self.from.is_none_or(|from| first >= from) || self.islands.iter().any(is_in)
    }

    /// Whether each file that another one has is among these.
    pub(super) fn contains(&self, other: &Self) -> bool {
        let has_rest = match (self.from, other.from) {
            (None, _) => true,
            (Some(from), Some(others)) => others >= from,
            (Some(_), None) => false,
        };
        let has_island = |(first, last): &(SegmentName, SegmentName)| self.has_all(*first, *last);
        has_rest && other.islands.iter().all(has_island)
    }
}

/// Why a file was not taken.
enum Skipped {
    /// It is here, or is not wanted here.
    Unneeded,
    /// Something is wrong.
    Problem(String),
}

impl Sync<'_> {
    /// Copies a file's chunks.
    pub(super) fn copy_file(&mut self, map: &FileMap) -> Result<()> {
        let trees = self.trees.clone();
        trees.chunks_of_file(map, &mut |id, role| {
            if self.seen.meet(&id, Role::Tree(role))? == Met::Before {
                return Ok(false);
            }
            self.copier.want(id)?;
            Ok(true)
        })?;
        self.copier.copy_wanted()
    }

    /// Takes all files that came since the last time.
    pub(super) fn take_wal(&mut self, monitor: &mut dyn Monitor) -> Result<()> {
        // A look in between may change what is wanted. The files that were passed are not judged again in this pass.
        self.memory.want(self.wanted.clone());
        let mut after = self.memory.through;
        let mut is_whole = true;
        loop {
            let page = self.page(after)?;
            let Some((last, _)) = page.last() else { break };
            after = *last;
            // No file is removed here meanwhile with a time before the entry of this one.
            let before = self.report.wal_files;
            for (_, record) in page {
                is_whole &= self.take_file(record, monitor)?;
            }
            if self.report.wal_files > before {
                let _lock = self.writer.lock_neighbours(self.server)?;
                self.copier.publish()?;
            }
            if is_whole {
                self.memory.through = after;
                if self.report.wal_files > before {
                    self.save()?;
                }
            }
            monitor.progress(self.copier.copied_bytes, None, Unit::Bytes);
        }
        self.took_wal = std::time::Instant::now();
        if is_whole && self.is_all_read && self.offer.server.is_some() {
            self.memory.current_at = Some(self.looked_at);
        }
        Ok(())
    }

    fn page(&self, after: i64) -> Result<Vec<(i64, Record)>> {
        self.footers.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT seq, id, kind, payload FROM records WHERE seq > ?1 AND kind = ?2
                 AND id NOT IN (SELECT annulled FROM deletions) ORDER BY seq LIMIT ?3",
            )?;
            let rows = query.query_map(params![after, Kind::Wal, PAGE], |row| {
                let record = Record {
                    id: RecordId(row.get(1)?),
                    kind: row.get(2)?,
                    payload: row.get(3)?,
                };
                Ok((row.get(0)?, record))
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Takes a file; returns whether nothing is left to do about it.
    fn take_file(&mut self, record: Record, monitor: &mut dyn Monitor) -> Result<bool> {
        let file: WalFile = match records::parse(record.id, &record.payload) {
            Ok(file) => file,
            Err(error) => {
                self.report.problems.push(error.to_string());
                return Ok(false);
            }
        };
        if file.server != *self.server {
            return Ok(true);
        }
        match self.skips(record.id, &file)? {
            Some(Skipped::Unneeded) => return Ok(true),
            Some(Skipped::Problem(why)) => {
                self.problem(format!("{} of {} is not taken: {why}", file.name, self.server));
                return Ok(false);
            }
            None => {}
        }
        let copied = match self.copy_file(&file.map) {
            Err(error) if is_gone(&error) => {
                self.forget_attempt()?;
                self.look(monitor)?;
                if self.offer.is_removed(&file.name, file.archived_at) || !self.is_offered(record.id)? {
                    return Ok(true);
                }
                self.copy_file(&file.map)
            }
            copied => copied,
        };
        match copied {
            Ok(()) => {
                self.copier.record(record)?;
                self.report.wal_files += 1;
                Ok(true)
            }
            Err(error) => {
                self.not_taken(&file.name.to_string(), error)?;
                Ok(false)
            }
        }
    }

    fn is_offered(&self, id: RecordId) -> Result<bool> {
        self.footers
            .db
            .read(|db| Ok(is_here(db, id)? && !records::is_annulled(db, id)?))
    }

    /// Why a file is not copied.
    fn skips(&self, id: RecordId, file: &WalFile) -> Result<Option<Skipped>> {
        if self.offer.is_removed(&file.name, file.archived_at) || !self.memory.wants(&file.name) {
            return Ok(Some(Skipped::Unneeded));
        }
        if file.size_bytes != file.map.size_bytes {
            let why = "its record and its map have different sizes";
            return Ok(Some(Skipped::Problem(why.to_owned())));
        }
        self.node.db.read(|db| {
            if is_here(db, id)? || removal::applies_to(db, self.server, &file.name, file.archived_at)? {
                return Ok(Some(Skipped::Unneeded));
            }
            if placed_in(db, id)?.is_some() {
                return Ok(None);
            }
            let known: Option<(RecordId, Vec<u8>)> = db
                .prepare_cached(
                    "SELECT r.id, r.payload FROM wal w JOIN records r ON r.seq = w.record
                     WHERE w.server = ?1 AND w.name = ?2",
                )?
                .query_row(params![self.server.as_str(), file.name.to_string()], |row| {
                    Ok((RecordId(row.get(0)?), row.get(1)?))
                })
                .optional()?;
            let Some((known_id, payload)) = known else {
                return Ok(None);
            };
            let known: WalFile = records::parse(known_id, &payload)?;
            Ok(Some(match known.map == file.map {
                true => Skipped::Unneeded,
                false => {
                    Skipped::Problem("a file of this name with other content is archived here".to_owned())
                }
            }))
        })
    }

    /// Which WAL the backups need that are here, or come.
    pub(super) fn wanted_wal(&self) -> Result<Wanted> {
        let rules = &self.options.rules;
        if rules.backups.is_none() && rules.wal == WalPolicy::Main {
            return Ok(Wanted::default());
        }
        let here = self.node.backups(self.server)?;
        let mut coming = Vec::new();
        for backup in &self.offer.backups {
            let record = backup.record.id;
            if self.memory.untaken.contains(&record) {
                continue;
            }
            if here.iter().any(|other| other.record == Some(record)) || !self.was_here(record)? {
                coming.push(backup.clone());
            }
        }
        let judged = self.judge(here.clone(), &coming)?;
        let served = self.serves_its_end(here, &coming)?;
        let mut anchors: BTreeMap<TimelineId, SegmentName> = BTreeMap::new();
        let mut islands = Vec::new();
        for (backup, state, keeps_wal) in &judged {
            let (Some(timeline), Some(start)) = (backup.timeline, backup.start_lsn) else {
                continue;
            };
            let first = SegmentName::from_lsn(timeline, start, backup.segment_size);
            let is_served = served.contains(&backup.id);
            if *state == RetentionState::Obsolete && !is_served {
                continue;
            }
            if *keeps_wal && !is_served {
                let known = anchors.entry(timeline).or_insert(first);
                *known = (*known).min(first);
            } else if let Some(last) = backup.needed_wal().last() {
                islands.push((first, last));
            }
        }
        Ok(Wanted {
            from: anchors.into_values().next(),
            islands,
        })
    }

    /// The backups here that the policy would delete if they had their WAL: such as one that somebody has asked for. While
    /// they are here, they get what they need to be complete.
    fn serves_its_end(&self, mut here: Vec<Backup>, coming: &[Said<Backup>]) -> Result<BTreeSet<BackupId>> {
        let ids: BTreeSet<BackupId> = here.iter().map(|backup| backup.id).collect();
        for backup in &mut here {
            if backup.status == BackupStatus::WaitingForWals {
                backup.status = BackupStatus::Done;
            }
        }
        let judged = self.judge(here, coming)?.into_iter();
        Ok(judged
            .filter(|(backup, state, _)| *state == RetentionState::Obsolete && ids.contains(&backup.id))
            .map(|(backup, ..)| backup.id)
            .collect())
    }

    /// Of these backups of the primary, those that the policy here would delete at once. For the sake of one that could not be
    /// taken no other one is obsolete.
    pub(super) fn obsolete(&self, coming: &[Said<Backup>]) -> Result<Vec<BackupId>> {
        let is_untaken = |backup: &&Said<Backup>| self.memory.untaken.contains(&backup.record.id);
        let (untaken, others): (Vec<_>, Vec<_>) = coming.iter().partition(is_untaken);
        let others: Vec<Said<Backup>> = others.into_iter().cloned().collect();
        let mut obsolete = self.obsolete_among(&others)?;
        if !untaken.is_empty() {
            let all = self.obsolete_among(coming)?;
            let of_untaken = untaken.iter().map(|backup| backup.body.id);
            obsolete.extend(of_untaken.filter(|id| all.contains(id)));
            obsolete.sort_unstable();
        }
        Ok(obsolete)
    }

    fn obsolete_among(&self, coming: &[Said<Backup>]) -> Result<Vec<BackupId>> {
        let judged = self.judge(self.node.backups(self.server)?, coming)?;
        let is_coming = |id: BackupId| coming.iter().any(|backup| backup.body.id == id);
        Ok(judged
            .into_iter()
            .filter(|(backup, state, _)| *state == RetentionState::Obsolete && is_coming(backup.id))
            .map(|(backup, ..)| backup.id)
            .collect())
    }

    /// What the policy would say of the backups here if these were here, too.
    fn judge(
        &self,
        mut all: Vec<Backup>,
        coming: &[Said<Backup>],
    ) -> Result<Vec<(Backup, RetentionState, bool)>> {
        for backup in coming {
            if !all.iter().any(|here| here.id == backup.body.id) {
                let mut backup = backup.body.clone();
                backup.status = BackupStatus::Done;
                all.push(backup);
            }
        }
        all.sort_by_key(|backup| backup.id);
        let known = self.node.reliability(&all)?;
        let mut judged = self
            .node
            .retention_states(&all, &known, &self.options.rules, now())?;
        judged.reverse();
        if judged.len() != all.len() {
            return Err(Error::Invalid("The policy has not judged each backup".to_owned()));
        }
        Ok(all
            .into_iter()
            .zip(judged)
            .map(|(backup, judged)| (backup, judged.state, judged.keeps_wal))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u32) -> SegmentName {
        SegmentName {
            timeline: TimelineId(1 + number / 4),
            log: 0,
            seg: number % 4,
        }
    }

    /// All with at most one island, over two timelines of four segments.
    fn all() -> Vec<Wanted> {
        let mut islands = vec![Vec::new()];
        for first in 0..8 {
            islands.extend((first..8).map(|last| vec![(name(first), name(last))]));
        }
        let from = |from: Option<u32>| {
            islands.iter().map(move |islands| Wanted {
                from: from.map(name),
                islands: islands.clone(),
            })
        };
        std::iter::once(None)
            .chain((0..8).map(Some))
            .flat_map(from)
            .collect()
    }

    #[test]
    fn what_is_contained_has_nothing_else_and_each_contains_itself() {
        let has = |wanted: &Wanted, number| wanted.has(&WalName::Segment(name(number)));
        for wanted in all() {
            assert!(wanted.contains(&wanted));
            for other in all().iter().filter(|other| wanted.contains(other)) {
                let is_within = (0..8).all(|number| !has(other, number) || has(&wanted, number));
                assert!(is_within, "{wanted:?} {other:?}");
            }
        }
        let wanted = |from| Wanted {
            from: Some(name(from)),
            islands: Vec::new(),
        };
        assert!(wanted(2).contains(&wanted(5)));
        assert!(!wanted(5).contains(&wanted(2)));
        assert!(!wanted(0).contains(&Wanted::default()));
    }
}
