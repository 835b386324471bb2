//! The output for persons and scripts: help, `--json`, exit codes, and never a secret.

use crate::common::load::fill;
use crate::common::registry::topic;
use crate::common::{Install, Site};
use std::fs;

topic! {
    alone help_lists_every_command,
    alone wrong_usage_ends_with_2,
    alone output_that_cannot_be_written_is_an_error,
    edges every_reading_command_has_json,
    once where_no_thread_can_be_had_nothing_panics_and_nothing_is_left,
    once backups_are_found_by_words_like_latest,
    edges check_reports_problems,
    once passwords_are_used_and_never_shown,
    once two_backups_of_one_server_at_once_are_refused,
}

/// The commands that `--help` lists: every line with two spaces, a name and what it does, before the options.
fn commands(help: &str) -> Vec<&str> {
    let (commands, _) = help.split_once("Options of every command:").unwrap();
    commands
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
        .collect()
}

fn help_lists_every_command() {
    let site = Site::new();
    let help = site.ok(&["--help"]);
    let commands = commands(&help);
    assert!(commands.len() > 20, "{commands:?}");
    for command in commands {
        let own = site.ok(&[command, "--help"]);
        assert!(own.contains("Usage"), "{command} --help:\n{own}");
    }
    assert!(site.ok(&["version"]).contains(env!("CARGO_PKG_VERSION")));
}

fn output_that_cannot_be_written_is_an_error() {
    let site = Site::with_repository();
    for command in [
        "--help",
        "backup --help",
        "--version",
        "version",
        "list-servers",
        "list-servers --json",
        "stats --json",
    ] {
        let program = format!("'{}' -c '{}'", site.program().display(), site.config().display());
        site.sh(&format!("{program} {command} > /dev/full"))
            .refused(1)
            .says(&["Cannot write to standard output"]);
    }
}

/// The kind: what the system refuses is an error that says so. With a stack of that size, the system refuses every thread.
fn where_no_thread_can_be_had_nothing_panics_and_nothing_is_left(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    let point = site.make_directory("point");
    let program = format!("'{}' -c '{}'", site.program().display(), site.config().display());
    let (copy, point) = (
        site.path("copy").display().to_string(),
        point.display().to_string(),
    );
    for (command, is_refused) in [
        ("backup main", true),
        ("backup main --method files", true),
        (format!("restore main latest '{copy}'").as_str(), true),
        (format!("export main latest '{copy}'").as_str(), true),
        (format!("mount '{point}'").as_str(), true),
        ("check main", false),
        ("status main", false),
        ("show-servers main", false),
        ("replication-status main", false),
        ("metrics", false),
        ("diagnose", false),
        ("verify", false),
        ("sweep", false),
    ] {
        let run = site.sh(&format!("RUST_MIN_STACK={} {program} {command}", 1_u64 << 62));
        assert!(!run.all().contains("panicked"), "{command}: {run}");
        if is_refused {
            run.refused(1).says(&["Cannot start a thread", "ulimit -u"]);
        }
    }
    assert_eq!(site.backup_ids().len(), 1);
    assert!(!site.path("copy").join("PG_VERSION").exists());
    let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounted.contains(&point), "{mounted}");
    site.ok(&["verify"]);
    drop(server);
}

fn wrong_usage_ends_with_2() {
    let site = Site::with_repository();
    site.barmanfs(&["no-such-command"]).refused(2);
    site.barmanfs(&["backup"]).refused(2);
    site.barmanfs(&["backup", "main", "--no-such-option"]).refused(2);
    site.barmanfs(&["backup", "nobody"]).refused(2).says(&["nobody"]);
    site.barmanfs(&["show-backup", "nobody", "latest"])
        .refused(2)
        .says(&["nobody"]);
}

fn every_reading_command_has_json(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    let id = site.ok(&[
        "backup",
        "main",
        "--fast-checkpoint",
        "--label",
        "before the migration",
    ]);
    drop(id);
    let backup = site.backups().remove(0);
    assert_eq!(backup["status"], "DONE");
    assert_eq!(backup["label"], "before the migration");
    let shown = site.json(&["show-backup", "main", "latest"]);
    assert_eq!(shown["id"], backup["id"]);
    for reading in [
        &["list-servers"][..],
        &["list-backups", "all"],
        &["stats"],
        &["verify"],
        &["check", "main"],
        &["version"],
    ] {
        site.json(reading);
    }
    let files = site.ok(&["list-files", "main", "latest"]);
    assert!(files.lines().any(|line| line.ends_with("PG_VERSION")), "{files}");
    let files = site.json(&["list-files", "main", "latest"]);
    let is_control = |file: &serde_json::Value| {
        file["path"]
            .as_str()
            .is_some_and(|path| path.ends_with("global/pg_control"))
    };
    let control = files["files"]
        .as_array()
        .unwrap()
        .iter()
        .find(|file| is_control(file))
        .expect("pg_control is listed");
    assert_eq!(control["size_bytes"], 8192);
    for plain in [
        &["list-servers"][..],
        &["list-backups", "main"],
        &["show-backup", "main", "latest"],
        &["stats"],
    ] {
        assert!(site.ok(plain).contains("main"), "{plain:?}");
    }
}

