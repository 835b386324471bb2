//! A restore to another host, over ssh. The other side needs `sh` and `tar`, and runs nothing of barmanfs.
//!
//! - [`shell`] runs scripts there, by the command line that the user gives.
//! - [`host`] finds out what there is, before anything is written.
//! - [`tree`] sends the tree as several archives, each by a [`stream`].
//! - [`configuration`] sends the configuration files that the server kept outside its data directory.
//!
//! The invariants are those of a local restore: `global/pg_control` gets its name last, after everything else was synced there,
//! and a marker is there from the first byte until just before that. That an archive was cut off is not always seen by a tar
//! over there. So only this side decides that everything has arrived: the command that makes the directory startable runs
//! when all others have ended without an error.

mod configuration;
mod host;
pub(crate) mod shell;
mod stream;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use barmanfs_catalog::{ReadGuard, Repository};
use barmanfs_store::sync::lock;

use super::agent::control::{Agent, Found, Order, Stopped};
use super::catch_up::{CatchUp, CaughtUp};
use super::destination::{State, not_empty, refuse_shared};
use super::marker::{self, Marker};
use super::space::TreeSize;
use super::tablespaces::Relocations;
use super::view::ViewTree;
use super::{Restored, WriteOptions};
use crate::error::Error;
use crate::progress::{Counted, Progress};
use crate::signals::Interruption;
use crate::throttle::Throttle;
use configuration::RemoteConfiguration;
use host::Facts;
pub(crate) use shell::RemoteShell;
pub(in crate::restore) use shell::word;
pub(crate) use stream::describe;
use tree::TreeSender;

/// A restore to another host that is ready to begin: everything is checked, and nothing has been written.
#[derive(Debug)]
pub(crate) struct RemotePrepared {
    shell: RemoteShell,
    view: ViewTree,
    /// Without links.
    pub(super) directory: PathBuf,
    pub(super) relocations: Relocations,
    options: WriteOptions,
    pub(super) size: TreeSize,
    pub(super) state: State,
    notes: Vec<String>,
    caught_up: Option<CaughtUp>,
    configuration: Option<RemoteConfiguration>,
    /// The agent that writes there; without one, archives are unpacked.
    agent: Option<Mutex<Agent>>,
    _reading: ReadGuard,
}

/// Where a restore goes on another host.
#[derive(Debug)]
pub(crate) struct RemotePlace {
    /// The command that reaches it.
    pub(crate) shell: RemoteShell,
    /// The directory there.
    pub(crate) directory: PathBuf,
    /// The directory there for configuration files.
    pub(crate) configuration: Option<PathBuf>,
    /// Whether the copy fetches WAL with barmanfs.
    pub(crate) fetches_wal: bool,
    /// Whether a standby is caught up, and how.
    pub(crate) catch_up: Option<CatchUp>,
}

/// Refuses a directory that cannot be one of another host.
pub(crate) fn checked(path: &Path) -> Result<(), Error> {
    host::checked(path).map(drop)
}

impl RemotePrepared {
    /// Checks the other host, the directory and the space in it.
    ///
    /// # Errors
    /// When the host cannot be reached, or the directory may not be written to.
    pub(crate) fn new(
        repository: &Repository,
        view: ViewTree,
        place: RemotePlace,
        relocations: &Relocations,
        options: WriteOptions,
    ) -> Result<Self, Error> {
        let reading = repository.reading(&view.backup)?;
        let RemotePlace { shell, directory, .. } = place;
        let facts = Facts::of(&shell, &directory, relocations)?;
        facts.refuse_host()?;
        let mut notes = facts.notes(&view.backup, place.fetches_wal);
        let mut agent = match facts.barmanfs.as_ref().map(|_| Agent::start(&shell)) {
            Some(Ok(agent)) => Some(agent),
            Some(Err(error)) if place.catch_up.is_some() => {
                return Err(error.context("Nothing can be caught up on the other host"));
            }
            Some(Err(error)) => {
                notes.push(format!("The barmanfs of the other host is not used: {error}"));
                None
            }
            None if place.catch_up.is_some() => return Err(no_agent()),
            None => None,
        };
        let size = match agent {
            Some(_) => TreeSize::of(&view)?,
            None => TreeSize::without_holes(&view)?,
        };
        let found = match &mut agent {
            Some(agent) => {
                let catch_up = place.catch_up.as_ref();
                agent.prepare(&view, &directory, relocations, catch_up, (&options, &size))?
            }
            None => examine(&facts, &directory, relocations, (&options, &size))?,
        };
        let configuration = place
            .configuration
            .map(|directory| RemoteConfiguration::examine(&shell, directory))
            .transpose()?;
        notes.extend(found.notes);
        Ok(Self {
            notes,
            shell,
            view,
            directory: found.directory,
            relocations: found.relocations,
            caught_up: found.caught_up,
            state: found.state,
            options,
            size,
            configuration,
            agent: agent.map(Mutex::new),
            _reading: reading,
        })
    }

