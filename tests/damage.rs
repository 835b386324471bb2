//! A flipped byte in a pack is found and named, damages only the data it belongs to, and the next full backup repairs
//! it.

use crate::common::load::fill;
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::site::check_line;
use crate::common::{Install, Mount, PgServer, Site};
use serde_json::Value;
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

topic! {
    once a_flipped_byte_is_reported_and_reads_as_eio,
    once damage_in_merged_wal_costs_what_is_named_and_is_healed,
}

/// Damages one byte of a file, and repairs it when called again.
pub(crate) fn flip_byte(pack: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(pack).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

fn a_flipped_byte_is_reported_and_reads_as_eio(install: &'static Install) {
    let mut random = Random::new("a_flipped_byte_is_reported_and_reads_as_eio");
    let (site, server) = Site::with_server(install);
    fill(&server, 2);
    server.query(
        "CREATE TABLE noise AS SELECT n, sha512(random()::text::bytea) FROM generate_series(1, 100000) n",
    );
    // So that no page changes by itself later.
    server.query("VACUUM (FREEZE)");
    let id = site.backup();
    site.ok(&["verify"]);
    let healthy = {
        let mount = Mount::new(&site);
        let checksums = site.checksums(&mount.path(&format!("main/raw/{id}")));
        mount.unmount();
        checksums
    };

    // In the middle of the largest pack, which has incompressible rows.
    let pack = site.largest_pack(&[]);
    let bytes = pack.metadata().unwrap().len();
    flip_byte(&pack, bytes / 4 + random.below(bytes / 4));

    let verified = site.barmanfs(&["verify", "--json"]).refused(3);
    let report: Value =
        serde_json::from_slice(&verified.stdout).unwrap_or_else(|error| panic!("{error}: {verified}"));
    let damages = report["damages"].as_array().expect("damages").clone();
    let damage = damages
        .iter()
        .find(|damage| damage["backup"] == id.as_str())
        .expect("damage of the backup");
    let file = damage["file"].as_str().expect("a file").to_owned();
    let page = damage["first_page"].as_u64().expect("a page");
    site.barmanfs(&["verify"])
        .refused(3)
        .says(&[&id, &file, &format!("page {page}")]);

    let mount = Mount::new(&site);
    let raw = mount.path(&format!("main/raw/{id}"));
    let raw = raw.display();
    let damaged = site.sh(&format!(
        "dd if='{raw}/{file}' of=/dev/null bs=8192 skip={page} count=1"
    ));
    damaged.refused(1).says(&["Input/output error"]);
    // The files that are not named can be read, byte for byte.
    let named: Vec<&str> = damages
        .iter()
        .filter_map(|damage| damage["file"].as_str())
        .collect();
    let now = site.sh(&format!(
        "cd '{raw}' && find . -type f -print0 | xargs -0 b2sum; true"
    ));
    let now = now.text();
    let readable: HashSet<&str> = now.lines().collect();
    for line in healthy.lines() {
        let (_, path) = line.split_once("  ./").expect("b2sum's lines");
        assert!(
            named.contains(&path) || readable.contains(line),
            "{path} is not named as damaged, and reads otherwise"
        );
    }
    // In the damaged file, too, the pages before the damage can be read.
    if page > 0 {
        site.sh(&format!("dd if='{raw}/{file}' of=/dev/null bs=8192 count={page}"))
            .ok();
    }
    assert!(mount.is_alive());
    mount.unmount();

    // The server still has the damaged data.
    site.ok(&["backup", "main", "--fast-checkpoint", "--incremental", "never"]);
    site.ok(&["verify"]);
    let mount = Mount::new(&site);
    assert_eq!(site.checksums(&mount.path(&format!("main/raw/{id}"))), healthy);
    mount.unmount();
}

/// A restore point at the end of each segment, `p0` to `p9`, and copies of the segments; then a sweep of later days merges them.
fn merged_wal(site: &Site, server: &PgServer) -> (Vec<String>, PathBuf) {
    site.backup();
    let mut segments = Vec::new();
    for point in 0..10 {
        server.query(&format!(
            "CREATE TABLE t{point} AS SELECT sha512(random()::text::bytea) FROM generate_series(1, 3000); \
             SELECT pg_create_restore_point('p{point}')"
        ));
        segments.push(server.archive_current_segment());
    }
    for name in &segments {
        site.ok(&["get-wal", "main", name, &site.path(name).display().to_string()]);
    }
    let before = site.packs();
    site.in_days(3, "sweep").ok();
    (segments, site.largest_pack(&before))
}

/// The WAL that a verification names as damaged.
fn named_as_damaged(site: &Site) -> Vec<String> {
    let verified = site.barmanfs(&["verify", "--json"]);
    let report: Value =
        serde_json::from_slice(&verified.stdout).unwrap_or_else(|error| panic!("{error}: {verified}"));
    let damages = report["damages"].as_array().expect("damages").iter();
    damages
        .filter_map(|damage| damage["file"].as_str().map(str::to_owned))
        .collect()
}

/// The kind: a target is offered, though the archive is known not to have the WAL that leads to it.
fn damage_in_merged_wal_costs_what_is_named_and_is_healed(install: &'static Install) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    let (segments, pack) = merged_wal(&site, &server);
    // Which segment a place belongs to is up to the sweep; one with others before and behind it is wanted.
    let bytes = pack.metadata().unwrap().len();
    let inner = &segments[2..8];
    let damaged = (1..16).find_map(|part| {
        flip_byte(&pack, bytes / 16 * part);
        let named = named_as_damaged(&site);
        let found = named
            .first()
            .filter(|name| named.len() == 1 && inner.contains(name))
            .cloned();
        if found.is_none() {
            flip_byte(&pack, bytes / 16 * part);
        }
        found
    });
    let damaged = damaged.expect("a place in one of the inner segments");
    let number = segments
        .iter()
        .position(|name| *name == damaged)
        .expect("a segment");

    let line = check_line(&site.barmanfs(&["check", "main", "--json"]), "damage of WAL");
    assert_eq!(line["status"], "FAILED", "{line}");
    assert!(line.to_string().contains(&damaged), "{line}");
    site.barmanfs(&["timeline", "main"])
        .says(&[&format!("{damaged} cannot be read"), "stores it again"]);
    let (before, behind) = (format!("name:p{}", number - 1), format!("name:p{}", number + 1));
    site.ok(&["explain", "main", &before]);
    for target in [behind.as_str(), "now"] {
        site.barmanfs(&["explain", "main", target])
            .refused(1)
            .says(&[&damaged, "all before that segment: "]);
    }
    let newest = site.json(&["timeline", "main"])["newest"]["lsn"].clone();
    let nearest = format!("lsn:{}", newest.as_str().expect("what can be recovered"));
    site.ok(&["explain", "main", &nearest]);
    site.barmanfs(&[
        "get-wal",
        "main",
        &damaged,
        &site.path("none").display().to_string(),
    ])
    .refused(201)
    .says(&["is damaged"]);

    site.backup();
    let line = check_line(&site.barmanfs(&["check", "main", "--json"]), "damage of WAL");
    assert_eq!(line["status"], "WARNING", "A backup leads past it: {line}");
    site.ok(&["explain", "main", "now"]);
    site.ok(&["wal-archive", "main", &site.path(&damaged).display().to_string()]);
    let line = check_line(&site.barmanfs(&["check", "main", "--json"]), "damage of WAL");
    assert_eq!(line["status"], "OK", "{line}");
    for target in [behind.as_str(), "now"] {
        site.ok(&["explain", "main", target]);
    }
    site.ok(&["verify"]);
}
