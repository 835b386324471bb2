//! Restores: the tree of a view, written to a directory without a mount.
//!
//! - [`view`] opens the tree in this process and walks it. It decides nothing: what a file holds is decided by the views
//!   alone, so a restored tree is the one that `cp -a` would copy from a mount.
//! - [`destination`] decides whether the directory may be written to, and marks it. [`space`] checks that there is room.
//! - [`tree_writer`] and [`file_writer`] write, in several threads; [`prune`] removes what does not belong to the tree.
//! - [`rates`] keeps how fast that was, for estimates. [`watch`] finds out how far the recovery is that follows, and
//!   [`replay_progress`] shows it.
//! - [`configuration`] writes the configuration files that the server kept outside its data directory.
//! - [`catch_up`] looks at the directory of a standby that is caught up: [`own_files`] are its files that stay, [`previous`]
//!   is what it was before.
//! - [`remote`] does all this on another host, over ssh; [`agent`] where barmanfs is there. [`source`] is where content comes from.
//! - [`same_host`] knows whether a standby would be on the host of its primary.
//! - [`settings`] reports what a person should look at before the server is started.
//!
//! Invariants:
//! - PostgreSQL does not start in the directory before all of it is durable: `global/pg_control` gets its name last, and a
//!   marker is there from the first byte until just before that ([`destination`]).
//! - A directory with the marker holds nothing but an incomplete restore. The same command continues it.
//! - No symbolic link in the directory is followed, except those to the places of tablespaces that were asked for: every
//!   entry is reached through the descriptor of its directory ([`place`]).

pub(crate) mod agent;
pub(crate) mod catch_up;
pub(crate) mod cloned_disks;
pub(crate) mod configuration;
pub(crate) mod destination;
mod file_writer;
mod first_error;
mod like;
mod marker;
pub(crate) mod own_files;
pub(crate) mod part;
mod pattern;
mod place;
pub(crate) mod previous;
mod prune;
pub(crate) mod rates;
pub(crate) mod remote;
pub(crate) mod replay_progress;
pub(crate) mod same_host;
pub(crate) mod settings;
mod source;
mod space;
pub(crate) mod tablespaces;
mod tree_writer;
mod view;
pub(crate) mod watch;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use barmanfs_catalog::{ReadGuard, Repository};

use crate::error::Error;
use crate::progress::{Counted, Progress};
use crate::signals::Interruption;
use crate::throttle::Throttle;
use configuration::ConfigurationTarget;
use destination::{Destination, Opened};
pub(crate) use destination::{State, resolved};
pub(crate) use like::Like;
use own_files::OwnFiles;
pub(crate) use pattern::Pattern;
use remote::RemotePrepared;
pub(crate) use source::ContentReader;
pub(crate) use tablespaces::{Layout, Relocation, Relocations};
use tree_writer::{TreeWriter, Written};
pub(crate) use view::{SourceFile, ViewTree, Visitor};

/// The file in each restored directory that says where it comes from.
pub(crate) const DESCRIPTION: &str = ".barmanfs-restore.json";

/// How the tree is written.
#[derive(Debug)]
pub(crate) struct WriteOptions {
    /// Number of threads that write.
    pub(crate) jobs: usize,
    /// Maximum rate in bytes per second.
    pub(crate) bandwidth_limit: Option<u64>,
    /// Whether the directory may hold an older copy, of which equal parts are kept.
    pub(crate) delta: bool,
    /// Entries that stay although they are not in the backup.
    pub(crate) keep: Vec<Pattern>,
    /// What stays of a standby that is caught up; none in a restore.
    pub(crate) own: Option<OwnFiles>,
    /// A tree that is there already, whose equal files get a second name.
    pub(crate) like: Option<Like>,
    /// No progress is shown.
    pub(crate) quiet: bool,
}

/// A restore that is ready to begin: everything is checked, and nothing has been written.
#[derive(Debug)]
pub(crate) struct Prepared {
    view: ViewTree,
    destination: Destination,
    options: WriteOptions,
    /// Size of the tree.
    size: space::TreeSize,
    /// What may surprise a person.
    notes: Vec<String>,
    /// Keeps the backup, if it is in a repository here.
    _reading: Option<ReadGuard>,
}

/// A restore to this host or to another one.
#[derive(Debug)]
pub(crate) enum Ready {
    /// To a directory here.
    Here(Box<Prepared>),
    /// To one that a command reaches.
    There(Box<RemotePrepared>),
}

