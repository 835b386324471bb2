//! The health of a server and of its backups and WAL: whether it can be backed up and recovered.
//!
//! [`check`] runs all checks and returns a [`Finding`] for each, with what they have counted. What concerns the whole
//! repository is checked once, and before all else. The checks are functions of a repository, a server's configuration and, if they query the server, its connections ([`Connections`]). They print
//! nothing, and have a limit of time.
//!
//! - [`repository`], [`space`]: the repository itself.
//! - [`archive`]: the server's backups and WAL in the repository, by the rules in [`backups`], [`reliability`],
//!   [`wal_store`], [`recoverable`], [`clones`] and [`snapshots`].
//! - [`server`], [`streaming`], [`wal_arrival`]: the server, and whether its WAL arrives.
//! - [`passive`]: the primary of a passive node, instead of the server.
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
mod gate;
pub(crate) mod losses;
mod passive;
mod recoverable;
mod reliability;
mod repository;
mod retention;
mod server;
mod snapshots;
mod space;
pub(crate) mod standing;
mod streaming;
mod timed;
mod wal_arrival;
mod wal_host;
mod wal_store;

use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use barmanfs_catalog::Repository;
use barmanfs_catalog::recovery::TimelineReport;
use barmanfs_store::threads;

use crate::config::{Problem, ServerConfig};
use crate::error::Error;
use crate::invocation::Invocation;
use crate::place::Place;
pub(crate) use doubts::Doubts;
pub(crate) use extent::Extent;
pub(crate) use figures::Figures;
use finding::Findings;
pub(crate) use finding::{Finding, State, merge, worst};
use gate::Gate;
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

/// What was found about the repository and about servers.
#[derive(Debug)]
pub(crate) struct Report {
    /// What concerns the repository, and all servers in it.
    pub(crate) repository: Checked,
    /// Each of the servers, in their order.
    pub(crate) servers: Vec<Checked>,
}

/// What to check.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// The repository.
    pub(crate) place: &'a Place,
    /// The servers.
    pub(crate) servers: &'a [ServerConfig],
    /// The command line of this program.
    pub(crate) invocation: &'a Invocation,
    /// Whether all figures for metrics are wanted: also what would be lost with each server.
    pub(crate) measured: bool,
}

/// Checks the repository once, and then the stored state of each server and the servers themselves. The checks of a server
/// take at most the time that `limit` gives, from now on; `None` is no limit.
pub(crate) fn check(
    request: &Request<'_>,
    limit: impl Fn(&ServerConfig) -> Option<Duration> + Sync,
) -> Report {
    let longest = request
        .servers
        .iter()
        .map(&limit)
        .max_by_key(|limit| limit.unwrap_or(Duration::MAX));
    let (opener, gate) = Gate::new();
    let (repository, servers) = thread::scope(|scope| {
        let (place, invocation) = (request.place.clone(), request.invocation.clone());
        let of_repository = move || {
            timed::run(longest.unwrap_or_default(), move |findings| {
                // What is entered in the catalog here must be seen by the checks of the servers.
                let _opener = opener;
                repository::check(&place, &invocation, findings);
            })
        };
        let of_repository = threads::start_in(scope, "checks", of_repository);
        let servers = standing::each(request.servers, |server| {
            check_server(request, server, limit(server), gate.clone())
        });
        (of_repository.map(ScopedJoinHandle::join), servers)
    });
    Report {
        repository: match repository {
            Ok(Ok(checked)) => checked,
            Ok(Err(_)) => not_checked("the checks ended early, by a fault of barmanfs"),
            Err(refused) => not_checked(&refused.to_string()),
        },
        servers,
    }
}

fn not_checked(why: &str) -> Checked {
    Checked {
        findings: vec![Finding::failed(repository::NAME, why)],
        figures: Figures::default(),
    }
}

impl Report {
    /// What was found of each server, with what concerns the repository.
    pub(crate) fn into_each(self) -> impl Iterator<Item = Checked> {
        let Self { repository, servers } = self;
        servers.into_iter().map(move |Checked { findings, figures }| {
            let all = repository.findings.iter().cloned().chain(findings);
            Checked {
                findings: merge(all.collect()),
                figures,
            }
        })
    }
}

fn check_server(
    request: &Request<'_>,
    server: &ServerConfig,
    within: Option<Duration>,
    gate: Gate,
) -> Checked {
    let (place, server, invocation) = (request.place.clone(), server.clone(), request.invocation.clone());
    let measured = request.measured;
    timed::run(within, move |findings| {
        gate.wait();
        let subject = Subject {
            server: &server,
            invocation: &invocation,
        };
        all(&place, subject, findings);
        if measured {
            measure(&place, &server, findings);
        }
    })
}

/// Notes what would be lost with the server.
fn measure(place: &Place, server: &ServerConfig, findings: &mut Findings) {
    let standing = open(place, false).and_then(|repository| Standing::of(server, Some(&repository)));
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
}

fn all(place: &Place, subject: Subject<'_>, findings: &mut Findings) {
    findings.extend(configuration(&subject.server.errors));
    let stored = stored(place, subject, findings);
    let stored = stored.as_ref();
    findings.note(|figures| figures.is_up = Some(false));
    if subject.server.is_passive() {
        return passive::check(subject, stored, findings);
    }
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

/// Opens a repository for checks, which run every few minutes. They do not list all packs: cron does. The checks of the
/// repository itself list some, once for all servers.
fn open(place: &Place, lists: bool) -> Result<Repository, Error> {
    let repository = place.open()?;
    repository.trust_last_survey(lists)?;
    Ok(repository)
}

/// The checks that need no server. A repository that cannot be opened is a problem of the server, too: nothing is known of
/// its backups.
fn stored(place: &Place, subject: Subject<'_>, findings: &mut Findings) -> Option<Stored> {
    let repository = match open(place, false) {
        Ok(repository) => repository,
        Err(error) => {
            findings.result::<()>(repository::NAME, Err(error), |()| None);
            return None;
        }
    };
    let timelines = archive::check(&repository, subject, findings);
    Some(Stored {
        repository,
        timelines,
    })
}
