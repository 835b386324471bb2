//! The tables of catalog.sqlite.
//!
//! Everything in them is derived from packs, except what concerns processes of this host (`writer`, `condemned_at`,
//! `writers_listed`, `condemned_before`): losing that only delays a sweep ([`condemned`](crate::index::condemned)). So
//! nothing is ever migrated that packs do not give back. If a new layout changes only what the records mean, opening the
//! catalog makes those tables again from its records. Layout 11 also changed how places of chunks are kept: opening a
//! catalog of an earlier one makes them from the rows it had. Layout 12 gave the runs of shortened ids their tokens.

/// Number of this layout, kept in SQLite's `user_version`.
pub(crate) const LAYOUT: i64 = 12;

/// The oldest layout with the same tables of packs and records.
pub(crate) const OLDEST_LAYOUT: i64 = 1;

/// Marks the file as barmanfs's for `file(1)` and for us: "bmfs".
pub(crate) const APPLICATION_ID: i64 = 0x626d_6673;

/// Creates the tables of packs and records.
pub(crate) const CREATE: &str = "
-- A pack that is in the repository. writer: the lock of the writer that made it, which may not have referred to it
-- yet. condemned_at: nothing new may refer to it, it goes when the writers in condemned_before have ended; all that were
-- at work are in that list once writers_listed is 1, others put themselves there.
CREATE TABLE packs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    bytes INTEGER NOT NULL,
    chunks INTEGER NOT NULL,
    stored_bytes INTEGER NOT NULL,
    raw_bytes INTEGER NOT NULL,
    writer TEXT,
    condemned_at INTEGER,
    writers_listed INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX condemned_packs ON packs (seq) WHERE condemned_at IS NOT NULL;
CREATE TABLE condemned_before (
    pack INTEGER NOT NULL REFERENCES packs (seq),
    writer TEXT NOT NULL,
    PRIMARY KEY (pack, writer)
) WITHOUT ROWID;

CREATE TABLE records (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    kind INTEGER NOT NULL,
    payload BLOB NOT NULL
);
CREATE TABLE record_packs (
    record INTEGER NOT NULL,
    pack INTEGER NOT NULL,
    PRIMARY KEY (record, pack)
) WITHOUT ROWID;
CREATE INDEX record_packs_by_pack ON record_packs (pack);
";

/// Creates the tables of the places of chunks.
pub(crate) const CREATE_PLACES: &str = "
-- The chunks of each pack without their ids, see chunk_lists.rs. first: the pack and the number of the row's first chunk.
CREATE TABLE chunk_lists (first INTEGER PRIMARY KEY, list BLOB NOT NULL);
-- Which packs may have a chunk, see runs.rs. into_run: the run into which this one is being merged. reached: how far the merge
-- into this run has come, until it is done. token: a random number that no other run has.
CREATE TABLE runs (
    run INTEGER PRIMARY KEY,
    level INTEGER NOT NULL,
    entries INTEGER NOT NULL,
    into_run INTEGER,
    reached INTEGER,
    token INTEGER NOT NULL
);
CREATE INDEX runs_by_entries ON runs (entries);
CREATE TABLE run_pages (first INTEGER PRIMARY KEY, entries BLOB NOT NULL);
";

/// The tables that hold what the records mean, and totals.
pub(crate) const MEANINGS: [&str; 19] = [
    "pack_totals",
    "deletions",
    "servers",
    "backups",
    "keeps",
    "wal",
    "wal_totals",
    "wal_removals",
    "quarantine",
    "segments",
    "restore_points",
    "parameter_changes",
    "boot_tests",
    "configurations",
    "damaged",
    "forks",
    "decisions",
    "decided",
    "placed",
];

/// Those of them whose rows go when the record in their column `record` is annulled.
pub(crate) const GO_WITH_THEIR_RECORD: [&str; 8] = [
    "backups",
    "keeps",
    "wal",
    "quarantine",
    "boot_tests",
    "configurations",
    "damaged",
    "forks",
];

