//! Backups that are known to be bad. The kind: `verify` or a boot test finds out that a backup is not reliable, and
//! everything else still counts it: `delete` removes the last good backup because of it, and `check` reports OK.

use crate::common::process::{Run, run};
use crate::common::registry::topic;
use crate::common::{Install, PgServer, Site};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

topic! {
    once a_damaged_backup_does_not_count_as_redundancy,
    once check_fails_while_the_newest_backup_is_damaged,
    once check_fails_while_the_newest_backup_did_not_boot,
    once a_backup_from_the_future_is_not_recent,
    once a_file_time_in_the_future_is_not_recent,
}

/// A site with a good backup and a newer, damaged one. Nothing has detected the damage yet.
fn site_with_a_damaged_backup(install: &'static Install) -> (Site, PgServer, String, String) {
    let (site, server) = Site::with_server(install);
    let good = site.backup();
    server.query(
        "CREATE TABLE noise AS SELECT n, sha512(random()::text::bytea) FROM generate_series(1, 40000) n",
    );
    let bad = damaged_backup(&site, &server);
    server.archive_current_segment();
    (site, server, good, bad)
}

/// Takes a backup, and overwrites 40 kB of the largest pack that it adds.
fn damaged_backup(site: &Site, server: &PgServer) -> String {
    // So that the largest pack is not one of WAL.
    server.archive_current_segment();
    let known = site.packs();
    let id = site.backup();
    let file = OpenOptions::new()
        .write(true)
        .open(site.largest_pack(&known))
        .unwrap();
    file.write_all_at(&[0x5a; 40_000], 100_000).unwrap();
    id
}

/// The status and the hint of one line of `check --json`.
#[track_caller]
fn check_line(checked: &Run, name: &str) -> (String, String) {
    let line = crate::common::site::check_line(checked, name);
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("hint"))
}

fn a_damaged_backup_does_not_count_as_redundancy(install: &'static Install) {
    let (site, server, good, bad) = site_with_a_damaged_backup(install);
    // The damage is not known yet.
    site.ok(&["delete", "main", "oldest", "--dry-run"]);
    site.barmanfs(&["verify"]).refused(3).says(&[&bad]);

    for more in [&[][..], &["--dry-run"]] {
        site.barmanfs(&[&["delete", "main", "oldest"], more].concat())
            .refused(1)
            .says(&["no complete backup would be left", &bad, "damaged", "--force"]);
    }
    let dry = site
        .barmanfs(&["delete", "main", "oldest", "--dry-run", "--json"])
        .refused(1);
    let dry: Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert_eq!(dry["before"]["done"], 1, "{dry}");
    assert_eq!(dry["before"]["doubtful"], 1, "{dry}");
    assert_eq!(dry["after"]["done"], 0, "{dry}");
    assert_eq!(dry["after"]["newest"], Value::Null, "{dry}");
    assert_eq!(site.backup_ids(), [good.clone(), bad.clone()]);

    // It does not count for the minimum either, so deleting it does not affect the minimum.
    site.write_config_of(&server, "minimum_redundancy = 1\n");
    site.barmanfs(&["delete", "main", "oldest", "--force"])
        .refused(1)
        .says(&["minimum_redundancy is 1", "0 complete would be left"]);
    let checked = site.barmanfs(&["check", "main", "--json"]);
    assert_eq!(check_line(&checked, "minimum redundancy requirements").0, "OK");
    site.write_config_of(&server, "minimum_redundancy = 2\n");
    let checked = site.barmanfs(&["check", "main", "--json"]);
    assert_eq!(
        check_line(&checked, "minimum redundancy requirements").0,
        "FAILED"
    );
    site.write_config_of(&server, "minimum_redundancy = 1\n");
    site.barmanfs(&["delete", "main", &bad])
        .ok()
        .says(&["Left: 1 complete backup to recover from", &good]);
    assert_eq!(site.backup_ids(), [good]);
}

