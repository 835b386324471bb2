//! A policy decides what is kept: what `retention` shows is deleted, the rest stays whole and starts.

use crate::common::clock::Clock;
use crate::common::load::{assert_sums_agree, fill, transact};
use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::site::bytes_under;
use crate::common::{Install, Mount, PgServer, Site};

topic! {
    once what_a_policy_does_not_need_goes_and_the_rest_starts,
    once a_kept_backup_outlives_every_policy,
    once without_a_policy_wal_that_no_backup_needs_goes_on_request,
    once a_wrong_clock_deletes_nothing,
}

/// A site with a policy and this many backups, between which WAL was archived.
fn site_with(install: &'static Install, policy: &str, backups: usize) -> (Site, PgServer) {
    let (site, server) = Site::with_server(install);
    site.write_config_of(&server, policy);
    fill(&server, 1);
    for _ in 0..backups {
        transact(&server, 100);
        site.backup();
        server.archive_current_segment();
    }
    (site, server)
}

/// The names of the archived files.
fn archived(site: &Site) -> Vec<String> {
    let mount = Mount::new(site);
    let names = site.list(&mount.path("main/wal"));
    mount.unmount();
    names
}

fn pack_bytes(site: &Site) -> u64 {
    bytes_under(&site.repository().join("packs"))
}

fn assert_starts(site: &Site, install: &'static Install, id: &str) {
    let mount = Mount::new(site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path(&format!("main/{id}")), "copy"));
    copy.start();
    copy.wait_until_promoted();
    assert_sums_agree(&copy);
    copy.stop("fast");
    mount.unmount();
    site.sh(&format!("rm -rf '{}'", site.path("copy").display())).ok();
}

fn what_a_policy_does_not_need_goes_and_the_rest_starts(install: &'static Install) {
    let (site, server) = site_with(install, "retention_policy = REDUNDANCY 2\n", 4);
    let ids = site.backup_ids();
    let plan = site.json(&["retention", "main"]);
    let states: Vec<&str> = plan["servers"][0]["backups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|backup| backup["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["VALID", "VALID", "OBSOLETE", "OBSOLETE"]);
    let before = archived(&site);
    assert_eq!(site.backup_ids(), ids, "Showing it deletes nothing");

    site.ok(&["retention", "main", "--enforce"]);
    assert_eq!(site.backup_ids(), ids[2..]);
    let after = archived(&site);
    assert!(
        after.len() < before.len() && before.ends_with(&after),
        "{before:?} {after:?}"
    );
    // What the forecast said, a sweep frees.
    let stored = pack_bytes(&site);
    site.ok(&["sweep"]);
    site.ok(&["sweep"]);
    let freed = stored - pack_bytes(&site);
    let forecast = plan["servers"][0]["forecast"]["freed_bytes"].as_u64().unwrap();
    let difference = freed.abs_diff(forecast);
    assert!(difference < 64 * 1024, "forecast {forecast}, freed {freed}");
    site.ok(&["verify"]);
    for id in &ids[2..] {
        assert_starts(&site, install, id);
    }
    // A second run has nothing to do, and no gap is reported.
    let again = site.json(&["retention", "main"]);
    assert!(again["servers"][0]["forecast"].is_null(), "{again}");
    assert_eq!(
        site.json(&["timeline", "main"])["gaps"].as_array().unwrap().len(),
        0
    );
    drop(server);
}

fn a_kept_backup_outlives_every_policy(install: &'static Install) {
    let (site, server) = site_with(install, "retention_policy = REDUNDANCY 1\n", 3);
    let ids = site.backup_ids();
    site.ok(&[
        "keep",
        "main",
        &ids[0],
        "--target",
        "standalone",
        "--reason",
        "end of year",
    ]);
    site.barmanfs(&["delete", "main", &ids[0], "--force"])
        .refused(1)
        .says(&["is kept", "--release"]);
    // With another one beside it, none of both is deleted, and a dry run says the same.
    for dry_run in [&["--dry-run"] as &[&str], &[]] {
        let both = ["delete", "main", &ids[1], &ids[0]];
        site.barmanfs(&[&both, dry_run].concat())
            .refused(1)
            .says(&["is kept"]);
        assert_eq!(site.backup_ids(), ids);
    }
    let between = site.json(&["show-backup", "main", &ids[1]]);
    let between = format!("lsn:{}", between["stop_lsn"].as_str().unwrap());
    site.ok(&["explain", "main", &between]);
    site.ok(&["retention", "main", "--enforce"]);
    assert_eq!(site.backup_ids(), [ids[0].clone(), ids[2].clone()]);
    // The WAL behind it is gone, and that is no gap.
    site.barmanfs(&["explain", "main", &between])
        .refused(1)
        .says(&["the retention policy", "kept for its own end"]);
    let timeline = site.ok(&["timeline", "main"]);
    assert!(timeline.contains("the retention policy removed it"), "{timeline}");
    let shown = site.ok(&["list-backups", "main"]);
    assert!(shown.contains("KEEP:STANDALONE"), "{shown}");
    assert_starts(&site, install, &ids[0]);
    site.ok(&["keep", "main", &ids[0], "--release"]);
    site.ok(&["retention", "main", "--enforce"]);
    assert_eq!(site.backup_ids(), ids[2..]);
    drop(server);
}

