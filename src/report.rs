//! The JSON documents that commands print: their shapes, and what fills them. `tests/json_shape.txt` lists all keys.
//!
//! Times, versions and lists get their form from `barmanfs_catalog::json`. What the catalog itself describes (a timeline
//! report, a verification, statistics) is printed as it is.

mod backup;
mod boot_test;
mod check;
mod clone;
mod deletion;
mod explanation;
mod file;
mod quarantine;
mod server;

use serde::Serialize;

pub(crate) use backup::{ListedBackup, backup};
pub(crate) use boot_test::TestedBackup;
pub(crate) use check::CheckedServer;
pub(crate) use clone::ListedClone;
pub(crate) use deletion::{Deletion, Place, Remains};
pub(crate) use explanation::{Doubt, Explanation, path_of};
pub(crate) use file::ListedFile;
pub(crate) use quarantine::{ComparedFile, MovedFile, QuarantinedFile};
pub(crate) use server::ListedServer;

/// `version --json`
#[derive(Debug, Serialize)]
pub(crate) struct Version {
    pub(crate) version: &'static str,
    pub(crate) repository_format: u32,
}

/// `history SERVER keep --json`
#[derive(Debug, Serialize)]
pub(crate) struct SettledForks {
    /// How many forks that decided.
    pub(crate) settled: usize,
}
