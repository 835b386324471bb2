//! Does the server's WAL arrive? What the server says is held against what the archive has, by LSN and by time.
//!
//! [`facts`] is what is known, [`ask`] finds it out, [`command`] reads an `archive_command`, and [`rules`] decide: facts
//! in, lines out.

mod ask;
mod command;
mod facts;
mod rules;

pub(super) use ask::Asked;

use super::Lines;

/// Asks the server and the archive, and adds what follows from the answers.
pub(super) fn check(asked: &mut Asked<'_>, lines: &mut Lines) {
    let facts = ask::facts(asked, lines);
    lines.extend(rules::findings(&facts));
}
