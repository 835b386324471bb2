//! A model of the protocol by which many hosts share one bucket, searched whole. README.md beside this file says what
//! it contains and what it showed.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and shows what it found"
)]

mod backups;
mod rules;
mod search;
mod set;
mod tests;
mod wal;
