//! A check that reports OK must be right. The kind: a check trusts a statement (the server says that it archived, an
//! exit code, a setting that is present) and compares it with nothing, so that WAL is lost for weeks while every line
//! is OK. Here the server's statements, its LSN and its clock are compared with the archive.

use crate::common::load::fill;
use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::site::check_line;
use crate::common::{Install, PgServer, Site};
use serde_json::Value;
use std::time::Duration;

topic! {
    edges check_finds_a_command_that_archives_nothing_before_the_next_segment,
    edges check_finds_a_promotion_that_the_archive_lacks,
    edges check_finds_a_stopped_stream_by_its_missing_segments,
    once segments_the_server_reports_as_archived_must_arrive_within_a_minute,
    once an_archive_command_is_compared_with_this_server,
    once an_idle_server_raises_no_alarm,
    once check_reports_old_small_and_too_few_backups,
}

/// A server with small segments that archives, with a backup; all its checks are OK.
fn green_site(install: &'static Install) -> (Site, PgServer) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    // So that the server removes no WAL during a test.
    server.query("ALTER SYSTEM SET wal_keep_size = '1GB'");
    server.query("SELECT pg_reload_conf()");
    server.archive_current_segment();
    site.backup();
    server.archive_current_segment();
    let run = site.barmanfs(&["check", "main"]).ok();
    assert!(!run.all().contains("WARNING"), "{run}");
    site.barmanfs(&["check", "main", "--nagios"])
        .ok()
        .says(&["BARMANFS OK"]);
    (site, server)
}

