//! The kind: a data directory that was a server's own, and can no longer follow its primary. `barmanfs catchup` makes it a
//! standby again, and what is its own stays.

use crate::common::load::{assert_sums_agree, fill, transact, transactions};
use crate::common::process::{Run, run, until};
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::sshd::Sshd;
use crate::common::standby::{catch_up, standby_with};
use crate::common::{Install, PgServer, Site};
use std::fs;
use std::path::Path;
use std::time::Duration;

topic! {
    once a_standby_that_fell_behind_streams_again,
    edges a_failed_primary_follows_the_new_one,
    once a_standby_that_was_not_started_yet_is_caught_up,
    once a_standby_on_another_host_is_caught_up_there,
}

fn catchup(site: &Site, data: &Path, options: &[&str]) -> Run {
    site.barmanfs(&[&["catchup", "main", data.to_str().unwrap()], options].concat())
}

/// Waits until a standby of this name streams from the primary and has all of it.
#[track_caller]
fn assert_streams(primary: &PgServer, standby: &PgServer, name: &str) {
    let state = format!("SELECT state FROM pg_stat_replication WHERE application_name = '{name}'");
    until("it streams", || primary.query(&state) == "streaming");
    catch_up(primary, standby);
    assert_eq!(standby.query("SELECT pg_is_in_recovery()"), "t");
}

/// A standby with a tablespace of its own place, and with settings of its own.
fn follower(site: &Site, primary: &PgServer, install: &'static Install) -> PgServer {
    let (data, original, own) = (
        site.path("follower"),
        site.path("space"),
        site.path("space.follower"),
    );
    run(primary
        .client("pg_basebackup")
        .args(["-X", "stream", "-c", "fast", "--no-sync", "-T"])
        .arg(format!("{}={}", original.display(), own.display()))
        .arg("-D")
        .arg(&data))
    .ok();
    let mut standby = PgServer::on(install, &data);
    standby.configure("work_mem = '7MB'\ninclude_dir = 'own.d'\nlog_directory = 'own.log'\n");
    standby.configure_auto(&format!(
        "primary_conninfo = '{} application_name=follower'\nmaintenance_work_mem = '77MB'",
        primary.conninfo()
    ));
    site.sh(&format!(
        "cd '{}' && touch standby.signal && mkdir own.d own.log && echo 'temp_buffers = 9MB' > own.d/a.conf \
         && echo old > own.log/old.log && echo stranger > own.d/stranger && echo '# mine' >> pg_hba.conf",
        data.display()
    ))
    .ok();
    standby.start();
    assert_streams(primary, &standby, "follower");
    standby.stop("fast");
    standby
}

/// The primary goes on, and removes the WAL that the standby needs.
fn leave_behind(primary: &PgServer) {
    transact(primary, 500);
    primary.query("UPDATE there SET n = n + 1");
    for _ in 0..3 {
        primary.query("SELECT pg_logical_emit_message(false, 'x', repeat('y', 500000))");
        primary.archive_current_segment();
        primary.query("CHECKPOINT");
    }
}

fn assert_own_files(standby: &PgServer) {
    for (name, value) in [
        ("work_mem", "7MB"),
        ("temp_buffers", "9MB"),
        ("maintenance_work_mem", "77MB"),
    ] {
        assert_eq!(standby.query(&format!("SHOW {name}")), value);
    }
    let read = |name: &str| fs::read_to_string(standby.data.join(name)).unwrap();
    assert_eq!(read("own.log/old.log"), "old\n");
    assert!(read("pg_hba.conf").ends_with("# mine\n"));
    assert_eq!(read("postgresql.auto.conf").matches("barmanfs: begin").count(), 1);
    assert!(!standby.data.join("own.d/stranger").exists());
}

