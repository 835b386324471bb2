//! The health of a server and of its backups and WAL: whether it can be backed up and recovered.
//!
//! [`check`] runs all checks and returns a [`Finding`] for each. The checks are functions of a repository, a server's
//! configuration and, if they query the server, its connections ([`Connections`]). They print nothing.
//!
//! - [`repository`]: the repository itself.
//! - [`archive`]: the server's backups and WAL in the repository, by the rules in [`backups`] and [`reliability`].
//! - [`server`], [`streaming`], [`wal_arrival`]: the server, and whether its WAL arrives.
//!
//! Checks that do not depend on the server run while it is down, too.

mod archive;
mod backups;
mod doubts;
mod finding;
pub(crate) mod losses;
mod reliability;
mod repository;
mod server;
mod streaming;
mod wal_arrival;

use std::path::Path;

use barmanfs_catalog::Repository;
use barmanfs_catalog::recovery::TimelineReport;

use crate::config::ServerConfig;
use crate::error::Error;
use crate::invocation::Invocation;
pub(crate) use doubts::Doubts;
use finding::Findings;
pub(crate) use finding::{Finding, State, worst};
use server::Connections;

/// The server to check.
#[derive(Debug, Clone, Copy)]
struct Subject<'a> {
    /// Its configuration.
    server: &'a ServerConfig,
    /// The command line of this program, for hints with commands that somebody else runs.
    invocation: &'a Invocation,
}

/// The stored state of a server, for the checks that compare it with the server.
#[derive(Debug)]
struct Stored {
    repository: Repository,
    /// The server's timelines; `None` if they cannot be read.
    timelines: Option<TimelineReport>,
}

/// Checks the repository at `path`, the stored state of `server`, and the server itself.
pub(crate) fn check(path: &Path, server: &ServerConfig, invocation: &Invocation) -> Vec<Finding> {
    let subject = Subject { server, invocation };
    let mut findings = Findings::default();
    let stored = stored(path, subject, &mut findings);
    if let Some(connections) = Connections::open(server, &mut findings) {
        server::check(subject, stored.as_ref(), connections, &mut findings);
    }
    findings.into_vec()
}

/// The checks that need no server.
fn stored(path: &Path, subject: Subject<'_>, findings: &mut Findings) -> Option<Stored> {
    let opened = Repository::open(path).map_err(Error::from);
    let shown = |_: &Repository| Some(path.display().to_string());
    let repository = findings.result("repository", opened, shown)?;
    repository::check(&repository, path, subject.invocation, findings);
    let timelines = archive::check(&repository, subject, findings);
    Some(Stored {
        repository,
        timelines,
    })
}
