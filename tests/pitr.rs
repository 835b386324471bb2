//! Any point in time is a path: a copy of `pitr/<target>` that is started ends with exactly the commits up to there, on
//! every timeline. A target that cannot be reached does not exist, and `explain` says why.

use crate::common::process::until;
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::{Install, Load, Mount, PgServer, Site};
use std::path::{Path, PathBuf};

mod history;
mod targets;

use history::{History, MARKS, What, end_of_work, lsn_text};

topic! {
    with_postgres random_targets_on_all_timelines_are_reached_exactly,
    edges unreachable_targets_are_absent_and_explained,
    edges the_requested_action_happens_at_the_target,
    edges a_copy_made_while_wal_arrives_recovers,
    with_postgres settings_raised_since_the_backup_do_not_stop_recovery,
    edges a_killed_daemon_ends_recovery_without_promotion,
    once a_targets_files_stay_the_same,
}

/// Targets tried with the newest version, and with each other version.
const TARGETS: usize = 24;
const TARGETS_OF_OLDER: usize = 8;

/// Copies what is under `pitr/<target>`.
fn copy_of(site: &Site, mount: &Mount, install: &'static Install, target: &str) -> PgServer {
    let from = mount.path("main/pitr").join(target);
    PgServer::on(install, &site.copy(&from, "copy"))
}

/// Stops a copy and removes all of it: the next one has the same name.
fn remove(mut copy: PgServer) {
    copy.stop("immediate");
    let (data, sockets, log) = (copy.data.clone(), copy.sockets(), copy.log_file());
    drop(copy);
    for directory in [data, sockets] {
        std::fs::remove_dir_all(&directory)
            .unwrap_or_else(|error| panic!("Cannot remove {}: {error}", directory.display()));
    }
    std::fs::remove_file(&log).unwrap_or_else(|error| panic!("Cannot remove {}: {error}", log.display()));
}

fn random_targets_on_all_timelines_are_reached_exactly(install: &'static Install) {
    let mut random = Random::new("pitr");
    let history = History::make(install, &mut random);
    let site = &history.site;
    let mount = Mount::new(site);
    let targets = match install.is_newest() {
        true => TARGETS,
        false => TARGETS_OF_OLDER,
    };
    for round in 0..targets {
        let (target, expected) = history.target(round, &mut random);
        let what = format!("target {target:?} (seed {})", random.seed());
        println!("{what}");
        let mut copy = copy_of(site, &mount, install, &target);
        copy.start();
        copy.wait_until_promoted();
        assert_eq!(copy.query(MARKS), expected, "{what}\n{}", copy.log());
        remove(copy);
    }
}

/// Makes mounts log to a file.
fn log_of_mounts(site: &Site) -> PathBuf {
    let log = site.path("mount.log");
    let config = std::fs::read_to_string(site.config()).expect("Cannot read the configuration");
    let line = format!("[barmanfs]\nlog_file = {}", log.display());
    site.write_file("barmanfs.conf", config.replace("[barmanfs]", &line).as_bytes());
    log
}

