//! What the model must show: it holds with all safeguards, and each safeguard that is switched off costs a promise.
//!
//! `cargo test --workspace --test model -- --nocapture` prints the sizes and the counterexamples.
//! `BARMANFS_TEST_MODEL=all` adds the searches that take minutes and gigabytes.

use crate::backups::rules::{ALL, Rule};
use crate::backups::{Backups, Start};
use crate::search::{Model, Outcome, search};
use crate::wal::{Wal, rules as wal};

/// More would not fit into a test's memory. The searches of `all` need more, about 150 bytes for each state.
fn max_states() -> usize {
    if all() { 60_000_000 } else { 1_000_000 }
}

fn all() -> bool {
    std::env::var("BARMANFS_TEST_MODEL").is_ok_and(|value| value == "all")
}

/// Requires that `model` keeps all promises.
fn holds(name: &str, model: &impl Model) {
    match search(model, max_states()) {
        Outcome::Holds(size) => println!("{name}: holds in {size}"),
        Outcome::Broken { promise, trace, size } => panic!("{name}: {promise}, after {size}:\n{trace}"),
        Outcome::Stuck { trace, size } => panic!("{name}: garbage stays, after {size}:\n{trace}"),
        Outcome::TooLarge(size) => panic!("{name}: the search ended before its end, after {size}"),
    }
}

/// Requires that `model` breaks a promise, and prints how.
fn breaks(name: &str, model: &impl Model) {
    match search(model, max_states()) {
        Outcome::Broken { promise, trace, size } => println!("Without {name}: {promise}. {size}\n{trace}"),
        Outcome::Holds(size) => panic!("without {name} nothing breaks, in {size}"),
        Outcome::Stuck { trace, size } => panic!("without {name} garbage stays, after {size}:\n{trace}"),
        Outcome::TooLarge(size) => panic!("without {name}: the search ended before its end, after {size}"),
    }
}

const WRITER_AND_SWEEPS: Backups = Backups {
    writers: 1,
    sweeps: 2,
    ..Backups::NOBODY
};
const CLONE_AND_SWEEPS: Backups = Backups {
    clone: true,
    sweeps: 2,
    ..Backups::NOBODY
};
const READER_AND_SWEEPS: Backups = Backups {
    reader: true,
    sweeps: 2,
    copies: 1,
    ..Backups::NOBODY
};
const READER_AND_WRITER: Backups = Backups {
    reader: true,
    writers: 1,
    sweeps: 1,
    copies: 1,
    ..Backups::NOBODY
};
const WRITERS_AND_SWEEP: Backups = Backups {
    writers: 2,
    sweeps: 1,
    ..Backups::NOBODY
};
const CLONE_AND_WRITER: Backups = Backups {
    clone: true,
    writers: 1,
    sweeps: 1,
    ..Backups::NOBODY
};
const COPYING_SWEEPS: Backups = Backups {
    sweeps: 2,
    copies: 2,
    ..Backups::NOBODY
};
const WRITER_AND_COPYING_SWEEP: Backups = Backups {
    writers: 1,
    sweeps: 1,
    copies: 1,
    ..Backups::NOBODY
};
/// Two writers and two sweeps, from where the first writer is about to publish what a sweep has condemned.
const RESCUE: Backups = Backups {
    writers: 2,
    sweeps: 2,
    start: Start::Condemned,
    held: false,
    retention: false,
    list_by_key: false,
    ..Backups::NOBODY
};
const PACK_REMOVED: Backups = Backups {
    start: Start::PackRemoved,
    held: false,
    ..WRITERS_AND_SWEEP
};

#[test]
fn no_backup_beside_two_sweeps_lacks_a_chunk() {
    holds("writer, sweep, sweep", &WRITER_AND_SWEEPS);
}

#[test]
fn no_clone_and_no_reader_lacks_a_chunk() {
    holds("clone, sweep, sweep", &CLONE_AND_SWEEPS);
    holds("reader, sweep that copies, sweep", &READER_AND_SWEEPS);
    let calm = Backups {
        retention: false,
        held: false,
        ..READER_AND_WRITER
    };
    holds("reader, writer, sweep that copies", &calm);
    if all() {
        holds(
            "reader, writer, sweep that copies, with retention and late requests",
            &READER_AND_WRITER,
        );
        holds("clone, writer, sweep", &CLONE_AND_WRITER);
    }
}

#[test]
fn no_backup_beside_another_lacks_a_chunk() {
    holds("writer, writer, sweep, sweep, from a condemned pack on", &RESCUE);
    holds("writer, writer, sweep, from a removed pack on", &PACK_REMOVED);
    holds("writer, sweep that copies", &WRITER_AND_COPYING_SWEEP);
    if all() {
        holds("writer, writer, sweep", &WRITERS_AND_SWEEP);
        holds("two sweeps that copy", &COPYING_SWEEPS);
    }
}

