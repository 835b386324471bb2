//! Each check fails when it should, and holds when it should. The list names both tests for every check. Those that no
//! other topic has are here.

use crate::common::load::fill;
use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::site::check_line;
use crate::common::{Install, Mount, PgServer, Site};
use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

topic! {
    once every_check_has_a_test_in_which_it_fails_and_one_in_which_it_holds,
    once checks_end_in_time_and_say_what_is_missing,
    once an_inactive_server_is_shown_and_does_not_count,
    once an_empty_archive_is_found,
    once a_spool_that_nothing_archives_is_found,
    once a_slot_out_of_use_is_found,
    once a_server_without_full_wal_is_found,
    once a_primary_is_no_standby,
    once a_forgotten_clone_is_found,
    once backups_that_failed_or_wait_are_found,
    once bad_pages_and_missing_slots_are_found,
    once performance_data_tells_sizes_and_ages,
}

const GREEN: &str = "an_idle_server_raises_no_alarm";
const RULES: &str = "a_healthy_server_raises_no_alarm_however_long_it_is_idle";

/// A check, the test in which it fails or warns, and the one in which it holds. Some are unit tests beside the rule: the
/// state would take a large disk, a release that does not exist yet, or hours.
#[rustfmt::skip]
const LIST: &[(&str, &str, &str)] = &[
    ("repository", "garbage_in_repository_json_is_mended_as_the_error_says", GREEN),
    ("repository writable", "a_file_system_that_turns_read_only_loses_nothing_and_stays_readable", GREEN),
    ("file system", "network_file_systems_are_named", GREEN),
    ("free space", "space_must_last_longer_than_a_weekend", GREEN),
    ("catalog file", "a_damaged_catalog_is_noticed_by_check_and_verify", GREEN),
    ("packs are read", "a_pack_that_cannot_be_read_proves_no_absence", GREEN),
    ("packs are whole", "incomplete_packs_are_reported_and_all_others_are_read", GREEN),
    ("catalog", "a_damaged_catalog_is_noticed_by_check_and_verify", GREEN),
    ("complete backup", "configured_limits_are_checked", GREEN),
    ("backup maximum age", "check_reports_old_small_and_too_few_backups", GREEN),
    ("backup minimum size", "check_reports_old_small_and_too_few_backups", GREEN),
    ("minimum redundancy requirements", "a_damaged_backup_does_not_count_as_redundancy", GREEN),
    ("backups have their WAL", "backups_that_failed_or_wait_are_found", GREEN),
    ("failed backups", "backups_that_failed_or_wait_are_found", GREEN),
    ("damage of backups", "check_fails_while_the_newest_backup_is_damaged", GREEN),
    ("boot tests", "check_fails_while_the_newest_backup_did_not_boot", GREEN),
    ("boot test age", "a_backup_must_be_tested_in_time", "a_backup_must_be_tested_in_time"),
    ("page checksums", "bad_pages_and_missing_slots_are_found", GREEN),
    ("WAL archive", "an_empty_archive_is_found", "an_empty_archive_is_found"),
    ("wal size", "performance_data_tells_sizes_and_ages", GREEN),
    ("empty streaming directory", "a_spool_that_nothing_archives_is_found", GREEN),
    ("streaming WALs directory", "a_spool_that_nothing_archives_is_found", GREEN),
    ("retention policy settings", "a_policy_that_cannot_be_followed_fails", "a_policy_says_how_far_back_it_reaches"),
    ("WAL without gaps", "a_missing_segment_is_reported_and_stops_only_later_targets", GREEN),
    ("recovery to now", "a_wrong_history_costs_no_backup", GREEN),
    ("wal_level of the archived WAL", "no_target_is_offered_behind_a_start_with_minimal_wal", GREEN),
    ("PostgreSQL's version of the archived WAL", "unreadable_wal_is_archived_with_a_warning", GREEN),
    ("history files", "a_history_that_cannot_be_read_makes_only_itself_unreadable", GREEN),
    ("damage of WAL", "damage_in_merged_wal_costs_what_is_named_and_is_healed", GREEN),
    ("quarantined WAL", "quarantined_files_are_shown_and_deleted", GREEN),
    ("one history", "a_fork_is_reported_and_refused_until_the_history_is_restarted", GREEN),
    ("cron", "it_must_run_where_something_is_scheduled", "it_must_run_where_something_is_scheduled"),
    ("cron for the repository", "work_for_the_repository_that_fails_again_is_found", "it_must_run_where_something_is_scheduled"),
    ("verification", "damage_is_found_before_it_is_needed", "damage_is_found_before_it_is_needed"),
    ("incremental backups", "a_difference_counts_until_there_is_a_full_backup_since", "a_change_that_the_server_forgot_is_found"),
    ("clone maximum age", "a_forgotten_clone_is_found", "a_forgotten_clone_is_found"),
    ("snapshots of the storage", "the_storage_decides_about_the_record_of_a_snapshot", "a_snapshot_that_stays_in_the_storage_is_restored_on_its_disks"),
    ("PostgreSQL", "check_reports_problems", GREEN),
    ("PostgreSQL streaming", "check_reports_problems", GREEN),
    ("wal_level", "a_server_without_full_wal_is_found", GREEN),
    ("PostgreSQL version", "a_query_that_is_not_answered_ends", GREEN),
    ("PostgreSQL's version is known", "untested_versions_are_reported", GREEN),
    ("system identifier", "an_upgraded_cluster_is_refused_under_its_old_name", GREEN),
    ("PostgreSQL server is standby", "a_primary_is_no_standby", "an_idle_primary_is_asked_to_end_its_segment"),
    ("primary", "an_idle_primary_is_asked_to_end_its_segment", "an_idle_primary_is_asked_to_end_its_segment"),
    ("configuration files", "a_copy_without_configuration_files_starts", GREEN),
    ("history of the server", "a_hot_snapshot_that_archives_in_turns_is_a_fork", GREEN),
    ("temporary replication slot", "bad_pages_and_missing_slots_are_found", GREEN),
    ("receive-wal running", "a_slot_is_created_used_checked_and_dropped", "a_slot_is_created_used_checked_and_dropped"),
    ("receive-wal lag", "a_receiver_must_report_while_there_is_something_to_report", "a_slot_is_created_used_checked_and_dropped"),
    ("replication slot", "a_slot_is_created_used_checked_and_dropped", "a_slot_is_created_used_checked_and_dropped"),
    ("has monitoring privileges (WAL streaming)", "wal_comes_from_the_primary_of_a_standby", "wal_comes_from_the_primary_of_a_standby"),
    ("systemid coherence (WAL streaming)", "wal_comes_from_the_primary_of_a_standby", "wal_comes_from_the_primary_of_a_standby"),
    ("archive_mode", "archive_mode_off_fails_unless_no_archiver_is_configured", GREEN),
    ("archive_command", "an_archive_command_is_compared_with_this_server", GREEN),
    ("archiver errors", "segments_that_wait_for_the_command_are_found", GREEN),
    ("archived segments", "segments_the_server_reports_as_archived_must_arrive_within_a_minute", GREEN),
    ("waiting for archive_command", "segments_that_wait_for_the_command_are_found", GREEN),
    ("continuous archiving", "check_finds_a_command_that_archives_nothing_before_the_next_segment", GREEN),
    ("timeline", "check_finds_a_promotion_that_the_archive_lacks", "check_finds_a_promotion_that_the_archive_lacks"),
    ("wal maximum age", "check_reports_old_small_and_too_few_backups", RULES),
    ("check timeout", "checks_end_in_time_and_say_what_is_missing", GREEN),
];

