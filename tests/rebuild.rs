//! The index can be deleted: packs alone give back the same backups, WAL and deletions.

use crate::common::load::{fill, transact};
use crate::common::registry::topic;
use crate::common::{Install, Mount, Site};
use serde_json::Value;

topic! {
    once the_catalog_comes_back_from_the_packs,
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
