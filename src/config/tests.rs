//! The meaning of a configuration, and the messages about a wrong one.

mod unreadable;

use super::*;
use barmanfs_catalog::ServerName;
use barmanfs_fs::CloneLimits;
use insta::assert_snapshot;
use std::str::FromStr;

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
    parse_bytes(text.as_bytes())
}

fn parse_bytes(bytes: &[u8]) -> Result<Config, ConfigError> {
    parse_with(bytes, None)
}

/// With this file of `config-update`.
fn parse_with(bytes: &[u8], automatic: Option<&[u8]>) -> Result<Config, ConfigError> {
    let main = Candidate {
        path: "/c/b.conf".into(),
        is_barmans_place: false,
    };
    Config::parse(&main, bytes, None, automatic)
}

/// Notices, and errors of servers, as lines.
fn said(config: &Config) -> String {
    let notices = config.notices.iter().map(ToString::to_string);
    notices.chain(config.errors()).collect::<Vec<_>>().join("\n")
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn a_server_gets_its_own_values_and_the_global_defaults() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.repository, Path::new("/srv/barmanfs"));
    assert_eq!(config.log_level, Some(LevelFilter::WARN));
    assert_eq!(said(&config), "");
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
}

#[test]
fn no_formatter_shows_a_password() {
    assert!(!format!("{:?}", parse(GOOD).unwrap()).contains("hunter2"));
}

