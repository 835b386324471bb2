//! The JSON documents of commands: their shapes and the code that fills them. `docs/schema` has all keys.
//!
//! Times, versions and lists are formatted by `barmanfs_catalog::json`. Values that the catalog itself defines (a
//! timeline report, a verification, statistics) are printed unchanged.

mod backup;
mod boot_test;
mod check;
mod clone;
mod config;
mod copy;
mod deletion;
mod explanation;
mod export;
mod file;
pub(crate) mod import;
mod process;
mod quarantine;
mod replication;
mod restore;
mod retention;
mod server;
mod shown_server;
mod status;
mod surroundings;
pub(crate) mod sync;
mod wal;

use serde::Serialize;

pub(crate) use backup::{ListedBackup, backup};
pub(crate) use boot_test::TestedBackup;
pub(crate) use check::{CheckReport, CheckedRepository, CheckedServer};
pub(crate) use clone::ListedClone;
pub(crate) use config::{ConfigReport, ConfiguredSection};
pub(crate) use copy::Copy;
pub(crate) use deletion::{Deletion, Place, Remains};
pub(crate) use explanation::{Doubt, Explanation, path_of};
pub(crate) use export::ExportReport;
pub(crate) use file::ListedFile;
pub(crate) use process::ListedProcess;
pub(crate) use quarantine::{ComparedFile, MovedFile, QuarantinedFile};
pub(crate) use replication::{ReplicationClient, ReplicationStatus};
pub(crate) use restore::{CatchupDocument, ReplayReport, RestoreReport};
pub(crate) use retention::{KeptBackup, ServerRetention};
pub(crate) use server::ListedServer;
pub(crate) use shown_server::{Facts, ShownHost, ShownServer};
pub(crate) use status::ServerStatus;
pub(crate) use surroundings::Surroundings;
pub(crate) use wal::{CheckedArchive, SwitchedServer};

/// `version --json`
#[derive(Debug, Serialize)]
pub(crate) struct Version {
    pub(crate) version: &'static str,
    pub(crate) repository_format: u32,
}

/// `history SERVER keep --json`
#[derive(Debug, Serialize)]
pub(crate) struct SettledForks {
    /// Number of forks that the command decided.
    pub(crate) settled: usize,
}
