//! Sends a tree to the other host, in several archives at once.
//!
//! Directories come first, for one user only, then files; directories get their attributes when nothing is added to them any
//! more. What makes a data directory of it, its configuration and its links come last, in an archive of their own. A
//! part elsewhere (a tablespace, the WAL) has archives of its own too, because not every tar follows a link.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use barmanfs_fs::entry::Stat;
use barmanfs_store::sync::lock;
use barmanfs_store::threads;

use super::shell::{RemoteShell, word};
use super::stream::{Sending, Stream, not_sent, path_of, unpack};
use crate::error::Error;
use crate::progress::Progress;
use crate::restore::destination::{GLOBAL, HELD, held_name};
use crate::restore::first_error::FirstError;
use crate::restore::part::Part;
use crate::restore::tablespaces::Relocations;
use crate::restore::tree_writer::interrupted;
use crate::restore::view::{SourceFile, ViewTree, Visitor};
use crate::signals::Interruption;
use crate::throttle::Throttle;

/// Files that wait for a stream.
const QUEUE: usize = 64;

/// The mode of directories until they are complete.
const PRIVATE: u32 = 0o700;

/// Sends a tree.
pub(super) struct TreeSender<'a> {
    pub(super) view: &'a ViewTree,
    pub(super) shell: &'a RemoteShell,
    /// Without links.
    pub(super) directory: &'a Path,
    pub(super) relocations: &'a Relocations,
    pub(super) jobs: usize,
    pub(super) throttle: Option<Throttle>,
    pub(super) progress: &'a Progress,
    pub(super) total_bytes: u64,
    pub(super) signals: &'a Interruption,
}

/// What the tree has beside most of its files.
#[derive(Default)]
pub(super) struct Rest {
    /// Each before those in it.
    directories: Vec<(Vec<Vec<u8>>, Stat)>,
    links: Vec<(PathBuf, Stat, Vec<u8>)>,
    /// The files that come last, under the names that they have until then.
    last: Vec<(PathBuf, SourceFile)>,
}

/// The state of all threads.
#[derive(Default)]
struct Shared {
    done: AtomicU64,
    failed: FirstError,
}

/// Whether a file at the top comes last: it is a signal, or configuration.
fn comes_last(names: &[Vec<u8>], name: &[u8]) -> bool {
    names.is_empty() && (name.ends_with(b".conf") || name.ends_with(b".signal"))
}

