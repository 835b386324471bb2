//! The directory that is written to: whether it may be, and when PostgreSQL may start there.
//!
//! The order of a restore, each step durable before the next:
//! 1. The marker is written. What makes a data directory of it, `PG_VERSION` and `global/pg_control`, is removed.
//! 2. Everything is written; these two files under other names.
//! 3. `PG_VERSION` gets its name, and the marker is removed.
//! 4. `global/pg_control` gets its name.
//!
//! Without `global/pg_control` no server starts. So a directory is either startable and complete, or neither; between 3 and
//! 4 the other name of `global/pg_control` takes the place of the marker.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use barmanfs_catalog::{Backup, Repository};
use barmanfs_fs::entry::Stat;
use barmanfs_pg::pg_control::ControlFile;
use rustix::fs::FileType;

use super::WriteOptions;
use super::marker::{self, Marker};
use super::part::Part;
use super::pattern::Pattern;
use super::place::{Place, failed};
use super::tablespaces::Relocations;
use crate::error::Error;
use crate::instance;
use crate::mounts::known_user;

mod paths;

pub(super) use paths::{all_mount_points, dangling, nearest_existing};
use paths::{make_directory, separate_places};
pub(crate) use paths::{refuse_place, refuse_shared, resolved};

/// Without this file no server starts.
pub(super) const CONTROL: &str = "global/pg_control";

/// Its directory.
pub(super) const GLOBAL: &[u8] = b"global";

/// Files that get their names last: the directory, the name, and the name until then.
pub(super) const HELD: [(&[u8], &[u8], &[u8]); 2] = [
    (b"", b"PG_VERSION", b".barmanfs-PG_VERSION"),
    (GLOBAL, b"pg_control", b".barmanfs-pg_control"),
];

/// The name that a file has until everything else is written, if it is one of these.
pub(super) fn held_name(directory: &[Vec<u8>], name: &[u8]) -> Option<&'static [u8]> {
    let directory = directory.join(&b'/');
    let mut held = HELD.iter();
    let held = held.find(|(held_in, real, _)| *held_in == directory && *real == name);
    held.map(|(.., held)| *held)
}

/// It is at the top of each ext4 file system.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// A control file has 8 KiB.
const MAX_CONTROL_BYTES: usize = 64 << 10;

/// What the directory holds before the restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing, or it does not exist.
    Vacant,
    /// A restore that did not end.
    Incomplete,
    /// Another state of the same system.
    Older,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Vacant => "vacant",
            Self::Incomplete => "incomplete",
            Self::Older => "older",
        }
    }
}

/// A directory that may be written to.
#[derive(Debug)]
pub(crate) struct Destination {
    /// Absolute, without links.
    pub(super) path: PathBuf,
    pub(super) state: State,
    pub(super) relocations: Relocations,
}

/// The same, opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) root: Place,
    pub(super) relocations: Relocations,
    /// What it held when it was examined.
    state: State,
    /// The opened places of the parts outside.
    outside: Vec<(Part, Place)>,
}

/// A directory that is marked as incomplete.
#[derive(Debug)]
pub(super) struct Marked {
    /// What is not removed.
    pub(super) keep: Vec<Pattern>,
    _locked: File,
}

/// A directory of the tree, for its attributes, which it gets when nothing is added to it any more.
#[derive(Debug)]
pub(super) struct WrittenDirectory {
    /// The part outside in which it is, and its names below that.
    pub(super) outside: Option<Part>,
    pub(super) names: Vec<Vec<u8>>,
    pub(super) stat: Stat,
}

impl Destination {
    /// Decides whether the directory may be written to.
    ///
    /// # Errors
    /// When it may not.
    pub(super) fn examine(
        repository: Option<&Repository>,
        path: PathBuf,
        relocations: Relocations,
        backup: &Backup,
        options: &WriteOptions,
    ) -> Result<Self, Error> {
        refuse_place(repository, &path)?;
        let state = state(&path, backup, options.delta)?;
        if state == State::Incomplete {
            refuse_other_command(&Place::open(&path)?, backup, options.own.is_some())?;
        }
        let destination = Self {
            path,
            state,
            relocations,
        };
        for place in separate_places(&destination.path, &destination.relocations)? {
            refuse_place(repository, &place)?;
        }
        for (part, location) in destination.relocations.iter() {
            destination.refuse_foreign_part(part, location)?;
        }
        Ok(destination)
    }