/// What shows that a safeguard is needed.
enum Scene {
    /// A promise is broken without it.
    Breaks(Backups),
    /// A promise is broken without both. Each alone is enough, see README.md.
    BreaksWithout(Rule, Backups),
    /// Nothing breaks: other safeguards cover it, see README.md.
    Covered(Backups),
}

fn scene(rule: Rule) -> Scene {
    match rule {
        Rule::BeginBeforeManifest
        | Rule::NothingCondemnedIsUsed
        | Rule::RemovedIsForgotten
        | Rule::RemovedStaysListed
        | Rule::NewestIsListed
        | Rule::PacksBeforeEnd
        | Rule::EndIfAbsent
        | Rule::ManifestIfAbsent
        | Rule::CompareEnd
        | Rule::ConfirmEnd
        | Rule::ClosedStaysClosed
        | Rule::ManifestBeforeSessions
        | Rule::Fence
        | Rule::MarkAgain => Scene::Breaks(WRITER_AND_SWEEPS),
        Rule::LookForHigher => Scene::Breaks(RESCUE),
        Rule::RankByName => Scene::BreaksWithout(Rule::RemoveBeforeDelete, WRITER_AND_SWEEPS),
        Rule::RemoveBeforeDelete => Scene::BreaksWithout(Rule::RankByName, WRITER_AND_SWEEPS),
        Rule::RootBeforeEnd | Rule::CloneOfUncondemned => Scene::Breaks(CLONE_AND_SWEEPS),
        Rule::RefreshWhileItMoves => Scene::Breaks(Backups {
            retention: false,
            held: false,
            ..READER_AND_WRITER
        }),
        Rule::SessionIdsAreNew => Scene::Covered(WRITERS_AND_SWEEP),
        Rule::PackNamesAreNew => Scene::Breaks(PACK_REMOVED),
    }
}

#[test]
fn each_safeguard_of_backups_is_needed() {
    for (rule, text) in ALL {
        let without = |model: Backups| Backups {
            rules: model.rules.without(*rule),
            ..model
        };
        match scene(*rule) {
            Scene::Breaks(model) => breaks(&format!("{rule:?} ({})", text.trim()), &without(model)),
            Scene::BreaksWithout(other, model) => {
                let neither = without(model).rules.without(other);
                // Each pair is in the list twice.
                if (*rule as u8) < other as u8 {
                    breaks(
                        &format!("{rule:?} and {other:?}"),
                        &Backups {
                            rules: neither,
                            ..model
                        },
                    );
                }
                if all() {
                    holds(&format!("without {rule:?}"), &without(model));
                }
            }
            Scene::Covered(model) => {
                let model = without(model);
                let calm = Backups {
                    retention: false,
                    held: false,
                    ..model
                };
                holds(&format!("without {rule:?}"), if all() { &model } else { &calm });
            }
        }
    }
}

/// Two archivers with different bytes, a sweep that merges, and a reader.
const ARCHIVERS: Wal = Wal {
    rules: wal::Rules::all(),
    archivers: 2,
    sweeps: 1,
    reader: true,
    retention: true,
    gaps: true,
};

#[test]
fn no_acknowledged_wal_vanishes_or_changes() {
    holds("archiver, archiver, sweep, reader, with gaps", &ARCHIVERS);
    holds(
        "archiver, archiver, sweep, reader, without gaps",
        &Wal {
            gaps: false,
            ..ARCHIVERS
        },
    );
    if all() {
        holds(
            "archiver, sweep, sweep, reader",
            &Wal {
                archivers: 1,
                sweeps: 2,
                ..ARCHIVERS
            },
        );
        holds(
            "archiver, archiver, sweep, sweep",
            &Wal {
                sweeps: 2,
                reader: false,
                ..ARCHIVERS
            },
        );
        holds(
            "archiver, archiver, sweep, sweep, reader",
            &Wal {
                sweeps: 2,
                ..ARCHIVERS
            },
        );
    }
}

#[test]
fn each_safeguard_of_wal_is_needed() {
    for (rule, text) in wal::ALL {
        let mut model = Wal {
            rules: wal::Rules::all().without(*rule),
            ..ARCHIVERS
        };
        if *rule == wal::Rule::ManifestIfAbsent {
            model = Wal {
                archivers: 1,
                sweeps: 2,
                ..model
            };
        }
        breaks(&format!("{rule:?} ({})", text.trim()), &model);
    }
}
