//! `backup_method = files`: the program reads the files of the running server. What it stores is what the server would have sent,
//! and what it cannot vouch for is no backup.

use crate::common::load::{assert_sums_agree, fill, transact};
use crate::common::process::{run, until};
use crate::common::registry::topic;
use crate::common::site::by_files;
use crate::common::standby::{catch_up, standby_of};
use crate::common::tree::differences;
use crate::common::{Install, Load, Mount, PgServer, Site};
use crate::{backup_and_recover, byte_for_byte, odd_files, tablespaces};
use std::collections::BTreeSet;
use std::path::Path;

topic! {
    once by_files_a_backup_under_load_starts_from_a_plain_copy,
    once by_files_a_server_that_archives_nothing_can_be_backed_up,
    once by_files_an_interrupted_backup_is_failed_and_the_next_one_succeeds,
    once by_files_unlogged_tables_and_large_segments_are_restored,
    once by_files_raw_agrees_with_the_data_directory,
    once by_files_odd_files_are_stored_as_they_are,
    once by_files_copies_recover_past_a_tablespace_on_the_same_host,
    edges both_methods_store_the_same_bytes,
    since_17 only_what_has_changed_is_read_and_nothing_is_missed,
    once a_killed_backup_leaves_nothing_that_counts,
    once a_backup_fails_when_its_session_ends_or_its_standby_is_promoted,
    once only_the_files_of_the_server_itself_are_read,
    once data_behind_a_link_is_missing_in_no_backup,
}

fn by_files_a_backup_under_load_starts_from_a_plain_copy(install: &'static Install) {
    by_files(|| backup_and_recover::a_backup_under_load_starts_from_a_plain_copy(install));
}

fn by_files_a_server_that_archives_nothing_can_be_backed_up(install: &'static Install) {
    by_files(|| backup_and_recover::a_server_that_archives_nothing_can_be_backed_up(install));
}

fn by_files_an_interrupted_backup_is_failed_and_the_next_one_succeeds(install: &'static Install) {
    by_files(|| backup_and_recover::an_interrupted_backup_is_failed_and_the_next_one_succeeds(install));
}

fn by_files_unlogged_tables_and_large_segments_are_restored(install: &'static Install) {
    by_files(|| backup_and_recover::unlogged_tables_and_large_segments_are_restored(install));
}

fn by_files_raw_agrees_with_the_data_directory(install: &'static Install) {
    by_files(|| byte_for_byte::raw_agrees_with_the_data_directory(install));
}

fn by_files_odd_files_are_stored_as_they_are(install: &'static Install) {
    by_files(|| {
        odd_files::odd_times_and_owners_are_restored(install);
        odd_files::a_copy_has_no_file_of_the_running_server(install);
    });
}

fn by_files_copies_recover_past_a_tablespace_on_the_same_host(install: &'static Install) {
    by_files(|| tablespaces::copies_recover_past_a_tablespace_on_the_same_host(install));
}

/// What two backups of a quiet server may have different.
fn is_of_the_backup(path: &str) -> bool {
    path == "backup_label"
        || path == "backup_manifest"
        || path.starts_with("pg_wal/")
        || path == "global/pg_control"
}

/// A server that writes nothing by itself.
fn quiet_site(install: &'static Install, settings: &str) -> (Site, PgServer) {
    let (site, mut server) = Site::with_initdb_options(install, &["--data-checksums"]);
    server.stop("fast");
    server.configure(&format!(
        "autovacuum = off\nbgwriter_lru_maxpages = 0\ncheckpoint_timeout = 1h\n{settings}"
    ));
    server.start();
    (site, server)
}

fn newest(site: &Site, arguments: &[&str]) -> serde_json::Value {
    site.ok(&[&["backup", "main", "--fast-checkpoint"], arguments].concat());
    let newest = site.backups().pop().expect("a backup");
    assert_eq!(newest["status"], "DONE", "{newest}");
    newest
}

fn id_of(backup: &serde_json::Value) -> &str {
    backup["id"].as_str().expect("an id")
}

#[track_caller]
fn assert_same_raw(site: &Site, one: &str, other: &str) {
    let mount = Mount::new(site);
    let raw = |id: &str| site.copy(&mount.path(&format!("main/raw/{id}")), &format!("raw {id}"));
    let (one, other) = (raw(one), raw(other));
    let mut found = differences(&one, &other, &is_of_the_backup);
    // A checkpoint writes these, and a backup has a slot for a while.
    let written = [
        "pg_replslot: time",
        "pg_logical: time",
        "pg_logical/replorigin_checkpoint: time",
    ];
    found.retain(|difference| !written.iter().any(|known| difference.starts_with(known)));
    assert!(
        found.is_empty(),
        "{} differences:\n{}",
        found.len(),
        found.join("\n")
    );
    for directory in [one, other] {
        site.sh(&format!("rm -rf '{}'", directory.display())).ok();
    }
}

