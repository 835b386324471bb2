//! Fills a catalog with rows.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use barmanfs_pg::TimestampMicros;
use barmanfs_store::{FileMap, Window, Windows};
use rusqlite::{Connection, Transaction, params};
use serde_json::json;

/// Segments are of the usual size.
const SEGMENT_BYTES: i64 = 16 << 20;

/// Between two segments, in microseconds: a minute.
const EVERY_MICROS: i64 = 60_000_000;

/// Kinds of records, as in FORMAT.md.
const BACKUP: i64 = 1;
const WAL: i64 = 2;

/// What the present release looks for in a segment, `SegmentIndex::READS`.
const READS: i64 = 1;

/// The size of each pack. Its file is a hole.
const PACK_BYTES: u64 = 5_000_000;

/// Inserts the backups and WAL of servers `s00`, `s01`, ...: all WAL without gaps, and the backups spread over it. Each
/// record is in a pack of its own, as that of an archived segment is.
pub(crate) fn fill(repository: &Path, servers: u32, backups: u32, wal: u32) -> Result<()> {
    let mut db = Connection::open(repository.join("catalog.sqlite"))?;
    db.pragma_update(None, "synchronous", "OFF")?;
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
    for server in 0..servers {
        let transaction = db.transaction()?;
        Server {
            db: &transaction,
            packs: repository.join("packs"),
            name: format!("s{server:02}"),
            segments: i64::from(wal / servers),
            now,
        }
        .fill(i64::from(backups))?;
        transaction.commit()?;
    }
    db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
    Ok(())
}

/// The number of files of WAL.
pub(crate) fn wal_files(repository: &Path) -> Result<u32> {
    let db = Connection::open(repository.join("catalog.sqlite"))?;
    Ok(db.query_row("SELECT sum(files) FROM wal_totals", [], |row| row.get(0))?)
}

/// Archives files of WAL of the first server, `count` of them, one each time this has passed.
pub(crate) fn arrive(repository: &Path, count: u32, each: Duration) -> Result<()> {
    let mut db = Connection::open(repository.join("catalog.sqlite"))?;
    db.busy_timeout(Duration::from_secs(60))?;
    let name = "s00".to_owned();
    let last: i64 = db.query_row(
        "SELECT max(number) FROM segments WHERE server = ?1",
        [&name],
        |row| row.get(0),
    )?;
    for segment in (last + 1..).take(usize::try_from(count)?) {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
        let transaction = db.transaction()?;
        Server {
            db: &transaction,
            packs: repository.join("packs"),
            name: name.clone(),
            segments: segment,
            now,
        }
        .segment(segment)?;
        transaction.commit()?;
        std::thread::sleep(each);
    }
    Ok(())
}

fn name(segment: i64) -> String {
    format!("00000001{:08X}{:08X}", segment / 256, segment % 256)
}

struct Server<'a> {
    db: &'a Transaction<'a>,
    packs: PathBuf,
    name: String,
    segments: i64,
    /// Microseconds since 1970.
    now: i64,
}

