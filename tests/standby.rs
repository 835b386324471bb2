//! The kind: a backup waits for something that only another server can do. A standby cannot end the segment in which
//! its backup stops, and an idle primary does not end it either. Such a backup is complete all the same, and at once.

use crate::common::load::{assert_sums_agree, fill, transactions};
use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::site::check_line;
use crate::common::standby::{catch_up, standby_of};
use crate::common::{Install, Mount, PgServer, Site};
use crate::receive_wal::Receiver;
use serde_json::Value;
use std::time::{Duration, Instant};

topic! {
    edges a_backup_of_an_idle_standby_is_complete_at_once,
    once an_idle_primary_is_asked_to_end_its_segment,
    once wal_comes_from_the_primary_of_a_standby,
    once what_a_primary_has_not_sent_is_not_called_safe,
}

/// An idle primary that archives, and its standby, which is the server to back up. The lines are added to the
/// configuration.
fn idle_pair(install: &'static Install) -> (Site, PgServer, PgServer) {
    let (site, primary) = Site::with_server(install);
    fill(&primary, 1);
    let standby = standby_of(&site, &primary, install, "standby");
    // The archive works, so backups rely on it.
    primary.archive_current_segment();
    primary.query("CHECKPOINT");
    catch_up(&primary, &standby);
    site.write_config(&[("main", &standby)]);
    (site, primary, standby)
}

const BACKUP: &[&str] = &["backup", "main", "--fast-checkpoint", "--wait-timeout", "20"];

/// Whether the newest backup has its own WAL; checks that the backup is complete.
#[track_caller]
fn has_own_wal(site: &Site) -> bool {
    let newest = site.backups().pop().expect("a backup");
    assert_eq!(
        (&newest["status"], &newest["from_standby"]),
        (&"DONE".into(), &true.into()),
        "{newest}"
    );
    newest["wal_included"].as_bool().expect("it says")
}

fn a_backup_of_an_idle_standby_is_complete_at_once(install: &'static Install) {
    let (site, primary, standby) = idle_pair(install);
    let began = Instant::now();
    site.barmanfs(BACKUP).ok();
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "It took {:?}",
        began.elapsed()
    );
    assert!(has_own_wal(&site));
    let before = transactions(&standby);
    let mount = Mount::new(&site);
    let started = |path: &str, name: &str| {
        let mut copy = PgServer::on(install, &site.copy(&mount.path(path), name));
        copy.start();
        copy.wait_until_promoted();
        assert_sums_agree(&copy);
        copy
    };
    assert_eq!(transactions(&started("main/latest", "copy")), before);
    // Later WAL is read from the archive: the backup has only the beginning of the segment in which it stops.
    primary.query("CREATE TABLE later AS SELECT 1");
    primary.query("SELECT pg_create_restore_point('later')");
    primary.archive_current_segment();
    let copy = started("main/pitr/name:later", "later");
    assert_eq!(copy.query("SELECT count(*) FROM later"), "1");
    site.ok(&["verify"]);
}

