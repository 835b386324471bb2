//! What a person can do with WAL files that were or should be put aside.
//!
//! A file is in quarantine because of its record; a deletion that names this record removes it. Accepting a file writes
//! a new record for the archive, and removing one from the archive writes a new record for the quarantine, each in one
//! pack and one transaction with the deletion of the previous record. So the order in which records are read does not
//! matter, and the bytes are referenced all the time.
//!
//! A good file of the archive is never removed: only one that cannot be read, or does not match its name. The one
//! exception is a person's decision: a readable history file may be wrong, which the program cannot detect. It can be
//! removed as long as no WAL of its timeline depends on it.

use std::io::Read;

use barmanfs_pg::wal_files::check_small_file;
use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};
use barmanfs_store::{Record, RecordId};
use rusqlite::OptionalExtension;

use crate::archive::history::records::placed_in;
use crate::archive::wal::{QuarantinedWal, WalFile, removal};
use crate::error::{Error, Result};
use crate::home::now;
use crate::index::records::{self, Deletion, Kind};
use crate::index::repository::Repository;
use crate::index::writer::Writer;
use crate::names::ServerName;

/// Number of bytes compared at a time.
const COMPARE_BYTES: usize = 1024 * 1024;

/// A quarantined file compared with the archived one of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// The archive has none.
    None,
    /// It has the same bytes.
    Same,
    /// They differ.
    Differs {
        /// Offset of the first byte that differs; the shorter one's length if one is the beginning of the other.
        offset: u64,
        /// The same as an LSN; only for segments.
        lsn: Option<Lsn>,
    },
    /// One of them cannot be read.
    Unreadable {
        /// Why not.
        reason: String,
    },
}

impl QuarantinedWal {
    /// Its record's id, which distinguishes it from others of the same name.
    pub fn id(&self) -> String {
        self.file.record.map(|id| id.to_string()).unwrap_or_default()
    }
}

impl Repository {
    /// The file in quarantine with this name, or with an id that begins with this text.
    ///
    /// # Errors
    /// [`Error::NotInQuarantine`], [`Error::SeveralInQuarantine`].
    pub fn find_quarantined(&self, server: &ServerName, name_or_id: &str) -> Result<QuarantinedWal> {
        let found = self.matching(server, name_or_id)?;
        let found = match found.as_slice() {
            [] if self.adopt_unknown_packs()? => self.matching(server, name_or_id)?,
            _ => found,
        };
        match <[QuarantinedWal; 1]>::try_from(found) {
            Ok([one]) => Ok(one),
            Err(none) if none.is_empty() => Err(Error::NotInQuarantine {
                server: server.clone(),
                name: name_or_id.to_owned(),
            }),
            Err(several) => Err(Error::SeveralInQuarantine {
                name: name_or_id.to_owned(),
                ids: several.iter().map(QuarantinedWal::id).collect(),
            }),
        }
    }

    fn matching(&self, server: &ServerName, name_or_id: &str) -> Result<Vec<QuarantinedWal>> {
        let mut kept = self.wal(server).quarantined()?;
        kept.retain(|kept| {
            kept.file.name.to_string() == name_or_id
                || (name_or_id.len() >= 4 && kept.id().starts_with(name_or_id))
        });
        Ok(kept)
    }

