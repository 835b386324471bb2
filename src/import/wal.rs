//! Archives the WAL of a source, with the checks of any WAL, by several threads: each file is on disk before the next of
//! its thread begins.

use std::io::{self, Read, Seek};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use barmanfs_catalog::{Error as CatalogError, Repository, ServerName, WalOutcome};
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::sync::lock;
use barmanfs_store::threads;

use super::{ForeignWal, LeftOut, Source};
use crate::arrival;
use crate::error::Error;
use crate::incoming::{self, Judged};
use crate::progress::{Counted, Progress};
use crate::signals::Interruption;
use crate::wal_transfer::LARGEST_BYTES;

/// Threads that archive. Each waits for the disk three times for each file.
const ARCHIVERS: usize = 4;

/// What brings the files, in their records.
const ORIGIN: &str = "import";

/// As many files that cannot be taken are named; where there are more, their names are not what matters.
const NAMED_MAX: usize = 1000;

/// Which WAL is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Extent {
    /// Every file; those that are here are compared
    All,
    /// What the backups here need and all that follows, unless it is here
    Needed,
    /// None
    None,
}

/// How much was taken.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(crate) struct Totals {
    /// Files that are archived now.
    pub(crate) archived: u64,
    /// Files that were archived before.
    pub(crate) present: u64,
    /// Files that were not asked for.
    pub(crate) passed_over: u64,
    /// Files that cannot be taken, beyond those that are named.
    pub(crate) left_out_unnamed: u64,
    /// Bytes of the archived ones.
    pub(crate) archived_bytes: u64,
    /// Bytes that they added to the repository.
    pub(crate) new_stored_bytes: u64,
}

/// What the threads have in common.
struct Shared<'a> {
    repository: &'a Repository,
    server: &'a ServerName,
    signals: &'a Interruption,
    progress: Progress,
    sums: Mutex<Sums>,
}

#[derive(Default)]
struct Sums {
    totals: Totals,
    left_out: Vec<LeftOut>,
    /// Why nothing more can be archived.
    failed: Option<Error>,
}

impl Sums {
    fn leave_out(&mut self, left_out: LeftOut) {
        if self.left_out.len() < NAMED_MAX {
            self.left_out.push(left_out);
        } else {
            self.totals.left_out_unnamed += 1;
        }
    }
}

/// Archives the WAL of `source`. Returns what was taken, and what was left out.
///
/// # Errors
/// When the source cannot be listed, the repository fails, or the user interrupts.
pub(crate) fn take(
    source: &mut dyn Source,
    (repository, server): (&Repository, &ServerName),
    extent: Extent,
    signals: &Interruption,
    quiet: bool,
) -> Result<(Totals, Vec<LeftOut>), Error> {
    if extent == Extent::None {
        return Ok((Totals::default(), Vec::new()));
    }
    let needed = match extent {
        Extent::Needed => Some(Needed::of(repository, server)?),
        Extent::All | Extent::None => None,
    };
    let shared = Shared {
        repository,
        server,
        signals,
        progress: Progress::start("Import of WAL", Counted::Things, quiet),
        sums: Mutex::default(),
    };
    let files = source.wal(repository.path())?;
    let (sender, receiver) = sync_channel(ARCHIVERS);
    let receiver = Mutex::new(receiver);
    std::thread::scope(|scope| {
        let started = threads::start_up_to(scope, "archive", ARCHIVERS, || || shared.work(&receiver));
        if started.is_ok() {
            shared.hand_out(files, &sender, needed.as_ref());
        }
        drop(sender);
        started.map(drop)
    })?;
    let sums = shared
        .sums
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    match sums.failed {
        Some(error) => Err(error.context("Import of WAL")),
        None => Ok((sums.totals, sums.left_out)),
    }
}

/// The WAL that the backups here need, with all that follows, and that is not here.
pub(crate) struct Needed<'a> {
    repository: &'a Repository,
    server: &'a ServerName,
    first: Option<String>,
}

impl<'a> Needed<'a> {
    /// # Errors
    /// When the catalog cannot be read.
    pub(crate) fn of(repository: &'a Repository, server: &'a ServerName) -> Result<Self, Error> {
        Ok(Self {
            repository,
            server,
            first: first_needed(repository, server)?,
        })
    }

    /// # Errors
    /// When the catalog cannot be read.
    pub(crate) fn has(&self, name: &WalName) -> Result<bool, Error> {
        let before = name.segment().zip(self.first.as_deref());
        let is_before = before.is_some_and(|(segment, first)| position(&segment).as_str() < first);
        let is_here = || self.repository.wal(self.server).find(name);
        Ok(!is_before && is_here()?.is_none())
    }
}

/// The position, as the last sixteen digits of a segment's name, from which on the backups here need WAL.
fn first_needed(repository: &Repository, server: &ServerName) -> Result<Option<String>, Error> {
    let backups = repository.backups(server)?;
    let starts = backups.iter().filter_map(|backup| {
        let (timeline, start) = (backup.timeline?, backup.start_lsn?);
        let segment = SegmentName::from_lsn(timeline, start, backup.segment_size);
        Some(position(&segment))
    });
    Ok(starts.min())
}

/// The digits of a segment's name behind its timeline.
fn position(segment: &SegmentName) -> String {
    segment.to_string().split_off(8)
}

