//! Two weeks of a real Barman's backups, by a clock of their own, and the same backups here under the same configuration: every
//! day both call the same ones OBSOLETE, under each of some policies, and at the end both delete the same ones.

use super::beside::STATUS;
use crate::common::barman::{Barman, archive_command};
use crate::common::clock::Clock;
use crate::common::process::{Run, run};
use crate::common::user::command;
use crate::common::{Install, PgServer, Site};
use std::collections::BTreeSet;
use std::fs;

const DAY: u64 = 24 * 3600;
const DAYS: u64 = 14;

/// Servers of the configuration, and what they have. Barman has the backups of all of them in one place.
const POLICIES: [(&str, &str); 4] = [
    ("main", "retention_policy = REDUNDANCY 3"),
    ("least", "retention_policy = REDUNDANCY 2\nminimum_redundancy = 5"),
    ("window", "retention_policy = RECOVERY WINDOW OF 4 DAYS"),
    (
        "weeks",
        "retention_policy = RECOVERY WINDOW OF 7 DAYS\nminimum_redundancy = 3",
    ),
];

/// Days without a backup, and with two.
const LEFT_OUT: [u64; 2] = [4, 9];
const TWICE: [u64; 1] = [6];

pub(super) fn two_weeks_of_backups_are_judged_as_by_barman(install: &'static Install) {
    let site = Site::with_repository();
    let mut clock = Clock::new(&site);
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    server.configure(&format!(
        "archive_mode = on\narchive_command = '{}'",
        archive_command(&site)
    ));
    server.environment = clock.environment();
    let midnight = clock.now() / DAY * DAY + DAY;
    clock.move_to(midnight);
    server.start();
    let Some(mut real) = Barman::new(&site, &server) else {
        return;
    };
    real.follow(&clock);
    configure(&site, &mut real);
    let (mut ids, mut obsolete) = (Vec::new(), 0);
    for day in 0..DAYS {
        if !LEFT_OUT.contains(&day) {
            for n in 0..=u64::from(TWICE.contains(&day)) {
                clock.move_to(midnight + day * DAY + (2 + n) * 3600);
                ids.push(real.backup(""));
                everybody_has(&site, ids.last().expect("a backup"));
            }
        }
        import(&site, &clock);
        if day == 5 {
            for line in [
                "keep --target full main",
                "keep --target standalone least",
                "keep --target full window",
            ] {
                let line = format!("{line} {}", ids[1]);
                real.sh(&format!("barman {line}")).ok();
                ours(&site, &clock, &line).ok();
            }
        }
        clock.move_to(midnight + day * DAY + 12 * 3600);
        let count = compare(&site, &clock, &real, &format!("day {day}"));
        if count > 0 {
            real.sh("barman cron --keep-descriptors").ok();
            run(&mut clock.command(&site, &["retention", "all", "--enforce"])).ok();
            let left = compare(&site, &clock, &real, &format!("day {day}, after the deletions"));
            assert!(left < count, "day {day}: {left} of {count} are left");
        }
        obsolete += count;
    }
    assert!(obsolete > 20, "{obsolete}");
    for (name, _) in POLICIES {
        the_same_is_said_of_it(&site, &clock, &real, name);
    }
    the_same_is_refused(&site, &clock, &real, &ids[1]);
}

/// What is said of a server's backups, line by line where it has the same meaning.
fn the_same_is_said_of_it(site: &Site, clock: &Clock, real: &Barman<'_>, name: &str) {
    for (line, keys) in [
        (format!("list-backups {name} --minimal"), &[][..]),
        (format!("show-backup {name} latest"), BACKUP),
        (format!("show-backup {name} oldest"), BACKUP),
        (format!("status {name}"), STATUS),
    ] {
        let theirs = real.sh(&format!("barman {line}")).ok().text();
        let found = ours(site, clock, &line).ok().text();
        if keys.is_empty() {
            assert_eq!(found, theirs, "{line}");
            continue;
        }
        let expected = values(&theirs, keys);
        assert!(expected.len() > 4, "{line}: {theirs}");
        let there = values(&found, keys);
        let missing: Vec<_> = expected.difference(&there).collect();
        assert!(missing.is_empty(), "{line}: {missing:?} are not in {found}");
    }
}

/// The lines `key: value` of these keys.
fn values(text: &str, keys: &[&str]) -> BTreeSet<(String, String)> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    // PostgreSQL 19 writes zeros in front of the second half of an LSN.
    let plain = |value: &str| match value.trim().split_once('/') {
        Some((high, low)) => format!("{high}/{}", low.trim_start_matches('0')),
        None => value.trim().to_owned(),
    };
    let pairs = pairs.map(|(key, value)| (key.trim().to_owned(), plain(value)));
    pairs.filter(|(key, _)| keys.contains(&key.as_str())).collect()
}

