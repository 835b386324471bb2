//! Passive nodes: what a primary has of a server comes, whole and checked, and the primary is only read.

use crate::common::load::{fill, transact, transactions};
use crate::common::process::{Run, until};
use crate::common::registry::topic;
use crate::common::site::check_line;
use crate::common::sshd::Sshd;
use crate::common::tree::differences;
use crate::common::{Install, Mount, PgServer, Site};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

topic! {
    once what_the_primary_has_is_here_and_starts,
    once a_killed_sync_leaves_nothing_that_looks_whole,
    once the_packs_come_over_ssh_and_so_does_what_is_received,
    once cron_syncs_and_the_node_has_its_own_retention,
    once a_running_barman_is_followed,
    once a_barman_on_another_host_is_followed,
}

/// A node that follows the repository of a primary, with further lines in its section.
fn node_of(primary: &Site, lines: &str) -> Site {
    let node = Site::new();
    node.follow(primary, lines);
    node.init();
    node
}

fn node(lines: &str) -> Site {
    let node = Site::new();
    let config = format!(
        "[barmanfs]\nrepository = {}\n[main]\n{lines}\n",
        node.repository().display()
    );
    node.write_file("barmanfs.conf", config.as_bytes());
    node.init();
    node
}

#[track_caller]
fn sync(node: &Site) -> Value {
    let report = node.json(&["sync", "main"]);
    report["servers"][0].clone()
}

