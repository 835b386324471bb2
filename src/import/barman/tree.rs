//! A backup that is a directory.
//!
//! rsync gives a file that has not changed the inode that it has in the previous backup. So it is read once: its content is
//! taken over from that backup, if that is here. The links of tablespaces lead into the home or to the server, and are never
//! followed.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use barmanfs_foreign::barman::backup_info::BackupInfo;
use barmanfs_store::open_unlinked;

use super::gathered::Gathered;
use super::listing::{Found, Layout};
use super::{Files, FilesHere};
use crate::backup::files::MANIFEST;
use crate::error::Error;
use crate::import::directory::{self, Choice, attributes, cannot_read, leave_link_out};
use crate::import::{Arrived, Identity, Intake, Manifest};

/// Where tablespaces are in a backup here.
const TABLESPACES: &[u8] = b"pg_tblspc/";

/// Stores the files. `previous` is the directory before this one.
pub(super) fn read(
    found: &Found,
    previous: Option<&Found>,
    intake: &mut Intake<'_>,
) -> Result<Arrived, Error> {
    let Layout::Tree { data, tablespaces } = &found.layout else {
        return Err(Error::failed("it is no directory"));
    };
    let root = fs::symlink_metadata(data).map_err(|error| cannot_read(data, &error))?;
    let manifest = given_manifest(&found.info, data, &FilesHere, intake)?;
    let mut walk = Walk {
        info: &found.info,
        gathered: Gathered::new(&found.info),
        previous: previous.and_then(Previous::of),
    };
    directory::store(intake, data, b"", &mut |intake, path, place, found| {
        walk.choose(intake, path, place, found)
    })?;
    for tablespace in &found.info.tablespaces {
        let place = tablespaces.join(tablespace.oid.to_string());
        walk.tablespace(intake, tablespace.oid, &place)?;
    }
    walk.gathered.finish(intake, attributes(&root), manifest)
}

/// The server's manifest in `place`, before the files are stored. One that Barman has made lists only what it had copied, with
/// checksums of its own.
pub(super) fn given_manifest(
    info: &BackupInfo,
    place: &Path,
    files: &dyn Files,
    intake: &mut Intake<'_>,
) -> Result<Manifest, Error> {
    if info.mode.as_deref() != Some("postgres") {
        return Ok(Manifest::Made);
    }
    let path = place.join("backup_manifest");
    match files.manifest(&path, intake.spool()) {
        Ok(mut file) => {
            intake.expect(&mut file)?;
            Ok(Manifest::Given(Box::new(file)))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !has_manifest(info) => {
            Ok(Manifest::Made)
        }
        Err(error) => Err(cannot_read(&path, &error)),
    }
}

/// Whether the server sends a manifest: those before 13 do not.
pub(super) fn has_manifest(info: &BackupInfo) -> bool {
    info.version.is_some_and(|version| version.major() >= 13)
}

/// The backup whose files may be the same.
struct Previous<'a> {
    identity: Identity,
    data: &'a Path,
    tablespaces: &'a Path,
}

impl<'a> Previous<'a> {
    fn of(found: &'a Found) -> Option<Self> {
        match &found.layout {
            Layout::Tree { data, tablespaces } => Some(Self {
                identity: found.backup.identity(),
                data,
                tablespaces,
            }),
            Layout::Archives(_) => None,
        }
    }

    /// Whether it has the same inode at this path.
    fn has(&self, path: &[u8], found: &Metadata) -> bool {
        use std::os::unix::ffi::OsStrExt;
        let (place, rest) = match path.strip_prefix(TABLESPACES) {
            Some(rest) => (self.tablespaces, rest),
            None => (self.data, path),
        };
        let other = fs::symlink_metadata(place.join(std::ffi::OsStr::from_bytes(rest)));
        let id = |found: &Metadata| (found.dev(), found.ino());
        other.is_ok_and(|other| id(&other) == id(found))
    }
}

struct Walk<'a> {
    info: &'a BackupInfo,
    gathered: Gathered<'a>,
    previous: Option<Previous<'a>>,
}

impl Walk<'_> {
    fn choose(
        &mut self,
        intake: &mut Intake<'_>,
        path: &[u8],
        place: &Path,
        found: &Metadata,
    ) -> Result<Choice, Error> {
        if path == MANIFEST
            || matches!(path, b"postmaster.pid" | b"postmaster.opts")
            || self.is_tablespace(path)
        {
            return Ok(Choice::LeaveOut);
        }
        if found.is_symlink() {
            return leave_link_out(path, place);
        }
        if let (Some(outside), true) = (self.gathered.outside(path), found.is_file()) {
            let mut file = open(place)?;
            self.gathered
                .configuration_file(outside, attributes(found), &mut file)?;
            return Ok(Choice::Stored);
        }
        self.gathered.note(path);
        self.share(intake, path, found)
    }

    /// Takes a file over from the previous backup, if it is the same one.
    fn share(&mut self, intake: &mut Intake<'_>, path: &[u8], found: &Metadata) -> Result<Choice, Error> {
        let Some(previous) = &self.previous else {
            return Ok(Choice::Take);
        };
        let is_same = found.is_file() && found.nlink() > 1 && previous.has(path, found);
        if is_same && intake.same_as(&previous.identity, path, attributes(found), found.len())? {
            return Ok(Choice::Stored);
        }
        Ok(Choice::Take)
    }

    /// Whether this is the place of a tablespace, whose files are elsewhere.
    fn is_tablespace(&self, path: &[u8]) -> bool {
        let oid = path
            .strip_prefix(TABLESPACES)
            .and_then(|name| std::str::from_utf8(name).ok());
        let oid = oid.and_then(|name| name.parse::<u32>().ok());
        oid.is_some_and(|oid| {
            self.info
                .tablespaces
                .iter()
                .any(|tablespace| tablespace.oid == oid)
        })
    }

    /// Stores a tablespace, which must be a directory.
    fn tablespace(&mut self, intake: &mut Intake<'_>, oid: u32, place: &Path) -> Result<(), Error> {
        let found = fs::symlink_metadata(place).map_err(|error| cannot_read(place, &error))?;
        if !found.is_dir() {
            return Err(Error::failed(format!(
                "tablespace {oid}: {} is no directory, and links are not followed",
                place.display()
            )));
        }
        let path = [TABLESPACES, oid.to_string().as_bytes()].concat();
        intake.directory(&path, attributes(&found))?;
        directory::store(intake, place, &path, &mut |intake, path, place, found| {
            self.choose(intake, path, place, found)
        })
    }
}

fn open(place: &Path) -> Result<File, Error> {
    open_unlinked(place).map_err(|error| cannot_read(place, &error))
}
