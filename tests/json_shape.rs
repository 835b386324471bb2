//! JSON for programs has one shape. The kind: a key that is only sometimes there, a time with a varying number of
//! digits, a list here and an object there, so that a program works until the day it matters.
//!
//! Every command with `--json` is run with nothing stored and with much, and the files of a mount are read, too. The
//! keys of each object are the same in both cases, and those of `json_shape.txt`; `BARMANFS_TEST_WRITE_SHAPE=1` writes
//! that file again.

use crate::common::load::fill;
use crate::common::process::{Run, run};
use crate::common::registry::topic;
use crate::common::user::command;
use crate::common::{Install, Mount, Site};
use barmanfs_pg::TimestampMicros;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

topic! {
    once every_document_has_one_shape,
}

/// The keys of the objects at each place.
type Shape = BTreeMap<String, BTreeSet<String>>;

fn every_document_has_one_shape(install: &'static Install) {
    let mut shape = Shape::new();
    let (site, server) = Site::with_server(install);
    for words in [
        &["list-servers"][..],
        &["status", "main"],
        &["check-wal-archive", "main"],
        &["list-backups"],
        &["stats"],
        &["timeline", "main"],
        &["explain", "main", "now"],
        &["clone", "list"],
        &["check", "main"],
        &["verify"],
        &["sweep"],
        &["version"],
        &["quarantine", "main", "list"],
        &["history", "main", "list"],
        &["index-wal", "main"],
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
        &["status", "main"],
        &["switch-wal", "main"],
        &["check-wal-archive", "main"],
        &["list-backups"],
        &["show-backup", "main", "latest"],
        &["list-files", "main", "latest", "--target", "full"],
        &["stats"],
        &["timeline", "main"],
        &["explain", "main", "now"],
        &["explain", "main", "2020-01-01 00:00:00Z"],
        &["clone", "list"],
        &["check", "main"],
        &["verify"],
        &["delete", "main", "latest", "--dry-run"],
    ] {
        take(&site, words, &mut shape);
    }
    for name in [
        "main/info/backups.json",
        "main/info/timeline.json",
        ".barmanfs/status.json",
    ] {
        let text = site.sh(&format!("cat '{}'", mount.path(name).display())).ok();
        examine(name, &serde_json::from_slice(&text.stdout).unwrap(), &mut shape);
    }
    // The same things have the same keys on a mount.
    let keys = |place: &str| shape[place].clone();
    assert!(keys("list-backups .backups[]").is_superset(&keys("main/info/backups.json .backups[]")));
    assert_eq!(keys("timeline ."), keys("main/info/timeline.json ."));
    site.ok(&["clone", "destroy", "main", "test1"]);
    mount.unmount();
    take(&site, &["delete", "main", "latest"], &mut shape);
    take(&site, &["sweep"], &mut shape);
    take(&site, &["rebuild-catalog"], &mut shape);
    with_two_histories(&site, &mut shape);
    assert_jq_reads_times(&site);
    assert_stored(&shape);
}

/// The last segment comes once more, with other bytes.
fn with_two_histories(site: &Site, shape: &mut Shape) {
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
    site.ok(&[
        "history",
        "main",
        "restart",
        "--at",
        fork["lsn"].as_str().unwrap(),
    ]);
    for words in &lists[2..] {
        take(site, words, shape);
    }
}

fn take(site: &Site, words: &[&str], shape: &mut Shape) {
    let printed: Run = site.barmanfs(&[words, &["--json"]].concat());
    let value: Value =
        serde_json::from_slice(&printed.stdout).unwrap_or_else(|error| panic!("{error}: {printed}"));
    let mut command: Vec<&str> = words
        .iter()
        .take_while(|word| **word != "main")
        .copied()
        .collect();
    // What these do comes after the server.
    if matches!(command[..], ["quarantine" | "history"]) {
        command.push(words[2]);
    }
    examine(&command.join(" "), &value, shape);
}

