//! The data directory of a server that was shut down cleanly: a cold copy, or the directory itself.
//!
//! It has no label. Recovery begins at the shutdown checkpoint that its control file names, which is in `pg_wal`, and is at its end
//! with that. From there on it can go anywhere where archived WAL leads.
//!
//! It is only read. Nothing keeps somebody from starting a server on it meanwhile; whether that happened is seen at the end.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use barmanfs_catalog::{Annotations, BackupId, Tablespace};
use barmanfs_pg::own_files::tablespace_entry;
use barmanfs_pg::pg_control::{ClusterState, ControlFile};
use barmanfs_pg::recreated::{EMPTIED_DIRECTORIES, is_temporary_file};
use barmanfs_pg::wal_check::{LONG_HEADER_BYTES, check_segment};
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, ServerVersion, TimestampMicros, wal_record};
use barmanfs_store::{Attributes, open_regular};

use super::directory::{self, Choice, cannot_read, leave_link_out, read_small};
use super::{Arrived, ForeignBackup, ForeignWal, Intake, LeftOut, Listing, Manifest, Source};
use crate::error::Error;

/// The tool, in the record of a backup.
const TOOL: &str = "a stopped server";

/// The most that is read of a small file.
const SMALL_BYTES: u64 = 64 << 10;

/// Files that belong to a running server, and to no backup.
const OF_A_RUN: [&[u8]; 3] = [b"postmaster.pid", b"postmaster.opts", b"backup_manifest"];

/// Permissions of a directory in the place of a link.
const DIRECTORY_MODE: u32 = 0o700;

/// A data directory.
#[derive(Debug)]
pub(crate) struct DataDirectory {
    place: PathBuf,
    /// What its control file held when it was described.
    control: Vec<u8>,
}

impl DataDirectory {
    pub(crate) fn new(place: PathBuf) -> Self {
        let control = Vec::new();
        Self { place, control }
    }

    fn control(&self) -> Result<Vec<u8>, Error> {
        let place = self.place.join("global/pg_control");
        let bytes = read_small(&place, SMALL_BYTES)?;
        bytes.ok_or_else(|| {
            Error::failed(format!(
                "{} is not a data directory: it has no global/pg_control",
                self.place.display()
            ))
        })
    }

    /// Whether a file or link is there.
    fn has(&self, name: &str) -> Result<bool, Error> {
        let place = self.place.join(name);
        match fs::symlink_metadata(&place) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(cannot_read(&place, &error)),
        }
    }

    /// Refuses a directory on which a server runs, or did not end as it should.
    fn check_stopped(&self, control: &ControlFile) -> Result<(), Error> {
        let place = self.place.display();
        if self.has("postmaster.pid")? {
            return Err(Error::failed(format!(
                "{place} has a postmaster.pid: a server runs on it, or did not end as it should"
            ))
            .hint("Stop it (pg_ctl stop), or take a backup of the running server: barmanfs backup"));
        }
        if self.has("backup_label")? {
            return Err(Error::failed(format!(
                "{place} has a backup_label: it is a base backup on which no server was started"
            ))
            .hint("Import it with --pg-basebackup"));
        }
        match control.state {
            ClusterState::ShutDown => Ok(()),
            ClusterState::ShutDownInRecovery => Err(Error::failed(format!(
                "{place} is that of a standby, which has no checkpoint of its own to begin at"
            ))
            .hint("Take a backup of the standby while it runs, or import the primary's directory")),
            state => Err(Error::failed(format!(
                "{place} was not shut down cleanly: its control file says {state:?}"
            ))
            .hint("Start the server and stop it again")),
        }
    }

    fn describe(&mut self) -> Result<ForeignBackup, Error> {
        self.control = self.control()?;
        let control = self.parsed()?;
        self.check_stopped(&control)?;
        let place = self.place.join("PG_VERSION");
        let version = read_small(&place, SMALL_BYTES)?.unwrap_or_default();
        let server_version = ServerVersion::of_data_directory(&version)
            .ok_or_else(|| Error::failed(format!("{} holds no version", place.display())))?;
        let stopped = TimestampMicros::from_unix_seconds(control.checkpoint_time);
        Ok(ForeignBackup {
            name: self.place.display().to_string(),
            tool: TOOL.to_owned(),
            id: BackupId::at(stopped),
            begin_time: stopped,
            end_time: stopped,
            start_lsn: control.redo,
            stop_lsn: self.checkpoint_end(&control)?,
            timeline: control.timeline,
            system_id: control.system_id,
            server_version,
            segment_size: control.segment_size,
            label: None,
            annotations: Annotations::new(),
            keep: None,
            parent_start: None,
            is_cold: true,
            size_bytes: None,
        })
    }

    fn parsed(&self) -> Result<ControlFile, Error> {
        ControlFile::parse(&self.control).map_err(|error| Error::failed(error.to_string()))
    }

    /// Where the record of the shutdown checkpoint ends.
    fn checkpoint_end(&self, control: &ControlFile) -> Result<Lsn, Error> {
        let ControlFile {
            checkpoint,
            timeline,
            segment_size: size,
            ..
        } = *control;
        let segment = SegmentName::from_lsn(timeline, checkpoint, size);
        let place = self.place.join(format!("pg_wal/{segment}"));
        let unreadable = |error: io::Error| {
            cannot_read(&place, &error).hint("The segment with the shutdown checkpoint is needed")
        };
        let file = open_regular(&place).map_err(unreadable)?;
        let mut first = [0; LONG_HEADER_BYTES];
        file.read_exact_at(&mut first, 0).map_err(unreadable)?;
        let mut length = [0; wal_record::LENGTH_BYTES];
        let offset = checkpoint.segment_offset(size);
        file.read_exact_at(&mut length, offset).map_err(unreadable)?;
        let bytes = file.metadata().map_err(unreadable)?.len();
        let bad = |why: String| Error::failed(format!("{}: {why}", place.display()));
        let facts = check_segment(&first, &segment, bytes).map_err(|error| bad(error.to_string()))?;
        wal_record::end_of_record(checkpoint, &length, &facts).ok_or_else(|| {
            bad(format!(
                "no record begins at {checkpoint}, the shutdown checkpoint"
            ))
        })
    }

    fn read_files(
        &self,
        server_version: ServerVersion,
        intake: &mut Intake<'_>,
    ) -> Result<Vec<Tablespace>, Error> {
        let control = self.parsed()?;
        let version_directory = format!("PG_{}_{}", server_version.major(), control.catalog_version);
        let mut tablespaces = Vec::new();
        let mut choose = |intake: &mut Intake<'_>, path: &[u8], inner: &Path, found: &Metadata| {
            let oid = path.strip_prefix(b"pg_tblspc/");
            let oid = oid.and_then(|name| std::str::from_utf8(name).ok()?.parse::<u32>().ok());
            let is_followed = (oid.is_some() || path == b"pg_wal") && found.is_symlink();
            if let Some(oid) = oid {
                let location = fs::read_link(inner).map_or_else(
                    |_| format!("pg_tblspc/{oid}"),
                    |target| target.to_string_lossy().into_owned(),
                );
                tablespaces.push(Tablespace {
                    oid,
                    name: None,
                    location,
                });
            }
            let name = inner.file_name().unwrap_or_default().as_bytes();
            let is_other = OF_A_RUN.contains(&path) || is_emptied(path) || is_temporary_file(name);
            // Other clusters may have files in the same place.
            let is_beside = tablespace_entry(path).is_some_and(|name| name != version_directory.as_bytes());
            if is_other || is_beside {
                return Ok(Choice::LeaveOut);
            }
            if is_followed {
                return Ok(Choice::Follow(inner.to_owned()));
            }
            if found.is_symlink() && EMPTIED_DIRECTORIES.contains(&path) {
                let mode = DIRECTORY_MODE;
                let like = directory::attributes(found);
                intake.directory(path, Attributes { mode, ..like })?;
                return Ok(Choice::Stored);
            }
            if !found.is_dir() && !intake.has(path) {
                return Ok(Choice::LeaveOut);
            }
            match found.is_symlink() {
                true => leave_link_out(path, inner),
                false => Ok(Choice::Take),
            }
        };
        directory::store(intake, &self.place, b"", &mut choose)?;
        Ok(tablespaces)
    }
}

