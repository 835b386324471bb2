//! Configurations as sites of Barman have them, with `repository` added and nothing else changed. The kind: one line that
//! this program does not know makes the whole unusable, or is left out without a word.

use crate::common::Site;
use crate::common::registry::topic;
use serde_json::Value;

topic! {
    alone barmans_skeleton_with_an_include_directory_works,
    alone the_configuration_of_a_tutorial_works,
    alone a_streaming_only_configuration_works,
    alone a_wrong_value_disables_one_server,
    alone what_cannot_be_read_stops_nothing_else,
    alone a_server_is_switched_to_a_model_and_back,
    alone changes_are_written_into_the_repository,
    alone no_command_prints_a_password_of_the_configuration,
    alone init_makes_a_repository_and_says_what_is_left_to_do,
}

/// Writes the main file, with the repository in its `[barman]`.
fn site_of_barman(text: &str) -> Site {
    let site = Site::new();
    site.ok(&["init", &site.repository().to_string_lossy()]);
    let repository = format!("[barman]\nrepository = {}\n", site.repository().display());
    site.write_file(
        "barmanfs.conf",
        text.replace("[barman]\n", &repository).as_bytes(),
    );
    site
}

fn section<'a>(checked: &'a Value, name: &str) -> &'a Value {
    let mut sections = checked["sections"].as_array().unwrap().iter();
    sections.find(|section| section["name"] == name).unwrap()
}

fn effective<'a>(checked: &'a Value, server: &str, key: &str) -> &'a Value {
    let mut values = section(checked, server)["effective"].as_array().unwrap().iter();
    &values.find(|value| value["key"] == key).unwrap()["value"]
}

/// Lists servers and checks them; the servers cannot be reached, and that is all that is wrong.
#[track_caller]
fn works(site: &Site, servers: &[&str]) -> Value {
    let listed = site.json(&["list-servers"]);
    let names: Vec<&str> = listed["servers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|server| server["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, servers);
    for server in servers {
        let checked = site.barmanfs(&["check", server]).refused(3).all();
        assert!(checked.contains("PostgreSQL"), "{checked}");
        assert!(!checked.contains("configuration: FAILED"), "{checked}");
    }
    site.json(&["config", "check"])
}

fn barmans_skeleton_with_an_include_directory_works() {
    let site = site_of_barman(
        "; Barman, Backup and Recovery Manager for PostgreSQL\n[barman]\nbarman_user = barman\n\
         configuration_files_directory = barman.d\nbarman_home = /var/lib/barman\nlog_file = LOG\nlog_level = INFO\n\
         compression = gzip\n",
    );
    let log = site.path("barman.log");
    let text = std::fs::read_to_string(site.config()).unwrap();
    site.write_file(
        "barmanfs.conf",
        text.replace("LOG", &log.to_string_lossy()).as_bytes(),
    );
    site.make_directory("barman.d");
    site.write_file(
        "barman.d/main.conf",
        b"[main]\ndescription =  \"Our main PostgreSQL server\"\nconninfo = host=/nowhere user=barman dbname=postgres\n\
          streaming_conninfo = host=/nowhere user=streaming_barman\nbackup_method = postgres\nstreaming_archiver = on\n\
          slot_name = barman\n",
    );
    let checked = works(&site, &["main"]);
    assert_eq!(effective(&checked, "main", "slot_name"), "barman");
    assert_eq!(
        effective(&checked, "main", "streaming_archiver_name"),
        "barman_receive_wal"
    );
    let settings = section(&checked, "main")["settings"].as_array().unwrap();
    let included = settings
        .iter()
        .find(|setting| setting["key"] == "slot_name")
        .unwrap();
    assert!(
        included["file"].as_str().unwrap().ends_with("barman.d/main.conf"),
        "{included}"
    );
    assert_eq!(included["line"], 7);
    // The log has what commands end with.
    site.barmanfs(&["backup", "main"]).refused(1);
    let logged = std::fs::read_to_string(log).unwrap();
    assert!(
        logged.contains("ERROR") && logged.contains("/nowhere"),
        "{logged}"
    );
}

