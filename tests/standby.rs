//! The kind: a backup waits for something that only another server can do. A standby cannot end the segment in which
//! its backup stops, and an idle primary does not end it either. Such a backup is complete all the same, and at once.

use crate::common::load::{assert_sums_agree, fill, transactions};
use crate::common::registry::topic;
use crate::common::standby::{catch_up, standby_of};
use crate::common::{Install, Mount, PgServer, Site};
use std::time::{Duration, Instant};

topic! {
    edges a_backup_of_an_idle_standby_is_complete_at_once,
    once an_idle_primary_is_asked_to_end_its_segment,
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
