//! The index can be deleted: packs alone give back the same backups, WAL and deletions.

use crate::common::load::{fill, transact};
use crate::common::registry::topic;
use crate::common::{Install, Mount, Site};
use serde_json::Value;

topic! {
    once the_catalog_comes_back_from_the_packs,
    once what_a_rebuild_gives_up_counts_no_more_and_is_stored_again,
}

/// The state that must be the same afterwards.
#[derive(PartialEq)]
struct Seen {
    backups: Value,
    wal: Vec<String>,
    checksums: String,
}

fn look(site: &Site) -> Seen {
    let mount = Mount::new(site);
    let seen = Seen {
        backups: site.json(&["list-backups", "main"]),
        wal: site.list(&mount.path("main/wal")),
        checksums: site.checksums(&mount.path("main/raw")) + &site.checksums(&mount.path("main/wal")),
    };
    mount.unmount();
    seen
}

fn remove_catalog(site: &Site) {
    site.sh(&format!(
        "rm '{0}/catalog.sqlite' && rm -f '{0}'/catalog.sqlite-*",
        site.repository().display()
    ))
    .ok();
}

fn the_catalog_comes_back_from_the_packs(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    let mut ids = Vec::new();
    for _ in 0..3 {
        transact(&server, 100);
        ids.push(site.backup());
    }
    site.ok(&["delete", "main", &ids[1]]);
    server.archive_current_segment();
    let before = look(&site);

    remove_catalog(&site);
    site.ok(&["rebuild-catalog"]);
    assert_same(&look(&site), &before);
    site.ok(&["verify"]);

    // Once more after a sweep has moved the remaining data, and after more changes.
    site.ok(&["sweep"]);
    site.ok(&["sweep"]);
    transact(&server, 100);
    site.backup();
    server.archive_current_segment();
    let before = look(&site);
    remove_catalog(&site);
    site.ok(&["rebuild-catalog"]);
    assert_same(&look(&site), &before);
    assert!(!site.backup_ids().contains(&ids[1]), "A deleted backup came back");
}

#[track_caller]
fn assert_same(after: &Seen, before: &Seen) {
    assert_eq!(after.backups, before.backups, "list-backups");
    assert_eq!(after.wal, before.wal, "wal/");
    assert!(
        after.checksums == before.checksums,
        "The checksums of the files differ"
    );
}

/// The ids of the backups that are shown as damaged.
fn damaged(site: &Site) -> Vec<String> {
    let mut backups = site.backups();
    backups.retain(|backup| backup["damaged"] == true);
    let ids = backups
        .iter()
        .map(|backup| backup["id"].as_str().unwrap().to_owned());
    ids.collect()
}

fn what_a_rebuild_gives_up_counts_no_more_and_is_stored_again(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    // Backups bring their own WAL, so that all that one adds is in its packs.
    site.write_config_of(&server, "archiver = off\nretention_policy = REDUNDANCY 2\n");
    server.query("ALTER SYSTEM SET archive_command = '/bin/true'");
    server.query("SELECT pg_reload_conf()");
    fill(&server, 1);
    let mut ids = vec![site.backup()];
    let before = site.packs();
    server.query("CREATE TABLE added AS SELECT n, sha512(n::text::bytea) FROM generate_series(1, 60000) n");
    ids.push(site.backup());
    ids.push(site.backup());
    let pack = site.largest_pack(&before);
    assert!(pack.metadata().unwrap().len() > 1 << 20, "{}", pack.display());
    site.sh(&format!("rm '{}'", pack.display())).ok();

    // Nothing is promised of a pack that may come back, and every message says what helps.
    let verified = site.barmanfs(&["verify"]).refused(3);
    let verified = verified.says(&["is their file system mounted", "rebuild-catalog"]);
    assert!(!verified.text().contains("by the next full backup"), "{verified}");
    site.barmanfs(&["backup", "main", "--fast-checkpoint", "--incremental", "never"])
        .refused(1)
        .says(&["Is its file system mounted?", "rebuild-catalog"]);
    site.barmanfs(&["rebuild-catalog"]).refused(3).says(&[
        "Damaged now",
        &ids[1],
        &ids[2],
        "Needed, and in no pack",
    ]);
    assert_eq!(damaged(&site), ids[1..]);
    // The first one is the only one that can be restored.
    site.ok(&["retention", "main"]);
    site.ok(&["retention", "main", "--enforce"]);
    assert!(
        site.backup_ids().contains(&ids[0]),
        "The only good backup was deleted"
    );

    for _ in 0..2 {
        let id = site.backup();
        site.ok(&["verify", "main", &id]);
        assert!(!damaged(&site).contains(&id));
    }
    let copy = site.path("copy");
    site.ok(&["restore", "main", "latest", copy.to_str().unwrap()]);
    // The plan is shown although it is not known what a damaged one uses; when that is gone, a sweep goes on.
    site.ok(&["keep", "main", &ids[1], "--target", "full"]);
    let plan = site.json(&["retention", "main"]);
    let plan = &plan["servers"][0];
    assert!(
        plan["forecast"].is_null() && plan["forecast_error"].is_string(),
        "{plan}"
    );
    let shown = site.barmanfs(&["retention", "main"]);
    shown
        .refused(0)
        .says(&["The next run deletes", &ids[0], "is not known", &ids[1]]);
    // It names the first one that it meets.
    let swept = site.barmanfs(&["sweep"]).refused(1).says(&["delete"]).all();
    assert!(ids[1..].iter().any(|id| swept.contains(id)), "{swept}");
    site.ok(&["keep", "main", &ids[1], "--release"]);
    site.ok(&["retention", "main", "--enforce"]);
    assert_eq!(damaged(&site), [""; 0]);
    site.ok(&["sweep"]);
    site.ok(&["verify"]);
}