/// The checks of `main`.
#[track_caller]
fn checks(site: &Site) -> Vec<Value> {
    let run = site.barmanfs(&["check", "main", "--json"]);
    let report: Value = serde_json::from_slice(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"));
    let of = |what: &Value| what["checks"].as_array().expect("checks").clone();
    [of(&report["repository"]), of(&report["servers"][0])].concat()
}

/// The status of a check; `None` if it says nothing.
#[track_caller]
fn status(site: &Site, name: &str) -> Option<String> {
    let checks = checks(site);
    let line = checks.iter().find(|check| check["name"] == name)?;
    Some(line["status"].as_str().expect("a status").to_owned())
}

#[track_caller]
fn assert_status(site: &Site, name: &str, expected: Option<&str>) {
    let found = status(site, name);
    assert_eq!(found.as_deref(), expected, "{name}: {:?}", checks(site));
}

fn sources_under(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("sources") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => sources_under(&path, found),
            false => found.push(path),
        }
    }
}

fn every_check_has_a_test_in_which_it_fails_and_one_in_which_it_holds(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    server.archive_current_segment();
    site.backup();
    for check in checks(&site) {
        let name = check["name"].as_str().expect("a name");
        assert!(
            LIST.iter().any(|(listed, ..)| *listed == name),
            "No test is listed for {name}"
        );
    }
    let mut files = Vec::new();
    for directory in ["tests", "src"] {
        sources_under(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &mut files);
    }
    let sources: String = files
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .collect();
    for (name, fails, holds) in LIST {
        for test in [fails, holds] {
            assert!(
                sources.contains(&format!("fn {test}(")),
                "{name}: there is no test {test}"
            );
        }
    }
}

