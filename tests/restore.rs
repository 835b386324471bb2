//! `barmanfs restore`: the tree that a mount shows, in a directory, without a mount; whatever interrupts it, PostgreSQL
//! starts there only when all of it is there.

use crate::common::disk::SmallDisk;
use crate::common::load::fill;
use crate::common::moments::{self, rows};
use crate::common::process::{COMMAND_LIMIT, Run, run, until, wait};
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::tree::differences;
use crate::common::user::{database_user, give, own_command};
use crate::common::{Install, Mount, PgServer, Site};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

topic! {
    once the_tree_is_the_one_of_the_mount,
    once what_a_restored_server_does,
    once what_cannot_be_restored_is_refused_before_anything_is_written,
    once a_killed_restore_never_starts_and_is_continued,
    once a_full_disk_leaves_a_restore_that_is_continued(as_root),
    once an_update_makes_any_directory_equal_to_a_fresh_restore,
    once a_directory_that_a_process_of_postgresql_uses_is_refused(as_root),
    once what_belongs_to_somebody_else_stays(as_root),
}

/// What a restored tree has that a view does not: its description, and a manifest that knows it.
const ADDED: [&str; 2] = [".barmanfs-restore.json", "backup_manifest"];

pub(crate) const MARKER: &str = ".barmanfs-restore-incomplete";

fn assert_equal(expected: &Path, found: &Path, but: &[&str]) {
    let skip = |path: &str| but.contains(&path) || ADDED.contains(&path);
    assert_eq!(differences(expected, found, &skip), [""; 0]);
    let time = |path: &Path| fs::metadata(path.join("base")).unwrap().modified().unwrap();
    assert_eq!(time(expected), time(found));
}

/// Restores `main` into a directory of the site.
fn restore(site: &Site, name: &str, options: &[&str]) -> Run {
    let directory = site.path(name);
    site.barmanfs(&[&["restore", "main", "auto", directory.to_str().unwrap()], options].concat())
}