/// Files that PostgreSQL leaves out, or treats in another way than others.
fn make_odd_files(site: &Site, server: &PgServer) {
    let place = site.make_directory("space");
    let inside = site.make_directory("main/inside");
    for (name, place) in [("away", &place), ("within", &inside)] {
        server.query(&format!(
            "CREATE TABLESPACE {name} LOCATION '{}'",
            place.display()
        ));
        server.query(&format!(
            "CREATE TABLE in_{name} TABLESPACE {name} AS SELECT generate_series(1, 5000) n"
        ));
    }
    server.query("CREATE TABLESPACE in_place LOCATION ''");
    server.query("CREATE TABLE in_in_place TABLESPACE in_place AS SELECT generate_series(1, 5000) n");
    server.query("CREATE UNLOGGED TABLE brief AS SELECT generate_series(1, 5000) n");
    site.sh(&format!(
        "cd '{}' && database=base/$(ls base | sort -n | tail -1) && mkdir -p base/pgsql_tmp log/pg_notify && \
         touch $database/t3_16400 $database/t3_16400_fsm $database/t3_x base/pgsql_tmp/pgsql_tmp1.0 \
         log/postmaster.pid log/pg_notify/x backup_label.old global/pg_internal.init.7 '{}/stray' && ln -s /etc/passwd log/link && \
         mkfifo log/pipe && mv pg_stat_tmp ../stat && ln -s ../stat pg_stat_tmp && echo {{}} > backup_manifest",
        server.data.display(),
        place.display()
    ))
    .ok();
}

fn both_methods_store_the_same_bytes(install: &'static Install) {
    let (site, server) = quiet_site(install, "allow_in_place_tablespaces = on\n");
    fill(&server, 1);
    make_odd_files(&site, &server);
    server.query("VACUUM FREEZE");
    server.query("CHECKPOINT");
    let sent = newest(&site, &["--method", "postgres"]);
    let read = newest(&site, &["--method", "files"]);
    assert_same_raw(&site, id_of(&sent), id_of(&read));
    // PostgreSQL 15 sends a tablespace in its place as a part of the data directory.
    let is_in_place = |tablespace: &&serde_json::Value| {
        let location = tablespace["location"].as_str().expect("a place");
        location.starts_with("pg_tblspc/")
    };
    let tablespaces = |backup: &serde_json::Value| {
        let mut all: Vec<String> = backup["tablespaces"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|tablespace| !is_in_place(tablespace))
            .map(ToString::to_string)
            .collect();
        all.sort();
        all
    };
    assert_eq!(tablespaces(&sent), tablespaces(&read));
    // All of it is known, but for the label, the manifest and the control file.
    let stored = read["new_stored_bytes"].as_u64().expect("a number");
    assert!(stored < 500_000, "{read}");
    let mount = Mount::new(&site);
    for backup in [&sent, &read] {
        server.verify_backup(&mount.path(&format!("main/{}", id_of(backup))), None);
        let raw = mount.path(&format!("main/raw/{}", id_of(backup)));
        server.verify_backup(&raw, Some(&mount.path("main/wal")));
    }
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    let sums = "SELECT (SELECT sum(n) FROM in_away) + (SELECT sum(n) FROM in_within) + (SELECT sum(n) FROM in_in_place)";
    assert_eq!(copy.query(sums), "37507500");
    copy.stop_and_assert_checksums();
}

/// Changes of every kind that a summary knows, one a day.
const CHANGES: [&str; 9] = [
    "UPDATE many SET v = 1 WHERE n % 5000 = 7",
    "DELETE FROM many WHERE n > 30000; VACUUM many",
    "INSERT INTO many SELECT n, 1, 'x' FROM generate_series(200000, 290000) n",
    "VACUUM FULL pgbench_branches; CREATE TABLE made AS SELECT generate_series(1, 20000) n",
    "TRUNCATE made; INSERT INTO made SELECT generate_series(1, 300)",
    "CREATE DATABASE another STRATEGY file_copy",
    "DROP DATABASE another; CREATE DATABASE another STRATEGY wal_log",
    "ALTER TABLE made SET UNLOGGED; ALTER TABLE made SET LOGGED; CREATE INDEX ON made (n)",
    "SELECT 1",
];

/// Path, size and checksum of each file in a backup's manifest.
fn listed(mount: &Mount, site: &Site, id: &str) -> BTreeSet<String> {
    let manifest = mount.path(&format!("main/raw/{id}/backup_manifest"));
    let text = site.sh(&format!("cat '{}'", manifest.display())).ok().text();
    let manifest: serde_json::Value = serde_json::from_str(&text).expect("a manifest");
    let files = manifest["Files"].as_array().expect("a list").iter();
    files
        .map(|file| format!("{} {} {}", file["Path"], file["Size"], file["Checksum"]))
        .filter(|line| !is_of_the_backup(line.split('"').nth(1).unwrap_or_default()))
        .collect()
}

