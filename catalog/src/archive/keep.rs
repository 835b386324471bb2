//! Backups that a person keeps, whatever the retention policy says.
//!
//! Each decision is a record that names the backup's record. The newest one of a backup counts; a deletion annuls one.
//! So a release deletes all of them, and the deletion of a backup takes them along. The release of an imported backup is a
//! decision that has ended, so that the next import sees it.

use std::collections::BTreeMap;
use std::fmt;

use barmanfs_pg::TimestampMicros;
use barmanfs_store::{Record, RecordId};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use crate::archive::backup::{Backup, BackupStatus};
use crate::error::{Error, Result};
use crate::home::now;
use crate::index::records::{self, Deletion, Kind};
use crate::index::repository::Repository;
use crate::names::{BackupId, ServerName};

/// Longest stored reason, in bytes.
const REASON_BYTES: usize = 1000;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepTarget {
    /// The backup, and all WAL from its start on.
    Full,
    /// The backup, and the WAL from its start to its end.
    Standalone,
}

impl KeepTarget {
    /// Barman's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Standalone => "standalone",
        }
    }
}

impl fmt::Display for KeepTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A person's decision to keep a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// How much of it.
    pub target: KeepTarget,
    /// When it was decided.
    pub kept_at: TimestampMicros,
    /// Until when; without end if there is none.
    #[serde(default)]
    pub until: Option<TimestampMicros>,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
}

impl Keep {
    /// Whether it still applies.
    #[must_use]
    pub fn holds(&self, now: TimestampMicros) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// The content of the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeepRecord {
    /// The backup's record.
    pub(crate) of: RecordId,
    /// The backup, for messages.
    pub(crate) server: ServerName,
    pub(crate) backup: BackupId,
    #[serde(flatten)]
    pub(crate) keep: Keep,
}

/// What a decision does where there is an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Replaces,
    Yields,
}

/// The record of a decision about the backup that the record `of` describes.
pub(super) fn record(backup: &Backup, of: RecordId, keep: Keep) -> Result<Record> {
    let body = KeepRecord {
        of,
        server: backup.server.clone(),
        backup: backup.id,
        keep,
    };
    records::record(Kind::Keep, &body)
}

/// The time of a new decision. The clock may have been set back since the last one, which must not win.
fn after(last: Option<&Keep>) -> TimestampMicros {
    last.map_or_else(now, |last| {
        let next = last.kept_at.unix_micros().saturating_add(1);
        now().max(TimestampMicros::from_unix_micros(next))
    })
}

impl Repository {
    /// Keeps a complete backup; replaces an earlier decision about it. Durable when it returns.
    ///
    /// # Errors
    /// For one that is not DONE; [`Error::NoSuchBackup`] when it has been deleted meanwhile, and
    /// for a reason that is too long.
    pub fn keep_backup(
        &self,
        backup: &Backup,
        target: KeepTarget,
        until: Option<TimestampMicros>,
        reason: Option<String>,
    ) -> Result<()> {
        let of = backup.record.filter(|_| backup.status == BackupStatus::Done);
        let of = of.ok_or_else(|| {
            Error::Invalid(format!(
                "Backup {} of server {} is {}: only a backup that is DONE can be kept",
                backup.id, backup.server, backup.status
            ))
        })?;
        self.decide((backup, of), (target, until, reason), Decision::Replaces)
    }

    /// Keeps a backup as it is kept where it was imported from, unless somebody has decided about it here. It may still
    /// wait for WAL. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`] when it has been deleted meanwhile.
    pub fn keep_as_imported(&self, backup: &Backup, target: KeepTarget, reason: String) -> Result<()> {
        match backup.record.filter(|_| backup.has_ended_well()) {
            None => Ok(()),
            Some(of) => self.decide((backup, of), (target, None, Some(reason)), Decision::Yields),
        }
    }

    fn decide(
        &self,
        (backup, of): (&Backup, RecordId),
        (target, until, reason): (KeepTarget, Option<TimestampMicros>, Option<String>),
        decision: Decision,
    ) -> Result<()> {
        if reason.as_ref().is_some_and(|reason| reason.len() > REASON_BYTES) {
            return Err(Error::Invalid(format!(
                "The reason has more than {REASON_BYTES} bytes"
            )));
        }
        // No deletion comes between the look-up and the record.
        let _deleting = self.deleting(&backup.server)?;
        let writer = self.writer(&format!("keeping backup {} of {}", backup.id, backup.server))?;
        if self.db.read(|db| records::is_annulled(db, of))? {
            return Err(Error::NoSuchBackup {
                server: backup.server.clone(),
                selector: backup.id.to_string(),
            });
        }
        let last = self.db.read(|db| newest(db, of))?;
        if last.is_some() && decision == Decision::Yields {
            return Ok(());
        }
        let keep = Keep {
            target,
            kept_at: after(last.as_ref()),
            until,
            reason,
        };
        writer.write_records(vec![record(backup, of, keep)?])
    }

