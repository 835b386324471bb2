//! Boot tests: whether PostgreSQL has started on a copy of a backup, or why it did not.
//!
//! Each test is a record that names the backup's record, so it applies to exactly that backup: when the backup is
//! annulled, its tests become meaningless, in whatever order the records are read. The newest test of each backup is
//! shown.

use std::collections::BTreeMap;
use std::fmt;

use barmanfs_pg::TimestampMicros;
use barmanfs_store::RecordId;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::archive::backup::Backup;
use crate::error::{Error, Result};
use crate::home::locks::Lock;
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;
use crate::names::{BackupId, ServerName};

/// Longest stored message, in bytes: a line or two; the log it comes from is longer.
const MESSAGE_BYTES: usize = 1000;

/// How a boot test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootOutcome {
    /// The server came up and passed its checks.
    Ok,
    /// It did not.
    Failed,
}

/// A check run on the started server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootCheck {
    /// It connected to every database and read its catalog.
    Catalogs,
    /// It ran a file of SQL statements.
    Sql,
    /// `pg_amcheck` read all tables and indexes.
    Amcheck,
}

impl BootCheck {
    /// A word for messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Catalogs => "catalogs",
            Self::Sql => "sql",
            Self::Amcheck => "amcheck",
        }
    }
}

impl fmt::Display for BootCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The result of one boot test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTest {
    /// How it ended.
    pub outcome: BootOutcome,
    /// When it began.
    pub began_at: TimestampMicros,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// The PostgreSQL version it ran with: "18.1".
    pub postgresql: String,
    /// The checks requested in addition to starting, in the order they are done; a failed test may not have reached
    /// all of them.
    pub checks: Vec<BootCheck>,
    /// Why it failed, in one line.
    #[serde(default)]
    pub message: Option<String>,
}

/// The content of a test's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BootTestRecord {
    /// The backup's record.
    pub(crate) of: RecordId,
    /// The backup, for messages.
    pub(crate) server: ServerName,
    pub(crate) backup: BackupId,
    #[serde(flatten)]
    pub(crate) test: BootTest,
}

/// Keeps others from testing backups of a server while this lives.
#[derive(Debug)]
pub struct BootTestLock {
    _lock: Lock,
}

impl Repository {
    /// Marks a backup of this server as being tested. Each server has one test at a time, so the holder of this lock
    /// knows that the remains of earlier tests belong to no running process.
    ///
    /// # Errors
    /// [`Error::Occupied`] while another test runs.
    pub fn lock_boot_test(&self, server: &ServerName) -> Result<BootTestLock> {
        let name = format!("boot-{server}");
        let lock = self
            .locks
            .try_exclusive(&name, &format!("boot test of {server}"))?;
        let lock = lock.ok_or_else(|| Error::Occupied {
            what: "Another boot test of this server",
            holder: self.locks.holder(&name),
            advice: "run again when it has ended",
        })?;
        Ok(BootTestLock { _lock: lock })
    }

    /// Stores the result of a boot test; durable when it returns.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`] for a backup that has not ended or has been deleted meanwhile.
    pub fn add_boot_test(&self, backup: &Backup, mut test: BootTest) -> Result<()> {
        let gone = || Error::NoSuchBackup {
            server: backup.server.clone(),
            selector: backup.id.to_string(),
        };
        let of = backup.record.ok_or_else(gone)?;
        if let Some(message) = &mut test.message {
            cut(message, MESSAGE_BYTES);
        }
        let writer = self.writer(&format!("boot test of backup {} of {}", backup.id, backup.server))?;
        let annulled = self.db.read(|db| records::is_annulled(db, of))?;
        if annulled {
            return Err(gone());
        }
        let body = BootTestRecord {
            of,
            server: backup.server.clone(),
            backup: backup.id,
            test,
        };
        writer.write_records(vec![records::record(Kind::BootTest, &body)?])
    }

    /// The newest boot test of a backup, if there was one.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn boot_test(&self, backup: &Backup) -> Result<Option<BootTest>> {
        self.db.read(|db| newest(db, backup))
    }

    /// The newest boot test of each of these backups of a server, as far as there was one.
    pub(super) fn boot_tests(&self, backups: &[Backup]) -> Result<BTreeMap<BackupId, BootTest>> {
        self.db.read(|db| {
            let mut tests = BTreeMap::new();
            // Most repositories have none, and many backups.
            if !db
                .prepare_cached("SELECT 1 FROM boot_tests LIMIT 1")?
                .exists([])?
            {
                return Ok(tests);
            }
            for backup in backups {
                if let Some(test) = newest(db, backup)? {
                    tests.insert(backup.id, test);
                }
            }
            Ok(tests)
        })
    }
}

fn newest(db: &Connection, backup: &Backup) -> Result<Option<BootTest>> {
    let Some(of) = backup.record else {
        return Ok(None);
    };
    let newest: Option<(RecordId, Vec<u8>)> = db
        .prepare_cached(
            "SELECT r.id, r.payload FROM boot_tests b JOIN records r ON r.seq = b.record WHERE b.backup = ?1",
        )?
        .query_row([of.as_bytes()], |row| Ok((RecordId(row.get(0)?), row.get(1)?)))
        .optional()?;
    let parsed = newest.map(|(id, payload)| records::parse::<BootTestRecord>(id, &payload));
    Ok(parsed.transpose()?.map(|record| record.test))
}

/// Cuts the text to at most this many bytes, at a character boundary.
pub(crate) fn cut(text: &mut String, bytes: usize) {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// The records of all tests of these records of a backup, which are deleted with it.
pub(super) fn records_of(db: &Connection, backup: &[RecordId]) -> Result<Vec<RecordId>> {
    records::naming(db, Kind::BootTest, backup, |record: &BootTestRecord| record.of)
}

/// Enters a test's record: if a backup has several, the newest counts.
pub(crate) fn derive(db: &Connection, seq: i64, id: RecordId, record: &BootTestRecord) -> Result<()> {
    if records::is_annulled(db, record.of)? {
        return Ok(());
    }
    db.prepare_cached(
        "INSERT INTO boot_tests (backup, record, began_at) VALUES (?1, ?2, ?3)
         ON CONFLICT (backup) DO UPDATE SET record = excluded.record, began_at = excluded.began_at
         WHERE (excluded.began_at, ?4) > (began_at, (SELECT id FROM records WHERE seq = record))",
    )?
    .execute(params![
        record.of.as_bytes(),
        seq,
        record.test.began_at.unix_micros(),
        id.as_bytes()
    ])?;
    Ok(())
}

/// Removes what a deletion annuls: a test, or a backup with its tests.
pub(crate) fn annul(db: &Connection, annulled: RecordId) -> Result<()> {
    db.prepare_cached("DELETE FROM boot_tests WHERE backup = ?1")?
        .execute([annulled.as_bytes()])?;
    Ok(())
}