fn only_what_has_changed_is_read_and_nothing_is_missed(install: &'static Install) {
    let (site, server) = quiet_site(install, "summarize_wal = on\n");
    fill(&server, 1);
    server.query("CREATE TABLE many AS SELECT n, 0 AS v, repeat('x', 100) FROM generate_series(1, 100000) n");
    server.query("VACUUM FREEZE");
    server.query("CHECKPOINT");
    let full = newest(&site, &["--method", "files"]);
    assert_eq!(full["kind"], "full", "{full}");
    let mount = Mount::new(&site);
    let mut parent = id_of(&full).to_owned();
    for change in CHANGES {
        for statement in change.split("; ") {
            server.query(statement);
        }
        // Nothing is left to write after the checkpoint of the backup.
        server.query("SELECT count(*) FROM many");
        server.query("CHECKPOINT");
        let read = newest(&site, &["--method", "files", "--incremental", "always"]);
        assert_eq!(
            (&read["kind"], &read["parent"]),
            (&"incremental".into(), &parent.into()),
            "{change}"
        );
        // The server says what is in its files now.
        let sent = newest(&site, &["--method", "postgres", "--incremental", "never"]);
        println!(
            "{} bytes read of {} after: {change}",
            read["sent_bytes"], sent["sent_bytes"]
        );
        let [of_read, of_sent] = [&read, &sent].map(|backup| listed(&mount, &site, id_of(backup)));
        let found: Vec<&String> = of_read.symmetric_difference(&of_sent).collect();
        assert!(
            found.is_empty() && of_sent.len() > 100,
            "After {change}: {found:?}"
        );
        let bytes = |backup: &serde_json::Value| backup["sent_bytes"].as_u64().expect("a number");
        if change == "SELECT 1" {
            assert!(bytes(&read) * 4 < bytes(&sent), "{read} {sent}");
        }
        parent = id_of(&sent).to_owned();
    }
    let load = Load::start(&server);
    let read = newest(&site, &["--method", "files", "--incremental", "always"]);
    load.stop();
    assert_eq!(read["kind"], "incremental");
    server.verify_backup(&mount.path(&format!("main/{}", id_of(&read))), None);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    assert_sums_agree(&copy);
    copy.assert_sound();
    copy.stop_and_assert_checksums();
}

/// A backup that takes minutes.
const SLOW: [&str; 6] = [
    "backup",
    "main",
    "--fast-checkpoint",
    "--method",
    "files",
    "--max-rate=32",
];

fn is_in_backup_mode(server: &PgServer) -> bool {
    server.query(backup_and_recover::COPIES) != "0"
}

fn a_killed_backup_leaves_nothing_that_counts(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    let mut random = crate::common::random::Random::new("a_killed_backup");
    for _ in 0..4 {
        let mut backup = site.spawn(&["backup", "main", "--fast-checkpoint", "--method", "files"]);
        let wait = std::time::Duration::from_millis(random.below(700));
        std::thread::sleep(wait);
        let ended = backup.try_wait().expect("its own child").is_some();
        backup.kill().expect("its own child");
        backup.wait().expect("its own child");
        let done = site
            .backups()
            .iter()
            .filter(|backup| backup["status"] == "DONE")
            .count();
        println!("killed after {wait:?}: ended {ended}, {done} complete");
        for backup in site.backups() {
            assert!(
                ["DONE", "FAILED", "WAITING_FOR_WALS"].contains(&backup["status"].as_str().unwrap()),
                "{backup}"
            );
        }
    }
    transact(&server, 100);
    by_files(|| {
        site.write_config(&[("main", &server)]);
        site.backup();
    });
    site.ok(&["verify", "main"]);
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    assert_sums_agree(&copy);
}

/// The newest backup has failed, and says why.
#[track_caller]
fn assert_failed(site: &Site, backup: std::process::Child, why: &str) {
    let output = backup.wait_with_output().expect("its own child");
    assert_eq!(output.status.code(), Some(1));
    let newest = site.backups().pop().expect("a backup");
    assert_eq!(newest["status"], "FAILED", "{newest}");
    let said = newest["error"].as_str().unwrap_or_default();
    assert!(said.contains(why), "{newest}");
}