fn unreachable_targets_are_absent_and_explained(install: &'static Install) {
    let mut random = Random::new("pitr");
    let history = History::make(install, &mut random);
    let site = &history.site;
    let log = log_of_mounts(site);
    let mount = Mount::new(site);
    let newest = history.courses.last().expect("a timeline");
    let early = &newest.events[2];
    let abandoned = end_of_work(44);
    for (target, words) in [
        (history.written(early.time, 0), "before the end of every backup"),
        (lsn_text(early.lsn, "-"), "before the end of every backup"),
        ("2099-01-01 00:00:00+00".to_owned(), "nothing"),
        ("FF-0".to_owned(), "timeline 3"),
        ("xid:4000000000".to_owned(), "timeline 3"),
        ("name:never made".to_owned(), "timeline 3"),
        (format!("name:{abandoned}"), "timeline=1"),
        ("now,timeline=9".to_owned(), "timeline 9"),
        ("now,backup=20200101T000000".to_owned(), "20200101T000000"),
        ("yesterday".to_owned(), "yesterday"),
        ("11%2F12%2F2026".to_owned(), "11/12/2026"),
        ("now,exclusive".to_owned(), "exclusive"),
        ("whatever".to_owned(), "whatever"),
    ] {
        let path = mount.path("main/pitr").join(&target);
        site.sh(&format!("ls -d '{}'", path.display()))
            .refused(2)
            .says(&["No such file"]);
        // The reason is logged once, however often the target is looked up.
        site.sh(&format!("ls -d '{}'", path.display())).refused(2);
        let log = std::fs::read_to_string(&log).expect("Cannot read the log");
        let logged: Vec<&str> = log
            .lines()
            .filter(|line| line.contains(&format!("pitr/{target}:")))
            .collect();
        assert_eq!(logged.len(), 1, "{target}: {log}");
        site.barmanfs(&["explain", "main", &target])
            .rejected()
            .says(&[words]);
        assert!(
            logged[0].to_lowercase().contains(&words.to_lowercase()),
            "{words:?} is not in {}",
            logged[0]
        );
    }
    // The same target on its own timeline exists.
    let path = mount
        .path("main/pitr")
        .join(format!("name:{abandoned},timeline=1"));
    site.sh(&format!("ls -d '{}'", path.display())).ok();
    site.ok(&["explain", "main", &format!("name:{abandoned},timeline=1")]);
}

fn the_requested_action_happens_at_the_target(install: &'static Install) {
    let mut random = Random::new("pitr");
    let history = History::make(install, &mut random);
    let site = &history.site;
    let course = history.courses.last().expect("a timeline");
    let (place, event) = course
        .events
        .iter()
        .enumerate()
        .rfind(|(_, event)| matches!(event.what, What::Mark { .. }))
        .expect("a mark");
    let target = lsn_text(event.lsn, "-");
    let marks = course.marks_after(place + 1);
    let mount = Mount::foreground(site, &["--recovery-target-action", "pause"]);

    let mut copy = copy_of(site, &mount, install, &target);
    copy.start();
    until("recovery pauses", || {
        copy.query("SELECT pg_is_wal_replay_paused()") == "t"
    });
    assert_eq!(copy.query(MARKS), marks);
    copy.query("SELECT pg_wal_replay_resume()");
    copy.wait_until_promoted();
    remove(copy);

    let mut copy = copy_of(site, &mount, install, &format!("{target},action=shutdown"));
    copy.try_start();
    until("the copy has shut down", || {
        copy.log().contains("database system is shut down")
    });
    copy.configure_auto("recovery_target_action = 'promote'");
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query(MARKS), marks);
    remove(copy);

    let mut copy = copy_of(site, &mount, install, &format!("{target},action=promote"));
    copy.start();
    copy.wait_until_promoted();
    copy.query("INSERT INTO marks VALUES (-1)");
}

fn a_copy_made_while_wal_arrives_recovers(install: &'static Install) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    crate::common::load::fill(&server, 1);
    site.backup();
    let mount = Mount::new(&site);
    let load = Load::start(&server);
    crate::common::load::transact(&server, 500);
    for target in ["now", "now,self-contained"] {
        let before = crate::common::load::transactions(&server);
        server.archive_current_segment();
        let mut copy = copy_of(&site, &mount, install, target);
        copy.start();
        copy.wait_until_promoted();
        assert!(crate::common::load::transactions(&copy) >= before, "{target}");
        crate::common::load::assert_sums_agree(&copy);
        remove(copy);
    }
    load.stop();
}

fn settings_raised_since_the_backup_do_not_stop_recovery(install: &'static Install) {
    let (site, mut server) = Site::with_server(install);
    site.backup();
    server.stop("fast");
    server.configure("max_connections = 200\nmax_prepared_transactions = 50");
    server.start();
    server.query("CREATE TABLE marks AS SELECT 1 AS n");
    server.archive_current_segment();
    let mount = Mount::new(&site);
    let mut copy = copy_of(&site, &mount, install, "now");
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query(MARKS), "1");
}

