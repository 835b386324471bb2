//! The home of a Barman: one server's backups and WAL, as Barman 3.19 and its predecessors lay them out.
//!
//! - [`listing`]: which backups there are, from `meta/` and, of early releases, from the backups' own directories.
//! - [`tree`]: a backup that is a directory, by rsync or `pg_basebackup`, with files shared by hard links.
//! - [`archives`]: a backup in tar archives, compressed or encrypted, and the layout of Barman's clouds.
//! - [`wal`]: the archived WAL, and what waits to be archived.
//! - [`tarball`]: a backup that `barman export-backup` has written.
//! - [`far`]: a Barman on another host, over ssh.
//! - [`configuration`]: the section that a server needs here, from Barman's configuration.
//!
//! Barman may run meanwhile. Nothing here writes below its home, or takes its locks.

mod archives;
pub(crate) mod configuration;
pub(crate) mod far;
mod gathered;
mod listing;
mod tarball;
mod tree;
mod wal;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use barmanfs_store::open_unlinked;
use jiff::tz::TimeZone;

use super::plain::Plain;
use super::{Arrived, ForeignBackup, ForeignWal, Intake, LeftOut, Listing, Source};
use crate::error::Error;
use listing::{Found, Layout};
pub(crate) use tarball::Tarball;

/// How a home is read.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) plain: Plain,
    /// For times without a zone, as early releases wrote them.
    pub(crate) zone: TimeZone,
    /// Whether the segment that is being received is taken, too.
    pub(crate) with_partial: bool,
    pub(crate) waiting: Waiting,
}

/// What becomes of backups whose WAL is not all in the home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// They are taken.
    Taken,
    /// They are left out, and a person has to know.
    Named,
    /// They are left out until Barman has their WAL, which is a problem only after a day.
    Awaited,
}

/// One server in a home.
#[derive(Debug)]
pub(crate) struct BarmanHome {
    home: PathBuf,
    server: String,
    options: Options,
    /// The backups that were listed.
    found: Vec<Found>,
}

impl BarmanHome {
    /// The server `name` of the home; if that is not given, the one called like the server here, or the only one.
    ///
    /// # Errors
    /// When there is none, or it is not clear which.
    pub(crate) fn open(
        home: &Path,
        (name, here): (Option<&str>, &str),
        options: Options,
    ) -> Result<Self, Error> {
        let servers = listing::servers(home)?;
        let has = |name: &str| servers.iter().any(|server| server == name);
        let server = match (name, servers.as_slice()) {
            (Some(name), _) if has(name) => name.to_owned(),
            (None, _) if has(here) => here.to_owned(),
            (None, [only]) => only.clone(),
            (_, []) => {
                return Err(Error::usage(format!("{} has no server", home.display())).hint(
                    "Give the directory that barman_home names in Barman's configuration: it has a directory for each \
                     server, with base, wals and meta",
                ));
            }
            _ => {
                let missing = name.unwrap_or(here);
                let there = servers.join(", ");
                return Err(Error::usage(format!(
                    "{} has no server {missing}; there are: {there}",
                    home.display()
                ))
                .hint("Choose one with --from-server"));
            }
        };
        Ok(Self {
            home: home.to_owned(),
            server,
            options,
            found: Vec::new(),
        })
    }

    /// The server's directory.
    fn place(&self) -> PathBuf {
        self.home.join(&self.server)
    }
}

/// What opens the files of a home.
trait Files {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>>;

    /// A manifest, which is read twice. `spool` is a directory for a copy.
    fn manifest(&self, path: &Path, spool: &Path) -> io::Result<File>;
}

/// Those of a home of this host.
struct FilesHere;

impl Files for FilesHere {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        Ok(Box::new(open_unlinked(path)?))
    }

    fn manifest(&self, path: &Path, _: &Path) -> io::Result<File> {
        open_unlinked(path)
    }
}

/// The result for a backup of which something may have `changed` while it was read.
fn read_found(arrived: Result<Arrived, Error>, changed: Option<String>) -> Result<Arrived, Error> {
    match (arrived, changed) {
        (Ok(arrived), None) => Ok(arrived),
        // What is deleted meanwhile may look whole: a directory that is gone is not missed.
        (Ok(_), Some(why)) => Err(Error::failed(why)),
        (Err(error), Some(why)) => Err(error.hint(why)),
        (Err(error), None) => Err(error),
    }
}

impl Source for BarmanHome {
    fn described(&self) -> String {
        format!("Barman home {}, server {}", self.home.display(), self.server)
    }

    fn backups(&mut self) -> Result<Listing, Error> {
        let (found, left_out) = listing::list(&self.place(), &self.options)?;
        let backups = found.iter().map(|found| found.backup.clone()).collect();
        self.found = found;
        Ok(Listing { backups, left_out })
    }

    fn read(&mut self, backup: &ForeignBackup, intake: &mut Intake<'_>) -> Result<Arrived, Error> {
        let at = self
            .found
            .iter()
            .position(|found| found.backup.name == backup.name);
        let (before, rest) = self.found.split_at(at.unwrap_or(self.found.len()));
        let Some(found) = rest.first() else {
            return Err(Error::failed("it was not listed"));
        };
        let arrived = match &found.layout {
            Layout::Tree { .. } => {
                let previous = before
                    .iter()
                    .rfind(|earlier| matches!(earlier.layout, Layout::Tree { .. }));
                tree::read(found, previous, intake)
            }
            Layout::Archives(files) => {
                archives::read(found, files, (&self.options.plain, &FilesHere), intake)
            }
        };
        read_found(arrived, listing::changed(&self.place(), found))
    }

    fn wal(&mut self, _: &Path) -> Result<Box<dyn Iterator<Item = Result<ForeignWal, LeftOut>> + '_>, Error> {
        let files = wal::list(&self.place(), &self.options)?;
        // A backup of Barman is DONE only when its WAL is there.
        let is_missing = !self.found.is_empty() && !wal::has_any(&self.place())?;
        let missing = is_missing.then(|| {
            let wals = self.place().join("wals");
            let why = "it has no WAL, and the backups in the home need some: see whether it is mounted";
            Err(LeftOut::problem(wals.display().to_string(), why))
        });
        Ok(Box::new(missing.into_iter().chain(files)))
    }
}
