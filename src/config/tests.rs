//! The meaning of a configuration, and the messages about a wrong one.

use super::*;
use barmanfs_fs::CloneLimits;
use insta::assert_snapshot;

const GOOD: &str = r#"
[barmanfs]
repository = /srv/barmanfs
log_level = WARNING
bandwidth_limit = 4000

[main]
description = "Our first database"
conninfo = host=db1 user=barman password=hunter2 dbname=postgres
archiver = on

[standby.b-2]
active = off
immediate_checkpoint = true
bandwidth_limit = 0
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/barmanfs.conf"), text.as_bytes())
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn a_server_gets_its_own_values_and_the_global_defaults() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.repository, Path::new("/srv/barmanfs"));
    assert_eq!(config.log_level, Some(LevelFilter::WARN));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let [main, standby] = config.servers.as_slice() else {
        panic!("two servers")
    };
    assert_eq!(main.description.as_deref(), Some("Our first database"));
    assert_eq!(
        (main.archiver, main.bandwidth_limit_kb, main.active),
        (Archiver::On, Some(4000), true)
    );
    assert_eq!(
        main.replication_conninfo().unwrap().expose(),
        main.conninfo.as_ref().unwrap().expose()
    );
    assert_eq!(
        (standby.archiver, standby.bandwidth_limit_kb, standby.active),
        (Archiver::Auto, None, false)
    );
    assert!(standby.immediate_checkpoint);
    assert!(standby.replication_conninfo().is_none());
}

#[test]
fn streaming_is_configured_as_in_barman() {
    let text = "[barmanfs]\nrepository = /r\nstreaming_archiver = on\ncreate_slot = AUTO\n\
                [a]\nslot_name = barman\nstreaming_archiver_name = wal_receiver\n[b]\ncreate_slot = manual\n";
    let config = parse(text).unwrap();
    let of = |name| {
        let server: &ServerConfig = config.server(name).unwrap();
        (
            server.streaming_archiver,
            server.streaming_archiver_name.as_str(),
            server.slot_name.as_deref(),
            server.create_slot,
        )
    };
    assert_eq!(of("a"), (true, "wal_receiver", Some("barman"), CreateSlot::Auto));
    assert_eq!(of("b"), (true, "barmanfs_receive_wal", None, CreateSlot::Manual));
    let wrong = error("[barmanfs]\nrepository = /r\n[a]\nslot_name = Bad-Name\n");
    assert!(wrong.contains(":4:") && wrong.contains("lower-case"), "{wrong}");
    let wrong = error("[barmanfs]\nrepository = /r\n[a]\ncreate_slot = yes\n");
    assert!(wrong.contains("manual and auto"), "{wrong}");
}

#[test]
fn no_formatter_shows_a_password() {
    assert!(!format!("{:?}", parse(GOOD).unwrap()).contains("hunter2"));
}

#[test]
fn streaming_conninfo_wins_for_replication() {
    let text = "[barmanfs]\nrepository=/r\n[main]\nconninfo=host=a\nstreaming_conninfo=host=b\n";
    assert_eq!(
        parse(text)
            .unwrap()
            .server("main")
            .unwrap()
            .replication_conninfo()
            .unwrap()
            .expose(),
        "host=b"
    );
}

#[test]
fn every_key_of_the_table_has_an_effect() {
    for key in [
        "description",
        "conninfo",
        "streaming_conninfo",
        "streaming_backup_name",
    ] {
        let mut server = ServerConfig::new(ServerName::from_str("main").unwrap());
        assert!(server.set(key, "x").is_ok(), "{key}");
        assert!(matches!(keys::known(key), Known::Server | Known::ServerOrGlobal));
    }
    for key in ["active", "archiver", "immediate_checkpoint", "bandwidth_limit"] {
        let mut server = ServerConfig::new(ServerName::from_str("main").unwrap());
        assert!(server.set(key, "0").is_ok(), "{key}");
        assert!(server.set(key, "perhaps").is_err(), "{key}");
    }
}