/// The copy's restore_command, as PostgreSQL gives it to the shell, for one file.
fn restore_command(copy: &PgServer, file: &str) -> String {
    let conf = std::fs::read_to_string(copy.data.join("postgresql.auto.conf")).expect("a configuration");
    let line = conf
        .lines()
        .rfind(|line| line.starts_with("restore_command = "))
        .expect("a restore_command");
    let command = line
        .trim_start_matches("restore_command = '")
        .trim_end_matches('\'')
        .replace("''", "'")
        .replace("\\\\", "\\");
    command.replace("%f", file).replace("%p", "fetched")
}

fn a_killed_daemon_ends_recovery_without_promotion(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    server.query("CREATE TABLE marks AS SELECT 1 AS n");
    let segment = server.archive_current_segment();
    let absent = "0000000100000000000000FE";
    let mut mount = Mount::foreground(&site, &[]);
    let mut copy = copy_of(&site, &mount, install, "now");
    assert_eq!(site.sh(&restore_command(&copy, &segment)).code(), Some(0));
    assert_eq!(site.sh(&restore_command(&copy, absent)).code(), Some(1));
    mount.kill();
    for file in [&segment, absent, "00000002.history"] {
        assert_eq!(site.sh(&restore_command(&copy, file)).code(), Some(255), "{file}");
    }
    assert_ne!(copy.try_start().code(), Some(0));
    assert!(copy.log().contains("FATAL"), "{}", copy.log());
    assert_eq!(copy.timeline(), 1, "It was promoted");
    drop(mount);
    let mount = Mount::new(&site);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query(MARKS), "1");
    mount.unmount();
}

/// Every file and directory under a path with its inode number.
fn inodes(site: &Site, path: &Path) -> String {
    let script = format!(
        "cd '{}' && find . -printf '%i %s %T@ %p\\n' | LC_ALL=C sort",
        path.display()
    );
    site.sh(&script).ok().text()
}

fn a_targets_files_stay_the_same(install: &'static Install) {
    let mut random = Random::new("pitr");
    let history = History::make(install, &mut random);
    let (site, server) = (&history.site, &history.server);
    let (_, event) = history.courses[0]
        .reachable()
        .map(|place| (place, &history.courses[0].events[place]))
        .next()
        .expect("an event");
    let (lsn, other) = (lsn_text(event.lsn, "-"), lsn_text(event.lsn, "%2F"));
    let targets = ["now".to_owned(), lsn.clone(), format!("{lsn},self-contained")];
    let look = |mount: &Mount| -> Vec<(String, String)> {
        let seen = |target: &String| {
            let path = mount.path("main/pitr").join(target);
            (inodes(site, &path), site.checksums(&path))
        };
        targets.iter().map(seen).collect()
    };
    let mount = Mount::new(site);
    let before = look(&mount);
    assert_eq!(
        site.checksums(&mount.path("main/pitr").join(&lsn)),
        site.checksums(&mount.path("main/pitr").join(&other)),
        "two ways to write one LSN"
    );
    // More WAL does not change it.
    server.query("INSERT INTO marks VALUES (-1)");
    server.archive_current_segment();
    assert_eq!(look(&mount), before);
    mount.unmount();
    let mount = Mount::new(site);
    assert_eq!(look(&mount), before, "after mounting again");
    // All listed names exist.
    let names = site.list(&mount.path("main/pitr"));
    assert!(names.contains(&"now".to_owned()), "{names:?}");
    assert!(names.contains(&format!("name:{}", "end%20of%20104")), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("lsn:")), "{names:?}");
    for name in &names {
        server.verify_backup(&mount.path("main/pitr").join(name), None);
    }
}
