//! A target is offered when PostgreSQL gets there, and not merely when all segments are there. An event that stops a
//! recovery on its way is known from the WAL and reported, and the next backup is behind it.

use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};

topic! {
    with_postgres no_target_is_offered_behind_a_start_with_minimal_wal,
    edges a_copy_pauses_at_a_target_behind_raised_settings,
    edges unreadable_wal_is_archived_with_a_warning,
}

fn mark(server: &PgServer, number: u32) -> String {
    server.query(&format!("INSERT INTO marks VALUES ({number})"));
    let moment = server.query("SELECT clock_timestamp() AT TIME ZONE 'UTC' || '+00'");
    server.query("SELECT pg_sleep(0.01)");
    moment
}

fn marks(server: &PgServer) -> String {
    server.query("SELECT string_agg(n::text, ' ' ORDER BY n) FROM marks")
}

/// The marks in a copy of a target under `pitr/` of the mount.
fn recovered(site: &Site, mount: &Mount, install: &'static Install, target: &str, name: &str) -> String {
    let data = site.copy(&mount.path("main/pitr").join(target), name);
    let mut copy = PgServer::on(install, &data);
    copy.start();
    copy.wait_until_promoted();
    let found = marks(&copy);
    copy.stop("immediate");
    found
}

fn restart(server: &mut PgServer, settings: &str) {
    server.stop("fast");
    server.configure_auto(settings);
    server.start();
}

fn no_target_is_offered_behind_a_start_with_minimal_wal(install: &'static Install) {
    let (site, mut server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    server.query("CREATE TABLE marks (n int)");
    server.archive_current_segment();
    let backup = site.backup();
    mark(&server, 1);
    let before = mark(&server, 2);
    server.archive_current_segment();
    mark(&server, 3);
    restart(
        &mut server,
        "wal_level = minimal\nmax_wal_senders = 0\narchive_mode = off",
    );
    mark(&server, 4);
    restart(
        &mut server,
        "wal_level = replica\nmax_wal_senders = 10\narchive_mode = on",
    );
    let behind = mark(&server, 5);
    mark(&server, 6);
    server.query("SELECT pg_create_restore_point('behind')");
    server.archive_current_segment();

    for target in ["now", &behind, "name:behind"] {
        site.barmanfs(&["explain", "main", target]).refused(1).says(&[
            "wal_level = minimal",
            "A backup taken now leads past it",
            ",exclusive",
        ]);
    }
    site.barmanfs(&["explain", "main", &before])
        .ok()
        .says(&["can be recovered", &backup]);
    let answer = site.barmanfs(&["explain", "main", "now", "--json"]).refused(1);
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).expect("JSON");
    assert_eq!(answer["details"]["reason"], "minimal");
    let lsn = answer["details"]["lsn"]
        .as_str()
        .expect("a position")
        .replace('/', "-");
    site.barmanfs(&["timeline", "main"])
        .ok()
        .says(&["wal_level = minimal", "until there is a new backup"]);
    site.barmanfs(&["check", "main"])
        .refused(3)
        .says(&["wal_level of the archived WAL: FAILED"]);

    let mount = Mount::new(&site);
    let listed = site.list(&mount.path("main/pitr"));
    assert!(!listed.contains(&"now".to_owned()), "{listed:?}");
    site.sh(&format!(
        "ls -d '{}'",
        mount.path("main/pitr/name:behind").display()
    ))
    .refused(2);
    assert_eq!(recovered(&site, &mount, install, &before, "before"), "1 2");
    let last = format!("{lsn},exclusive");
    assert_eq!(recovered(&site, &mount, install, &last, "last"), "1 2 3");
    // If that record is replayed as well, PostgreSQL would not get there.
    site.barmanfs(&["explain", "main", &lsn]).refused(1);

    site.backup();
    mark(&server, 7);
    server.archive_current_segment();
    site.barmanfs(&["explain", "main", "now"])
        .ok()
        .says(&["can be recovered"]);
    assert_eq!(recovered(&site, &mount, install, "now", "now"), "1 2 3 4 5 6 7");
    site.barmanfs(&["timeline", "main"])
        .ok()
        .says(&["wal_level = minimal", "to the end of backup"]);
    let checked = site.barmanfs(&["check", "main"]).text();
    assert!(checked.contains("wal_level of the archived WAL: OK"), "{checked}");
}

