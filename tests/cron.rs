//! `cron`: what is due is done, once, by processes that outlive it; whatever is killed, the next minute goes on.

use crate::common::load::fill;
use crate::common::process::{COMMAND_LIMIT, until};
use crate::common::registry::topic;
use crate::common::site::check_line;
use crate::common::{Install, PgServer, Site};
use crate::damage::flip_byte;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

topic! {
    once a_missed_backup_is_taken_once_and_cron_does_not_wait_for_it,
    once streaming_is_started_and_stopped_by_nobody_else,
    once a_server_that_is_down_does_not_stop_the_others,
    once kills_at_any_moment_do_no_harm,
    once damage_is_found_before_it_is_needed,
    once a_change_that_the_server_forgot_is_found,
    once a_boot_test_is_due_by_its_schedule,
    once boot_tests_that_are_due_in_one_minute_run_one_after_the_other,
    once two_processes_apply_the_policies_of_many_servers,
    alone a_second_run_does_nothing,
}

/// What cron remembers of `main`.
fn memory(site: &Site) -> Value {
    let json = fs::read(site.repository().join("cron/main.json")).unwrap_or_default();
    serde_json::from_slice(&json).unwrap_or_default()
}

/// What it remembers of the repository.
fn of_repository(site: &Site) -> Value {
    let json = fs::read(site.repository().join("cron/.repository.json")).unwrap_or_default();
    serde_json::from_slice(&json).unwrap_or_default()
}

/// Waits until a task has ended, and returns what is remembered of it.
fn ended(task: &str, memory: impl Fn() -> Value) -> Value {
    until(task, || !memory()["tasks"][task]["ended_at"].is_null());
    memory()["tasks"][task].clone()
}

/// A site whose server is to be backed up each night.
fn scheduled(install: &'static Install, lines: &str) -> (Site, PgServer) {
    let (site, server) = Site::with_server(install);
    site.write_config_of(&server, &format!("immediate_checkpoint = on\n{lines}"));
    fill(&server, 1);
    (site, server)
}

/// Kills a process that cron has started, if it still runs.
fn signal_receiver(site: &Site, signal: Signal) {
    let text = fs::read_to_string(site.repository().join("locks/receive-main")).unwrap_or_default();
    let id = text
        .split("process ")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    if let Some(pid) = id.and_then(|id| id.parse().ok()).and_then(Pid::from_raw) {
        let _gone = kill_process(pid, signal);
    }
}

fn a_missed_backup_is_taken_once_and_cron_does_not_wait_for_it(install: &'static Install) {
    let (site, _server) = scheduled(install, "backup_schedule = 0 2 * * *\n");
    let checked = site.barmanfs(&["check", "main", "--json"]);
    let line = check_line(&checked, "cron");
    assert_eq!(line["status"], "FAILED", "{line}");
    // A caller that reads the output to its end does not wait for the backup.
    let said = site
        .sh(&format!(
            "x=$('{}' -c '{}' cron 2>&1); echo \"$x\"",
            site.program().display(),
            site.config().display()
        ))
        .ok()
        .text();
    assert!(said.contains("Starting backup for server main"), "{said}");
    let backup = ended("backup", || memory(&site));
    assert!(backup["error"].is_null(), "{backup}");
    assert_eq!(site.backup_ids().len(), 1);
    assert_eq!(site.ok(&["-q", "cron"]), "");
    ended("verify", || of_repository(&site));
    let checked = site.barmanfs(&["check", "main", "--json"]);
    let line = check_line(&checked, "cron");
    assert_eq!(line["status"], "OK", "{line}");
    assert_eq!(site.backup_ids().len(), 1);
    // Days later it is due again, once.
    site.in_days(3, "check main --json");
    let late = check_line(&site.in_days(3, "check main --json"), "cron");
    assert!(
        late["status"] == "FAILED" && late["hint"].as_str().unwrap().contains("last ran"),
        "{late}"
    );
    site.in_days(3, "-q cron").ok();
    until("the next backup", || site.backup_ids().len() == 2);
    until("its end", || {
        !memory(&site)["tasks"]["backup"]["ended_at"].is_null()
    });
    site.in_days(3, "-q cron").ok();
    assert_eq!(site.backup_ids().len(), 2);
}

