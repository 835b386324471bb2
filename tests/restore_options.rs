//! Every option of `restore`, here and on another host: the same tree, the same settings, the same refusal. What is started
//! is the copy of this host, and its rows are compared.

use crate::common::moments::rows;
use crate::common::process::Run;
use crate::common::registry::topic;
use crate::common::sshd::Sshd;
use crate::common::tree::differences;
use crate::common::{Install, PgServer, Site};
use crate::restore::{Moments, moments};
use Expected::{Has, Holds, Refused, RefusedHere, RefusedThere, Rows, Says};
use std::fs;
use std::path::Path;

topic! {
    once every_option_does_the_same_here_and_there,
}

/// What a restore leads to.
#[derive(Debug, Clone, Copy)]
enum Expected<'a> {
    /// The server that is started has these rows.
    Rows(&'a str),
    /// This file of the copy has this line.
    Holds(&'a str, &'a str),
    /// The copy has this file.
    Has(&'a str),
    /// It is said. Nothing is written (`--dry-run`).
    Says(&'a str),
    /// With this reason, and nothing is written.
    Refused(&'a str),
    /// Only here.
    RefusedHere(&'a str),
    /// Only there, without barmanfs over there.
    RefusedThere(&'a str),
}

const AUTO: &str = "auto";
const SETTINGS: &str = "postgresql.auto.conf";
const RECOVERY_SETTINGS: &str = "recovery.settings";

fn every_option_does_the_same_here_and_there(install: &'static Install) {
    let moments = moments(install);
    let Moments {
        site,
        backups,
        server,
        ..
    } = &moments;
    let programs = format!(
        "path_prefix = {}\nrecovery_host = backup\n",
        install.bindir.display()
    );
    site.write_config_of(server, &programs);
    let fetch = format!(
        "'{}' -c '{}' get-wal main %f %p",
        site.program().display(),
        site.config().display()
    );
    let ([first, second], fetch) = (backups.each_ref().map(String::as_str), fetch.as_str());
    let (time, lsn, xid) = (moments.time.as_str(), moments.lsn.as_str(), moments.xid.as_str());
    let fetching = format!("restore_command = '{}'", fetch.replace('\'', "''"));
    let table: [(&str, &[&str], Expected<'_>); 55] = [
        // The target.
        (AUTO, &[], Rows("1,2,3,4")),
        (first, &["--no-get-wal"], Rows("1,2,3,4")),
        (first, &["--target-immediate"], Rows("")),
        (AUTO, &["--target-immediate"], Rows("1")),
        (AUTO, &["--target-time", time], Rows("1,2")),
        (first, &["--target-lsn", lsn, "--no-get-wal"], Rows("1,2")),
        (AUTO, &["--target-xid", xid], Rows("1,2,3")),
        (AUTO, &["--target-xid", xid, "--exclusive"], Rows("1,2")),
        (
            second,
            &["--target-name", "two", "--target-tli", "current"],
            Rows("1,2"),
        ),
        (
            AUTO,
            &["--target-name", "two"],
            Holds(SETTINGS, "recovery_target_name = 'two'"),
        ),
        (
            AUTO,
            &["--target-tli", "latest"],
            Holds(SETTINGS, "recovery_target_timeline = '1'"),
        ),
        (
            AUTO,
            &["--target-tli", "1"],
            Holds(SETTINGS, "recovery_target_timeline = '1'"),
        ),
        (
            AUTO,
            &["--target-xid", xid, "--target-immediate"],
            Refused("multiple targets"),
        ),
        (
            AUTO,
            &["--target-name", "two", "--exclusive"],
            Refused("exclusive"),
        ),
        (
            AUTO,
            &["--target-name", "two", "--target-tli", "current"],
            Refused("current"),
        ),
        (AUTO, &["--target-tli", "7"], Refused("timeline 7")),
        // The action.
        (
            AUTO,
            &["--target-name", "two", "--target-action", "pause"],
            Holds(SETTINGS, "recovery_target_action = 'pause'"),
        ),
        (
            AUTO,
            &["--target-name", "two", "--target-action", "shutdown"],
            Holds(SETTINGS, "recovery_target_action = 'shutdown'"),
        ),
        (
            AUTO,
            &["--target-name", "two", "--target-action", "promote"],
            Holds(SETTINGS, "recovery_target_action = 'promote'"),
        ),
        (
            AUTO,
            &["--target-action", "pause"],
            Refused("PITR is not required"),
        ),
        // A standby.
        (AUTO, &["--standby-mode"], Has("standby.signal")),
        (
            AUTO,
            &["--standby-mode", "--primary-conninfo", "host=db1"],
            Holds(SETTINGS, "primary_conninfo = 'host=db1'"),
        ),
        (
            AUTO,
            &["--primary-conninfo", "host=db1"],
            Refused("--standby-mode"),
        ),
        // Its WAL.
        (AUTO, &["--get-wal"], Says("fetched when it is started")),
        (
            AUTO,
            &["--get-wal", "--no-get-wal"],
            Refused("cannot be used with"),
        ),
        (
            AUTO,
            &["--no-get-wal", "--partial-wal"],
            Says("Without effect: --partial-wal"),
        ),
        (AUTO, &["--restore-command", fetch], Rows("1,2,3,4")),
        (
            AUTO,
            &["--restore-command", fetch, "--target-lsn", lsn],
            Holds(SETTINGS, &fetching),
        ),
        (
            AUTO,
            &["--restore-command", fetch, "--no-get-wal"],
            Says("--restore-command is without effect: all WAL is in the copy"),
        ),
        (
            AUTO,
            &["--recovery-option-port", "2222"],
            RefusedHere("--remote-ssh-command"),
        ),
        (
            AUTO,
            &["--recovery-conf-filename", RECOVERY_SETTINGS],
            Holds(RECOVERY_SETTINGS, "recovery_target_timeline = '1'"),
        ),
        (AUTO, &["--recovery-conf-filename", "../a"], Refused("../a")),
        (AUTO, &["--same-timeline"], Rows("1,2,3,4")),
        (
            AUTO,
            &["--keep-origin", "--target-immediate"],
            Has("postgresql.conf.origin"),
        ),
        // Tablespaces.
        (
            AUTO,
            &["--tablespace", "fast:/srv/fast"],
            Refused("no tablespace 'fast'"),
        ),
        (AUTO, &["--tablespace", "fast"], Refused("NAME:LOCATION")),
        (
            AUTO,
            &["--tablespace-layout", "original", "--target-immediate"],
            Has("recovery.signal"),
        ),
        // What is there.
        (
            AUTO,
            &["--delta-restore", "--target-immediate"],
            RefusedThere("needs barmanfs"),
        ),
        (AUTO, &["--keep", "log"], Refused("--delta-restore")),
        // How it is copied.
        (AUTO, &["-j", "3", "--target-immediate"], Has("recovery.signal")),
        (
            AUTO,
            &["--bwlimit", "1G", "--target-immediate"],
            Has("recovery.signal"),
        ),
        (
            AUTO,
            &["--jobs-start-batch-size", "1", "--jobs-start-batch-period", "1"],
            Says("--jobs-start-batch-size"),
        ),
        (
            AUTO,
            &["--network-compression"],
            Says("Without effect: --network-compression"),
        ),
        (
            AUTO,
            &["--no-network-compression"],
            Says("Without effect: --no-network-compression"),
        ),
        (
            AUTO,
            &["--retry-times", "2", "--retry-sleep", "1"],
            Says("Without effect: --retry-times, --retry-sleep"),
        ),
        (AUTO, &["--no-retry"], Says("Without effect: --no-retry")),
        // What there is no need for, and what there is not.
        (
            AUTO,
            &["--staging-wal-directory", "/tmp"],
            Says("Nothing is staged"),
        ),
        (
            AUTO,
            &["--staging-path", "/tmp", "--staging-location", "local"],
            Says("Nothing is staged"),
        ),
        (AUTO, &["--combine-mode", "copy"], Says("Nothing is staged")),
        (
            AUTO,
            &["--recovery-staging-path", "/tmp", "--local-staging-path", "/tmp"],
            Says("Nothing is staged"),
        ),
        (
            AUTO,
            &["--snapshot-recovery-instance", "a"],
            Refused("not supported"),
        ),
        (AUTO, &["--snapshot-recovery-zone", "a"], Refused("not supported")),
        (AUTO, &["--gcp-zone", "a"], Refused("not supported")),
        (AUTO, &["--azure-resource-group", "a"], Refused("not supported")),
        (AUTO, &["--aws-region", "a"], Refused("not supported")),
    ];
    let sshd = Sshd::start(site);
    for (number, (backup, options, expected)) in table.into_iter().enumerate() {
        println!("{backup} {options:?}");
        let both = Both {
            site,
            sshd: &sshd,
            backup,
            options,
            by_agent: number % 2 == 1,
        };
        both.lead_to(expected, install);
    }
}

/// One command, for this host and for another one.
struct Both<'a> {
    site: &'a Site,
    sshd: &'a Sshd,
    backup: &'a str,
    options: &'a [&'a str],
    /// Whether there is barmanfs over there.
    by_agent: bool,
}

impl Both<'_> {
    fn here(&self, more: &[&str]) -> Run {
        self.run("here", more)
    }

    fn there(&self, more: &[&str]) -> Run {
        let command = match self.by_agent {
            true => self.sshd.command(),
            false => self.sshd.bare(),
        };
        self.run("there", &[&["--remote-ssh-command", &command], more].concat())
    }

    fn run(&self, name: &str, more: &[&str]) -> Run {
        let directory = self.site.path(name).display().to_string();
        let words = ["restore", "main", self.backup, &directory];
        self.site.barmanfs(&[&words, self.options, more].concat())
    }

    fn lead_to(&self, expected: Expected<'_>, install: &'static Install) {
        let (here, there) = (self.site.path("here"), self.site.path("there"));
        match expected {
            Refused(reason) => {
                self.here(&[]).rejected().says(&[reason]);
                self.there(&[]).rejected().says(&[reason]);
            }
            RefusedHere(reason) => {
                self.here(&[]).rejected().says(&[reason]);
                self.there(&["--dry-run"]).ok();
            }
            Says(text) => {
                self.here(&["--dry-run"]).ok().says(&[text]);
                self.there(&["--dry-run"]).ok().says(&[text]);
            }
            RefusedThere(reason) => self.updates(reason),
            Rows(_) | Holds(..) | Has(_) => {
                self.here(&[]).ok();
                self.there(&[]).ok();
                assert_same(&here, &there);
            }
        }
        match expected {
            Rows(expected) => {
                let mut copy = PgServer::on(install, &here);
                copy.start();
                copy.wait_until_promoted();
                assert_eq!(rows(&copy), expected);
                assert_eq!(copy.query("SHOW archive_mode"), "off");
                copy.stop("immediate");
            }
            Holds(file, line) => {
                let text = fs::read_to_string(there.join(file)).unwrap();
                assert!(text.lines().any(|found| found == line), "{line}: {text}");
            }
            Has(file) => assert!(there.join(file).exists(), "{file}"),
            Says(_) | Refused(_) | RefusedHere(_) | RefusedThere(_) => {
                assert!(!here.exists() && !there.exists());
            }
        }
        for directory in [here, there].iter().filter(|directory| directory.exists()) {
            fs::remove_dir_all(directory).unwrap();
        }
    }

    /// A directory that holds something is updated where barmanfs can look at it.
    fn updates(&self, reason: &str) {
        let (here, there) = (self.site.path("here"), self.site.path("there"));
        let with = |by_agent| Both { by_agent, ..*self };
        for directory in [&here, &there] {
            self.site.ok(&[
                "restore",
                "main",
                "auto",
                directory.to_str().unwrap(),
                "--target-immediate",
            ]);
            fs::write(directory.join("stranger"), "x").unwrap();
        }
        with(false).there(&[]).rejected().says(&[reason]);
        assert!(there.join("stranger").exists());
        self.here(&[]).ok();
        with(true).there(&[]).ok();
        assert_same(&here, &there);
        for directory in [&here, &there] {
            assert!(!directory.join("stranger").exists());
            fs::remove_dir_all(directory).unwrap();
        }
    }
}

/// One tree, and settings that differ only in where WAL comes from.
fn assert_same(here: &Path, there: &Path) {
    let own = [
        ".barmanfs-restore.json",
        "backup_manifest",
        SETTINGS,
        RECOVERY_SETTINGS,
    ];
    let skip = |path: &str| own.contains(&path);
    assert_eq!(differences(here, there, &skip), [""; 0]);
    let settings = |directory: &Path, name: &str| -> Vec<String> {
        let text = fs::read_to_string(directory.join(name)).unwrap_or_default();
        let lines = text
            .lines()
            .filter(|line| !line.contains("get-wal") && !line.contains("wal-restore"));
        lines.map(str::to_owned).collect()
    };
    for name in [SETTINGS, RECOVERY_SETTINGS] {
        assert_eq!(settings(here, name), settings(there, name), "{name}");
    }
}