    /// What there is to say about the other host.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What a standby was, if it is caught up.
    pub(crate) fn caught_up(&self) -> Option<&CaughtUp> {
        self.caught_up.as_ref()
    }

    /// Sends the tree.
    ///
    /// # Errors
    /// When something cannot be read, or the other side fails. The directory is marked as incomplete then.
    pub(crate) fn run(&self) -> Result<Restored, Error> {
        let began = Instant::now();
        let what = format!("Restore of {}", self.view.backup.server);
        let progress = Progress::start(what, Counted::Bytes, self.options.quiet);
        let running = self.shell.running().clone();
        let signals = Interruption::watch(move || running.stop())?;
        if let Some(agent) = &self.agent {
            return self.by_agent(&mut lock(agent), &progress, false);
        }
        self.begin()?;
        let sender = self.sender(&progress, &signals);
        let send = || {
            let rest = sender.collect()?;
            let bytes = sender.send(&rest)?;
            if signals.requested() {
                return Err(super::tree_writer::interrupted());
            }
            Ok((rest, bytes))
        };
        let (rest, written_bytes) = send().map_err(|error| self.incomplete(error))?;
        progress.stage("syncing");
        sender
            .complete(&rest)
            .map_err(|error| self.perhaps_complete(error))?;
        Ok(Restored {
            bytes: self.size.bytes,
            written_bytes,
            removed: Vec::new(),
            elapsed: began.elapsed(),
        })
    }

    fn sender<'a>(&'a self, progress: &'a Progress, signals: &'a Interruption) -> TreeSender<'a> {
        TreeSender {
            view: &self.view,
            shell: &self.shell,
            directory: &self.directory,
            relocations: &self.relocations,
            jobs: self.options.jobs,
            throttle: self.options.bandwidth_limit.map(Throttle::new),
            progress,
            total_bytes: self.size.bytes,
            signals,
        }
    }

    fn by_agent(&self, agent: &mut Agent, progress: &Progress, dry_run: bool) -> Result<Restored, Error> {
        let restored = agent.run(&Order {
            view: &self.view,
            shell: &self.shell,
            options: &self.options,
            size: &self.size,
            progress,
            dry_run,
        });
        restored.map_err(|stopped| match stopped {
            Stopped::Told(error) => error,
            Stopped::Ended(error) if dry_run => error,
            Stopped::Ended(error) => self.perhaps_continued(error),
        })
    }

    /// An agent that was cut off has written until it noticed that.
    fn perhaps_continued(&self, error: Error) -> Error {
        let directory = self.directory.display();
        let hint = error
            .hint_text()
            .map(|hint| format!("{hint}. "))
            .unwrap_or_default();
        error.hint(format!(
            "{hint}As long as {directory}/{} is there on the other host, or {directory}/global/pg_control is missing, \
             PostgreSQL does not start there, and the same command continues, at the latest in {} seconds",
            marker::NAME,
            shell::SILENCE.as_secs()
        ))
    }

    /// Finds out what a run would do. Without an agent nothing is there, and everything would be written.
    ///
    /// # Errors
    /// When something cannot be read.
    pub(crate) fn dry_run(&self) -> Result<Restored, Error> {
        let Some(agent) = &self.agent else {
            return Ok(Restored {
                bytes: self.size.bytes,
                written_bytes: self.size.bytes,
                ..Restored::default()
            });
        };
        let progress = Progress::start("Comparison", Counted::Bytes, self.options.quiet);
        let running = self.shell.running().clone();
        let _signals = Interruption::watch(move || running.stop())?;
        self.by_agent(&mut lock(agent), &progress, true)
    }

    /// Makes the directories and the marker. Another restore that begins at the same moment finds that.
    fn begin(&self) -> Result<(), Error> {
        let marker = Marker::new(&self.view.backup, Vec::new(), self.relocations.clone(), false);
        let text = serde_json::to_vec_pretty(&marker)
            .map_err(|error| Error::failed(format!("Cannot write the marker: {error}")))?;
        let name = marker::NAME;
        let directory = word(&self.directory.to_string_lossy());
        let mut script = format!(
            "others() {{ for e in \"$1\"/* \"$1\"/.[!.]* \"$1\"/..?*; do {{ [ -e \"$e\" ] || [ -h \"$e\" ]; }} || continue; \
             case \"${{e##*/}}\" in {name}|lost+found) continue;; esac; rm -f {directory}/{name}; \
             echo \"$1 is not empty any more\" >&2; exit 1; done; }}; "
        );
        script.push_str(
            "set -e; umask 022; make() { [ -d \"$1\" ] || { mkdir -p \"${1%/*}/\"; mkdir -m 700 \"$1\"; }; \
             if [ \"$(id -u)\" = 0 ]; then chown 0:0 \"$1\"; fi; chmod 700 \"$1\"; }; ",
        );
        script.push_str(&format!("make {directory}; "));
        // With this, sh makes no file that exists.
        script.push_str(&format!(
            "set -C; umask 077; cat > {directory}/{name}; set +C; umask 022; others {directory}"
        ));
        for (_, location) in self.relocations.iter() {
            let location = word(&location.to_string_lossy());
            script.push_str(&format!("; make {location}; others {location}"));
        }
        self.shell.run("begin a restore", &script, &text).map(drop)
    }

    /// Writes the configuration files there.
    ///
    /// # Errors
    /// When the other side fails.
    pub(crate) fn write_configuration(
        &self,
        repository: &Repository,
        target: &super::configuration::ConfigurationTarget,
    ) -> Result<(), Error> {
        match &self.configuration {
            Some(configuration) => {
                configuration.write(&self.shell, &target.texts(repository, &self.directory)?)
            }
            None => Ok(()),
        }
    }

    /// What ends the command over there goes on when the connection is lost.
    fn perhaps_complete(&self, error: Error) -> Error {
        let directory = self.directory.display();
        error.hint(format!(
            "{directory} on the other host may be complete: it is, unless {directory}/{} is there, or \
             {directory}/global/pg_control is missing",
            marker::NAME
        ))
    }

    fn incomplete(&self, error: Error) -> Error {
        let hint = error
            .hint_text()
            .map(|hint| format!("{hint}. "))
            .unwrap_or_default();
        let path = self.directory.display();
        error.hint(format!(
            "{hint}{path} on the other host is marked as incomplete, and PostgreSQL does not start there"
        ))
    }
}

