//! A repository to mount, and what goes into it.
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod daemon;
pub mod ordinary;
pub mod tree;

/// The same repositories the tests of the engine of clones have.
#[path = "../../../catalog/live/tests/support/mod.rs"]
mod fixture;

pub use fixture::*;