fn streaming_is_started_and_stopped_by_nobody_else(install: &'static Install) {
    let lines = "archiver = off\nstreaming_archiver = on\nslot_name = barmanfs\ncreate_slot = auto\n";
    let (site, _server) = scheduled(install, lines);
    let log = site.path("barmanfs.log");
    let config = fs::read_to_string(site.config()).unwrap();
    let global = format!("[barmanfs]\nlog_file = {}\n", log.display());
    site.write_file(
        "barmanfs.conf",
        config.replacen("[barmanfs]\n", &global, 1).as_bytes(),
    );
    let receives = || {
        let checked = site.barmanfs(&["check", "main", "--json"]);
        check_line(&checked, "receive-wal running")["status"] == "OK"
    };
    site.ok(&["cron"]);
    until("receiving", receives);
    until("the log", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("Receiving WAL of server main"))
    });
    assert!(!site.ok(&["cron"]).contains("receive-wal"), "one is enough");
    // A killed one is started again after a pause, by a later run.
    signal_receiver(&site, Signal::KILL);
    until("receiving again", || {
        // A killed process has its locks until the kernel has removed it.
        site.in_days(1, "-q cron").ok();
        receives()
    });
    site.ok(&["receive-wal", "main", "--stop"]);
}

fn a_server_that_is_down_does_not_stop_the_others(install: &'static Install) {
    let (site, server) = scheduled(install, "backup_schedule = @daily\n");
    let nobody = "[a_dead_one]\nbackup_schedule = @daily\nconninfo = host=/nowhere\nstreaming_conninfo = host=/nowhere\n";
    let config = fs::read_to_string(site.config()).unwrap();
    site.write_file("barmanfs.conf", format!("{config}{nobody}").as_bytes());
    let said = site.ok(&["cron"]);
    assert!(
        said.contains("for server a_dead_one") && said.contains("for server main"),
        "{said}"
    );
    let backup = ended("backup", || memory(&site));
    assert!(backup["error"].is_null(), "{backup}");
    let dead = || -> Value {
        let json = fs::read(site.repository().join("cron/a_dead_one.json")).unwrap();
        serde_json::from_slice(&json).unwrap()
    };
    let failed = ended("backup", dead);
    assert!(
        failed["failures"] == 1 && failed["error"].as_str().unwrap().contains("/nowhere"),
        "{failed}"
    );
    let checked = site.barmanfs(&["check", "a_dead_one", "--json"]);
    let line = check_line(&checked, "cron");
    assert!(
        line["hint"].as_str().unwrap().contains("backup has failed once"),
        "{line}"
    );
    assert!(
        !site.ok(&["cron"]).contains("a_dead_one"),
        "it comes after a pause"
    );
    drop(server);
}

fn kills_at_any_moment_do_no_harm(install: &'static Install) {
    let (site, _server) = scheduled(install, "backup_schedule = @daily\naudit_sample = 10\n");
    for moment in 0..12 {
        let mut cron = site.spawn(&["-q", "cron"]);
        std::thread::sleep(Duration::from_millis(3 * moment));
        let _ended = cron.kill();
        cron.wait().unwrap();
    }
    let began = Instant::now();
    // What was killed in the middle is tried again after a pause.
    while site.backup_ids().is_empty() || memory(&site)["tasks"]["backup"]["ended_at"].is_null() {
        assert!(began.elapsed() < COMMAND_LIMIT, "{}", memory(&site));
        site.sh(&format!(
            "faketime -f +5m '{}' -c '{}' -q cron",
            site.program().display(),
            site.config().display()
        ))
        .ok();
        std::thread::sleep(Duration::from_millis(200));
    }
    let done = site
        .backups()
        .iter()
        .filter(|backup| backup["status"] == "DONE")
        .count();
    assert!((1..=2).contains(&done), "{:?}", site.backups());
    site.ok(&["verify"]);
}

