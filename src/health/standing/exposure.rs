//! What would be lost if the server were gone now: its commits that could not be recovered from what is stored here.
//!
//! *Safe* is what the target `now` reaches: archived or received WAL that recovery gets to from a backup. The rest of
//! the server's WAL is read from the server, and its first commit is the oldest one that is not safe. So the result is
//! zero for a server that only writes checkpoints, and does not depend on when a segment was archived.

use std::time::SystemTime;

use barmanfs_catalog::Reach;
use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::{Lsn, SegmentSize, TimestampMicros};

use super::live::Live;
use super::stored::Stored;
use super::unsafe_wal::{self, FirstCommit, Stretch};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::postgres::Connection;

/// What is known about the commits that are not safe.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// There is none.
    Nothing,
    /// There is at least one.
    Commits {
        /// When the oldest of them was committed, by the server's clock.
        oldest: TimestampMicros,
    },
    /// The WAL that is not safe could not be read to see whether there is one. None is older than the last safe one.
    AtMost {
        /// The last commit or abort that is safe; for want of one, the end of the backup.
        last_safe: Option<TimestampMicros>,
        /// Why it could not be read.
        why: String,
    },
    /// Nothing can be said.
    Unknown {
        /// Why.
        why: String,
    },
}

/// What would be lost if the server were gone now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Exposure {
    /// Commits that are not safe.
    pub(crate) verdict: Verdict,
    /// Up to where the server's WAL can be recovered.
    pub(crate) safe_lsn: Option<Lsn>,
    /// The end of the WAL that is durable on the server. It was asked for this before the repository was looked at.
    pub(crate) server_lsn: Option<Lsn>,
    /// The time to count from: the server's clock or, if it cannot be asked, this host's.
    now: TimestampMicros,
}

impl Exposure {
    /// Nothing can be said, for this reason.
    pub(super) fn unknown(why: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Unknown { why: why.into() },
            safe_lsn: None,
            server_lsn: None,
            now: SystemTime::now().into(),
        }
    }

    /// Seconds since the oldest commit that is not safe; 0 if there is none. See [`is_exact`](Self::is_exact).
    pub(crate) fn seconds(&self) -> Option<f64> {
        let since = match &self.verdict {
            Verdict::Nothing => return Some(0.0),
            Verdict::Commits { oldest } => *oldest,
            Verdict::AtMost { last_safe, .. } => (*last_safe)?,
            Verdict::Unknown { .. } => return None,
        };
        let micros = self.now.unix_micros().saturating_sub(since.unix_micros()).max(0);
        #[expect(clippy::cast_precision_loss, reason = "microseconds of a century fit")]
        Some(micros as f64 / 1e6)
    }

    /// Bytes of the server's WAL from the first unsafe one on; 0 if no commit is among them.
    pub(crate) fn bytes(&self) -> Option<u64> {
        match self.verdict {
            Verdict::Nothing => Some(0),
            Verdict::Unknown { .. } => None,
            _ => Some(self.server_lsn?.0.saturating_sub(self.safe_lsn?.0)),
        }
    }

    /// Whether the seconds are those of a commit that was seen, and not an upper limit.
    pub(crate) fn is_exact(&self) -> bool {
        matches!(self.verdict, Verdict::Nothing | Verdict::Commits { .. })
    }

    /// Why the figures are missing, or only an upper limit.
    pub(crate) fn why(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Nothing | Verdict::Commits { .. } => None,
            Verdict::AtMost { why, .. } | Verdict::Unknown { why } => Some(why),
        }
    }
}

/// The exposure of a server that has answered.
pub(super) fn of(
    live: &Live,
    streaming: Option<Connection>,
    stored: Option<&Stored>,
    server: &ServerConfig,
) -> Exposure {
    let newest = stored.and_then(|stored| stored.window.newest.as_ref());
    let newest = newest.filter(|newest| newest.lsn != Lsn::INVALID);
    let verdict = match (stored, newest) {
        (Some(stored), Some(newest)) => {
            judge(live, streaming, stored, newest).unwrap_or_else(|error| Verdict::Unknown {
                why: error.to_string(),
            })
        }
        _ => Verdict::Unknown {
            why: format!("nothing of server {} can be recovered", server.name),
        },
    };
    Exposure {
        verdict,
        safe_lsn: newest.map(|newest| newest.lsn),
        server_lsn: live.flush_lsn,
        now: live.now.unwrap_or_else(|| SystemTime::now().into()),
    }
}

