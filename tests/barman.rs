//! A link named `barman` works for what was written for Barman: scripts, Nagios, the Prometheus exporter. The kind: a key
//! that a program reads is not there, or an exit code means something else.
//!
//! `barman/measured.json` has the keys and types that Barman 3.19.1 printed for a server like the one here.

use crate::common::process::{Run, run, until};
use crate::common::registry::topic;
use crate::common::user::command;
use crate::common::{Install, Mount, Site};
use crate::json_shape::schema::type_of;
use serde_json::{Value, json};
use std::collections::BTreeSet;

mod beside;
mod fortnight;
use beside::a_site_of_barman_sees_what_it_saw;
use fortnight::two_weeks_of_backups_are_judged_as_by_barman;

topic! {
    alone a_site_of_barman_sees_what_it_saw,
    once two_weeks_of_backups_are_judged_as_by_barman,
    once json_has_barmans_shapes,
    once lines_that_scripts_match_are_barmans,
    once monitoring_that_was_written_for_barman_works,
    once a_configuration_of_barman_is_found_and_obeyed,
    once a_backup_has_a_name,
    alone barmans_command_line_is_understood,
}

/// Checks that Barman and barmanfs both have.
const CHECKS: &[&str] = &[
    "archive_command",
    "archive_mode",
    "archiver_errors",
    "backup_maximum_age",
    "backup_minimum_size",
    "compression_settings",
    "continuous_archiving",
    "directories",
    "failed_backups",
    "minimum_redundancy_requirements",
    "postgresql",
    "postgresql_streaming",
    "superuser_or_standard_user_with_backup_privileges",
    "systemid_coherence",
    "wal_level",
    "wal_size",
];

/// Runs the program through a link named `barman`.
fn barman(site: &Site, line: &str) -> Run {
    let link = site.path("barman");
    if !link.exists() {
        std::os::unix::fs::symlink(site.program(), &link).expect("Cannot make a link");
    }
    run(command(link, &site.path(""))
        .arg("-c")
        .arg(site.config())
        .args(line.split_whitespace()))
}

/// The same with the configuration that is found by itself.
fn barman_of_the_host(site: &Site, line: &str) -> Run {
    barman(site, "-v").ok();
    run(command(site.path("barman"), &site.path("")).args(line.split_whitespace()))
}