/// Whether it is in a directory whose content a server makes again.
fn is_emptied(path: &[u8]) -> bool {
    let mut emptied = EMPTIED_DIRECTORIES.iter();
    emptied.any(|directory| {
        path.strip_prefix(*directory)
            .is_some_and(|rest| rest.starts_with(b"/"))
    })
}

impl Source for DataDirectory {
    fn described(&self) -> String {
        format!("data directory {}", self.place.display())
    }

    fn backups(&mut self) -> Result<Listing, Error> {
        Ok(Listing {
            backups: vec![self.describe()?],
            left_out: Vec::new(),
        })
    }

    fn read(&mut self, backup: &ForeignBackup, intake: &mut Intake<'_>) -> Result<Arrived, Error> {
        let root = fs::metadata(&self.place).map_err(|error| cannot_read(&self.place, &error))?;
        let read = self.read_files(backup.server_version, intake);
        // What changed under the reader explains its errors, too.
        if self.has("postmaster.pid")? || self.control()? != self.control {
            return Err(Error::failed("a server was started on it while it was read"));
        }
        Ok(Arrived {
            root: directory::attributes(&root),
            tablespaces: read?,
            manifest: Manifest::Made,
            configuration: None,
        })
    }

    /// The segments before that of the checkpoint, which may not have been archived, and histories.
    fn wal(&mut self, _: &Path) -> Result<Box<dyn Iterator<Item = Result<ForeignWal, LeftOut>> + '_>, Error> {
        let control = self.parsed()?;
        let last = SegmentName::from_lsn(control.timeline, control.checkpoint, control.segment_size);
        let directory = self.place.join("pg_wal");
        let unreadable = |error| cannot_read(&directory, &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&directory).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            match name.to_str().and_then(|name| name.parse().ok()) {
                // What is behind is recycled, and has other content than its name says.
                Some(WalName::Segment(segment)) if segment.timeline == last.timeline && segment < last => {
                    names.push((true, WalName::Segment(segment)));
                }
                Some(name @ WalName::History(_)) => names.push((false, name)),
                _ => {}
            }
        }
        names.sort_unstable();
        Ok(Box::new(names.into_iter().map(move |(_, name)| {
            let place = directory.join(name.to_string());
            Ok(ForeignWal {
                name,
                place: place.display().to_string(),
                open: Box::new(move || Ok(Box::new(open_regular(&place)?))),
                arriving: None,
            })
        })))
    }
}