    /// A part may be put where there is nothing, or where it was in the directory that is overwritten.
    fn refuse_foreign_part(&self, part: Part, location: &Path) -> Result<(), Error> {
        if !location.exists() || is_vacant(&Place::open(location)?)? {
            return Ok(());
        }
        let option = match part {
            Part::Wal => "--waldir",
            Part::Tablespace(_) => "--tablespace",
        };
        if let Some(pid) = instance::process_with(&part.path(), location) {
            return Err(Error::failed(format!(
                "The server of process {pid} has its {part} at {}",
                location.display()
            ))
            .hint(format!("Name another place with {option}")));
        }
        if self.state != State::Vacant {
            let root = Place::open(&self.path)?;
            let marked = Marker::read(&root)?.flatten();
            let is_marked = marked.is_some_and(|marker| marker.tablespaces.of(part) == Some(location));
            let link = self.path.join(part.path());
            if is_marked || std::fs::read_link(link).is_ok_and(|target| target == location) {
                return Ok(());
            }
        }
        Err(Error::failed(format!(
            "The place of {part}, {}, is not empty",
            location.display()
        ))
        .hint(format!("Name an empty or a new directory with {option}")))
    }

    /// What happens to a `pg_wal` that has a volume of its own. No link is followed: root would remove what a user of the
    /// directory has led it to.
    pub(super) fn moved_wal(&self) -> Option<String> {
        if self.relocations.of(Part::Wal).is_some() {
            return None;
        }
        let link = self.path.join("pg_wal");
        let target = std::fs::read_link(&link).ok()?;
        Some(format!(
            "{} is a link to {}, which stays as it is: the WAL will be in a directory here. --waldir puts it there; or move \
             that directory and set the link again before the server is started",
            link.display(),
            target.display()
        ))
    }

    /// Opens it, and makes it if it does not exist.
    pub(super) fn open(&self) -> Result<Opened, Error> {
        make_directory(&self.path)?;
        self.relocations
            .iter()
            .try_for_each(|(_, location)| make_directory(location))?;
        self.look()
    }

    /// Opens it as it is.
    pub(super) fn look(&self) -> Result<Opened, Error> {
        let outside = self
            .relocations
            .iter()
            .filter(|(_, location)| location.exists())
            .map(|(part, location)| Ok((part, Place::open(location)?)))
            .collect::<Result<_, Error>>()?;
        Ok(Opened {
            root: Place::open(&self.path)?,
            relocations: self.relocations.clone(),
            state: self.state,
            outside,
        })
    }
}

impl Opened {
    /// The opened place of a part outside.
    pub(super) fn outside(&self, part: Part) -> Option<&Place> {
        let mut outside = self.outside.iter();
        outside.find(|(other, _)| *other == part).map(|(_, place)| place)
    }

    /// What is not removed: what the command says, and what that of an incomplete restore said.
    pub(super) fn kept(&self, keep: &[Pattern]) -> Result<Vec<Pattern>, Error> {
        let marker = Marker::read(&self.root)?.flatten();
        let earlier = marker.map(|marker| marker.keep).unwrap_or_default();
        let new = keep.iter().filter(|pattern| !earlier.contains(pattern));
        let new: Vec<Pattern> = new.cloned().collect();
        Ok([earlier, new].concat())
    }

    /// Marks the directory as incomplete. From then on no server starts in it.
    pub(super) fn begin(&self, backup: &Backup, options: &WriteOptions) -> Result<Marked, Error> {
        let (locked, was_marked) = marker::lock(&self.root)?;
        let keep = self.kept(&options.keep)?;
        let marked = self.refuse_changed(was_marked).and_then(|()| {
            let (relocations, catches_up) = (self.relocations.clone(), options.own.is_some());
            Marker::new(backup, keep.clone(), relocations, catches_up).write(&self.root, &locked)?;
            // It may have been started since the directory was examined.
            refuse_running(self.root.path())
        });
        if let Err(error) = marked {
            if !was_marked {
                self.root.unlink(marker::NAME.as_bytes())?;
            }
            return Err(error);
        }
        for (directory, name, held) in HELD {
            let Some(place) = self.existing(directory)? else {
                continue;
            };
            for name in [name, held] {
                if let Some(found) = place.find(name)? {
                    place.remove(name, found.kind)?;
                }
            }
            place.sync()?;
        }
        // One that was starting at that moment has found no files, or is known now.
        refuse_running(self.root.path())?;
        Ok(Marked {
            keep,
            _locked: locked,
        })
    }