fn the_tree_is_the_one_of_the_mount(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let space = site.make_directory("space");
    server.query(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
    server.query("CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 1000) n");
    fill(&server, 2);
    // Files that include others from their own directory on.
    server.configure("include_dir 'conf.d'");
    site.make_directory("main/conf.d");
    site.make_directory("main/more");
    site.write_file("main/conf.d/a.conf", b"include '../more/b.conf'\n");
    site.write_file("main/more/b.conf", b"\nssl_ca_file = 'ca.crt'\n");
    let id = site.backup();
    server.await_archiver();
    server.query("CREATE TABLE later AS SELECT 1 n");
    server.archive_current_segment();
    restore(&site, "contained", &["--no-get-wal", "--target-immediate"]).ok();
    restore(&site, "fetching", &["-j", "1"]).ok();
    let mount = Mount::new(&site);
    let view = mount.path(&format!("main/pitr/immediate,backup={id},self-contained"));
    assert_equal(&site.copy(&view, "copy"), &site.path("contained"), &[]);
    let view = mount.path("main/pitr/now");
    assert_equal(
        &site.copy(&view, "copy2"),
        &site.path("fetching"),
        &["postgresql.auto.conf"],
    );
    mount.unmount();
    server.verify_backup(&site.path("contained"), None);
    // Root gives everything to its owner.
    let by_root = site.path("by_root").display().to_string();
    let words = [
        "restore",
        "main",
        "auto",
        &by_root,
        "--no-get-wal",
        "--target-immediate",
        "--json",
    ];
    let report = run(&mut site.own_barmanfs_command(&words)).ok();
    assert_equal(&site.path("contained"), &site.path("by_root"), &[]);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let settings = report["settings"].as_array().unwrap().iter();
    let mut named = settings.filter(|setting| setting["name"] == "ssl_ca_file");
    let named = named.next().expect("it is named");
    assert_eq!(
        (&named["file"], &named["line"]),
        (&"more/b.conf".into(), &2.into())
    );
    assert!(
        report["expected_copy_seconds"].as_f64().unwrap() > 0.0,
        "{report}"
    );
    let described = fs::read(site.path("contained/.barmanfs-restore.json")).unwrap();
    let described: Value = serde_json::from_slice(&described).unwrap();
    assert_eq!(described["backup"], id.as_str());
    assert!(!site.path("contained").join(MARKER).exists());
    // Without the repository, the copy with all its WAL starts; the other one stops, and is not promoted.
    fs::rename(site.repository(), site.path("away")).unwrap();
    let mut copy = PgServer::on(install, &site.path("contained"));
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SELECT count(*) FROM there"), "1000");
    let mut fetching = PgServer::on(install, &site.path("fetching"));
    fetching.try_start();
    until("recovery stops", || {
        fetching.log().contains("could not restore file") || fetching.log().contains("shutting down")
    });
    fs::rename(site.path("away"), site.repository()).unwrap();
    fetching.start();
    fetching.wait_until_promoted();
    assert_eq!(fetching.query("SELECT n FROM later"), "1");
}

/// One row for each moment.
pub(crate) struct Moments {
    pub(crate) site: Site,
    pub(crate) server: PgServer,
    pub(crate) backups: [String; 2],
    /// Between the second row and the third.
    pub(crate) time: String,
    pub(crate) lsn: String,
    pub(crate) xid: String,
}

pub(crate) fn moments(install: &'static Install) -> Moments {
    let (site, server) = Site::with_server(install);
    server.query("CREATE TABLE rows (n int)");
    // What an earlier recovery has left does not count in a copy.
    server.query("ALTER SYSTEM SET restore_command = 'false'");
    server.query("ALTER SYSTEM SET recovery_target_timeline = 'current'");
    let first = site.backup();
    server.query("INSERT INTO rows VALUES (1)");
    let second = site.backup();
    let moments::Moments { time, lsn, xid } = moments::Moments::pass(&server);
    Moments {
        site,
        server,
        backups: [first, second],
        time,
        lsn,
        xid,
    }
}

fn what_a_restored_server_does(install: &'static Install) {
    let moments = moments(install);
    let programs = format!("path_prefix = {}\n", install.bindir.display());
    moments.site.write_config_of(&moments.server, &programs);
    is_watched(install, &moments);
    with_an_action(install, &moments);
    as_a_standby(install, &moments);
    on_the_same_timeline(install, &moments);
    with_another_file(install, &moments);
    with_tablespaces_elsewhere(install, &moments);
    past_a_new_tablespace(install, &moments);
}

fn is_watched(install: &'static Install, moments: &Moments) {
    let site = &moments.site;
    let slowly = format!(
        "sleep 0.5; '{}' -c '{}' get-wal --replay main %f %p",
        site.program().display(),
        site.config().display()
    );
    restore(site, "watched", &["--restore-command", &slowly]).ok();
    let directory = site.path("watched");
    let now = || site.json(&["restore", "--watch", directory.to_str().unwrap()]);
    assert_eq!(
        (&now()["state"], &now()["lsn"]),
        (&"not_running".into(), &Value::Null)
    );
    let mut watch = site.spawn(&["restore", "--watch", directory.to_str().unwrap()]);
    let mut copy = PgServer::on(install, &directory);
    copy.try_start();
    until("it replays", || now()["state"] == "replaying");
    let seen = now();
    if seen["state"] == "replaying" {
        assert!(
            seen["segments_left"].as_u64() > Some(0) && seen["lsn"].is_string(),
            "{seen}"
        );
        assert!(
            seen["time"].is_string() && seen["time_source"] != "server",
            "{seen}"
        );
    }
    copy.wait_until_promoted();
    let ended = wait(&mut watch, COMMAND_LIMIT).unwrap();
    assert_eq!(ended.code(), Some(0));
    let said = site
        .barmanfs(&["restore", "--watch", directory.to_str().unwrap()])
        .ok();
    said.says(&["takes connections", "it is at LSN", "+00"]);
    copy.stop("immediate");
    site.barmanfs(&["restore", "--watch", site.path("main").to_str().unwrap()])
        .refused(1)
        .says(&["barmanfs restore"]);
}

fn with_an_action(install: &'static Install, moments: &Moments) {
    let site = &moments.site;
    let pause = ["--target-name", "two", "--target-action", "pause"];
    // A file system of its own is as good as empty.
    site.make_directory("paused");
    site.make_directory("paused/lost+found");
    restore(site, "paused", &pause).ok();
    assert!(site.path("paused/lost+found").exists());
    let mut copy = PgServer::on(install, &site.path("paused"));
    copy.start();
    until("it pauses at the target", || {
        copy.query("SELECT pg_get_wal_replay_pause_state()") == "paused"
    });
    assert_eq!(rows(&copy), "1,2");
    let seen = site.json(&["restore", "--watch", copy.data.to_str().unwrap()]);
    let last =
        "SELECT pg_last_wal_replay_lsn(), extract(epoch FROM pg_last_xact_replay_timestamp())::numeric";
    let (lsn, time) = copy
        .query(last)
        .split_once('|')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let lsn_seen: String = seen["lsn"].as_str().unwrap().to_owned();
    assert_eq!(
        copy.query(&format!("SELECT '{lsn_seen}'::pg_lsn = '{lsn}'")),
        "t",
        "{seen}"
    );
    assert_eq!(seen["time_source"], "server");
    assert_eq!(seen["state"], "paused");
    let said = site.ok(&["restore", "--watch", copy.data.to_str().unwrap()]);
    assert!(said.contains("is paused at its target"), "{said}");
    assert!(
        (seen["time_epoch"].as_f64().unwrap() - time.parse::<f64>().unwrap()).abs() < 0.001,
        "{seen} {time}"
    );
    copy.query("SELECT pg_wal_replay_resume()");
    copy.wait_until_promoted();
    copy.stop("immediate");
    restore(site, "none", &["--target-tli", "7"])
        .refused(1)
        .says(&["timeline 7"]);
    restore(site, "none", &["--target-action", "pause"])
        .refused(2)
        .says(&["PITR is not required"]);
}

fn with_tablespaces_elsewhere(install: &'static Install, moments: &Moments) {
    let (site, server) = (&moments.site, &moments.server);
    let original = site.make_directory("original");
    server.query(&format!(
        "CREATE TABLESPACE fast LOCATION '{}'",
        original.display()
    ));
    server.query("CREATE TABLE kept TABLESPACE fast AS SELECT 7 n");
    site.backup();
    let elsewhere = site.path("else:where/fast");
    let relocation = format!("fast:{}", elsewhere.display());
    let options = ["--tablespace", &relocation, "--target-immediate"];
    restore(site, "relocated", &options).ok().says(&["Tablespace"]);
    let oid = server.query("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'");
    let link = site.path("relocated/pg_tblspc").join(oid);
    assert_eq!(fs::read_link(&link).unwrap(), elsewhere);
    // A place with something in it is taken only where it belongs to the directory that is updated.
    restore(site, "relocated2", &options)
        .refused(1)
        .says(&["is not empty"]);
    restore(site, "relocated3", &["--tablespace-layout", "original"])
        .refused(1)
        .says(&["The server of process", "has its tablespace"]);
    let mut copy = PgServer::on(install, &site.path("relocated"));
    copy.start();
    copy.wait_until_promoted();
    copy.query("UPDATE kept SET n = 8; CHECKPOINT");
    copy.stop("fast");
    let update = [&options[..], &["--delta-restore"]].concat();
    restore(site, "relocated", &update).ok();
    assert_eq!(fs::read_link(&link).unwrap(), elsewhere);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SELECT n FROM kept"), "7");
    copy.stop("fast");
    // Without the option it is inside, and what is outside stays as it is.
    let outside = site.checksums(&elsewhere);
    restore(site, "relocated", &["--target-immediate", "--delta-restore"]).ok();
    assert!(fs::symlink_metadata(&link).unwrap().is_dir());
    assert_eq!(site.checksums(&elsewhere), outside);
}

/// Replay makes the tablespace in the copy, not where the original has it.
fn past_a_new_tablespace(install: &'static Install, moments: &Moments) {
    let (site, server) = (&moments.site, &moments.server);
    let late = site.make_directory("late");
    server.query(&format!("CREATE TABLESPACE late LOCATION '{}'", late.display()));
    server.query("CREATE TABLE made_late TABLESPACE late AS SELECT 9 n; CHECKPOINT");
    server.archive_current_segment();
    let before = site.checksums(&late);
    for (name, options) in [("late1", &[][..]), ("late2", &["--no-get-wal"])] {
        restore(site, name, options).ok();
        let mut copy = PgServer::on(install, &site.path(name));
        copy.start();
        copy.wait_until_promoted();
        copy.query("UPDATE made_late SET n = 10; CHECKPOINT");
        copy.stop("fast");
        assert_eq!(site.checksums(&late), before, "{options:?}");
    }
}

fn as_a_standby(install: &'static Install, moments: &Moments) {
    let (site, server) = (&moments.site, &moments.server);
    server.query("SELECT pg_create_physical_replication_slot('standby')");
    let primary = format!("{} password=secret", server.conninfo());
    let run = restore(
        site,
        "standby",
        &["--standby-mode", "--primary-conninfo", &primary],
    )
    .ok();
    assert!(!run.all().contains("secret"), "{run}");
    assert!(site.path("standby/standby.signal").exists());
    assert!(!site.path("standby/recovery.signal").exists());
    let mut standby = PgServer::on(install, &site.path("standby"));
    standby.start();
    server.query("INSERT INTO rows VALUES (5)");
    until("the standby follows its primary", || {
        rows(&standby) == "1,2,3,4,5"
    });
    assert_eq!(standby.query("SELECT pg_is_in_recovery()"), "t");
    assert_eq!(standby.query("SHOW recovery_target_timeline"), "latest");
    standby.stop("immediate");
}

fn on_the_same_timeline(install: &'static Install, moments: &Moments) {
    let site = &moments.site;
    restore(site, "same", &["--same-timeline", "--keep-origin"])
        .ok()
        .says(&["comes up on timeline 1", "in the copy"]);
    let directory = site.path("same");
    assert!(!directory.join("recovery.signal").exists());
    for name in ["postgresql.conf", "postgresql.auto.conf"] {
        let kept = fs::read(directory.join(format!("{name}.origin"))).unwrap();
        assert_eq!(kept, fs::read(moments.server.data.join(name)).unwrap(), "{name}");
    }
    moments.server.verify_backup(&directory, None);
    let mut copy = PgServer::on(install, &directory);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!((rows(&copy).as_str(), copy.timeline()), ("1,2,3,4", 1));
    assert_eq!(copy.query("SHOW archive_mode"), "off");
    copy.stop("immediate");
    restore(site, "none", &["--same-timeline", "--target-immediate"]).refused(2);
}

fn with_another_file(install: &'static Install, moments: &Moments) {
    let site = &moments.site;
    restore(
        site,
        "conf",
        &[
            "--recovery-conf-filename",
            "recovery_settings.conf",
            "--target-immediate",
        ],
    )
    .ok();
    let directory = site.path("conf");
    let auto = fs::read_to_string(directory.join("postgresql.auto.conf")).unwrap();
    assert!(
        auto.contains("archive_mode = off") && !auto.contains("\nrestore_command ="),
        "{auto}"
    );
    assert!(auto.contains(": restore_command = 'false'"), "{auto}");
    let mut copy = PgServer::on(install, &directory);
    copy.try_start();
    assert!(copy.log().contains("restore_command"), "{}", copy.log());
    site.sh(&format!(
        "echo \"include 'recovery_settings.conf'\" >> '{}'",
        directory.join("postgresql.conf").display()
    ))
    .ok();
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(rows(&copy), "1");
}

fn what_cannot_be_restored_is_refused_before_anything_is_written(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    site.backup();
    let mount = Mount::new(&site);
    let full = site.make_directory("full");
    site.write_file("full/mine", b"mine");
    let running = server.data.to_str().unwrap();
    let repository = site.repository().join("restored").display().to_string();
    let mounted = mount.path("main/live/restored").display().to_string();
    for (destination, options, reason) in [
        ("host:/srv/main", &[][..], "colon"),
        (full.to_str().unwrap(), &[], "is not empty"),
        (full.to_str().unwrap(), &["--delta-restore"], "no data directory"),
        (running, &["--delta-restore"], "A server is running"),
        (&repository, &[], "in the repository"),
        (&mounted, &[], "in the mount"),
        ("/", &[], "root of the file system"),
        (
            "new",
            &["--target-time", "2999-01-01 00:00Z"],
            "cannot be recovered",
        ),
        (
            "new",
            &["--target-xid", "5", "--target-immediate"],
            "multiple targets",
        ),
        ("new", &["--tablespace", "fast:/srv/fast"], "no tablespace 'fast'"),
        ("new", &["--gcp-zone", "a"], "not supported"),
        ("new", &["--recovery-conf-filename", "pg_hba.conf"], "pg_hba.conf"),
        ("new", &["--recovery-conf-filename", "../a"], "../a"),
    ] {
        let words = [&["restore", "main", "auto", destination], options].concat();
        site.barmanfs(&words).rejected().says(&[reason]);
    }
    assert_eq!(site.list(&full), ["mine"]);
    assert!(!site.path("new").exists());
    mount.unmount();
    // What Barman's command line has is understood.
    let barman = site.path("barman");
    std::os::unix::fs::symlink(site.program(), &barman).unwrap();
    let script = format!(
        "'{}' -c '{}' recover --staging-path /tmp --retry-times 1 main latest '{}'",
        barman.display(),
        site.config().display(),
        site.path("named").display()
    );
    site.sh(&script).ok().says(&[
        "Your PostgreSQL server has been successfully prepared for recovery!",
        "Nothing is staged",
        "Without effect: --retry-times",
    ]);
    fs::remove_file(barman).unwrap();
}

/// Whether PostgreSQL takes it for a data directory.
pub(crate) fn is_startable(directory: &Path) -> bool {
    directory.join("PG_VERSION").exists() && directory.join("global/pg_control").exists()
}

fn a_killed_restore_never_starts_and_is_continued(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 4);
    site.backup();
    server.await_archiver();
    restore(&site, "fresh", &["--target-immediate"]).ok();
    let mut random = Random::new("restore");
    let directory = site.path("killed");
    let words = [
        "restore",
        "main",
        "auto",
        directory.to_str().unwrap(),
        "--target-immediate",
    ];
    for round in 0..8_u64 {
        let slowly = [&words[..], &["--bwlimit", "40M"]].concat();
        let mut child = site.spawn(&slowly);
        std::thread::sleep(Duration::from_millis(20 + random.below(300 * (round + 1))));
        let _ = child.kill();
        let ended = child.wait().unwrap();
        if ended.success() {
            break;
        }
        assert!(!is_startable(&directory), "round {round}");
        if directory.join(MARKER).exists() {
            let mut copy = PgServer::on(install, &directory);
            assert_ne!(copy.try_start().code(), Some(0));
        }
    }
    // Nothing else may be written there meanwhile, and what does not belong there is removed.
    if directory.join(MARKER).exists() {
        site.write_file("killed/base/stranger", b"x");
    }
    let again = site.barmanfs(&words);
    if again.code() != Some(0) {
        again.says(&["is not empty"]);
    }
    assert!(is_startable(&directory) && !directory.join(MARKER).exists());
    // Killed just before the last step: the marker is gone, and there is no control file yet.
    let global = directory.join("global");
    fs::rename(global.join("pg_control"), global.join(".barmanfs-pg_control")).unwrap();
    site.ok(&words);
    assert!(is_startable(&directory) && !global.join(".barmanfs-pg_control").exists());
    assert_equal(&site.path("fresh"), &directory, &["base/stranger", "server.log"]);
    let mut copy = PgServer::on(install, &directory);
    copy.start();
    copy.wait_until_promoted();
    copy.assert_sound();
}

