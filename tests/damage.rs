//! A flipped byte in a pack is found and named, damages only the data it belongs to, and the next full backup repairs
//! it.

use crate::common::load::fill;
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::{Install, Mount, Site};
use serde_json::Value;
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

topic! {
    once a_flipped_byte_is_reported_and_reads_as_eio,
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
