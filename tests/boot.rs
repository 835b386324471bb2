//! `verify --boot`: a backup is only known to be good once PostgreSQL has started on it. Whatever the outcome of the
//! test, the result stays with the backup, and nothing else stays.

use crate::common::load::fill;
use crate::common::process::{Run, run, until, wait};
use crate::common::registry::topic;
use crate::common::user::{database_user, own_command};
use crate::common::{Install, PgServer, Site};
use crate::damage::flip_byte;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

topic! {
    with_postgres a_good_backup_boots,
    edges databases_and_superusers_may_have_any_name,
    edges a_half_dropped_database_is_skipped,
    once a_failing_statement_is_reported_and_recorded,
    once root_tests_for_the_owner_of_the_repository(as_root),
    edges each_check_finds_the_damage_it_reads,
    edges damaged_wal_fails_the_boot_test,
    once an_interrupted_boot_test_leaves_nothing,
    once the_next_boot_test_removes_leftovers_of_a_killed_one,
    once files_of_another_user_do_not_prevent_a_boot_test(as_root),
    once impossible_boot_tests_are_refused_before_anything_is_started,
}

/// A site with a backup of a small database, its id, and the server, which still runs.
fn site_with_backup(install: &'static Install) -> (Site, PgServer, String) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    fill(&server, 1);
    let id = site.backup();
    (site, server, id)
}

/// The arguments of a boot test with this installation's programs.
fn arguments<'a>(install: &'a Install, id: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let bindir = install.bindir.to_str().unwrap();
    [&["verify", "main", id, "--boot", "--bindir", bindir], more].concat()
}

fn boot(site: &Site, install: &Install, id: &str, more: &[&str]) -> Run {
    run(site
        .barmanfs_command(&arguments(install, id, more))
        .env("TMPDIR", site.make_directory("tmp")))
}

/// Neither a server nor a clone, a mount or a directory is left.
#[track_caller]
fn assert_nothing_is_left(site: &Site) {
    let temporary = site.make_directory("tmp");
    assert_eq!(site.list(&temporary), [""; 0]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(temporary.to_str().unwrap()), "{mounts}");
    let clones = site.repository().join("live/main");
    if clones.exists() {
        assert_eq!(site.list(&clones), [""; 0]);
    }
    assert_eq!(processes_with(temporary.to_str().unwrap()), [""; 0]);
}

/// The command lines of processes that contain this text.
fn processes_with(text: &str) -> Vec<String> {
    let lines = fs::read_dir("/proc").unwrap().flatten().map(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ")
    });
    lines.filter(|line| line.contains(text)).collect()
}

/// The boot test in the output of `show-backup`.
fn shown(site: &Site, id: &str) -> Value {
    site.json(&["show-backup", "main", id])["boot_test"].clone()
}

fn has_amcheck(server: &PgServer) -> bool {
    server.install.program("pg_amcheck").exists()
        && server.query("SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'") == "1"
}

