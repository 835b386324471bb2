//! The kind: what a DBA is shown of servers, processes and backups is not what there is: a password appears in a report, a
//! process is signalled that has nothing to do with it, a list names files that are not there.

use crate::common::load::fill;
use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::standby::standby_of;
use crate::common::{Install, Mount, PgServer, Site};
use std::fs;

topic! {
    once clients_are_shown_with_what_they_lack,
    once processes_are_listed_and_ended,
    once listed_files_are_in_the_mount,
    once a_backup_is_shown_with_what_lies_around_it,
    once a_server_is_shown_with_its_keys_and_what_it_says,
    once a_damaged_site_is_diagnosed_without_its_passwords,
}

fn streaming_site(install: &'static Install) -> (Site, PgServer) {
    let (site, server) = Site::with_server(install);
    site.write_config_of(
        &server,
        "streaming_archiver = on\nslot_name = barmanfs\ncreate_slot = auto\n",
    );
    site.ok(&["backup", "main", "--fast-checkpoint"]);
    (site, server)
}

fn clients_are_shown_with_what_they_lack(install: &'static Install) {
    let (site, server) = streaming_site(install);
    let none = site.ok(&["replication-status", "main"]);
    assert!(none.contains("No streaming clients attached"), "{none}");
    let mut receiver = site.spawn(&["receive-wal", "main"]);
    let standby = standby_of(&site, &server, install, "standby");
    let mut shown = serde_json::Value::Null;
    until("both have everything", || {
        shown = site.json(&["replication-status", "main"])["servers"][0].clone();
        let clients = shown["streaming_clients"].as_array().unwrap();
        let has_all = |client: &serde_json::Value| {
            client["flush_lsn_diff_bytes"] == 0
                && (client["replay_lsn_diff_bytes"] == 0 || client["replay_lsn"].is_null())
        };
        clients.len() == 2 && clients.iter().all(has_all)
    });
    assert!(
        shown["server_lsn"].is_string() && shown["is_in_recovery"] == false,
        "{shown}"
    );
    let clients = shown["streaming_clients"].as_array().unwrap();
    let own = clients
        .iter()
        .find(|client| client["own"] == true)
        .expect("the receiver");
    assert_eq!(own["application_name"], "barmanfs_receive_wal", "{shown}");
    assert_eq!(
        (&own["kind"], &own["replication_slot"]),
        (&"wal-streamer".into(), &"barmanfs".into())
    );
    let other = clients
        .iter()
        .find(|client| client["own"] == false)
        .expect("the standby");
    assert_eq!(
        (&other["kind"], &other["sync_stage"]),
        (&"standby".into(), &"5/5 Hot standby (max)".into())
    );
    let text = site.ok(&["replication-status", "main"]);
    for line in [
        "Status of streaming clients for server 'main':\n  Current LSN on master: 0/",
        "  Number of streaming clients: 2\n",
        " Async WAL streamer (barmanfs)\n     Application name: barmanfs_receive_wal\n",
        "     Communication   : Unix domain socket\n     User name       : postgres\n",
        "     Current state   : streaming (async)\n     Replication slot: barmanfs\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let words = ["replication-status", "main", "--minimal", "--target"];
    let minimal = site.ok(&[&words[..], &["wal-streamer"]].concat());
    assert_eq!(minimal.lines().count(), 3, "{minimal}");
    assert!(minimal.contains("  1. W) postgres@socket S:0/"), "{minimal}");
    let standbys = site.ok(&[&words[..], &["hot-standby"]].concat());
    assert!(standbys.contains("  1. A) postgres@socket S:0/"), "{standbys}");
    site.ok(&["receive-wal", "main", "--stop"]);
    receiver.wait().expect("It ends");
    drop(standby);
    site.write_config_with(&[("main", "host=/nowhere user=u")]);
    site.barmanfs(&["replication-status", "main"]).refused(1);
}

fn processes_are_listed_and_ended(install: &'static Install) {
    let (site, _server) = streaming_site(install);
    let tasks = || {
        let shown = site.json(&["list-processes", "main"]);
        let processes = shown["processes"].as_array().unwrap();
        let task = |process: &serde_json::Value| {
            let number = process["process"].as_u64().expect("a number");
            (
                process["task"].as_str().unwrap().to_owned(),
                u32::try_from(number).unwrap(),
            )
        };
        processes.iter().map(task).collect::<Vec<_>>()
    };
    assert!(tasks().is_empty());
    let nobody = site
        .barmanfs(&["terminate-process", "main", "receive-wal"])
        .refused(1);
    assert!(
        nobody.all().contains("No process of task receive-wal"),
        "{nobody}"
    );
    let mut receiver = site.spawn(&["receive-wal", "main"]);
    until("it is shown", || !tasks().is_empty());
    let mount = Mount::new(&site);
    let found = tasks();
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0], ("receive-wal".to_owned(), receiver.id()));
    assert_eq!(found[1].0, "mount");
    let missing = site.barmanfs(&["terminate-process", "main", "backup"]).refused(1);
    assert!(
        missing.all().contains("There are: receive-wal, mount"),
        "{missing}"
    );
    let ended = site.ok(&["terminate-process", "main", "receive-wal"]);
    assert!(
        ended.contains(&format!("Process {} (receive-wal)", receiver.id())),
        "{ended}"
    );
    assert!(receiver.wait().expect("It ends").success());
    // The lock's file names a process that has got the number of one that had the lock. Another one has the lock.
    let mut stranger = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .expect("Cannot run sleep");
    let lock = site.repository().join("locks/receive-main");
    let text = format!("receive-wal of main, process {}, since now\n", stranger.id());
    fs::write(&lock, text).expect("Cannot write");
    let held = fs::File::open(&lock).expect("Cannot open");
    held.lock().expect("Cannot lock");
    site.barmanfs(&["terminate-process", "main", "receive-wal"])
        .refused(1);
    drop(held);
    site.barmanfs(&["terminate-process", "main", "receive-wal"])
        .refused(1);
    assert!(
        stranger.try_wait().expect("Cannot ask").is_none(),
        "a stranger was ended"
    );
    stranger.kill().expect("Cannot kill");
    stranger.wait().expect("Cannot wait");
    site.ok(&["terminate-process", "main", "mount"]);
    until("the mount is gone", || tasks().is_empty());
    drop(mount);
}