fn a_backup_fails_when_its_session_ends_or_its_standby_is_promoted(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    let backup = site.spawn(&SLOW);
    until("the server is in backup mode", || is_in_backup_mode(&server));
    server.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    );
    assert_failed(&site, backup, "backup mode");

    let standby = standby_of(&site, &server, install, "standby");
    catch_up(&server, &standby);
    site.write_config_of(&standby, "archiver = off\n");
    let before = site.backups().len();
    site.ok(&["backup", "main", "--fast-checkpoint", "--method", "files"]);
    let taken = site.backups().pop().expect("a backup");
    assert_eq!(
        (&taken["status"], &taken["from_standby"]),
        (&"DONE".into(), &true.into()),
        "{taken}"
    );
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    assert_sums_agree(&copy);
    copy.stop_and_assert_checksums();

    let backup = site.spawn(&SLOW);
    until("another backup is there", || site.backups().len() > before + 1);
    until("the standby is in backup mode", || is_in_backup_mode(&standby));
    standby.query("SELECT pg_promote()");
    assert_failed(&site, backup, "promoted");
}

fn only_the_files_of_the_server_itself_are_read(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let standby = standby_of(&site, &server, install, "standby");
    let refused = |conninfo: &str, streaming: &str, words: &[&str]| {
        let text = format!(
            "[barmanfs]\nrepository = {}\n[main]\nconninfo = {conninfo}\nstreaming_conninfo = {streaming}\nbackup_method = files\n",
            site.repository().display()
        );
        site.write_file("barmanfs.conf", text.as_bytes());
        site.barmanfs(&["backup", "main", "--fast-checkpoint"])
            .refused(1)
            .says(words);
    };
    // Of one cluster, but not the server whose files these are.
    refused(
        &standby.conninfo(),
        &server.conninfo(),
        &["is not the one that runs in", "postmaster.pid"],
    );
    server.query("CREATE ROLE limited LOGIN REPLICATION");
    let limited = server.conninfo().replace("user=postgres", "user=limited");
    refused(
        &server.conninfo(),
        &limited,
        &[
            "does not tell where its data directory is",
            "pg_read_all_settings",
        ],
    );
    server.query("GRANT pg_read_all_settings TO limited");
    refused(
        &limited,
        &server.conninfo(),
        &[
            "did not begin the backup",
            "GRANT EXECUTE ON FUNCTION pg_backup_start",
        ],
    );
    let moved = site.path("elsewhere");
    run(std::process::Command::new("mv").arg(&server.data).arg(&moved)).ok();
    refused(
        &server.conninfo(),
        &server.conninfo(),
        &["global/pg_control", "on the server's own host"],
    );
    run(std::process::Command::new("mv").arg(&moved).arg(&server.data)).ok();
    assert!(site.backups().iter().all(|backup| backup["status"] == "FAILED"));
    assert!(Path::new(&server.data).exists());
}

/// The kind: somebody has moved a part of the data directory to another disk and left a link, which the server follows and no
/// backup does.
fn data_behind_a_link_is_missing_in_no_backup(install: &'static Install) {
    let (site, mut server) = Site::with_server(install);
    server.query("CREATE TABLE moved AS SELECT generate_series(1, 1000) n");
    server.query("CHECKPOINT");
    let relation = server.query("SELECT pg_relation_filepath('moved')");
    let data = server.data.clone();
    let other = site.make_directory("other");
    site.sh(&format!("ln -s /etc '{}/beside'", data.display())).ok();
    for path in [relation.as_str(), "base/1", "pg_xact"] {
        let place = data.join(path).display().to_string();
        let moved = other.join("moved").display().to_string();
        server.stop("fast");
        site.sh(&format!("mv '{place}' '{moved}' && ln -s '{moved}' '{place}'"))
            .ok();
        let import = ["import", "main", "--data-directory", data.to_str().expect("text")];
        site.barmanfs(&import).refused(3).says(&[path, "is a link"]);
        server.start();
        for method in ["files", "postgres"] {
            let backup = ["backup", "main", "--fast-checkpoint", "--method", method];
            site.barmanfs(&backup).refused(1).says(&[path, "tablespace"]);
        }
        server.stop("fast");
        site.sh(&format!("rm '{place}' && mv '{moved}' '{place}'")).ok();
        server.start();
    }
    // A link beside the data is left out, and said once; so is the repository.
    let repository = site.repository().display().to_string();
    let within = data.join("within").display().to_string();
    site.sh(&format!(
        "mv '{repository}' '{within}' && ln -s '{within}' '{repository}'"
    ))
    .ok();
    let said = site
        .barmanfs(&["backup", "main", "--fast-checkpoint", "--method", "files"])
        .ok()
        .all();
    for left_out in ["beside is a link", "within is of barmanfs itself"] {
        assert_eq!(said.matches(left_out).count(), 1, "{said}");
    }
    let done = site
        .backups()
        .into_iter()
        .filter(|backup| backup["status"] == "DONE");
    assert_eq!(done.count(), 1);
}