impl Shared<'_> {
    /// Hands out the files that are wanted, until nothing more can be archived.
    fn hand_out(
        &self,
        files: Box<dyn Iterator<Item = Result<ForeignWal, LeftOut>> + '_>,
        sender: &SyncSender<ForeignWal>,
        needed: Option<&Needed<'_>>,
    ) {
        for file in files {
            if self.signals.requested() {
                self.fail(Error::failed("Interrupted"));
            }
            if lock(&self.sums).failed.is_some() {
                return;
            }
            let file = match file {
                Ok(file) => file,
                Err(left_out) => {
                    lock(&self.sums).leave_out(left_out);
                    continue;
                }
            };
            match needed.map_or(Ok(true), |needed| needed.has(&file.name)) {
                Ok(true) => {
                    if sender.send(file).is_err() {
                        return;
                    }
                }
                Ok(false) => lock(&self.sums).totals.passed_over += 1,
                Err(error) => return self.fail(error),
            }
        }
    }

    fn work(&self, receiver: &Mutex<Receiver<ForeignWal>>) {
        loop {
            let next = lock(receiver).recv();
            let Ok(file) = next else { return };
            // The others end as well, but not before the one who hands out.
            if lock(&self.sums).failed.is_some() {
                continue;
            }
            let (what, name, arriving) = (file.place.clone(), file.name, file.arriving.clone());
            let is_recent = || arriving.as_deref().is_some_and(incoming::is_recent);
            match self.archive(file) {
                Ok(outcome) => self.count(&what, &name, &outcome),
                Err(Trouble::Waits(why)) => lock(&self.sums).leave_out(waits(what, &why)),
                Err(Trouble::Source(why)) if is_recent() => lock(&self.sums).leave_out(waits(what, &why)),
                Err(Trouble::Source(why)) => lock(&self.sums).leave_out(LeftOut::problem(what, why)),
                Err(Trouble::Here(error)) => self.fail(error.context(what)),
            }
        }
    }

    fn archive(&self, file: ForeignWal) -> Result<WalOutcome, Trouble> {
        let mut content = (file.open)().map_err(Trouble::read)?;
        let here = |error: io::Error| Trouble::Here(Error::failed(format!("Cannot write: {error}")));
        let mut plain = tempfile::tempfile_in(self.repository.path()).map_err(here)?;
        let mut buffer = vec![0; 256 << 10];
        let mut size_bytes = 0_u64;
        loop {
            let length = match content.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(Trouble::read)?,
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            size_bytes += length as u64;
            if size_bytes > LARGEST_BYTES {
                return Err(Trouble::Source("it holds more than any WAL file".to_owned()));
            }
            io::Write::write_all(&mut plain, bytes).map_err(here)?;
        }
        plain.rewind().map_err(here)?;
        if let Some(path) = &file.arriving {
            match incoming::judged(&file.name, &plain, path).map_err(here)? {
                Judged::Whole => {}
                Judged::Uncertain(_) => {
                    return Err(Trouble::Waits(
                        "it is not certain yet that it is whole".to_owned(),
                    ));
                }
                Judged::Wrong(why) => return Err(Trouble::Source(why)),
            }
        }
        let writer = self.repository.writer(ORIGIN).map_err(Trouble::from)?;
        Ok(writer.archive_wal(self.server, &file.name, &mut plain, size_bytes, ORIGIN)?)
    }

    fn count(&self, what: &str, name: &WalName, outcome: &WalOutcome) {
        let mut sums = lock(&self.sums);
        match outcome {
            WalOutcome::Stored(file) => {
                sums.totals.archived += 1;
                sums.totals.archived_bytes += file.size_bytes;
                sums.totals.new_stored_bytes += file.new_stored_bytes;
            }
            WalOutcome::AlreadyThere(_) => sums.totals.present += 1,
            WalOutcome::Conflict(_) | WalOutcome::Refused(_) => {
                let why = arrival::refusal(self.server, name, outcome);
                let why = why.map_or_else(String::new, |error| error.to_string());
                sums.leave_out(LeftOut::problem(what, why));
            }
        }
        let done = sums.totals.archived + sums.totals.present;
        self.progress.set(done, None);
    }

    fn fail(&self, error: Error) {
        lock(&self.sums).failed.get_or_insert(error);
    }
}

/// Leaves out what may still be copied.
fn waits(what: String, why: &str) -> LeftOut {
    LeftOut::expected(what, format!("it may still be copied, repeat the import: {why}"))
}

/// Why a file is not archived.
enum Trouble {
    /// It may still be copied.
    Waits(String),
    /// It is the file.
    Source(String),
    /// It is the repository.
    Here(Error),
}

impl Trouble {
    #[expect(clippy::needless_pass_by_value, reason = "for map_err")]
    fn read(error: io::Error) -> Self {
        Self::Source(format!("it cannot be read: {error}"))
    }
}

impl From<CatalogError> for Trouble {
    fn from(error: CatalogError) -> Self {
        match &error {
            CatalogError::Wal { .. }
            | CatalogError::BadWalFile { .. }
            | CatalogError::WalSize { .. }
            | CatalogError::OtherSystem { .. } => Self::Source(error.to_string()),
            _ => Self::Here(error.into()),
        }
    }
}
