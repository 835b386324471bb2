//! JSON for programs has one shape. The kind: a key that is only sometimes there, a time with a varying number of
//! digits, a list here and an object there, so that a program works until the day it matters.
//!
//! Every command with `--json` is run with nothing stored and with much, and the files of a mount are read, too. Each
//! document agrees with its schema in `docs/schema`, and `docs/json.md` has the keys of the schemas, see [`schema`].

pub(crate) mod schema;

use crate::common::load::fill;
use crate::common::process::{Run, run};
use crate::common::registry::topic;
use crate::common::user::command;
use crate::common::{Install, Mount, PgServer, Site};
use barmanfs_pg::TimestampMicros;
use schema::Documents;
use serde_json::Value;

topic! {
    once every_document_agrees_with_its_schema,
    alone an_error_is_a_document_too,
}

fn every_document_agrees_with_its_schema(install: &'static Install) {
    let mut shape = Documents::default();
    let (site, server) = Site::with_server(install);
    for words in [
        &["list-servers"][..],
        &["show-servers", "main"],
        &["status", "main"],
        &["check-wal-archive", "main"],
        &["list-backups"],
        &["stats"],
        &["timeline", "main"],
        &["explain", "main", "now"],
        &["clone", "list"],
        &["check", "main"],
        &["config", "check"],
        &["verify"],
        &["retention", "main"],
        &["sweep"],
        &["version"],
        &["quarantine", "main", "list"],
        &["history", "main", "list"],
        &["index-wal", "main"],
        &["import", "main", "--pg-basebackup", "nothing", "--dry-run"],
    ] {
        take(&site, words, &mut shape);
    }
    fill(&server, 1);
    server.archive_current_segment();
    take(
        &site,
        &["backup", "main", "--fast-checkpoint", "--label", "a"],
        &mut shape,
    );
    server.query("SELECT pg_create_restore_point('here')");
    server.archive_current_segment();
    take(&site, &["backup", "main", "--fast-checkpoint"], &mut shape);
    server.archive_current_segment();
    let mount = Mount::new(&site);
    site.ok(&["clone", "create", "main", "test1"]);
    for words in [
        &["list-servers"][..],
        &["show-servers", "main"],
        &["status", "main"],
        &["replication-status", "main"],
        &["list-processes", "main"],
        &["switch-wal", "main"],
        &["check-wal-archive", "main"],
        &["list-backups"],
        &["show-backup", "main", "latest"],
        &["retention", "main"],
        &[
            "keep",
            "main",
            "oldest",
            "--target",
            "full",
            "--reason",
            "a",
            "--until",
            "2090-01-01 00:00Z",
        ],
        &["retention", "main"],
        &["list-backups"],
        &["keep", "main", "oldest", "--release"],
        &["list-files", "main", "latest", "--target", "full"],
        &["stats"],
        &["timeline", "main"],
        &["explain", "main", "now"],
        &["explain", "main", "2020-01-01 00:00:00Z"],
        &["clone", "list"],
        &["check", "main"],
        &["diagnose"],
        &["config", "check"],
        &["verify"],
        &["delete", "main", "latest", "--dry-run"],
        &["retention", "main"],
        &["keep", "main", "latest", "--status"],
        &[
            "keep",
            "main",
            "latest",
            "--target",
            "full",
            "--reason",
            "a",
            "--until",
            "2999-01-01 00:00Z",
        ],
        &["retention", "main"],
        &["list-backups"],
        &["keep", "main", "latest", "--release"],
    ] {
        take(&site, words, &mut shape);
    }
    for (path, name) in [
        ("main/info/backups.json", "info-backups"),
        ("main/info/timeline.json", "info-timeline"),
        (".barmanfs/status.json", "mount-status"),
    ] {
        let text = site.sh(&format!("cat '{}'", mount.path(path).display())).ok();
        examine(name, &serde_json::from_slice(&text.stdout).unwrap(), &mut shape);
    }
    mount.unmount();
    take_restores(&site, install, &mut shape);
    site.ok(&["clone", "destroy", "main", "test1"]);
    let boot = ["verify", "main", "oldest", "--boot", "--json", "--bindir"];
    let boot = [&boot[..], &[install.bindir.to_str().unwrap()]].concat();
    let mut boot = site.barmanfs_command(&boot);
    boot.env("TMPDIR", site.make_directory("tmp"));
    record("verify-boot", &run(&mut boot), &mut shape);
    take_import(&site, &server, &mut shape);
    take_sync(&site, &mut shape);
    take_copy(&site, &mut shape);
    take_export(&site, &mut shape);
    take(&site, &["list-backups"], &mut shape);
    take(&site, &["delete", "main", "latest"], &mut shape);
    take(&site, &["sweep"], &mut shape);
    take(&site, &["rebuild-catalog"], &mut shape);
    with_two_histories(&site, &mut shape);
    take_keys(&site, &mut shape);
    assert_jq_reads_times(&site);
    shape.assert_schemas();
}

