//! Writes a tree into a directory: one thread walks it and makes the directories, several write files. The queue between
//! them is bounded, and so are the files that are open at a time.

use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use barmanfs_fs::entry::Stat;
use barmanfs_store::sync::lock;
use barmanfs_store::threads;
use rustix::fs::FileType;

use super::destination::{Opened, WrittenDirectory, held_name};
use super::file_writer::{FileTask, Tools};
use super::first_error::FirstError;
use super::like::Like;
use super::own_files::OwnFiles;
use super::part::Part;
use super::place::Place;
use super::view::{SourceFile, ViewTree, Visitor};
use crate::error::Error;
use crate::progress::Progress;
use crate::signals::Interruption;
use crate::throttle::Throttle;

/// Parts that wait for a thread. Each has a descriptor of its directory.
const QUEUE: usize = 64;

/// Writes a tree.
pub(super) struct TreeWriter<'a> {
    pub(super) view: &'a ViewTree,
    pub(super) opened: &'a Opened,
    /// What is not written.
    pub(super) own: Option<&'a OwnFiles>,
    /// A tree whose equal files get a second name here.
    pub(super) like: Option<&'a Like>,
    pub(super) jobs: usize,
    pub(super) throttle: Option<Throttle>,
    pub(super) progress: &'a Progress,
    pub(super) total_bytes: u64,
    pub(super) signals: &'a Interruption,
    /// Nothing is written, only compared.
    pub(super) is_dry_run: bool,
}

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) bytes: u64,
    /// The directories, each before those in it.
    pub(super) directories: Vec<WrittenDirectory>,
}

type Job = (Arc<FileTask>, u64);

/// The state of all threads.
#[derive(Default)]
struct Shared {
    done: AtomicU64,
    written: AtomicU64,
    failed: FirstError,
}

impl TreeWriter<'_> {
    /// Writes the tree, except for the attributes of its directories.
    pub(super) fn write(&self) -> Result<Written, Error> {
        let shared = Shared::default();
        let directories = thread::scope(|scope| {
            let (sender, receiver) = sync_channel(QUEUE);
            let receiver = Arc::new(Mutex::new(receiver));
            threads::start_up_to(scope, "restore", self.jobs, || {
                let (receiver, shared) = (Arc::clone(&receiver), &shared);
                move || self.work(&receiver, shared)
            })?;
            drop(receiver);
            let mut walker = Walker::new(self, sender, &shared);
            match self.view.walk(&mut walker) {
                // That thread's error is the reason.
                Err(_) if shared.failed.happened() => {}
                Err(error) => shared.failed.set(error),
                Ok(()) => {}
            }
            Ok::<_, Error>(walker.directories)
        })?;
        if let Some(error) = shared.failed.take() {
            return Err(error);
        }
        if self.signals.requested() {
            return Err(interrupted());
        }
        Ok(Written {
            bytes: shared.written.into_inner(),
            directories,
        })
    }

    fn work(&self, receiver: &Mutex<Receiver<Job>>, shared: &Shared) {
        let done = |done: u64, written: u64| {
            shared.written.fetch_add(written, Ordering::Relaxed);
            let done = shared.done.fetch_add(done, Ordering::Relaxed) + done;
            self.progress.set(done, Some(self.total_bytes));
        };
        let stopped = || self.signals.requested() || shared.failed.happened();
        let tools = Tools {
            throttle: self.throttle.as_ref(),
            done: &done,
            stopped: &stopped,
        };
        loop {
            let next = lock(receiver).recv();
            let Ok((task, part)) = next else { return };
            // After an error the queue is emptied, so that the walk can end.
            if !stopped()
                && let Err(error) = task.write(part, &tools)
            {
                shared.failed.set(error);
            }
        }
    }
}

/// The error after a signal, or behind that of another thread.
pub(super) fn interrupted() -> Error {
    Error::failed("Interrupted")
}

/// Makes directories and links, and passes files on.
struct Walker<'a> {
    writer: &'a TreeWriter<'a>,
    sender: SyncSender<Job>,
    shared: &'a Shared,
    /// The names of the present directory.
    names: Vec<Vec<u8>>,
    /// The present directory and those above it; `None` in a dry run where there is none.
    places: Vec<Option<Place>>,
    directories: Vec<WrittenDirectory>,
}