fn backups_are_found_by_words_like_latest(install: &'static Install) {
    let (site, _server) = Site::with_server(install);
    let ids = [site.backup(), site.backup(), site.backup()];
    let shown = |word: &str| {
        site.json(&["show-backup", "main", word])["id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    for word in ["latest", "last"] {
        assert_eq!(shown(word), ids[2]);
    }
    for word in ["oldest", "first", &ids[0]] {
        assert_eq!(shown(word), ids[0]);
    }
    site.barmanfs(&["show-backup", "main", "20010101T000000"])
        .refused(1)
        .says(&["20010101T000000"]);
    let run = site.barmanfs(&["show-backup", "main", "yesterday"]);
    run.rejected();
    site.ok(&["delete", "main", "oldest"]);
    assert_eq!(site.backup_ids(), ids[1..]);
}

fn check_reports_problems(install: &'static Install) {
    let (site, mut server) = Site::with_server(install);
    server.archive_current_segment();
    site.backup();
    site.ok(&["check", "main"]);
    server.query("CREATE ROLE weak LOGIN");
    let weak = server.conninfo().replace("user=postgres", "user=weak");
    let config = |conninfo: &str| {
        format!(
            "[barmanfs]\nrepository = {}\n[main]\nconninfo = {conninfo}\nstreaming_conninfo = {conninfo}\n",
            site.repository().display()
        )
    };
    site.write_file("barmanfs.conf", config(&weak).as_bytes());
    site.barmanfs(&["check", "main"])
        .refused(3)
        .says(&["replication"]);
    site.write_file("barmanfs.conf", config(&server.conninfo()).as_bytes());
    server.stop("fast");
    site.barmanfs(&["check", "main"])
        .refused(3)
        .says(&[".s.PGSQL.5432"]);
}

fn passwords_are_used_and_never_shown(install: &'static Install) {
    const SECRET: &str = "correct-horse-battery";
    let (site, mut server) = Site::with_server(install);
    server.query(&format!("ALTER ROLE postgres PASSWORD '{SECRET}'"));
    server.stop("fast");
    let hba = server.data.join("pg_hba.conf");
    fs::write(
        &hba,
        "local all all scram-sha-256\nlocal replication all scram-sha-256\n",
    )
    .unwrap();
    server.start();
    let config = |password: &str| {
        let conninfo = format!("{}{password}", server.conninfo());
        let repository = site.repository();
        let text = format!(
            "[barmanfs]\nrepository = {}\n[main]\nconninfo = {conninfo}\nstreaming_conninfo = {conninfo}\n",
            repository.display()
        );
        site.write_file("barmanfs.conf", text.as_bytes());
    };
    let never_shown = |run: crate::common::process::Run| {
        assert!(!run.all().contains(SECRET), "The password is shown");
        run
    };
    config(&format!(" password={SECRET}"));
    for arguments in [
        &["backup", "main", "--fast-checkpoint"][..],
        &["list-servers", "--json"],
        &["show-backup", "main", "latest"],
    ] {
        never_shown(site.barmanfs(arguments)).ok();
    }
    never_shown(site.barmanfs(&["check", "main"]));
    let stored = site.sh(&format!("grep -rlF {SECRET} '{}'", site.repository().display()));
    assert_ne!(
        stored.code(),
        Some(0),
        "The password is in the repository: {stored}"
    );

    // A wrong password, and one from a password file.
    config(&format!(" password={SECRET}-wrong"));
    never_shown(site.barmanfs(&["backup", "main"]))
        .refused(1)
        .says(&["password authentication failed"]);
    config("");
    let passfile = site.write_file(".pgpass", format!("*:*:*:postgres:{SECRET}\n").as_bytes());
    site.sh(&format!("chmod 600 '{}'", passfile.display())).ok();
    never_shown(site.barmanfs(&["backup", "main", "--fast-checkpoint"])).ok();
    // The server is stopped by pg_ctl, which needs no password.
    server.stop("fast");
}

fn two_backups_of_one_server_at_once_are_refused(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 2);
    let mut first = site.spawn(&["backup", "main", "--fast-checkpoint", "--max-rate", "4096"]);
    crate::common::process::until("the first backup runs", || {
        server.query("SELECT count(*) FROM pg_stat_progress_basebackup") == "1"
    });
    site.barmanfs(&["backup", "main", "--fast-checkpoint"])
        .refused(1)
        .says(&["running"]);
    first.kill().unwrap();
    first.wait().unwrap();
    site.backup();
    let statuses: Vec<_> = site
        .backups()
        .iter()
        .map(|backup| backup["status"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(statuses, ["FAILED", "DONE"]);
}
