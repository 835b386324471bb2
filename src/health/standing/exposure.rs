//! What would be lost if the server were gone now: its commits that could not be recovered from what is stored here.
//!
//! *Safe* is what the target `now` reaches: archived or received WAL that recovery gets to from a backup. The rest of
//! the server's WAL is read from the server, and its first commit is the oldest one that is not safe. So the result is
//! zero for a server that only writes checkpoints, and does not depend on when a segment was archived.
//!
//! Commits are made on the primary. Of a standby it is not known what it has not received, so its primary is asked
//! where its WAL ends. Where that is not possible, nothing is said to be safe.

use std::time::SystemTime;

use barmanfs_catalog::{CrossingRecord, Reach};
use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::{Lsn, SegmentSize, TimestampMicros};

use super::live::Live;
use super::stored::Stored;
use super::unsafe_wal::{self, FirstCommit, Stretch};
use crate::cluster::{self, Purpose, primary};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::output;
use crate::postgres::Connection;

/// What is known about the commits that are not safe.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// There is none.
    Nothing,
    /// There is at least one.
    Commits {
        /// When the oldest of them was committed, by the primary's clock.
        oldest: TimestampMicros,
    },
    /// The WAL that is not safe could not be read to see whether there is one. None is older than the last safe one.
    AtMost {
        /// The last commit or abort that is safe; for want of one, the end of the backup.
        last_safe: Option<TimestampMicros>,
        /// Why it could not be read.
        why: String,
    },
    /// All of them: nothing of the server can be recovered.
    Everything {
        /// Why.
        why: String,
    },
    /// Nothing can be said.
    Unknown {
        /// Why.
        why: String,
    },
}

/// The clocks of two hosts may differ by so much. A commit that is further in the future was made before the clock was
/// set back.
const AHEAD_MICROS_MAX: i64 = 300 * 1_000_000;

/// What would be lost if the server were gone now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Exposure {
    /// Commits that are not safe.
    pub(crate) verdict: Verdict,
    /// Up to where the server's WAL can be recovered.
    pub(crate) safe_lsn: Option<Lsn>,
    /// The end of the WAL that is durable on the primary; `None` if that is not known. It was asked for this before the
    /// repository was looked at.
    pub(crate) server_lsn: Option<Lsn>,
    /// The time to count from, by the clock that the verdict's time is of.
    now: TimestampMicros,
}

impl Exposure {
    /// Nothing can be said, for this reason.
    pub(super) fn unknown(why: impl Into<String>) -> Self {
        Self::without_figures(Verdict::Unknown { why: why.into() })
    }

    /// Everything would be lost, for this reason.
    fn everything(why: impl Into<String>) -> Self {
        Self::without_figures(Verdict::Everything { why: why.into() })
    }

    fn without_figures(verdict: Verdict) -> Self {
        Self {
            verdict,
            safe_lsn: None,
            server_lsn: None,
            now: SystemTime::now().into(),
        }
    }

    /// Seconds since the oldest commit that is not safe: 0 only if there is none, and infinity if nothing can be
    /// recovered. See [`is_exact`](Self::is_exact).
    pub(crate) fn seconds(&self) -> Option<f64> {
        let since = match &self.verdict {
            Verdict::Nothing => return Some(0.0),
            Verdict::Everything { .. } => return Some(f64::INFINITY),
            Verdict::Commits { oldest } => *oldest,
            Verdict::AtMost { last_safe, .. } => (*last_safe)?,
            Verdict::Unknown { .. } => return None,
        };
        let micros = self.now.unix_micros().saturating_sub(since.unix_micros());
        #[expect(clippy::cast_precision_loss, reason = "microseconds of a century fit")]
        let seconds = micros.max(1) as f64 / 1e6;
        (micros > -AHEAD_MICROS_MAX).then_some(seconds)
    }

    /// Bytes of the server's WAL from the first unsafe one on; 0 if no commit is among them.
    pub(crate) fn bytes(&self) -> Option<u64> {
        match self.verdict {
            Verdict::Nothing => Some(0),
            Verdict::Unknown { .. } | Verdict::Everything { .. } => None,
            _ => Some(self.server_lsn?.0.saturating_sub(self.safe_lsn?.0)),
        }
    }

    /// Whether the seconds are those of a commit that was seen, and not an upper limit.
    pub(crate) fn is_exact(&self) -> bool {
        !matches!(self.verdict, Verdict::AtMost { .. } | Verdict::Unknown { .. })
    }

