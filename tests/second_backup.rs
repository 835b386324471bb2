//! Every backup is a full one, and a second one costs only what changed.

use crate::common::process::run;
use crate::common::registry::{scale, topic};
use crate::common::site::bytes_under;
use crate::common::{Install, Mount, PgServer, Site};

topic! {
    once an_unchanged_database_adds_almost_nothing,
    once a_change_of_five_percent_adds_a_fifth_of_its_compressed_size,
}

/// With a smaller database, the parts that every backup adds, like its record and its WAL, would count too much.
const SCALE_MIN: u32 = 20;

/// A full backup of a database of some size. Returns the size of the data directory without WAL.
fn site_with_a_backup(install: &'static Install) -> (Site, PgServer, u64) {
    let (site, server) = Site::with_server(install);
    run(server
        .client("pgbench")
        .args(["-i", "-q", "-F", "90", "-s", &scale().max(SCALE_MIN).to_string()]))
    .ok();
    server.query("VACUUM FREEZE");
    settle(&server, "pgbench_accounts");
    site.backup();
    let data_bytes = bytes_under(&server.data) - bytes_under(&server.data.join("pg_wal"));
    (site, server, data_bytes)
}

/// Sets hint bits, writes everything, and archives all WAL: later changes are the backup's own.
fn settle(server: &PgServer, table: &str) {
    server.query(&format!("SELECT count(*) FROM {table}; CHECKPOINT"));
    server.archive_current_segment();
    server.query("CHECKPOINT");
    server.archive_current_segment();
}

fn an_unchanged_database_adds_almost_nothing(install: &'static Install) {
    let (site, server, data_bytes) = site_with_a_backup(install);
    settle(&server, "pgbench_accounts");
    let before = stored_with_index(&site, &server);
    site.backup();
    let added = stored_with_index(&site, &server) - before;
    assert!(
        added * 1000 < data_bytes,
        "The second backup of {data_bytes} unchanged bytes added {added}"
    );
}

fn a_change_of_five_percent_adds_a_fifth_of_its_compressed_size(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    // Documents as applications store them: most of a page repeats, but 32 random bytes in each row do not. The fill
    // factor leaves room for the new version of a row on the same page.
    server.query(&format!(
        "CREATE TABLE documents (id int, stage int, body jsonb) WITH (fillfactor = 90); \
         INSERT INTO documents SELECT n, 0, jsonb_build_object('key', md5(random()::text), 'name', 'document ' || n, \
         'customer', md5(random()::text), 'kind', 'invoice', 'state', 'open', 'note', 'to be paid within thirty days') \
         FROM generate_series(1, {}) n",
        scale() * 40_000
    ));
    settle(&server, "documents");
    let first_id = site.backup();
    // One row on every twentieth page.
    server.query(
        "UPDATE documents SET stage = (random() * 1000)::int WHERE ctid IN (SELECT min(ctid) FROM documents \
         GROUP BY (ctid::text::point)[0]::bigint HAVING (ctid::text::point)[0]::bigint % 20 = 7)",
    );
    settle(&server, "documents");
    let before = stored_with_index(&site, &server);
    let second_id = site.backup();
    let added = stored_with_index(&site, &server) - before;

    let changed = changed_pages(&site, &server, &first_id, &second_id);
    let compressed_bytes: u64 = changed.iter().map(|page| compressed_bytes(page)).sum();
    let pages = changed.len();
    assert!(pages > 50 * scale() as usize, "Only {pages} pages changed");
    assert!(
        added * 5 <= compressed_bytes,
        "{pages} changed pages compress to {compressed_bytes} bytes; the backup added {added}, more than a fifth"
    );
}

/// The size of a compressed page, as in a backup that knows that the page has changed but not its earlier content.
fn compressed_bytes(page: &[u8]) -> u64 {
    let mut compressed = vec![0; zstd_safe::compress_bound(page.len())];
    zstd_safe::compress(compressed.as_mut_slice(), page, 1).expect("zstd compresses") as u64
}

/// Packs and index. The index is rebuilt first: SQLite's log and free pages are not a cost of a backup.
fn stored_with_index(site: &Site, server: &PgServer) -> u64 {
    // A rebuild refuses to begin while WAL comes in.
    let _held = server.hold_archiver();
    site.ok(&["rebuild-catalog"]);
    let index = std::fs::metadata(site.repository().join("catalog.sqlite")).expect("the catalog is there");
    bytes_under(&site.repository().join("packs")) + index.len()
}

/// The new bytes of the table's pages that differ between two backups.
fn changed_pages(site: &Site, server: &PgServer, first: &str, second: &str) -> Vec<Vec<u8>> {
    let file = server.query("SELECT pg_relation_filepath('documents')");
    let mount = Mount::new(site);
    let read = |id: &str| std::fs::read(site.copy(&mount.path(&format!("main/{id}/{file}")), id)).unwrap();
    let (old, new) = (read(first), read(second));
    let pages = old.chunks(8192).zip(new.chunks(8192));
    pages
        .filter(|(old, new)| old != new)
        .map(|(_, new)| new.to_vec())
        .collect()
}