#[test]
fn the_limits_of_clones_are_read() {
    let text = "[barmanfs]\nrepository = /r\nclone_max_size = 50G\nclone_max_count = 3\npath_prefix = /opt/pg/bin\n\
                [a]\n[b]\nclone_max_size = 0\nclone_max_count = 7\npath_prefix =\n";
    let config = parse(text).unwrap();
    let of = |name| {
        let server: &ServerConfig = config.server(name).unwrap();
        let CloneLimits { max_bytes, max_count } = server.clone_limits;
        (max_bytes, max_count, server.path_prefix.is_some())
    };
    assert_eq!(of("a"), (Some(50 << 30), 3, true));
    assert_eq!(of("b"), (None, 7, false));
    let wrong = error("[barmanfs]\nrepository = /r\n[a]\nclone_max_size = much\n");
    assert!(wrong.contains(":4:") && wrong.contains("50G"), "{wrong}");
}

#[test]
fn keys_without_effect_are_warned_about_with_their_line() {
    let text = "[barmanfs]\nrepository = /r\nbarman_user = barman\n\n[main]\ncompression = gzip\nconinfo = password=hunter2\nretention_policy = REDUNDANCY 2\nfavourite_colour = blue\nactive = on\nactive = off\n\n[fast]\nmodel = true\ncluster = main\n";
    let config = parse(text).unwrap();
    assert_eq!(config.servers.len(), 1);
    assert_snapshot!(config.warnings.join("\n"), @"
    /etc/barmanfs.conf:3: 'barman_user' has no effect: barmanfs runs as the user who calls it
    /etc/barmanfs.conf:6: 'compression' has no effect: barmanfs always compresses, and the file system shows everything decompressed
    /etc/barmanfs.conf:7: Unknown key 'coninfo' ignored: did you mean 'conninfo'?
    /etc/barmanfs.conf:8: 'retention_policy' has no effect: no backup is deleted by itself yet
    /etc/barmanfs.conf:9: Unknown key 'favourite_colour' ignored
    /etc/barmanfs.conf:11: 'active' was already set on line 10: this one counts
    /etc/barmanfs.conf:13: [fast] is a model: models are not supported, the section is ignored
    ");
}

#[test]
fn a_wrong_value_is_an_error_with_file_line_and_what_is_allowed() {
    let server = |line: &str| error(&format!("[barmanfs]\nrepository = /r\n[main]\n{line}\n"));
    let all = [
        error("[barmanfs]\nrepository = backups\n"),
        error("[barmanfs]\nrepository = /r\nlog_level = loud\n"),
        error("[barmanfs]\nrepository = /r\nconninfo = password=hunter2\n"),
        error("[barmanfs]\n[main]\nconninfo = host=a\n"),
        error("[barmanfs]\nrepository = /r\n[barman]\n"),
        error("[barmanfs]\nrepository = /r\n[DEFAULT]\n"),
        error("[barmanfs]\nrepository = /r\n[all]\n"),
        error("[barmanfs]\nrepository = /r\n[../x]\n"),
        error("[barmanfs]\nrepository = /r\n[main]\n[main]\n"),
        error("[barmanfs]\nrepository = /r\n[main]\npassword hunter2\n"),
        server("archiver = perhaps"),
        server("active = maybe"),
        server("bandwidth_limit = 12"),
        server("bandwidth_limit = fast"),
        server("repository = /r"),
    ];
    assert_snapshot!(all.join("\n"), @r#"
    /etc/barmanfs.conf:2: 'repository' is 'backups': allowed is an absolute path
    /etc/barmanfs.conf:3: 'log_level' is 'loud': allowed are error, warning, info, debug, trace and off
    /etc/barmanfs.conf:3: 'conninfo' belongs into a server's section, not into [barmanfs]
    /etc/barmanfs.conf: [barmanfs] has no 'repository': set it to the directory that shall hold the backups
    /etc/barmanfs.conf:3: [barman] has no meaning here: put it into [barmanfs]
    /etc/barmanfs.conf:3: [DEFAULT] has no meaning here: put it into [barmanfs]
    /etc/barmanfs.conf:3: Invalid server name "all": letters, digits, '_', '-' and '.' are allowed, not a '.' in front, and not "all"
    /etc/barmanfs.conf:3: Invalid server name "../x": letters, digits, '_', '-' and '.' are allowed, not a '.' in front, and not "all"
    /etc/barmanfs.conf:4: Server [main] is there twice: put all its keys into one section
    /etc/barmanfs.conf:4: Malformed line: expected [section], key = value, or a comment that begins with # or ;
    /etc/barmanfs.conf:4: 'archiver' is 'perhaps': allowed are on, off and auto
    /etc/barmanfs.conf:4: 'active' is 'maybe': allowed are on and off
    /etc/barmanfs.conf:4: 'bandwidth_limit' is '12': allowed is a number of kB per second from 32 to 1048576, or 0 for no limit
    /etc/barmanfs.conf:4: 'bandwidth_limit' is 'fast': allowed is a number of kB per second from 32 to 1048576, or 0 for no limit
    /etc/barmanfs.conf:4: 'repository' belongs into [barmanfs], not into a server's section
    "#);
}

#[test]
fn text_that_is_not_utf8_is_an_error_with_its_line() {
    let error = Config::parse(
        Path::new("/c"),
        b"[barmanfs]\nrepository = /r\n[m]\ndescription = \xff\n",
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "/c:4: The line is not UTF-8 text");
}

#[test]
fn the_users_file_wins_over_the_hosts_and_an_explicit_one_must_exist() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join(USER_FILE), "[barmanfs]\nrepository = /r\n").unwrap();
    assert_eq!(
        Config::load(None, Some(home.path())).unwrap().repository,
        Path::new("/r")
    );
    let missing = home.path().join("none.conf");
    assert!(matches!(
        Config::load(Some(&missing), Some(home.path())),
        Err(ConfigError::Read { .. })
    ));
}

