//! Fills the spool while PostgreSQL replays: a process of its own, which ends when nobody has asked for a while.
//!
//! It looks at what PostgreSQL got last, and fetches the segments behind that, several at a time, over connections that it
//! keeps ([`Feed`]); where Barman is on the other side, over a new one for each. What is being fetched, or will be next, has
//! an empty file in the spool, for which a call of `wal-restore` waits. It never decides anything: what it cannot fetch, the
//! next call asks for itself, and reports.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use barmanfs_pg::SegmentSize;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::sync::lock;
use barmanfs_store::threads;

use super::feed::{Fed, Feed};
use super::fetch::{Fetched, Fetching};
use super::spool::{WalSpool, Wanted};
use crate::error::Error;

/// The most segments that are fetched ahead.
pub(crate) const MOST_JOBS: u8 = 32;

/// The most connections: sshd refuses some of many that come at once, and each of these has a processor over there.
const MOST_CONNECTIONS: u8 = 4;

/// How soon it is noticed that PostgreSQL got another segment.
const NOTICED_WITHIN: Duration = Duration::from_millis(3);

/// How long PostgreSQL may be silent.
const IDLE: Duration = Duration::from_secs(30);

/// The pause after a segment could not be fetched, or is not there yet.
const PAUSE: Duration = Duration::from_secs(5);

/// How often the lock is tried: one who only looks whether it is free holds it for a moment.
const TRIES: u32 = 10;

/// What the threads share.
struct Work<'a> {
    fetching: &'a Fetching,
    spool: &'a WalSpool,
    jobs: u8,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether connections are kept.
    is_fed: AtomicBool,
}

struct State {
    wanted: Option<Wanted>,
    running: BTreeSet<SegmentName>,
    /// What was fetched: once it is taken, it is not fetched again.
    fetched: BTreeSet<SegmentName>,
    /// No new fetch before this moment.
    paused_until: Instant,
    ended: bool,
}

/// Fills the spool until it is not used any more. Returns at once if another process does that.
///
/// # Errors
/// When the spool cannot be used.
pub(crate) fn run(fetching: &Fetching, spool: &WalSpool, jobs: u8) -> Result<(), Error> {
    let unusable = |error: std::io::Error| Error::failed(format!("Cannot use the spool: {error}"));
    let Some(_alone) = lock_of(spool).map_err(unusable)? else {
        return Ok(());
    };
    spool.clear_parts().map_err(unusable)?;
    let work = Work {
        fetching,
        spool,
        jobs: jobs.clamp(1, MOST_JOBS),
        state: Mutex::new(State {
            wanted: None,
            running: BTreeSet::new(),
            fetched: BTreeSet::new(),
            paused_until: Instant::now(),
            ended: false,
        }),
        changed: Condvar::new(),
        is_fed: AtomicBool::new(true),
    };
    std::thread::scope(|scope| {
        let fetch = || work.fetch_until_ended();
        threads::start_up_to(scope, "fetch", work.jobs.min(MOST_CONNECTIONS).into(), || fetch)?;
        work.watch();
        Ok::<_, Error>(())
    })?;
    spool.clear(|_| false).map_err(unusable)
}

fn lock_of(spool: &WalSpool) -> std::io::Result<Option<File>> {
    for _ in 1..TRIES {
        if let Some(held) = spool.lock()? {
            return Ok(Some(held));
        }
        std::thread::sleep(NOTICED_WITHIN);
    }
    spool.lock()
}

