//! Detects whether any process opens, reads, writes, makes or removes anything in directories.

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// More lines say nothing new.
const MAX_LINES: usize = 40;

/// Watches directory trees with inotify. It cannot see only `stat`, and connections to a socket. Closing is left out:
/// opening comes before it, and the end of a file that was opened before the watch can come late. A process that is
/// just being started has a copy of every descriptor until it executes its program.
#[derive(Debug)]
pub(crate) struct Watcher {
    events: OwnedFd,
    places: HashMap<i32, PathBuf>,
}

impl Watcher {
    /// Watches these directories and all directories below them as they are now. Processes that work there must have
    /// ended: the test's own accesses count as well.
    #[track_caller]
    pub(crate) fn on(trees: &[&Path]) -> Self {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("inotify");
        let mut watcher = Self {
            events,
            places: HashMap::new(),
        };
        for tree in trees {
            watcher.add(tree);
        }
        // Drops the accesses by the search for directories.
        watcher.accesses();
        watcher
    }

    fn add(&mut self, directory: &Path) {
        let entries = fs::read_dir(directory)
            .unwrap_or_else(|error| panic!("Cannot read {}: {error}", directory.display()));
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add(&entry.path());
            }
        }
        let seen = WatchFlags::ALL_EVENTS - WatchFlags::CLOSE_NOWRITE - WatchFlags::CLOSE_WRITE;
        let watch = inotify::add_watch(&self.events, directory, seen)
            .unwrap_or_else(|error| panic!("Cannot watch {}: {error}", directory.display()));
        self.places.insert(watch, directory.to_owned());
    }

    /// All accesses since the last call, each once, in order.
    pub(crate) fn accesses(&self) -> Vec<String> {
        let mut buffer = [MaybeUninit::uninit(); 1 << 16];
        let mut reader = Reader::new(&self.events, &mut buffer);
        let mut seen = Vec::new();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return seen,
                Err(error) => panic!("Cannot read what inotify has seen: {error}"),
            };
            let place = self.places.get(&event.wd()).cloned().unwrap_or_default();
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
            let path = place.join(name.unwrap_or_default());
            let line = format!("{:?} {}", event.events() - ReadFlags::ISDIR, path.display());
            if seen.len() < MAX_LINES && !seen.contains(&line) {
                seen.push(line);
            }
        }
    }

    /// There was no access since the last call.
    #[track_caller]
    pub(crate) fn assert_untouched(&self, by: &str) {
        let accesses = self.accesses();
        assert!(accesses.is_empty(), "{by}:\n{}", accesses.join("\n"));
    }
}
