//! Decisions of a primary about which history counts: they come with the files that they take.
//!
//! A decision for a later history sets backups and WAL apart. That is followed here only for what the decision can be about: a
//! fork that is known, and what lies behind the place of the decision.

use std::collections::BTreeSet;

use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};
use barmanfs_store::RecordId;
use rusqlite::{Connection, OptionalExtension};

use crate::archive::backup::Backup;
use crate::archive::history::records::{Event, HistoryRecord, Restart};
use crate::archive::wal::{QuarantinedWal, WalFile};
use crate::error::{Error, Result};
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;
use crate::names::{BackupId, ServerName};
use crate::upkeep::sync::Sync;
use crate::upkeep::sync::offer::{Said, is_here};

/// A record here that a decision names.
enum Named {
    Backup(Box<Backup>),
    Wal(Box<WalFile>),
}

impl Sync<'_> {
    /// Decisions about histories come with the files that they take.
    pub(super) fn take_histories(&mut self) -> Result<()> {
        for history in self.offer.histories.clone() {
            if self.node.db.read(|db| is_here(db, history.record.id))? {
                continue;
            }
            let refused = self.node.refuse_foreign_decision(&history);
            if let Err(error) = refused.and_then(|()| self.refuse_unfounded(&history)) {
                self.problem(error.to_string());
                continue;
            }
            if let Err(error) = self.take_history(&history) {
                self.not_taken("A decision about the history", error)?;
            }
        }
        self.copier.publish()
    }

    fn take_history(&mut self, history: &Said<HistoryRecord>) -> Result<()> {
        let taken = match &history.body.event {
            Event::Fork { .. } => &[][..],
            Event::Keep { taken, .. } => taken,
            Event::Restart(restart) => &restart.taken,
        };
        for id in taken {
            let Some(file) = self.offer.quarantined.get(id).cloned() else {
                continue;
            };
            if !self.node.db.read(|db| is_here(db, *id))? {
                self.copy_file(&file.body.file.map)?;
                self.copier.record(file.record)?;
            }
        }
        if let Event::Restart(restart) = &history.body.event {
            self.note_apart(restart, history.body.lsn)?;
        }
        self.copier.record(history.record.clone())
    }

    /// Refuses a decision for a later history that sets apart what lies before it, or is about no fork.
    fn refuse_unfounded(&self, decision: &Said<HistoryRecord>) -> Result<()> {
        let Event::Restart(restart) = &decision.body.event else {
            return Ok(());
        };
        let refused = |why: String| {
            Err(Error::Invalid(format!(
                "Decision {} of server {} of the primary is not followed: {why}",
                decision.record.id, self.server
            )))
        };
        let size = self.segment_size()?;
        let is_fork = |fork: &RecordId| self.is_fork(*fork, &decision.body, size);
        if restart.of.is_empty() || !restart.of.iter().all(is_fork) {
            return refused("it is about no fork that is known at its place".to_owned());
        }
        for id in &restart.apart {
            match self.node.db.read(|db| named(db, *id))? {
                Some(Named::Backup(backup)) if !self.lies_behind_backup(&backup, &decision.body)? => {
                    return refused(format!(
                        "it sets backup {} apart, which ends before {}, where the later history begins",
                        backup.id, decision.body.lsn
                    ));
                }
                Some(Named::Wal(file)) if !self.lies_behind_file(&file, &decision.body)? => {
                    return refused(format!(
                        "it sets {} apart, which lies before {}, where the later history begins",
                        file.name, decision.body.lsn
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether this is a fork that a decision can settle: on its timeline, and not in a segment before its place.
    fn is_fork(&self, id: RecordId, decision: &HistoryRecord, size: SegmentSize) -> bool {
        let fork = self.offer.histories.iter().find(|said| said.record.id == id);
        fork.is_some_and(|said| {
            matches!(said.body.event, Event::Fork { .. })
                && said.body.timeline == decision.timeline
                && said.body.lsn.segment_start(size) >= decision.lsn.segment_start(size)
        })
    }

    fn segment_size(&self) -> Result<SegmentSize> {
        let known = match self.offer.backups.last() {
            Some(backup) => Some(backup.body.segment_size),
            None => self.node.archived_segment_size(self.server)?,
        };
        Ok(known.unwrap_or(SegmentSize::DEFAULT))
    }

    fn lies_behind_backup(&self, backup: &Backup, decision: &HistoryRecord) -> Result<bool> {
        match (backup.timeline, backup.stop_lsn) {
            (Some(timeline), Some(stop)) if timeline == decision.timeline => Ok(stop > decision.lsn),
            (Some(timeline), Some(_)) => self.branches_behind(timeline, decision),
            _ => Ok(false),
        }
    }

    /// A later timeline whose history is not here may have branched off there.
    fn branches_behind(&self, timeline: TimelineId, decision: &HistoryRecord) -> Result<bool> {
        let place = (decision.timeline, decision.lsn);
        let branches = self.node.branches_behind(self.server, timeline, place)?;
        Ok(branches.unwrap_or(timeline > decision.timeline))
    }

    fn lies_behind_file(&self, file: &WalFile, decision: &HistoryRecord) -> Result<bool> {
        let timeline = file.name.timeline();
        if timeline != decision.timeline {
            return self.branches_behind(timeline, decision);
        }
        Ok(match (file.name, SegmentSize::try_from(file.size_bytes)) {
            (WalName::History(_), _) => decision.lsn == Lsn(0),
            (WalName::Segment(name) | WalName::Partial(name), Ok(size)) => {
                name.start_lsn(size) >= decision.lsn.segment_start(size)
            }
            // Of a file that has no segment's size, nothing but the name is known.
            _ => true,
        })
    }

    /// Says which backups here belong to the history that was left.
    fn note_apart(&mut self, restart: &Restart, lsn: Lsn) -> Result<()> {
        let mut backups: Vec<BackupId> = Vec::new();
        for id in &restart.apart {
            if let Some(Named::Backup(backup)) = self.node.db.read(|db| named(db, *id))? {
                backups.push(backup.id);
            }
        }
        if !backups.is_empty() {
            let shown: Vec<String> = backups.iter().map(ToString::to_string).collect();
            self.report.notes.push(format!(
                "On the primary, a later history counts from {lsn} on: of the one that was left are {}",
                shown.join(", ")
            ));
        }
        Ok(())
    }
}

impl Repository {
    /// A decision of a primary moves records between archives. It may name only records of its own server: otherwise a
    /// primary could move files of other servers of this repository.
    pub(super) fn refuse_foreign_decision(&self, decision: &Said<HistoryRecord>) -> Result<()> {
        let named: BTreeSet<RecordId> = match &decision.body.event {
            Event::Fork { .. } => return Ok(()),
            Event::Keep { of, taken } => of.iter().chain(taken).copied().collect(),
            Event::Restart(restart) => restart
                .of
                .iter()
                .chain(&restart.apart)
                .chain(&restart.taken)
                .copied()
                .collect(),
        };
        self.db.read(|db| {
            for id in named {
                let foreign = server_of(db, id)?.filter(|server| *server != decision.body.server);
                if let Some(server) = foreign {
                    return Err(Error::Invalid(format!(
                        "Decision {} of server {} of the primary names record {id}, which is of server {server} here",
                        decision.record.id, decision.body.server
                    )));
                }
            }
            Ok(())
        })
    }
}

/// Whose a record of this repository is; none if it is not here or belongs to no server.
fn server_of(db: &Connection, id: RecordId) -> Result<Option<ServerName>> {
    let mut query = db.prepare_cached("SELECT kind, payload FROM records WHERE id = ?1")?;
    let mut rows = query.query([id.as_bytes()])?;
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    let (kind, payload): (u8, Vec<u8>) = (row.get(0)?, row.get(1)?);
    Ok(match Kind::of(kind) {
        Some(Kind::Backup) => Some(records::parse::<Backup>(id, &payload)?.server),
        Some(Kind::Wal) => Some(records::parse::<WalFile>(id, &payload)?.server),
        Some(Kind::QuarantinedWal) => Some(records::parse::<QuarantinedWal>(id, &payload)?.file.server),
        Some(Kind::History) => Some(records::parse::<HistoryRecord>(id, &payload)?.server),
        _ => None,
    })
}

/// A backup or a file here.
fn named(db: &Connection, id: RecordId) -> Result<Option<Named>> {
    let found: Option<(u8, Vec<u8>)> = db
        .prepare_cached("SELECT kind, payload FROM records WHERE id = ?1")?
        .query_row([id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((kind, payload)) = found else {
        return Ok(None);
    };
    Ok(match Kind::of(kind) {
        Some(Kind::Backup) => Some(Named::Backup(records::parse(id, &payload)?)),
        Some(Kind::Wal) => Some(Named::Wal(records::parse(id, &payload)?)),
        Some(Kind::QuarantinedWal) => Some(Named::Wal(Box::new(
            records::parse::<QuarantinedWal>(id, &payload)?.file,
        ))),
        _ => None,
    })
}
