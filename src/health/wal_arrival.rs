//! Does the server's WAL arrive? What the server says is compared with what the archive has, by LSN and by time.
//!
//! [`facts`] is what is known, [`ask`] finds it out, [`command`] reads an `archive_command`, and [`rules`] decide: facts
//! in, findings out.

mod ask;
mod command;
mod facts;
mod rules;

pub(super) use ask::Asked;

use super::finding::Findings;

/// Asks the server and the archive, and adds what follows from the answers.
pub(super) fn check(asked: &mut Asked<'_>, findings: &mut Findings) {
    let facts = ask::facts(asked, findings);
    findings.extend(rules::findings(&facts));
}