/// A backup that is kept, or that minimum_redundancy needs, is not deleted by hand; others are.
fn the_same_is_refused(site: &Site, clock: &Clock, real: &Barman<'_>, kept: &str) {
    for line in [
        &format!("delete main {kept}"),
        "delete weeks 20200101T000000",
        "delete least latest",
        "delete least latest",
        "delete window latest",
        "keep --status least latest",
    ] {
        let theirs = real.sh(&format!("barman {line}"));
        let found = ours(site, clock, line);
        assert_eq!(found.code(), theirs.code(), "{line}: {theirs}{found}");
    }
    compare(site, clock, real, "after deletions by hand");
}

const BACKUP: &[&str] = &[
    "Server Name",
    "Status",
    "Backup Name",
    "PostgreSQL Version",
    "Timeline",
    "Begin WAL",
    "End WAL",
    "Begin time",
    "End time",
    "Begin LSN",
    "End LSN",
    "Begin Offset",
    "End Offset",
    "Retention Policy",
    "Previous Backup",
    "Next Backup",
    "System Id",
];

/// The other servers of Barman get the same backup, and its WAL.
fn everybody_has(site: &Site, id: &str) {
    for (name, _) in &POLICIES[1..] {
        let script = format!(
            "cd {}/barman && mkdir -p {name}/base {name}/meta {name}/wals {name}/incoming {name}/errors {name}/streaming && \
             cp -al main/base/{id} {name}/base && cp -p main/identity.json {name} && cp -al main/wals/0* {name}/wals && \
             sed s/server_name=main/server_name={name}/ main/meta/{id}-backup.info >{name}/meta/{id}-backup.info && \
             for i in main/*/*xlog.db; do cp -p $i $(echo $i | sed s/main/{name}/g); done",
            site.path("").display()
        );
        site.sh(&script).ok();
    }
}

/// The same file for both, but for the repository.
fn configure(site: &Site, real: &mut Barman<'_>) {
    let (first, more) = POLICIES.split_first().expect("a policy");
    let method = "backup_method = local-rsync\nreuse_backup = link\ncompression = gzip";
    let mut lines = format!("{method}\n{}\n", first.1);
    for (name, policy) in more {
        lines += &format!(
            "[{name}]\ndescription = Test\nconninfo = host=/nowhere\narchiver = on\n{method}\n{policy}\n"
        );
    }
    real.set(&lines);
    let text = fs::read_to_string(site.path("barman.conf")).expect("Cannot read a file");
    let added = format!("[barman]\nrepository = {}\n", site.repository().display());
    site.write_file("barmanfs.conf", text.replacen("[barman]\n", &added, 1).as_bytes());
}

/// The program under Barman's name, at this time.
fn ours(site: &Site, clock: &Clock, line: &str) -> Run {
    let link = site.path("linked/barman");
    if !link.exists() {
        site.make_directory("linked");
        std::os::unix::fs::symlink(site.program(), &link).expect("Cannot make a link");
    }
    let mut command = command("env", &site.path(""));
    command
        .args(clock.environment())
        .arg(link)
        .arg("-c")
        .arg(site.config());
    run(command.args(line.split_whitespace()))
}

fn import(site: &Site, clock: &Clock) {
    let home = site.path("barman").display().to_string();
    for (name, _) in POLICIES {
        let line = ["import", name, "--barman-home", &home, "--from-server", name];
        run(clock.command(site, &line).env("NO_FAKE_STAT", "1")).ok();
    }
}

/// What both print of the backups of each server, without sizes. Barman calls a backup by rsync R; here each is complete, F.
fn listed(printed: &str) -> Vec<String> {
    let mut lines: Vec<String> = printed
        .lines()
        .map(|line| {
            let parts = line.split(" - ").filter(|part| !part.contains("Size: "));
            let parts: Vec<&str> = parts.map(|part| if part == "R" { "F" } else { part }).collect();
            parts.join(" - ")
        })
        .collect();
    // Barman sorts the servers by name.
    lines.sort_by_key(|line| line.split(' ').next().map(str::to_owned));
    lines
}

/// Returns how many of them are obsolete.
fn compare(site: &Site, clock: &Clock, real: &Barman<'_>, when: &str) -> usize {
    let theirs = real.sh("barman list-backups all").ok().text();
    let found = ours(site, clock, "list-backups all").ok().text();
    assert!(theirs.lines().count() >= POLICIES.len(), "{when}: {theirs}");
    assert_eq!(listed(&found), listed(&theirs), "{when}");
    theirs.lines().filter(|line| line.ends_with("OBSOLETE")).count()
}
