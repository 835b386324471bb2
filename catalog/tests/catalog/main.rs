//! Tests of what the catalog guarantees, on real repositories.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod archive;
mod backups;
mod boot_tests;
mod changes;
mod clones;
mod common;
mod configuration;
mod counters;
mod crash;
mod growth;
mod lost;
mod mending;
mod rebuild;
mod retention;
mod scale;
mod snapshots;
mod spool;
mod sweep;
mod sync;
mod sync_refused;
mod verify;
