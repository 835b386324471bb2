//! pgbench: fills a database, works on it in the background, and has sums that must agree in every consistent state.

use super::process::{run, wait};
use super::{Install, PgServer, Site};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A running pgbench; stopped on drop.
#[derive(Debug)]
pub(crate) struct Load {
    pgbench: Child,
}

impl Load {
    /// Starts two clients, which run until stopped.
    pub(crate) fn start(server: &PgServer) -> Self {
        let pgbench = server
            .client("pgbench")
            .args(["-n", "-c", "2", "-T", "600"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Cannot start pgbench");
        let load = Self { pgbench };
        super::process::until("pgbench works", || transactions(server) > 0);
        load
    }

    /// Stops it between or within transactions; uncommitted changes are rolled back.
    pub(crate) fn stop(self) {}
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.pgbench.kill();
        let _ = wait(&mut self.pgbench, Duration::from_secs(10));
    }
}

/// Fills the database: 15 MB for each unit of scale.
pub(crate) fn fill(server: &PgServer, scale: u32) {
    run(server
        .client("pgbench")
        .args(["-i", "-q", "-s", &scale.to_string()]))
    .ok();
}

/// Runs this many transactions and waits for them.
pub(crate) fn transact(server: &PgServer, count: u32) {
    run(server.client("pgbench").args(["-n", "-t", &count.to_string()])).ok();
}

/// How many transactions were committed.
pub(crate) fn transactions(server: &PgServer) -> u64 {
    server
        .query("SELECT count(*) FROM pgbench_history")
        .parse()
        .expect("a count")
}

/// Restores the newest backup and all WAL to `name`, and finds as many transactions there.
#[track_caller]
pub(crate) fn recovers(install: &'static Install, site: &Site, name: &str, expected: u64) {
    let to = site.path(name);
    site.ok(&["restore", "main", "auto", to.to_str().unwrap()]);
    let mut copy = PgServer::on(install, &to);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(transactions(&copy), expected);
    copy.stop("fast");
}

/// Accounts, tellers, branches and history have the same sum.
#[track_caller]
pub(crate) fn assert_sums_agree(server: &PgServer) {
    let sums = server.query(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
                (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
    );
    let sums: Vec<&str> = sums.split('|').collect();
    assert!(
        sums.iter().all(|sum| *sum == sums[0]),
        "The sums of pgbench do not agree: {sums:?}"
    );
}
