//! A server with known rows at each backup, and changes of its history.

use super::process::Run;
use super::{Install, Mount, PgServer, Site};
use serde_json::Value;

/// A backup that is incremental if possible.
pub(crate) const AUTO: [&str; 3] = ["backup", "main", "--fast-checkpoint"];

/// A server `main` with a table, that archives, and summarizes its WAL if it can.
pub(crate) fn site(install: &'static Install) -> (Site, PgServer) {
    let (site, mut server) = Site::with_server(install);
    if install.major >= 17 {
        server.stop("fast");
        server.configure("summarize_wal = on");
        server.start();
    }
    server.query("CREATE TABLE t (n int, filler text)");
    insert(&server, 1, 5000, "first");
    (site, server)
}

pub(crate) fn insert(server: &PgServer, from: u32, to: u32, word: &str) {
    server.query(&format!(
        "INSERT INTO t SELECT n, repeat('{word}', 20) FROM generate_series({from}, {to}) n"
    ));
}

/// A digest of all rows.
pub(crate) fn digest(server: &PgServer) -> String {
    server.query(
        "SELECT count(*) || ' ' || coalesce(md5(string_agg(n || filler, ',' ORDER BY n, filler)), '') FROM t",
    )
}

/// A copy of the data directory without changes.
#[track_caller]
pub(crate) fn snapshot(site: &Site, server: &PgServer) {
    site.sh(&format!(
        "rm -rf '{snap}' && cp -a '{}' '{snap}'",
        server.data.display(),
        snap = site.path("snap").display()
    ))
    .ok();
}

/// Takes a cold snapshot.
pub(crate) fn cold_snapshot(site: &Site, server: &mut PgServer) {
    server.stop("fast");
    snapshot(site, server);
    server.start();
}

/// Stops the server and puts the snapshot in its place.
pub(crate) fn put_back(site: &Site, server: &mut PgServer) {
    server.stop("immediate");
    site.sh(&format!(
        "rm -rf '{data}' && cp -a '{}' '{data}' && rm -f '{data}/postmaster.pid'",
        site.path("snap").display(),
        data = server.data.display()
    ))
    .ok();
    server.start();
}

pub(crate) fn newest(site: &Site) -> Value {
    site.backups().pop().unwrap()
}

/// Takes a backup that must become DONE. Returns its id, the output, and the digest of the server.
#[track_caller]
pub(crate) fn backup(site: &Site, server: &PgServer) -> (String, Run, String) {
    let digest = digest(server);
    let run = site.barmanfs(&AUTO).ok();
    let newest = newest(site);
    assert_eq!(newest["status"], "DONE", "{run}");
    (newest["id"].as_str().unwrap().to_owned(), run, digest)
}

/// A copy of a backup, recovered without the mount; checks that it has exactly these rows.
#[track_caller]
pub(crate) fn restored(site: &Site, install: &'static Install, id: &str, expected: &str) -> PgServer {
    let mount = Mount::new(site);
    let data = site.copy(&mount.path(&format!("main/{id}")), "copy");
    mount.unmount();
    recovered(PgServer::on(install, &data), id, expected)
}

#[track_caller]
pub(crate) fn recovered(mut copy: PgServer, what: &str, expected: &str) -> PgServer {
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(digest(&copy), expected, "{what}");
    copy
}

pub(crate) fn remove(site: &Site, copy: &PgServer) {
    site.sh(&format!("rm -rf '{}'", copy.data.display())).ok();
}

/// A backup's copy has exactly these rows, and no page with a wrong checksum.
#[track_caller]
pub(crate) fn assert_restores(site: &Site, install: &'static Install, id: &str, expected: &str) {
    let mut copy = restored(site, install, id, expected);
    copy.stop_and_assert_checksums();
    remove(site, &copy);
}
