//! The threads that read a server's files: one walks and hands out files, the others read them.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use barmanfs_store::threads;
use barmanfs_store::{Attributes, TreeWriter};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::changes::Base;
use super::choice::{Job, Target, Walk};
use super::reader::Reader;
use crate::backup::incremental::NoIncrement;
use crate::backup::pages::{Findings, Rules};
use crate::error::Error;
use crate::progress::Progress;
use crate::signals::Interruption;
use crate::throttle::{Throttle, take_or_stop};

/// Files that wait for a thread.
const WAITING_MAX: usize = 64;

/// Most threads that read, unless the configuration says more: each has a buffer, and disks answer no faster with more.
const READERS_MAX: usize = 16;

/// What all threads share.
pub(super) struct Readers<'a> {
    pub(super) tree: &'a TreeWriter,
    pub(super) rules: Rules,
    /// What is not read; `None` to read everything.
    pub(super) base: Option<&'a Base>,
    pub(super) signals: &'a Interruption,
    pub(super) throttle: Option<&'a Throttle>,
    pub(super) progress: &'a Progress,
    pub(super) total_bytes: Option<u64>,
    /// How many threads read, if somebody wants to decide that.
    pub(super) count: Option<usize>,
}

/// How far they are.
#[derive(Debug, Default)]
pub(super) struct State {
    read_bytes: AtomicU64,
    is_over: AtomicBool,
}

impl Readers<'_> {
    /// Reads all files of `walk`, and calls `look` again and again meanwhile. Returns how many bytes were read, and what was found
    /// in the pages.
    ///
    /// # Errors
    /// The first of any thread.
    pub(super) fn run(
        &self,
        walk: &Walk,
        (every, mut look): (Duration, impl FnMut() -> Result<(), Error>),
    ) -> Result<(u64, Findings), NoIncrement> {
        let state = State::default();
        let mut outcome = Ok(Findings::default());
        thread::scope(|scope| {
            let (jobs, waiting) = bounded(WAITING_MAX);
            let (ended, ends) = bounded(1);
            let state = &state;
            let started = threads::start_up_to(scope, "read", self.count(), || {
                let (waiting, ended) = (waiting.clone(), ended.clone());
                move || ended.send(self.read(&waiting, state))
            });
            drop(waiting);
            let walk = move || ended.send(self.walk(walk, jobs, state));
            if let Err(refused) = started.and_then(|_| threads::start_in(scope, "walk", walk)) {
                state.add(&mut outcome, Err(Error::from(refused).into()));
            }
            loop {
                let end = match ends.recv_timeout(every) {
                    Ok(end) => end,
                    Err(RecvTimeoutError::Disconnected) => break,
                    Err(RecvTimeoutError::Timeout) => match look() {
                        Ok(()) => continue,
                        Err(error) => Err(error.into()),
                    },
                };
                state.add(&mut outcome, end);
            }
        });
        Ok((state.read_bytes.into_inner(), outcome?))
    }

    fn count(&self) -> usize {
        let cores = || thread::available_parallelism().map_or(1, NonZero::get);
        self.count.unwrap_or_else(|| cores().min(READERS_MAX)).max(1)
    }

    fn walk(&self, walk: &Walk, jobs: Sender<Job>, state: &State) -> Result<Findings, NoIncrement> {
        let mut given = Given {
            readers: self,
            jobs,
            state,
        };
        walk.run(&mut given)?;
        Ok(Findings::default())
    }

    fn read(&self, jobs: &Receiver<Job>, state: &State) -> Result<Findings, NoIncrement> {
        let mut reader = Reader::new(self, state);
        for job in jobs {
            reader.file(&job)?;
        }
        Ok(reader.findings)
    }

    /// # Errors
    /// When a signal came, or another thread has failed.
    pub(super) fn go_on(&self, state: &State) -> Result<(), Error> {
        match self.signals.requested() || state.is_over.load(Ordering::Relaxed) {
            true => Err(Error::failed("Interrupted")),
            false => Ok(()),
        }
    }

    /// Counts and shows what was read, and waits if that was too fast.
    pub(super) fn was_read(&self, state: &State, bytes: u64) {
        let done = state.read_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.progress
            .set(done, self.total_bytes.map(|total| total.max(done)));
        if let Some(throttle) = self.throttle {
            take_or_stop(throttle, bytes, self.signals);
        }
    }
}

impl State {
    /// Keeps the first error, and ends the other threads.
    fn add(&self, outcome: &mut Result<Findings, NoIncrement>, end: Result<Findings, NoIncrement>) {
        match (outcome.as_mut(), end) {
            (Ok(all), Ok(found)) => all.add(found),
            (Ok(_), Err(error)) => {
                self.is_over.store(true, Ordering::Relaxed);
                *outcome = Err(error);
            }
            (Err(_), _) => {}
        }
    }
}

/// Hands files to the threads that read.
struct Given<'g, 'a> {
    readers: &'g Readers<'a>,
    jobs: Sender<Job>,
    state: &'g State,
}

impl Target for Given<'_, '_> {
    fn directory(&mut self, path: &[u8], attributes: Attributes) -> Result<(), Error> {
        self.readers.go_on(self.state)?;
        Ok(self.readers.tree.directory(path, attributes)?)
    }

    fn file(&mut self, job: Job) -> Result<(), Error> {
        self.readers.go_on(self.state)?;
        // Nobody takes it when all have failed.
        self.jobs
            .send(job)
            .map_err(|_| Error::failed("Nobody reads the files any more"))
    }
}