    /// Another restore may have ended since the directory was examined, and its marker with it.
    fn refuse_changed(&self, was_marked: bool) -> Result<(), Error> {
        let is_as_it_was = was_marked
            || match self.state {
                State::Vacant => has_only(&self.root, &[marker::NAME.as_bytes()])?,
                State::Incomplete => has_held_control(&self.root)?,
                State::Older => true,
            };
        match is_as_it_was {
            true => Ok(()),
            false => Err(marker::changed(&self.root)),
        }
    }

    fn existing(&self, directory: &[u8]) -> Result<Option<Place>, Error> {
        if directory.is_empty() {
            return Ok(Some(self.root.clone()));
        }
        match self.root.find(directory)? {
            Some(found) if found.kind == FileType::Directory => self.root.enter(directory).map(Some),
            _ => Ok(None),
        }
    }

    /// Makes everything durable, and the directory startable.
    pub(super) fn finish(&self, _marked: &Marked, directories: &[WrittenDirectory]) -> Result<(), Error> {
        let mut file_systems = BTreeMap::new();
        // The deepest first: each is complete then.
        for directory in directories.iter().rev() {
            let base = match directory.outside {
                Some(part) => self.outside(part).unwrap_or(&self.root),
                None => &self.root,
            };
            let place = base.descend(&directory.names)?;
            place.dress(&directory.stat)?;
            // A directory of the tree may have a file system of its own, as pg_wal often does.
            file_systems.entry(place.device()?).or_insert(place);
        }
        for (_, place) in &self.outside {
            place.sync_file_system()?;
        }
        file_systems.values().try_for_each(Place::sync_file_system)?;
        self.root.sync_file_system()?;
        let global = self.root.enter(GLOBAL)?;
        let [(_, version, held_version), (_, control, held_control)] = HELD;
        self.root.rename(held_version, version)?;
        self.root.sync()?;
        self.root.unlink(marker::NAME.as_bytes())?;
        self.root.sync()?;
        global.rename(held_control, control)?;
        global.sync()?;
        self.dress_last(&global, directories)
    }

    /// The times of the directories in which something was renamed.
    fn dress_last(&self, global: &Place, directories: &[WrittenDirectory]) -> Result<(), Error> {
        for directory in directories.iter().filter(|directory| directory.outside.is_none()) {
            match directory.names.as_slice() {
                [] => self.root.dress(&directory.stat)?,
                [name] if name == GLOBAL => global.dress(&directory.stat)?,
                _ => {}
            }
        }
        global.sync()?;
        self.root.sync()
    }
}

/// What a directory holds. It may not be written to if a server runs in it, or it is of another system.
///
/// # Errors
/// Then, and when it cannot be read.
pub(crate) fn state(path: &Path, backup: &Backup, is_delta: bool) -> Result<State, Error> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(State::Vacant),
        Err(error) => return Err(failed("look at", path, error)),
        Ok(found) if !found.is_dir() => {
            return Err(Error::failed(format!("{} is no directory", path.display())));
        }
        Ok(found) => refuse_owner(path, found.uid())?,
    }
    let place = Place::open(path)?;
    refuse_running(path)?;
    if is_vacant(&place)? {
        return Ok(State::Vacant);
    }
    if Marker::read(&place)?.is_some() || has_held_control(&place)? {
        return Ok(State::Incomplete);
    }
    if !is_delta {
        return Err(not_empty(path));
    }
    refuse_other_system(&place, backup)?;
    Ok(State::Older)
}