fn the_configuration_of_a_tutorial_works() {
    let site = site_of_barman(
        "[barman]\nbarman_home = /var/lib/barman\nbarman_user = barman\nlog_file = /nowhere/barman.log\ncompression = gzip\n\
         reuse_backup = link\nbackup_method = rsync\narchiver = on\nminimum_redundancy = 1\n\
         last_backup_maximum_age = 1 WEEK\n\n[pg]\ndescription = 100 %% of %(name)s\nssh_command = ssh postgres@pg\n\
         conninfo = host=/nowhere user=barman dbname=postgres password=secret\nparallel_jobs = 2\nbandwidth_limit = 4\n",
    );
    let checked = works(&site, &["pg"]);
    assert_eq!(effective(&checked, "pg", "description"), "100 % of pg");
    assert_eq!(effective(&checked, "pg", "minimum_redundancy"), "1");
    assert_eq!(effective(&checked, "pg", "bandwidth_limit"), "32");
    let text = site.barmanfs(&["config", "check"]).ok().all();
    assert!(text.contains("no effect") && !text.contains("secret"), "{text}");
    // Other commands say it in one line.
    let run = site.barmanfs(&["list-servers"]).ok();
    assert_eq!(
        run.stderr
            .lines()
            .filter(|line| line.contains("config check"))
            .count(),
        1,
        "{run}"
    );
}

fn a_streaming_only_configuration_works() {
    let site = site_of_barman(
        "[barman]\nbarman_home = /var/lib/barman\n[DEFAULT]\nhost = /nowhere\n[Streaming-Server]\n\
         conninfo = host=%(host)s user=barman\nstreaming_conninfo = %(conninfo)s dbname=replication\n\
         backup_method = postgres\nstreaming_archiver = on\nslot_name = Barman\ncreate_slot = auto\n\
         streaming_archiver_name = barman_receive_wal\ndisabled = false\n",
    );
    let checked = works(&site, &["Streaming-Server"]);
    let conninfo = effective(&checked, "Streaming-Server", "streaming_conninfo");
    assert_eq!(conninfo, "dbname=replication host=/nowhere user=barman");
    assert_eq!(effective(&checked, "Streaming-Server", "slot_name"), "barman");
}

fn a_wrong_value_disables_one_server() {
    let site = site_of_barman(
        "[barman]\n[good]\nconninfo = host=/nowhere\n[bad]\nconninfo = host=/nowhere\nminimum_redundancy = few\n\
         [my server]\nconninfo = host=/nowhere\n",
    );
    site.barmanfs(&["backup", "bad"]).refused(2).says(&[
        "Server 'bad' is disabled",
        "barmanfs.conf:7",
        "minimum_redundancy",
    ]);
    site.barmanfs(&["delete", "bad", "latest"]).rejected();
    // The others are done: this one cannot be reached.
    site.barmanfs(&["backup", "all"])
        .refused(1)
        .says(&["2 of 2 backups failed", "/nowhere"]);
    let run = site.barmanfs(&["check", "all"]).refused(3);
    run.says(&[
        "configuration: FAILED",
        "barmanfs.conf:7",
        "barmanfs.conf:8",
        "my server",
    ]);
    assert_eq!(site.json(&["list-servers"])["servers"][1]["disabled"], true);
    site.barmanfs(&["config", "check"])
        .refused(3)
        .says(&["barmanfs.conf:7", "disabled"]);
}