fn no_agent() -> Error {
    Error::failed(
        "A standby on another host is caught up by barmanfs there, and it is not in the PATH of the user",
    )
    .hint("Install it there: what differs from the backup is found out where the data is")
}

/// What there is, without an agent.
fn examine(
    facts: &Facts,
    directory: &Path,
    relocations: &Relocations,
    (options, size): (&WriteOptions, &TreeSize),
) -> Result<Found, Error> {
    let locations = relocations.iter().map(|(_, location)| location);
    let asked: Vec<&Path> = std::iter::once(directory).chain(locations).collect();
    let mut paths = facts.refuse_places(&asked)?.into_iter();
    refuse_state(facts, directory, options.delta)?;
    let real = paths.next().unwrap_or_else(|| directory.to_owned());
    let places: Vec<PathBuf> = paths.collect();
    refuse_shared(&real, &places)?;
    let relocations = relocations.moved(places.into_iter());
    facts.refuse_space(&relocations, size)?;
    Ok(Found {
        state: State::Vacant,
        directory: real,
        relocations,
        notes: Vec::new(),
        caught_up: None,
    })
}

/// Only an empty directory is written to: what differs from the backup cannot be found out without barmanfs over there.
fn refuse_state(facts: &Facts, directory: &Path, is_delta: bool) -> Result<(), Error> {
    if facts.is_incomplete() {
        return Err(Error::failed(format!(
            "{} on the other host holds an incomplete restore, and there is no barmanfs that could continue it",
            directory.display()
        ))
        .hint("Install barmanfs there, or remove the directory there; then run the same command again"));
    }
    match (facts.has_entries(), is_delta) {
        (false, _) => Ok(()),
        (true, false) => Err(not_empty(directory)),
        (true, true) => Err(Error::failed(format!(
            "{} on the other host is not empty, and --delta-restore needs barmanfs there, in the PATH of the user",
            directory.display()
        ))
        .hint("Install it there, or name an empty directory")),
    }
}
