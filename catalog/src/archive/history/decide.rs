//! A person's decision about which history counts.

use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};
use barmanfs_store::RecordId;

use super::records::{Event, HistoryRecord, Restart};
use super::{Fork, Restarted};
use crate::archive::backup::{Backup, BackupStatus};
use crate::archive::wal::QuarantinedWal;
use crate::archive::wal::archive::STRIPES;
use crate::error::{Error, Result};
use crate::home::locks::Lock;
use crate::home::now;
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;
use crate::index::writer::Writer;
use crate::names::{BackupId, ServerName};

/// The position of a decision.
#[derive(Debug, Clone, Copy)]
struct Place {
    timeline: TimelineId,
    lsn: Lsn,
    size: SegmentSize,
}

impl Place {
    /// Whether a segment is at or after it.
    fn is_before(&self, segment: SegmentName) -> bool {
        segment.start_lsn(self.size) >= self.lsn.segment_start(self.size)
    }
}

impl Repository {
    /// Whether a timeline branched off another one after a place on that; `None` if its history is not archived.
    pub(crate) fn branches_behind(
        &self,
        server: &ServerName,
        timeline: TimelineId,
        (of, lsn): (TimelineId, Lsn),
    ) -> Result<Option<bool>> {
        let history = self.readable_history(server, timeline)?;
        let left = history.map(|history| history.switch_point(of));
        Ok(left.map(|left| left.is_some_and(|left| left > lsn)))
    }
}

impl Writer {
    /// From `lsn` on, the later history counts. What is archived from there on is set apart for the backups that need
    /// it. If several timelines have open forks, `timeline` selects one.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no open fork there, and when it cannot be made durable.
    pub fn restart_history(
        &self,
        server: &ServerName,
        timeline: Option<TimelineId>,
        lsn: Lsn,
    ) -> Result<Restarted> {
        let _alone = self.stop_archiving(server)?;
        let (place, forks) = self.place(server, timeline, lsn)?;
        let behind = self.timelines_behind(server, place)?;
        let mut restart = Restart {
            of: forks.iter().map(|fork| fork.id).collect(),
            ..Restart::default()
        };
        self.set_files_apart(server, place, &behind, &forks, &mut restart)?;
        let files = restart.apart.len();
        let backups = self.set_backups_apart(server, place, &behind, &mut restart)?;
        restart.taken = self.of_new_history(server, place)?;
        let restarted = Restarted {
            timeline: place.timeline,
            lsn,
            apart: files as u64,
            taken: restart.taken.len() as u64,
            backups,
        };
        self.decide(server, place, Event::Restart(restart))?;
        Ok(restarted)
    }

    /// From `lsn` on, the archived history counts, and segments that continue it are archived again. Returns how many
    /// forks this settles.
    ///
    /// # Errors
    /// As for [`restart_history`](Self::restart_history).
    pub fn keep_history(&self, server: &ServerName, timeline: Option<TimelineId>, lsn: Lsn) -> Result<usize> {
        let _alone = self.stop_archiving(server)?;
        let (place, forks) = self.place(server, timeline, lsn)?;
        let of: Vec<RecordId> = forks.iter().map(|fork| fork.id).collect();
        let taken = self.of_archived_history(server, place)?;
        self.decide(server, place, Event::Keep { of, taken })?;
        Ok(forks.len())
    }

    fn decide(&self, server: &ServerName, place: Place, event: Event) -> Result<()> {
        let body = HistoryRecord {
            server: server.clone(),
            timeline: place.timeline,
            lsn: place.lsn,
            at: now(),
            event,
        };
        self.write_records(vec![records::record(Kind::History, &body)?])
    }

    /// No file of the server is archived while these locks are held.
    fn stop_archiving(&self, server: &ServerName) -> Result<Vec<Lock>> {
        let purpose = format!("history of {server}");
        let names = (0..STRIPES).map(|stripe| format!("wal-{server}-{stripe:x}"));
        names
            .map(|name| self.repository().locks.wait_exclusive(&name, &purpose))
            .collect()
    }

    /// The open forks that a decision at `lsn` settles: those at or after it on one timeline.
    fn place(
        &self,
        server: &ServerName,
        timeline: Option<TimelineId>,
        lsn: Lsn,
    ) -> Result<(Place, Vec<Fork>)> {
        let size = self.segment_size(server)?;
        let mut forks = self.repository().open_forks(server)?;
        forks.retain(|fork| {
            timeline.is_none_or(|timeline| timeline == fork.timeline)
                && fork.lsn.segment_start(size) >= lsn.segment_start(size)
        });
        let Some(first) = forks.iter().map(|fork| fork.timeline).min() else {
            return Err(Error::Invalid(format!(
                "No undecided fork of server {server} is at {lsn} or behind it: 'barmanfs history {server} list' shows them"
            )));
        };
        if forks.iter().any(|fork| fork.timeline != first) && timeline.is_none() {
            return Err(Error::Invalid(format!(
                "Several timelines of server {server} have forks there: say which one with --timeline"
            )));
        }
        let place = Place {
            timeline: first,
            lsn,
            size,
        };
        Ok((place, forks))
    }

    fn segment_size(&self, server: &ServerName) -> Result<SegmentSize> {
        let backups = self.repository().backups(server)?;
        match backups.last() {
            Some(backup) => Ok(backup.segment_size),
            None => Ok(self
                .repository()
                .archived_segment_size(server)?
                .unwrap_or(SegmentSize::DEFAULT)),
        }
    }

    /// The timelines that branched off this one after the place.
    fn timelines_behind(&self, server: &ServerName, place: Place) -> Result<Vec<TimelineId>> {
        let repository = self.repository();
        let mut behind = Vec::new();
        for timeline in repository.history_files(server)? {
            if repository.branches_behind(server, timeline, (place.timeline, place.lsn))? == Some(true) {
                behind.push(timeline);
            }
        }
        Ok(behind)
    }