#[test]
fn what_is_scheduled_is_read() {
    let config = parse(
        "[barmanfs]\nrepository = /r\nverify_budget = 0.5 %\naudit_sample = 20\n[main]\nbackup_schedule = 0 2 * * mon-fri\n\
         boot_test_schedule = off\n",
    )
    .unwrap();
    assert_eq!(config.verify_budget.of(1_000_000, 24 * 3600), 5000);
    let main = config.server("main").unwrap();
    let backup = main.backup_schedule.as_ref().map(ToString::to_string);
    assert_eq!(backup.as_deref(), Some("0 2 * * mon-fri"));
    assert_eq!((&main.boot_test_schedule, main.audit_sample), (&None, 20));
    let of = |value: &str| parse(&format!("[barmanfs]\nrepository = /r\nverify_budget = {value}\n"));
    assert_eq!(of("").unwrap().verify_budget.of(100, 24 * 3600), 2);
    assert!(of("off").unwrap().verify_budget.is_off());
    for wrong in ["2", "-1 %", "101 %", "1e1 %"] {
        assert!(of(wrong).is_err(), "{wrong}");
    }
    let error = error("[barmanfs]\nrepository = /r\n[main]\nbackup_schedule = 0 25 * * *\n");
    assert!(
        error.contains(":4: 'backup_schedule' is '0 25 * * *': '25' is no hour"),
        "{error}"
    );
}

/// The limits and the minimum redundancy of a server with these lines in its section.
pub(crate) fn limits(settings: &str) -> (Limits, usize) {
    let server = server(settings);
    (server.limits, server.minimum_redundancy)
}

/// A server `main` with these settings.
pub(crate) fn server(settings: &str) -> ServerConfig {
    let text = format!("[barmanfs]\nrepository = /r\n[main]\n{settings}\n");
    let config = Config::parse(Path::new("b.conf"), text.as_bytes()).unwrap();
    config.servers.into_iter().next().unwrap()
}
