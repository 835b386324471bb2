//! Shows a replay while it goes on: LSN, time reached, segments, and how long the rest may take.

use std::time::Instant;

use barmanfs_catalog::Repository;

use super::rates;
use super::watch::{ASK_EVERY, Reached, Replay, TimeSource, Watched};
use crate::output;
use crate::progress::{Counted, Progress};

/// A progress line, and what was seen for the rate of the replay.
#[derive(Debug)]
pub(crate) struct ReplayProgress<'a> {
    watched: &'a Watched,
    /// For the time that is reached.
    repository: Option<&'a Repository>,
    progress: Progress,
    first: Option<Seen>,
    last: Option<Seen>,
    asked: Option<Instant>,
}

/// Where a replay was seen.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    done: u64,
}

impl<'a> ReplayProgress<'a> {
    pub(crate) fn start(
        watched: &'a Watched,
        repository: Option<&'a Repository>,
        what: &str,
        quiet: bool,
    ) -> Self {
        Self {
            watched,
            repository,
            progress: Progress::start(what, Counted::Things, quiet),
            first: None,
            last: None,
            asked: None,
        }
    }

    /// Looks, and shows what is seen.
    pub(crate) fn look(&mut self) -> Replay {
        let replay = self.watched.look();
        match replay {
            Replay::NotRunning => self.progress.note("waiting for a server"),
            Replay::Starting => self.progress.note("starting"),
            Replay::At(segment) => {
                let reached = self.watched.reached(replay, self.repository);
                self.progress.note(&text(&reached));
                if let Some((done, all)) = self.watched.segments(segment) {
                    self.count(done, all);
                }
            }
            Replay::Paused | Replay::Ready => {}
        }
        replay
    }

    /// Shows where a server is that takes connections, and replays.
    pub(crate) fn ask(&mut self) {
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
            return;
        }
        let reached = self.watched.reached(Replay::Ready, self.repository);
        self.asked = Some(Instant::now());
        self.progress.note(&text(&reached));
        let segment = reached.lsn.and_then(|lsn| self.watched.segment_of(lsn));
        if let Some((done, all)) = segment.and_then(|segment| self.watched.segments(segment)) {
            self.count(done, all);
        }
    }

    fn count(&mut self, done: u64, all: u64) {
        self.progress.set(done, Some(all.max(done)));
        let seen = Seen {
            at: Instant::now(),
            done,
        };
        self.first.get_or_insert(seen);
        self.last = Some(seen);
    }

    /// Whether a replay was seen.
    pub(crate) fn has_begun(&self) -> bool {
        self.first.is_some()
    }

    /// Keeps how fast it was.
    pub(crate) fn keep_rate(&self) {
        if let (Some(first), Some(last), Some(repository)) = (self.first, self.last, self.repository) {
            let segments = last.done.saturating_sub(first.done);
            let bytes = segments.saturating_mul(self.watched.segment_bytes());
            rates::keep_replay(repository, bytes, last.at.duration_since(first.at));
        }
    }
}

/// "at LSN 0/5000000, 2026-11-20 14:03:07+00".
pub(crate) fn text(reached: &Reached) -> String {
    let lsn = reached
        .lsn
        .map_or_else(|| "no LSN known".to_owned(), |lsn| format!("at LSN {lsn}"));
    match reached.time {
        Some((time, TimeSource::Checkpoint)) => format!("{lsn}, behind {}", output::second(time)),
        Some((time, _)) => format!("{lsn}, {}", output::second(time)),
        None => lsn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use barmanfs_pg::{Lsn, TimestampMicros};

    #[test]
    fn a_place_has_an_lsn_and_a_time() {
        let time = TimestampMicros::from_unix_seconds(1_795_183_387);
        let at = |time| {
            text(&Reached {
                lsn: Some(Lsn(0x0500_0000)),
                time,
            })
        };
        assert_eq!(
            at(Some((time, TimeSource::Archive))),
            "at LSN 0/5000000, 2026-11-20 14:03:07+00"
        );
        assert_eq!(
            at(Some((time, TimeSource::Checkpoint))),
            "at LSN 0/5000000, behind 2026-11-20 14:03:07+00"
        );
        assert_eq!(at(None), "at LSN 0/5000000");
    }
}