/// A repository that becomes an encrypted one.
fn take_keys(site: &Site, shape: &mut Documents) {
    take(site, &["key", "list"], shape);
    take(site, &["key", "check"], shape);
    let config = std::fs::read_to_string(site.config()).unwrap();
    let with_key = format!("[barmanfs]\nkey_file = {}\n", site.key_file().display());
    let config = config.replacen("[barmanfs]\n", &with_key, 1);
    site.write_file("barmanfs.conf", config.as_bytes());
    site.ok(&["key", "init"]);
    for words in [&["key", "list"][..], &["key", "check"], &["encrypt"]] {
        take(site, words, shape);
    }
}

/// A backup of another tool.
fn take_export(site: &Site, shape: &mut Documents) {
    let out = site.path("exported").display().to_string();
    take(
        site,
        &["export", "main", "oldest", &out, "--format", "barman"],
        shape,
    );
    take(
        site,
        &[
            "export",
            "main",
            "all",
            &format!("{out}-home"),
            "--as",
            "barman-home",
        ],
        shape,
    );
}

/// A passive node of this site.
fn take_sync(site: &Site, shape: &mut Documents) {
    let node = Site::new();
    node.follow(site, "retention_policy = REDUNDANCY 1");
    for words in [
        &["sync-info", "main"][..],
        &["sync", "main"],
        &["sync-wals", "main"],
        &["sync-info", "main"],
        &["status", "main"],
        &["list-servers"],
        &["show-servers", "main"],
        &["check", "main"],
    ] {
        take(&node, words, shape);
    }
    let id = node.backup_ids().pop().unwrap();
    take(&node, &["sync-backup", "main", &id], shape);
}

/// A copy in a directory of objects, and back; one pack is damaged there.
fn take_copy(site: &Site, shape: &mut Documents) {
    let repository = site.repository().display().to_string();
    let (bucket, back) = (site.path("bucket"), site.path("back").display().to_string());
    let url = format!("file://{}", bucket.display());
    let mut copy = |words: &[&str]| {
        let words = [&["copy", "--json"], words].concat();
        record("copy", &site.barmanfs(&words), shape);
    };
    copy(&[&repository, &url, "--dry-run"]);
    copy(&[&repository, &url]);
    copy(&[&url, &back, "--dry-run"]);
    let packs = bucket.display();
    let damage = format!("find '{packs}/packs' -type f -size -64k | head -1 | xargs truncate -s -1");
    site.sh(&damage).ok();
    copy(&[&url, &back]);
    copy(&[&repository, &url]);
}

fn take_import(site: &Site, server: &PgServer, shape: &mut Documents) {
    let base = site.path("base").display().to_string();
    let mut tool = server.client("pg_basebackup");
    run(tool.args(["-c", "fast", "--no-sync", "-D", &base])).ok();
    let words = ["import", "main", "--pg-basebackup", &base];
    take(site, &[&words[..], &["--dry-run"]].concat(), shape);
    take(site, &words, shape);
    take(site, &words, shape);
    take(site, &["show-backup", "main", "latest"], shape);
    let mount = Mount::new(site);
    let text = site
        .sh(&format!(
            "cat '{}'",
            mount.path("main/info/backups.json").display()
        ))
        .ok();
    examine(
        "info-backups",
        &serde_json::from_slice(&text.stdout).unwrap(),
        shape,
    );
    mount.unmount();
}

/// A fresh restore, and an update.
fn take_restores(site: &Site, install: &'static Install, shape: &mut Documents) {
    let directory = site.path("restored").display().to_string();
    let words = ["restore", "main", "auto", &directory];
    take(site, &words, shape);
    site.write_file("restored/stranger", b"x");
    take(
        site,
        &[&words[..], &["--delta-restore", "--dry-run"]].concat(),
        shape,
    );
    // One with WAL of its own.
    let mut copy = PgServer::on(install, &site.path("restored"));
    copy.start();
    copy.wait_until_promoted();
    let watch = site.barmanfs(&["restore", "--watch", &directory, "--json"]);
    record("restore-watch", &watch, shape);
    copy.stop("immediate");
    take(
        site,
        &["catchup", "main", &directory, "--force", "--dry-run"],
        shape,
    );
}