/// The server accepts connections and says nothing.
fn checks_end_in_time_and_say_what_is_missing(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    server.archive_current_segment();
    site.backup();
    site.ok(&["check", "main", "--check-timeout", "60"]);
    site.ok(&["check", "main", "--check-timeout", "0"]);

    let silent = TcpListener::bind("127.0.0.1:0").expect("Cannot listen");
    let port = silent.local_addr().expect("an address").port();
    let conninfo = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=disable");
    site.write_config_with(&[("main", &conninfo)]);
    let began = Instant::now();
    site.barmanfs(&["check", "main", "--check-timeout", "2"])
        .refused(3)
        .says(&["complete backup: OK", "check timeout: FAILED", "within 2"]);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let text = std::fs::read_to_string(site.config()).expect("the configuration");
    site.write_file("barmanfs.conf", (text + "check_timeout = 1\n").as_bytes());
    site.barmanfs(&["check", "main", "--nagios"]).refused(2).says(&[
        "BARMANFS CRITICAL - server main has issues * main FAILED: check timeout",
        "within 1",
    ]);
}

fn an_inactive_server_is_shown_and_does_not_count(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    server.archive_current_segment();
    site.backup();
    site.write_config(&[("main", &server)]);
    let text = std::fs::read_to_string(site.config()).expect("the configuration");
    let old = "\n[old]\nactive = off\nconninfo = host=/nowhere\n";
    site.write_file("barmanfs.conf", (text + old).as_bytes());
    site.ok(&["check", "all"]);
    let run = site.barmanfs(&["check", "main", "old"]).ok();
    run.says(&["Server old (inactive):", "PostgreSQL streaming: FAILED"]);
    site.barmanfs(&["check", "old"]).ok();
    site.barmanfs(&["check", "main", "old", "--nagios"])
        .ok()
        .says(&["BARMANFS OK - ready to serve: main * IGNORING: old|main="]);
}

fn an_empty_archive_is_found(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    assert_status(&site, "WAL archive", Some("FAILED"));
    site.write_config_of(&server, "archiver = off\n");
    assert_status(&site, "WAL archive", None);
    site.write_config_of(&server, "");
    server.archive_current_segment();
    assert_status(&site, "WAL archive", None);
}

/// Segments as a receiver leaves them that is killed before it has archived them.
fn a_spool_that_nothing_archives_is_found(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    server.archive_current_segment();
    site.backup();
    let (left, queue) = ("empty streaming directory", "streaming WALs directory");
    site.make_directory("repository/spool/main");
    let spooled = |number: u32, suffix: &str| {
        let name = format!("repository/spool/main/0000000100000000000000{number:02X}{suffix}");
        site.write_file(&name, &vec![0; 16 << 20]);
    };
    spooled(0xF0, ".partial");
    assert_status(&site, left, None);
    spooled(0xE0, "");
    spooled(0xE1, "");
    assert_status(&site, left, Some("FAILED"));

    let streaming = "streaming_archiver = on\nslot_name = barmanfs\n";
    site.write_config_of(&server, streaming);
    assert_status(&site, left, None);
    assert_status(&site, queue, None);
    site.write_config_of(&server, &format!("{streaming}max_incoming_wals_queue = 2\n"));
    assert_status(&site, queue, None);
    site.write_config_of(&server, &format!("{streaming}max_incoming_wals_queue = 1\n"));
    assert_status(&site, queue, Some("FAILED"));
}

