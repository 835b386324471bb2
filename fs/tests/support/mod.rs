//! A repository to mount, and its content.
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod daemon;
pub mod ordinary;
pub mod tree;

/// The same repositories as in the tests of the crate `barmanfs_live`.
#[path = "../../../catalog/live/tests/support/mod.rs"]
mod fixture;

pub use fixture::*;