fn what_cannot_be_read_stops_nothing_else() {
    let site = site_of_barman(
        "[barman]\nconfiguration_files_directory = d\n[a]\nconninfo = host=/nowhere\nretention_policy = REDUNDANCY 1\n\
         [b]\nconninfo = host=/nowhere\n",
    );
    let changed = r#"[{"scope": "server", "server_name": "b", "minimum_redundancy": 2}]"#;
    site.barmanfs(&["config-update", changed]).ok();
    // Barman's own reader stops at this byte.
    let text = std::fs::read(site.config()).unwrap();
    site.write_file("barmanfs.conf", &[b"# caf\xe9\n", text.as_slice()].concat());
    assert!(site.ok(&["list-servers"]).contains("a"));
    let disabled = || {
        let listed = site.json(&["list-servers"]);
        let servers = listed["servers"].as_array().unwrap().iter();
        servers
            .map(|server| server["disabled"].as_bool().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(disabled(), [false, false]);

    let automatic = "repository/config/auto.conf";
    let written = std::fs::read(site.path(automatic)).unwrap();
    site.write_file(automatic, &written[..written.len() - 9]);
    assert_eq!(disabled(), [false, true]);
    site.barmanfs(&["check", "b"])
        .refused(3)
        .says(&["configuration: FAILED", "auto.conf"]);
    // It is not written over: it says which servers have lost something.
    site.barmanfs(&["config-update", changed])
        .refused(2)
        .says(&["auto.conf", "remove it"]);
    site.sh(&format!("rm '{}'", site.path(automatic).display())).ok();
    assert_eq!(disabled(), [false, false]);
    site.barmanfs(&["config-update", changed]).ok();

    // Servers may be in a file that cannot be read, and more to keep for those that are known.
    site.make_directory("d");
    site.sh(&format!("ln -s t.conf '{}'", site.path("d/t.conf").display()))
        .ok();
    assert_eq!(disabled(), [false, false]);
    site.barmanfs(&["retention", "a"]).refused(3).says(&[
        "1 part cannot be read",
        "Nothing is deleted",
        "t.conf",
    ]);
    site.barmanfs(&["check", "all"])
        .refused(3)
        .says(&["t.conf", "configuration: FAILED"]);
    site.barmanfs(&["backup", "t"])
        .rejected()
        .says(&["It may be in a file that cannot be read", "t.conf"]);
    site.barmanfs(&["config", "check"]).refused(3).says(&["t.conf"]);
}

fn a_server_is_switched_to_a_model_and_back() {
    let site = site_of_barman(
        "[barman]\n[main]\nconninfo = host=/nowhere user=barman\n[standby]\nmodel = true\ncluster = main\n\
         conninfo = host=/elsewhere user=barman\n[other]\nmodel = true\ncluster = reports\n",
    );
    let host = || effective(&site.json(&["config", "check"]), "main", "conninfo").clone();
    site.barmanfs(&["config-switch", "main", "nothing"])
        .refused(1)
        .says(&["standby"]);
    site.barmanfs(&["config-switch", "main", "other"])
        .refused(1)
        .says(&["reports"]);
    let text = site.ok(&["config-switch", "main", "standby"]);
    assert!(
        text.contains("host=/nowhere user=barman -> host=/elsewhere user=barman"),
        "{text}"
    );
    assert_eq!(host(), "host=/elsewhere user=barman");
    assert!(site.ok(&["config-switch", "main", "standby"]).contains("already"));
    site.ok(&["config-switch", "main", "--reset"]);
    assert_eq!(host(), "host=/nowhere user=barman");
    // A model that is gone disables its server.
    site.ok(&["config-switch", "main", "standby"]);
    let text = std::fs::read_to_string(site.config()).unwrap();
    site.write_file(
        "barmanfs.conf",
        text.replace("[standby]", "[stand-by]").as_bytes(),
    );
    site.barmanfs(&["backup", "main"])
        .refused(2)
        .says(&["standby", "--reset"]);
    site.ok(&["config-switch", "main", "--reset"]);
    site.barmanfs(&["backup", "main"]).refused(1).says(&["/nowhere"]);
}

fn changes_are_written_into_the_repository() {
    let site = site_of_barman("[barman]\n[main]\nconninfo = host=/nowhere\nbandwidth_limit = 4000\n");
    let before = std::fs::read_to_string(site.config()).unwrap();
    let update = |changes: &str| site.barmanfs(&["config-update", changes]);
    for wrong in [
        "{}",
        r#"[{"scope": "cluster"}]"#,
        r#"[{"scope": "server", "server_name": "nobody", "active": "off"}]"#,
        r#"[{"scope": "server", "server_name": "main", "colour": "blue"}]"#,
        r#"[{"scope": "server", "server_name": "main", "active": "maybe"}]"#,
        r#"[{"scope": "server", "server_name": "main", "conninfo": " "}]"#,
        r#"[{"scope": "server", "server_name": "main", "conninfo": null}]"#,
        r#"[{"scope": "server", "server_name": "main", "conninfo": "db1 hunter2"}]"#,
        r#"[{"scope": "server", "server_name": "main", "retention_policy": "REDUNDANCY"}]"#,
        r#"[{"scope": "server", "server_name": "main", "description": "two\nlines"}]"#,
        r#"[{"scope": "model", "model_name": "new"}]"#,
        r#"[{"scope": "server", "server_name": "main", "model": true}]"#,
        r#"[{"scope": "model", "model_name": "barman", "cluster": "main"}]"#,
        r#"[{"scope": "model", "model_name": "DEFAULT", "cluster": "main"}]"#,
        r#"["conninfo = host=db password=hunter2"]"#,
    ] {
        let said = update(wrong).refused(1).all();
        assert!(!said.contains("hunter2"), "{said}");
        assert!(!site.repository().join("config").exists(), "{wrong}");
    }
    let text = update(
        r#"[{"scope": "server", "server_name": "main", "bandwidth_limit": 2000, "description": "50 % \"off\""},
            {"scope": "model", "model_name": "night", "cluster": "main", "bandwidth_limit": null, "active": false}]"#,
    )
    .ok()
    .text();
    assert!(text.contains("main: bandwidth_limit: 4000 -> 2000"), "{text}");
    let checked = site.json(&["config", "check"]);
    assert_eq!(effective(&checked, "main", "description"), "50 % \"off\"");
    assert_eq!(section(&checked, "night")["kind"], "model");
    // A change that is right by itself, and would disable a server.
    site.ok(&["config-switch", "main", "night"]);
    let written = || std::fs::read_to_string(site.repository().join("config/auto.conf")).unwrap();
    let before_it = written();
    update(r#"[{"scope": "model", "model_name": "night", "cluster": "reports"}]"#)
        .refused(1)
        .says(&[
            "Nothing is changed",
            "Server 'main' would be disabled",
            "of another cluster",
        ]);
    assert_eq!(written(), before_it);
    site.ok(&["config-switch", "main", "--reset"]);
    update(r#"[{"scope": "server", "server_name": "main", "bandwidth_limit": null}]"#).ok();
    let checked = site.json(&["config", "check"]);
    assert!(
        effective(&checked, "main", "bandwidth_limit").is_null(),
        "{checked}"
    );
    assert_eq!(effective(&checked, "main", "description"), "50 % \"off\"");
    assert_eq!(std::fs::read_to_string(site.config()).unwrap(), before);
    // A server that is taken out of the file is gone, whatever was changed of it.
    let without = before.split("[main]").next().unwrap();
    site.write_file("barmanfs.conf", without.as_bytes());
    let servers = site.json(&["list-servers"]);
    assert_eq!(servers["servers"].as_array().unwrap().len(), 0, "{servers}");
}

fn init_makes_a_repository_and_says_what_is_left_to_do() {
    let site = Site::new();
    let text = site.ok(&["init", "--server", "main"]);
    assert!(text.contains("Created the repository"), "{text}");
    for said in [
        "CREATE ROLE barmanfs",
        "pg_hba.conf",
        "archive_command = '",
        "conninfo = ",
    ] {
        assert!(text.contains(said), "{said} is not in {text}");
    }
    assert!(site.ok(&["init"]).contains("already"));
    assert!(site.ok(&["list-servers"]).is_empty() || site.repository().join("repository.json").exists());
    // What it says to put into a configuration is one.
    std::fs::remove_file(site.config()).unwrap();
    let other = site.path("other");
    let text = site.ok(&["init", &other.to_string_lossy(), "--server", "main"]);
    let lines = text.lines().filter(|line| {
        let line = line.trim();
        ["[barmanfs]", "[main]"].contains(&line)
            || line.starts_with("repository =")
            || line.starts_with("conninfo =")
    });
    let written = lines.map(str::trim).collect::<Vec<_>>().join("\n");
    site.write_file("barmanfs.conf", written.as_bytes());
    assert_eq!(site.json(&["config", "check"])["ok"], true);
}

/// What the words of a command may be, so that it reads the configuration; all of them fail where they need a server.
fn words_of(command: &str) -> Vec<&str> {
    const UPDATE: &str =
        r#"[{"scope": "server", "server_name": "main", "description": "it is hunter2-correct"}]"#;
    match command {
        "list-servers" | "list-backups" | "stats" | "metrics" | "sweep" | "rebuild-catalog" | "version"
        | "verify" => {
            vec![command]
        }
        "cron" => vec![command, "--keep-descriptors"],
        "init" => vec![command, "--server", "main"],
        "config" => vec![command, "check"],
        "key" => vec![command, "list"],
        "encrypt" => vec![command],
        "config-update" => vec![command, UPDATE],
        "config-switch" => vec![command, "main", "night"],
        "clone" => vec![command, "list"],
        "history" | "quarantine" => vec![command, "main", "list"],
        "wal-archive" => vec![command, "main", "/nowhere/000000010000000000000001"],
        "get-wal" => vec![command, "main", "000000010000000000000001", "/dev/null"],
        "keep" => vec![command, "main", "latest", "--status"],
        "show-backup" | "list-files" | "delete" => vec![command, "main", "latest"],
        "sync-backup" => vec![command, "main", "20261120T101500"],
        "sync-wals" | "sync-info" => vec![command, "main"],
        "explain" => vec![command, "main", "now"],
        "terminate-process" => vec![command, "main", "backup"],
        "mount" | "umount" => vec![command, "/nowhere/mnt"],
        "timeline" | "index-wal" | "check-wal-archive" | "list-processes" | "receive-wal" | "put-wal"
        | "archive-wal" => {
            vec![command, "main"]
        }
        // The others take several servers.
        _ => vec![command, "main", "bad", "other"],
    }
}

/// `%(password)s` can put a password into any key. Whatever a command prints or logs, it is not in there.
fn no_command_prints_a_password_of_the_configuration() {
    const SECRETS: [&str; 4] = ["hunter2-correct", "t0ken-value", "p@ss word", "p%40ss"];
    let site = site_of_barman(
        "[barman]\nlog_file = LOG\npre_backup_script = /bin/hook --token %(my_token)s\n[DEFAULT]\npassword = hunter2-correct\n\
         my_token = t0ken-value\n[main]\ndescription = 100 %% %(password)s of %(name)s\ncluster = %(password)s\n\
         conninfo = host=/nowhere user=u password=%(password)s application_name=%(password)s\n\
         streaming_conninfo = postgresql://u:p%%40ss%%20word@/postgres?host=/nowhere\nssh_command = sshpass -p %(password)s ssh x\n\
         bandwidth_limit = %(password)s\nstreaming_archiver_name = %(my_token)s\npath_prefix = /opt/%(password)s\n\
         [bad]\ndescription = %(conninfo)s\nconninfo = host=/nowhere password='%(password)s'\n\
         minimum_redundancy = %(password)s\nslot_name = %(password)s\n[other]\ndescription = %(streaming_conninfo)s\n\
         conninfo = host=/nowhere\nstreaming_conninfo = postgresql://u:p%%40ss%%20word@/postgres?host=/nowhere\n\
         wal_streaming_conninfo = host=/nowhere application_name=%(password)s\n[%(my_token)s]\nconninfo = host=/nowhere\n\
         [night]\nmodel = true\ncluster = %(password)s\ndescription = %(my_token)s\n",
    );
    let log = site.path("barman.log");
    let text = std::fs::read_to_string(site.config()).unwrap();
    site.write_file(
        "barmanfs.conf",
        text.replace("LOG", &log.to_string_lossy()).as_bytes(),
    );
    let help = site.ok(&["--help"]);
    let (listed, _) = help.split_once("Options of every command:").unwrap();
    let listed = listed
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
    let mut said = 0;
    for command in listed {
        let words = words_of(command);
        for form in [&[][..], &["--json"], &["-f", "json"], &["--format", "console"]] {
            let line = match form {
                ["--json"] => [&words[..], form].concat(),
                _ => [form, &words[..]].concat(),
            };
            let run = site.barmanfs(&line);
            let found = SECRETS.iter().find(|secret| run.all().contains(**secret));
            assert_eq!(found, None, "{line:?}: {run}");
            said += run.all().len();
        }
    }
    assert!(said > 10_000, "The commands said {said} bytes");
    let logged = std::fs::read_to_string(log).expect("a log");
    assert!(!SECRETS.iter().any(|secret| logged.contains(secret)), "{logged}");
}
