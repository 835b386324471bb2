//! Every backup is a full one, and a second one costs only what changed.

use crate::common::process::run;
use crate::common::registry::topic;
use crate::common::site::bytes_under;
use crate::common::{Install, Mount, PgServer, Site};

topic! {
    with_postgres an_unchanged_database_adds_next_to_nothing,
    with_postgres five_percent_of_the_pages_cost_a_fifth_of_their_compressed_size,
}

/// pgbench's unit of 15 MB; larger for a run that wants to see the promise at size.
fn scale() -> u32 {
    std::env::var("BARMANFS_TEST_SCALE")
        .map_or(20, |text| text.parse().expect("BARMANFS_TEST_SCALE is a number"))
}

/// A full backup of a database of some size; what the data directory takes without WAL.
fn site_with_a_backup(install: &'static Install) -> (Site, PgServer, u64) {
    let (site, server) = Site::with_server(install);
    run(server
        .client("pgbench")
        .args(["-i", "-q", "-F", "90", "-s", &scale().to_string()]))
    .ok();
    server.query("VACUUM FREEZE");
    settle(&server);
    site.backup();
    let data_bytes = bytes_under(&server.data) - bytes_under(&server.data.join("pg_wal"));
    (site, server, data_bytes)
}

/// Hint bits are set, all is written, and all WAL is archived: what comes now is the backup's own.
fn settle(server: &PgServer) {
    server.query("SELECT count(*) FROM pgbench_accounts; CHECKPOINT");
    server.archive_current_segment();
    server.query("CHECKPOINT");
    server.archive_current_segment();
}

fn an_unchanged_database_adds_next_to_nothing(install: &'static Install) {
    let (site, server, data_bytes) = site_with_a_backup(install);
    settle(&server);
    let before = site.stored_bytes();
    site.backup();
    let added = site.stored_bytes() - before;
    assert!(
        added * 1000 < data_bytes,
        "The second backup of {data_bytes} unchanged bytes added {added}"
    );
}

fn five_percent_of_the_pages_cost_a_fifth_of_their_compressed_size(install: &'static Install) {
    let (site, server, _) = site_with_a_backup(install);
    // One row of every twentieth page; -F 90 leaves room for the new version on the same page.
    server.query(
        "UPDATE pgbench_accounts SET abalance = (random() * 100000)::int WHERE ctid IN (SELECT min(ctid) \
         FROM pgbench_accounts GROUP BY (ctid::text::point)[0]::bigint HAVING (ctid::text::point)[0]::bigint % 20 = 7)",
    );
    settle(&server);
    let before = site.stored_bytes();
    let first_id = site.backup_ids().remove(0);
    let second_id = site.backup();
    let added = site.stored_bytes() - before;

    let (changed, pages) = changed_pages(&site, &server, &first_id, &second_id);
    let mut compressed = vec![0; zstd_safe::compress_bound(changed.len())];
    let compressed_bytes =
        zstd_safe::compress(compressed.as_mut_slice(), &changed, 1).expect("zstd compresses") as u64;
    assert!(
        pages > 1000 / 20 * u64::from(scale()) / 20,
        "Only {pages} pages changed"
    );
    assert!(
        added * 5 <= compressed_bytes,
        "{pages} changed pages compress to {compressed_bytes} bytes; the backup added {added}, more than a fifth"
    );
}

/// The new bytes of the pages of pgbench_accounts that differ between two backups, and how many they are.
fn changed_pages(site: &Site, server: &PgServer, first: &str, second: &str) -> (Vec<u8>, u64) {
    let file = server.query("SELECT pg_relation_filepath('pgbench_accounts')");
    let mount = Mount::new(site);
    let read = |id: &str| std::fs::read(site.copy(&mount.path(&format!("main/{id}/{file}")), id)).unwrap();
    let (old, new) = (read(first), read(second));
    let mut changed = Vec::new();
    for (old, new) in old.chunks(8192).zip(new.chunks(8192)) {
        if old != new {
            changed.extend_from_slice(new);
        }
    }
    let pages = changed.len() as u64 / 8192;
    (changed, pages)
}
