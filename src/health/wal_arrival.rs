//! Whether the server's WAL arrives. The server's state is compared with the archive, by LSN and by time.
//!
//! [`facts`] has the facts, [`ask`] collects them, [`command`] interprets an `archive_command`, and [`rules`] decide:
//! facts in, findings out.

mod ask;
mod command;
mod facts;
mod rules;

pub(super) use ask::Asked;

use super::finding::Findings;

/// Collects the facts from the server and the archive, and adds the findings.
pub(super) fn check(asked: &mut Asked<'_>, findings: &mut Findings) {
    let facts = ask::facts(asked, findings);
    findings.extend(rules::findings(&facts));
}
