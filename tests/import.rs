//! The kind: a backup that another tool has taken. Imported, it is what that tool restores, byte for byte, and it starts; what is
//! not whole there never looks whole here.

use crate::common::moments::rows;
use crate::common::process::{Run, run};
use crate::common::registry::topic;
use crate::common::tree::differences;
use crate::common::{Install, Mount, PgServer, Site};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

topic! {
    edges what_pg_basebackup_has_written_is_what_is_here,
    once what_is_damaged_never_looks_whole,
    once manifests_with_any_checksum_are_compared,
}

/// Takes a backup with `pg_basebackup`, into a directory of this name.
#[track_caller]
fn base_backup(site: &Site, server: &PgServer, name: &str, options: &[&str]) -> PathBuf {
    let place = site.path(name);
    let mut command = server.client("pg_basebackup");
    command.args(["-c", "fast", "--no-sync"]).args(options);
    run(command.arg("-D").arg(&place)).ok();
    place
}

#[track_caller]
fn import(site: &Site, places: &[&Path], options: &[&str]) -> Run {
    let mut words = vec!["import", "main", "--json"];
    for place in places {
        words.extend(["--pg-basebackup", place.to_str().unwrap()]);
    }
    site.barmanfs(&[&words, options].concat())
}

/// The ids here of what was imported, in the order of the source.
fn ids(report: &Value) -> Vec<String> {
    let backups = report["backups"].as_array().unwrap();
    let id = |backup: &Value| backup["backup"].as_str().unwrap().to_owned();
    backups.iter().map(id).collect()
}

fn parsed(run: &Run) -> Value {
    serde_json::from_str(&run.text()).unwrap()
}

/// What `pg_basebackup` leaves that is no part of a backup.
fn is_extra(path: &str) -> bool {
    path == "backup_manifest" || path.starts_with("pg_tblspc/")
}