    /// Compares a quarantined file with the archived one of its name.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn compare_quarantined(&self, kept: &QuarantinedWal) -> Result<Comparison> {
        let file = &kept.file;
        let Some(archived) = self.wal(&file.server).find(&file.name)? else {
            return Ok(Comparison::None);
        };
        let (ours, theirs) = (&mut self.content(file), &mut self.content(&archived));
        Ok(match first_difference(ours, theirs) {
            Err(error) => Comparison::Unreadable {
                reason: error.to_string(),
            },
            Ok(None) => Comparison::Same,
            Ok(Some(offset)) => Comparison::Differs {
                offset,
                lsn: lsn_at(file, offset),
            },
        })
    }

    /// Accepts a quarantined file into the archive, if the archive has none of its name. With `replace`, also if the
    /// archive has an unusable one, which then goes into quarantine.
    ///
    /// # Errors
    /// [`Error::BadWalFile`] when it does not match its name or cannot be read, [`Error::ArchivedIsGood`],
    /// [`Error::OfAnotherHistory`], [`Error::NotInQuarantine`] when someone else has already accepted or deleted it.
    pub fn release_quarantined(&self, kept: &QuarantinedWal, replace: bool) -> Result<()> {
        let (server, name) = (&kept.file.server, &kept.file.name);
        let writer = self.writer(&format!("release of {name} of {server}"))?;
        let _lock = writer.lock_wal_name(server, name)?;
        let _neighbours = writer.lock_neighbours(server)?;
        let record = self.still_quarantined(kept)?;
        if let Some(reason) = self.fault_of(&kept.file)? {
            return Err(bad(&kept.file, reason));
        }
        writer.keep_condemned()?;
        let mut records = Vec::new();
        if let Some(archived) = self.wal(server).find(name)? {
            let fault = self.fault_of(&archived)?;
            let replaceable = fault.is_some();
            let Some(reason) = fault.filter(|_| replace) else {
                return Err(Error::ArchivedIsGood {
                    name: *name,
                    server: server.clone(),
                    replaceable,
                });
            };
            records.extend(self.records_that_move(&writer, archived, &reason)?);
        } else if let Some(why) = self.other_history(&kept.file)? {
            return Err(Error::OfAnotherHistory {
                name: *name,
                server: server.clone(),
                why,
            });
        }
        records.push(deletion(record, &kept.file)?);
        let released = WalFile {
            archived_at: self.db.read(|db| removal::archived_now(db, server, name))?,
            ..kept.file.clone()
        };
        records.push(records::record(Kind::Wal, &released)?);
        writer.write_records(records)
    }

    /// Moves an unusable file from the archive into quarantine: one that cannot be read, or does not match its name;
    /// with `force` also a history file, if nothing else of its timeline is archived.
    ///
    /// # Errors
    /// [`Error::NotArchived`]; [`Error::ArchivedIsGood`]; [`Error::HistoryIsNeeded`].
    pub fn take_from_archive(&self, server: &ServerName, name: &WalName, force: bool) -> Result<String> {
        let writer = self.writer(&format!("removal of {name} of {server}"))?;
        let _lock = writer.lock_wal_name(server, name)?;
        let archived = self.wal(server).find(name)?.ok_or_else(|| Error::NotArchived {
            name: *name,
            server: server.clone(),
        })?;
        let reason = match (self.fault_of(&archived)?, name) {
            (Some(fault), _) => fault,
            (None, WalName::History(timeline)) if force => {
                if let Some(needs) = self.first_on_timeline(server, *timeline)? {
                    return Err(Error::HistoryIsNeeded {
                        name: *name,
                        server: server.clone(),
                        needs,
                    });
                }
                "somebody said that it is wrong, and nothing of its timeline is archived".to_owned()
            }
            (None, _) => {
                return Err(Error::ArchivedIsGood {
                    name: *name,
                    server: server.clone(),
                    replaceable: false,
                });
            }
        };
        writer.keep_condemned()?;
        writer.write_records(self.records_that_move(&writer, archived, &reason)?)?;
        Ok(reason)
    }

    /// What is stored of a timeline apart from its history file: a file of the archive, or a backup.
    fn first_on_timeline(&self, server: &ServerName, timeline: TimelineId) -> Result<Option<String>> {
        let archived: Option<String> = self.db.read(|db| {
            let mut first = db.prepare_cached(
                "SELECT name FROM wal WHERE server = ?1 AND substr(name, 1, 8) = ?2 AND name NOT LIKE '%.history'
                 ORDER BY name LIMIT 1",
            )?;
            let digits = format!("{:08X}", timeline.0);
            let found = first.query_row(rusqlite::params![server.as_str(), digits], |row| row.get(0));
            Ok(found.optional()?)
        })?;
        if archived.is_some() {
            return Ok(archived);
        }
        let backups = self.backups(server)?;
        let on_it = backups.iter().find(|backup| backup.timeline == Some(timeline));
        Ok(on_it.map(|backup| format!("backup {}", backup.id)))
    }

    /// Deletes a quarantined file permanently; a sweep frees its space.
    ///
    /// # Errors
    /// [`Error::NotInQuarantine`] when someone else has already accepted or deleted it.
    pub fn delete_quarantined(&self, kept: &QuarantinedWal) -> Result<()> {
        let (server, name) = (&kept.file.server, &kept.file.name);
        self.with_reserve(|| {
            let writer = self.writer(&format!("deletion of quarantined {name} of {server}"))?;
            let record = self.still_quarantined(kept)?;
            writer.write_records(vec![deletion(record, &kept.file)?])
        })
    }

    /// What makes an archived or quarantined file unusable; none if it is intact.
    ///
    /// # Errors
    /// When the catalog or the disk cannot be read.
    pub fn fault_of(&self, file: &WalFile) -> Result<Option<String>> {
        let mut content = self.content(file);
        let mut bytes = Vec::new();
        let small = matches!(file.name, WalName::History(_) | WalName::BackupHistory { .. });
        let read = match small {
            true => content.read_to_end(&mut bytes),
            false => std::io::copy(&mut content, &mut std::io::sink()).map(|_| 0),
        };
        match read {
            Err(error) => Ok(Some(error.to_string())),
            Ok(_) => Ok(check_small_file(&file.name, &bytes)
                .err()
                .map(|error| error.to_string())),
        }
    }

    fn content(&self, file: &WalFile) -> barmanfs_store::tree::FileReader {
        self.trees().reader(file.map.clone())
    }

    fn still_quarantined(&self, kept: &QuarantinedWal) -> Result<RecordId> {
        let there = self.wal(&kept.file.server).quarantined()?;
        let same = there.iter().any(|other| other.file.record == kept.file.record);
        kept.file
            .record
            .filter(|_| same)
            .ok_or_else(|| Error::NotInQuarantine {
                server: kept.file.server.clone(),
                name: kept.file.name.to_string(),
            })
    }

    /// The records that move an archived file into quarantine. Merged repositories may have several records of one
    /// name, only one of which counts: all of them must be deleted.
    fn records_that_move(&self, _locked: &Writer, archived: WalFile, reason: &str) -> Result<Vec<Record>> {
        // Otherwise the right file, when it is sent again, would refer to damaged chunks.
        self.note_damage_of(&archived)?;
        let mut records = Vec::new();
        for record in self.records_of_name(&archived)? {
            records.push(deletion(record, &archived)?);
        }
        let kept = QuarantinedWal {
            file: archived,
            reason: format!("It was taken from the archive: {reason}"),
        };
        records.push(records::record(Kind::QuarantinedWal, &kept)?);
        Ok(records)
    }

    /// All live records that put a file of this name into the server's archive. After a decision about histories these may
    /// be records of quarantined files, and the records of another history's file are not among them.
    fn records_of_name(&self, file: &WalFile) -> Result<Vec<RecordId>> {
        let name = file.name.to_string();
        self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT id, payload, kind FROM records WHERE kind IN (?1, ?2)
                 AND instr(payload, CAST(?3 AS BLOB)) > 0 AND id NOT IN (SELECT annulled FROM deletions)",
            )?;
            let mut rows = query.query(rusqlite::params![Kind::Wal, Kind::QuarantinedWal, name])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let (id, payload) = records::id_and_payload(row)?;
                // A record that cannot be read is in no archive.
                let other = match Kind::of(row.get(2)?) {
                    Some(Kind::Wal) => {
                        records::parse::<WalFile>(id, payload).map(|file| (file.name, Some(file.server)))
                    }
                    _ => records::parse::<QuarantinedWal>(id, payload).map(|kept| (kept.file.name, None)),
                };
                if let Ok((name, server)) = other
                    && name == file.name
                    && placed_in(db, id)?.or(server).as_ref() == Some(&file.server)
                {
                    found.push(id);
                }
            }
            Ok(found)
        })
    }
}