fn set_archive_command(server: &PgServer, command: &str) {
    server.query(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
    server.query("SELECT pg_reload_conf()");
    until("the setting is in force", || {
        server.query("SHOW archive_command") == command
    });
    // The archiver has read the setting, too, once it has finished a round.
    std::thread::sleep(Duration::from_secs(1));
}

/// Completes segments. Returns their names.
fn complete_segments(server: &PgServer, count: usize) -> Vec<String> {
    (0..count)
        .map(|_| {
            server.query(
                "CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler SELECT generate_series(1, 100)",
            );
            server.query("SELECT pg_walfile_name(pg_switch_wal())")
        })
        .collect()
}

/// Makes the server's files look as if they were a few minutes old.
fn grow_old(site: &Site, server: &PgServer) {
    let pg_wal = server.data.join("pg_wal");
    site.sh(&format!(
        "find '{}' -type f -exec touch -d '10 minutes ago' {{}} +",
        pg_wal.display()
    ))
    .ok();
}

fn wait_until_done(server: &PgServer, name: &str) {
    until("the server takes it for archived", || {
        server.query(&format!(
            "SELECT coalesce(last_archived_wal >= '{name}', false) FROM pg_stat_archiver"
        )) == "t"
    });
}

/// The check's line of this name, from its JSON.
#[track_caller]
fn line(site: &Site, name: &str) -> Value {
    check_line(&site.barmanfs(&["check", "main", "--json"]), name)
}

#[track_caller]
fn assert_line(site: &Site, name: &str, status: &str, words: &[&str]) {
    let line = line(site, name);
    let hint = line["hint"].as_str().unwrap_or_default();
    assert!(
        line["status"] == status && words.iter().all(|word| hint.contains(word)),
        "Not {status} with {words:?}: {line}"
    );
}

fn check_finds_a_command_that_archives_nothing_before_the_next_segment(install: &'static Install) {
    let (site, mut server) = green_site(install);
    set_archive_command(&server, "/bin/true");
    let lost = complete_segments(&server, 9);
    wait_until_done(&server, &lost[8]);
    // In the first minute they may still be on their way; another archive_command is reported at once.
    site.barmanfs(&["check", "main", "--nagios"])
        .refused(1)
        .says(&["BARMANFS WARNING", "archive_command"]);
    assert_line(
        &site,
        "archive_command",
        "WARNING",
        &["/bin/true", "wal-archive main %p"],
    );

    grow_old(&site, &server);
    let run = site.barmanfs(&["check", "main"]).refused(3);
    run.says(&[
        "continuous archiving: FAILED",
        &lost[0],
        &lost[8],
        "9 segments",
        "by hand",
    ]);
    site.barmanfs(&["check", "main", "--nagios"])
        .refused(2)
        .says(&["BARMANFS CRITICAL", "continuous archiving"]);
    // The server's own counters survive this.
    server.stop("fast");
    server.start();
    grow_old(&site, &server);
    assert_line(&site, "continuous archiving", "FAILED", &[&lost[0]]);

    // The suggested remedy works.
    set_archive_command(&server, &site.archive_command());
    server.archive_current_segment();
    archive_by_hand(&site, &server);
    site.barmanfs(&["check", "main"]).ok();

    // Segments that the server has removed meanwhile never arrive.
    set_archive_command(&server, "/bin/true");
    let lost = complete_segments(&server, 3);
    wait_until_done(&server, &lost[2]);
    std::fs::remove_file(server.data.join("pg_wal").join(&lost[1])).unwrap();
    assert_line(
        &site,
        "continuous archiving",
        "FAILED",
        &["has removed 1", "take a backup now"],
    );
    set_archive_command(&server, &site.archive_command());
    site.backup();
    server.archive_current_segment();
    let state = line(&site, "continuous archiving");
    assert_eq!(
        state["status"], "OK",
        "From the new backup on all is here: {state}"
    );
}

fn check_finds_a_promotion_that_the_archive_lacks(install: &'static Install) {
    let (site, mut server) = green_site(install);
    set_archive_command(&server, "/bin/true");
    server.stop("fast");
    server.configure("restore_command = 'false'");
    site.write_file("main/recovery.signal", b"");
    server.start();
    server.wait_until_promoted();
    let history = server.data.join("pg_wal/archive_status/00000002.history.done");
    until("the history counts as archived", || history.exists());
    grow_old(&site, &server);
    assert_line(
        &site,
        "timeline",
        "FAILED",
        &["timeline 2", "00000002.history", "by hand"],
    );
    set_archive_command(&server, &site.archive_command());
    let history = server.data.join("pg_wal/00000002.history");
    site.ok(&["wal-archive", "main", &history.display().to_string()]);
    assert_line(&site, "timeline", "OK", &["2"]);
    let last = complete_segments(&server, 1).remove(0);
    wait_until_done(&server, &last);
    archive_by_hand(&site, &server);
    assert_line(&site, "continuous archiving", "OK", &[&last]);
}

/// Archives the segments that the archiver gave to another command before it had read the settings again.
fn archive_by_hand(site: &Site, server: &PgServer) {
    let pg_wal = server.data.join("pg_wal");
    for name in site.list(&pg_wal.join("archive_status")) {
        let name = name.strip_suffix(".done").unwrap_or_default();
        if name.len() == 24 && pg_wal.join(name).exists() {
            let path = pg_wal.join(name).display().to_string();
            site.ok(&["wal-archive", "main", &path]);
        }
    }
}

fn check_finds_a_stopped_stream_by_its_missing_segments(install: &'static Install) {
    let site = Site::with_repository();
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    server.configure("wal_keep_size = '1GB'");
    site.write_config_of(
        &server,
        "archiver = off\nstreaming_archiver = on\nslot_name = barmanfs\ncreate_slot = auto\n",
    );
    server.start();
    let mut receiver = site.spawn(&["receive-wal", "main"]);
    until("it streams", || {
        server.query("SELECT count(*) FROM pg_stat_replication") == "1"
    });
    fill(&server, 1);
    site.backup();
    let names = complete_segments(&server, 2);
    until("they are archived", || {
        line(&site, "continuous archiving")["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains(&names[1]))
    });
    grow_old(&site, &server);
    assert_line(&site, "continuous archiving", "OK", &[]);
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    let lost = complete_segments(&server, 2);
    assert_line(&site, "continuous archiving", "OK", &[&lost[0], "on the way"]);
    grow_old(&site, &server);
    assert_line(
        &site,
        "continuous archiving",
        "FAILED",
        &[&lost[0], &lost[1], "receive-wal main"],
    );
}

/// With a role that has no more rights than every role.
fn segments_the_server_reports_as_archived_must_arrive_within_a_minute(install: &'static Install) {
    let (site, server) = green_site(install);
    server.query("CREATE ROLE weak LOGIN REPLICATION");
    let weak = server.conninfo().replace("user=postgres", "user=weak");
    site.write_config_with(&[("main", &weak)]);
    site.ok(&["check", "main"]);
    set_archive_command(&server, "/bin/true");
    let lost = complete_segments(&server, 2);
    wait_until_done(&server, &lost[1]);
    assert_line(&site, "archived segments", "WARNING", &[&lost[1], "not here yet"]);
    std::thread::sleep(Duration::from_secs(61));
    assert_line(
        &site,
        "archived segments",
        "FAILED",
        &[&lost[1], "wal-archive main %p"],
    );
    site.barmanfs(&["check", "main"]).refused(3).says(&[&lost[1]]);
}

fn an_archive_command_is_compared_with_this_server(install: &'static Install) {
    let (site, server) = green_site(install);
    let ours = site.archive_command();
    for (command, status) in [
        (ours.replace(" main ", " other "), "FAILED"),
        (ours.replace("%p", "%f"), "FAILED"),
        (format!("{ours} || true"), "WARNING"),
        (format!("cp %p {}/%f", site.path("").display()), "WARNING"),
        (format!("test -d / && {ours} 2>&1"), "OK"),
    ] {
        set_archive_command(&server, &command);
        assert_line(&site, "archive_command", status, &[]);
    }
    if install.major >= 15 {
        server.query("ALTER SYSTEM SET archive_library = 'basic_archive'");
        server.query("ALTER SYSTEM SET archive_command = ''");
        server.query("SELECT pg_reload_conf()");
        until("the setting is in force", || {
            !server.query("SHOW archive_library").is_empty()
        });
        assert_line(&site, "archive_command", "WARNING", &["basic_archive"]);
    }
}

fn an_idle_server_raises_no_alarm(install: &'static Install) {
    let (site, server) = green_site(install);
    // Changes that do not fill a segment, and then hours without any.
    server.query("CREATE TABLE a_little (n int)");
    grow_old(&site, &server);
    let run = site.barmanfs(&["check", "main"]).ok();
    assert!(!run.all().contains("WARNING"), "{run}");
    server.query(match install.major {
        ..=14 => "SELECT pg_stat_reset_shared('archiver')",
        _ => "SELECT pg_stat_reset_shared('archiver'), pg_stat_reset_shared('wal')",
    });
    site.ok(&["check", "main"]);
}

/// Sets the clock of the program forward, but not the server's.
fn check_reports_old_small_and_too_few_backups(install: &'static Install) {
    let (site, server) = green_site(install);
    let status_in =
        |days: u32, name: &str| check_line(&site.in_days(days, "check main --json"), name)["status"].clone();
    let with = |lines: &str| site.write_config_of(&server, lines);

    // A limit applies even without a setting: if there is no usual interval, two weeks are too long.
    let age = "backup maximum age";
    assert_eq!(status_in(13, age), "OK");
    assert_eq!(status_in(15, age), "WARNING");
    with("last_backup_maximum_age = 2 DAYS\nlast_wal_maximum_age = 1 DAY\n");
    assert_eq!(status_in(1, age), "OK");
    assert_eq!(status_in(3, age), "FAILED");
    // WAL is too old only if the server wrote some that has not arrived.
    let wal = "wal maximum age";
    assert_eq!(status_in(2, wal), "OK");
    server.query("CREATE TABLE written AS SELECT generate_series(1, 1000) n; CHECKPOINT");
    assert_eq!(status_in(2, wal), "FAILED");
    assert_eq!(status_in(0, wal), "OK");

    with("last_backup_minimum_size = 1Mi\nminimum_redundancy = 1\n");
    site.ok(&["check", "main"]);
    with("last_backup_minimum_size = 1Gi\nminimum_redundancy = 2\n");
    site.barmanfs(&["check", "main"]).refused(3);
    assert_line(&site, "backup minimum size", "FAILED", &["MiB"]);
    assert_line(&site, "minimum redundancy requirements", "FAILED", &["2"]);
}