/// Only its owner and root can give a directory the permissions that PostgreSQL demands.
fn refuse_owner(path: &Path, owner: u32) -> Result<(), Error> {
    let user = rustix::process::geteuid();
    if user.is_root() || user.as_raw() == owner {
        return Ok(());
    }
    let name = known_user(owner).unwrap_or_else(|| owner.to_string());
    Err(
        Error::failed(format!("{} belongs to user {name}", path.display()))
            .hint("Run this as that user or as root, or name another directory"),
    )
}

fn refuse_running(path: &Path) -> Result<(), Error> {
    // Its file may name a process of a container, or one that left its sessions behind.
    let running = instance::running(path).map(|running| running.pid);
    match running.or_else(|| instance::process_in(path)) {
        None => Ok(()),
        Some(pid) => Err(Error::failed(format!(
            "A server is running in {} (process {pid})",
            path.display()
        ))
        .hint("Stop it first, or name another directory")),
    }
}

fn has_held_control(place: &Place) -> Result<bool, Error> {
    match place.find(GLOBAL)? {
        Some(found) if found.kind == FileType::Directory => {
            let [_, (_, _, held)] = HELD;
            Ok(place.enter(GLOBAL)?.find(held)?.is_some())
        }
        _ => Ok(false),
    }
}

/// Which files of the directory stay depends on the command. What is left of a restore of another server may be all that
/// somebody has.
fn refuse_other_command(place: &Place, backup: &Backup, catches_up: bool) -> Result<(), Error> {
    let Some(marker) = Marker::read(place)?.flatten() else {
        return Ok(());
    };
    let is_same = match marker.system_id {
        Some(system_id) => system_id == backup.system_id,
        None => marker.server == backup.server,
    };
    if !is_same {
        return Err(Error::failed(format!(
            "{} holds an incomplete restore of another server, {}",
            place.path().display(),
            marker.server
        ))
        .hint(format!(
            "Name another directory, or continue with server {}",
            marker.server
        )));
    }
    if marker.catches_up == catches_up {
        return Ok(());
    }
    let began = match marker.catches_up {
        true => marker::CATCHUP,
        false => marker::RESTORE,
    };
    Err(Error::failed(format!(
        "{} holds what 'barmanfs {began}' has begun and not ended",
        place.path().display()
    ))
    .hint(format!("Run 'barmanfs {began}' again to continue")))
}

fn refuse_other_system(place: &Place, backup: &Backup) -> Result<(), Error> {
    let refuse = |why: String| {
        Error::failed(format!("{} {why}", place.path().display())).hint(
            "--delta-restore is for an older or newer state of the same server; name an empty directory",
        )
    };
    let control = place.path().join(CONTROL);
    let bytes = match std::fs::read(&control) {
        Ok(bytes) if bytes.len() <= MAX_CONTROL_BYTES => bytes,
        Ok(_) => return Err(refuse("has a global/pg_control that is none".to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(refuse(
                "is not empty, and no data directory of PostgreSQL: it has no global/pg_control".to_owned(),
            ));
        }
        Err(error) => return Err(failed("read", &control, error)),
    };
    let found = ControlFile::parse(&bytes)
        .map_err(|error| refuse(format!("has an unusable global/pg_control: {error}")))?
        .system_id;
    if found == backup.system_id {
        return Ok(());
    }
    Err(refuse(format!(
        "holds another database system, {found}, and backup {} is of {}",
        backup.id, backup.system_id
    )))
}

/// Whether there is nothing that anybody could miss.
fn is_vacant(place: &Place) -> Result<bool, Error> {
    has_only(place, &[])
}

/// Whether nothing is in a directory but these, and what is the file system's own.
fn has_only(place: &Place, names: &[&[u8]]) -> Result<bool, Error> {
    for name in place.names()? {
        let name = name?;
        if name.as_bytes() != LOST_AND_FOUND && !names.contains(&name.as_bytes()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether this name at the top is the file system's own.
pub(super) fn is_of_the_file_system(name: &[u8]) -> bool {
    name == LOST_AND_FOUND
}

/// Barman's message begins in the same way.
pub(super) fn not_empty(path: &Path) -> Error {
    Error::failed(format!(
        "The restore operation cannot proceed because the destination folder '{}' is not empty",
        path.display()
    ))
    .hint("Name another directory, or update an older state of the same server with --delta-restore")
}