impl Ready {
    /// "vacant", "incomplete" or "older": what the directory holds.
    pub(crate) fn state(&self) -> &'static str {
        match self {
            Self::Here(prepared) => prepared.destination.state.as_str(),
            Self::There(prepared) => prepared.state.as_str(),
        }
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &Path {
        match self {
            Self::Here(prepared) => &prepared.destination.path,
            Self::There(prepared) => &prepared.directory,
        }
    }

    /// The size of the tree.
    pub(crate) fn size(&self) -> &space::TreeSize {
        match self {
            Self::Here(prepared) => &prepared.size,
            Self::There(prepared) => &prepared.size,
        }
    }

    /// The tablespaces that are not in the directory.
    pub(crate) fn relocations(&self) -> &Relocations {
        match self {
            Self::Here(prepared) => &prepared.destination.relocations,
            Self::There(prepared) => &prepared.relocations,
        }
    }

    /// What there is to say about the directory or the other host.
    pub(crate) fn notes(&self) -> &[String] {
        match self {
            Self::Here(prepared) => &prepared.notes,
            Self::There(prepared) => prepared.notes(),
        }
    }

    /// Writes the tree.
    ///
    /// # Errors
    /// When something cannot be read or written. The directory is marked as incomplete then.
    pub(crate) fn run(&self) -> Result<Restored, Error> {
        match self {
            Self::Here(prepared) => prepared.run(),
            Self::There(prepared) => prepared.run(),
        }
    }

    /// Finds out what a run would do. Nothing is changed.
    ///
    /// # Errors
    /// When something cannot be read.
    pub(crate) fn dry_run(&self) -> Result<Restored, Error> {
        match self {
            Self::Here(prepared) => prepared.dry_run(),
            Self::There(prepared) => prepared.dry_run(),
        }
    }

    /// Writes the configuration files from outside the data directory.
    ///
    /// # Errors
    /// When something cannot be read or written.
    pub(crate) fn write_configuration(
        &self,
        repository: &Repository,
        target: &ConfigurationTarget,
    ) -> Result<(), Error> {
        match self {
            Self::Here(prepared) => target.write(repository, &prepared.destination.path),
            Self::There(prepared) => prepared.write_configuration(repository, target),
        }
    }
}

/// The result of a restore.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    /// Bytes of the tree outside holes.
    pub(crate) bytes: u64,
    /// Bytes that were written, because they were not there.
    pub(crate) written_bytes: u64,
    /// Entries that were removed, because they are not in the backup.
    pub(crate) removed: Vec<PathBuf>,
    /// How long it took.
    pub(crate) elapsed: Duration,
}

impl Prepared {
    /// Checks the directory and the space in it.
    ///
    /// # Errors
    /// When the directory may not be written to, or has not enough space.
    pub(crate) fn new(
        repository: &Repository,
        view: ViewTree,
        directory: PathBuf,
        relocations: Relocations,
        options: WriteOptions,
    ) -> Result<Self, Error> {
        let reading = repository.reading(&view.backup)?;
        let size = space::TreeSize::of(&view)?;
        let examined =
            Destination::examine(Some(repository), directory, relocations, &view.backup, &options)?;
        Self::checked(view, examined, options, size, Some(reading))
    }

    /// The same for a tree of this size, which is elsewhere.
    fn far(
        view: ViewTree,
        directory: PathBuf,
        relocations: Relocations,
        options: WriteOptions,
        size: space::TreeSize,
    ) -> Result<Self, Error> {
        let examined = Destination::examine(None, directory, relocations, &view.backup, &options)?;
        Self::checked(view, examined, options, size, None)
    }

    fn checked(
        view: ViewTree,
        destination: Destination,
        options: WriteOptions,
        size: space::TreeSize,
        reading: Option<ReadGuard>,
    ) -> Result<Self, Error> {
        // What is shared with another tree takes no space, and is not known before.
        if options.like.is_none() {
            space::check(&destination, &size)?;
        }
        Ok(Self {
            view,
            notes: destination.moved_wal().into_iter().collect(),
            destination,
            options,
            size,
            _reading: reading,
        })
    }

    /// Writes the tree.
    fn run(&self) -> Result<Restored, Error> {
        let what = format!("Restore of {}", self.view.backup.server);
        let progress = Progress::start(what, Counted::Bytes, self.options.quiet);
        let signals = Interruption::watch(|| {})?;
        self.run_with(&progress, &signals)
    }