fn without_a_policy_wal_that_no_backup_needs_goes_on_request(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    for _ in 0..3 {
        server.archive_current_segment();
    }
    let id = site.backup();
    server.archive_current_segment();
    let before = archived(&site);
    // Neither shown nor done by itself.
    let shown = site.ok(&["retention", "main"]);
    assert!(shown.contains("There is no policy"), "{shown}");
    site.ok(&["retention", "main", "--enforce"]);
    assert_eq!(archived(&site), before);
    let shown = site.ok(&["retention", "main", "--wal"]);
    let needless = shown.split("deletes: no backup; ").nth(1).unwrap_or_default();
    let needless: usize = needless.split(' ').next().unwrap().parse().expect(&shown);
    assert!(needless >= 3, "{shown}");
    assert_eq!(archived(&site), before, "Showing it removes nothing");
    // A section with an error says nothing about what it wants to keep.
    let config = std::fs::read_to_string(site.config()).unwrap();
    site.write_file(
        "barmanfs.conf",
        (config.clone() + "retention_policy = nonsense\n").as_bytes(),
    );
    site.barmanfs(&["retention", "main", "--wal", "--enforce"])
        .refused(3)
        .says(&["Nothing is deleted", "retention_policy"]);
    assert_eq!(archived(&site), before);
    site.write_file("barmanfs.conf", config.as_bytes());
    site.ok(&["retention", "main", "--wal", "--enforce"]);
    let after = archived(&site);
    assert!(
        before.len() - after.len() == needless && before.ends_with(&after),
        "{before:?} {after:?}"
    );
    assert_starts(&site, install, &id);
    drop(server);
}

/// The clock is days behind the backups, and then it leaps years ahead.
fn a_wrong_clock_deletes_nothing(install: &'static Install) {
    const DAY: u64 = 24 * 3600;
    let (site, server) = Site::with_server(install);
    site.write_config_of(
        &server,
        "immediate_checkpoint = on\nretention_policy = KEEP 3 DAILY\n",
    );
    let mut clock = Clock::new(&site);
    let first = clock.now();
    for day in 1..=4 {
        clock.move_to(first + day * DAY);
        clock.run(&site, &["backup", "main"]).ok();
    }
    let ids = site.backup_ids();
    // By this host's clock none of them has begun yet.
    let run = site.barmanfs(&["retention", "main"]);
    run.refused(3)
        .says(&["the newest backup", "the clock of this host"]);
    site.barmanfs(&["retention", "main", "--enforce"]).refused(3);
    assert_eq!(site.backup_ids(), ids);
    clock.run(&site, &["retention", "main"]).ok();
    let task = || {
        let json = std::fs::read(site.repository().join("cron/main.json")).unwrap_or_default();
        let memory: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
        memory["tasks"]["retention"].clone()
    };
    // cron has run before, and deletes what the policy does not keep.
    clock.run(&site, &["cron"]).ok();
    until("the policy is applied", || !task()["result"].is_null());
    assert_eq!(site.backup_ids(), ids[1..]);
    clock.move_to(first + 3650 * DAY);
    clock.run(&site, &["cron"]).ok();
    until("the policy waits", || !task()["error"].is_null());
    assert!(
        task()["error"].as_str().unwrap().contains("went from"),
        "{}",
        task()
    );
    assert_eq!(site.backup_ids(), ids[1..]);
    clock
        .run(&site, &["check", "main"])
        .says(&["The clock of this host went"]);
    // Nobody has set it back for a day.
    clock.move_to(first + 3652 * DAY);
    clock.run(&site, &["retention", "main"]).ok();
}