impl Work<'_> {
    /// Passes on what PostgreSQL asks for. Returns when it has asked for nothing for a while, or the spool is gone.
    fn watch(&self) {
        let mut last = Instant::now();
        while last.elapsed() < IDLE && self.spool.exists() {
            let wanted = self.spool.wanted();
            if wanted != lock(&self.state).wanted {
                last = Instant::now();
                self.take(wanted);
            }
            std::thread::sleep(NOTICED_WITHIN);
        }
        lock(&self.state).ended = true;
        self.changed.notify_all();
    }

    /// Announces what will be fetched, and removes what PostgreSQL has passed.
    fn take(&self, wanted: Option<Wanted>) {
        let mut state = lock(&self.state);
        let before = std::mem::replace(&mut state.wanted, wanted);
        let is_onward = |before: Wanted| wanted.is_some_and(|wanted| wanted.segment > before.segment);
        let ahead: Vec<SegmentName> = wanted
            .map(|wanted| self.ahead(wanted).collect())
            .unwrap_or_default();
        match before.is_some_and(is_onward) {
            true => state.fetched.retain(|segment| ahead.contains(segment)),
            // A recovery that was started again.
            false => {
                state.fetched = ahead
                    .iter()
                    .copied()
                    .filter(|segment| self.spool.has(*segment))
                    .collect();
            }
        }
        if !state.is_paused() {
            for segment in ahead.iter().filter(|segment| !state.fetched.contains(segment)) {
                self.announce(*segment);
            }
        }
        let is_needed = |segment| ahead.contains(&segment) || state.running.contains(&segment);
        // What is left is removed the next time.
        let _tried = self.spool.clear(is_needed);
        drop(state);
        self.changed.notify_all();
    }

    /// The file that says that a segment comes. Its content, if it has any, is not touched.
    fn announce(&self, segment: SegmentName) {
        let part = self.spool.part(segment);
        // Without it, a call of 'wal-restore' fetches the segment itself.
        let _made = File::options().create(true).append(true).open(part);
    }

    fn ahead(&self, wanted: Wanted) -> impl Iterator<Item = SegmentName> + use<> {
        let next = move |segment: &SegmentName| Some(segment.next(wanted.size));
        std::iter::successors(next(&wanted.segment), next).take(usize::from(self.jobs))
    }

    fn fetch_until_ended(&self) {
        // The login takes longer than a segment, so it does not wait for the first one.
        let mut feed = self.connected();
        while let Some(segment) = self.next() {
            let is_fetched = self.fetch(&mut feed, segment);
            let mut state = lock(&self.state);
            state.running.remove(&segment);
            if is_fetched {
                state.fetched.insert(segment);
            } else {
                state.paused_until = Instant::now() + PAUSE;
                self.take_back(&state);
            }
        }
    }

    /// What is announced and will not come now.
    fn take_back(&self, state: &State) {
        let ahead = state.wanted.map(|wanted| self.ahead(wanted));
        for segment in ahead.into_iter().flatten() {
            if !state.running.contains(&segment) {
                let _gone = fs::remove_file(self.spool.part(segment));
            }
        }
    }

    /// The next segment to fetch, which then counts as running; `None` at the end.
    fn next(&self) -> Option<SegmentName> {
        let mut state = lock(&self.state);
        loop {
            if state.ended {
                return None;
            }
            let wanted = state.wanted.filter(|_| !state.is_paused());
            let is_due =
                |segment: &SegmentName| !state.running.contains(segment) && !state.fetched.contains(segment);
            if let Some(next) = wanted.and_then(|wanted| self.ahead(wanted).find(is_due)) {
                state.running.insert(next);
                return Some(next);
            }
            let waited = self.changed.wait_timeout(state, PAUSE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn connected(&self) -> Option<Feed> {
        if !self.is_fed.load(Ordering::Relaxed) {
            return None;
        }
        match Feed::open(self.fetching) {
            Ok(Some(feed)) => Some(feed),
            Ok(None) => {
                self.is_fed.store(false, Ordering::Relaxed);
                None
            }
            Err(_) => None,
        }
    }

    /// Fetches a segment into the spool.
    fn fetch(&self, feed: &mut Option<Feed>, segment: SegmentName) -> bool {
        self.announce(segment);
        if feed.is_none() {
            *feed = self.connected();
        }
        let part = self.spool.part(segment);
        let is_there = match feed {
            Some(connected) => match connected.fetch(&WalName::Segment(segment), &part) {
                Ok(Fed::File { size_bytes, hash }) if SegmentSize::try_from(size_bytes).is_ok() => {
                    self.spool.add(segment, &hash).is_ok()
                }
                Ok(_) => false,
                Err(_) => {
                    *feed = None;
                    false
                }
            },
            None if self.is_fed.load(Ordering::Relaxed) => false,
            None => self.fetch_alone(segment),
        };
        if !is_there {
            let _gone = fs::remove_file(&part);
        }
        is_there
    }

    /// Over a connection of its own.
    fn fetch_alone(&self, segment: SegmentName) -> bool {
        let part = self.spool.part(segment);
        match self.fetching.run(&WalName::Segment(segment), &part) {
            Ok(Fetched::File(size_bytes)) if SegmentSize::try_from(size_bytes).is_ok() => {
                let hashed = self.spool.hash_of_part(segment);
                hashed.and_then(|hash| self.spool.add(segment, &hash)).is_ok()
            }
            _ => false,
        }
    }
}

impl State {
    fn is_paused(&self) -> bool {
        self.paused_until > Instant::now()
    }
}
