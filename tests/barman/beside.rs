//! The configurations of three sites of Barman, read by Barman itself and by this program with `repository` added: the same
//! commands end with the same codes, and print the same lines where scripts match them. No server answers, so the tables
//! of commands have what fails as well.

use super::barman;
use crate::common::Site;
use crate::common::process::{Run, run};
use crate::over_ssh;
use std::collections::BTreeSet;
use std::process::Command;

/// Barman's skeleton, with a server in its include directory; the main file, then the included one.
const SKELETON: (&str, &str) = (
    "; Barman, Backup and Recovery Manager for PostgreSQL\n[barman]\nbarman_user = root\n\
     configuration_files_directory = HOME/barman.d\nbarman_home = HOME\nlog_file = HOME/log\nlog_level = INFO\n\
     compression = gzip\n",
    "[main]\ndescription =  \"Our main PostgreSQL server\"\nconninfo = host=/nowhere user=barman dbname=postgres\n\
     streaming_conninfo = host=/nowhere user=streaming_barman\nbackup_method = postgres\nstreaming_archiver = on\n\
     slot_name = barman\n",
);

/// A tutorial's, with rsync.
const TUTORIAL: (&str, &str) = (
    "[barman]\nbarman_home = HOME\nbarman_user = root\nlog_file = HOME/log\ncompression = gzip\nreuse_backup = link\n\
     configuration_files_directory = HOME/barman.d\nbackup_method = rsync\narchiver = on\nminimum_redundancy = 1\n\
     last_backup_maximum_age = 1 WEEK\nretention_policy = REDUNDANCY 2\n",
    "[main]\ndescription = The tutorial\nssh_command = false\nparallel_jobs = 2\nbandwidth_limit = 4\n\
     conninfo = host=/nowhere user=barman dbname=postgres password=secret\n",
);

/// One without an archive_command.
const STREAMING_ONLY: (&str, &str) = (
    "[barman]\nbarman_home = HOME\nbarman_user = root\nlog_file = HOME/log\n\
     configuration_files_directory = HOME/barman.d\n",
    "[DEFAULT]\nhost = /nowhere\n[main]\nconninfo = host=%(host)s user=barman dbname=postgres\ndescription = streaming\n\
     streaming_conninfo = %(conninfo)s\nbackup_method = postgres\nstreaming_archiver = on\nslot_name = Barman\n\
     create_slot = auto\nstreaming_archiver_name = barman_receive_wal\nretention_policy = RECOVERY WINDOW OF 2 WEEKS\n",
);

/// What of the output has to be equal.
#[derive(Clone, Copy)]
enum Same {
    Nothing,
    Output,
    /// The lines `key: value` of these keys.
    Lines(&'static [&'static str]),
    /// What Barman shows as FAILED.
    Failures,
}

const COMMANDS: &[(&str, Same)] = &[
    ("list-servers", Same::Output),
    ("list-servers --minimal", Same::Output),
    ("show-server main", Same::Lines(KEYS)),
    ("show-server all", Same::Lines(KEYS)),
    ("show-server nosuch", Same::Nothing),
    ("list-backups main", Same::Output),
    ("list-backup main --minimal", Same::Output),
    ("list-backups nosuch", Same::Output),
    ("check all", Same::Failures),
    ("check nosuch", Same::Nothing),
    ("check main --nagios", Same::Nothing),
    ("status main", Same::Lines(STATUS)),
    ("show-backup main latest", Same::Output),
    ("list-files main latest", Same::Output),
];

const KEYS: &[&str] = &[
    "active",
    "active_model",
    "cluster",
    "create_slot",
    "description",
    "disabled",
    "immediate_checkpoint",
    "minimum_redundancy",
    "name",
    "passive_node",
    "retention_policy",
    "retention_policy_mode",
    "slot_name",
    "streaming_archiver",
    "streaming_archiver_name",
];

pub(super) const STATUS: &[&str] = &[
    "Description",
    "Active",
    "Disabled",
    "Active configuration model",
    "Retention policies",
    "No. of available backups",
    "First available backup",
    "Last available backup",
    "Minimum redundancy requirements",
];

/// Checks of Barman's that have no meaning here: its own programs, ssh to the server, and a slot on a server that does not
/// answer.
const NOT_OURS: [&str; 4] = [
    "pg_basebackup compatible",
    "pg_receivexlog compatible",
    "ssh",
    "replication slot",
];

fn lines_of<'a>(text: &'a str, keys: &[&str]) -> BTreeSet<&'a str> {
    let is_wanted = |line: &&str| {
        let key = line.trim().split_once(": ").map(|(key, _)| key);
        key.is_some_and(|key| keys.contains(&key))
    };
    text.lines().filter(is_wanted).collect()
}

fn failures(text: &str) -> BTreeSet<&str> {
    let failed = text.lines().filter_map(|line| line.split_once(": FAILED"));
    failed
        .map(|(name, _)| name.trim())
        .filter(|name| !NOT_OURS.contains(name))
        .collect()
}

#[track_caller]
fn compare(line: &str, same: Same, theirs: &Run, ours: &Run) {
    assert_eq!(ours.code(), theirs.code(), "{line}\n{theirs}\n{ours}");
    let (barmans, text) = (theirs.text(), ours.text());
    match same {
        Same::Nothing => {}
        Same::Output => assert_eq!(text, barmans, "{line}\n{ours}"),
        Same::Lines(keys) => {
            let (expected, found) = (lines_of(&barmans, keys), lines_of(&text, keys));
            // Barman leaves a key out here and there.
            assert!(expected.len() + 2 > keys.len(), "{line}: {expected:?}");
            let missing: Vec<_> = expected.difference(&found).collect();
            assert!(missing.is_empty(), "{line}: {missing:?} are not in {found:?}");
        }
        Same::Failures => {
            let expected = failures(&barmans);
            assert!(expected.contains("PostgreSQL"), "{barmans}");
            let missing: Vec<_> = expected.difference(&failures(&text)).copied().collect();
            assert!(missing.is_empty(), "{line}: {missing:?} are not found\n{ours}");
        }
    }
}

pub(super) fn a_site_of_barman_sees_what_it_saw() {
    let Some(program) = over_ssh::barman("barman") else {
        return;
    };
    for (main, included) in [SKELETON, TUTORIAL, STREAMING_ONLY] {
        let site = Site::new();
        site.ok(&["init", &site.repository().to_string_lossy()]);
        let home = site.make_directory("home");
        site.make_directory("home/barman.d");
        site.write_file("home/barman.d/main.conf", included.as_bytes());
        let main = main.replace("HOME", &home.to_string_lossy());
        let theirs = site.write_file("real.conf", main.as_bytes());
        let added = format!("[barman]\nrepository = {}\n", site.repository().display());
        site.write_file("barmanfs.conf", main.replace("[barman]\n", &added).as_bytes());
        for (line, same) in COMMANDS {
            let real = format!("exec {program} -c '{}' {line}", theirs.display());
            let real = run(Command::new("sh").args(["-c", &real]));
            compare(line, *same, &real, &barman(&site, line));
        }
    }
}