fn a_full_disk_leaves_a_restore_that_is_continued(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 4);
    site.backup();
    server.await_archiver();
    let point = site.make_directory("small");
    let disk = SmallDisk::mount(&point, 40);
    restore(&site, "small/data", &["--target-immediate"])
        .refused(1)
        .says(&["free", "needed"]);
    assert_eq!(site.list(&point), [""; 0]);
    disk.grow(400);
    let data = site.path("small/data");
    let words = [
        "restore",
        "main",
        "auto",
        data.to_str().unwrap(),
        "--target-immediate",
    ];
    let mut child = site.spawn(&[&words[..], &["--bwlimit", "20M"]].concat());
    until("it has begun", || data.join("base").exists());
    site.sh(&format!("dd if=/dev/zero of='{}/filler' bs=1M", point.display()))
        .says(&["No space"]);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(data.join(MARKER).exists() && !is_startable(&data));
    restore(&site, "small/data", &["--target-immediate"]).refused(1);
    fs::remove_file(point.join("filler")).unwrap();
    site.ok(&words);
    restore(&site, "fresh", &["--target-immediate"]).ok();
    assert_equal(&site.path("fresh"), &data, &[]);
}

/// What may have happened to a directory, as scripts that run in it. Each has several kinds of changes.
pub(crate) const KINDS: [(&str, &str); 6] = [
    ("nothing", ":"),
    (
        "written, removed, added, odd",
        "for f in base/*/1259 base/*/1249; do printf x | dd of=$f bs=1 seek=9000 conv=notrunc 2>/dev/null; done
         rm -f base/5/1255 backup_label global/1262
         mkdir -p extra/deep base/99999; echo a > extra/deep/a; echo b > base/99999/b; echo c > base/1/c
         chmod 400 base/1/1255; chmod 755 base; chmod 644 postgresql.conf; touch base/1/2604
         mkfifo pipe; ln -s /etc loop; rm -f pg_hba.conf; mkfifo pg_hba.conf",
    ),
    (
        "longer, shorter, shared",
        "for f in base/*/1249; do head -c 300000 /dev/zero | tr '\\0' x >> $f; done
         for f in base/*/1259; do truncate -s 3000000 $f; done
         for f in base/*/26*; do truncate -s 100 $f; done
         ln base/1/1255 ../outside.link",
    ),
    (
        "empty, of another type",
        "for f in base/4/[0-9]*; do : > $f; done
         rm -f base/5/1259; mkdir base/5/1259; echo a > base/5/1259/a
         rm -rf base/1; echo a > base/1",
    ),
    (
        "links",
        "cp base/5/1259 ../outside; rm base/5/1259; ln -s ../../../outside base/5/1259
         mv base/1 ../outside.d; ln -s ../../outside.d base/1; mv pg_wal ../wal.d; ln -s ../wal.d pg_wal",
    ),
    ("a server has run", ""),
];