fn bad(file: &WalFile, reason: String) -> Error {
    Error::BadWalFile {
        name: file.name,
        server: file.server.clone(),
        reason,
    }
}

fn deletion(of: RecordId, file: &WalFile) -> Result<Record> {
    let body = Deletion {
        of,
        deleted_at: now(),
        what: format!("{} of {}", file.name, file.server),
    };
    records::record(Kind::Deletion, &body)
}

fn lsn_at(file: &WalFile, offset: u64) -> Option<Lsn> {
    let (WalName::Segment(segment) | WalName::Partial(segment)) = file.name else {
        return None;
    };
    let size = SegmentSize::try_from(file.size_bytes).ok()?;
    Some(Lsn(segment.start_lsn(size).0.saturating_add(offset)))
}

/// The first offset at which two files differ.
fn first_difference(a: &mut impl Read, b: &mut impl Read) -> std::io::Result<Option<u64>> {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let mut offset = 0;
    loop {
        left.clear();
        right.clear();
        let read = a.by_ref().take(COMPARE_BYTES as u64).read_to_end(&mut left)?;
        b.by_ref().take(COMPARE_BYTES as u64).read_to_end(&mut right)?;
        let same = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
        if same < left.len().max(right.len()) {
            return Ok(Some(offset + same as u64));
        }
        if read == 0 {
            return Ok(None);
        }
        offset += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use barmanfs_store::ContentClass;
    use barmanfs_store::layout::STREAM_WINDOW_BYTES;
    use barmanfs_store::tree::SingleFile;

    use super::*;
    use crate::home::settings::CreateOptions;
    use crate::monitor::Silent;

    #[test]
    fn the_first_difference_is_found_wherever_it_is() {
        let long = vec![7; COMPARE_BYTES * 2 + 5];
        let mut other = long.clone();
        let at = |a: &[u8], b: &[u8]| first_difference(&mut &*a, &mut &*b).unwrap();
        assert_eq!(at(&long, &other), None);
        assert_eq!(at(b"", b""), None);
        assert_eq!(at(&long, &long[..COMPARE_BYTES]), Some(COMPARE_BYTES as u64));
        other[COMPARE_BYTES + 3] = 0;
        assert_eq!(at(&long, &other), Some(COMPARE_BYTES as u64 + 3));
    }

    /// Archives without checking the content, as earlier releases did.
    fn archive_blindly(repository: &Repository, server: &ServerName, name: &WalName, bytes: &[u8]) {
        let writer = repository.writer("test").unwrap();
        let depositor = Arc::new(writer.depositor().unwrap());
        let size_bytes = bytes.len() as u64;
        let mut sink = SingleFile::begin(
            Arc::clone(&depositor),
            size_bytes,
            STREAM_WINDOW_BYTES,
            ContentClass::Stream,
        )
        .unwrap();
        sink.write(bytes).unwrap();
        let file = WalFile {
            server: server.clone(),
            name: *name,
            size_bytes,
            archived_at: now(),
            origin: "test".to_owned(),
            new_stored_bytes: 0,
            index: None,
            map: sink.finish().unwrap().map,
            record: None,
        };
        let record = records::record(Kind::Wal, &file).unwrap();
        depositor.flush(vec![record]).unwrap();
    }

    #[test]
    fn a_bad_history_of_an_earlier_release_is_reported_and_taken_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("repository");
        let repository = Repository::create(&path, CreateOptions::default()).unwrap();
        let server: ServerName = "main".parse().unwrap();
        let (bad, good) = (
            "00000002.history".parse().unwrap(),
            "00000003.history".parse().unwrap(),
        );
        archive_blindly(&repository, &server, &good, b"1\t0/3000000\treason\n");
        // Two records of one name, only one of which counts.
        archive_blindly(&repository, &server, &bad, b"hello\n");
        archive_blindly(&repository, &server, &bad, b"hello again\n");

        let report = repository.timelines(&server).unwrap();
        let [file] = report.unreadable.as_slice() else {
            panic!("{report:?}")
        };
        assert_eq!(file.name, bad);
        assert!(
            file.advice.contains("quarantine main take 00000002.history"),
            "{file:?}"
        );
        assert_eq!(report.timelines.len(), 2);

        let error = repository.take_from_archive(&server, &good, false).unwrap_err();
        assert!(matches!(error, Error::ArchivedIsGood { .. }), "{error}");
        repository.take_from_archive(&server, &bad, false).unwrap();
        let error = repository.take_from_archive(&server, &bad, true).unwrap_err();
        assert!(matches!(error, Error::NotArchived { .. }), "{error}");
        for _ in 0..2 {
            assert!(repository.timelines(&server).unwrap().unreadable.is_empty());
            assert_eq!(repository.wal(&server).find(&bad).unwrap(), None);
            assert_eq!(repository.wal(&server).quarantined().unwrap().len(), 1);
            Repository::rebuild(&path, &mut Silent).unwrap();
        }
        let repository = Repository::open(&path).unwrap();
        let kept = repository.find_quarantined(&server, "00000002.history").unwrap();
        let error = repository.release_quarantined(&kept, true).unwrap_err();
        assert!(matches!(error, Error::BadWalFile { .. }), "{error}");
        repository.delete_quarantined(&kept).unwrap();
        let error = repository.delete_quarantined(&kept).unwrap_err();
        assert!(matches!(error, Error::NotInQuarantine { .. }), "{error}");
    }
}
