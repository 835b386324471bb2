//! Hook scripts: their variables and order are Barman's, their codes mean what they mean there, and nothing that a script
//! does takes back what is done. And `notify_command`.

use crate::common::process::{run, until};
use crate::common::registry::topic;
use crate::common::{Install, PgServer, Site};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

topic! {
    once scripts_get_barmans_variables_in_barmans_order,
    once codes_of_scripts_stop_only_what_is_not_done,
    once a_script_ends_with_the_command_that_runs_it,
    once a_change_of_a_check_is_told_once,
    alone a_notify_command_that_hangs_delays_no_other,
}

/// What real scripts of Barman have seen.
const BARMAN: &str = include_str!("hooks/barman_3.19.1.txt");

/// Variables whose values do not depend on the site.
const FIXED: &[&str] = &[
    "BARMAN_VERSION",
    "BARMAN_SERVER",
    "BARMAN_HOOK",
    "BARMAN_PHASE",
    "BARMAN_RETRY",
    "BARMAN_ERROR",
    "BARMAN_COMPRESSION",
    "BARMAN_TABLESPACES",
    "BARMAN_REMOTE_COMMAND",
];

type Variables = BTreeMap<String, String>;

fn variables(lines: &str) -> Variables {
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The variables of each key, as Barman sets them.
fn barmans() -> BTreeMap<String, Variables> {
    let sections = BARMAN.split("\n[").skip(1);
    sections
        .map(|section| {
            let (key, lines) = section.split_once("]\n").unwrap();
            (key.to_owned(), variables(lines))
        })
        .collect()
}

/// Lines of the configuration that run a script at each of these operations. It writes its variables into a file.
fn hooks(site: &Site, operations: &[&str]) -> String {
    let dumps = site.make_directory("dumps");
    let script = format!(
        "#!/bin/sh\nname={}/$(date +%s%N).${{BARMAN_PHASE}}_$BARMAN_HOOK\n\
         env | grep ^BARMAN > $name.part\n\
         test -z \"$BARMAN_BACKUP_INFO_PATH\" || cp \"$BARMAN_BACKUP_INFO_PATH\" $name.info\n\
         test ! -e \"$BARMAN_FILE\" || sha256sum < \"$BARMAN_FILE\" > $name.sum\n\
         echo said by $BARMAN_HOOK\n\
         mv $name.part $name\n",
        dumps.display()
    );
    let path = site.write_file("hook.sh", script.as_bytes());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let mut lines = String::new();
    for operation in operations {
        for kind in [
            "pre_X_script",
            "pre_X_retry_script",
            "post_X_retry_script",
            "post_X_script",
        ] {
            let key = kind.replace('X', operation);
            lines += &format!("{key} = {}\n", path.display());
        }
    }
    lines
}

/// The dumps of an operation, in their order: key and variables.
fn dumps(site: &Site, operation: &str) -> Vec<(String, Variables, PathBuf)> {
    let directory = site.path("dumps");
    let endings = [".info", ".sum", ".part"];
    let mut found = Vec::new();
    for name in site.list(&directory) {
        if endings.iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        let (_, key) = name.split_once('.').unwrap();
        let middle = key.trim_start_matches("pre_").trim_start_matches("post_");
        if middle == format!("{operation}_script") || middle == format!("{operation}_retry_script") {
            let text = fs::read_to_string(directory.join(&name)).unwrap();
            found.push((key.to_owned(), variables(&text), directory.join(&name)));
        }
    }
    found
}

/// The first four dumps are those of one operation, in Barman's order, and have Barman's variables.
fn assert_barmans(site: &Site, operation: &str) -> Vec<Variables> {
    assert_barmans_of(site, operation, |_| true)
}

/// The same of those dumps that are wanted.
fn assert_barmans_of(site: &Site, operation: &str, wanted: impl Fn(&Variables) -> bool) -> Vec<Variables> {
    let mut found = dumps(site, operation);
    found.retain(|(_, own, _)| wanted(own));
    let keys: Vec<&str> = found.iter().take(4).map(|(key, ..)| key.as_str()).collect();
    let order = [
        "pre_X_script",
        "pre_X_retry_script",
        "post_X_retry_script",
        "post_X_script",
    ];
    assert_eq!(keys, order.map(|key| key.replace('X', operation)));
    let barmans = barmans();
    for (key, own, _) in found.iter().take(4) {
        // Without rsync, Barman's restore ended before the scripts after it; they have the same variables.
        let measured = barmans.get(key).cloned();
        let expected = measured.unwrap_or_else(|| {
            let mut before = barmans[&key.replace("post_", "pre_")].clone();
            before.insert("BARMAN_PHASE".to_owned(), "post".to_owned());
            before
        });
        let mut names: Vec<&String> = own.keys().collect();
        names.retain(|name| *name != "BARMANFS_VERSION");
        assert_eq!(names, expected.keys().collect::<Vec<_>>(), "{key}");
        for name in FIXED.iter().filter(|name| expected.contains_key(**name)) {
            assert_eq!(own[*name], expected[*name], "{name} of {key}");
        }
        assert_eq!(own["BARMAN_CONFIGURATION"], site.config().display().to_string());
    }
    found.into_iter().map(|(_, own, _)| own).collect()
}

fn scripts_get_barmans_variables_in_barmans_order(install: &'static Install) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    let lines = hooks(&site, &["backup", "archive", "delete", "wal_delete", "recovery"]);
    let log = site.path("log");
    site.write_config_of(&server, &format!("{lines}retention_policy = REDUNDANCY 1\n"));
    let config = fs::read_to_string(site.config()).unwrap();
    let config = config.replacen(
        "[barmanfs]\n",
        &format!("[barmanfs]\nlog_file = {}\n", log.display()),
        1,
    );
    site.write_file("barmanfs.conf", config.as_bytes());

    let name = server.archive_current_segment();
    until("the scripts after it have run", || {
        dumps(&site, "archive").len() >= 4
    });
    let seen = assert_barmans(&site, "archive");
    let size = (1 << 20).to_string();
    for own in seen.iter().take(4) {
        assert_eq!((&own["BARMAN_SEGMENT"], &own["BARMAN_SIZE"]), (&name, &size));
    }
    assert_eq!(
        seen[0]["BARMAN_FILE"],
        server.data.join("pg_wal").join(&name).display().to_string()
    );
    assert_eq!(seen[3]["BARMAN_FILE"], "", "nothing is mounted");
    let sum = fs::read_to_string(format!("{}.sum", dumps(&site, "archive")[0].2.display())).unwrap();
    let printed = site.sh(&format!(
        "{} -c {} get-wal main {name} | sha256sum",
        site.program().display(),
        site.config().display()
    ));
    assert_eq!(
        printed.ok().text(),
        sum.trim_end(),
        "the script can read the file"
    );
    assert!(
        fs::read_to_string(&log)
            .unwrap()
            .contains("said by archive_retry_script")
    );

    let first = site.backup();
    let seen = assert_barmans(&site, "backup");
    let statuses: Vec<&str> = seen.iter().map(|own| own["BARMAN_STATUS"].as_str()).collect();
    assert_eq!(statuses, ["EMPTY", "EMPTY", "DONE", "DONE"]);
    assert!(seen.iter().all(|own| own["BARMAN_BACKUP_ID"] == first));
    let info = format!("{}.info", dumps(&site, "backup")[3].2.display());
    let info = variables(&fs::read_to_string(info).unwrap());
    assert_eq!(
        (info["status"].as_str(), info["server_name"].as_str()),
        ("DONE", "main")
    );
    assert_eq!(info["begin_wal"].len(), 24, "{info:?}");
    assert!(
        !fs::exists(&seen[3]["BARMAN_BACKUP_INFO_PATH"]).unwrap(),
        "it is gone with the script"
    );

    let second = site.backup();
    let third = site.backup();
    site.ok(&["delete", "main", &second]);
    let seen = assert_barmans(&site, "delete");
    for own in &seen {
        let neighbours = (&own["BARMAN_PREVIOUS_ID"], &own["BARMAN_NEXT_ID"]);
        assert_eq!(neighbours, (&first, &third));
        assert_eq!(own["BARMAN_STATUS"], "DONE");
    }

    let restored = site.path("restored").display().to_string();
    site.ok(&["restore", "main", &third, &restored, "--target-immediate"]);
    let seen = assert_barmans(&site, "recovery");
    for own in &seen {
        assert_eq!(own["BARMAN_DESTINATION_DIRECTORY"], restored);
        assert_eq!(
            own["BARMAN_RECOVER_OPTIONS"],
            barmans()["pre_recovery_script"]["BARMAN_RECOVER_OPTIONS"]
        );
        assert_eq!(
            (&own["BARMAN_BACKUP_ID"], &own["BARMAN_PREVIOUS_ID"]),
            (&third, &first)
        );
    }

    let before = dumps(&site, "delete").len();
    site.ok(&["retention", "main", "--enforce"]);
    assert_eq!(site.backup_ids(), [third]);
    assert_eq!(dumps(&site, "delete").len(), before + 4);
    // What is removed at once is one range: all scripts before it run before all scripts after it.
    assert_barmans_of(&site, "wal_delete", |own| own["BARMAN_SEGMENT"] == name);
    let seen: Vec<Variables> = dumps(&site, "wal_delete")
        .into_iter()
        .map(|(_, own, _)| own)
        .collect();
    let removed: Vec<&String> = seen
        .iter()
        .filter(|own| own["BARMAN_PHASE"] == "post" && own["BARMAN_RETRY"] == "0")
        .map(|own| &own["BARMAN_SEGMENT"])
        .collect();
    assert!(removed.len() >= 2, "{removed:?}");
    for name in removed {
        assert_ne!(site.barmanfs(&["get-wal", "main", name]).code(), Some(0));
    }
}

/// A complete segment that is not archived, as a file.
fn segment(site: &Site, server: &PgServer) -> String {
    server.query(
        "CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler SELECT generate_series(1, 500)",
    );
    let name = server.query("SELECT pg_walfile_name(pg_current_wal_lsn())");
    server.query("SELECT pg_switch_wal()");
    let kept = site.make_directory("kept").join(&name);
    site.sh(&format!(
        "cp '{}/pg_wal/{name}' '{}'",
        server.data.display(),
        kept.display()
    ))
    .ok();
    kept.display().to_string()
}

fn codes_of_scripts_stop_only_what_is_not_done(install: &'static Install) {
    let site = Site::with_repository();
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    site.write_config(&[("main", &server)]);
    server.start();
    let archive = |lines: &str, path: &str| {
        site.write_config_of(&server, lines);
        site.barmanfs(&["wal-archive", "main", path])
    };
    let is_archived = |path: &str| {
        let name = PathBuf::from(path)
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        site.barmanfs(&["get-wal", "main", &name]).code() == Some(0)
    };

    let path = segment(&site, &server);
    archive("pre_archive_retry_script = exit 63\n", &path)
        .refused(1)
        .says(&["pre_archive_retry_script"]);
    assert!(!is_archived(&path));
    let marks = site.path("tries");
    let tries = format!(
        "pre_archive_retry_script = echo >> {0}; test $(wc -l < {0}) -ge 2\n",
        marks.display()
    );
    archive(&tries, &path).ok();
    assert_eq!(fs::read_to_string(&marks).unwrap().len(), 2, "it was tried again");
    assert!(is_archived(&path));

    for lines in [
        "pre_archive_script = exit 1\npre_archive_retry_script = exit 62\n",
        "post_archive_retry_script = exit 63\npost_archive_script = exit 1\n",
        "post_archive_script = /no/such/program\n",
        "post_archive_script = sleep 100 & sleep 100\nhook_timeout = 1\n",
        "post_archive_retry_script = sleep 100\nhook_timeout = 1\n",
    ] {
        let path = segment(&site, &server);
        let began = Instant::now();
        archive(lines, &path).ok();
        assert!(began.elapsed() < Duration::from_secs(30), "{lines}");
        assert!(is_archived(&path), "{lines}");
    }
    // Nothing is locked while a script runs: a rebuild needs the repository for itself.
    let path = segment(&site, &server);
    let rebuild = format!(
        "{} -c {} -q rebuild-catalog && echo x >> {}",
        site.program().display(),
        site.config().display(),
        site.path("rebuilt").display()
    );
    let around = format!("pre_archive_script = {rebuild}\npost_archive_script = {rebuild}\n");
    archive(&around, &path).ok();
    assert_eq!(fs::read_to_string(site.path("rebuilt")).unwrap(), "x\nx\n");
    let path = segment(&site, &server);
    archive("pre_archive_retry_script = sleep 100\nhook_timeout = 1\n", &path).refused(1);
    assert!(!is_archived(&path));

    // A backup that a script stops has failed, and the scripts after it see that.
    let seen = site.path("seen");
    let lines = format!(
        "pre_backup_retry_script = exit 63\npost_backup_script = echo $BARMAN_STATUS $BARMAN_ERROR > {}\n",
        seen.display()
    );
    site.write_config_of(&server, &lines);
    site.barmanfs(&["backup", "main"])
        .refused(1)
        .says(&["pre_backup_retry_script"]);
    let seen = fs::read_to_string(seen).unwrap();
    assert!(
        seen.starts_with("FAILED ") && seen.contains("pre_backup_retry_script"),
        "{seen}"
    );
    assert_eq!(site.backups()[0]["status"], "FAILED");

    site.write_config_of(&server, "pre_delete_retry_script = exit 63\n");
    let ids = site.backup_ids();
    site.barmanfs(&["delete", "main", &ids[0]])
        .refused(1)
        .says(&["pre_delete_retry_script"]);
    assert_eq!(site.backup_ids(), ids);
}

fn a_script_ends_with_the_command_that_runs_it(install: &'static Install) {
    let site = Site::with_repository();
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    let (ids, hangs) = (site.path("ids"), "sleep 300 & echo $! >> ");
    let script = format!(
        "streaming_archiver = on\npre_archive_script = {hangs}{}; wait\n",
        ids.display()
    );
    site.write_config_of(&server, &script);
    server.start();
    let runs = |count: usize| {
        let text = fs::read_to_string(&ids).unwrap_or_default();
        let found: Vec<String> = text.lines().map(str::to_owned).collect();
        (found.len() >= count).then(|| found.last().cloned().unwrap())
    };
    let is_gone = |id: &str| {
        let status = fs::read_to_string(format!("/proc/{id}/stat"));
        status.map_or(true, |status| status.contains(") Z "))
    };

    let path = segment(&site, &server);
    let mut archiving = site.spawn(&["wal-archive", "main", &path]);
    until("the script runs", || runs(1).is_some());
    archiving.kill().unwrap();
    archiving.wait().unwrap();
    let id = runs(1).unwrap();
    until("it has ended", || is_gone(&id));

    let mut receiving = site.spawn(&["receive-wal", "main"]);
    until("the script runs", || {
        segment(&site, &server);
        runs(2).is_some()
    });
    let began = Instant::now();
    site.ok(&["receive-wal", "--stop", "main"]);
    assert!(began.elapsed() < Duration::from_secs(60));
    receiving.wait().unwrap();
    // The next segment's script may have begun after the stop.
    let all = fs::read_to_string(&ids).unwrap();
    for id in all.lines() {
        until("it has ended", || is_gone(id));
    }
}

fn a_notify_command_that_hangs_delays_no_other() {
    let site = Site::with_repository();
    let told = site.write_file("told", b"");
    let server = |name: &str, command: &str| {
        format!("[{name}]\nconninfo = host=/nowhere\nhook_timeout = 8\nnotify_command = {command}\n")
    };
    let config = format!(
        "[barmanfs]\nrepository = {}\n{}{}",
        site.repository().display(),
        server("a", "sleep 100"),
        server("b", &format!("echo \"$BARMAN_SERVER\" >> {}", told.display()))
    );
    site.write_file("barmanfs.conf", config.as_bytes());
    let began = Instant::now();
    let ran = site.barmanfs(&["cron", "--task", "notify", "--keep-descriptors"]);
    // Several checks of each server fail, and the command of one hangs once.
    assert!(began.elapsed().as_secs() < 16, "{:?}: {ran}", began.elapsed());
    let ran = ran.says(&["Server a: notify_command did not end within 8.00 s"]);
    assert!(fs::read_to_string(&told).unwrap().lines().count() > 1, "{ran}");
}

fn a_change_of_a_check_is_told_once(install: &'static Install) {
    let site = Site::with_repository();
    let mut server = PgServer::init(install, &site.path("main"), &[]);
    server.start();
    let told = site.write_file("told", b"");
    let line = format!(
        "notify_command = echo \"$BARMAN_SERVER $BARMANFS_CHECK: $BARMANFS_STATE\" >> {}\n",
        told.display()
    );
    site.write_config_of(&server, &format!("{line}minimum_redundancy = 1\n"));
    let lines = |state: &str| {
        let wanted = format!("main minimum redundancy requirements: {state}");
        let text = fs::read_to_string(&told).unwrap();
        text.lines().filter(|line| *line == wanted).count()
    };
    // The second run of the task has to end before the next one begins.
    let run = || run(&mut site.barmanfs_command(&["cron", "--task", "notify", "--keep-descriptors"]));
    site.ok(&["cron"]);
    until("it is told", || lines("FAILED") == 1);
    until("the task of cron has ended", || {
        run().ok();
        lines("FAILED") == 1
    });
    site.backup();
    until("it is told that it is good again", || {
        run().ok();
        lines("OK") == 1
    });
    run().ok();
    assert_eq!(
        (lines("FAILED"), lines("OK")),
        (1, 1),
        "{}",
        fs::read_to_string(&told).unwrap()
    );
}
