//! Missing WAL: it is reported before anybody relies on it, and everything that can still be recovered is.

use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};
use std::fs;

topic! {
    edges a_missing_segment_is_reported_and_stops_only_later_targets,
    edges targets_on_an_abandoned_timeline_are_reached,
}

/// Adds a row. Returns a time after that.
fn mark(server: &PgServer, number: u32) -> String {
    server.query(&format!("INSERT INTO marks VALUES ({number})"));
    let moment = server.query("SELECT clock_timestamp() AT TIME ZONE 'UTC' || '+00'");
    // Everything that follows certainly has a later time.
    server.query("SELECT pg_sleep(0.01)");
    moment
}

fn marks(server: &PgServer) -> String {
    server.query("SELECT string_agg(n::text, ' ' ORDER BY n) FROM marks")
}

/// A copy of this path of the mount, recovered.
fn recovered(site: &Site, mount: &Mount, install: &'static Install, path: &str, name: &str) -> PgServer {
    let mut copy = PgServer::on(install, &site.copy(&mount.path(path), name));
    copy.start();
    copy.wait_until_promoted();
    copy
}

/// Archives the current segment, and removes it from the archive by hand. Returns its name.
fn archive_and_lose(site: &Site, server: &PgServer) -> String {
    let before = site.packs();
    let segment = server.archive_current_segment();
    let new: Vec<_> = site
        .packs()
        .into_iter()
        .filter(|pack| !before.contains(pack))
        .collect();
    assert_eq!(new.len(), 1, "A segment is in a pack of its own");
    fs::remove_file(&new[0]).unwrap();
    segment
}

fn a_missing_segment_is_reported_and_stops_only_later_targets(install: &'static Install) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    server.query("CREATE TABLE marks (n int)");
    server.archive_current_segment();
    let backup = site.backup();
    let first = mark(&server, 1);
    server.query("SELECT pg_create_restore_point('before_the_gap')");
    mark(&server, 2);
    server.archive_current_segment();
    mark(&server, 3);
    let lost = archive_and_lose(&site, &server);
    let behind = mark(&server, 4);
    mark(&server, 5);
    server.archive_current_segment();
    // The content of the pack is gone, and the old catalog still lists it.
    site.barmanfs(&["rebuild-catalog"])
        .refused(3)
        .says(&["1 pack", "is not there"]);

    assert!(
        site.ok(&["timeline", "main"])
            .contains(&format!("missing: segment {lost}"))
    );
    let report = site.json(&["timeline", "main"]);
    let gap = &report["gaps"][0];
    assert_eq!(
        (&gap["first"], &gap["last"]),
        (&lost.as_str().into(), &lost.as_str().into())
    );
    assert_eq!(gap["backup_before"], backup.as_str());
    assert!(
        gap["backup_after"].is_null() && report["gaps"].get(1).is_none(),
        "{report}"
    );
    assert_eq!(
        report["timelines"][0]["restore_points"][0]["name"],
        "before_the_gap"
    );
    site.barmanfs(&["check", "main"])
        .refused(3)
        .says(&["WAL without gaps", &lost, "take a backup now"]);
    site.barmanfs(&["list-backups", "main"])
        .ok()
        .says(&["nothing can be recovered", &lost]);
    assert_eq!(site.backups()[0]["gaps"][0]["first"], lost.as_str());

    site.barmanfs(&["explain", "main", &first])
        .ok()
        .says(&["can be recovered", &backup, "main/pitr/"]);
    let explained = site.json(&["explain", "main", "name:before_the_gap"]);
    assert_eq!(
        (&explained["reachable"], &explained["backup"]),
        (&true.into(), &backup.as_str().into())
    );
    site.barmanfs(&["explain", "main", &behind]).refused(1).says(&[
        "cannot be recovered",
        &lost,
        "not archived",
        "newest commit",
    ]);
    site.barmanfs(&["explain", "main", "yesterday"])
        .refused(2)
        .says(&["each time it is read"]);

    let mount = Mount::new(&site);
    let path = |target: &str| format!("main/pitr/{target}");
    site.sh(&format!("ls -d '{}'", mount.path(&path(&behind)).display()))
        .refused(2)
        .says(&["No such file"]);
    assert_eq!(
        marks(&recovered(&site, &mount, install, &path(&first), "first")),
        "1"
    );
    assert_eq!(
        marks(&recovered(&site, &mount, install, &path("now"), "now")),
        "1 2"
    );

    let next = site.backup();
    let after = mark(&server, 6);
    mark(&server, 7);
    server.archive_current_segment();
    site.barmanfs(&["explain", "main", &behind])
        .refused(1)
        .says(&[&lost]);
    assert_eq!(
        site.json(&["timeline", "main"])["gaps"][0]["backup_after"],
        next.as_str()
    );
    assert_eq!(
        marks(&recovered(&site, &mount, install, &path(&after), "after")),
        "1 2 3 4 5 6"
    );
}

fn targets_on_an_abandoned_timeline_are_reached(install: &'static Install) {
    let (site, mut server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    server.query("CREATE TABLE marks (n int)");
    site.backup();
    let left = mark(&server, 1);
    let abandoned = mark(&server, 2);
    mark(&server, 3);
    server.archive_current_segment();
    let mount = Mount::new(&site);

    // Back to the first mark; production continues from there.
    server.stop("fast");
    let copy = site.copy(&mount.path(&format!("main/pitr/{left}")), "second");
    let mut second = PgServer::on(install, &copy);
    second.configure_auto(&format!(
        "archive_mode = on\narchive_command = '{}'",
        site.archive_command()
    ));
    second.start();
    second.wait_until_promoted();
    let gone_on = mark(&second, 20);
    mark(&second, 30);
    second.archive_current_segment();
    assert_eq!(second.timeline(), 2);

    let picture = site.ok(&["timeline", "main"]);
    assert!(
        picture.contains("├─╮") && picture.contains("timeline 2 leaves timeline 1"),
        "{picture}"
    );
    let explained = site.json(&["explain", "main", &gone_on]);
    assert_eq!(
        (&explained["timeline"], &explained["timelines"][0]["timeline"]),
        (&2.into(), &1.into())
    );
    let path = |target: &str| format!("main/pitr/{target}");
    assert_eq!(
        marks(&recovered(&site, &mount, install, &path(&gone_on), "third")),
        "1 20"
    );
    let first_line = path(&format!("{abandoned},timeline=1"));
    assert_eq!(
        marks(&recovered(&site, &mount, install, &first_line, "fourth")),
        "1 2"
    );
    // On the newest timeline the same time means the point where it left the first timeline.
    assert_eq!(
        marks(&recovered(&site, &mount, install, &path(&abandoned), "fifth")),
        "1"
    );
}