    fn set_files_apart(
        &self,
        server: &ServerName,
        place: Place,
        behind: &[TimelineId],
        forks: &[Fork],
        restart: &mut Restart,
    ) -> Result<()> {
        let archive = self.repository().wal(server);
        let from_its_beginning = forks.iter().any(|fork| fork.lsn == Lsn(0)) && place.lsn == Lsn(0);
        for entry in archive.entries() {
            let name = entry?.name;
            let is_apart = behind.contains(&name.timeline())
                || name.timeline() == place.timeline
                    && match name {
                        WalName::History(_) => from_its_beginning,
                        other => other.segment().is_some_and(|segment| place.is_before(segment)),
                    };
            if is_apart && let Some(record) = archive.find(&name)?.and_then(|file| file.record) {
                restart.apart.push(record);
            }
        }
        Ok(())
    }

    /// The backups that end after the place belong to the abandoned history. Of the files common to both histories, it
    /// needs those from the start of the last backup before the place on.
    fn set_backups_apart(
        &self,
        server: &ServerName,
        place: Place,
        behind: &[TimelineId],
        restart: &mut Restart,
    ) -> Result<Vec<BackupId>> {
        let mut backups = self.repository().backups(server)?;
        backups.retain(|backup| {
            backup.has_ended_well()
                && backup.is_of_server()
                && backup.archive() == server
                && backup.status != BackupStatus::Failed
        });
        let ends_behind = |backup: &Backup| match (backup.timeline, backup.stop_lsn) {
            (Some(timeline), Some(stop)) => {
                behind.contains(&timeline) || timeline == place.timeline && stop > place.lsn
            }
            _ => false,
        };
        let (apart, common): (Vec<_>, Vec<_>) = backups.into_iter().partition(ends_behind);
        let first = apart.iter().filter_map(|backup| backup.start_lsn).min();
        let before = common.iter().filter_map(|backup| backup.start_lsn).max();
        restart.shared_from = first.into_iter().chain(before).min().unwrap_or(place.lsn);
        restart
            .apart
            .extend(apart.iter().filter_map(|backup| backup.record));
        Ok(apart.into_iter().map(|backup| backup.id).collect())
    }

    /// The refused segments after the end of the archive that continue it.
    fn of_archived_history(&self, server: &ServerName, place: Place) -> Result<Vec<RecordId>> {
        let archive = self.repository().wal(server);
        match archive.last_segment(place.timeline, None)? {
            Some(last) => self.continuing(server, place, last.next(place.size), &[], true),
            None => Ok(Vec::new()),
        }
    }

    /// The refused segments of the other history, from the first one on: `receive-wal` has acknowledged them to its
    /// server.
    fn of_new_history(&self, server: &ServerName, place: Place) -> Result<Vec<RecordId>> {
        // Some may belong to the archived history: its server may have continued after the fork was detected.
        let old = self.of_archived_history(server, place)?;
        let refused = self.refused(server, place, &old)?;
        let first = refused.iter().filter_map(|kept| kept.file.name.segment()).min();
        match first {
            Some(first) => self.continuing(server, place, first, &old, false),
            None => Ok(Vec::new()),
        }
    }

    /// Complete segments in quarantine at or after a place, except for some.
    fn refused(&self, server: &ServerName, place: Place, except: &[RecordId]) -> Result<Vec<QuarantinedWal>> {
        let mut refused = self.repository().wal(server).quarantined()?;
        refused.retain(|kept| {
            matches!(kept.file.name, WalName::Segment(name) if name.timeline == place.timeline && place.is_before(name))
                && kept.file.size_bytes == place.size.bytes()
                && kept.file.record.is_some_and(|record| !except.contains(&record))
        });
        Ok(refused)
    }

    /// Refused segments that continue each other from `name` on, and that continue what is archived before `name`: for
    /// the archived history whatever that is, for the other one only what lies before the place.
    fn continuing(
        &self,
        server: &ServerName,
        place: Place,
        mut name: SegmentName,
        except: &[RecordId],
        is_archived: bool,
    ) -> Result<Vec<RecordId>> {
        let (repository, size) = (self.repository(), place.size);
        let refused = self.refused(server, place, except)?;
        let before = name.start_lsn(size).0.checked_sub(1).map(Lsn);
        let before = before.map(|lsn| SegmentName::from_lsn(place.timeline, lsn, size));
        let mut last = match before {
            Some(before) if is_archived || !place.is_before(before) => self.last_archived(server, before)?,
            _ => None,
        };
        let mut taken = Vec::new();
        loop {
            let mut found = None;
            // If several have one name, take the newest that fits.
            for kept in refused
                .iter()
                .rev()
                .filter(|kept| kept.file.name == WalName::Segment(name))
            {
                let link = repository.link(&kept.file, name)?;
                // If there is nothing to compare, it does not belong to the archived history.
                let fits = link
                    .zip(last)
                    .map_or(!is_archived, |(link, last)| link.previous == last);
                if fits {
                    found = Some(kept);
                    break;
                }
            }
            let Some((kept, record)) = found.and_then(|kept| kept.file.record.map(|record| (kept, record)))
            else {
                return Ok(taken);
            };
            taken.push(record);
            last = repository.last_record(&kept.file, name)?;
            name = name.next(size);
        }
    }

    /// The start of the last record of an archived segment, if it can be determined.
    fn last_archived(&self, server: &ServerName, name: SegmentName) -> Result<Option<Lsn>> {
        let repository = self.repository();
        match repository.wal(server).find(&WalName::Segment(name))? {
            Some(file) => repository.last_record(&file, name),
            None => Ok(None),
        }
    }
}
