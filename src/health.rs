//! The health of a server and of its backups and WAL: whether it can be backed up and recovered.
//!
//! [`check`] runs all checks and returns a [`Finding`] for each, with what they have counted. The checks are functions of
//! a repository, a server's configuration and, if they query the server, its connections ([`Connections`]). They print
//! nothing, and have a limit of time.
//!
//! - [`repository`], [`space`]: the repository itself.
//! - [`archive`]: the server's backups and WAL in the repository, by the rules in [`backups`], [`reliability`],
//!   [`wal_store`] and [`clones`].
//! - [`server`], [`streaming`], [`wal_arrival`]: the server, and whether its WAL arrives.
//! - [`wal_host`]: the host that WAL is received from, where that is another one.
//! - [`extent`]: what the repository takes, for metrics.
//! - [`standing`]: facts that `status` and others show, without a judgement.
//!
//! Checks that do not depend on the server run while it is down, too.

mod archive;
mod backups;
mod clones;
mod cron;
mod doubts;
mod extent;
pub(crate) mod figures;
mod finding;
pub(crate) mod losses;
mod reliability;
mod repository;
mod retention;
mod server;
mod space;
pub(crate) mod standing;
mod streaming;
mod timed;
mod wal_arrival;
mod wal_host;
mod wal_store;

use std::path::Path;
use std::time::Duration;

use barmanfs_catalog::Repository;
use barmanfs_catalog::recovery::TimelineReport;

use crate::config::{Problem, ServerConfig};
use crate::error::Error;
use crate::invocation::Invocation;
pub(crate) use doubts::Doubts;
pub(crate) use extent::Extent;
pub(crate) use figures::Figures;
use finding::Findings;
pub(crate) use finding::{Finding, State, worst};
use server::Connections;
use standing::Standing;
pub(crate) use timed::{Checked, within};

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

/// Checks the repository at `path`, the stored state of `server`, and the server itself. All of it takes at most
/// `within`; `None` is no limit.
pub(crate) fn check(
    path: &Path,
    server: &ServerConfig,
    invocation: &Invocation,
    within: Option<Duration>,
) -> Checked {
    let (path, server, invocation) = (path.to_owned(), server.clone(), invocation.clone());
    timed::run(within, move |findings| {
        let subject = Subject {
            server: &server,
            invocation: &invocation,
        };
        all(&path, subject, findings);
    })
}

/// The same, and what would be lost with the server: all figures for metrics.
pub(crate) fn measure(
    path: &Path,
    server: &ServerConfig,
    invocation: &Invocation,
    within: Duration,
) -> Checked {
    let (path, server, invocation) = (path.to_owned(), server.clone(), invocation.clone());
    timed::run(Some(within), move |findings| {
        let subject = Subject {
            server: &server,
            invocation: &invocation,
        };
        all(&path, subject, findings);
        let standing = Repository::open(&path)
            .map_err(Error::from)
            .and_then(|repository| Standing::of(&server, Some(&repository)));
        match standing {
            Ok(Standing { exposure, .. }) => findings.note(|figures| {
                figures.is_rpo_known = Some(exposure.seconds().is_some());
                figures.rpo_seconds = exposure.seconds();
                figures.rpo_bytes = exposure.bytes();
            }),
            Err(error) => tracing::warn!(
                "What would be lost with server {} is not known: {error}",
                server.name
            ),
        }
    })
}

fn all(path: &Path, subject: Subject<'_>, findings: &mut Findings) {
    findings.extend(configuration(&subject.server.errors));
    let stored = stored(path, subject, findings);
    let stored = stored.as_ref();
    findings.note(|figures| figures.is_up = Some(false));
    let mut connections = Connections::open(subject.server, findings);
    let answered = connections.as_mut().and_then(|connections| {
        findings.note(|figures| figures.is_up = Some(connections.are_complete(subject.server)));
        server::check(subject, stored, connections, findings)
    });
    if subject.server.has_wal_host() {
        wal_host::check(subject, stored, answered.as_ref(), findings);
    } else if let (Some(connections), Some(answered)) = (&mut connections, &answered) {
        server::check_wal(subject, stored, connections, answered, findings);
    }
}

/// A server with a wrong configuration is disabled.
pub(crate) fn configuration(errors: &[Problem]) -> Option<Finding> {
    let first = errors.first()?;
    let more = match errors.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    Some(
        Finding::failed("configuration", format!("{first}{more}"))
            .hint("The server is disabled; 'barmanfs config check' lists all that is wrong"),
    )
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
