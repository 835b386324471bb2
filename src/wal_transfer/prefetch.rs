//! Fills the spool while PostgreSQL replays: a process of its own, which ends when nobody has asked for a while.
//!
//! It looks at what PostgreSQL got last, and fetches the segments behind that, several at a time. It never decides
//! anything: what it cannot fetch, the next call of `wal-restore` asks for itself, and reports.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use barmanfs_pg::SegmentSize;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::sync::lock;

use super::fetch::{Fetched, Fetching};
use super::spool::{WalSpool, Wanted};
use crate::error::Error;

/// The most segments that are fetched ahead.
pub(crate) const MOST_JOBS: u8 = 32;

/// How soon a thread notices that PostgreSQL got another segment.
const NOTICED_WITHIN: Duration = Duration::from_millis(10);

/// How long PostgreSQL may be silent.
const IDLE: Duration = Duration::from_secs(60);

/// The pause after a segment could not be fetched, or is not there yet.
const PAUSE: Duration = Duration::from_secs(5);

/// What the threads share.
struct Work<'a> {
    fetching: &'a Fetching,
    spool: &'a WalSpool,
    jobs: u8,
    running: Mutex<BTreeSet<SegmentName>>,
    /// No new fetch before this moment.
    paused_until: Mutex<Instant>,
    ended: AtomicBool,
}

/// Fills the spool until it is not used any more. Returns at once if another process does that.
///
/// # Errors
/// When the spool cannot be used.
pub(crate) fn run(fetching: &Fetching, spool: &WalSpool, jobs: u8) -> Result<(), Error> {
    let unusable = |error: std::io::Error| Error::failed(format!("Cannot use the spool: {error}"));
    let Some(_alone) = spool.lock().map_err(unusable)? else {
        return Ok(());
    };
    let work = Work {
        fetching,
        spool,
        jobs: jobs.clamp(1, MOST_JOBS),
        running: Mutex::default(),
        paused_until: Mutex::new(Instant::now()),
        ended: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        for _ in 0..work.jobs {
            scope.spawn(|| work.fetch_until_ended());
        }
        work.watch();
        work.ended.store(true, Ordering::Relaxed);
    });
    spool.clear(|_| false).map_err(unusable)
}

impl Work<'_> {
    /// Returns when PostgreSQL has asked for nothing for a while. Removes what it has passed.
    fn watch(&self) {
        let mut last = (self.spool.wanted(), Instant::now());
        self.forget_passed(last.0);
        while last.1.elapsed() < IDLE {
            std::thread::sleep(NOTICED_WITHIN);
            let wanted = self.spool.wanted();
            if wanted != last.0 {
                last = (wanted, Instant::now());
                self.forget_passed(wanted);
            }
        }
    }

    fn forget_passed(&self, wanted: Option<Wanted>) {
        let is_ahead = |segment: SegmentName| {
            wanted.is_some_and(|wanted| self.ahead(wanted).any(|next| next == segment))
                || lock(&self.running).contains(&segment)
        };
        // What is left is removed the next time.
        let _tried = self.spool.clear(is_ahead);
    }

    fn ahead(&self, wanted: Wanted) -> impl Iterator<Item = SegmentName> {
        let next = move |segment: &SegmentName| Some(segment.next(wanted.size));
        std::iter::successors(next(&wanted.segment), next).take(usize::from(self.jobs))
    }

    fn fetch_until_ended(&self) {
        while !self.ended.load(Ordering::Relaxed) {
            match self.next() {
                Some(segment) => {
                    let is_fetched = self.fetch(segment);
                    lock(&self.running).remove(&segment);
                    if !is_fetched {
                        *lock(&self.paused_until) = Instant::now() + PAUSE;
                    }
                }
                None => std::thread::sleep(NOTICED_WITHIN),
            }
        }
    }

    /// The next segment to fetch, which then counts as running.
    fn next(&self) -> Option<SegmentName> {
        let mut running = lock(&self.running);
        if *lock(&self.paused_until) > Instant::now() {
            return None;
        }
        let wanted = self.spool.wanted()?;
        let is_due = |segment: &SegmentName| !running.contains(segment) && !self.spool.has(*segment);
        let next = self.ahead(wanted).find(is_due)?;
        running.insert(next);
        Some(next)
    }

    fn fetch(&self, segment: SegmentName) -> bool {
        let part = self.spool.part(segment);
        if std::fs::File::create(&part).is_err() {
            return false;
        }
        let fetched = self.fetching.run(&WalName::Segment(segment), &part);
        let is_segment = |size_bytes| SegmentSize::try_from(size_bytes).is_ok();
        let is_there = match fetched {
            Ok(Fetched::File(size_bytes)) if is_segment(size_bytes) => self.spool.add(segment).is_ok(),
            _ => false,
        };
        if !is_there {
            let _gone = std::fs::remove_file(&part);
        }
        is_there
    }
}