/// A copy that pauses is readable then, so it is a standby: it needs settings as large as the server had at any time on
/// the way.
fn a_copy_pauses_at_a_target_behind_raised_settings(install: &'static Install) {
    let (site, mut server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    server.query("CREATE TABLE marks (n int)");
    site.backup();
    restart(
        &mut server,
        "max_connections = 300\nmax_prepared_transactions = 7",
    );
    mark(&server, 1);
    restart(
        &mut server,
        "max_connections = 50\nmax_locks_per_transaction = 200",
    );
    mark(&server, 2);
    server.query("SELECT pg_create_restore_point('raised')");
    mark(&server, 3);
    server.archive_current_segment();
    let mount = Mount::new(&site);
    let data = site.copy(&mount.path("main/pitr/name:raised,action=pause"), "copy");
    let mut copy = PgServer::on(install, &data);
    copy.start();
    until("it pauses", || {
        copy.try_query("SELECT pg_is_wal_replay_paused()").text() == "t"
    });
    assert_eq!(marks(&copy), "1 2", "{}", copy.log());
    copy.query("SELECT pg_promote()");
    copy.wait_until_promoted();
    assert_eq!(marks(&copy), "1 2");
}

/// WAL of a PostgreSQL version that this release does not know: its pages begin with another number.
fn unreadable_wal_is_archived_with_a_warning(install: &'static Install) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    server.query("CREATE TABLE marks (n int)");
    let backup = site.backup();
    server.archive_current_segment();
    // The server continues while nothing is archived; then its segments are archived, as if they were of another
    // version.
    server.query("ALTER SYSTEM SET archive_command = 'false'");
    server.query("SELECT pg_reload_conf()");
    until("the setting counts", || {
        server.query("SHOW archive_command") == "false"
    });
    mark(&server, 1);
    let segment = server.query("SELECT pg_walfile_name(pg_current_wal_lsn())");
    server.query("SELECT pg_switch_wal()");
    let path = server.data.join("pg_wal").join(&segment);
    let mut bytes = std::fs::read(&path).expect("Cannot read a segment");
    for page in bytes.chunks_mut(8192).filter(|page| page[0] != 0 || page[1] != 0) {
        page[..2].copy_from_slice(&0xD1FF_u16.to_le_bytes());
    }
    let strange = site.write_file(&segment, &bytes);
    let strange = strange.to_str().expect("a path");
    site.barmanfs(&["wal-archive", "main", strange]).ok().says(&[
        &segment,
        "cannot be read by this release",
        "archived safely",
    ]);
    let same = format!(
        "'{}' -c '{}' get-wal main {segment} | cmp - '{strange}'",
        site.program().display(),
        site.config().display()
    );
    site.sh(&same).ok();
    site.barmanfs(&["explain", "main", "now"])
        .refused(1)
        .says(&[&segment, "this release of barmanfs cannot read"]);
    site.barmanfs(&["check", "main"])
        .refused(3)
        .says(&["PostgreSQL's version", &segment]);
    site.barmanfs(&["timeline", "main"])
        .ok()
        .says(&["cannot be read by this release"]);
    site.barmanfs(&["index-wal", "main"]).ok();
    // Recovery to the backup's own end needs nothing of it.
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(
        install,
        &site.copy(&mount.path(&format!("main/{backup}")), "copy"),
    );
    copy.start();
    copy.wait_until_promoted();
    let listed = site.list(&mount.path("main/pitr"));
    assert!(!listed.contains(&"now".to_owned()), "{listed:?}");
    site.sh(&format!(
        "cat '{}' > /dev/null",
        mount.path(".barmanfs/replay/main").join(&segment).display()
    ))
    .refused(1);
}