    fn run_with(&self, progress: &Progress, signals: &Interruption) -> Result<Restored, Error> {
        self.write_as(progress, signals, |error| self.incomplete(error))
    }

    /// Adds what was found before.
    pub(crate) fn add_notes(&mut self, notes: Vec<String>) {
        self.notes.extend(notes);
    }

    /// The size of the tree.
    pub(crate) fn size(&self) -> &space::TreeSize {
        &self.size
    }

    /// Writes the tree into a directory that its caller removes after an error.
    ///
    /// # Errors
    /// When something cannot be read or written.
    pub(crate) fn write(&self, progress: &Progress, signals: &Interruption) -> Result<Restored, Error> {
        self.write_as(progress, signals, |error| error)
    }

    /// The same. `incomplete` says what an error means once the directory is marked.
    fn write_as(
        &self,
        progress: &Progress,
        signals: &Interruption,
        incomplete: impl Fn(Error) -> Error,
    ) -> Result<Restored, Error> {
        let began = Instant::now();
        if self.destination.state != State::Vacant {
            // What cannot be removed is found before anything is changed.
            let opened = self.destination.look()?;
            self.prune(&opened, &opened.kept(&self.options.keep)?, prune::Mode::List)?;
        }
        let opened = self.destination.open()?;
        let marked = opened.begin(&self.view.backup, &self.options)?;
        let run = || {
            let mut removed = Vec::new();
            if self.destination.state != State::Vacant {
                progress.stage("removing what is not in the backup");
                removed = self.prune(&opened, &marked.keep, prune::Mode::Remove)?;
            }
            progress.note("");
            let writer = self.writer(&opened, progress, signals, false);
            let written = writer.write()?;
            if let Some(own) = &self.options.own {
                own.write(&opened.root, &self.view.stat)?;
            }
            progress.stage("syncing");
            opened.finish(&marked, &written.directories)?;
            Ok((removed, written))
        };
        let (removed, written): (Vec<PathBuf>, Written) = run().map_err(incomplete)?;
        Ok(Restored {
            bytes: self.size.bytes,
            written_bytes: written.bytes,
            removed,
            elapsed: began.elapsed(),
        })
    }

    /// Finds out what a run would do.
    fn dry_run(&self) -> Result<Restored, Error> {
        let progress = Progress::start("Comparison", Counted::Bytes, self.options.quiet);
        let signals = Interruption::watch(|| {})?;
        self.dry_run_with(&progress, &signals)
    }

    fn dry_run_with(&self, progress: &Progress, signals: &Interruption) -> Result<Restored, Error> {
        let began = Instant::now();
        let mut restored = Restored {
            bytes: self.size.bytes,
            written_bytes: self.size.bytes,
            ..Restored::default()
        };
        if self.destination.state != State::Vacant {
            let opened = self.destination.look()?;
            let keep = opened.kept(&self.options.keep)?;
            restored.removed = self.prune(&opened, &keep, prune::Mode::List)?;
            let writer = self.writer(&opened, progress, signals, true);
            restored.written_bytes = writer.write()?.bytes;
        }
        restored.elapsed = began.elapsed();
        Ok(restored)
    }

    fn prune(&self, opened: &Opened, keep: &[Pattern], mode: prune::Mode) -> Result<Vec<PathBuf>, Error> {
        let stays = prune::Stays {
            keep,
            own: self.options.own.as_ref(),
        };
        prune::prune(&self.view, opened, stays, mode)
    }

    fn writer<'a>(
        &'a self,
        opened: &'a Opened,
        progress: &'a Progress,
        signals: &'a Interruption,
        is_dry_run: bool,
    ) -> TreeWriter<'a> {
        TreeWriter {
            view: &self.view,
            opened,
            own: self.options.own.as_ref(),
            like: self.options.like.as_ref(),
            jobs: self.options.jobs,
            throttle: self.options.bandwidth_limit.map(Throttle::new),
            progress,
            total_bytes: self.size.bytes,
            signals,
            is_dry_run,
        }
    }

    fn incomplete(&self, error: Error) -> Error {
        let path = self.destination.path.display();
        let hint = error
            .hint_text()
            .map(|hint| format!("{hint}. "))
            .unwrap_or_default();
        error.hint(format!(
            "{hint}{path} is marked as incomplete, and PostgreSQL does not start there: the same command continues"
        ))
    }
}