/// The last segment comes once more, with other bytes.
fn with_two_histories(site: &Site, shape: &mut Documents) {
    let mount = Mount::new(site);
    let find = format!(
        "ls '{}' | grep -x '[0-9A-F]*' | tail -1",
        mount.path("main/wal").display()
    );
    let name = site.sh(&find).ok().text().trim().to_owned();
    let other = site.path(&name);
    let archived = mount.path(&format!("main/wal/{name}"));
    let (from, to) = (archived.display(), other.display());
    site.sh(&format!(
        "cp '{from}' '{to}' && chmod u+w '{to}' && printf x | dd of='{to}' bs=1 seek=100000 conv=notrunc"
    ))
    .ok();
    mount.unmount();
    site.barmanfs(&["wal-archive", "main", &other.to_string_lossy()])
        .refused(1);
    let lists = [
        &["quarantine", "main", "list"][..],
        &["quarantine", "main", "show", &name],
        &["history", "main", "list"],
        &["timeline", "main"],
        &["check", "main"],
    ];
    for words in lists {
        take(site, words, shape);
    }
    let fork = site.json(&["history", "main", "list"])["forks"][0].clone();
    assert_eq!(fork["decided"], Value::Null, "{fork}");
    take(site, &["quarantine", "main", "delete", &name], shape);
    let at = fork["lsn"].as_str().unwrap();
    take(site, &["history", "main", "restart", "--at", at], shape);
    for words in &lists[2..] {
        take(site, words, shape);
    }
}

fn take(site: &Site, words: &[&str], shape: &mut Documents) {
    let mut command: Vec<&str> = words
        .iter()
        .take_while(|word| **word != "main")
        .copied()
        .collect();
    // What these do comes after the server.
    if matches!(command[..], ["quarantine" | "history"]) {
        command.push(words[2]);
    }
    record(
        &command.join("-"),
        &site.barmanfs(&[words, &["--json"]].concat()),
        shape,
    );
}

fn record(name: &str, printed: &Run, shape: &mut Documents) {
    let value: Value =
        serde_json::from_slice(&printed.stdout).unwrap_or_else(|error| panic!("{error}: {printed}"));
    assert!(!value["error"].is_object(), "{printed}");
    examine(name, &value, shape);
}

fn examine(name: &str, value: &Value, shape: &mut Documents) {
    assert_times(name, value);
    shape.add(name, value.clone());
}

#[track_caller]
fn assert_times(place: &str, value: &Value) {
    match value {
        Value::Array(elements) => elements.iter().for_each(|element| assert_times(place, element)),
        Value::Object(fields) => {
            for (key, value) in fields {
                assert_time(place, key, value, fields.get(&format!("{key}_epoch")));
                assert_times(&format!("{place}.{key}"), value);
            }
        }
        _ => {}
    }
}

/// A time has one form, with the same as a number beside it.
#[track_caller]
fn assert_time(place: &str, key: &str, value: &Value, epoch: Option<&Value>) {
    let is_time = matches!(key, "time" | "until") || key.ends_with("_time") || key.ends_with("_at");
    let text = value.as_str().unwrap_or_default();
    let looks = text.len() > 18 && text.as_bytes()[10] == b'T' && text.as_bytes()[4] == b'-';
    assert!(is_time || !looks, "{place}.{key} is a time by its look: {value}");
    if !is_time {
        return;
    }
    let epoch = epoch.unwrap_or_else(|| panic!("{place}.{key} has no number"));
    assert_eq!(value.is_null(), epoch.is_null(), "{place}.{key}");
    if let Some(seconds) = epoch.as_f64() {
        let time: TimestampMicros = text
            .parse()
            .unwrap_or_else(|error| panic!("{place}.{key}: {error}"));
        assert!(text.len() == 27 && text.ends_with('Z'), "{place}.{key}: {value}");
        #[expect(clippy::cast_possible_truncation, reason = "a time of this century")]
        let micros = (seconds * 1e6).round() as i64;
        assert_eq!(time.unix_micros(), micros, "{place}.{key}");
    }
}

fn assert_jq_reads_times(site: &Site) {
    let script = format!(
        "'{}' -c '{}' list-backups --json | jq -e '.backups[0] | (.begin_time_epoch | todate[:19]) == .begin_time[:19]'",
        site.program().display(),
        site.config().display()
    );
    let there = run(command("/bin/sh", &site.path("")).args(["-c", "command -v jq"]));
    if there.code() == Some(0) {
        site.sh(&script).ok();
    }
}

/// A program parses standard output whatever happens.
fn an_error_is_a_document_too() {
    let site = Site::with_repository();
    let mut documents = Documents::default();
    for (words, code) in [
        (&["list-backups", "nobody"][..], 2),
        (&["show-backup", "main", "latest"], 1),
        (&["list-files", "main", "latest"], 1),
        (&["stats", "--no-such-option"], 2),
        (&["no-such-command"], 2),
    ] {
        let run = site.barmanfs(&[words, &["--json"]].concat()).refused(code);
        let value: Value =
            serde_json::from_slice(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"));
        assert_eq!(value["error"]["exit_code"], code, "{run}");
        assert!(
            value["error"]["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{run}"
        );
        assert!(!run.stderr.is_empty(), "A person reads standard error: {run}");
        documents.add("error", value);
    }
    // What was found before the error is there, too.
    let failed = site.barmanfs(&["backup", "main", "--json"]).refused(1);
    let value: Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert_eq!(value["backups"], Value::Array(Vec::new()));
    assert_eq!(value["error"]["exit_code"], 1);
    documents.assert_schemas();
}
