//! The kind: a storage of WAL-G. Imported, each backup is the tree that was backed up, byte for byte, its WAL is all here, and
//! recovery goes where it went; what is not whole there never looks whole here.

mod storage;

use crate::common::moments::{Moments, rows};
use crate::common::process::Run;
use crate::common::registry::topic;
use crate::common::tree::differences;
use crate::common::{Install, Mount, PgServer, Site};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use storage::{Like, Storage, Taken};

topic! {
    once what_walg_has_stored_is_what_is_here,
    once a_damaged_storage_never_looks_whole,
}

/// A server with a tablespace, which archives into the directory `archive`.
fn start(site: &Site, install: &'static Install) -> PgServer {
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    let archive = site.make_directory("archive");
    server.configure(&format!(
        "archive_mode = on\narchive_command = 'cp %p {}/%f'",
        archive.display()
    ));
    site.write_config(&[("main", &server)]);
    server.start();
    let space = site.make_directory("space");
    server.query(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
    server.query("CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 1000) n");
    server.query("CREATE TABLE rows AS SELECT 1 AS n");
    server.query("CREATE TABLE large AS SELECT n, md5(n::text) t FROM generate_series(1, 20000) n");
    server
}

fn change(server: &PgServer) {
    server.query(
        "UPDATE large SET t = 'changed' WHERE n % 1000 = 0; INSERT INTO there SELECT generate_series(1, 500)",
    );
    server.query("CREATE TABLE IF NOT EXISTS later AS SELECT 1 AS n");
}

fn import(storage: &Storage<'_>, place: &Path, options: &[&str]) -> Run {
    let words = ["import", "main", "--json", "--walg", place.to_str().unwrap()];
    storage.site.barmanfs(&[&words, options].concat())
}

fn parsed(run: &Run) -> Value {
    serde_json::from_str(&run.text()).unwrap_or_else(|error| panic!("{error}: {run}"))
}

fn texts(report: &Value, list: &str, key: &str) -> Vec<String> {
    let items = report[list].as_array().unwrap();
    let text = |item: &Value| item[key].as_str().unwrap().to_owned();
    items.iter().map(text).collect()
}

fn what_walg_has_stored_is_what_is_here(install: &'static Install) {
    let site = Site::new();
    let mut server = start(&site, install);
    let storage = Storage::new(&site);
    let marked = r#"{"release": "4.2", "ticket": 871}"#;
    let full = storage.push(
        &server,
        "full",
        Like {
            form: "lz4",
            is_permanent: true,
            user_data: Some(marked),
            ..Like::default()
        },
    );
    change(&server);
    let first = storage.push(
        &server,
        "first",
        Like {
            form: "zst",
            parent: Some(&full),
            user_data: Some("\"before the release\""),
            ..Like::default()
        },
    );
    change(&server);
    server.query("TRUNCATE later; DELETE FROM large WHERE n > 10000");
    server.query("VACUUM large");
    let second = storage.push(
        &server,
        "second",
        Like {
            form: "lzma",
            parent: Some(&first),
            ..Like::default()
        },
    );
    let streamed = storage.push(
        &server,
        "streamed",
        Like {
            form: "gz",
            is_streamed: true,
            ..Like::default()
        },
    );
    let moments = Moments::pass(&server);
    let expected = rows(&server);
    server.stop("fast");
    storage.archive_wal(&site.path("archive"));
    let taken = [full, first, second, streamed];
    let names: Vec<&str> = taken.iter().map(|taken| taken.name.as_str()).collect();

    let before = site.checksums(&storage.root);
    let planned = parsed(&import(&storage, &storage.root, &["--dry-run"]).ok());
    assert_eq!(texts(&planned, "backups", "name"), names);
    let report = parsed(&import(&storage, &storage.root, &[]).ok());
    assert_eq!(report["left_out"], json!([]));
    assert_eq!(site.checksums(&storage.root), before, "the source is only read");
    let ids = texts(&report, "backups", "backup");
    assert_eq!(site.backup_ids(), ids);
    let backups = site.backups();
    assert!(
        backups.iter().all(|backup| backup["status"] == "DONE"),
        "{backups:?}"
    );
    let taken_over = |at: usize| report["backups"][at]["shared_bytes"].as_u64().unwrap();
    assert!(
        taken_over(0) == 0 && taken_over(1) > 10_000_000 && taken_over(2) > 10_000_000,
        "{report}"
    );
    marks(&site, &ids);

    let stored = site.stored_bytes();
    let again = parsed(&import(&storage, &storage.root, &[]).ok());
    assert_eq!(texts(&again, "backups", "state"), ["present"; 4]);
    assert_eq!(again["wal"]["archived"], 0);
    assert!(
        site.stored_bytes() <= stored,
        "{} and {stored}",
        site.stored_bytes()
    );
    same_files(&site, &taken, &ids);
    same_wal(&site);
    recovers(&site, install, &ids, (&expected, &moments.time));
    site.ok(&["verify"]);
}

/// What users noted comes along.
fn marks(site: &Site, ids: &[String]) {
    let shown = |id: &str| site.json(&["show-backup", "main", id]);
    let full = shown(&ids[0]);
    assert_eq!(full["annotations"], json!({"release": "4.2", "ticket": "871"}));
    assert_eq!(full["keep"]["target"], "standalone");
    assert_eq!(full["imported"]["tool"], "WAL-G");
    let first = shown(&ids[1]);
    assert_eq!(
        (&first["label"], &first["keep"]),
        (&json!("before the release"), &Value::Null)
    );
}

/// Each tree is what was backed up.
fn same_files(site: &Site, taken: &[Taken], ids: &[String]) {
    let mount = Mount::new(site);
    let is_apart = |path: &str| {
        path == "backup_manifest" || path.starts_with("pg_tblspc/") || path.starts_with("pg_wal/0")
    };
    for (taken, id) in taken.iter().zip(ids) {
        let raw = site.copy(&mount.path(&format!("main/raw/{id}")), &format!("raw.{id}"));
        let mut found = differences(&taken.tree, &raw, &is_apart);
        // A tar archive of a stream has no data directory, whose time is nowhere then; pg_basebackup sets none of directories.
        found.retain(|line| {
            !line.contains(": time") || !taken.tree.join(line.split(':').next().unwrap()).is_dir()
        });
        assert_eq!(found, [""; 0], "{}", taken.name);
        let space = fs::read_dir(raw.join("pg_tblspc"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        let theirs = format!("{}.space", taken.tree.display());
        assert_eq!(
            differences(Path::new(&theirs), &space.path(), &|_| false),
            [""; 0],
            "{}",
            taken.name
        );
    }
}

fn same_wal(site: &Site) {
    let names = site.list(&site.path("archive"));
    assert!(names.len() > 5, "{names:?}");
    let mount = Mount::new(site);
    let here = site.copy(&mount.path("main/wal"), "wal.here");
    for name in names {
        let theirs = fs::read(site.path("archive").join(&name)).unwrap();
        assert!(theirs == fs::read(here.join(&name)).unwrap(), "{name}");
    }
}

fn recovers(site: &Site, install: &'static Install, ids: &[String], (all, time): (&str, &str)) {
    let then: &[&str] = &["--target-time", time, "--target-action", "promote"];
    for (id, name, target, expected, large) in [
        (&ids[2], "end", [].as_slice(), all, "10000"),
        (&ids[1], "then", then, "1,2", "10000"),
        (&ids[3], "streamed", &["--target-immediate"], "1", "10000"),
    ] {
        let place = site.path(&format!("to.{name}"));
        site.ok(&[&["restore", "main", id, place.to_str().unwrap()], target].concat());
        let mut copy = PgServer::on(install, &place);
        copy.start();
        copy.wait_until_promoted();
        assert_eq!(rows(&copy), expected, "{name}");
        assert_eq!(copy.query("SELECT count(*) FROM large"), large, "{name}");
        assert_eq!(copy.query("SELECT count(*) FROM there"), "2000", "{name}");
        copy.stop_and_assert_checksums();
    }
}

/// Damages a copy of the storage by a script, and returns what importing it says.
fn import_damaged(storage: &Storage<'_>, script: &str, options: &[&str]) -> Run {
    let copy = storage.site.path("copy");
    let words = format!(
        "rm -rf {0} && cp -a {1} {0} && cd {0}/basebackups_005 && {script}",
        copy.display(),
        storage.root.display()
    );
    storage.site.sh(&words).ok();
    import(storage, &copy, options)
}

fn a_damaged_storage_never_looks_whole(install: &'static Install) {
    let site = Site::new();
    let mut server = start(&site, install);
    let storage = Storage::new(&site);
    let of = |form| Like {
        form,
        ..Like::default()
    };
    let full = storage.push(&server, "full", of("lz4"));
    change(&server);
    let delta = storage.push(
        &server,
        "delta",
        Like {
            parent: Some(&full),
            ..of("lz4")
        },
    );
    server.query("CHECKPOINT");
    let outside = storage.push(
        &server,
        "outside",
        Like {
            evil: Some(("/base/../../etc/x", 512)),
            ..of("")
        },
    );
    let bomb = storage.push(
        &server,
        "bomb",
        Like {
            evil: Some(("/base/5/99999", 1 << 40)),
            ..of("zst")
        },
    );
    server.stop("fast");
    storage.archive_wal(&site.path("archive"));

    // Nothing can be known.
    import(&storage, &site.path("main"), &[])
        .refused(1)
        .says(&["WALG_FILE_PREFIX"]);

    // Paths and sizes that no backup has.
    let run = import(
        &storage,
        &storage.root,
        &["--backup", &outside.name, "--backup", &bomb.name, "--wal", "none"],
    );
    run.refused(3)
        .says(&["component", "far more than the sentinel says"]);
    assert_eq!(site.backup_ids(), [""; 0]);

    // Each is named, and nothing of it is shown.
    let (full, delta) = (full.name, delta.name);
    let partitions = format!("{full}/tar_partitions");
    for (script, word) in [
        (
            format!("truncate -s -100 {partitions}/part_001.tar.lz4"),
            "part_001.tar.lz4",
        ),
        (
            format!("rm {partitions}/copy_0.tar.lz4"),
            "in none of the archives",
        ),
        (
            format!("head -c 5000 /dev/urandom | sed 's/^/x/' > {partitions}/copy_0.tar.lz4"),
            "libsodium",
        ),
        (
            format!("mv {partitions}/copy_0.tar.lz4 {partitions}/copy_0.tar.lzo"),
            "lzo",
        ),
        (format!("rm {partitions}/pg_control.tar.lz4"), "pg_control.tar"),
        (
            format!("truncate -s -5 {full}_backup_stop_sentinel.json"),
            "sentinel.json",
        ),
        (
            format!("sed -i 's|\"/base/1/|\"/../1/|' {full}/files_metadata.json"),
            "not a path",
        ),
        (
            format!("sed -i 's|\"is_permanent\":false|\"is_permanent\":5|' {full}/metadata.json"),
            "metadata.json",
        ),
        (
            format!("rm {partitions}/part_001.tar.lz4 && mkfifo {partitions}/part_001.tar.lz4"),
            "pipe",
        ),
        (
            format!("sed -i 's|\"LSN\":[0-9]*|\"LSN\":4711|' {full}_backup_stop_sentinel.json"),
            "starts at",
        ),
        (
            format!(
                "gpg --batch -q --passphrase secret --pinentry-mode loopback -c {partitions}/part_001.tar.lz4 && \
                     mv {partitions}/part_001.tar.lz4.gpg {partitions}/part_001.tar.lz4"
            ),
            "--passphrase-command",
        ),
    ] {
        let run = import_damaged(&storage, &script, &["--wal", "none"]);
        assert!(run.all().contains(word), "{script}: {run}");
        let run = run.refused(3);
        let left_out = texts(&parsed(&run), "left_out", "name");
        assert!(
            left_out.iter().any(|name| name.contains(&full)),
            "{script}: {run}"
        );
        assert!(left_out.contains(&delta), "{script}: {run}");
        assert_eq!(site.backup_ids(), [""; 0], "{script}");
    }
    // The same archive, with the passphrase.
    let words = [
        "--passphrase-command",
        "echo secret",
        "--wal",
        "none",
        "--backup",
        &full,
    ];
    import(&storage, &site.path("copy"), &words).ok();
    site.sh("gpgconf --kill gpg-agent").ok();
    assert_eq!(site.backup_ids().len(), 1);

    // A delta without its list, and one that is not complete.
    let run = import_damaged(
        &storage,
        &format!("rm {delta}/files_metadata.json"),
        &["--backup", &delta],
    );
    run.refused(3).says(&["no list of its files"]);
    let run = import_damaged(
        &storage,
        &format!("rm {delta}_backup_stop_sentinel.json"),
        &["--backup", &full],
    );
    run.ok().says(&["no sentinel"]);
    damaged_wal(&storage, &full);
    import(&storage, &storage.root, &["--backup", &delta]).ok();
    assert!(site.backups().iter().all(|backup| backup["status"] == "DONE"));
    site.ok(&["verify"]);
}

fn damaged_wal(storage: &Storage<'_>, full: &str) {
    // Nothing needs the first segment. Notes of WAL-G and what it is still writing are no WAL.
    let script = "cd ../wal_005 && f=$(ls *.lz4 | head -1) && head -c 300 $f > x && mv x $f && echo junk > junk && \
                  touch 000000010000000000000010_delta.lz4 000000010000000000000010.json \
                  000000010000000000000010.lz4.tmp.20260428T113012Z-9f2c6a4b9f2c6a4b";
    let run = import_damaged(storage, script, &["--backup", full]).refused(3);
    let left_out = texts(&parsed(&run), "left_out", "name");
    assert_eq!(left_out.len(), 2, "{run}");
    assert!(left_out.iter().any(|name| name.ends_with("/junk")), "{run}");
    assert!(left_out.iter().any(|name| name.ends_with(".lz4")), "{run}");
}
