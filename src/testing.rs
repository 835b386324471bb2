//! Examples for tests.

use barmanfs_catalog::{Backup, BackupStatus, BootTest};
use serde_json::json;

use crate::wal_transfer::remote::Remote;

/// A backup as it comes from the catalog.
pub(crate) fn backup(status: BackupStatus) -> Backup {
    let value = json!({
        "server": "main", "id": "20261120T101500", "status": status, "kind": "full", "label": "before the upgrade",
        "begin_time": "2026-11-20T10:15:00.25Z", "end_time": "2026-11-20T10:18:20.25Z",
        "start_lsn": "0/5000028", "stop_lsn": "0/6000100", "timeline": 1,
        "system_id": "7710414268036822209", "server_version": 150_018, "segment_size": 16_777_216,
        "data_checksums": true, "tablespaces": [{"oid": 16_435, "name": "fast", "location": "/srv/fast"}],
        "wal_included": false, "from_standby": true, "logical_bytes": 3_221_225_472_u64,
        "sent_bytes": 3_221_300_000_u64, "new_stored_bytes": 32_212_254, "files": 1234,
        "checksum_failures": ["checksum verification failed in file \"base/5/16384\", block 3"],
        "root": {
            "directory": {"pages": [], "entries": 0},
            "attributes": {"mode": 448, "uid": 0, "gid": 0, "mtime_s": 0, "mtime_ns": 0},
        },
    });
    serde_json::from_value(value).unwrap()
}

/// A boot test that failed.
pub(crate) fn boot_test() -> BootTest {
    let value = json!({
        "outcome": "failed", "began_at": "2026-11-21T03:00:00Z", "took_ms": 4200, "postgresql": "15.18",
        "checks": ["catalogs", "sql"], "message": "check.sql:3: ERROR: relation \"a\" does not exist",
    });
    serde_json::from_value(value).unwrap()
}

/// The archive of `server` on another host.
pub(crate) fn remote(server: &str) -> Remote {
    Remote {
        host: "backup".to_owned(),
        port: None,
        program: "barman".to_owned(),
        config: None,
        server: server.to_owned(),
    }
}