/// Adds the keys of a document, and compares them with the keys seen earlier at the same places.
#[track_caller]
fn examine(what: &str, value: &Value, shape: &mut Shape) {
    assert_eq!(value["schema_version"], 1, "{what}: {value}");
    walk(&format!("{what} ."), value, shape);
}

#[track_caller]
fn walk(place: &str, value: &Value, shape: &mut Shape) {
    match value {
        Value::Array(elements) => elements
            .iter()
            .for_each(|element| walk(&format!("{place}[]"), element, shape)),
        Value::Object(fields) => {
            let keys: BTreeSet<String> = fields.keys().cloned().collect();
            let known = shape.entry(place.to_owned()).or_insert_with(|| keys.clone());
            // The details of an unreachable target depend on the reason.
            if !place.contains(".details") {
                assert_eq!(*known, keys, "{place}: {value}");
            }
            for (key, value) in fields {
                assert_time(place, key, value, fields.get(&format!("{key}_us")));
                walk(&format!("{}.{key}", place.trim_end_matches('.')), value, shape);
            }
        }
        _ => {}
    }
}

/// A time has one form, with its microseconds beside it.
#[track_caller]
fn assert_time(place: &str, key: &str, value: &Value, micros: Option<&Value>) {
    let is_time = key == "time" || key.ends_with("_time") || key.ends_with("_at");
    let text = value.as_str().unwrap_or_default();
    let looks = text.len() > 18 && text.as_bytes()[10] == b'T' && text.as_bytes()[4] == b'-';
    assert!(is_time || !looks, "{place}.{key} is a time by its look: {value}");
    if !is_time {
        return;
    }
    let micros = micros.unwrap_or_else(|| panic!("{place}.{key} has no microseconds"));
    assert_eq!(value.is_null(), micros.is_null(), "{place}.{key}");
    if let Some(micros) = micros.as_i64() {
        let time: TimestampMicros = text
            .parse()
            .unwrap_or_else(|error| panic!("{place}.{key}: {error}"));
        assert!(text.len() == 20 && text.ends_with('Z'), "{place}.{key}: {value}");
        assert_eq!(
            time.unix_micros().div_euclid(1_000_000),
            micros.div_euclid(1_000_000),
            "{place}.{key}"
        );
    }
}

fn assert_jq_reads_times(site: &Site) {
    let script = format!(
        "'{}' -c '{}' list-backups --json | jq -e '.backups[0] | (.begin_time | fromdate) == (.begin_time_us / 1000000 | floor)'",
        site.program().display(),
        site.config().display()
    );
    let there = run(command("/bin/sh", &site.path("")).args(["-c", "command -v jq"]));
    if there.code() == Some(0) {
        site.sh(&script).ok();
    }
}

fn assert_stored(shape: &Shape) {
    let mut text = String::new();
    for (place, keys) in shape.iter().filter(|(place, _)| !place.contains(".details")) {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        writeln!(text, "{place}\n    {}", keys.join(" ")).unwrap();
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/json_shape.txt");
    if std::env::var_os("BARMANFS_TEST_WRITE_SHAPE").is_some() {
        std::fs::write(file, &text).unwrap();
    }
    let stored = std::fs::read_to_string(file).unwrap_or_default();
    assert!(!stored.is_empty(), "There is no {file}");
    let mut lines = stored.lines();
    while let (Some(place), Some(keys)) = (lines.next(), lines.next()) {
        // A new key breaks no program; a removed one does, and needs another schema_version.
        let present = shape
            .get(place)
            .unwrap_or_else(|| panic!("There is nothing at {place}"));
        for key in keys.split_whitespace() {
            assert!(
                present.contains(key),
                "{place} has no {key} any more: {present:?}"
            );
        }
    }
    assert_eq!(
        stored, text,
        "Keys are new: store them with BARMANFS_TEST_WRITE_SHAPE=1"
    );
}
