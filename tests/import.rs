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
    once what_is_moved_is_here_and_nowhere_else,
    edges a_stopped_data_directory_becomes_a_backup,
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
    // What is damaged here afterwards is read again.
    for pack in site.packs() {
        let mut bytes = fs::read(&pack).unwrap();
        let half = bytes.len() / 2;
        if half > 100_000 {
            bytes[4096..half]
                .iter_mut()
                .step_by(50_000)
                .for_each(|byte| *byte ^= 1);
            fs::write(&pack, bytes).unwrap();
        }
    }
    site.barmanfs(&["verify"]).refused(3);
    let state = |run: &Run| parsed(run)["backups"][0]["state"].clone();
    let planned = import(&site, &[&plain], &["--dry-run"]).ok();
    assert_eq!(state(&planned), "would be repaired");
    assert_eq!(state(&import(&site, &[&plain], &[]).ok()), "repaired");
    assert_eq!(state(&import(&site, &[&plain], &[]).ok()), "present");
    let raw = format!("main/raw/{}", site.backup_ids()[0]);
    let mount = Mount::new(&site);
    let here = site.copy(&mount.path(&raw), "repaired");
    assert_eq!(differences(&plain, &here, &is_extra), [""; 0]);
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

fn what_is_moved_is_here_and_nowhere_else(install: &'static Install) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    server.query("CREATE TABLE rows AS SELECT 1 AS n");
    let plain = base_backup(&site, &server, "plain", &["-X", "stream"]);
    let tar = base_backup(&site, &server, "tar", &["-Ft", "-z", "-X", "stream"]);
    site.write_file("tar/mine", b"a file of somebody");
    let space = site.make_directory("space");
    server.query(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
    let mapping = format!("{}={}", space.display(), site.path("mapped").display());
    let linked = base_backup(&site, &server, "linked", &["-X", "stream", "-T", &mapping]);
    // One that is not whole stays.
    let bad = base_backup(&site, &server, "bad", &["-Ft", "-X", "stream"]);
    site.sh(&format!(
        "printf x | dd of='{}' bs=1 seek=700000 conv=notrunc",
        bad.join("base.tar").display()
    ))
    .ok();
    let all = [plain.as_path(), &tar, &linked, &bad];
    let run = import(&site, &all, &["--move"]).refused(3);
    let report = parsed(&run);
    let deleted = |name: &Path| {
        let backups = report["backups"].as_array().unwrap();
        let mut found = backups
            .iter()
            .filter(|backup| backup["name"] == name.to_str().unwrap());
        found.next().map(|backup| backup["source_deleted"].clone())
    };
    assert_eq!(deleted(&plain), Some(true.into()));
    assert_eq!(deleted(&tar), Some(true.into()));
    assert_eq!(deleted(&linked), Some(false.into()));
    assert_eq!(deleted(&bad), None);
    assert!(!plain.exists());
    assert_eq!(site.list(&tar), ["mine"]);
    assert!(linked.join("backup_manifest").exists() && bad.join("base.tar").exists());
    run.says(&["stays in the source", "links"]);
    assert_eq!(site.backups().len(), 3);
    site.ok(&["verify", "main"]);
    let place = server.data.display().to_string();
    site.barmanfs(&["import", "main", "--data-directory", &place, "--move"])
        .refused(2)
        .says(&["barman delete"]);
}

/// What a stopped server's directory has that no backup has, and what is compared for itself.
fn is_of_a_run(path: &str) -> bool {
    let is_extra = ["backup_manifest", "postmaster.opts"].contains(&path);
    let emptied = ["pg_tblspc/", "pg_wal/", "pg_notify/", "pg_subtrans/"];
    is_extra || emptied.iter().any(|directory| path.starts_with(directory))
}

fn a_stopped_data_directory_becomes_a_backup(install: &'static Install) {
    let (site, mut primary) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    let space = site.make_directory("space");
    primary.query(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
    primary.query("CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 1000) n");
    primary.query("CREATE TABLE rows AS SELECT 1 AS n");
    let place = primary.data.clone();
    let take = |options: &[&str]| {
        let words = [
            "import",
            "main",
            "--json",
            "--data-directory",
            place.to_str().unwrap(),
        ];
        site.barmanfs(&[&words, options].concat())
    };
    // One that runs, one that crashed, and one that somebody has cleared after that.
    take(&[]).refused(1).says(&["postmaster.pid", "pg_ctl stop"]);
    primary.kill();
    take(&["--dry-run"]).refused(1).says(&["postmaster.pid"]);
    fs::remove_file(place.join("postmaster.pid")).unwrap();
    take(&[]).refused(1).says(&["not shut down cleanly"]);
    primary.start();
    primary.stop("fast");
    starts_meanwhile(&site, &place);
    assert_eq!(site.backup_ids(), [""; 0]);

    let before = site.checksums(&place);
    let report = parsed(&take(&[]).ok());
    assert_eq!(report["left_out"], serde_json::json!([]));
    assert_eq!(site.checksums(&place), before, "the source is only read");
    let id = ids(&report).remove(0);
    let backup = site.backups().remove(0);
    assert_eq!(backup["status"], "DONE");
    let mut command = primary.command("pg_controldata");
    let stopped = run(command.env("TZ", "UTC").arg("-D").arg(&place)).ok().text();
    let line = stopped
        .lines()
        .find_map(|line| line.strip_prefix("Time of latest checkpoint:"));
    let script = format!("TZ=UTC date -d '{}' +%Y%m%dT%H%M%S", line.unwrap().trim());
    assert_eq!(
        site.sh(&script).ok().text().trim(),
        id,
        "the time of the checkpoint"
    );
    let stored = site.stored_bytes();
    assert_eq!(parsed(&take(&[]).ok())["backups"][0]["state"], "present");
    assert_eq!(site.stored_bytes(), stored, "a second import adds nothing");
    let bindir = install.bindir.to_str().unwrap();
    let boot = || site.ok(&["verify", "main", &id, "--boot", "--bindir", bindir]);
    {
        let mount = Mount::for_all(&site);
        let raw = site.copy(&mount.path(&format!("main/raw/{id}")), "raw");
        assert_eq!(differences(&place, &raw, &is_of_a_run), [""; 0]);
        let inner = fs::read_dir(raw.join("pg_tblspc"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        assert_eq!(differences(&space, &inner.path(), &|_| false), [""; 0]);
        let wal = site.list(&raw.join("pg_wal"));
        let segments: Vec<&String> = wal.iter().filter(|name| name.len() == 24).collect();
        let [segment] = segments[..] else {
            panic!("{wal:?}")
        };
        let theirs = fs::read(place.join("pg_wal").join(segment)).unwrap();
        assert!(theirs == fs::read(raw.join("pg_wal").join(segment)).unwrap());
        // No WAL behind it is archived: its own ends with its checkpoint.
        boot();
        starts(install, &site.copy(&mount.path("main/latest"), "latest"), "1");
        site.ok(&["clone", "create", "main", "one"]);
        let clone = mount.path("main/live/one");
        let mut server = PgServer::on_mount(install, &clone, &site.path("one"));
        server.start();
        server.wait_until_promoted();
        assert_eq!(rows(&server), "1");
        server.stop("fast");
    }
    let pause = |name: &str| {
        let to = site.path(name);
        let words = ["restore", "main", &id, to.to_str().unwrap(), "--target-immediate"];
        (
            site.barmanfs(&[&words[..], &["--target-action", "pause"]].concat()),
            to,
        )
    };
    // PostgreSQL pauses there when it meets a later record.
    pause("early").0.refused(1).says(&["later record", "promote"]);
    primary.start();
    let moments = crate::common::moments::Moments::pass(&primary);
    primary.stop("fast");
    let then: &[&str] = &["--target-time", &moments.time, "--target-action", "promote"];
    let own: &[&str] = &["--target-immediate", "--target-action", "promote"];
    for (name, target, expected) in [("own", own, "1"), ("then", then, "1,2"), ("end", &[], "1,2,3,4")] {
        let to = site.path(name);
        site.ok(&[&["restore", "main", &id, to.to_str().unwrap()], target].concat());
        starts(install, &to, expected);
    }
    let (run, to) = pause("pause");
    run.ok();
    let mut paused = PgServer::on(install, &to);
    paused.start();
    assert_eq!(paused.query("SELECT pg_is_in_recovery()"), "t");
    assert_eq!(rows(&paused), "1");
    paused.stop("fast");
    boot();
}

/// Starts a copy, which has these rows.
#[track_caller]
fn starts(install: &'static Install, data: &Path, expected: &str) {
    let mut copy = PgServer::on(install, data);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(rows(&copy), expected, "{}", data.display());
    assert_eq!(copy.query("SELECT sum(n) FROM there"), "500500");
    copy.stop_and_assert_checksums();
}

/// A server that starts while its directory is read spoils the copy.
fn starts_meanwhile(site: &Site, place: &Path) {
    let (large, pid) = (place.join("base/large"), place.join("postmaster.pid"));
    site.sh(&format!("truncate -s 3G '{}'", large.display())).ok();
    let mut child = site.spawn(&["import", "main", "--data-directory", place.to_str().unwrap()]);
    let running = site.repository().join("running");
    crate::common::process::until("the import has begun", || {
        fs::read_dir(&running).is_ok_and(|mut entries| entries.next().is_some())
    });
    fs::write(&pid, "1").unwrap();
    let status = crate::common::process::wait(&mut child, std::time::Duration::from_secs(60)).unwrap();
    assert_eq!(status.code(), Some(3));
    fs::remove_file(pid).unwrap();
    fs::remove_file(large).unwrap();
}