fn a_good_backup_boots(install: &'static Install) {
    let (site, server, _) = site_with_backup(install);
    let space = site.make_directory("space");
    server.query(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    server.query("CREATE TABLE elsewhere TABLESPACE space AS SELECT generate_series(1, 10000) AS n");
    let id = site.backup();
    let amcheck = has_amcheck(&server);
    drop(server);
    assert_eq!(shown(&site, &id), Value::Null);
    boot(&site, install, &id, &[]).ok().says(&["OK main", "catalogs"]);
    assert_nothing_is_left(&site);

    let file = site.write_file(
        "check.sql",
        b"SELECT 'accounts: ' || count(*) FROM pgbench_accounts;\nSELECT count(*) FROM elsewhere;\nCREATE TABLE made_by_the_test ();\n",
    );
    let file = file.to_str().unwrap();
    boot(&site, install, &id, &["--sql", file])
        .ok()
        .says(&["accounts: 100000", "sql"]);
    assert_nothing_is_left(&site);
    if amcheck {
        let json = boot(&site, install, &id, &["--sql", file, "--amcheck", "--json"]).ok();
        let report: Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(
            report["checks"],
            serde_json::json!(["catalogs", "sql", "amcheck"])
        );
        assert!(json.stderr.contains("accounts: 100000"), "{json}");
        assert_nothing_is_left(&site);
        assert_eq!(shown(&site, &id)["began_at"], report["began_at"]);
    }
    let kept = shown(&site, &id);
    assert_eq!(kept["outcome"], "ok");
    assert!(
        kept["postgresql"]
            .as_str()
            .unwrap()
            .starts_with(&install.major.to_string())
    );
    let listed = site.ok(&["list-backups", "main"]);
    assert!(
        listed.contains("Boot test") && listed.contains("OK 20"),
        "{listed}"
    );
    // The index of the result can be deleted too, and the backup has not changed.
    site.ok(&["rebuild-catalog"]);
    assert_eq!(shown(&site, &id), kept);
    site.ok(&["verify", "main"]);
    site.ok(&["delete", "main", &id, "--force"]);
}

fn databases_and_superusers_may_have_any_name(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    for name in ["it's = 'odd'", "host=nowhere dbname=postgres", "-c"] {
        server.query(&format!("CREATE DATABASE \"{name}\""));
    }
    server.query("CREATE ROLE \"the boss\" SUPERUSER LOGIN");
    let rename = "ALTER ROLE postgres RENAME TO former; ALTER ROLE former NOLOGIN; \
                  CREATE ROLE postgres LOGIN REPLICATION; ALTER ROLE \"the boss\" SET statement_timeout = 1";
    let mut boss = server.client("psql");
    run(boss.env("PGUSER", "the boss").args(["-XAtqc", rename])).ok();
    let id = site.backup();
    let amcheck = if has_amcheck(&server) {
        &["--amcheck"][..]
    } else {
        &[]
    };
    boot(&site, install, &id, amcheck).ok();
    assert_nothing_is_left(&site);
}

fn a_half_dropped_database_is_skipped(install: &'static Install) {
    let (site, server, _) = site_with_backup(install);
    server.query("CREATE DATABASE dropped");
    // An interrupted DROP DATABASE leaves such a database. Nobody can connect to it.
    server.query("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'dropped'");
    let id = site.backup();
    boot(&site, install, &id, &[]).ok().says(&["OK main"]);
}

fn a_failing_statement_is_reported_and_recorded(install: &'static Install) {
    let (site, _server, id) = site_with_backup(install);
    let file = site.write_file(
        "check.sql",
        b"SELECT 1;\n\nSELECT *\n  FROM nowhere;\nSELECT 'not reached';\n",
    );
    let failed = boot(&site, install, &id, &["--sql", file.to_str().unwrap()]).refused(3);
    let failed = failed.says(&[
        "FAILED main",
        "check.sql:4: ERROR",
        "\"nowhere\" does not exist",
        "FROM nowhere;",
    ]);
    assert!(!failed.text().contains("not reached"), "{failed}");
    assert_nothing_is_left(&site);
    let kept = shown(&site, &id);
    assert_eq!(kept["outcome"], "failed");
    assert!(
        kept["message"].as_str().unwrap().contains("check.sql:4: ERROR"),
        "{kept}"
    );
    let listed = site.ok(&["list-backups", "main"]);
    assert!(listed.contains("FAILED 20"), "{listed}");
    assert!(site.ok(&["show-backup", "main", &id]).contains("check.sql:4"));

    // The newest test counts.
    boot(&site, install, &id, &[]).ok();
    assert_eq!(shown(&site, &id)["outcome"], "ok");
}

fn root_tests_for_the_owner_of_the_repository(install: &'static Install) {
    let (site, _server, id) = site_with_backup(install);
    let file = site.write_file("check.sql", b"\\! id -u\n");
    let sql = arguments(install, &id, &["--sql", file.to_str().unwrap()]);
    let user = database_user().uid.to_string();
    let tested = run(site
        .own_barmanfs_command(&sql)
        .env("TMPDIR", site.make_directory("tmp")))
    .ok();
    assert!(tested.text().lines().any(|line| line == user), "{tested}");
    assert_nothing_is_left(&site);
    assert_eq!(shown(&site, &id)["outcome"], "ok");
    let foreign = format!("find '{}' ! -user {user}", site.repository().display());
    assert_eq!(
        run(own_command("/bin/sh", &site.path("")).args(["-c", &foreign]))
            .ok()
            .text(),
        ""
    );
    site.ok(&["sweep"]);
}

fn each_check_finds_the_damage_it_reads(install: &'static Install) {
    let (site, server, _) = site_with_backup(install);
    server.query("CREATE TABLE noise AS SELECT n, sha512(random()::text::bytea) AS noise FROM generate_series(1, 100000) n");
    let path = server.query("SELECT pg_relation_filepath('noise')");
    let known = site.packs();
    let id = site.backup();
    let pack = site.largest_pack(&known);
    flip_byte(&pack, pack.metadata().unwrap().len() / 2);
    site.barmanfs(&["verify", "main", &id]).refused(3).says(&[&path]);

    let file = site.write_file("check.sql", b"SELECT count(noise) FROM noise;\n");
    let failed = boot(&site, install, &id, &["--sql", file.to_str().unwrap()]).refused(3);
    failed.says(&["check.sql:1: ERROR", "could not read block", &path, "is damaged"]);
    assert_nothing_is_left(&site);
    if has_amcheck(&server) {
        let failed = boot(&site, install, &id, &["--amcheck"]).refused(3);
        failed.says(&["pg_amcheck", "public.noise", "could not read block", &path]);
        assert_nothing_is_left(&site);
        assert!(
            shown(&site, &id)["message"]
                .as_str()
                .unwrap()
                .contains("public.noise")
        );
    }
}

fn damaged_wal_fails_the_boot_test(install: &'static Install) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    // The first backup brings its WAL itself: nothing has been archived yet.
    site.backup();
    server.archive_current_segment();
    let known = site.packs();
    let id = site.backup();
    for pack in site.packs().iter().filter(|pack| !known.contains(pack)) {
        flip_byte(pack, FIRST_FRAME);
        if site.barmanfs(&["verify", "main", "wal"]).code() == Some(0) {
            // This pack has no WAL.
            flip_byte(pack, FIRST_FRAME);
        }
    }
    site.barmanfs(&["verify", "main", "wal"]).refused(3);

    let failed = boot(&site, install, &id, &[]).refused(3);
    failed.says(&[
        "FAILED main",
        "PostgreSQL does not start: FATAL: ",
        "server's log",
        "Input/output error",
    ]);
    assert_nothing_is_left(&site);
    let kept = shown(&site, &id);
    assert_eq!(kept["outcome"], "failed");
    assert!(
        kept["message"].as_str().unwrap().contains("does not start"),
        "{kept}"
    );
}

/// An offset in the first chunk of a pack.
const FIRST_FRAME: u64 = 100;

/// A boot test that has reached its SQL, and stays there.
fn endless_boot(site: &Site, install: &Install, id: &str) -> Child {
    let begun = site.path("begun");
    let _ = fs::remove_file(&begun);
    let sql = format!("\\! touch '{}'\nSELECT pg_sleep(300);\n", begun.display());
    let file = site.write_file("endless.sql", sql.as_bytes());
    let child = site
        .barmanfs_command(&arguments(install, id, &["--sql", file.to_str().unwrap()]))
        .env("TMPDIR", site.make_directory("tmp"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the SQL is running", || begun.exists());
    child
}

fn an_interrupted_boot_test_leaves_nothing(install: &'static Install) {
    let (site, _server, id) = site_with_backup(install);
    for signal in [Signal::INT, Signal::TERM] {
        let mut child = endless_boot(&site, install, &id);
        boot(&site, install, &id, &[])
            .refused(1)
            .says(&["boot test of main"]);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let ended = wait(&mut child, Duration::from_secs(30)).expect("it ends");
        assert_eq!(ended.code(), Some(1));
        assert_nothing_is_left(&site);
    }
    assert_eq!(shown(&site, &id), Value::Null);
}

fn the_next_boot_test_removes_leftovers_of_a_killed_one(install: &'static Install) {
    let (site, _server, id) = site_with_backup(install);
    let mut child = endless_boot(&site, install, &id);
    child.kill().unwrap();
    child.wait().unwrap();
    let temporary = site.make_directory("tmp").to_string_lossy().into_owned();
    until("the server has ended with the test", || {
        processes_with(&temporary).is_empty()
    });
    let clones = site.repository().join("live/main");
    assert_eq!(site.list(&clones), [format!("boot-test-{id}")]);
    site.barmanfs(&["delete", "main", &id])
        .refused(1)
        .says(&["boot-test"]);

    boot(&site, install, &id, &[]).ok();
    assert_nothing_is_left(&site);
}

fn files_of_another_user_do_not_prevent_a_boot_test(install: &'static Install) {
    const NOBODY: u32 = 65_534;
    let (site, server, id) = site_with_backup(install);
    drop(server);
    let temporary = site.make_directory("tmp");
    let (repository, config) = (site.repository(), site.config());
    let give = |uid: u32| {
        for path in [&repository, &temporary, &config] {
            let give = format!("chown -R {uid}:{uid} '{}'", path.display());
            run(own_command("/bin/sh", &site.path("")).args(["-c", &give])).ok();
        }
    };
    give(NOBODY);
    let tested = |command: &mut Command| {
        run(command.env("TMPDIR", &temporary)).ok().says(&["OK main"]);
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
    };
    let arguments = arguments(install, &id, &[]);
    let mut nobody = own_command(site.program(), &site.path(""));
    nobody.arg("-c").arg(&config).args(&arguments);
    tested(nobody.uid(NOBODY).gid(NOBODY));
    // Root runs it as nobody, too.
    tested(&mut site.own_barmanfs_command(&arguments));
    // If root owns everything, root runs it as the user who owned it on the server.
    give(0);
    tested(&mut site.own_barmanfs_command(&arguments));
}

fn impossible_boot_tests_are_refused_before_anything_is_started(install: &'static Install) {
    let (site, _server, id) = site_with_backup(install);
    boot(&site, install, &id, &["--sql", "/nowhere/check.sql"])
        .refused(2)
        .says(&["/nowhere/check.sql"]);
    boot(&site, install, "wal", &[]).refused(2);
    site.barmanfs(&["verify", "main", &id, "--boot", "--bindir", "/nowhere"])
        .refused(2)
        .says(&["/nowhere"]);
    site.barmanfs(&["verify", "main", &id, "--amcheck"]).refused(2);
    let some = site.make_directory("bin");
    for program in ["postgres", "pg_ctl", "psql"] {
        std::os::unix::fs::symlink(install.program(program), some.join(program)).unwrap();
    }
    let some = some.to_str().unwrap();
    site.barmanfs(&["verify", "main", &id, "--boot", "--amcheck", "--bindir", some])
        .refused(1)
        .says(&["has no pg_amcheck"]);
    assert_nothing_is_left(&site);
    assert_eq!(shown(&site, &id), Value::Null);
}