fn damage_is_found_before_it_is_needed(install: &'static Install) {
    let (site, _server) = scheduled(install, "");
    let config = fs::read_to_string(site.config()).unwrap();
    let all = config.replacen("[barmanfs]\n", "[barmanfs]\nverify_budget = 100 %\n", 1);
    site.write_file("barmanfs.conf", all.as_bytes());
    site.backup();
    flip_byte(&site.largest_pack(&[]), 5000);
    for days in [0, 1, 2] {
        site.in_days(days, "-q cron").ok();
        until("the verification", || {
            let verify = &of_repository(&site)["tasks"]["verify"];
            !verify["ended_at"].is_null()
        });
    }
    let checked = site.barmanfs(&["check", "main", "--json"]);
    assert_eq!(check_line(&checked, "verification")["status"], "FAILED");
    assert_eq!(check_line(&checked, "damage of backups")["status"], "FAILED");
    // What the server still has is stored again.
    site.ok(&["backup", "main", "--incremental", "never", "--fast-checkpoint"]);
    let checked = site.barmanfs(&["check", "main", "--json"]);
    assert_eq!(check_line(&checked, "verification")["status"], "OK");
}

fn a_change_that_the_server_forgot_is_found(install: &'static Install) {
    let (site, mut server) = Site::with_initdb_options(install, &["--data-checksums"]);
    server.query("ALTER SYSTEM SET summarize_wal = on");
    server.query("SELECT pg_reload_conf()");
    site.write_config_of(&server, "immediate_checkpoint = on\naudit_sample = 100000\n");
    fill(&server, 1);
    server.query("CREATE TABLE forgotten AS SELECT 1 AS a FROM generate_series(1, 1000)");
    let full = site.backup();
    site.ok(&["backup", "main", "--incremental", "always"]);
    site.ok(&["cron"]);
    let audit = ended("audit", || memory(&site));
    assert!(audit["error"].is_null(), "{audit}");
    let found = memory(&site)["audit"].clone();
    assert!(
        found["difference"].is_null() && found["refused"].is_null(),
        "{found}"
    );
    assert!(found["pages"].as_u64().unwrap() > 100, "{found}");

    // The stored backup is the same as a wrong one would be, when the server's page is older and another.
    let path = server.query("SELECT pg_relation_filepath('forgotten')");
    server.query("CHECKPOINT");
    server.stop("fast");
    let file = server.data.join(&path);
    let mut bytes = fs::read(&file).unwrap();
    bytes[8000] ^= 1;
    fs::write(&file, bytes).unwrap();
    server.start();
    site.ok(&["backup", "main", "--incremental", "always"]);
    site.ok(&["cron"]);
    let newest = || site.backup_ids().pop();
    until("the audit", || {
        memory(&site)["audit"]["backup"].as_str().map(str::to_owned) == newest()
    });
    assert!(
        memory(&site)["difference"]["difference"].is_string(),
        "{}",
        memory(&site)
    );
    let checked = site.barmanfs(&["check", "main", "--json"]);
    assert_eq!(check_line(&checked, "incremental backups")["status"], "FAILED");
    // It reports the page's checksum, too.
    let said = site.barmanfs(&["backup", "main", "--fast-checkpoint"]);
    assert!(said.stderr.contains("is not what the server has"), "{said}");
    let newest = site.backups().pop().unwrap();
    assert_eq!(newest["kind"], "full", "{newest}");
    let checked = site.barmanfs(&["check", "main", "--json"]);
    assert!(
        !String::from_utf8_lossy(&checked.stdout).contains("is not what the server has"),
        "{checked}"
    );
    assert_ne!(full, newest["id"].as_str().unwrap());
}

fn a_boot_test_is_due_by_its_schedule(install: &'static Install) {
    let bindir = install.bindir.display();
    let (site, _server) = scheduled(
        install,
        &format!("boot_test_schedule = 0 4 * * *\npath_prefix = {bindir}\n"),
    );
    assert!(!site.ok(&["cron"]).contains("boot-test"), "there is no backup");
    let id = site.backup();
    assert!(site.ok(&["cron"]).contains("Starting boot-test for server main"));
    let test = ended("boot-test", || memory(&site));
    assert!(test["error"].is_null(), "{test}");
    let shown = site.json(&["show-backup", "main", &id]);
    assert_eq!(shown["boot_test"]["outcome"], "ok", "{shown}");
    assert!(!site.ok(&["cron"]).contains("boot-test"), "it is done for today");
}