fn parsed(run: &Run) -> Value {
    serde_json::from_slice(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"))
}

/// Each backup is the same in `raw/` of both.
fn assert_equal(primary: &Site, node: &Site) {
    assert_eq!(node.backup_ids(), primary.backup_ids());
    let (left, right) = (Mount::for_all(primary), Mount::for_all(node));
    for id in primary.backup_ids() {
        let raw = format!("main/raw/{id}");
        let found = differences(&left.path(&raw), &right.path(&raw), &|_| false);
        assert_eq!(found, [""; 0], "{id}");
    }
    let wal = |mount: &Mount<'_>, site: &Site| site.checksums(&mount.path("main/wal"));
    assert_eq!(wal(&left, primary), wal(&right, node));
    drop((left, right));
    node.ok(&["verify"]);
}

/// All that a sync could change in a repository: names, sizes and times.
fn state(site: &Site) -> String {
    let script = "find . -name locks -prune -o -name '*.sqlite-*' -prune -o -type f -printf '%p %s %T@\\n' | LC_ALL=C sort";
    let script = format!("cd '{}' && {script}", site.repository().display());
    site.sh(&script).ok().text()
}

fn what_the_primary_has_is_here_and_starts(install: &'static Install) {
    let (primary, server) = Site::with_server(install);
    fill(&server, 1);
    primary.backup();
    transact(&server, 200);
    primary.backup();
    transact(&server, 200);
    server.archive_current_segment();
    let expected = transactions(&server);
    let before = state(&primary);
    let node = node_of(&primary, "");
    node.barmanfs(&["backup", "main"])
        .ok()
        .says(&["Skipping passive server 'main'"]);
    let first = sync(&node);
    assert_eq!(first["backups"].as_array().unwrap().len(), 2, "{first}");
    assert_eq!(first["problems"], serde_json::json!([]), "{first}");
    assert_eq!(state(&primary), before);
    assert_equal(&primary, &node);

    let again = sync(&node);
    assert_eq!(again["copied_bytes"], 0, "{again}");
    assert_eq!(again["wal_files"], 0, "{again}");
    transact(&server, 10);
    server.archive_current_segment();
    let wal = sync(&node);
    assert!(wal["wal_files"].as_u64().unwrap() > 0, "{wal}");
    assert!(
        wal["copied_bytes"].as_u64() < first["copied_bytes"].as_u64(),
        "{wal} {first}"
    );

    // The server is not asked, and all is well.
    drop(server);
    node.ok(&["cron"]);
    let checked = node.barmanfs(&["check", "main", "--json"]).ok();
    assert_eq!(check_line(&checked, "primary repository")["status"], "OK");
    assert_eq!(check_line(&checked, "sync with the primary")["status"], "OK");
    node.barmanfs(&["status", "main"])
        .ok()
        .says(&["Passive node: True"]);
    node.barmanfs(&["--format", "console", "list-servers"])
        .ok()
        .says(&["(Passive)"]);
    node.barmanfs(&["sync-backup", "main", "20010101T000000"])
        .refused(1)
        .says(&["20010101T000000 on the primary"]);
    let to = node.path("to");
    node.ok(&["restore", "main", "auto", to.to_str().unwrap()]);
    let mut copy = PgServer::on(install, &to);
    copy.start();
    copy.wait_until_promoted();
    assert!(transactions(&copy) >= expected);
    copy.stop("fast");
}

fn a_killed_sync_leaves_nothing_that_looks_whole(install: &'static Install) {
    let (primary, server) = Site::with_server(install);
    fill(&server, 2);
    primary.backup();
    transact(&server, 200);
    primary.backup();
    drop(server);
    let node = node_of(&primary, "");
    node.ok(&["sync-wals", "main"]);
    let mut killed = 0;
    for wait in [20_u64, 60, 120, 200, 300, 450, 700, 1000] {
        let mut running = node.spawn(&["sync", "main"]);
        sleep(Duration::from_millis(wait));
        let is_done = running.try_wait().unwrap().is_some();
        running.kill().unwrap();
        running.wait().unwrap();
        killed += usize::from(!is_done);
        let all = node.backups();
        assert!(all.iter().all(|backup| backup["status"] == "DONE"), "{all:?}");
        for backup in &all {
            node.ok(&["verify", "main", backup["id"].as_str().unwrap()]);
        }
    }
    assert!(killed > 1, "{killed}");
    sync(&node);
    assert_equal(&primary, &node);

    // A pack that is damaged on the primary is named, and nothing of it is taken.
    let other = node_of(&primary, "");
    let pack = primary.largest_pack(&[]);
    let good = fs::read(&pack).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0x40;
    fs::write(&pack, &bad).unwrap();
    let name = pack.file_name().unwrap().to_string_lossy().into_owned();
    let report = parsed(
        &other
            .barmanfs(&["sync", "main", "--json"])
            .refused(3)
            .says(&[&name]),
    );
    assert!(!report["servers"][0]["problems"].as_array().unwrap().is_empty());
    other.ok(&["verify"]);
    let checked = other.barmanfs(&["check", "main", "--json"]).refused(3);
    let line = check_line(&checked, "sync with the primary");
    assert!(line["hint"].as_str().unwrap().contains(&name), "{line}");
    fs::write(&pack, &good).unwrap();
    sync(&other);
    assert_equal(&primary, &other);
}

/// A directory with the program under its name, that has the configuration of this site: as on another host.
fn installed(primary: &Site) -> PathBuf {
    let directory = primary.make_directory("bin");
    let script = format!(
        "#!/bin/sh\nexec {} -c {} \"$@\"\n",
        primary.program().display(),
        primary.config().display()
    );
    primary.write_file("bin/barmanfs", script.as_bytes());
    primary
        .sh(&format!("chmod 755 {}/barmanfs", directory.display()))
        .ok();
    directory
}

fn the_packs_come_over_ssh_and_so_does_what_is_received(install: &'static Install) {
    let (primary, server) = Site::with_server(install);
    fill(&server, 1);
    primary.backup();
    let path = installed(&primary);
    let local = format!(
        "primary_ssh_command = env PATH={}:/usr/bin:/bin sh -c 'eval \"$1\"' sh\n",
        path.display()
    );
    let node_here = node(&local);
    let report = sync(&node_here);
    assert_eq!(report["backups"].as_array().unwrap().len(), 1, "{report}");
    assert_equal(&primary, &node_here);
    let checked = node_here.barmanfs(&["check", "main"]).text();
    assert!(checked.contains("ssh: OK (Barman primary node)"), "{checked}");

    // Through a real sshd, with the segment that is being received.
    let sshd = Sshd::start(&primary);
    let there = format!(
        "primary_ssh_command = {} env PATH={}:/usr/bin:/bin\nsync_partial = on\n",
        sshd.bare(),
        path.display()
    );
    let node_there = node(&there);
    primary.write_config_of(
        &server,
        "streaming_archiver = on\nslot_name = node\ncreate_slot = auto\n",
    );
    let mut receiver = primary.spawn(&["receive-wal", "main"]);
    let row = "CREATE TABLE received AS SELECT 1 AS n";
    server.query(row);
    until("all of it is received", || {
        let behind = "SELECT pg_current_wal_flush_lsn() = flush_lsn FROM pg_stat_replication";
        server.query(behind) == "t"
    });
    // What comes while the node is compared would make the two differ.
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    let report = sync(&node_there);
    assert_eq!(report["partial_segments"], 1, "{report}");
    assert_equal(&primary, &node_there);
    let to = node_there.path("to");
    node_there.ok(&["restore", "main", "auto", to.to_str().unwrap()]);
    let mut copy = PgServer::on(install, &to);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SELECT n FROM received"), "1");
    copy.stop("fast");

    // What is wrong over there is told, and remembered.
    let nobody = node("primary_ssh_command = sh -c 'echo no such host >&2; exit 255' sh\n");
    nobody
        .barmanfs(&["sync", "main"])
        .refused(1)
        .says(&["The connection to the other host has failed: no such host"]);
    nobody
        .barmanfs(&["sync-info", "main"])
        .ok()
        .says(&["no such host"]);
    let old = primary.write_file("bin/barmanfs", b"#!/bin/sh\necho 'no such command' >&2; exit 2\n");
    primary.sh(&format!("chmod 755 {}", old.display())).ok();
    node_here
        .barmanfs(&["sync", "main"])
        .refused(1)
        .says(&["no such command"]);
    let checked = node_here.barmanfs(&["check", "main", "--json"]).refused(3);
    assert_eq!(check_line(&checked, "ssh")["status"], "FAILED");
}

fn cron_syncs_and_the_node_has_its_own_retention(install: &'static Install) {
    let (primary, server) = Site::with_server(install);
    primary.backup();
    let node = node_of(&primary, "retention_policy = REDUNDANCY 2\n");
    let cron_until = |expected: &[String]| {
        until("cron has synced and applied the policy", || {
            node.ok(&["cron"]);
            node.backup_ids() == expected
        });
    };
    cron_until(&primary.backup_ids());
    for _ in 0..2 {
        server.query("SELECT pg_switch_wal()");
        primary.backup();
    }
    let newest = primary.backup_ids()[1..].to_vec();
    cron_until(&newest);
    // What the policy deleted, or would delete, does not come back.
    let report = sync(&node);
    assert_eq!(report["backups"], serde_json::json!([]), "{report}");
    assert_eq!(node.backup_ids(), newest);
    // What the primary deletes stays here.
    let oldest = primary.backup_ids()[1].clone();
    primary.ok(&["delete", "main", &oldest]);
    primary.ok(&["sweep"]);
    primary.ok(&["sweep"]);
    sync(&node);
    assert_eq!(node.backup_ids(), newest);
    node.ok(&["verify"]);
}

fn a_running_barman_is_followed(install: &'static Install) {
    let follows = |home: &Path| node(&format!("primary_home = {}\n", home.display()));
    crate::import_barman::follow(install, &follows);
}

fn a_barman_on_another_host_is_followed(install: &'static Install) {
    let follows = |command: &str| {
        node(&format!(
            "primary_ssh_command = {command}\nprimary_kind = barman\n"
        ))
    };
    crate::import_barman::follow_over_ssh(install, &follows);
}