fn listed_files_are_in_the_mount(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    site.ok(&["backup", "main", "--fast-checkpoint"]);
    server.archive_current_segment();
    let mount = Mount::new(&site);
    let directory = mount.path("").display().to_string();
    let words = [
        "list-files",
        "main",
        "latest",
        "--target",
        "full",
        "--mount",
        directory.as_str(),
    ];
    let listed = site.ok(&[&words[..], &["--list-empty-directories"]].concat());
    assert!(
        listed.lines().any(|path| path.ends_with("/pg_twophase/")),
        "{listed}"
    );
    assert!(
        !site.ok(&words).contains("pg_twophase"),
        "only when it is asked for"
    );
    let script = format!(
        "'{}' -c '{}' {} --list-empty-directories | tar -c -T - -f - -P | tar -t -f - -P | wc -l",
        site.program().display(),
        site.config().display(),
        words.join(" ")
    );
    let in_tar: usize = site.sh(&script).ok().text().trim().parse().expect("a number");
    assert_eq!(in_tar, listed.lines().count());
    site.barmanfs(&["list-files", "main", "latest", "--mount", "/"])
        .refused(2);
    assert_eq!(site.ok(&["list-servers", "--minimal"]), "main");
    mount.unmount();
}

fn a_backup_is_shown_with_what_lies_around_it(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    let first = site.backup();
    server.archive_current_segment();
    let between = server.archive_current_segment();
    let second = site.backup();
    let last = server.archive_current_segment();
    let shown = |id: &str| site.json(&["show-backup", "main", id]);
    let (old, new) = (shown(&first), shown(&second));
    assert_eq!(
        (&old["previous_backup"], &old["next_backup"]),
        (&serde_json::Value::Null, &second.as_str().into())
    );
    assert_eq!(
        (&new["previous_backup"], new["next_backup"].is_null()),
        (&first.as_str().into(), true)
    );
    assert!(
        old["wal_until_next"]["last_available"].as_str() >= Some(between.as_str()),
        "{old}"
    );
    assert!(
        old["wal_until_next"]["last_available"].as_str() < new["wal_until_next"]["last_available"].as_str()
    );
    assert_eq!(new["wal_until_next"]["last_available"], last.as_str(), "{new}");
    assert!(
        old["wal_until_next"]["logical_bytes"].as_u64() > Some(1 << 20),
        "{old}"
    );
    let text = site.ok(&["show-backup", "main", &first]);
    for word in ["WAL until", "Last available", "Next backup", &second] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

fn a_server_is_shown_with_its_keys_and_what_it_says(install: &'static Install) {
    let (site, mut server) = Site::with_server(install);
    site.write_config_of(
        &server,
        "slot_name = barmanfs\nssh_command = ssh db1\n[bad]\nconninfo = host=/nowhere\nminimum_redundancy = few\n\
         [my server]\nconninfo = host=/nowhere\n[old]\nactive = off\nconninfo = host=/nowhere\n",
    );
    site.ok(&["receive-wal", "main", "--create-slot"]);
    server.query("ALTER SYSTEM SET archive_command = 'PGPASSWORD=hunter2 false'");
    server.query("SELECT pg_reload_conf()");
    let show = |name: &str| site.json(&["show-servers", name])["servers"].clone();
    let shown = show("main")[0].clone();
    let key = |name: &str| {
        let keys = shown["configuration"].as_array().expect("keys");
        keys.iter()
            .find(|key| key["key"] == name)
            .cloned()
            .unwrap_or_default()
    };
    let (slot, archiver, ssh) = (key("slot_name"), key("archiver"), key("ssh_command"));
    let text = fs::read_to_string(site.config()).expect("the configuration");
    let line = 1 + text
        .lines()
        .position(|line| line.starts_with("slot_name"))
        .expect("it is set");
    assert_eq!(
        (&slot["value"], &slot["line"]),
        (&"barmanfs".into(), &line.into()),
        "{slot}"
    );
    assert_eq!(slot["file"], site.config().to_string_lossy().as_ref());
    assert_eq!(
        (&archiver["value"], &archiver["source"]),
        (&"auto".into(), &"built-in".into())
    );
    assert_eq!(
        (&ssh["value"], &ssh["effect"]),
        (&"ssh db1".into(), &"none".into())
    );
    let host = &shown["hosts"][0];
    assert_eq!(
        (&host["host"], &host["answers"]),
        (&"backup".into(), &true.into()),
        "{host}"
    );
    assert_eq!(host["is_in_recovery"], false);
    assert_eq!(
        host["settings"]["data_directory"],
        server.query("SHOW data_directory").as_str()
    );
    assert_eq!(host["replication_slots"][0]["name"], "barmanfs");
    assert_eq!(host["settings"]["archive_command"], "PGPASSWORD=<hidden> false");
    let text = site.ok(&["show-servers", "main"]);
    for words in [
        "\tarchiver: auto\n",
        &format!("barmanfs.conf:{line})\n"),
        "\tserver_version: ",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // What is disabled, inactive or down is shown as far as it is known.
    let all = show("all");
    let names: Vec<&str> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|server| server["server"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["main", "bad", "old", "my server"]);
    assert_eq!(
        (&all[1]["disabled"], &all[1]["hosts"][0]["answers"]),
        (&true.into(), &false.into())
    );
    assert!(
        all[1]["errors"][0]
            .as_str()
            .unwrap()
            .contains("minimum_redundancy"),
        "{all}"
    );
    server.stop("fast");
    let down = site.ok(&["show-servers", "main"]);
    assert!(down.contains("\tslot_name: barmanfs ("), "{down}");
    assert!(down.contains("does not answer: "), "{down}");
}

fn a_damaged_site_is_diagnosed_without_its_passwords(install: &'static Install) {
    const SECRETS: [&str; 2] = ["hunter2", "p%40ss-word"];
    let (site, server) = Site::with_server(install);
    let log = site.write_file(
        "barmanfs.log",
        b"ran with PGPASSWORD=hunter2, and https://u:hunter2@host/\n",
    );
    let text = format!(
        "[barmanfs]\nrepository = {}\nlog_file = {}\npre_backup_script = notify --password=hunter2\n\
         [main]\ndescription = of hunter2\nconninfo = {} password=hunter2\n\
         [down]\nconninfo = postgresql://u:p%40ss-word@/?host=/nowhere\n[bad]\nconninfo = host=/nowhere\nactive = hunter2\n",
        site.repository().display(),
        log.display(),
        server.conninfo()
    );
    site.write_file("barmanfs.conf", text.as_bytes());
    site.backup();
    let diagnose = |words: &[&str], code: i32| {
        let run = site.barmanfs(words);
        assert_eq!(run.code(), Some(code), "{run}");
        assert!(!SECRETS.iter().any(|secret| run.all().contains(secret)), "{run}");
        let value: serde_json::Value =
            serde_json::from_slice(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"));
        value
    };
    let found = diagnose(&["diagnose"], 0);
    assert!(
        found["host"]["kernel"]
            .as_str()
            .is_some_and(|kernel| kernel.contains("Linux")),
        "{found}"
    );
    assert_eq!(found["repository"]["format_version"], 1, "{found}");
    assert_eq!(found["repository"]["error"], serde_json::Value::Null);
    let [main, down, bad] = [0, 1, 2].map(|nth| &found["servers"][nth]);
    assert_eq!(
        (
            &main["hosts"][0]["answers"],
            &main["backups"]["list"][0]["status"]
        ),
        (&true.into(), &"DONE".into())
    );
    assert!(
        main["checks"].as_array().is_some_and(|checks| checks.len() > 10),
        "{main}"
    );
    assert_eq!(down["hosts"][0]["answers"], false, "{down}");
    assert_eq!(bad["disabled"], true, "{bad}");
    let lines = found["log"]["lines"].as_array().expect("the log");
    assert!(
        lines
            .iter()
            .any(|line| line.as_str().unwrap().contains("ran with")),
        "{found}"
    );
    // In Barman's shape.
    let shape = diagnose(&["-f", "json", "diagnose"], 0);
    assert!(
        shape["global"]["system_info"]["kernel_ver"].is_string(),
        "{shape}"
    );
    assert_eq!(
        shape["servers"]["main"]["backups"]
            .as_object()
            .map(serde_json::Map::len),
        Some(1),
        "{shape}"
    );
    assert!(
        shape["servers"]["main"]["status"]["data_directory"].is_string(),
        "{shape}"
    );
    assert!(shape["servers"]["bad"]["msg_list"][0].is_string(), "{shape}");
    // Without a catalog, and without a repository.
    fs::rename(site.repository().join("catalog.sqlite"), site.path("catalog")).expect("Cannot rename");
    fs::write(site.repository().join("catalog.sqlite"), b"no catalog").expect("Cannot write");
    let found = diagnose(&["diagnose"], 0);
    assert!(found["repository"]["error"].is_string(), "{found}");
    assert!(found["servers"][0]["backups"]["error"].is_string(), "{found}");
    assert_eq!(found["servers"][0]["hosts"][0]["answers"], true);
    fs::rename(site.repository(), site.path("elsewhere")).expect("Cannot rename");
    assert!(diagnose(&["diagnose"], 0)["repository"]["error"].is_string());
    // What cannot be read at all is a failure, and the rest is there.
    fs::remove_file(site.config()).expect("Cannot remove");
    site.make_directory("barmanfs.conf");
    let found = diagnose(&["diagnose"], 1);
    assert!(
        found["configuration"]["error"].is_string() && found["host"]["kernel"].is_string(),
        "{found}"
    );
}