fn an_update_makes_any_directory_equal_to_a_fresh_restore(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    let old = site.backup();
    server.query("CREATE TABLE later AS SELECT generate_series(1, 20000) n");
    site.backup();
    server.await_archiver();
    restore(&site, "fresh", &["--target-immediate"]).ok();
    let fresh = site.path("fresh");
    for (kind, script) in KINDS {
        let directory = site.copy(&fresh, "updated");
        match script {
            "" => run_a_server(install, &directory),
            script => drop(site.sh(&format!("cd '{}' && {script}", directory.display())).ok()),
        }
        let before = outside(&site);
        let run = restore(
            &site,
            "updated",
            &["--target-immediate", "--delta-restore", "--json"],
        )
        .ok();
        let report: Value = serde_json::from_slice(&run.stdout).unwrap();
        println!("{kind}: {} of {}", report["written_bytes"], report["bytes"]);
        assert_equal(&fresh, &directory, &[]);
        assert_eq!(outside(&site), before, "{kind}: written outside");
        let written = report["written_bytes"].as_u64().unwrap();
        let little = report["bytes"].as_u64().unwrap() / 100;
        assert_eq!(written < little, kind == "nothing", "{kind}: {run}");
        fs::remove_dir_all(&directory).unwrap();
        site.sh(&format!(
            "cd '{}' && rm -rf outside* wal.d",
            fresh.parent().unwrap().display()
        ))
        .ok();
    }
    another_backup(&site, &old, &fresh);
    kept_and_listed(&site, &fresh);
}

