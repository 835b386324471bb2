//! Rows of a table that mark the moments to which a copy is recovered.

use super::PgServer;
use std::time::Duration;

/// Places in the WAL of a server whose table `rows` gets the rows 2, 3 and 4.
#[derive(Debug)]
pub(crate) struct Moments {
    /// Between the second row and the third, behind a restore point `two`.
    pub(crate) time: String,
    pub(crate) lsn: String,
    /// The transaction of the third row.
    pub(crate) xid: String,
}

impl Moments {
    /// Lets them pass.
    pub(crate) fn pass(server: &PgServer) -> Self {
        server.query("INSERT INTO rows VALUES (2)");
        server.query("SELECT pg_create_restore_point('two')");
        let lsn = server.query("SELECT pg_current_wal_insert_lsn()");
        let time = server.query("SELECT clock_timestamp()");
        std::thread::sleep(Duration::from_millis(20));
        let xid = server.query("INSERT INTO rows VALUES (3) RETURNING xmin");
        let xid = xid.lines().next().unwrap().to_owned();
        server.query("INSERT INTO rows VALUES (4)");
        server.archive_current_segment();
        Self { time, lsn, xid }
    }
}

/// The rows that a server has: "1,2,3".
pub(crate) fn rows(server: &PgServer) -> String {
    server.query("SELECT coalesce(string_agg(n::text, ',' ORDER BY n), '') FROM rows")
}
