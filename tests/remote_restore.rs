//! `barmanfs restore --remote-ssh-command`: the same tree on another host, behind a real sshd. Whatever cuts the connection,
//! PostgreSQL starts there only when all of it is there.

use crate::common::disk::SmallDisk;
use crate::common::load::fill;
use crate::common::moments::{Moments, rows};
use crate::common::network::Network;
use crate::common::process::{Run, until};
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::sshd::Sshd;
use crate::common::tree::differences;
use crate::common::{Install, PgServer, Site};
use crate::restore::{KINDS, MARKER, is_startable};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

topic! {
    once a_remote_tree_is_the_local_one,
    once what_is_started_there_fetches_its_wal,
    once what_cannot_be_restored_there_is_refused_before_anything_is_written,
    once a_cut_restore_never_starts_there,
    once a_full_disk_over_there_is_reported(as_root),
    once a_silent_network_ends_a_restore(as_root),
    once an_agent_makes_any_directory_equal_to_a_fresh_restore,
    once a_cut_restore_by_an_agent_is_continued,
    alone what_speaks_to_an_agent_is_checked,
}

/// What differs between two restores of one backup.
const OWN: [&str; 3] = [
    ".barmanfs-restore.json",
    "backup_manifest",
    "postgresql.auto.conf",
];

fn assert_equal(expected: &Path, found: &Path) {
    let skip = |path: &str| OWN.contains(&path);
    assert_eq!(differences(expected, found, &skip), [""; 0]);
    for directory in ["", "base", "global"] {
        let time = |path: &Path| fs::metadata(path.join(directory)).unwrap().modified().unwrap();
        let second = |path: &Path| {
            time(path)
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_secs()
        };
        assert_eq!(second(expected), second(found), "{directory}");
    }
}

fn restore_by(site: &Site, command: &str, name: &str, options: &[&str]) -> Run {
    let directory = site.path(name);
    let words = [
        "restore",
        "main",
        "auto",
        directory.to_str().unwrap(),
        "--remote-ssh-command",
        command,
    ];
    site.barmanfs(&[&words, options].concat())
}

fn site_with_sshd(install: &'static Install) -> (Site, PgServer, Sshd) {
    let (site, server) = Site::with_server(install);
    site.write_config_of(&server, "recovery_host = backup\n");
    let sshd = Sshd::start(&site);
    (site, server, sshd)
}

fn on_the_other_host(install: &'static Install, site: &Site, sshd: &Sshd, name: &str) -> PgServer {
    let mut server = PgServer::on(install, &site.path(name));
    server.environment.push(sshd.path());
    server
}