fn check_fails_while_the_newest_backup_is_damaged(install: &'static Install) {
    const NAME: &str = "damage of backups";
    let (site, server, good, bad) = site_with_a_damaged_backup(install);
    let checked = site.barmanfs(&["check", "main", "--json"]).ok();
    assert_eq!(check_line(&checked, NAME).0, "OK");
    site.barmanfs(&["verify"]).refused(3);

    let remedy = [NAME, &bad, "verify main", "backup main --incremental never"];
    site.barmanfs(&["check", "main"]).refused(3).says(&remedy);
    site.barmanfs(&["check", "main", "--nagios"])
        .refused(2)
        .says(&[NAME]);
    let checked = site.barmanfs(&["check", "main", "--json"]).refused(3);
    assert_eq!(check_line(&checked, NAME).0, "FAILED");

    let listed = site.ok(&["list-backups", "main"]);
    let line = |id: &str| listed.lines().find(|line| line.contains(id)).unwrap().to_owned();
    assert!(line(&bad).contains("damaged"), "{listed}");
    assert!(!line(&good).contains("damaged"), "{listed}");
    let listed: Vec<Value> = site
        .backups()
        .iter()
        .map(|backup| backup["damaged"].clone())
        .collect();
    assert_eq!(listed, [json!(false), json!(true)]);
    assert_eq!(site.json(&["show-backup", "main", &bad])["damaged"], true);
    assert_eq!(site.json(&["show-backup", "main", &good])["damaged"], false);
    site.barmanfs(&["show-backup", "main", &bad])
        .ok()
        .says(&["Damage", &format!("verify main {bad}")]);

    let instead = format!("now,backup={good}");
    site.barmanfs(&["explain", "main", "now"])
        .ok()
        .says(&["damaged", &bad, &instead]);
    let explained = site.json(&["explain", "main", "now"]);
    assert_eq!(explained["damaged"], true, "{explained}");
    assert!(explained["notes"].to_string().contains(&instead), "{explained}");
    let explained = site.json(&["explain", "main", &instead]);
    assert_eq!(explained["damaged"], false, "{explained}");

    // The next full backup stores the damaged data again: then both backups are whole, and the earlier result is not
    // reported any more.
    site.ok(&["backup", "main", "--fast-checkpoint", "--incremental", "never"]);
    server.archive_current_segment();
    let checked = site.barmanfs(&["check", "main", "--json"]).ok();
    assert_eq!(check_line(&checked, NAME).0, "OK");

    // If an older backup is damaged for good, that is a warning.
    server.query("DROP TABLE noise");
    server.query(
        "CREATE TABLE more AS SELECT n, sha512(random()::text::bytea) FROM generate_series(1, 40000) n",
    );
    let bad = damaged_backup(&site, &server);
    server.query("DROP TABLE more");
    site.barmanfs(&["verify", "main", &bad]).refused(3);
    site.ok(&["backup", "main", "--fast-checkpoint", "--incremental", "never"]);
    server.archive_current_segment();
    let checked = site.barmanfs(&["check", "main", "--json"]);
    let (status, hint) = check_line(&checked, NAME);
    assert_eq!(status, "WARNING", "{checked}");
    assert!(hint.contains(&bad), "{hint}");
    // The index of the damage can be deleted.
    site.ok(&["rebuild-catalog"]);
    let checked = site.barmanfs(&["check", "main", "--json"]);
    assert_eq!(check_line(&checked, NAME).0, "WARNING", "{checked}");
    site.ok(&["delete", "main", &bad]);
    let checked = site.barmanfs(&["check", "main", "--json"]).ok();
    assert_eq!(check_line(&checked, NAME).0, "OK");
}

fn check_fails_while_the_newest_backup_did_not_boot(install: &'static Install) {
    const NAME: &str = "boot tests";
    let (site, server) = Site::with_server(install);
    let first = site.backup();
    let second = site.backup();
    server.archive_current_segment();
    let checked = site.barmanfs(&["check", "main", "--json"]).ok();
    assert_eq!(check_line(&checked, NAME).0, "OK");
    let boot = |id: &str, sql: &str| {
        let file = site.write_file("check.sql", sql.as_bytes());
        let bindir = install.bindir.to_str().unwrap();
        let words = [
            "verify",
            "main",
            id,
            "--boot",
            "--bindir",
            bindir,
            "--sql",
            file.to_str().unwrap(),
        ];
        run(site
            .barmanfs_command(&words)
            .env("TMPDIR", site.make_directory("tmp")))
    };
    boot(&second, "SELECT * FROM nowhere;\n").refused(3);
    site.barmanfs(&["check", "main"])
        .refused(3)
        .says(&[NAME, &second, "show-backup main", "--boot"]);
    let checked = site.barmanfs(&["check", "main", "--json"]).refused(3);
    assert_eq!(check_line(&checked, NAME).0, "FAILED");
    site.barmanfs(&["check", "main", "--nagios"])
        .refused(2)
        .says(&[NAME]);
    site.barmanfs(&["explain", "main", "now"])
        .ok()
        .says(&["boot test", &format!("now,backup={first}")]);
    site.barmanfs(&["delete", "main", &first]).refused(1).says(&[
        "no complete backup would be left",
        &second,
        "boot test",
    ]);
    // Only an older backup is affected.
    site.backup();
    server.archive_current_segment();
    let checked = site.barmanfs(&["check", "main", "--json"]);
    assert_eq!(check_line(&checked, NAME).0, "WARNING", "{checked}");
    // The newest test of a backup counts.
    boot(&second, "SELECT 1;\n").ok();
    let checked = site.barmanfs(&["check", "main", "--json"]).ok();
    assert_eq!(check_line(&checked, NAME).0, "OK");
}

fn a_backup_from_the_future_is_not_recent(install: &'static Install) {
    const NAME: &str = "backup maximum age";
    let (site, server) = Site::with_server(install);
    site.in_days(300, "backup main --fast-checkpoint").ok();
    server.archive_current_segment();
    for limit in ["", "last_backup_maximum_age = 1 DAY\n"] {
        site.write_config_of(&server, limit);
        let (status, hint) = check_line(&site.in_days(40, "check main --json"), NAME);
        assert_eq!(status, "WARNING", "{hint}");
        assert!(hint.contains("future"), "{hint}");
    }
    let (status, hint) = check_line(&site.in_days(300, "check main --json"), NAME);
    assert_eq!(status, "OK", "{hint}");
}

fn a_file_time_in_the_future_is_not_recent(install: &'static Install) {
    const NAME: &str = "waiting for archive_command";
    let (site, server) = Site::with_server(install);
    site.backup();
    server.archive_current_segment();
    server.query("ALTER SYSTEM SET archive_command = '/bin/false'");
    server.query("SELECT pg_reload_conf()");
    std::thread::sleep(std::time::Duration::from_secs(1));
    server.query("CREATE TABLE written AS SELECT generate_series(1, 1000) n; SELECT pg_switch_wal()");
    let checked = site.barmanfs(&["check", "main", "--json"]);
    assert_eq!(check_line(&checked, NAME).0, "OK", "{checked}");
    // As after the server's clock was set back.
    site.sh(&format!(
        "touch -d '3 days' '{}'/pg_wal/archive_status/*.ready",
        server.data.display()
    ))
    .ok();
    let checked = site.barmanfs(&["check", "main", "--json"]);
    assert_ne!(check_line(&checked, NAME).0, "OK", "{checked}");
}