    /// Why the figures are missing, or only an upper limit.
    pub(crate) fn why(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Nothing => None,
            Verdict::Commits { .. } => match (self.seconds(), self.bytes()) {
                (None, _) => {
                    Some("the oldest commit is in the future by the server's clock, which was set back")
                }
                (_, None) => Some(NO_PRIMARY),
                _ => None,
            },
            Verdict::AtMost { why, .. } | Verdict::Unknown { why } | Verdict::Everything { why } => Some(why),
        }
    }
}

/// Why less is known of a standby.
const NO_PRIMARY: &str = "the server is a standby, and what its primary has written since is not known: set \
                          primary_conninfo";

/// The exposure of a server that was not asked, or has not answered for this reason.
pub(super) fn unasked(stored: Option<&Stored>, server: &ServerConfig, why: String) -> Exposure {
    match unrecoverable(stored, server) {
        Some(nothing) if server.active => Exposure::everything(nothing),
        _ => Exposure::unknown(why),
    }
}

/// Why nothing of a server can be recovered, if so.
fn unrecoverable(stored: Option<&Stored>, server: &ServerConfig) -> Option<String> {
    let earliest = stored.and_then(|stored| stored.window.earliest.as_ref());
    earliest.is_none().then(|| {
        format!(
            "nothing of server {} can be recovered, it has no complete backup",
            server.name
        )
    })
}

/// The exposure of a server that has answered.
pub(super) fn of(
    live: &Live,
    streaming: Option<Connection>,
    stored: Option<&Stored>,
    crossing: CrossingRecord,
    server: &ServerConfig,
) -> Exposure {
    if let Some(why) = unrecoverable(stored, server) {
        return Exposure::everything(why);
    }
    let Some(stored) = stored else {
        return Exposure::unknown("nothing is stored");
    };
    match (live.system_id, stored.system_id) {
        (Some(there), Some(here)) if there != here => {
            return Exposure::everything(format!(
                "nothing of server {} can be recovered: it is the cluster {there}, and what is stored is of {here}",
                server.name
            ));
        }
        (None, _) => return Exposure::unknown("the server does not tell which cluster it is"),
        _ => {}
    }
    let newest = stored
        .window
        .newest
        .as_ref()
        .filter(|newest| newest.lsn != Lsn::INVALID);
    let Some(newest) = newest else {
        return Exposure::unknown(format!(
            "the newest state cannot be recovered: see 'barmanfs explain {} now'",
            server.name
        ));
    };
    let origin = Origin::of(live, streaming, server);
    let now = origin.now.unwrap_or_else(|| SystemTime::now().into());
    let server_lsn = origin.end;
    let verdict = judge(live, origin, stored, (newest, crossing)).unwrap_or_else(|error| Verdict::Unknown {
        why: error.to_string(),
    });
    // The time of a backup is by this host's clock.
    let is_by_own_clock = matches!(verdict, Verdict::AtMost { .. }) && !newest.is_commit;
    Exposure {
        verdict,
        safe_lsn: Some(newest.lsn),
        server_lsn,
        now: if is_by_own_clock {
            SystemTime::now().into()
        } else {
            now
        },
    }
}

/// Where commits are made, and where their WAL is read.
struct Origin {
    /// The end of the WAL that is durable where commits are made, if that is known.
    end: Option<Lsn>,
    /// Why it is not known, or cannot be read to its end.
    why: Option<String>,
    /// The clock of their times.
    now: Option<TimestampMicros>,
    /// Where the WAL can be read, and up to where: the same, or its standby.
    reader: Option<Connection>,
    reads_to: Option<Lsn>,
}

impl Origin {
    fn of(live: &Live, streaming: Option<Connection>, server: &ServerConfig) -> Self {
        let own = Self {
            end: live.flush_lsn,
            why: None,
            now: live.now,
            reader: streaming,
            reads_to: live.flush_lsn,
        };
        if live.in_recovery != Some(true) {
            return own;
        }
        let asked = match (&server.primary_conninfo, live.system_id) {
            (Some(_), Some(system_id)) => primary::look(server, system_id).map_err(|error| error.to_string()),
            _ => Err(NO_PRIMARY.to_owned()),
        };
        let primary = match asked {
            Ok(primary) => primary,
            Err(why) => {
                return Self {
                    end: None,
                    why: Some(why),
                    ..own
                };
            }
        };
        let of_primary = Self {
            end: Some(primary.flush_lsn),
            now: primary.now,
            ..own
        };
        match cluster::look(server, Purpose::PrimaryWal) {
            Ok(connection) => Self {
                reader: Some(connection),
                reads_to: Some(primary.flush_lsn),
                ..of_primary
            },
            Err(error) => Self {
                why: Some(format!("the primary's WAL cannot be read: {error}")),
                ..of_primary
            },
        }
    }