    /// Ends the decision to keep a backup; returns whether there was one. Of an imported backup the release is remembered as
    /// a decision that has ended: otherwise the next import would keep it again.
    ///
    /// # Errors
    /// When the catalog cannot be read or written.
    pub fn release_backup(&self, backup: &Backup) -> Result<bool> {
        let Some(of) = backup.record else {
            return Ok(false);
        };
        let _deleting = self.deleting(&backup.server)?;
        let writer = self.writer(&format!("release of backup {} of {}", backup.id, backup.server))?;
        if backup.imported.is_some() {
            let last = self.db.read(|db| newest(db, of))?;
            let kept_at = after(last.as_ref());
            if last.as_ref().is_some_and(|last| !last.holds(kept_at)) {
                return Ok(false);
            }
            let released = Keep {
                target: last.as_ref().map_or(KeepTarget::Full, |last| last.target),
                kept_at,
                until: Some(kept_at),
                reason: Some("released".to_owned()),
            };
            writer.write_records(vec![record(backup, of, released)?])?;
            return Ok(last.is_some());
        }
        let kept = self.db.read(|db| records_of(db, &[of]))?;
        if kept.is_empty() {
            return Ok(false);
        }
        let deletion = |of| {
            let what = format!("the mark that keeps backup {} of {}", backup.id, backup.server);
            let body = Deletion {
                of,
                deleted_at: now(),
                what,
            };
            records::record(Kind::Deletion, &body)
        };
        writer.write_records(kept.into_iter().map(deletion).collect::<Result<_>>()?)?;
        Ok(true)
    }

    /// The decision that counts for a backup, also one that has expired.
    ///
    /// # Errors
    /// When the catalog cannot be read, or the record cannot.
    pub fn keep_of(&self, backup: &Backup) -> Result<Option<Keep>> {
        let Some(of) = backup.record else {
            return Ok(None);
        };
        self.db.read(|db| newest(db, of))
    }

    /// The decisions about a server's backups that apply at this moment.
    ///
    /// # Errors
    /// As [`keep_of`](Self::keep_of).
    pub fn keeps(&self, backups: &[Backup], at: TimestampMicros) -> Result<BTreeMap<BackupId, Keep>> {
        self.db.read(|db| {
            let mut keeps = BTreeMap::new();
            // Most repositories have none, and many backups.
            if !db.prepare_cached("SELECT 1 FROM keeps LIMIT 1")?.exists([])? {
                return Ok(keeps);
            }
            for (backup, of) in backups.iter().filter_map(|backup| Some((backup, backup.record?))) {
                if let Some(keep) = newest(db, of)?.filter(|keep| keep.holds(at)) {
                    keeps.insert(backup.id, keep);
                }
            }
            Ok(keeps)
        })
    }
}

fn newest(db: &Connection, of: RecordId) -> Result<Option<Keep>> {
    let mut query = db.prepare_cached(
        "SELECT r.id, r.payload FROM keeps k JOIN records r ON r.seq = k.record WHERE k.of = ?1
         ORDER BY k.kept_at DESC, r.id DESC LIMIT 1",
    )?;
    let mut rows = query.query([of.as_bytes()])?;
    let newest = rows.next()?.map(records::of_row::<KeepRecord>).transpose()?;
    Ok(newest.map(|(_, record)| record.keep))
}

/// The records of all decisions about these records of a backup.
pub(super) fn records_of(db: &Connection, backup: &[RecordId]) -> Result<Vec<RecordId>> {
    let mut query =
        db.prepare_cached("SELECT r.id FROM keeps k JOIN records r ON r.seq = k.record WHERE k.of = ?1")?;
    let mut found = Vec::new();
    for of in backup {
        let ids = query.query_map([of.as_bytes()], |row| row.get(0).map(RecordId))?;
        found.extend(ids.collect::<rusqlite::Result<Vec<_>>>()?);
    }
    Ok(found)
}

/// Enters a record's content into the tables.
pub(crate) fn derive(db: &Connection, seq: i64, record: &KeepRecord) -> Result<()> {
    db.prepare_cached("INSERT INTO keeps (record, of, kept_at) VALUES (?1, ?2, ?3)")?
        .execute(params![
            seq,
            record.of.as_bytes(),
            record.keep.kept_at.unix_micros()
        ])?;
    Ok(())
}