fn judge(
    live: &Live,
    streaming: Option<Connection>,
    stored: &Stored,
    newest: &Reach,
) -> Result<Verdict, Error> {
    let unknown = |why: &str| Ok(Verdict::Unknown { why: why.to_owned() });
    if live.system_id != stored.system_id {
        return unknown("the server is another cluster than the one that is stored");
    }
    if stored.open_forks > 0 {
        return unknown("a timeline has two histories: see 'barmanfs history'");
    }
    let at_most = |why: String| Verdict::AtMost {
        last_safe: newest.time,
        why,
    };
    let (Some(timeline), Some(end), Some(size)) = (live.timeline, live.flush_lsn, live.segment_size) else {
        return unknown("the server does not tell its position");
    };
    let Some(mut streaming) = streaming else {
        return Ok(at_most(
            "its WAL cannot be read without a replication connection".to_owned(),
        ));
    };
    let history = match streaming.timeline_history(timeline)? {
        Some(file) => TimelineHistory::parse(&file.content, timeline)
            .map_err(|error| Error::failed(error.to_string()))?,
        None => TimelineHistory::without_ancestors(timeline),
    };
    let Some(stretches) = stretches(&history, newest, end, size) else {
        return unknown("what is stored is not in the history of the server's timeline");
    };
    if stretches.is_empty() && newest.lsn > end && live.in_recovery == Some(false) {
        let end = streaming.identify_system()?.flush_lsn;
        if newest.lsn > end {
            return unknown(
                "the server's WAL ends before what is stored: it was put back to an earlier state",
            );
        }
    }
    Ok(match unsafe_wal::first_commit(&mut streaming, &stretches)? {
        FirstCommit::None => Verdict::Nothing,
        FirstCommit::At(oldest) => Verdict::Commits { oldest },
        FirstCommit::NotRead(why) => at_most(why),
    })
}

/// The server's WAL that is not safe, timeline by timeline; `None` if what is stored is not in the server's history.
fn stretches(history: &TimelineHistory, newest: &Reach, end: Lsn, size: SegmentSize) -> Option<Vec<Stretch>> {
    let of = |timeline, from, to| Stretch {
        timeline,
        from,
        to,
        size,
    };
    if newest.timeline == history.timeline() {
        return Some(until_end(vec![of(newest.timeline, newest.lsn, end)]));
    }
    // What was stored of the old timeline after the place where it was left is not the server's.
    let mut from = newest.lsn.min(history.switch_point(newest.timeline)?);
    let mut found = Vec::new();
    let later = history
        .entries()
        .iter()
        .filter(|entry| entry.timeline >= newest.timeline);
    for entry in later {
        found.push(of(entry.timeline, from, entry.switch_lsn));
        from = from.max(entry.switch_lsn);
    }
    found.push(of(history.timeline(), from, end));
    Some(until_end(found))
}

fn until_end(mut stretches: Vec<Stretch>) -> Vec<Stretch> {
    stretches.retain(|stretch| stretch.from < stretch.to);
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;
    use barmanfs_pg::TimelineId;

    fn reach(timeline: u32, lsn: u64) -> Reach {
        Reach {
            backup: "20261120T101500".parse().unwrap(),
            timeline: TimelineId(timeline),
            lsn: Lsn(lsn),
            time: Some(TimestampMicros::from_unix_seconds(1000)),
            receiving: false,
        }
    }

    fn spans(history: &TimelineHistory, newest: &Reach, end: u64) -> Option<Vec<(u32, u64, u64)>> {
        let found = stretches(history, newest, Lsn(end), SegmentSize::DEFAULT)?;
        let span = |stretch: &Stretch| (stretch.timeline.0, stretch.from.0, stretch.to.0);
        Some(found.iter().map(span).collect())
    }

    #[test]
    fn what_is_not_safe_is_read_along_the_servers_history() {
        let first = TimelineHistory::without_ancestors(TimelineId(1));
        assert_eq!(spans(&first, &reach(1, 50), 80), Some(vec![(1, 50, 80)]));
        assert_eq!(spans(&first, &reach(1, 80), 80), Some(vec![]));
        assert_eq!(
            spans(&first, &reach(1, 90), 80),
            Some(vec![]),
            "written since it was asked"
        );
        assert_eq!(spans(&first, &reach(2, 50), 80), None);
        let third = TimelineHistory::parse(b"1\t0/40\tx\n2\t0/60\tx\n", TimelineId(3)).unwrap();
        assert_eq!(
            spans(&third, &reach(1, 0x30), 0x80),
            Some(vec![(1, 0x30, 0x40), (2, 0x40, 0x60), (3, 0x60, 0x80)])
        );
        let abandoned = spans(&third, &reach(1, 0x50), 0x80);
        assert_eq!(abandoned, Some(vec![(2, 0x40, 0x60), (3, 0x60, 0x80)]));
        assert_eq!(spans(&third, &reach(2, 0x60), 0x80), Some(vec![(3, 0x60, 0x80)]));
        assert_eq!(spans(&third, &reach(4, 0x60), 0x80), None);
    }

    #[test]
    fn an_upper_limit_is_not_exact() {
        let exposure = |verdict| Exposure {
            verdict,
            safe_lsn: Some(Lsn(50)),
            server_lsn: Some(Lsn(80)),
            now: TimestampMicros::from_unix_seconds(1010),
        };
        let figures = |exposure: &Exposure| (exposure.seconds(), exposure.bytes(), exposure.is_exact());
        let at = TimestampMicros::from_unix_seconds;
        assert_eq!(figures(&exposure(Verdict::Nothing)), (Some(0.0), Some(0), true));
        let commits = Verdict::Commits { oldest: at(1007) };
        assert_eq!(figures(&exposure(commits)), (Some(3.0), Some(30), true));
        let at_most = |last_safe| Verdict::AtMost {
            last_safe,
            why: String::new(),
        };
        let limit = exposure(at_most(Some(at(1000))));
        assert_eq!(figures(&limit), (Some(10.0), Some(30), false));
        assert_eq!(figures(&exposure(at_most(None))), (None, Some(30), false));
        assert_eq!(figures(&Exposure::unknown("x")), (None, None, false));
    }
}