/// Creates these tables.
pub(crate) const CREATE_MEANINGS: &str = "
-- Nearly all records are of archived files, kind 2.
CREATE INDEX IF NOT EXISTS records_but_wal ON records (kind) WHERE kind <> 2;

-- One row: what all packs have together. Kept by triggers, so that no command has to read all rows.
CREATE TABLE pack_totals (packs INTEGER NOT NULL, bytes INTEGER NOT NULL, condemned INTEGER NOT NULL);
INSERT INTO pack_totals SELECT count(*), coalesce(sum(bytes), 0), count(condemned_at) FROM packs;
DROP TRIGGER IF EXISTS pack_enters;
CREATE TRIGGER pack_enters AFTER INSERT ON packs BEGIN
    UPDATE pack_totals SET packs = packs + 1, bytes = bytes + new.bytes,
        condemned = condemned + (new.condemned_at IS NOT NULL);
END;
DROP TRIGGER IF EXISTS pack_leaves;
CREATE TRIGGER pack_leaves AFTER DELETE ON packs BEGIN
    UPDATE pack_totals SET packs = packs - 1, bytes = bytes - old.bytes,
        condemned = condemned - (old.condemned_at IS NOT NULL);
END;
DROP TRIGGER IF EXISTS pack_is_condemned;
CREATE TRIGGER pack_is_condemned AFTER UPDATE OF bytes, condemned_at ON packs BEGIN
    UPDATE pack_totals SET bytes = bytes + new.bytes - old.bytes,
        condemned = condemned + (new.condemned_at IS NOT NULL) - (old.condemned_at IS NOT NULL);
END;