fn an_idle_primary_is_asked_to_end_its_segment(install: &'static Install) {
    let (site, primary, standby) = idle_pair(install);
    let through =
        |conninfo: &str| site.write_config_of(&standby, &format!("primary_conninfo = {conninfo}\n"));
    through(&primary.conninfo());
    site.barmanfs(BACKUP).ok();
    assert!(!has_own_wal(&site));
    site.barmanfs(&["check", "main"])
        .says(&["primary: OK", "PostgreSQL server is standby: OK"]);
    site.barmanfs(&["switch-wal", "main", "--force"])
        .ok()
        .says(&["has been closed on server 'main'"]);
    // WAL that does not come all the same: the primary makes a checkpoint.
    let line = format!(
        "primary_conninfo = {}\nprimary_checkpoint_timeout = 1\n",
        primary.conninfo()
    );
    site.write_config_of(&standby, &line);
    let working = primary.query("SHOW archive_command");
    let archive_by = |command: &str| {
        primary.query(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
        primary.query("SELECT pg_reload_conf()");
    };
    archive_by("false");
    // The segment in which the backup stops is not archived.
    primary.query("CREATE TABLE more AS SELECT 1");
    primary.query("CHECKPOINT");
    catch_up(&primary, &standby);
    let words = ["backup", "main", "--fast-checkpoint", "--wait-timeout", "5"];
    site.barmanfs(&words)
        .ok()
        .says(&["was asked for a checkpoint and for the end of its WAL segment"]);
    archive_by(&working);
    catch_up(&primary, &standby);
    // A primary that cannot help is reported, and the backup is complete without it.
    primary.query("CREATE ROLE weak LOGIN");
    catch_up(&primary, &standby);
    for (conninfo, words) in [
        (
            primary.conninfo().replace("user=postgres", "user=weak"),
            "GRANT EXECUTE ON FUNCTION pg_switch_wal TO \"weak\"",
        ),
        (standby.conninfo(), "which is a standby itself"),
        ("host=/nowhere user=postgres".to_owned(), "/nowhere"),
    ] {
        through(&conninfo);
        site.barmanfs(BACKUP).ok().says(&[words]);
        assert!(has_own_wal(&site));
        site.barmanfs(&["check", "main"]).refused(3).says(&[words]);
    }
}

/// A primary that archives nothing, and its standby.
fn silent_pair(install: &'static Install) -> (Site, PgServer, PgServer) {
    let site = Site::with_repository();
    let mut primary = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    primary.configure("archive_mode = off");
    primary.start();
    fill(&primary, 1);
    let standby = standby_of(&site, &primary, install, "standby");
    catch_up(&primary, &standby);
    (site, primary, standby)
}

/// Backups from a standby, WAL from its primary: each host is asked for what comes from it.
fn wal_comes_from_the_primary_of_a_standby(install: &'static Install) {
    const STREAMING: &str =
        "archiver = off\nstreaming_archiver = on\nslot_name = barmanfs\ncreate_slot = auto\n";
    let (site, primary, mut standby) = silent_pair(install);
    let conninfo_of_standby = standby.conninfo();
    let from = |wal: &str| {
        let text = format!(
            "[barmanfs]\nrepository = {}\n[main]\nconninfo = {conninfo_of_standby}\n{STREAMING}\
             wal_streaming_conninfo = {wal}\n[back]\nmodel = on\ncluster = main\n\
             wal_streaming_conninfo = {conninfo_of_standby}\n",
            site.repository().display()
        );
        site.write_file("barmanfs.conf", text.as_bytes());
    };
    // Another cluster is refused as long as nothing is stored, and later.
    let mut stranger = PgServer::init(install, &site.path("other"), &[]);
    stranger.start();
    let other_is_refused = |known: &str| {
        from(&stranger.conninfo());
        let words = [
            "The host that WAL is received from",
            known,
            "wal_streaming_conninfo",
        ];
        site.barmanfs(&["receive-wal", "main", "--reset"])
            .refused(1)
            .says(&words);
        let receiver = Receiver::start(&site);
        receiver.says("The host that WAL is received from");
        assert!(!receiver.log().contains("Receiving WAL of server"));
        receiver.stop();
        let checked = site.barmanfs(&["check", "main", "--json"]).refused(3);
        assert_eq!(
            check_line(&checked, "systemid coherence (WAL streaming)")["status"],
            "FAILED"
        );
    };
    other_is_refused("the host of backups is of");
    from(&primary.conninfo());
    let receiver = Receiver::start(&site);
    let slots = "SELECT coalesce(string_agg(slot_name || active::text, ','), '') FROM pg_replication_slots";
    until("it streams", || primary.query(slots) == "barmanfstrue");
    assert_eq!(standby.query(slots), "");
    site.barmanfs(BACKUP).ok();
    assert!(has_own_wal(&site));
    // What is not on the standby yet is safe, or counted.
    standby.query("SELECT pg_wal_replay_pause()");
    primary.query("CREATE TABLE later AS SELECT 1");
    primary.query("SELECT pg_create_restore_point('later')");
    until("the commit is safe", || {
        let rpo = site.json(&["status", "main"])["servers"][0]["rpo"].clone();
        let safe = rpo["safe_lsn"].as_str().unwrap_or("0/0");
        rpo["seconds"] == 0.0
            && primary.query(&format!("SELECT pg_current_wal_flush_lsn() <= '{safe}'")) == "t"
    });
    let closed = primary.query("SELECT pg_walfile_name(pg_switch_wal())");
    until("it is archived", || {
        site.barmanfs(&["get-wal", "main", &closed, "/dev/null"]).code() == Some(0)
    });
    let clients = |source: &str| {
        let shown = site.json(&["replication-status", "main", "--source", source]);
        let clients = shown["servers"][0]["streaming_clients"].as_array().cloned();
        let own = clients
            .unwrap()
            .into_iter()
            .filter(|client| client["own"] == true);
        own.count()
    };
    assert_eq!((clients("backup-host"), clients("wal-host")), (0, 1));
    let names = [
        "has monitoring privileges",
        "PostgreSQL streaming",
        "wal_level",
        "systemid coherence",
        "replication slot",
    ];
    let all_hold = |checked: &crate::common::process::Run| {
        for name in names {
            let line = check_line(checked, &format!("{name} (WAL streaming)"));
            assert_eq!(line["status"], "OK", "{checked}");
        }
        assert_eq!(
            check_line(checked, "continuous archiving")["status"],
            "OK",
            "{checked}"
        );
    };
    all_hold(&site.barmanfs(&["check", "main", "--json"]).ok());
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/pitr/name:later"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SELECT count(*) FROM later"), "1");
    mount.unmount();
    // A model that names another host ends the process with the old one.
    let text = site.ok(&["config-switch", "main", "back"]);
    assert!(text.contains("wal_streaming_conninfo: "), "{text}");
    assert!(text.contains("Receiving WAL of server main is stopped"), "{text}");
    site.ok(&["config-switch", "main", "--reset"]);
    drop(receiver);
    let receiver = Receiver::start(&site);
    until("it streams again", || primary.query(slots) == "barmanfstrue");
    // A role that sees nothing, and a standby that is down.
    primary.query("CREATE ROLE weak LOGIN REPLICATION");
    from(&primary.conninfo().replace("user=postgres", "user=weak"));
    let checked = site.barmanfs(&["check", "main", "--json"]).refused(3);
    let weak = check_line(&checked, "has monitoring privileges (WAL streaming)");
    assert!(
        weak["hint"]
            .as_str()
            .unwrap()
            .contains("GRANT pg_monitor TO \"weak\""),
        "{weak}"
    );
    from(&primary.conninfo());
    standby.stop("fast");
    all_hold(&site.barmanfs(&["check", "main", "--json"]).refused(3));
    receiver.stop();
    standby.start();
    other_is_refused("what is stored of 'main' is of");
}