fn a_slot_out_of_use_is_found(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    server.archive_current_segment();
    site.backup();
    let name = "replication slot";
    site.write_config_of(&server, "slot_name = unused\n");
    assert_status(&site, name, None);
    server.query("SELECT pg_create_physical_replication_slot('unused', true)");
    assert_status(&site, name, Some("WARNING"));
    let line = check_line(&site.barmanfs(&["check", "main", "--json"]).ok(), name);
    let hint = line["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("--drop-slot"), "{line}");
    site.ok(&["receive-wal", "main", "--drop-slot"]);
    assert_status(&site, name, None);
}

/// Such a server has no replication connections.
fn a_server_without_full_wal_is_found(install: &'static Install) {
    let (site, mut server) = Site::with_server(install);
    assert_status(&site, "wal_level", Some("OK"));
    server.stop("fast");
    server.configure("wal_level = minimal\nmax_wal_senders = 0\narchive_mode = off");
    server.start();
    assert_status(&site, "PostgreSQL streaming", Some("FAILED"));
    assert_status(&site, "wal_level", Some("FAILED"));
}

fn a_primary_is_no_standby(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    server.archive_current_segment();
    site.backup();
    assert_status(&site, "PostgreSQL server is standby", None);
    site.write_config_of(&server, &format!("primary_conninfo = {}\n", server.conninfo()));
    assert_status(&site, "PostgreSQL server is standby", Some("FAILED"));
    assert_status(&site, "primary", Some("OK"));
}

fn a_forgotten_clone_is_found(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    server.archive_current_segment();
    site.backup();
    let name = "clone maximum age";
    assert_status(&site, name, None);
    let mount = Mount::new(&site);
    site.ok(&["clone", "create", "main", "test1"]);
    mount.unmount();
    assert_status(&site, name, Some("OK"));
    site.write_config_of(&server, "clone_maximum_age = 2 DAYS\n");
    assert_status(&site, name, Some("OK"));
    let later = check_line(&site.in_days(3, "check main --json"), name);
    assert_eq!(later["status"], "WARNING", "{later}");
}

fn backups_that_failed_or_wait_are_found(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    server.archive_current_segment();
    site.backup();
    let (waits, failed) = ("backups have their WAL", "failed backups");
    assert_status(&site, waits, None);
    assert_status(&site, failed, Some("OK"));

    // A backup that is killed.
    fill(&server, 1);
    let mut backup = site.spawn(&["backup", "main", "--fast-checkpoint", "--bwlimit", "100"]);
    until("it runs", || {
        site.backups()
            .last()
            .is_some_and(|newest| newest["status"] == "STARTED")
    });
    backup.kill().expect("Cannot kill it");
    backup.wait().expect("Cannot wait for it");
    assert_status(&site, failed, Some("FAILED"));

    // A backup that waits for its WAL.
    server.query("ALTER SYSTEM SET archive_command = 'false'");
    server.query("SELECT pg_reload_conf()");
    site.write_config_of(&server, "archiver = on\n");
    site.barmanfs(&["backup", "main", "--fast-checkpoint", "--wait-timeout", "0"])
        .refused(3);
    assert_status(&site, waits, Some("FAILED"));
    assert_status(&site, failed, Some("OK"));
}

fn bad_pages_and_missing_slots_are_found(install: &'static Install) {
    let (site, mut server) = Site::with_initdb_options(install, &["--data-checksums"]);
    fill(&server, 1);
    server.archive_current_segment();
    assert_status(&site, "temporary replication slot", Some("OK"));
    let table = server.query("SELECT pg_relation_filepath('pgbench_accounts')");
    server.stop("fast");
    let data = server.data.display();
    site.sh(&format!(
        "printf 'spoilt' | dd of='{data}/{table}' bs=1 seek=20000 conv=notrunc status=none"
    ))
    .ok();
    server.configure("max_replication_slots = 0");
    server.start();
    site.barmanfs(&["backup", "main", "--fast-checkpoint"]).refused(3);
    assert_status(&site, "page checksums", Some("FAILED"));
    assert_status(&site, "temporary replication slot", Some("FAILED"));
}

fn performance_data_tells_sizes_and_ages(install: &'static Install) {
    let (site, server): (Site, PgServer) = Site::with_server(install);
    server.archive_current_segment();
    site.backup();
    server.archive_current_segment();
    let run = site.barmanfs(&["check", "main", "--nagios"]).ok().text();
    let lines: Vec<&str> = run.lines().collect();
    let [line] = lines.as_slice() else {
        panic!("One line where all is well: {run}")
    };
    let data = line
        .strip_prefix("BARMANFS OK - ready to serve: main|")
        .expect(line);
    let values: Vec<(&str, u64, &str)> = data
        .split(' ')
        .map(|value| {
            let (name, value) = value.split_once('=').expect(value);
            let digits = value.trim_end_matches(|c: char| !c.is_ascii_digit());
            (name, digits.parse().expect(value), &value[digits.len()..])
        })
        .collect();
    let [size, wals, age, wal_age] = values.as_slice() else {
        panic!("{data}")
    };
    let logical = site.backups()[0]["logical_bytes"].as_u64().expect("a size");
    assert_eq!(*size, ("main", logical, "B"));
    assert!(
        wals.0 == "main_wals" && (1..logical).contains(&wals.1) && wals.2 == "B",
        "{data}"
    );
    for (value, name) in [(age, "main_age"), (wal_age, "main_wal_age")] {
        assert!(value.0 == name && value.1 < 300 && value.2 == "s", "{data}");
    }
    assert_status(&site, "wal size", Some("OK"));
}