CREATE TABLE deletions (annulled BLOB NOT NULL, record INTEGER NOT NULL, PRIMARY KEY (annulled, record)) WITHOUT ROWID;
CREATE TABLE servers (name TEXT NOT NULL PRIMARY KEY, system_id TEXT NOT NULL, record INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE backups (
    server TEXT NOT NULL,
    id TEXT NOT NULL,
    record INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    PRIMARY KEY (server, id)
) WITHOUT ROWID;
CREATE INDEX backups_by_record ON backups (record);
-- Decisions to keep a backup, by the backup's record. The newest one counts.
CREATE TABLE keeps (record INTEGER NOT NULL PRIMARY KEY, of BLOB NOT NULL, kept_at INTEGER NOT NULL);
CREATE INDEX keeps_by_backup ON keeps (of);
CREATE TABLE wal (
    server TEXT NOT NULL,
    name TEXT NOT NULL,
    record INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    archived_at INTEGER NOT NULL,
    new_stored_bytes INTEGER NOT NULL,
    PRIMARY KEY (server, name)
) WITHOUT ROWID;
CREATE INDEX wal_by_record ON wal (record);
-- What the files of an archive have together whose names begin with the same sixteen characters: timeline and log. Kept by
-- triggers; a row goes with its last file.
CREATE TABLE wal_totals (
    server TEXT NOT NULL,
    stretch TEXT NOT NULL,
    files INTEGER NOT NULL,
    logical_bytes INTEGER NOT NULL,
    new_stored_bytes INTEGER NOT NULL,
    PRIMARY KEY (server, stretch)
) WITHOUT ROWID;
CREATE TRIGGER wal_enters AFTER INSERT ON wal BEGIN
    INSERT INTO wal_totals (server, stretch, files, logical_bytes, new_stored_bytes)
        VALUES (new.server, substr(new.name, 1, 16), 1, new.size_bytes, new.new_stored_bytes)
        ON CONFLICT (server, stretch) DO UPDATE SET files = files + 1,
            logical_bytes = logical_bytes + excluded.logical_bytes,
            new_stored_bytes = new_stored_bytes + excluded.new_stored_bytes;
END;
CREATE TRIGGER wal_leaves AFTER DELETE ON wal BEGIN
    UPDATE wal_totals SET files = files - 1, logical_bytes = logical_bytes - old.size_bytes,
        new_stored_bytes = new_stored_bytes - old.new_stored_bytes
        WHERE server = old.server AND stretch = substr(old.name, 1, 16);
    DELETE FROM wal_totals WHERE server = old.server AND stretch = substr(old.name, 1, 16) AND files = 0;
END;
-- Another record gets the name; the name stays.
CREATE TRIGGER wal_changes AFTER UPDATE OF size_bytes, new_stored_bytes ON wal BEGIN
    UPDATE wal_totals SET logical_bytes = logical_bytes + new.size_bytes - old.size_bytes,
        new_stored_bytes = new_stored_bytes + new.new_stored_bytes - old.new_stored_bytes
        WHERE server = new.server AND stretch = substr(new.name, 1, 16);
END;
-- Ranges of names whose files were removed from a server's archive, if they were archived by then.
CREATE TABLE wal_removals (
    record INTEGER NOT NULL PRIMARY KEY,
    server TEXT NOT NULL,
    first TEXT NOT NULL,
    last TEXT NOT NULL,
    removed_at INTEGER NOT NULL
);
CREATE INDEX wal_removals_by_server ON wal_removals (server, first);
CREATE TABLE quarantine (record INTEGER NOT NULL PRIMARY KEY, server TEXT NOT NULL, name TEXT NOT NULL);
CREATE INDEX quarantine_by_name ON quarantine (server, name);

-- Archived segments by the number their position gives them, with what they say about points in time. end_lsn: where
-- the last record ends, or the segment where that crosses its end. last_lsn: where the last record starts that also
-- ends here. ends_in: the number of the segment the last record that matters ends in. ends_early: the records end before
-- the segment. head, tail: whether a record crosses its beginning (2: and its end as well), and its end. reads: what the
-- release that made the segment's index looked for; the columns and tables after it say nothing where that was less.
-- unknown: the segment is of a PostgreSQL version whose WAL is not understood. tablespaces: how many are made outside the
-- data directory by records that start in it.
CREATE TABLE segments (
    server TEXT NOT NULL,
    timeline INTEGER NOT NULL,
    number INTEGER NOT NULL,
    record INTEGER NOT NULL,
    end_lsn INTEGER NOT NULL,
    last_lsn INTEGER,
    time_min INTEGER,
    time_max INTEGER,
    checkpoint_time INTEGER,
    xid_min INTEGER,
    xid_max INTEGER,
    commits INTEGER NOT NULL,
    ends_in INTEGER NOT NULL,
    ends_early INTEGER NOT NULL,
    head INTEGER NOT NULL,
    tail INTEGER NOT NULL,
    reads INTEGER NOT NULL,
    unknown INTEGER NOT NULL,
    tablespaces INTEGER NOT NULL,
    PRIMARY KEY (server, timeline, number)
) WITHOUT ROWID;
CREATE INDEX segments_by_record ON segments (record);
CREATE INDEX segments_by_number ON segments (server, number);
CREATE INDEX segments_ending_early ON segments (server, timeline, number) WHERE ends_early;
CREATE INDEX segments_by_reads ON segments (server, reads);
CREATE INDEX segments_unknown ON segments (server, timeline, number) WHERE unknown;
CREATE INDEX segments_with_tablespaces ON segments (server, timeline, number) WHERE tablespaces > 0;
CREATE TABLE restore_points (
    server TEXT NOT NULL,
    name TEXT NOT NULL,
    timeline INTEGER NOT NULL,
    lsn INTEGER NOT NULL,
    number INTEGER NOT NULL,
    time INTEGER NOT NULL,
    PRIMARY KEY (server, name, timeline, lsn)
) WITHOUT ROWID;
CREATE INDEX restore_points_by_segment ON restore_points (server, timeline, number);

-- Starts of the server with other settings than before. minimal: with wal_level = minimal, which no recovery gets past.
-- required: the settings that a standby must have as large, as JSON.
CREATE TABLE parameter_changes (
    server TEXT NOT NULL,
    timeline INTEGER NOT NULL,
    number INTEGER NOT NULL,
    lsn INTEGER NOT NULL,
    minimal INTEGER NOT NULL,
    required TEXT NOT NULL,
    PRIMARY KEY (server, timeline, lsn)
) WITHOUT ROWID;
CREATE INDEX parameter_changes_by_segment ON parameter_changes (server, timeline, number);

-- The newest boot test of each backup, by the backup's record.
CREATE TABLE boot_tests (
    backup BLOB NOT NULL PRIMARY KEY,
    record INTEGER NOT NULL,
    began_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX boot_tests_by_record ON boot_tests (record);

-- Configuration files of each backup from outside the data directory, by the backup's record.
CREATE TABLE configurations (backup BLOB NOT NULL PRIMARY KEY, record INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX configurations_by_record ON configurations (record);

-- Places of chunks that are known to be damaged. The pack need not be in the repository any more.
CREATE TABLE damaged (
    id BLOB NOT NULL,
    pack BLOB NOT NULL,
    record INTEGER NOT NULL,
    PRIMARY KEY (id, pack, record)
) WITHOUT ROWID;
CREATE INDEX damaged_by_record ON damaged (record);

-- Places where two histories of a timeline part; the decisions about them, with the archive of the history that was left,
-- where one was, and from where on that has what both have; the forks they settle; and the records they move to another
-- archive.
CREATE TABLE forks (
    record INTEGER NOT NULL PRIMARY KEY,
    id BLOB NOT NULL,
    server TEXT NOT NULL,
    timeline INTEGER NOT NULL,
    lsn INTEGER NOT NULL
);
CREATE INDEX forks_by_server ON forks (server);
CREATE TABLE decisions (
    record INTEGER NOT NULL PRIMARY KEY,
    server TEXT NOT NULL,
    archive TEXT,
    decided_at INTEGER NOT NULL,
    shared_from INTEGER
);
CREATE INDEX decisions_by_server ON decisions (server);
CREATE TABLE decided (
    fork BLOB NOT NULL,
    record INTEGER NOT NULL,
    restart INTEGER NOT NULL,
    PRIMARY KEY (fork, record)
) WITHOUT ROWID;
CREATE TABLE placed (
    id BLOB NOT NULL,
    record INTEGER NOT NULL,
    archive TEXT NOT NULL,
    PRIMARY KEY (id, record)
) WITHOUT ROWID;
";

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    /// Their records are never annulled, except those of `segments`, which go with their restore points and settings.
    const STAY: [&str; 7] = [
        "wal_removals",
        "deletions",
        "servers",
        "segments",
        "decisions",
        "decided",
        "placed",
    ];

    #[test]
    fn a_table_of_meanings_goes_with_its_record_or_is_named_here() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(&[CREATE, CREATE_PLACES, CREATE_MEANINGS].concat())
            .unwrap();
        for table in MEANINGS {
            let has_record: bool = db
                .prepare("SELECT EXISTS (SELECT 1 FROM pragma_table_info(?1) WHERE name = 'record')")
                .unwrap()
                .query_row([table], |row| row.get(0))
                .unwrap();
            let named = GO_WITH_THEIR_RECORD.contains(&table) || STAY.contains(&table);
            assert_eq!(has_record, named, "{table}");
        }
    }

    #[test]
    fn all_tables_of_meanings_are_listed() {
        let db = Connection::open_in_memory().unwrap();
        let tables = || -> Vec<String> {
            let mut query = db
                .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rowid")
                .unwrap();
            let names = query.query_map([], |row| row.get(0)).unwrap();
            names.map(Result::unwrap).collect()
        };
        db.execute_batch(&[CREATE, CREATE_PLACES].concat()).unwrap();
        let others = tables().len();
        db.execute_batch(CREATE_MEANINGS).unwrap();
        assert_eq!(tables()[others..], MEANINGS);
    }

    /// A catalog of a user is only brought up to date when `LAYOUT` says that it is older.
    #[test]
    fn other_tables_have_another_layout() {
        let sql = [CREATE, CREATE_PLACES, CREATE_MEANINGS].concat();
        let tables: String = sql
            .lines()
            .filter(|line| !line.trim_start().starts_with("--"))
            .collect();
        assert_eq!(
            (LAYOUT, crc32c::crc32c(tables.as_bytes())),
            (12, 1_671_846_962),
            "The tables have changed: raise LAYOUT, and put the new pair here"
        );
    }
}