/// Files beside the directory, with their content.
fn outside(site: &Site) -> String {
    let script = "for d in outside outside.link outside.d wal.d; do find $d -type f 2>/dev/null; done | sort | xargs -r md5sum";
    site.sh(&format!("cd '{}' && {script}", site.path("").display()))
        .text()
}

fn run_a_server(install: &'static Install, directory: &Path) {
    let mut server = PgServer::on(install, directory);
    server.start();
    server.wait_until_promoted();
    server.query("CREATE TABLE other AS SELECT generate_series(1, 50000) n");
    server.query("UPDATE later SET n = n + 1");
    server.query("CHECKPOINT");
    server.kill();
}

fn another_backup(site: &Site, old: &str, fresh: &Path) {
    let directory = site.path("other");
    let words = [
        "restore",
        "main",
        old,
        directory.to_str().unwrap(),
        "--target-immediate",
    ];
    site.ok(&words);
    restore(site, "other", &["--target-immediate"])
        .refused(1)
        .says(&["is not empty"]);
    restore(site, "other", &["--target-immediate", "--delta-restore"]).ok();
    assert_equal(fresh, &directory, &[]);
}

fn kept_and_listed(site: &Site, fresh: &Path) {
    let directory = site.path("other");
    site.sh(&format!(
        "cd '{}' && mkdir -p log own && echo a > log/a && echo b > own/b && echo c > own/c && echo d > base/1/1259",
        directory.display()
    ))
    .ok();
    let options = [
        "--target-immediate",
        "--delta-restore",
        "--keep",
        "log",
        "--keep",
        "own/b",
    ];
    let run = restore(site, "other", &[&options[..], &["--dry-run"]].concat()).ok();
    let said = run.text();
    assert!(
        said.contains("own/c") && !said.contains("log") && !said.contains("own/b"),
        "{said}"
    );
    assert_eq!(fs::read(directory.join("base/1/1259")).unwrap(), b"d\n");
    restore(site, "other", &options).ok();
    assert_equal(fresh, &directory, &["log", "own"]);
    assert_eq!(site.list(&directory.join("own")), ["b"]);
    assert_eq!(site.list(&directory.join("log")), ["a"]);
    give(&directory);
}