fn boot_tests_that_are_due_in_one_minute_run_one_after_the_other(install: &'static Install) {
    let (site, server) = scheduled(install, "");
    let mut config = format!(
        "[barmanfs]\nrepository = {}\nimmediate_checkpoint = on\nboot_test_schedule = 0 4 * * *\npath_prefix = {}\n",
        site.repository().display(),
        install.bindir.display()
    );
    let names = ["first", "second"];
    for name in names {
        config += &format!("\n[{name}]\nconninfo = {}\n", server.conninfo());
    }
    site.write_file("barmanfs.conf", config.as_bytes());
    site.ok(&["backup", "all"]);
    let task = |name: &str| {
        let json = fs::read(site.repository().join(format!("cron/{name}.json"))).unwrap_or_default();
        let memory: Value = serde_json::from_slice(&json).unwrap_or_default();
        memory["tasks"]["boot-test"].clone()
    };
    let mut started = Vec::new();
    until("both are done", || {
        let said = site.ok(&["cron"]);
        let lines = said.lines().filter(|line| line.starts_with("Starting boot-test"));
        started.extend(lines.map(str::to_owned));
        names.iter().all(|name| !task(name)["result"].is_null())
    });
    // Runs follow each other without a pause here: one may start a process before that of the run before has its lock, and
    // the later process leaves the work for the next run.
    let of = |name: &str| {
        started
            .iter()
            .position(|line| line.contains(&format!("server {name} ")))
    };
    assert!(of("first") < of("second") && of("first").is_some(), "{started:?}");
    for name in names {
        let done = task(name);
        assert!(done["failures"] == 0 && done["error"].is_null(), "{done}");
        let shown = site.json(&["show-backup", name, "latest"]);
        assert_eq!(shown["boot_test"]["outcome"], "ok", "{shown}");
    }
}

fn two_processes_apply_the_policies_of_many_servers(install: &'static Install) {
    let (site, server) = scheduled(install, "");
    let mut config = format!(
        "[barmanfs]\nrepository = {}\nimmediate_checkpoint = on\npath_prefix = {}\n",
        site.repository().display(),
        install.bindir.display()
    );
    let names = ["s1", "s2", "s3", "s4", "s5"];
    for name in names {
        config += &format!("\n[{name}]\nconninfo = {}\n", server.conninfo());
    }
    site.write_file("barmanfs.conf", config.as_bytes());
    site.ok(&["backup", "all"]);
    let said = site.ok(&["cron"]);
    let started = said.lines().filter(|line| line.starts_with("Starting retention"));
    assert_eq!(started.count(), 2, "{said}");
    for name in names {
        let result = || {
            let json = fs::read(site.repository().join(format!("cron/{name}.json"))).unwrap_or_default();
            let memory: Value = serde_json::from_slice(&json).unwrap_or_default();
            memory["tasks"]["retention"]["result"].clone()
        };
        until("the policies are applied", || !result().is_null());
        assert_eq!(result(), "deleted 0 backups and 0 WAL files");
    }
    let again = site.ok(&["cron"]);
    assert!(!again.contains("retention"), "{again}");
}

fn a_second_run_does_nothing() {
    let site = Site::with_repository();
    let held = fs::File::open(site.write_file("repository/locks/cron", b"")).unwrap();
    held.lock().unwrap();
    let run = site.barmanfs(&["cron"]).ok();
    assert!(
        run.stderr.contains("Nothing is done: there is another cron"),
        "{run}"
    );
    let run = site.barmanfs(&["-q", "cron"]).ok();
    assert!(run.stderr.is_empty() && run.stdout.is_empty(), "{run}");
    assert!(!site.repository().join("cron").exists());
}