fn a_remote_tree_is_the_local_one(install: &'static Install) {
    let (site, server, sshd) = site_with_sshd(install);
    let space = site.make_directory("space");
    server.query(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
    server.query("CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 1000) n");
    server.query("CREATE TABLE sparse AS SELECT 1 n");
    fill(&server, 2);
    site.backup();
    server.await_archiver();
    server.query("CREATE TABLE later AS SELECT 1 n");
    server.archive_current_segment();
    let contained = ["--no-get-wal", "--target-immediate"];
    let here = site.path("here").display().to_string();
    site.ok(&[&["restore", "main", "auto", &here][..], &contained].concat());
    // A name that a shell takes apart is taken as it is.
    let name = "it's/x  y";
    restore_by(
        &site,
        &sshd.bare(),
        name,
        &[&contained[..], &["-j", "3"]].concat(),
    )
    .ok();
    assert_equal(&site.path("here"), &site.path(name));
    assert!(!site.path(name).join(MARKER).exists());
    server.verify_backup(&site.path(name), None);
    fs::rename(site.path(name), site.path("contained")).unwrap();
    let mut copy = PgServer::on(install, &site.path("contained"));
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SELECT count(*) FROM there"), "1000");
    copy.assert_sound();
    copy.stop("immediate");

    // A tablespace elsewhere, and WAL that is fetched from here.
    let elsewhere = format!("fast:{}", site.path("else:where/fast").display());
    let run = restore_by(&site, &sshd.bare(), "fetching", &["--tablespace", &elsewhere]).ok();
    run.says(&["on another host", "barmanfs, which the other host does not have"]);
    let mut copy = on_the_other_host(install, &site, &sshd, "fetching");
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(
        copy.query("SELECT (SELECT count(*) FROM there) + n FROM later"),
        "1001"
    );
    let oid = copy.query("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'");
    let link = fs::read_link(site.path("fetching/pg_tblspc").join(&oid)).unwrap();
    assert_eq!(link, site.path("else:where/fast"));
    let inside = site.path("here/pg_tblspc").join(oid);
    assert_eq!(site.list(&link), site.list(&inside));
    assert!(
        copy.query("SHOW restore_command")
            .contains(" wal-restore --replay --partial -U ")
    );
}

fn what_is_started_there_fetches_its_wal(install: &'static Install) {
    let (site, server, sshd) = site_with_sshd(install);
    server.query("CREATE TABLE rows AS SELECT 1 n");
    let backup = site.backup();
    Moments::pass(&server);
    // Nothing listens at that port: this is no end of the archive.
    let options = ["--target-name", "two", "--recovery-option-port", "1"];
    restore_by(&site, &sshd.bare(), "copy", &options).ok();
    let mut copy = on_the_other_host(install, &site, &sshd, "copy");
    copy.try_start();
    until("recovery stops", || copy.log().contains("could not restore file"));
    assert_eq!(copy.timeline(), 1);
    let report = restore_by(&site, &sshd.bare(), "none", &["--dry-run", "--json"]).ok();
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(
        (&report["remote"], &report["backup"]),
        (&true.into(), &backup.into())
    );
    assert!(!site.path("none").exists());
    as_a_standby(install, &site, &server, &sshd);
}

fn as_a_standby(install: &'static Install, site: &Site, server: &PgServer, sshd: &Sshd) {
    let options = ["--standby-mode", "--primary-conninfo", &server.conninfo()];
    restore_by(site, &sshd.bare(), "standby", &options).ok();
    let mut standby = on_the_other_host(install, site, sshd, "standby");
    standby.start();
    server.query("INSERT INTO rows VALUES (5)");
    until("the standby follows its primary", || {
        rows(&standby) == "1,2,3,4,5"
    });
    standby.stop("immediate");
}

fn what_cannot_be_restored_there_is_refused_before_anything_is_written(install: &'static Install) {
    let (site, server, sshd) = site_with_sshd(install);
    fill(&server, 1);
    site.backup();
    site.make_directory("full");
    site.write_file("full/mine", b"mine");
    let path = |name: &str| site.path(name).display().to_string();
    let (bare, full, new) = (sshd.bare(), path("full"), path("new"));
    let unreachable = format!("{} -p 1", sshd.command());
    for (command, destination, options, reason) in [
        (bare.as_str(), "new", &[][..], "relative"),
        (&bare, "host:/srv/main", &[], "colon"),
        (&bare, &full, &[], "is not empty"),
        (&bare, &full, &["--delta-restore"], "needs barmanfs"),
        (
            &bare,
            server.data.to_str().unwrap(),
            &["--delta-restore"],
            "A server is running",
        ),
        (&bare, &path("full/mine/below"), &[], "no directory"),
        (&bare, "/", &[], "root of the file system"),
        (&bare, "/proc/new", &[], "on the other host"),
        ("", &new, &[], "is empty"),
        ("true", &new, &[], "does not answer"),
        (
            "/bin/sh -c 'exit 255'",
            &new,
            &[],
            "connection to the other host has failed",
        ),
        (&unreachable, &new, &[], "connection refused"),
    ] {
        let words = [
            "restore",
            "main",
            "auto",
            destination,
            "--remote-ssh-command",
            command,
        ];
        site.barmanfs(&[&words, options].concat())
            .rejected()
            .says(&[reason]);
    }
    assert_eq!(site.list(&site.path("full")), ["mine"]);
    assert!(!site.path("new").exists());
    let said = restore_by(&site, &unreachable, "new", &[]).refused(1);
    assert_eq!(
        said.stderr
            .lines()
            .filter(|line| line.contains("refused"))
            .count(),
        1,
        "{said}"
    );
    by_a_name_of_no_use(&site, &server, &bare);
}

/// Every host is called so.
fn by_a_name_of_no_use(site: &Site, server: &PgServer, bare: &str) {
    let new = site.path("new").display().to_string();
    site.write_config(&[("main", server)]);
    let script = format!(
        "mkdir '{0}/names'; printf '#!/bin/sh\\necho localhost.localdomain\\n' > '{0}/names/hostname'; \
         chmod +x '{0}/names/hostname'; PATH='{0}/names':$PATH '{1}' -c '{2}' restore main auto '{new}' \
         --remote-ssh-command '{bare}'",
        site.path("").display(),
        site.program().display(),
        site.config().display()
    );
    site.sh(&script)
        .refused(1)
        .says(&["recovery_host", "--no-get-wal"]);
    assert!(!site.path("new").exists());
}

/// The options of restores that are cut, and of the one that they are compared with.
const OPTIONS: [&str; 2] = ["--target-immediate", "--no-get-wal"];

/// A site with a backup that is restored into `here`.
fn restored_here(install: &'static Install) -> (Site, PgServer, Sshd) {
    let (site, server, sshd) = site_with_sshd(install);
    fill(&server, 4);
    site.backup();
    server.await_archiver();
    let here = site.path("here").display().to_string();
    site.ok(&[&["restore", "main", "auto", &here][..], &OPTIONS].concat());
    (site, server, sshd)
}

/// Restores into `there`, and cuts that after a time: by turns the command, and the connections. Returns whether the restore
/// has ended well.
fn restore_and_cut(
    site: &Site,
    sshd: &Sshd,
    (command, rate): (&str, &str),
    after: Duration,
    round: u64,
) -> bool {
    let there = site.path("there").display().to_string();
    let words = ["restore", "main", "auto", &there, "--remote-ssh-command", command];
    let mut child = site.spawn(&[&words[..], &OPTIONS, &["--bwlimit", rate]].concat());
    std::thread::sleep(after);
    match round % 2 {
        0 => drop(child.kill()),
        _ => sshd.cut(),
    }
    child.wait().unwrap().success()
}

/// It is not both startable and incomplete.
fn assert_not_startable_in_part(directory: &Path, round: u64) {
    assert!(
        !is_startable(directory) || !directory.join(MARKER).exists(),
        "round {round}"
    );
}

/// `there` is as `here`, and its server is sound.
fn assert_restored(install: &'static Install, site: &Site) {
    let directory = site.path("there");
    assert_equal(&site.path("here"), &directory);
    let mut copy = PgServer::on(install, &directory);
    copy.start();
    copy.wait_until_promoted();
    copy.assert_sound();
}

fn a_cut_restore_never_starts_there(install: &'static Install) {
    let (site, _server, sshd) = restored_here(install);
    let mut random = Random::new("remote_restore");
    let directory = site.path("there");
    let (there, command) = (directory.display().to_string(), sshd.bare());
    for round in 0..8_u64 {
        let after = Duration::from_millis(100 + random.below(400 * (round + 1)));
        let is_done = restore_and_cut(&site, &sshd, (&command, "40M"), after, round);
        // What it had started over there may write a little longer.
        let writers = format!("pgrep -f '[t]ar -x -p -C {there}' || true");
        until("nothing writes there", || site.sh(&writers).text().is_empty());
        if is_done {
            break;
        }
        assert_not_startable_in_part(&directory, round);
        if directory.join(MARKER).exists() {
            restore_by(&site, &command, "there", &OPTIONS)
                .refused(1)
                .says(&["incomplete restore", "remove the directory"]);
            assert_ne!(PgServer::on(install, &directory).try_start().code(), Some(0));
        }
        site.sh(&format!("rm -rf '{there}'")).ok();
    }
    if !is_startable(&directory) {
        restore_by(&site, &command, "there", &OPTIONS).ok();
    }
    assert_restored(install, &site);
}

fn a_full_disk_over_there_is_reported(install: &'static Install) {
    let (site, server, sshd) = site_with_sshd(install);
    fill(&server, 4);
    // A tar writes holes as zeros.
    site.sh(&format!("truncate -s 120M '{}/sparse'", server.data.display()))
        .ok();
    site.backup();
    let point = site.make_directory("small");
    let disk = SmallDisk::mount(&point, 40);
    restore_by(&site, &sshd.bare(), "small/data", &["--target-immediate"])
        .refused(1)
        .says(&["free", "needed"]);
    disk.grow(180);
    let dry = ["--target-immediate", "--dry-run"];
    restore_by(&site, &sshd.bare(), "small/data", &dry)
        .refused(1)
        .says(&["free", "needed"]);
    restore_by(&site, &sshd.command(), "small/data", &dry).ok();
    assert_eq!(site.list(&point), [""; 0]);
    disk.grow(400);
    for command in [sshd.bare(), sshd.command()] {
        fills_up(&site, &point, &command);
        fs::remove_dir_all(point.join("data")).unwrap();
        fs::remove_file(point.join("filler")).unwrap();
    }
}

fn fills_up(site: &Site, point: &Path, command: &str) {
    let data = point.join("data");
    let words = ["--target-immediate", "--no-get-wal", "--bwlimit", "20M"];
    let filling = format!(
        "while ! [ -e '{0}/data/base' ]; do sleep 0.02; done; dd if=/dev/zero of='{0}/filler' bs=1M 2>/dev/null",
        point.display()
    );
    let mut filling = site.sh_command(&filling).spawn().unwrap();
    restore_by(site, command, "small/data", &words).refused(1).says(&[
        "on the other host",
        "No space left",
        "full",
        "incomplete",
    ]);
    filling.wait().unwrap();
    assert!(data.join(MARKER).exists() && !is_startable(&data));
}

/// The cable is pulled: nobody is told, and TCP would wait for a quarter of an hour or for ever.
fn a_silent_network_ends_a_restore(install: &'static Install) {
    let Some(network) = Network::new() else { return };
    let (site, server) = Site::with_server(install);
    fill(&server, 4);
    site.backup();
    server.await_archiver();
    let here = site.path("here").display().to_string();
    site.ok(&[&["restore", "main", "auto", &here][..], &OPTIONS].concat());
    let sshd = Sshd::behind(&site, &network);
    let slowly = [&OPTIONS[..], &["--bwlimit", "2M"]].concat();
    let (site, slowly) = (&site, &slowly);
    std::thread::scope(|scope| {
        let restoring = [("bare", sshd.bare()), ("there", sshd.command())].map(|(name, command)| {
            scope.spawn(move || {
                let ended = restore_by(site, &command, name, slowly);
                (ended, Instant::now())
            })
        });
        until("both have begun", || {
            let is_filling =
                |name| fs::read_dir(site.path(name).join("base/1")).is_ok_and(|files| files.count() > 20);
            ["bare", "there"].into_iter().all(is_filling)
        });
        network.cut();
        let cut = Instant::now();
        for (ended, at) in restoring.map(|thread| thread.join().unwrap()) {
            ended
                .refused(1)
                .says(&["does not answer any more", "on the other host"]);
            assert!(at - cut < Duration::from_secs(90), "{:?}", at - cut);
        }
    });
    for name in ["bare", "there"] {
        assert!(!is_startable(&site.path(name)));
    }
    network.mend();
    // What was over there has noticed it, too. The kernel may remember for some seconds that the other host did not answer.
    until("the other host can be reached", || {
        let run = restore_by(site, &sshd.command(), "there", &OPTIONS);
        let unreachable = ["No route to host", "Connection timed out"];
        if !unreachable.iter().any(|text| run.all().contains(text)) {
            run.ok();
            return true;
        }
        false
    });
    assert_restored(install, site);
}

fn an_agent_makes_any_directory_equal_to_a_fresh_restore(install: &'static Install) {
    let (site, server, sshd) = site_with_sshd(install);
    fill(&server, 1);
    server.query("CREATE TABLE later AS SELECT generate_series(1, 20000) n");
    site.backup();
    server.await_archiver();
    let command = sshd.command();
    let options = ["--target-immediate", "--no-get-wal", "-j", "3"];
    let here = site.path("here").display().to_string();
    site.ok(&[&["restore", "main", "auto", &here][..], &options].concat());
    let fresh = site.path("here");
    restore_by(&site, &command, "there", &options).ok();
    assert_equal(&fresh, &site.path("there"));
    restore_by(&site, &command, "there", &options)
        .refused(1)
        .says(&["on the other host", "is not empty"]);
    let delta = [&options[..], &["--delta-restore", "--json"]].concat();
    for (kind, script) in KINDS.into_iter().filter(|(_, script)| !script.is_empty()) {
        let directory = site.copy(&fresh, "updated");
        site.sh(&format!("cd '{}' && {script}", directory.display())).ok();
        let run = restore_by(&site, &command, "updated", &delta).ok();
        let report: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
        assert_equal(&fresh, &directory);
        let written = report["written_bytes"].as_u64().unwrap();
        let little = report["bytes"].as_u64().unwrap() / 100;
        assert_eq!(written < little, kind == "nothing", "{kind}: {run}");
        site.sh(&format!(
            "cd '{}' && rm -rf updated outside* wal.d",
            site.path("").display()
        ))
        .ok();
    }
    let there = site.path("there");
    site.sh(&format!(
        "cd '{}' && mkdir log && echo a > log/a && echo b > mine",
        there.display()
    ))
    .ok();
    let listed = restore_by(
        &site,
        &command,
        "there",
        &[&delta[..], &["--keep", "log", "--dry-run"]].concat(),
    )
    .ok();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(
        (&listed["removed"], &listed["state"]),
        (&serde_json::json!(["mine"]), &"older".into())
    );
    assert!(there.join("mine").exists());
    site.sh(&format!(
        "cd '{}' && mv pg_wal ../volume && ln -s ../volume pg_wal",
        there.display()
    ))
    .ok();
    restore_by(
        &site,
        &command,
        "there",
        &[&options[..], &["--delta-restore"]].concat(),
    )
    .ok()
    .says(&["pg_wal is a link to ../volume, which stays"]);
    // A server that runs there is found by the agent.
    let mut copy = PgServer::on(install, &there);
    copy.start();
    copy.wait_until_promoted();
    restore_by(&site, &command, "there", &delta)
        .refused(1)
        .says(&["A server is running"]);
    copy.stop("fast");
    let elsewhere = site.path("main").display().to_string();
    let words = [
        "restore",
        "main",
        "auto",
        &elsewhere,
        "--delta-restore",
        "--remote-ssh-command",
        &command,
    ];
    site.barmanfs(&words).refused(1).says(&["A server is running"]);
}

fn a_cut_restore_by_an_agent_is_continued(install: &'static Install) {
    let (site, _server, sshd) = restored_here(install);
    let mut random = Random::new("remote_restore.agent");
    let (directory, command) = (site.path("there"), sshd.command());
    for round in 0..6_u64 {
        let after = Duration::from_millis(200 + random.below(300 * (round + 1)));
        if restore_and_cut(&site, &sshd, (&command, "8M"), after, round) {
            break;
        }
        assert_not_startable_in_part(&directory, round);
        if directory.join(MARKER).exists() {
            // Without an agent nobody knows what is there.
            restore_by(&site, &sshd.bare(), "there", &OPTIONS)
                .refused(1)
                .says(&["incomplete restore"]);
            assert_ne!(PgServer::on(install, &directory).try_start().code(), Some(0));
        }
    }
    if !is_startable(&directory) {
        // The agent of a killed restore notices that nobody is there any more.
        until("it is continued", || {
            let again = restore_by(&site, &command, "there", &OPTIONS);
            again.code() == Some(0) || {
                again.says(&["Another restore writes"]);
                false
            }
        });
    }
    assert_restored(install, &site);
}

fn what_speaks_to_an_agent_is_checked() {
    let site = Site::new();
    for hostile in ["GET / HTTP/1.1", "M\\377\\377\\377\\377", "M\\0\\0\\0\\2{}", ""] {
        let script = format!(
            "printf '{hostile}' | '{}' agent | tr -d '\\0'",
            site.program().display()
        );
        let said = site.sh(&script).all();
        assert!(
            said.contains("does not speak as barmanfs does") || said.contains("has ended the connection"),
            "{hostile}: {said}"
        );
    }
}