impl TreeSender<'_> {
    /// Finds what is not sent as most files are.
    pub(super) fn collect(&self) -> Result<Rest, Error> {
        let mut rest = Rest::default();
        self.view.walk(&mut Collector {
            relocations: self.relocations,
            names: Vec::new(),
            rest: &mut rest,
        })?;
        Ok(rest)
    }

    /// Sends everything. No server starts there after that, because two files have other names.
    pub(super) fn send(&self, rest: &Rest) -> Result<u64, Error> {
        let shared = Shared::default();
        for (part, location) in self.relocations.iter() {
            self.send_directories(rest, Some(part), location)?;
            self.send_files(Some(part), location, &shared)?;
            self.send_last(rest, Some(part), location, &shared)?;
        }
        self.send_directories(rest, None, self.directory)?;
        self.send_files(None, self.directory, &shared)?;
        self.send_last(rest, None, self.directory, &shared)?;
        Ok(shared.done.into_inner())
    }

    /// Makes the directory startable, and gives the two directories in which something gets its name last their attributes.
    pub(super) fn complete(&self, rest: &Rest) -> Result<(), Error> {
        let mut stream = Stream::start(self.shell, &complete(self.directory, self.relocations))?;
        let global = rest
            .directories
            .iter()
            .find(|(names, _)| *names == [GLOBAL.to_vec()]);
        let global = global.map(|(_, stat)| ("global", stat));
        for (name, stat) in global.into_iter().chain([(".", &self.view.stat)]) {
            if let Err(error) = stream.directory(Path::new(name), stat) {
                return Err(stream.fail(not_sent(&error)));
            }
        }
        stream.finish()
    }

    fn send_directories(&self, rest: &Rest, base: Option<Part>, directory: &Path) -> Result<(), Error> {
        let mut stream = Stream::start(self.shell, &unpack(directory))?;
        for (names, stat) in &rest.directories {
            let Some(path) = self.below(base, names) else {
                continue;
            };
            let private = Stat {
                mode: PRIVATE,
                uid: 0,
                gid: 0,
                ..*stat
            };
            if !path.as_os_str().is_empty()
                && let Err(error) = stream.directory(&path, &private)
            {
                return Err(stream.fail(not_sent(&error)));
            }
        }
        stream.finish()
    }

    /// The path of a directory below a base, if it is in that.
    fn below(&self, base: Option<Part>, names: &[Vec<u8>]) -> Option<PathBuf> {
        if self.base_of(names) != base {
            return None;
        }
        let skipped = base.map_or(0, Part::depth);
        Some(
            names
                .iter()
                .skip(skipped)
                .map(|name| path_of(&[], name))
                .collect(),
        )
    }

    /// The part elsewhere that a directory is in.
    fn base_of(&self, names: &[Vec<u8>]) -> Option<Part> {
        Part::of(names).filter(|part| self.relocations.of(*part).is_some())
    }

    fn send_files(&self, base: Option<Part>, directory: &Path, shared: &Shared) -> Result<(), Error> {
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel(QUEUE);
            let receiver = Arc::new(Mutex::new(receiver));
            threads::start_up_to(scope, "send", self.jobs, || {
                let receiver = Arc::clone(&receiver);
                move || self.work(&receiver, directory, shared)
            })?;
            drop(receiver);
            let mut passer = Passer {
                sender: self,
                base,
                queue: sender,
                shared,
                names: Vec::new(),
            };
            match self.view.walk(&mut passer) {
                // That thread's error is the reason.
                Err(_) if shared.failed.happened() => {}
                Err(error) => shared.failed.set(error),
                Ok(()) => {}
            }
            Ok::<_, Error>(())
        })?;
        match shared.failed.take() {
            Some(error) => Err(error),
            None => self.refuse_stopped(shared),
        }
    }

    fn refuse_stopped(&self, shared: &Shared) -> Result<(), Error> {
        match self.is_stopped(shared) {
            true => Err(interrupted()),
            false => Ok(()),
        }
    }

    fn is_stopped(&self, shared: &Shared) -> bool {
        self.signals.requested() || shared.failed.happened()
    }

    fn work(&self, receiver: &Mutex<Receiver<(PathBuf, SourceFile)>>, directory: &Path, shared: &Shared) {
        let done = |bytes| self.advance(shared, bytes);
        let stopped = || self.is_stopped(shared);
        let sending = Sending {
            throttle: self.throttle.as_ref(),
            done: &done,
            stopped: &stopped,
        };
        let mut stream: Option<Stream> = None;
        loop {
            let next = lock(receiver).recv();
            let Ok((path, file)) = next else { break };
            // After an error the queue is emptied, so that the walk can end.
            if stopped() {
                continue;
            }
            let mut open = match stream.take() {
                Some(open) => open,
                None => match Stream::start(self.shell, &unpack(directory)) {
                    Ok(open) => open,
                    Err(error) => {
                        shared.failed.set(error);
                        continue;
                    }
                },
            };
            match open.file(&path, &file, &sending) {
                Ok(()) => stream = Some(open),
                Err(error) => shared.failed.set(open.fail(error)),
            }
        }
        let ended = match stream {
            Some(stream) if stopped() => {
                stream.fail(interrupted());
                Ok(())
            }
            Some(stream) => stream.finish(),
            None => Ok(()),
        };
        if let Err(error) = ended {
            shared.failed.set(error);
        }
    }

    fn advance(&self, shared: &Shared, bytes: u64) {
        let done = shared.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.progress
            .set(done.min(self.total_bytes), Some(self.total_bytes));
    }

    fn send_last(
        &self,
        rest: &Rest,
        base: Option<Part>,
        directory: &Path,
        shared: &Shared,
    ) -> Result<(), Error> {
        let done = |bytes| self.advance(shared, bytes);
        let stopped = || self.is_stopped(shared);
        let sending = Sending {
            throttle: self.throttle.as_ref(),
            done: &done,
            stopped: &stopped,
        };
        let mut stream = Stream::start(self.shell, &unpack(directory))?;
        match self.add_last(&mut stream, rest, base, &sending) {
            Ok(()) => stream.finish(),
            Err(error) => Err(stream.fail(error)),
        }
    }

    fn add_last(
        &self,
        stream: &mut Stream,
        rest: &Rest,
        base: Option<Part>,
        sending: &Sending<'_>,
    ) -> Result<(), Error> {
        let failed = |error: std::io::Error| not_sent(&error);
        if base.is_none() {
            for (path, file) in &rest.last {
                stream.file(path, file, sending)?;
            }
            for (path, stat, target) in &rest.links {
                stream.link(path, stat, target).map_err(failed)?;
            }
        }
        // The deepest first: each is complete then.
        for (names, stat) in rest.directories.iter().rev() {
            // These two get their attributes at the very end.
            if base.is_none() && *names == [GLOBAL.to_vec()] {
                continue;
            }
            match self.below(base, names) {
                Some(path) if path.as_os_str().is_empty() => {
                    stream.directory(Path::new("."), stat).map_err(failed)?;
                }
                Some(path) => stream.directory(&path, stat).map_err(failed)?,
                None => {}
            }
        }
        Ok(())
    }
}