impl Server<'_> {
    fn fill(&self, backups: i64) -> Result<()> {
        for number in 1..=self.segments {
            self.segment(number)?;
        }
        for nth in 0..backups {
            self.backup(1 + nth * (self.segments - 2) / backups)?;
        }
        Ok(())
    }

    fn time(&self, segment: i64) -> i64 {
        self.now - (self.segments - segment) * EVERY_MICROS
    }

    /// A pack with one record; returns the record's number.
    fn record(&self, kind: i64, payload: &str) -> Result<i64> {
        let id: String = self
            .db
            .prepare_cached(
                "INSERT INTO packs (id, bytes, chunks, stored_bytes, raw_bytes)
                 VALUES (randomblob(16), ?1, 16, ?1, 16777216) RETURNING lower(hex(id))",
            )?
            .query_row([PACK_BYTES], |row| row.get(0))?;
        let part = id.get(..2).unwrap_or_default();
        File::create(self.packs.join(part).join(&id))?.set_len(PACK_BYTES)?;
        let pack = self.db.last_insert_rowid();
        self.db
            .prepare_cached("INSERT INTO records (id, kind, payload) VALUES (randomblob(16), ?1, ?2)")?
            .execute(params![kind, payload.as_bytes()])?;
        let record = self.db.last_insert_rowid();
        self.db
            .prepare_cached("INSERT INTO record_packs (record, pack) VALUES (?1, ?2)")?
            .execute([record, pack])?;
        Ok(record)
    }

    fn segment(&self, number: i64) -> Result<()> {
        let record = self.record(WAL, "{\"version\":1}")?;
        let (time, name) = (self.time(number), name(number));
        self.db
            .prepare_cached(
                "INSERT INTO wal (server, name, record, size_bytes, archived_at, new_stored_bytes)
                 VALUES (?1, ?2, ?3, 16777216, ?4, 5000000)",
            )?
            .execute(params![self.name, name, record, time])?;
        self.db
            .prepare_cached(
                "INSERT INTO segments (server, timeline, number, record, end_lsn, last_lsn, time_min, time_max,
                 checkpoint_time, xid_min, xid_max, commits, ends_in, ends_early, head, tail, reads, unknown, tablespaces)
                 VALUES (?1, 1, ?2, ?3, ?4, ?5, ?6, ?6, NULL, ?2, ?2, 1, ?2, 0, 0, 0, ?7, 0, 0)",
            )?
            .execute(params![
                self.name,
                number,
                record,
                (number + 1) * SEGMENT_BYTES,
                (number + 1) * SEGMENT_BYTES - 64,
                time,
                READS
            ])?;
        Ok(())
    }

    /// Gives an archived file a record that can be read: one of zeros.
    fn describe(&self, segment: i64) -> Result<()> {
        let hole = Window {
            chunk: None,
            crc32c: 0,
        };
        let map = FileMap {
            size_bytes: SEGMENT_BYTES.cast_unsigned(),
            window_bytes: 1 << 20,
            crc32c: 0,
            windows: Windows::Inline(vec![hole; 16]),
        };
        let payload = json!({
            "version": 1, "server": self.name, "name": name(segment), "size_bytes": SEGMENT_BYTES,
            "archived_at": TimestampMicros::from_unix_micros(self.time(segment)), "origin": "wal-archive",
            "new_stored_bytes": PACK_BYTES, "map": map,
        });
        self.db.execute(
            "UPDATE records SET payload = ?3 WHERE seq = (SELECT record FROM wal WHERE server = ?1 AND name = ?2)",
            params![self.name, name(segment), payload.to_string().as_bytes()],
        )?;
        Ok(())
    }

    /// One that needs a single segment.
    fn backup(&self, segment: i64) -> Result<()> {
        self.describe(segment)?;
        let time = self.time(segment);
        let (id, moment): (String, String) = self.db.query_row(
            "SELECT strftime('%Y%m%dT%H%M%S', ?1, 'unixepoch'), strftime('%Y-%m-%dT%H:%M:%SZ', ?1, 'unixepoch')",
            [time / 1_000_000],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let lsn = |offset: i64| {
            format!(
                "{:X}/{:X}",
                segment / 256,
                (segment % 256) * SEGMENT_BYTES + offset
            )
        };
        let payload = json!({
            "version": 1, "server": self.name, "id": id, "status": "DONE", "kind": "full",
            "begin_time": moment, "end_time": moment, "start_lsn": lsn(40), "stop_lsn": lsn(4096), "timeline": 1,
            "system_id": "7710414268036822209", "server_version": 180_004, "segment_size": SEGMENT_BYTES,
            "data_checksums": true, "timezone": "Europe/Berlin", "tablespaces": [], "wal_included": false,
            "from_standby": false, "logical_bytes": 3_221_225_472_u64, "sent_bytes": 3_221_300_000_u64,
            "new_stored_bytes": 32_212_254, "files": 1234,
            "root": {
                "directory": {"pages": [], "entries": 0},
                "attributes": {"mode": 448, "uid": 0, "gid": 0, "mtime_s": 0, "mtime_ns": 0},
            },
        });
        let record = self.record(BACKUP, &payload.to_string())?;
        self.db
            .prepare_cached(
                "INSERT OR IGNORE INTO backups (server, id, record, failed) VALUES (?1, ?2, ?3, 0)",
            )?
            .execute(params![self.name, id, record])?;
        Ok(())
    }
}