/// Its `postmaster.pid` may name a process that is another one on this host, or has ended.
fn a_directory_that_a_process_of_postgresql_uses_is_refused(install: &'static Install) {
    let (site, mut server) = Site::with_server(install);
    site.backup();
    let refused = |name: &str| {
        let before = fs::read(site.path(name).join("global/pg_control")).unwrap();
        restore(&site, name, &["--delta-restore"])
            .refused(1)
            .says(&["A server is running in"]);
        assert_eq!(
            fs::read(site.path(name).join("global/pg_control")).unwrap(),
            before
        );
    };
    // As in a container, where processes have other numbers.
    restore(&site, "contained", &["--target-immediate"]).ok();
    let contained = PgServer::on(install, &site.path("contained"));
    let mut container = in_a_container(&contained);
    until("it runs in the container", || {
        contained.try_query("SELECT NOT pg_is_in_recovery()").text() == "t"
    });
    let pid = fs::read_to_string(contained.data.join("postmaster.pid")).unwrap();
    let pid: u32 = pid.lines().next().unwrap().trim().parse().unwrap();
    assert!(pid < 100, "process {pid} has its number in the container");
    refused("contained");
    container.kill().unwrap();
    container.wait().unwrap();
    until("the container has ended", || {
        restore_is_allowed(&site, "contained")
    });
    // A session that goes on without its postmaster.
    let mut session = server
        .client("psql")
        .args(["-XAtqc", "SELECT count(*) FROM generate_series(1, 100000000000)"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let working = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT count%' AND state = 'active'";
    until("the session works", || !server.query(working).is_empty());
    let orphan = server.query(working);
    site.sh(&format!("kill -9 {}", server.postmaster())).ok();
    until("its postmaster has ended", || {
        !Path::new(&format!("/proc/{}/cwd", server.postmaster())).exists()
    });
    refused("main");
    site.sh(&format!("kill -9 {orphan}")).ok();
    session.wait().unwrap();
    until("all sessions have ended", || restore_is_allowed(&site, "main"));
    server.is_gone();
}

/// Runs a command as the user of the tests.
fn as_root(command: &mut Command) {
    run(command).ok();
}

/// A file system in the directory, and what is left of a restore of another server.
fn what_belongs_to_somebody_else_stays(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    restore(&site, "copy", &["--target-immediate"]).ok();
    let copy = site.path("copy");
    site.make_directory("store");
    site.write_file("store/dump.sql", b"SELECT 1");
    for place in ["archive", "own/deep er"] {
        let place = copy.join(place);
        site.sh(&format!("mkdir -p '{}'", place.display())).ok();
        as_root(
            Command::new("mount")
                .arg("--bind")
                .arg(site.path("store"))
                .arg(&place),
        );
        let delta = ["--target-immediate", "--delta-restore"];
        for options in [&[&delta[..], &["--dry-run"]].concat(), &delta[..]] {
            restore(&site, "copy", options)
                .refused(1)
                .says(&["A file system is mounted at", "--keep"]);
            assert!(is_startable(&copy), "something was changed");
        }
        let top = place
            .strip_prefix(&copy)
            .unwrap()
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap();
        restore(&site, "copy", &[&delta[..], &["--keep", top]].concat()).ok();
        as_root(Command::new("umount").arg(&place));
        assert_eq!(site.list(&site.path("store")), ["dump.sql"]);
        restore(&site, "copy", &delta).ok();
        assert!(!copy.join(top).exists());
    }
    // Another server, into what is left of a restore of this one.
    let words = [
        "restore",
        "main",
        "latest",
        "--target-immediate",
        "--bwlimit",
        "1M",
    ];
    let left = site.path("left");
    let mut killed = site.barmanfs_command(&words).arg(&left).spawn().unwrap();
    until("it has begun", || left.join("base").exists());
    killed.kill().unwrap();
    killed.wait().unwrap();
    let mut other = PgServer::init(install, &site.path("other"), &[]);
    other.start();
    site.write_config_of(&server, &format!("\n[other]\nconninfo = {}\n", other.conninfo()));
    site.ok(&["backup", "other", "--fast-checkpoint"]);
    site.barmanfs(&[
        "restore",
        "other",
        "latest",
        left.to_str().unwrap(),
        "--target-immediate",
    ])
    .refused(1)
    .says(&["incomplete restore of another server, main"]);
}

/// Runs a server among processes of its own.
fn in_a_container(server: &PgServer) -> Child {
    let user = database_user();
    let (data, log) = (server.data.display(), server.log_file());
    let script = format!(
        "setpriv --reuid={} --regid={} --clear-groups -- '{}' -D '{data}' -k '{}' -c listen_addresses='' >> '{}' 2>&1; true",
        user.uid,
        user.gid,
        server.install.program("postgres").display(),
        server.sockets().display(),
        log.display()
    );
    own_command("unshare", server.data.parent().unwrap())
        .args([
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            &script,
        ])
        .spawn()
        .expect("Cannot run unshare")
}

fn restore_is_allowed(site: &Site, name: &str) -> bool {
    restore(site, name, &["--delta-restore", "--dry-run"]).code() == Some(0)
}