    /// Why there may be commits behind what was read.
    fn rest(&self) -> Option<String> {
        match (self.end, self.reads_to) {
            (Some(end), Some(read)) if read >= end => None,
            (Some(end), Some(read)) => Some(format!(
                "the standby has {} less than its primary{}",
                output::bytes(end.0.saturating_sub(read.0)),
                self.why
                    .as_ref()
                    .map(|why| format!(", and {why}"))
                    .unwrap_or_default()
            )),
            _ => Some(self.why.clone().unwrap_or_else(|| NO_PRIMARY.to_owned())),
        }
    }
}

fn judge(
    live: &Live,
    origin: Origin,
    stored: &Stored,
    (newest, crossing): (&Reach, CrossingRecord),
) -> Result<Verdict, Error> {
    let unknown = |why: &str| Ok(Verdict::Unknown { why: why.to_owned() });
    if stored.open_forks > 0 {
        return unknown("a timeline has two histories: see 'barmanfs history'");
    }
    let at_most = |why: String| Verdict::AtMost {
        last_safe: newest.time,
        why,
    };
    let rest = origin.rest();
    let (Some(end), Some(size)) = (origin.reads_to, live.segment_size) else {
        return unknown("the server does not tell its position");
    };
    let Some(mut reader) = origin.reader else {
        return Ok(at_most(
            "its WAL cannot be read without a replication connection".to_owned(),
        ));
    };
    // The timeline of this moment, which may be another than when the server was asked in SQL.
    let timeline = reader.identify_system()?.timeline;
    let history = match reader.timeline_history(timeline)? {
        Some(file) => TimelineHistory::parse(&file.content, timeline)
            .map_err(|error| Error::failed(error.to_string()))?,
        None => TimelineHistory::without_ancestors(timeline),
    };
    let Some(stretches) = stretches(&history, newest, end, size) else {
        return unknown("what is stored is not in the history of the server's timeline");
    };
    if stretches.is_empty() && newest.lsn > end && live.in_recovery == Some(false) {
        let end = reader.identify_system()?.flush_lsn;
        if newest.lsn > end {
            return unknown(
                "the server's WAL ends before what is stored: it was put back to an earlier state",
            );
        }
    }
    let mut read = |timeline, from, to| Ok(reader.read_wal(timeline, from, to)?);
    let found = unsafe_wal::first_commit(&mut read, &stretches, crossing)?;
    Ok(match (found, rest) {
        (FirstCommit::At(oldest), _) => Verdict::Commits { oldest },
        (FirstCommit::None, None) => Verdict::Nothing,
        (FirstCommit::None, Some(why)) | (FirstCommit::NotRead(why), _) => at_most(why),
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
            is_commit: true,
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
        let commits = |seconds| exposure(Verdict::Commits { oldest: at(seconds) });
        assert_eq!(figures(&commits(1007)), (Some(3.0), Some(30), true));
        let at_most = |last_safe| Verdict::AtMost {
            last_safe,
            why: String::new(),
        };
        let limit = exposure(at_most(Some(at(1000))));
        assert_eq!(figures(&limit), (Some(10.0), Some(30), false));
        assert_eq!(figures(&exposure(at_most(None))), (None, Some(30), false));
        assert_eq!(figures(&Exposure::unknown("x")), (None, None, false));
        let all = Exposure::everything("x");
        assert_eq!(figures(&all), (Some(f64::INFINITY), None, true));
        assert_eq!(all.why(), Some("x"));
    }

    #[test]
    fn a_commit_that_is_not_safe_never_looks_safe() {
        let exposure = |oldest| Exposure {
            verdict: Verdict::Commits {
                oldest: TimestampMicros::from_unix_seconds(oldest),
            },
            safe_lsn: Some(Lsn(50)),
            server_lsn: Some(Lsn(80)),
            now: TimestampMicros::from_unix_seconds(1000),
        };
        // The clocks of two hosts differ a little.
        assert_eq!(exposure(1001).seconds(), Some(1e-6));
        let set_back = exposure(5000);
        assert_eq!((set_back.seconds(), set_back.bytes()), (None, Some(30)));
        assert!(set_back.why().is_some_and(|why| why.contains("set back")));
    }
}