/// A password that is also a name makes no hole in everything else.
#[test]
fn a_password_that_is_a_word_hides_no_other_value() {
    let text = "[barmanfs]\nrepository = /r\n[main]\ndescription = of postgres\n\
                conninfo = host=db1 user=barman password=postgres\n\
                streaming_conninfo = host=db1 user=barman password=barman\nslot_name = barman\nactive = barman\n";
    let config = parse(text).unwrap();
    let server = &config.servers[0];
    assert_eq!(server.description.as_deref(), Some("of postgres"));
    let values = server.effective();
    let shown = |key: &str| {
        let found = values.iter().find(|(name, _)| *name == key);
        found
            .and_then(|(_, value)| value.as_ref())
            .map(ToString::to_string)
    };
    assert_eq!(shown("slot_name").as_deref(), Some("barman"));
    for key in ["conninfo", "streaming_conninfo"] {
        assert_eq!(
            shown(key).as_deref(),
            Some("host=db1 password=<hidden> user=barman")
        );
    }
    assert!(said(&config).contains("'barman'"), "{}", said(&config));
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
fn wal_comes_from_its_own_host_where_one_is_configured() {
    let of = |lines: &str| {
        let text =
            format!("[barmanfs]\nrepository=/r\n[main]\nconninfo=host=a\nstreaming_conninfo=host=b\n{lines}");
        let config = parse(&text).unwrap();
        let server = config.server("main").unwrap();
        let text = |found: Option<&Secret>| found.unwrap().expose().to_owned();
        let found = (
            text(server.wal_replication_conninfo()),
            text(server.wal_sql_conninfo()),
        );
        (found.0, found.1, server.has_wal_host())
    };
    let expected =
        |streaming: &str, sql: &str, own| (format!("host={streaming}"), format!("host={sql}"), own);
    assert_eq!(of(""), expected("b", "a", false));
    assert_eq!(of("wal_streaming_conninfo = host=c\n"), expected("c", "c", true));
    assert_eq!(of("wal_conninfo = host=d\n"), expected("b", "d", true));
    let both = "wal_conninfo = host=d\nwal_streaming_conninfo = host=c\n";
    assert_eq!(of(both), expected("c", "d", true));
    let same = "wal_conninfo = host=a\nwal_streaming_conninfo = host=b\n";
    assert_eq!(of(same), expected("b", "a", false));
}

#[test]
fn every_key_of_a_server_is_read_and_can_be_shown() {
    for key in keys::of_servers() {
        let mut server = ServerConfig::new(ServerName::from_str("main").unwrap(), false);
        let shown = server.effective();
        for value in ["on", "1 DAY", "1", "/x", "host=a", "none", "off"] {
            let is_wrong = |wrong: &setting::Wrong| !wrong.message.contains("no meaning here");
            assert!(
                server.set(key, value).as_ref().err().is_none_or(is_wrong),
                "{key}"
            );
        }
        let has_no_value = keys::WITHOUT_VALUE;
        assert!(
            shown.iter().any(|(known, _)| *known == key) != has_no_value.contains(&key),
            "{key}"
        );
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
}

#[test]
fn keys_without_effect_are_warned_about_with_their_line() {
    let text = "[barmanfs]\nrepository = /r\nbarman_user = barman\nconninfo = password=hunter2\n[main]\ncompression = gzip\nconinfo = password=hunter2\nlog_level = debug\nfavourite_colour = blue\nactive = on\nactive = off\n[main]\nslot_name = Barman\n";
    let config = parse(text).unwrap();
    assert_eq!(config.servers.len(), 1);
    assert_snapshot!(said(&config), @r#"
    /c/b.conf:4: 'conninfo' has no effect: it belongs into a server's section
    /c/b.conf:6: 'compression' has no effect: barmanfs always compresses, and the file system shows everything decompressed
    /c/b.conf:7: 'coninfo' is unknown: did you mean 'conninfo'?
    /c/b.conf:8: 'log_level' has no effect: it belongs into [barmanfs], not into a server's section
    /c/b.conf:9: 'favourite_colour' is unknown
    /c/b.conf:11: 'active' was already set on line 10: this one counts
    /c/b.conf:12: [main] was already begun at /c/b.conf:5: both are merged
    /c/b.conf:13: 'slot_name' is 'barman': PostgreSQL has no capital letters in names of slots
    "#);
}

/// The kind: a key that is right, and that nothing reads beside the others.
#[test]
fn what_does_nothing_beside_other_keys_is_named() {
    let idle = |keys: &str| {
        let config = parse(&format!(
            "[barmanfs]\nrepository = /r\n[main]\nconninfo = host=a\n{keys}"
        ))
        .unwrap();
        let named = |setting: &&Setting| matches!(setting.effect, Effect::Nothing(_));
        let settings = config.servers[0].settings.iter().filter(named);
        let names: Vec<&str> = settings.map(|setting| setting.key.as_str()).collect();
        assert_eq!(config.notices.len(), names.len(), "{}", said(&config));
        names.join(" ")
    };
    for (keys, named) in [
        ("slot_name = a\ncreate_slot = auto\n", "slot_name create_slot"),
        ("slot_name = a\ncreate_slot = auto\nstreaming_archiver = on\n", ""),
        ("primary_checkpoint_timeout = 5\n", "primary_checkpoint_timeout"),
        ("primary_checkpoint_timeout = 5\nprimary_conninfo = host=b\n", ""),
        (
            "incoming_wals_directory = /in\narchiver = off\n",
            "incoming_wals_directory",
        ),
        ("incoming_wals_directory = /in\n", ""),
        ("audit_sample = 5\nincremental = never\n", "audit_sample"),
        ("audit_sample = 5\n", ""),
        (
            "sync_deletions = on\nsync_partial = on\n",
            "sync_deletions sync_partial",
        ),
        ("sync_deletions = off\n", ""),
        ("sync_deletions = on\nprimary_repository = /p\n", ""),
        ("sync_deletions = on\nprimary_home = /p\n", "sync_deletions"),
        (
            "forward_config_path = on\nprimary_home = /p\n",
            "forward_config_path",
        ),
        (
            "primary_ssh_command = ssh b\nbackup_schedule = @daily\n",
            "backup_schedule",
        ),
    ] {
        let found = idle(keys);
        let (mut found, mut named): (Vec<&str>, Vec<&str>) =
            (found.split(' ').collect(), named.split(' ').collect());
        found.sort_unstable();
        named.sort_unstable();
        assert_eq!(found, named, "{keys}");
    }
    // A default for all servers is for those that it concerns.
    let config = parse("[barmanfs]\nrepository = /r\ncreate_slot = auto\n[main]\n").unwrap();
    assert_eq!(said(&config), "");
}

#[test]
fn only_what_makes_the_whole_unusable_is_an_error() {
    let all = [
        error("[barmanfs]\nrepository = backups\n"),
        error("[barmanfs]\nrepository = /r\nrecovery_target_action = stop\n"),
        error("[barmanfs]\n[main]\nconninfo = host=a\n"),
        error("[barman]\nbarman_home = /var/lib/barman\n"),
        error("[barmanfs]\nrepository /r\n[main]\npassword hunter2\n"),
    ];
    assert_snapshot!(all.join("\n"), @r#"
    /c/b.conf:2: 'repository' is 'backups': allowed is an absolute path
    /c/b.conf:3: 'recovery_target_action' is 'stop': allowed are promote, pause and shutdown
    /c/b.conf: Nothing says where the backups are: add "repository = /var/lib/barmanfs" to [barmanfs]
    /c/b.conf: Nothing says where the backups are: add "repository = /var/lib/barmanfs" to [barman] or [barmanfs]
    /c/b.conf: Nothing says where the backups are: add "repository = /var/lib/barmanfs" to [barmanfs] (/c/b.conf:2: Malformed line: expected [section], key = value, or a comment that begins with # or ;)
    "#);
}

#[test]
fn a_wrong_value_disables_the_server_it_belongs_to() {
    let text = "[barmanfs]\nrepository = /r\nlog_level = loud\nminimum_redundancy = few\n\
                [a]\nminimum_redundancy = 1\n[b]\n[c]\nminimum_redundancy =\narchiver = perhaps\nactive = maybe\n\
                [all]\n[../x]\n[my server]\n[d]\nminimum_redundancy = 2\nconninfo = host=a hunter2\n\
                [e]\nminimum_redundancy = 0\nencryption = gpg\nprimary_kind = tape\nbackup_method = local-to-cloud\nwals_directory = s3://b/x\n";
    let config = parse(text).unwrap();
    let disabled: Vec<_> = config
        .servers
        .iter()
        .map(|server| (server.name.as_str(), server.errors.len()))
        .collect();
    assert_eq!(disabled, [("a", 0), ("b", 1), ("c", 2), ("d", 1), ("e", 4)]);
    assert_eq!(config.misnamed.len(), 3);
    assert_snapshot!(said(&config), @r#"
    /c/b.conf:3: 'log_level' is 'loud': allowed are error, warning, info, debug, trace and off; it is ignored
    /c/b.conf:4: 'minimum_redundancy' is 'few': allowed is a number of backups, 0 or more: server b is disabled
    /c/b.conf:10: 'archiver' is 'perhaps': allowed are on, off and auto: server c is disabled
    /c/b.conf:11: 'active' is 'maybe': allowed are on and off: server c is disabled
    /c/b.conf:17: 'conninfo' is no connection string: Missing "=" after a word in the connection string. Write key=value pairs separated by blanks, and values with blanks in single quotes: server d is disabled
    /c/b.conf:20: 'encryption' is 'gpg', and barmanfs encrypts no single server: nothing of this one is stored. Encrypt the whole repository with 'barmanfs key init', and set 'encryption = none': server e is disabled
    /c/b.conf:21: 'primary_kind' is 'tape': allowed are barmanfs and barman: server e is disabled
    /c/b.conf:22: 'backup_method' is 'local-to-cloud', which is not supported: allowed are postgres, files and snapshot: server e is disabled
    /c/b.conf:23: 'wals_directory' is in cloud storage, which is not supported: remove it, and set 'repository': server e is disabled
    /c/b.conf:12: Invalid server name "all": letters, digits, '_', '-' and '.' are allowed, not a '.' in front, and not "all"
    /c/b.conf:13: Invalid server name "../x": letters, digits, '_', '-' and '.' are allowed, not a '.' in front, and not "all"
    /c/b.conf:14: Invalid server name "my server": letters, digits, '_', '-' and '.' are allowed, not a '.' in front, and not "all"
    "#);
    let refused = |name: &str| {
        config
            .server(name)
            .unwrap()
            .refuse_disabled()
            .map_err(|error| error.to_string())
    };
    assert_eq!(refused("a"), Ok(()));
    assert!(
        refused("b")
            .unwrap_err()
            .starts_with("Server 'b' is disabled: /c/b.conf:4: 'minimum_redundancy'")
    );
    // Archiving goes on, except where nothing may be stored.
    let stores: Vec<_> = config
        .servers
        .iter()
        .map(|server| server.refuse_storing().is_ok())
        .collect();
    assert_eq!(stores, [true, true, true, true, false]);
}

#[test]
fn in_a_file_of_barman_a_harmless_wrong_value_is_ignored() {
    let text = "[barman]\nrepository = /r\n[a]\narchiver = perhaps\nlast_wal_maximum_age = never\nreuse_backup = hardlink\n\
                [b]\nminimum_redundancy = x\n[c]\nslot_name = a-b\n";
    let config = parse(text).unwrap();
    let disabled: Vec<_> = config.servers.iter().map(ServerConfig::is_disabled).collect();
    assert_eq!(disabled, [false, true, true]);
    assert_snapshot!(said(&config), @r#"
    /c/b.conf:4: 'archiver' is 'perhaps': allowed are on, off and auto; it is ignored
    /c/b.conf:5: 'last_wal_maximum_age' is 'never': allowed is an age like 12 HOURS, 1 DAY, 2 WEEKS or 3 MONTHS; it is ignored
    /c/b.conf:6: 'reuse_backup' is 'hardlink': allowed are copy, link and off; it is ignored
    /c/b.conf:8: 'minimum_redundancy' is 'x': allowed is a number of backups, 0 or more: server b is disabled
    /c/b.conf:10: 'slot_name' is 'a-b': it may have up to 63 lower-case letters, digits and underscores: server c is disabled
    "#);
}

#[test]
fn the_users_file_wins_over_the_hosts_and_an_explicit_one_must_exist() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(
        home.path().join(files::USER_FILE),
        "[barmanfs]\nrepository = /r\n",
    )
    .unwrap();
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
        assert!(said(&of(wrong).unwrap()).contains("it is ignored"), "{wrong}");
    }
    let error = said(&parse("[barmanfs]\nrepository = /r\n[main]\nbackup_schedule = 0 25 * * *\n").unwrap());
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
    let config = parse(&text).unwrap();
    assert_eq!(said(&config), "");
    config.servers.into_iter().next().unwrap()
}

#[test]
fn a_site_of_barman_is_read_as_it_is() {
    let site = tempfile::tempdir().unwrap();
    let at = |name: &str| site.path().join(name);
    std::fs::create_dir(at("barman.d")).unwrap();
    let main = format!(
        "[barman]\nbarman_home = /var/lib/barman\nrepository = {r}/repository\nconfiguration_files_directory = ~/barman.d\n\
         minimum_redundancy = 2\narchiver = off\n[DEFAULT]\nh = db1\n[Main]\nconninfo = host=%(h)s user=%(u)s\nu = barman_%(name)s\n\
         streaming_conninfo = %(conninfo)s dbname=x\ndescription = 100 %% of %(backup_directory)s\n",
        r = site.path().display()
    );
    std::fs::write(at("barman.conf"), main).unwrap();
    std::fs::write(
        at("barman.d/b.conf"),
        "[two]\nconninfo = host=b\n[Main]\narchiver = on\n",
    )
    .unwrap();
    std::fs::write(
        at("barman.d/a.conf"),
        "[two]\nconninfo = host=a\ndescription = A\nminimum_redundancy = None\n",
    )
    .unwrap();
    std::fs::write(at("barman.d/ignored.txt"), "nonsense").unwrap();
    std::fs::create_dir_all(at("repository/config")).unwrap();
    std::fs::write(
        at("repository/config/auto.conf"),
        "# Written by 'barmanfs config-update', and read after all other files.\n\n[two]\ndescription = 50 % of A\n",
    )
    .unwrap();
    let config = Config::load(Some(&at("barman.conf")), Some(site.path())).unwrap();
    let server = |name| config.server(name).unwrap();
    let conninfo = |secret: Option<&Secret>| secret.unwrap().expose().to_owned();
    let main = server("Main");
    assert_eq!(conninfo(main.conninfo.as_ref()), "host=db1 user=barman_Main");
    assert_eq!(
        conninfo(main.replication_conninfo()),
        "host=db1 user=barman_Main dbname=x"
    );
    assert_eq!(main.description.as_deref(), Some("100 % of /var/lib/barman/Main"));
    assert_eq!((main.archiver, main.minimum_redundancy), (Archiver::On, 2));
    assert_eq!(main.streaming_archiver_name, "barman_receive_wal");
    let two = server("two");
    assert_eq!(conninfo(two.conninfo.as_ref()), "host=b");
    assert_eq!(two.description.as_deref(), Some("50 % of A"));
    assert_eq!((two.archiver, two.minimum_redundancy), (Archiver::Off, 0));
    // A message about an included file names that file.
    std::fs::write(at("barman.d/c.conf"), "[two]\nslot_name = a-b\n").unwrap();
    let config = Config::load(Some(&at("barman.conf")), Some(site.path())).unwrap();
    let error = config
        .server("two")
        .unwrap()
        .refuse_disabled()
        .unwrap_err()
        .to_string();
    assert!(error.contains("barman.d/c.conf:2: 'slot_name'"), "{error}");
    std::fs::write(at("barman.d/c.conf"), "\n[barman]\nlog_level = debug\n").unwrap();
    let config = Config::load(Some(&at("barman.conf")), Some(site.path())).unwrap();
    let error = config.misnamed[0].problem.to_string();
    assert!(
        error.contains("barman.d/c.conf:3: ") && error.contains("barman.conf"),
        "{error}"
    );
}

#[test]
fn in_our_own_files_a_percent_sign_is_one() {
    let text = "[barmanfs]\nrepository = /r\n[main]\nconninfo = postgresql://u:p%40ss@db1/\ndescription = %(name)s\n";
    let config = parse(text).unwrap();
    assert_eq!(said(&config), "");
    let main = config.server("main").unwrap();
    assert_eq!(main.description.as_deref(), Some("%(name)s"));
    assert_eq!(
        main.conninfo.as_ref().unwrap().expose(),
        "postgresql://u:p%40ss@db1/"
    );
    let wrong = parse(&text.replace("[barmanfs]", "[barman]")).unwrap();
    let error = wrong
        .server("main")
        .unwrap()
        .refuse_disabled()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(":4: 'conninfo' has a '%'") && !error.contains("ss@"),
        "{error}"
    );
}

#[test]
fn both_global_sections_are_one_and_ours_wins() {
    let text =
        "[barmanfs]\nrepository = /ours\n[barman]\nrepository = /theirs\nminimum_redundancy = 3\n[main]\n";
    let config = parse(text).unwrap();
    assert_eq!(config.repository, Path::new("/ours"));
    assert_eq!(config.server("main").unwrap().minimum_redundancy, 3);
    assert!(
        said(&config).contains("are one section here"),
        "{}",
        said(&config)
    );
}
