//! The kind: a DBA looks at a server and believes what is shown. The figures of `status` must be those of the server and
//! of the repository, and what would be lost (RPO) must count commits: neither checkpoints, nor segments that are not full.

use crate::common::load::fill;
use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::{Install, PgServer, Site};
use serde_json::Value;
use std::time::{Duration, Instant};

topic! {
    once status_shows_the_server_and_what_is_stored,
    once commits_that_are_not_safe_are_counted_and_checkpoints_are_not,
    once received_commits_are_safe,
    once a_server_that_does_not_answer_stops_no_other,
    once a_segment_is_closed_and_waited_for,
    once an_archive_is_empty_or_not,
}

fn status(site: &Site) -> Value {
    site.json(&["status", "main"])["servers"][0].clone()
}

/// The server without its own archiving: only what the test archives is safe.
fn quiet_server(install: &'static Install, settings: &str) -> (Site, PgServer) {
    let site = Site::with_repository();
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    server.configure("archive_mode = off\nautovacuum = off\nwal_keep_size = 512MB");
    server.configure(settings);
    server.start();
    site.write_config(&[("main", &server)]);
    (site, server)
}

fn status_shows_the_server_and_what_is_stored(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let before = status(&site);
    assert_eq!(before["answers"], true, "{before}");
    assert_eq!(before["backups_number"], 0);
    assert_eq!(
        (&before["rpo"]["state"], &before["rpo"]["seconds"]),
        (&"everything".into(), &Value::Null)
    );
    fill(&server, 1);
    site.ok(&["backup", "main", "--fast-checkpoint"]);
    let archived = server.archive_current_segment();
    let found = status(&site);
    let version = found["pg_version"].as_str().unwrap_or_default();
    assert!(version.starts_with(&install.major.to_string()), "{found}");
    assert_eq!(found["is_in_recovery"], false);
    assert_eq!(
        found["data_directory"],
        server.query("SHOW data_directory").as_str()
    );
    assert_eq!(found["last_archived_wal"], archived.as_str(), "{found}");
    assert_eq!(found["last_wal_received"]["name"], archived.as_str(), "{found}");
    assert_eq!(
        (&found["backups_number"], &found["first_backup"]),
        (&1.into(), &found["last_backup"])
    );
    assert!(found["current_size_bytes"].as_u64() > Some(1 << 20), "{found}");
    assert!(found["repository_size_bytes"].as_u64() > Some(1 << 16), "{found}");
    let current = server.query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    assert_eq!(found["current_xlog"], current.as_str(), "{found}");
    let text = site.ok(&["status", "all"]) + "\n";
    for line in [
        "Server main:\n",
        "\tDescription: Test\n",
        "\tActive: True\n",
        "\tCluster state: in production\n",
        "\tNo. of available backups: 1\n",
        "\tMinimum redundancy requirements: satisfied (1/0)\n",
        "\treceive-wal: not running\n",
        "\tCommits not safe here (RPO): ",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

fn commits_that_are_not_safe_are_counted_and_checkpoints_are_not(install: &'static Install) {
    let (site, server) = quiet_server(install, "track_commit_timestamp = on");
    server.query("CREATE TABLE t (n int)");
    site.ok(&["backup", "main", "--fast-checkpoint"]);
    let rpo = || status(&site)["rpo"].clone();
    // The backup has its WAL with it. What follows is checkpoints.
    for _ in 0..3 {
        server.query("CHECKPOINT");
    }
    let idle = rpo();
    assert_eq!(
        (&idle["seconds"], &idle["bytes"]),
        (&0.0.into(), &0.into()),
        "{idle}"
    );
    assert!(idle["server_lsn"].as_str() > idle["safe_lsn"].as_str(), "{idle}");
    server.query("INSERT INTO t VALUES (1)");
    let committed = server.query(
        "SELECT to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM pg_last_committed_xact()",
    );
    server.query("SELECT pg_sleep(1.1)");
    // Long transactions in between are no commits, and need more than one read.
    server.query("INSERT INTO t SELECT n FROM generate_series(1, 60000) n");
    server.query("INSERT INTO t VALUES (2)");
    let lost = rpo();
    assert_eq!(lost["at_most"], false, "{lost}");
    assert_eq!(lost["oldest_commit_time"], committed.as_str(), "{lost}");
    let seconds = lost["seconds"].as_f64().unwrap();
    assert!((1.1..60.0).contains(&seconds), "{lost}");
    assert!(lost["bytes"].as_u64() > Some(3 << 20), "{lost}");
    site.ok(&["backup", "main", "--fast-checkpoint"]);
    assert_eq!(rpo()["seconds"], 0.0, "a backup has them");
    // WAL that the server removes cannot be looked at.
    server.query("INSERT INTO t VALUES (3)");
    server.configure("wal_keep_size = 0\nmax_wal_size = 2MB\nmin_wal_size = 2MB");
    server.query("SELECT pg_reload_conf()");
    until("the server has removed the segment", || {
        server.query("INSERT INTO t VALUES (4); SELECT pg_switch_wal(); CHECKPOINT");
        rpo()["at_most"] == true
    });
    let limit = rpo();
    assert!(limit["why"].as_str().unwrap().contains("removed"), "{limit}");
    assert!(limit["seconds"].as_f64() > Some(0.0), "{limit}");
}

fn received_commits_are_safe(install: &'static Install) {
    let (site, server) = quiet_server(install, "");
    site.write_config_of(
        &server,
        "streaming_archiver = on\nslot_name = barmanfs\ncreate_slot = auto\n",
    );
    server.query("CREATE TABLE t (n int)");
    let mut receiver = site.spawn(&["receive-wal", "main"]);
    until("the stream runs", || {
        server.query("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"
    });
    server.query("SELECT pg_switch_wal()");
    site.ok(&["backup", "main", "--fast-checkpoint"]);
    server.query("INSERT INTO t VALUES (1)");
    until("the commit is safe", || status(&site)["rpo"]["seconds"] == 0.0);
    let found = status(&site);
    assert_eq!(found["receive_wal"]["running"], true, "{found}");
    assert_eq!(found["receive_wal"]["process"], receiver.id(), "{found}");
    assert_eq!(found["receive_wal"]["lag_bytes"], 0, "{found}");
    assert_eq!(found["recoverable_to"]["receiving"], true, "{found}");
    site.ok(&["receive-wal", "main", "--stop"]);
    receiver.wait().expect("It ends");
    server.query("INSERT INTO t VALUES (2)");
    let lost = status(&site);
    assert_eq!(lost["receive_wal"]["running"], false, "{lost}");
    // In the middle of a segment that is partly here.
    assert!(lost["rpo"]["oldest_commit_time"].is_string(), "{lost}");
    assert!(lost["rpo"]["bytes"].as_u64() < Some(1 << 20), "{lost}");
}

fn a_server_that_does_not_answer_stops_no_other(install: &'static Install) {
    let (site, server) = quiet_server(install, "");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("Cannot listen");
    let port = silent.local_addr().expect("it has one").port();
    let nobody = format!("host=127.0.0.1 port={port} user=u connect_timeout=2");
    let there = server.conninfo();
    let mut servers = vec![("main", there.as_str())];
    let names: Vec<String> = (0..12).map(|nth| format!("silent{nth}")).collect();
    servers.extend(names.iter().map(|name| (name.as_str(), nobody.as_str())));
    site.write_config_with(&servers);
    let began = Instant::now();
    let all = site.json(&["status", "all"]);
    // One after the other they would take 48 seconds.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let all = all["servers"].as_array().unwrap();
    assert_eq!((all.len(), &all[0]["answers"]), (13, &Value::Bool(true)));
    assert_eq!(all[12]["answers"], false);
    assert!(
        all[12]["error"].as_str().unwrap().contains("127.0.0.1"),
        "{}",
        all[12]
    );
    let text = site.ok(&["status", "silent3"]);
    assert!(text.contains("FAILED trying to get PostgreSQL version"), "{text}");
}

fn a_segment_is_closed_and_waited_for(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let current = || server.query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    site.ok(&["backup", "main", "--fast-checkpoint"]);
    server.query("CREATE TABLE t (n int)");
    let closed = current();
    let text = site.ok(&["switch-wal", "main", "--archive"]);
    assert!(
        text.contains(&format!("The WAL file {closed} has been closed on server 'main'"))
            && text.contains(&format!("The WAL file {closed} of server 'main' is archived")),
        "{text}"
    );
    server.query("SELECT pg_switch_wal()");
    let text = site.ok(&["switch-xlog", "main"]);
    assert_eq!(text, "No switch required for server 'main'");
    let forced = current();
    let json = site.json(&["switch-wal", "all", "--force", "--archive"]);
    let switched = &json["servers"][0];
    assert_eq!(
        (&switched["closed"], &switched["archived"]),
        (&forced.as_str().into(), &true.into()),
        "{json}"
    );
    server.query("CREATE TABLE u (n int)");
    let _held = server.hold_archiver();
    let late = site.barmanfs(&["switch-wal", "main", "--archive", "--archive-timeout", "1"]);
    late.refused(1);
    // A role without the right is told what to grant.
    server.query("CREATE ROLE poor LOGIN");
    site.write_config_with(&[("main", &server.conninfo().replace("user=postgres", "user=poor"))]);
    let refused = site.barmanfs(&["switch-wal", "main"]);
    assert!(
        refused
            .all()
            .contains("GRANT EXECUTE ON FUNCTION pg_switch_wal TO \"poor\""),
        "{refused}"
    );
}

fn an_archive_is_empty_or_not(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let passed = " - WAL archive check for server main passed";
    assert_eq!(site.ok(&["check-wal-archive", "main"]), passed);
    site.ok(&["backup", "main", "--fast-checkpoint"]);
    server.archive_current_segment();
    let failed = site.barmanfs(&["check-wal-archive", "main"]);
    assert!(
        failed
            .all()
            .contains("WAL archive check failed for server main: Expected empty archive"),
        "{failed}"
    );
    failed.refused(1);
    assert_eq!(site.ok(&["check-wal-archive", "main", "--timeline", "2"]), passed);
}