/// A standby that receives nothing any more has nothing that is not safe, and its primary has.
fn what_a_primary_has_not_sent_is_not_called_safe(install: &'static Install) {
    let (site, primary, standby) = idle_pair(install);
    let rpo = || site.json(&["status", "main"])["servers"][0]["rpo"].clone();
    let with_primary = || {
        let line = format!("primary_conninfo = {}\n", primary.conninfo());
        site.write_config_of(&standby, &line);
    };
    site.barmanfs(BACKUP).ok();
    // Something commits now and then.
    let archive_all = || primary.query("SELECT pg_switch_wal()");
    until("the standby has no commit that is not safe", || {
        archive_all();
        rpo()["state"] != "commits"
    });
    let alone = rpo();
    assert_eq!(
        (&alone["state"], &alone["bytes"], &alone["server_lsn"]),
        (&"at_most".into(), &Value::Null, &Value::Null),
        "{alone}"
    );
    assert!(
        alone["why"].as_str().unwrap().contains("set primary_conninfo"),
        "{alone}"
    );
    with_primary();
    until("all is safe", || {
        archive_all();
        rpo()["state"] == "safe"
    });
    assert_eq!(rpo()["seconds"], 0.0);
    standby.configure_auto("primary_conninfo = ''");
    standby.query("SELECT pg_reload_conf()");
    until("the standby receives nothing", || {
        primary.query("SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walreceiver'")
            == "0"
    });
    let received = standby.query("SELECT pg_last_wal_receive_lsn()");
    primary.query("CREATE TABLE unsent AS SELECT 1");
    let lost = rpo();
    assert_eq!(lost["state"], "commits", "{lost}");
    assert!(
        lost["seconds"].as_f64() > Some(0.0) && lost["bytes"].as_u64() > Some(0),
        "{lost}"
    );
    let end = lost["server_lsn"].as_str().expect("it is known");
    let is_end =
        format!("SELECT pg_current_wal_flush_lsn() >= '{end}'::pg_lsn AND '{end}'::pg_lsn > '{received}'");
    assert_eq!(primary.query(&is_end), "t", "{lost}");
    // Without a connection for replication it is not known whether there are commits, but how much is missing is.
    primary.query("CREATE ROLE reader LOGIN");
    let reader = primary.conninfo().replace("user=postgres", "user=reader");
    site.write_config_of(&standby, &format!("primary_conninfo = {reader}\n"));
    let limit = rpo();
    assert_eq!(limit["state"], "at_most", "{limit}");
    assert!(
        limit["why"].as_str().unwrap().contains("less than its primary"),
        "{limit}"
    );
    assert!(limit["bytes"].as_u64() > Some(0), "{limit}");
}