#[track_caller]
fn barman_json(site: &Site, line: &str) -> Value {
    let run = barman(site, &format!("-f json {line}"));
    serde_json::from_slice(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"))
}

fn measured() -> Value {
    serde_json::from_str(include_str!("barman/measured.json")).expect("barman/measured.json is JSON")
}

/// The same keys at every place, with the same types. `free` are the keys whose presence or type depends on the site.
#[track_caller]
fn assert_shape(place: &str, found: &Value, measured: &Value, free: &[&str]) {
    match (found, measured) {
        (Value::Object(found), Value::Object(measured)) => {
            let keys = |fields: &serde_json::Map<String, Value>| -> BTreeSet<String> {
                let keys = fields.keys().filter(|key| !free.contains(&key.as_str()));
                keys.cloned().collect()
            };
            assert_eq!(keys(found), keys(measured), "{place}");
            for (key, value) in found.iter().filter(|(key, _)| !free.contains(&key.as_str())) {
                assert_shape(&format!("{place}.{key}"), value, &measured[key], free);
            }
        }
        (Value::Array(found), Value::Array(measured)) => {
            for (value, measured) in found.iter().zip(measured) {
                assert_shape(&format!("{place}[]"), value, measured, free);
            }
        }
        (found, Value::String(measured)) => assert_eq!(type_of(found), measured, "{place}: {found}"),
        (found, measured) => panic!("{place}: {found} instead of {measured}"),
    }
}

fn json_has_barmans_shapes(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    // A backup waits for its WAL in the archive only where WAL has been archived.
    server.archive_current_segment();
    site.ok(&["backup", "main", "--fast-checkpoint", "--name", "nightly"]);
    server.query("CREATE TABLE a AS SELECT generate_series(1, 1000)");
    server.archive_current_segment();
    let newest = site.backup();
    server.archive_current_segment();
    let measured = measured();
    // What Barman had as text or number by what there is to say; and what is not known here.
    let free = [
        "wal_rate",
        "wal_rate_per_second",
        "compression_ratio",
        "wal_compression_ratio",
        "pgdata_directory",
        "summarize_wal",
    ];
    for (line, name) in [
        ("list-servers", "list-servers"),
        ("list-server", "list-servers"),
        ("list-backups main --minimal", "list-backups --minimal"),
        ("show-backup main nightly", "show-backup"),
        ("show-backup main nosuch", "unknown backup"),
    ] {
        assert_shape(line, &barman_json(&site, line), &measured[name], &free);
    }
    let listed = barman_json(&site, "list-backup main");
    assert_eq!(
        listed["main"][0]["backup_id"],
        json!(newest),
        "the newest first: {listed}"
    );
    let oldest = json!({"main": [listed["main"][1]]});
    assert_shape("list-backup", &oldest, &measured["list-backups"], &[]);
    for backup in listed["main"].as_array().unwrap() {
        assert!(backup["wal_size_bytes"].as_u64().unwrap() > 0, "{backup}");
    }
    let shown = barman_json(&site, "show-backup main oldest");
    assert_eq!(shown["main"]["catalog_information"]["next_backup"], json!(newest));
    assert_eq!(shown["main"]["base_backup_information"]["wal_num"], 1, "{shown}");
    // Each check has its state, and those that Barman and barmanfs have in common are there.
    let checked = barman_json(&site, "check main");
    for (name, check) in checked["main"].as_object().unwrap() {
        assert_shape(name, check, &json!({"hint": "string", "status": "string"}), &[]);
        assert_eq!(check["status"], "OK", "{name}: {check}");
    }
    for name in CHECKS {
        assert!(
            measured["check"]["main"][name].is_object(),
            "Barman has no {name}"
        );
        assert!(checked["main"][name].is_object(), "{name} is not in {checked}");
    }
    // All facts of Barman are there, as texts.
    let status = barman_json(&site, "status main");
    for (key, fact) in status["main"].as_object().unwrap() {
        assert_shape(
            key,
            fact,
            &json!({"description": "string", "message": "string"}),
            &[],
        );
    }
    for key in measured["status"]["main"]
        .as_object()
        .unwrap()
        .keys()
        .filter(|key| *key != "disabled")
    {
        assert!(status["main"][key].is_object(), "{key} is not in {status}");
    }
    assert_eq!(status["main"]["last_backup"]["message"], json!(newest));
    assert_shown_as_barman_shows(&site, &measured["show-servers"]["main"]);
    // A policy and a mark are told where Barman tells them.
    let config = std::fs::read_to_string(site.config()).unwrap();
    site.write_file(
        "barmanfs.conf",
        (config + "retention_policy = REDUNDANCY 1\n").as_bytes(),
    );
    let states = || {
        let listed = barman_json(&site, "list-backups main");
        [0, 1].map(|place| listed["main"][place]["retention_status"].clone())
    };
    assert_eq!(states(), [json!("-"), json!("OBSOLETE")]);
    let shown = barman_json(&site, "show-backup main oldest");
    assert_eq!(
        shown["main"]["catalog_information"]["retention_policy"],
        "OBSOLETE"
    );
    assert_shape(
        "keep",
        &barman_json(&site, "keep --status main oldest"),
        &measured["keep --status"],
        &[],
    );
    barman(&site, "keep --target standalone main oldest").ok();
    assert_eq!(states(), [json!("-"), json!("KEEP:STANDALONE")]);
    let kept = barman_json(&site, "keep -s main oldest");
    assert_eq!(kept["main"]["keep_status"]["message"], "standalone");
    barman(&site, "delete main oldest").refused(1);
    barman(&site, "keep --release main oldest").ok();
    // Everything else is messages.
    let files = barman_json(&site, "list-files main latest");
    let lines = files["_INFO"].as_array().unwrap();
    assert!(
        lines
            .iter()
            .any(|line| line.as_str().unwrap().ends_with("PG_VERSION")),
        "{files}"
    );
    let deleted = barman_json(&site, "delete main oldest");
    let said = deleted["_INFO"].to_string();
    assert!(
        said.contains("Deleted backup") && said.contains("for server main"),
        "{deleted}"
    );
    assert_eq!(
        barman_json(&site, "archive-wal main")["_INFO"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

fn lines_that_scripts_match_are_barmans(install: &'static Install) {
    let (site, _server) = Site::with_server(install);
    let said = barman(
        &site,
        "backup main --name nightly --immediate-checkpoint -j 2 --reuse-backup=link",
    )
    .ok();
    for line in [
        "Backup completed (start time: ",
        "Backup size: ",
        "Backup start at LSN: 0/",
    ] {
        assert!(
            said.text().lines().any(|said| said.starts_with(line)),
            "{line}: {said}"
        );
    }
    let newest = site.backup();
    let listed = barman(&site, "list-backup main").ok().text();
    let lines: Vec<&str> = listed.lines().collect();
    let begins = format!("main {newest} - F - ");
    assert!(lines[0].starts_with(&begins), "{listed}");
    assert!(lines[1].contains(" 'nightly' - F - "), "{listed}");
    for line in &lines {
        let parts: Vec<&str> = line.split(" - ").collect();
        assert!(
            parts[3].starts_with("Size: ") && parts[4].starts_with("WAL Size: "),
            "{line}"
        );
    }
    assert_eq!(
        barman(&site, "list-backups main --minimal")
            .ok()
            .text()
            .lines()
            .next(),
        Some(newest.as_str())
    );
    assert_eq!(barman(&site, "list-servers").ok().text(), "main - Test");
    assert_eq!(barman(&site, "list-servers --minimal").ok().text(), "main");
    let checked = barman(&site, "check main").ok().text();
    assert!(checked.starts_with("Server main:\n\t"), "{checked}");
    assert!(
        checked
            .lines()
            .any(|line| line == "\tarchive_mode: OK" || line.starts_with("\tarchive_mode: OK ("))
    );
    let shown = barman(&site, "show-backup main latest").ok().text();
    assert!(shown.starts_with(&format!("Backup {newest}:\n")), "{shown}");
    assert!(
        shown
            .lines()
            .any(|line| line == "  Status                 : DONE"),
        "{shown}"
    );
    assert!(
        shown
            .lines()
            .any(|line| line == "    Backup Method        : postgres"),
        "{shown}"
    );
}

fn monitoring_that_was_written_for_barman_works(install: &'static Install) {
    let (site, mut server) = Site::with_server(install);
    server.archive_current_segment();
    site.backup();
    server.archive_current_segment();
    // Nagios: the first line, and the exit codes of a plugin.
    let nagios = barman(&site, "check all --nagios").ok().text();
    assert!(nagios.starts_with("BARMAN OK - "), "{nagios}");
    // The Prometheus exporter: these calls, these keys.
    let version = barman(&site, "-v").ok().text();
    let numbers: Vec<u32> = version
        .split_whitespace()
        .next()
        .unwrap()
        .split('.')
        .map(|number| number.parse().unwrap())
        .collect();
    assert!(numbers >= vec![2, 9], "{version}");
    let servers = barman_json(&site, "list-server");
    for name in servers.as_object().unwrap().keys() {
        let status = barman_json(&site, &format!("status {name}"));
        assert_ne!(status[name]["first_backup"]["message"], "None", "{status}");
        let backups = barman_json(&site, &format!("list-backup {name}"));
        let newest = &backups[name][0];
        assert_eq!(newest["status"], "DONE");
        assert!(newest["size_bytes"].is_u64() && newest["wal_size_bytes"].is_u64());
        let id = newest["backup_id"].as_str().unwrap();
        let shown = barman_json(&site, &format!("show-backup {name} {id}"));
        assert!(
            shown[name]["base_backup_information"]["copy_time_seconds"].is_f64(),
            "{shown}"
        );
    }
    server.stop("fast");
    let checked = barman(&site, "-f json check main").refused(1);
    let checked: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(checked["main"]["postgresql"]["status"], "FAILED", "{checked}");
    let nagios = barman(&site, "check main --nagios").refused(2).text();
    assert!(nagios.starts_with("BARMAN CRITICAL - "), "{nagios}");
    // It is red, too, where the check itself cannot be run.
    site.write_file("barmanfs.conf", b"[barmanfs\n");
    let nagios = barman(&site, "check main --nagios").refused(2).text();
    assert!(nagios.starts_with("BARMAN CRITICAL - "), "{nagios}");
}

/// A site's files stay as they are, but for the key `repository`.
fn a_configuration_of_barman_is_found_and_obeyed(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    server.archive_current_segment();
    let conninfo = server.conninfo();
    let text = format!(
        "[barman]\nbarman_home = /var/lib/barman\nlog_level = INFO\nrepository = {}\ncompression = gzip\n\
         retention_policy = RECOVERY WINDOW OF 7 DAYS\n\n[main]\ndescription = \"Our main server\"\n\
         conninfo = {conninfo}\nstreaming_conninfo = {conninfo}\nbackup_method = postgres\narchiver = on\n\
         last_backup_maximum_age = 4 DAYS\nminimum_redundancy = 1\n",
        site.repository().display()
    );
    site.write_file(".barman.conf", text.as_bytes());
    std::fs::remove_file(site.config()).unwrap();
    let config = site.path(".barman.conf");
    std::fs::hard_link(&config, site.config()).unwrap();
    assert_eq!(
        barman_of_the_host(&site, "list-servers").ok().text(),
        "main - Our main server"
    );
    let red = barman_of_the_host(&site, "check main --nagios").refused(2).text();
    assert!(red.starts_with("BARMAN CRITICAL - "), "no backup yet: {red}");
    let taken = barman_of_the_host(&site, "backup main").ok().text();
    assert!(taken.contains("\nBackup completed (start time: "), "{taken}");
    server.archive_current_segment();
    // The line of Barman's packages in /etc/cron.d.
    barman_of_the_host(&site, "-q cron").ok();
    let green = barman_of_the_host(&site, "check all --nagios").ok().text();
    assert!(
        green.starts_with("BARMAN OK - ") && green.contains("|main="),
        "{green}"
    );
    barman_of_the_host(&site, "delete main latest")
        .refused(1)
        .says(&["minimum"]);
}

fn a_backup_has_a_name(install: &'static Install) {
    let (site, _server) = Site::with_server(install);
    let take = |name: &str| site.ok(&["backup", "main", "--fast-checkpoint", "--name", name]);
    take("before_upgrade");
    let first = site.backup_ids().remove(0);
    take("weekly");
    let shown = |word: &str| site.json(&["show-backup", "main", word])["id"].clone();
    assert_eq!(shown("before_upgrade"), json!(first));
    // The newest of several counts.
    take("before_upgrade");
    let newest = site.backup_ids().pop().unwrap();
    assert_eq!(shown("before_upgrade"), json!(newest));
    assert_eq!(
        [shown("latest-full"), shown("last")],
        [json!(newest), json!(newest)]
    );
    let mount = Mount::new(&site);
    let by_name = mount.path("main/by-name");
    assert_eq!(site.list(&by_name), ["before_upgrade", "weekly"]);
    let label = |id: &str, view: &str| {
        let path = mount.path(&format!("main/{view}/{id}/backup_label"));
        site.sh(&format!("cat '{}'", path.display())).stdout
    };
    assert!(!label(&newest, "raw").is_empty());
    assert_eq!(label("before_upgrade", "by-name"), label(&newest, "raw"));
    site.ok(&["delete", "main", "before_upgrade", "--force"]);
    until("the name moves on", || {
        label("before_upgrade", "by-name") == label(&first, "raw")
    });
    mount.unmount();
    assert_eq!(shown("before_upgrade"), json!(first));
    for name in ["first", "auto", "20261120T101500", "a b", "../x", ""] {
        site.barmanfs(&["backup", "main", "--name", name])
            .refused(2)
            .says(&["not allowed"]);
    }
}

fn barmans_command_line_is_understood() {
    let site = Site::with_repository();
    for line in [
        "archive-wal main",
        "check-backup main latest",
        "rebuild-xlogdb main",
        "lock-directory-cleanup",
        "generate-manifest main latest",
        "-q -d --log-level debug --color never list-servers",
        "help backup",
        "list-backup all --minimal",
    ] {
        barman(&site, line).ok();
    }
    // 1 for what cannot be done, 2 for words that are not understood.
    barman(&site, "list-backups nobody").refused(1).says(&["nobody"]);
    barman(&site, "archive-wal nobody").refused(1).says(&["nobody"]);
    barman(&site, "backup --nonsense").refused(2);
    barman(&site, "check main").refused(1);
    let unknown = barman(&site, "-f json list-backups nobody").refused(1);
    let unknown: Value = serde_json::from_slice(&unknown.stdout).unwrap();
    assert_shape("unknown server", &unknown, &measured()["unknown backup"], &[]);
    // A warning has its place, and the results stay where they are.
    let config = std::fs::read_to_string(site.config()).unwrap();
    site.write_file("barmanfs.conf", (config + "no_such_key = 1\n").as_bytes());
    let warned = barman_json(&site, "check main");
    assert!(warned["_WARNING"].to_string().contains("no_such_key"), "{warned}");
    assert!(warned["main"].is_object(), "{warned}");
    // Under its own name the program is itself.
    site.barmanfs(&["list-backups", "nobody"]).refused(2);
    site.barmanfs(&["check-backup", "main"]).refused(2);
    site.barmanfs(&["-f", "json", "list-backups", "--json"])
        .refused(2);
}

/// Each key that Barman shows of a server is there, with a value of the same type or none.
#[track_caller]
fn assert_shown_as_barman_shows(site: &Site, measured: &Value) {
    // About programs that are not used here, and counters that Barman computes of itself.
    let is_barmans_own = |key: &str| {
        key.starts_with("pg_basebackup_")
            || matches!(
                key,
                "is_archiving" | "current_archived_wals_per_second" | "stats_reset"
            )
    };
    let shown = barman_json(site, "show-server main");
    let found = shown["main"].as_object().expect("a server");
    for (key, type_there) in measured.as_object().expect("keys") {
        if is_barmans_own(key) {
            continue;
        }
        let value = found
            .get(key)
            .unwrap_or_else(|| panic!("{key} is not in {shown}"));
        let is_same = match type_there {
            Value::Array(_) => value.is_array(),
            // `auto`, which Barman does not have.
            _ if key == "archiver" => true,
            other => value.is_null() || other == "null" || *other == type_of(value),
        };
        assert!(is_same, "{key}: {value} instead of {type_there}");
    }
    let text = barman(site, "show-server main").ok().text();
    let keys: Vec<&str> = text
        .lines()
        .skip(1)
        .map(|line| line.trim_start().split(':').next().unwrap_or_default())
        .collect();
    assert!(
        text.starts_with("Server main:\n\tactive: True\n\tactive_model: None\n"),
        "{text}"
    );
    assert!(
        keys.is_sorted() && keys.contains(&"incoming_wals_directory"),
        "{keys:?}"
    );
}