/// A primary with a table in a tablespace.
fn with_tablespace(install: &'static Install) -> (Site, PgServer) {
    let (site, primary) = Site::with_initdb_options(install, &["--wal-segsize=1", "--data-checksums"]);
    let space = site.make_directory("space");
    primary.query(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
    primary.query("CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 1000) n");
    fill(&primary, 2);
    (site, primary)
}

/// The tablespace of the standby is still where it was.
#[track_caller]
fn assert_own_tablespace(site: &Site, primary: &PgServer, standby: &PgServer) {
    let oid = primary.query("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'");
    let link = fs::read_link(standby.data.join("pg_tblspc").join(oid));
    assert_eq!(link.unwrap(), site.path("space.follower"));
}

/// The standby has all that the primary has.
#[track_caller]
fn assert_equal(primary: &PgServer, standby: &PgServer) {
    assert_sums_agree(standby);
    assert_eq!(transactions(standby), transactions(primary));
    let sum = "SELECT sum(n) FROM there";
    assert_eq!(standby.query(sum), primary.query(sum));
}

fn a_standby_that_fell_behind_streams_again(install: &'static Install) {
    let (site, primary) = with_tablespace(install);
    let mut standby = follower(&site, &primary, install);
    let data = standby.data.clone();
    // A live one is not touched.
    standby.start();
    catchup(&site, &data, &[]).refused(1).says(&["complete backup"]);
    leave_behind(&primary);
    let id = site.backup();
    catchup(&site, &data, &[])
        .refused(1)
        .says(&["A server is running"]);
    standby.stop("fast");
    leave_behind(&primary);
    standby.try_start();
    until("its WAL is gone", || {
        standby.log().contains("has already been removed")
    });
    standby.stop("immediate");
    let before = site.checksums(&data);
    let run = catchup(&site, &data, &["--dry-run"]).ok();
    run.says(&[
        id.as_str(),
        "a standby on timeline 1",
        "nothing: it has no WAL",
        "own.d/stranger",
        "WAL to replay",
    ]);
    assert_eq!(site.checksums(&data), before);
    let is_vacant = site.path("nothing");
    catchup(&site, &is_vacant, &[])
        .refused(1)
        .says(&["no data directory", "--standby-mode"]);
    assert!(!is_vacant.exists());
    catchup(&site, &data, &[]).ok().says(&["a standby on timeline 1"]);
    // It was not started, and has nothing of its own: its pg_control is that of the primary.
    catchup(&site, &data, &[])
        .ok()
        .says(&["a copy that was not started yet", "nothing: it has no WAL"]);
    assert_own_tablespace(&site, &primary, &standby);
    standby.start();
    assert_streams(&primary, &standby, "follower");
    assert_own_files(&standby);
    assert_equal(&primary, &standby);
    // The next time it is killed, and continued.
    standby.stop("fast");
    leave_behind(&primary);
    site.backup();
    transact(&primary, 100);
    is_killed_and_continued(&site, &mut standby);
    standby.start();
    assert_streams(&primary, &standby, "follower");
    assert_own_files(&standby);
    assert_eq!(transactions(&standby), transactions(&primary));
    standby.stop_and_assert_checksums();
}

fn is_killed_and_continued(site: &Site, standby: &mut PgServer) {
    let data = standby.data.clone();
    let words = ["catchup", "main", data.to_str().unwrap(), "--bwlimit", "3M"];
    let mut random = Random::new("catchup");
    let mut was_killed = false;
    for round in 0..5_u64 {
        let mut child = site.spawn(&words);
        std::thread::sleep(Duration::from_millis(20 + random.below(200 * (round + 1))));
        let _ = child.kill();
        if child.wait().unwrap().success() {
            break;
        }
        // With both, nothing has changed yet.
        let may_start = data.join("global/pg_control").exists();
        if data.join(".barmanfs-restore-incomplete").exists() && !may_start {
            was_killed = true;
            assert_ne!(standby.try_start().code(), Some(0));
            let words = [
                "restore",
                "main",
                "auto",
                data.to_str().unwrap(),
                "--delta-restore",
            ];
            site.barmanfs(&words).refused(1).says(&["barmanfs catchup"]);
        }
    }
    assert!(was_killed);
    catchup(site, &data, &[]).ok();
}

fn a_failed_primary_follows_the_new_one(install: &'static Install) {
    let (site, mut primary) = Site::with_initdb_options(install, &["--wal-segsize=1", "--data-checksums"]);
    fill(&primary, 2);
    let standby = standby_with(&site, &primary, install, "second", "");
    site.backup();
    transact(&primary, 100);
    catch_up(&primary, &standby);
    let data = primary.data.clone();
    // Both go on.
    standby.query("SELECT pg_promote()");
    primary.query("CREATE TABLE only_here AS SELECT generate_series(1, 3000) n");
    primary.query("UPDATE pgbench_accounts SET abalance = abalance + 7");
    primary.query("INSERT INTO only_here VALUES (0)");
    primary.kill();
    transact(&standby, 200);
    standby.query("CREATE TABLE only_there AS SELECT 1 n");
    standby.archive_current_segment();
    let conninfo = format!("{} application_name=first", standby.conninfo());
    let options = ["--primary-conninfo", conninfo.as_str()];
    let run = catchup(&site, &data, &options).ok();
    run.says(&["a primary on timeline 1", "with 3 commits", "timeline 1 from"]);
    primary.start();
    assert_streams(&standby, &primary, "first");
    assert_sums_agree(&primary);
    assert_eq!(transactions(&primary), transactions(&standby));
    assert_eq!(primary.query("SELECT count(*) FROM only_there"), "1");
    assert_eq!(primary.query("SELECT to_regclass('only_here') IS NULL"), "t");
    primary.query("SELECT pg_promote()");
    primary.stop_and_assert_checksums();
    // Nothing has taken its place: it may be the only one that has its last commits.
    let run = catchup(&site, &data, &options).refused(1);
    run.says(&["was a primary on timeline 3", "--force"]);
}

fn a_standby_that_was_not_started_yet_is_caught_up(install: &'static Install) {
    let (site, mut primary) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    fill(&primary, 1);
    site.backup();
    let (restored, copied) = (site.path("restored"), site.path("copied"));
    let text = restored.to_str().unwrap();
    let conninfo = primary.conninfo();
    let options = ["--standby-mode", "--primary-conninfo", conninfo.as_str()];
    site.barmanfs(&[&["restore", "main", "auto", text], &options[..]].concat())
        .ok()
        .says(&["Its primary is on the same host"]);
    run(primary
        .client("pg_basebackup")
        .args(["-X", "stream", "-c", "fast", "--no-sync", "-R", "-D"])
        .arg(&copied))
    .ok();
    transact(&primary, 100);
    site.backup();
    for data in [&restored, &copied] {
        for _ in 0..2 {
            let run = catchup(&site, data, &[]).ok();
            run.says(&[
                "a copy that was not started yet",
                "Its primary is on the same host",
            ]);
        }
    }
    let mut standby = PgServer::on(install, &copied);
    standby.start();
    catch_up(&primary, &standby);
    assert_sums_agree(&standby);
    // One that was started and promoted is a primary, whatever else is there.
    standby.query("SELECT pg_promote()");
    standby.wait_until_promoted();
    standby.stop("fast");
    primary.stop("fast");
    assert!(copied.join(".barmanfs-restore.json").exists());
    catchup(&site, &copied, &[])
        .refused(1)
        .says(&["was a primary on timeline 2", "--force"]);
}

fn a_standby_on_another_host_is_caught_up_there(install: &'static Install) {
    let (site, mut primary) = with_tablespace(install);
    site.write_config_of(&primary, "recovery_host = backup\n");
    let sshd = Sshd::start(&site);
    let mut standby = follower(&site, &primary, install);
    standby.environment.push(sshd.path());
    let data = standby.data.clone();
    leave_behind(&primary);
    let id = site.backup();
    leave_behind(&primary);
    let before = site.checksums(&data);
    let there = |command: &str, options: &[&str]| {
        catchup(
            &site,
            &data,
            &[&["--remote-ssh-command", command], options].concat(),
        )
    };
    let command = sshd.command();
    there(&sshd.bare(), &[]).refused(1).says(&["is not in the PATH"]);
    there(&command, &["--dry-run"]).ok().says(&[
        id.as_str(),
        "on another host",
        "a standby on timeline 1",
        "own.d/stranger",
        "space.follower",
    ]);
    assert_eq!(site.checksums(&data), before);
    let words = [
        "catchup",
        "main",
        data.to_str().unwrap(),
        "--remote-ssh-command",
        &command,
    ];
    let mut is_cut = false;
    for pause in 1..=20 {
        let mut child = site.spawn(&[&words[..], &["--bwlimit", "500k"]].concat());
        std::thread::sleep(Duration::from_millis(150 * pause));
        sshd.cut();
        if child.wait().unwrap().success() {
            leave_behind(&primary);
            site.backup();
            continue;
        }
        is_cut =
            data.join(".barmanfs-restore-incomplete").exists() && !data.join("global/pg_control").exists();
        if is_cut {
            break;
        }
    }
    assert!(is_cut);
    let mut documents = Vec::new();
    until("the agent that was cut off has ended", || {
        let run = there(&command, &["--json"]);
        documents.push(run.text());
        run.code() == Some(0)
    });
    let done: serde_json::Value = serde_json::from_str(documents.last().unwrap()).unwrap();
    assert_eq!(
        (&done["remote"], &done["has_primary"]),
        (&true.into(), &true.into()),
        "{done}"
    );
    assert_own_tablespace(&site, &primary, &standby);
    standby.start();
    assert_streams(&primary, &standby, "follower");
    assert!(standby.query("SHOW restore_command").contains(" wal-restore "));
    assert_own_files(&standby);
    assert_equal(&primary, &standby);
    standby.stop_and_assert_checksums();
    // A primary that nothing has replaced stays as it is.
    primary.stop("fast");
    let before = site.checksums(&primary.data);
    let words = [
        "catchup",
        "main",
        primary.data.to_str().unwrap(),
        "--remote-ssh-command",
        &command,
    ];
    site.barmanfs(&words)
        .refused(1)
        .says(&["was a primary on timeline 1", "--force"]);
    assert_eq!(site.checksums(&primary.data), before);
}
