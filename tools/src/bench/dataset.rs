//! The database that is backed up, and the fixed changes made to it.
//!
//! Each unit of scale has 23 MB: pgbench's tables, documents (jsonb, which compress well) and rows
//! that do not compress at all. In addition there are two thousand small tables, as many files as a
//! large application has. Everything is computed, nothing is random, so every run has the same
//! bytes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::server::Server;
use crate::site::Site;

const DOCUMENTS_PER_SCALE: u32 = 6000;
const NOISE_ROWS_PER_SCALE: u32 = 1500;
const SMALL_TABLES: u32 = 2000;
/// How many small tables one transaction creates; each takes a few entries of the lock table.
const SMALL_TABLES_PER_TRANSACTION: u32 = 100;

/// Transactions of the small change.
const TRANSACTIONS: u32 = 5000;

/// PostgreSQL's page.
const PAGE_BYTES: u64 = 8192;

/// The tables for random reads: rows of pgbench, and rows that do not compress.
pub(crate) const ACCOUNTS: &str = "pgbench_accounts";
pub(crate) const NOISE: &str = "noise";

/// The size of the data directory, as measured; it need not be exact.
pub(crate) fn expected_megabytes(scale: u32) -> u32 {
    200 + scale.saturating_mul(23)
}

/// Fills the server's database.
pub(crate) fn create(site: &Site, server: &Server<'_>, scale: u32) -> Result<()> {
    site.run(
        server
            .client("pgbench")
            .args(["-i", "-q", "-s", &scale.to_string()]),
    )?;
    server.sql(&documents_sql(scale))?;
    server.sql(&noise_sql(scale))?;
    server.sql(&small_tables_sql())?;
    server.sql("VACUUM (FREEZE, ANALYZE)")?;
    server.checkpoint()
}

fn documents_sql(scale: u32) -> String {
    let count = scale * DOCUMENTS_PER_SCALE;
    format!(
        "CREATE TABLE documents (id int PRIMARY KEY, body jsonb);
         INSERT INTO documents
         SELECT i, jsonb_build_object(
             'order', i, 'customer', md5((i % 50000)::text), 'state', (ARRAY['open', 'paid', 'sent', 'closed'])[1 + i % 4],
             'address', jsonb_build_object('street', 'Street ' || i % 3001, 'city', 'City ' || i % 211, 'zip', 10000 + i % 89999),
             'lines', (SELECT jsonb_agg(jsonb_build_object('sku', 'SKU-' || (i * 7 + k) % 5000, 'quantity', (i + k) % 10,
                                                           'price', (i * 31 + k * 17) % 10000 / 100.0))
                       FROM generate_series(1, 4 + i % 5) k),
             'notes', repeat('Delivered at the back door. ', 1 + i % 8))
         FROM generate_series(1, {count}) i"
    )
}

fn noise_sql(scale: u32) -> String {
    let count = scale * NOISE_ROWS_PER_SCALE;
    format!(
        "CREATE TABLE {NOISE} (id int PRIMARY KEY, data bytea);
         ALTER TABLE {NOISE} ALTER COLUMN data SET STORAGE EXTERNAL;
         INSERT INTO {NOISE}
         SELECT i, (SELECT string_agg(sha512(int8send(i * 100::bigint + k)), ''::bytea) FROM generate_series(1, 15) k)
         FROM generate_series(1, {count}) i"
    )
}

fn small_tables_sql() -> String {
    format!(
        "DO $$ BEGIN FOR t IN 1..{SMALL_TABLES} LOOP
             EXECUTE format('CREATE TABLE small_%s (id int PRIMARY KEY, name text, made timestamptz)', t);
             EXECUTE format('INSERT INTO small_%s SELECT i, ''Name '' || i, timestamptz ''2026-01-01'' + i * interval ''1 hour''
                             FROM generate_series(1, 25) i', t);
             IF t % {SMALL_TABLES_PER_TRANSACTION} = 0 THEN COMMIT; END IF;
         END LOOP; END $$"
    )
}

/// Runs five thousand transactions of pgbench, and updates one document in a thousand.
pub(crate) fn change_little(site: &Site, server: &Server<'_>) -> Result<()> {
    let per_client = (TRANSACTIONS / 2).to_string();
    let mut pgbench = server.client("pgbench");
    site.run(pgbench.args(["-n", "-c", "2", "-j", "2", "-t", &per_client, "--random-seed=42"]))?;
    server.sql("UPDATE documents SET body = body || '{\"state\": \"returned\"}' WHERE id % 1000 = 7")?;
    server.checkpoint()
}

/// Updates one row on every second page of all large tables.
pub(crate) fn change_half_of_all_pages(server: &Server<'_>) -> Result<()> {
    let changes = [
        (ACCOUNTS, "abalance = abalance + 1"),
        ("documents", "body = body || '{\"state\": \"checked\"}'"),
        (NOISE, "data = sha512(data) || substr(data, 65)"),
    ];
    for (table, change) in changes {
        server.sql(&format!(
            "UPDATE {table} SET {change} WHERE ctid IN
             (SELECT format('(%s,1)', page)::tid
              FROM generate_series(0, pg_relation_size('{table}') / current_setting('block_size')::bigint - 1, 2) page)"
        ))?;
    }
    server.checkpoint()
}

/// Overwrites one page of a hundred of all files below a restored directory: spread, which is the hardest for a tool
/// that compares larger parts than pages.
pub(crate) fn change_pages(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("Cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            change_pages(&path)?;
            continue;
        }
        let file = File::options().write(true).open(&path)?;
        for place in (0..file.metadata()?.len() / PAGE_BYTES).step_by(100) {
            file.write_all_at(&[0xA5; PAGE_BYTES as usize], place * PAGE_BYTES)?;
        }
    }
    Ok(())
}

/// Changes rows on all pages of pgbench_accounts, for the first time since a checkpoint. The WAL
/// has as many bytes as the table, and some more for the rows.
pub(crate) fn change_everywhere(server: &Server<'_>) -> Result<()> {
    server.sql("CHECKPOINT")?;
    server
        .sql(&format!(
            "UPDATE {ACCOUNTS} SET abalance = abalance + 1 WHERE aid % 20 = 3"
        ))
        .map(drop)
}
