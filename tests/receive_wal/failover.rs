//! Failovers: the server changes to a new timeline, or another server takes over.

use super::{
    Receiver, STREAMING, assert_same_as_on, fill_segments, spooled, streaming_site, streams, wait_for,
};
use crate::common::load::{assert_sums_agree, fill, transact};
use crate::common::process::until;
use crate::common::standby::{catch_up, standby_of};
use crate::common::{Install, Mount};
use std::fs;

pub(super) fn a_promoted_standby_is_followed(install: &'static Install) {
    let (site, mut primary) = streaming_site(install, STREAMING, "");
    fill(&primary, 1);
    let mut standby = standby_of(&site, &primary, install, "standby");
    site.write_config_of(&standby, STREAMING);
    let receiver = Receiver::start(&site);
    let old = fill_segments(&primary, 2);
    wait_for(&site, &old);
    transact(&primary, 50);
    catch_up(&primary, &standby);
    primary.stop("fast");
    standby.query("SELECT pg_promote()");
    standby.wait_until_promoted();
    transact(&standby, 50);
    let last = fill_segments(&standby, 3);
    assert!(last.starts_with("00000002"), "{last}");
    wait_for(&site, &last);
    assert!(assert_same_as_on(&site, &standby, "00000002") >= 3);
    receiver.stop();

    let mount = Mount::new(&site);
    let names = site.list(&mount.path("main/wal"));
    assert!(names.contains(&"00000002.history".to_owned()), "{names:?}");
    assert!(
        !names
            .iter()
            .any(|name| name.starts_with("00000001") && name.ends_with(".partial")),
        "What the new timeline took over is not kept twice: {names:?}"
    );
    assert_eq!(
        spooled(&site)
            .iter()
            .filter(|name| name.starts_with("00000001"))
            .count(),
        0
    );
    standby.stop("fast");
}

pub(super) fn wal_of_a_lost_primary_is_kept(install: &'static Install) {
    let (site, mut primary) = streaming_site(install, STREAMING, "");
    fill(&primary, 1);
    let mut standby = standby_of(&site, &primary, install, "standby");
    let receiver = Receiver::start(&site);
    until("it streams", || {
        streams(&primary).contains("barmanfs_receive_wal streaming")
    });
    catch_up(&primary, &standby);
    standby.stop("fast");
    // Only the primary and its receiver have these commits.
    primary.query("CREATE TABLE only_there (n int); INSERT INTO only_there VALUES (42)");
    let lsn = primary.query("SELECT pg_current_wal_flush_lsn()");
    until("they are received", || {
        primary.query(&format!(
            "SELECT flush_lsn >= '{lsn}' FROM pg_stat_replication WHERE application_name = 'barmanfs_receive_wal'"
        )) == "t"
    });
    let partial = format!(
        "{}.partial",
        primary.query("SELECT pg_walfile_name(pg_current_wal_lsn())")
    );
    let before = fs::read(site.path(&format!("repository/spool/main/{partial}"))).unwrap();
    primary.kill();
    receiver.stop();

    site.write_config_of(&standby, STREAMING);
    standby.configure_auto("primary_conninfo = ''");
    standby.start();
    standby.query("SELECT pg_promote()");
    standby.wait_until_promoted();
    transact(&standby, 20);
    let receiver = Receiver::start(&site);
    let last = fill_segments(&standby, 2);
    wait_for(&site, &last);
    receiver.says("Commits in it are not on the server");
    let kept = site.barmanfs(&["get-wal", "main", &partial]).ok();
    assert!(kept.stdout == before, "{partial} is kept as it was");
    assert_same_as_on(&site, &standby, "00000002");
    assert_sums_agree(&standby);
}