/// The script that makes the directory startable, when everything is there. It reads an archive at its end. `sync` reports
/// no error of the disk, `sync -f` does, where there is one.
fn complete(directory: &Path, relocations: &Relocations) -> String {
    let places: String = relocations
        .iter()
        .map(|(_, location)| format!(" {}", word(&location.to_string_lossy())))
        .collect();
    let directory = word(&directory.to_string_lossy());
    let names = HELD.map(|(place, name, held)| {
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let place = if place.is_empty() {
            ".".to_owned()
        } else {
            text(place)
        };
        format!("mv -f {place}/{} {place}/{}", text(held), text(name))
    });
    let [version, control] = names;
    let marker = crate::restore::marker::NAME;
    format!(
        "umask 077; set -e; cd {directory}; test -f {marker}; \
         if sync -f . 2>/dev/null; then all() {{ sync -f .{places}; }}; else all() {{ sync; }}; fi; \
         sync; all; {version}; all; rm {marker}; all; {control}; tar -x -p -f -; all"
    )
}

/// Finds what is not sent as most files are.
struct Collector<'a> {
    relocations: &'a Relocations,
    names: Vec<Vec<u8>>,
    rest: &'a mut Rest,
}

impl Visitor for Collector<'_> {
    fn enter(&mut self, name: &[u8], stat: &Stat) -> Result<(), Error> {
        if let Some((_, location)) = self.relocations.of_child(&self.names, name) {
            let target = location.as_os_str().as_encoded_bytes().to_vec();
            self.rest.links.push((path_of(&self.names, name), *stat, target));
        }
        self.names.push(name.to_vec());
        self.rest.directories.push((self.names.clone(), *stat));
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Error> {
        self.names.pop();
        Ok(())
    }

    fn file(&mut self, file: SourceFile) -> Result<(), Error> {
        match held_name(&self.names, &file.name) {
            Some(held) => self.rest.last.push((path_of(&self.names, held), file)),
            None if comes_last(&self.names, &file.name) => {
                self.rest.last.push((path_of(&self.names, &file.name), file));
            }
            None => {}
        }
        Ok(())
    }

    fn link(&mut self, name: &[u8], stat: &Stat, target: &[u8]) -> Result<(), Error> {
        self.rest
            .links
            .push((path_of(&self.names, name), *stat, target.to_vec()));
        Ok(())
    }
}

/// Passes the files of a base on to the streams.
struct Passer<'a> {
    sender: &'a TreeSender<'a>,
    base: Option<Part>,
    queue: SyncSender<(PathBuf, SourceFile)>,
    shared: &'a Shared,
    names: Vec<Vec<u8>>,
}

impl Visitor for Passer<'_> {
    fn enter(&mut self, name: &[u8], _: &Stat) -> Result<(), Error> {
        self.sender.refuse_stopped(self.shared)?;
        self.names.push(name.to_vec());
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Error> {
        self.names.pop();
        Ok(())
    }

    fn file(&mut self, file: SourceFile) -> Result<(), Error> {
        self.sender.refuse_stopped(self.shared)?;
        if held_name(&self.names, &file.name).is_some() || comes_last(&self.names, &file.name) {
            return Ok(());
        }
        let Some(below) = self.sender.below(self.base, &self.names) else {
            return Ok(());
        };
        let path = below.join(path_of(&[], &file.name));
        let sent = self.queue.send((path, file));
        // Threads end only when this end is closed.
        sent.map_err(|_| Error::failed("The threads that send have ended"))
    }

    fn link(&mut self, _: &[u8], _: &Stat, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}