fn what_pg_basebackup_has_written_is_what_is_here(install: &'static Install) {
    let (site, mut primary) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    let space = site.make_directory("space");
    primary.query(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
    primary.query("CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 1000) n");
    primary.query("CREATE TABLE rows AS SELECT 1 AS n");
    if install.major >= 17 {
        primary.query("ALTER SYSTEM SET summarize_wal = on");
        primary.query("SELECT pg_reload_conf()");
    }
    let mapping = format!("{}={}", space.display(), site.path("space.copy").display());
    let plain = base_backup(&site, &primary, "plain", &["-X", "stream", "-T", &mapping, "-R"]);
    primary.query("INSERT INTO rows VALUES (2)");
    let tar = base_backup(&site, &primary, "tar", &["-Ft", "-z", "-X", "stream"]);
    let mut places = vec![plain.clone(), tar];
    if install.major >= 17 {
        primary.query("INSERT INTO rows VALUES (3)");
        let manifest = plain.join("backup_manifest");
        let from = format!("--incremental={}", manifest.display());
        let mapping = format!("{}={}", space.display(), site.path("space.changes").display());
        places.push(base_backup(
            &site,
            &primary,
            "changes",
            &["-X", "fetch", "-T", &mapping, &from],
        ));
    }
    let expected = rows(&primary);
    primary.stop("fast");
    let all: Vec<&Path> = places.iter().map(PathBuf::as_path).collect();

    let planned = parsed(&import(&site, &all, &["--dry-run"]).ok());
    assert_eq!(planned["backups"].as_array().unwrap().len(), places.len());
    assert_eq!(site.backup_ids(), [""; 0]);
    let before = site.checksums(&plain);
    let report = parsed(&import(&site, &all, &[]).ok());
    assert_eq!(report["left_out"], serde_json::json!([]));
    assert_eq!(site.checksums(&plain), before);
    let ids = ids(&report);
    assert_eq!(site.backup_ids(), ids);
    assert!(site.backups().iter().all(|backup| backup["status"] == "DONE"));
    let tool = |backup: &Value| backup["imported"]["tool"].as_str().unwrap().to_owned();
    assert!(
        site.backups()
            .iter()
            .all(|backup| tool(backup) == "pg_basebackup")
    );

    // A second import adds nothing.
    let stored = site.stored_bytes();
    let again = parsed(&import(&site, &all, &[]).ok());
    assert!(
        again["backups"]
            .as_array()
            .unwrap()
            .iter()
            .all(|backup| backup["state"] == "present")
    );
    assert_eq!(site.stored_bytes(), stored);

    let mount = Mount::new(&site);
    let raw = site.copy(&mount.path(&format!("main/raw/{}", ids[0])), "raw");
    let found = differences(&plain, &raw, &is_extra);
    assert_eq!(found, [""; 0]);
    let spaces = fs::read_dir(raw.join("pg_tblspc"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    assert_eq!(
        differences(&site.path("space.copy"), &spaces.path(), &|_| false),
        [""; 0]
    );
    drop(mount);
    for (number, id) in ids.iter().enumerate() {
        site.ok(&[
            "restore",
            "main",
            id,
            site.path(&format!("to{number}")).to_str().unwrap(),
            "--target-immediate",
            "--target-action",
            "promote",
        ]);
        let mut copy = PgServer::on(install, &site.path(&format!("to{number}")));
        copy.start();
        copy.wait_until_promoted();
        assert_eq!(copy.query("SELECT sum(n) FROM there"), "500500");
        assert!(expected.starts_with(&rows(&copy)));
        assert_eq!(copy.query("SELECT count(*) FROM rows"), (number + 1).to_string());
        copy.stop("fast");
    }
    site.ok(&["verify"]);
}

fn what_is_damaged_never_looks_whole(install: &'static Install) {
    let (site, primary) = Site::with_server(install);
    primary.query("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS n");
    let plain = base_backup(&site, &primary, "plain", &[]);
    let tar = base_backup(&site, &primary, "tar", &["-Ft", "-X", "none"]);
    let wal = "f=$(ls pg_wal/0* | head -1)";
    let record = format!("{wal}; printf xxxx | dd of=$f bs=1 seek=60 conv=notrunc");
    let zeros = format!("{wal}; s=$(stat -c %s $f); head -c $s /dev/zero >$f");
    let short = format!("{wal}; truncate -s 100K $f");
    let damages: [(&str, &Path, &str, &str); 11] = [
        ("a record", &plain, &record, "WAL ends at"),
        ("a segment", &plain, &zeros, "no WAL segment"),
        ("a segment's end", &plain, &short, "pg_wal/"),
        (
            "a page",
            &plain,
            "f=$(ls -S $(find base -type f) | head -1); printf x | dd of=$f bs=1 seek=9000 conv=notrunc",
            "CRC-32C",
        ),
        ("a file", &plain, "rm base/5/1259", "it is missing"),
        ("another file", &plain, "echo x > base/5/999999", "not the same"),
        ("the label", &plain, "rm backup_label", "no backup_label"),
        (
            "the control file",
            &plain,
            "cp PG_VERSION global/pg_control",
            "pg_control",
        ),
        ("the manifest", &plain, "rm backup_manifest", "backup_manifest"),
        ("the end", &tar, "truncate -s -70000 base.tar", "base.tar"),
        (
            "a link",
            &plain,
            "rm -r pg_xact && ln -s /etc pg_xact",
            "it is missing",
        ),
    ];
    for (number, (what, source, damage, says)) in damages.into_iter().enumerate() {
        let copy = site.copy(source, &format!("damaged{number}"));
        site.sh(&format!("cd '{}' && {damage}", copy.display())).ok();
        let run = import(&site, &[&copy], &[]);
        assert_eq!(run.code(), Some(3), "{what}: {}", run.all());
        assert!(run.all().contains(says), "{what}: {}", run.all());
        assert_eq!(site.backup_ids(), [""; 0], "{what}");
    }
    // Of a directory that pg_wal leads to, only what the backup needs is taken.
    let linked = site.copy(&plain, "linked");
    let lead = "mv pg_wal ../elsewhere && ln -s ../elsewhere pg_wal && cd pg_wal && cp $(ls 0* | head -1) 0000000100000000000000FF && \
                cp /etc/passwd . && mkdir ssh && touch ssh/key";
    site.sh(&format!("cd '{}' && {lead}", linked.display())).ok();
    import(&site, &[&linked], &[]).ok();
    let raw = format!("main/raw/{}/pg_wal", site.backup_ids()[0]);
    let taken = site.list(&Mount::new(&site).path(&raw));
    assert_eq!(taken, site.list(&plain.join("pg_wal")));
    let id = site.backup_ids();
    site.ok(&["delete", "main", &id[0], "--force"]);
    // What is whole is taken beside what is not.
    let report = import(&site, &[&site.path("damaged0"), &plain], &[]).refused(3);
    assert_eq!(parsed(&report)["left_out"].as_array().unwrap().len(), 1);
    assert_eq!(site.backup_ids().len(), 1);
    site.ok(&["verify"]);
}

fn manifests_with_any_checksum_are_compared(install: &'static Install) {
    let (site, primary) = Site::with_server(install);
    primary.query("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS n");
    primary.query("ALTER SYSTEM SET summarize_wal = on");
    primary.query("SELECT pg_reload_conf()");
    let take = |name: &str, algorithm: &str, more: &[&str]| {
        let checksums = format!("--manifest-checksums={algorithm}");
        base_backup(
            &site,
            &primary,
            name,
            &[&[checksums.as_str(), "-X", "none"], more].concat(),
        )
    };
    let plain = take("plain", "SHA256", &["-R"]);
    let tar = take("tar", "SHA512", &["-Ft"]);
    let bare = take("bare", "NONE", &[]);
    let mut whole = vec![plain.clone(), tar.clone(), bare.clone()];
    if install.major >= 17 {
        primary.query("INSERT INTO rows SELECT generate_series(1, 1000)");
        let from = format!("--incremental={}", plain.join("backup_manifest").display());
        whole.push(take("changes", "SHA224", &[&from]));
    }
    let page = "f=$(ls -S $(find base -type f) | head -1); printf x | dd of=$f bs=1 seek=9000 conv=notrunc";
    let in_tar = "n=$(tar -tRf base.tar | sed -n 's,^block \\([0-9]*\\): base/5/1255$,\\1,p'); \
                  printf x | dd of=base.tar bs=512 seek=$((n+20)) conv=notrunc";
    let longer = "printf x >>base/5/1259";
    let changes = "f=$(find base -name 'INCREMENTAL.*' -size +9k | head -1); printf x | dd of=$f bs=1 seek=9000 conv=notrunc";
    let mut damages = vec![
        (&whole[0], page, "SHA256"),
        (&whole[0], longer, "bytes"),
        (&whole[1], in_tar, "base/5/1255: the manifest gives the SHA512"),
        (&whole[2], longer, "bytes"),
    ];
    if install.major >= 17 {
        damages.push((&whole[3], changes, "SHA224"));
    }
    let before = import(&site, &[&plain], &[]).ok();
    assert!(!before.all().contains("only the sizes"), "{before}");
    let there = site.backup_ids();
    for (number, (source, damage, says)) in damages.into_iter().enumerate() {
        let copy = site.copy(source, &format!("damaged{number}"));
        site.sh(&format!("cd '{}' && {damage}", copy.display())).ok();
        let run = import(&site, &[&copy], &[]);
        assert_eq!(run.code(), Some(3), "{damage}: {}", run.all());
        assert!(run.all().contains(says), "{damage}: {}", run.all());
        assert_eq!(site.backup_ids(), there, "{damage}");
    }
    let all: Vec<&Path> = whole.iter().map(PathBuf::as_path).collect();
    let run = import(&site, &all, &[]).ok();
    assert!(run.all().contains("no checksums"), "{run}");
    assert_eq!(site.backup_ids().len(), whole.len());
    site.ok(&["verify"]);
}