impl<'a> Walker<'a> {
    fn new(writer: &'a TreeWriter<'a>, sender: SyncSender<Job>, shared: &'a Shared) -> Self {
        let root = WrittenDirectory {
            outside: None,
            names: Vec::new(),
            stat: writer.view.stat,
        };
        Self {
            writer,
            sender,
            shared,
            names: Vec::new(),
            places: vec![Some(writer.opened.root.clone())],
            directories: vec![root],
        }
    }

    fn place(&self) -> Option<Place> {
        self.places.last().cloned().flatten()
    }

    fn refuse_stopped(&self) -> Result<(), Error> {
        match self.writer.signals.requested() || self.shared.failed.happened() {
            true => Err(interrupted()),
            false => Ok(()),
        }
    }

    /// Whether a standby has something of its own there.
    fn is_own(&self, name: &[u8], is_directory: bool) -> bool {
        let Some(own) = self.writer.own else { return false };
        let path = [self.names.clone(), vec![name.to_vec()]].concat().join(&b'/');
        own.covers(&path) || !is_directory && own.is_above_some(&path)
    }

    /// The directory `name` of the present one: made, or that of a part elsewhere, to which a link leads.
    fn directory(&self, place: &Place, name: &[u8]) -> Result<Option<Place>, Error> {
        let Opened { relocations, .. } = self.writer.opened;
        let Some((part, location)) = relocations.of_child(&self.names, name) else {
            return match self.writer.is_dry_run {
                false => place.make(name).map(Some),
                true => match place.find(name)? {
                    Some(found) if found.kind == FileType::Directory => place.enter(name).map(Some),
                    _ => Ok(None),
                },
            };
        };
        let outside = self.writer.opened.outside(part).cloned();
        if !self.writer.is_dry_run && place.find(name)?.is_none() {
            place.make_link(name, location.as_os_str().as_bytes())?;
        }
        Ok(outside)
    }

    /// The path of the present directory, as its attributes are set later.
    fn remember(&mut self, stat: &Stat) {
        let part = Part::of(&self.names).filter(|part| self.writer.opened.outside(*part).is_some());
        let skipped = part.map_or(0, Part::depth);
        self.directories.push(WrittenDirectory {
            outside: part,
            names: self.names.iter().skip(skipped).cloned().collect(),
            stat: *stat,
        });
    }
}

impl Visitor for Walker<'_> {
    fn enter(&mut self, name: &[u8], stat: &Stat) -> Result<(), Error> {
        self.refuse_stopped()?;
        let place = match self.place() {
            Some(place) if !self.is_own(name, true) => self.directory(&place, name)?,
            _ => None,
        };
        let is_written = place.is_some();
        self.names.push(name.to_vec());
        self.places.push(place);
        if is_written {
            self.remember(stat);
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Error> {
        self.names.pop();
        self.places.pop();
        Ok(())
    }

    fn file(&mut self, file: SourceFile) -> Result<(), Error> {
        self.refuse_stopped()?;
        if self.is_own(&file.name, false) {
            return Ok(());
        }
        let Some(place) = self.place() else {
            // A dry run: all of it would be written.
            let bytes = file.stat.allocated_bytes;
            self.shared.written.fetch_add(bytes, Ordering::Relaxed);
            return Ok(());
        };
        let name = match held_name(&self.names, &file.name) {
            // In a dry run, the file that is there counts.
            Some(held) if !self.writer.is_dry_run => held.to_vec(),
            _ => file.name.clone(),
        };
        if let Some(like) = self.writer.like
            && name == file.name
            && like.link(&file, &place)?
        {
            let bytes = file.stat.allocated_bytes;
            let done = self.shared.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            self.writer.progress.set(done, Some(self.writer.total_bytes));
            return Ok(());
        }
        let task = Arc::new(FileTask::new(file, place, name, self.writer.is_dry_run));
        for part in 0..task.parts() {
            // Threads end only when this end is closed.
            self.sender
                .send((Arc::clone(&task), part))
                .map_err(|_| Error::failed("The threads that write have ended"))?;
        }
        Ok(())
    }

    fn link(&mut self, name: &[u8], stat: &Stat, target: &[u8]) -> Result<(), Error> {
        match self.place() {
            Some(place) if !self.writer.is_dry_run && !self.is_own(name, false) => {
                if place.find(name)?.is_none() {
                    place.make_link(name, target)?;
                }
                place.dress_link(name, stat)
            }
            _ => Ok(()),
        }
    }
}
