//! Reads a mounted snapshot into a backup.
//!
//! What is left out is what a server leaves out of a base backup. The label of the backup is placed, and the manifest is made of
//! the stored files. The snapshot must lie between the start and the end of the backup: its control file and its pages say so.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::Cursor;
use std::path::{Path, PathBuf};

use barmanfs_catalog::{BackupEnd, BackupRun, Repository, ServerName, Tablespace};
use barmanfs_pg::backup_manifest::WalRange;
use barmanfs_pg::own_files::{is_own, tablespace_entry};
use barmanfs_pg::relation_name::{self, Fork};
use barmanfs_pg::{Lsn, tablespace_map};
use barmanfs_store::{Attributes, open_regular};

use super::places::{Snapshot, hole, linked};
use super::tablespaces::Wanted;
use crate::backup::files::{BackupFiles, LABEL, MANIFEST};
use crate::backup::pages::{Findings, Pages, Rules, is_unlogged};
use crate::backup::receive::manifest_attributes;
use crate::backup::wal_directories;
use crate::backup::window::Stopped;
use crate::clone::backup_contents::{Inclusion, inclusion};
use crate::config::TablespacePlace;
use crate::error::Error;
use crate::import::directory::{self, Choice, attributes, cannot_read, leave_link_out};
use crate::import::{Intake, OwnWal};
use crate::made_manifest::{self, NAMES_CLUSTER_SINCE};
use crate::output::printable;
use crate::progress::{Counted, Progress};
use crate::signals::Interruption;

/// The directory of the links to tablespaces.
const TABLESPACES: &[u8] = b"pg_tblspc/";

/// The directory of the WAL.
const WAL: &[u8] = b"pg_wal";

/// Permissions of the label, as a server writes it.
const LABEL_MODE: u32 = 0o600;

/// A snapshot that is to be read.
pub(super) struct Ingest<'a> {
    pub(super) repository: &'a Repository,
    pub(super) server: &'a ServerName,
    pub(super) snapshot: &'a Snapshot,
    pub(super) stopped: &'a Stopped,
    /// The names of tablespaces, as far as they are known.
    pub(super) names: std::collections::HashMap<u32, String>,
    /// Where tablespaces are, by hand.
    pub(super) given: &'a [TablespacePlace],
    /// The server's data directory, if that is known.
    pub(super) live: Option<&'a Path>,
    pub(super) signals: &'a Interruption,
    pub(super) quiet: bool,
}

impl Ingest<'_> {
    /// Refuses a snapshot that was not taken between the start and the end of the backup.
    fn refuse_other_time(&self) -> Result<(), Error> {
        let (control, stopped) = (&self.snapshot.control, self.stopped);
        let label = &stopped.label;
        if control.checkpoint < label.checkpoint_lsn {
            return Err(Error::failed(format!(
                "The snapshot was taken before the backup began: the last checkpoint in its global/pg_control is at {}, that of \
                 the backup_label at {}",
                control.checkpoint, label.checkpoint_lsn
            )));
        }
        if control.checkpoint > stopped.stop_lsn {
            return Err(Error::failed(format!(
                "The snapshot was taken after the backup ended: its global/pg_control has a checkpoint at {}, the backup stopped \
                 at {}",
                control.checkpoint, stopped.stop_lsn
            )));
        }
        Ok(())
    }

    /// How far the pages may have got. A standby knows in its control file what its pages need, and no record says it again: what
    /// was frozen after the control file may be newer.
    fn newest_page(&self) -> Lsn {
        let (min_recovery, stop) = (self.snapshot.control.min_recovery, self.stopped.stop_lsn);
        match self.stopped.label.from.as_deref() {
            Some("standby") => stop.min(min_recovery),
            _ => stop,
        }
    }

    /// Reads everything, and returns what completes the backup.
    ///
    /// # Errors
    /// When the snapshot is not one of this backup, or cannot be read or stored.
    pub(super) fn run(mut self, run: &mut BackupRun) -> Result<BackupEnd, Error> {
        self.refuse_other_time()?;
        let map = tablespace_map::parse(self.stopped.map.as_bytes())
            .map_err(|error| Error::failed(error.to_string()))?;
        let wanted: Vec<Wanted> = map
            .into_iter()
            .map(|(oid, location)| Wanted {
                oid,
                name: self.names.remove(&oid),
                location,
            })
            .collect();
        let places = self.snapshot.tablespaces(&wanted, self.given, self.live)?;
        let data = &self.snapshot.data;
        let root = fs::metadata(data).map_err(|error| cannot_read(data, &error))?;
        let root = attributes(&root);
        let (read_bytes, findings) = self.read(run, &places, root)?;
        self.manifest(run, root)?;
        let label = &self.stopped.label;
        Ok(BackupEnd {
            start_lsn: label.start_lsn,
            stop_lsn: self.stopped.stop_lsn,
            timeline: label.start_timeline,
            data_checksums: Some(self.snapshot.control.data_checksum_version != 0),
            tablespaces: wanted.into_iter().map(tablespace).collect(),
            sent_bytes: read_bytes,
            checksum_failures: findings.failures(),
            from_standby: label.from.as_deref() == Some("standby"),
        })
    }

    /// Stores the files.
    fn read(
        &self,
        run: &BackupRun,
        places: &BTreeMap<u32, PathBuf>,
        root: Attributes,
    ) -> Result<(u64, Findings), Error> {
        let what = format!("Backup of {}", self.server);
        let progress = Progress::start(what, Counted::Bytes, self.quiet);
        let files = BackupFiles::new(run, None, root.mode);
        let label = &self.stopped.label;
        let range = (label.start_lsn, self.stopped.stop_lsn);
        let size = self.snapshot.control.segment_size;
        let wal = OwnWal::between(range, label.start_timeline, size);
        let mut intake = Intake::new(
            files,
            (self.repository, self.server),
            (&progress, self.signals),
            (None, wal),
        );
        let mut walk = Walk {
            stop: self.stopped.stop_lsn,
            places,
            rules: Rules {
                start: self.stopped.label.start_lsn,
                newest: self.newest_page(),
                has_checksums: self.snapshot.control.data_checksum_version != 0,
            },
            major: self.snapshot.version.major(),
            version_directory: self.snapshot.version_directory(),
            findings: Findings::default(),
        };
        directory::store(
            &mut intake,
            &self.snapshot.data,
            b"",
            &mut |intake, path, place, found| walk.choose(intake, path, place, found),
        )?;
        let text = self.stopped.label_text.as_bytes();
        let like = Attributes {
            mode: LABEL_MODE,
            ..root
        };
        intake.file(LABEL, like, text.len() as u64, &mut Cursor::new(text))?;
        tracing::debug!(
            "{} pages of the snapshot have the right checksum, {} not",
            walk.findings.right_count,
            walk.findings.wrong_count
        );
        Ok((intake.read_bytes(), walk.findings))
    }

    /// Adds the manifest of the stored files.
    fn manifest(&self, run: &mut BackupRun, root: Attributes) -> Result<(), Error> {
        let (trees, directory) = run.end_tree(root)?;
        let label = &self.stopped.label;
        let names_cluster = self.snapshot.version.major() >= NAMES_CLUSTER_SINCE;
        let range = WalRange {
            timeline: label.start_timeline,
            start_lsn: label.start_lsn,
            end_lsn: self.stopped.stop_lsn,
        };
        let system_id = names_cluster.then_some(self.snapshot.control.system_id);
        let spool = self.repository.path();
        let (mut content, size_bytes) = made_manifest::write((&trees, &directory), system_id, range, spool)?;
        Ok(run.add_file(MANIFEST, manifest_attributes(root), size_bytes, &mut content)?)
    }
}

fn tablespace(wanted: Wanted) -> Tablespace {
    Tablespace {
        oid: wanted.oid,
        name: wanted.name,
        location: String::from_utf8_lossy(&wanted.location).into_owned(),
    }
}

/// Decides about each entry.
struct Walk<'a> {
    /// Where the backup ends.
    stop: Lsn,
    places: &'a BTreeMap<u32, PathBuf>,
    rules: Rules,
    major: u32,
    /// The directory of a tablespace with the files of this cluster.
    version_directory: String,
    findings: Findings,
}

impl Walk<'_> {
    fn choose(
        &mut self,
        intake: &mut Intake<'_>,
        path: &[u8],
        place: &Path,
        found: &Metadata,
    ) -> Result<Choice, Error> {
        if path == LABEL || path == b"backup_label.old" || path == b"tablespace_map.old" {
            return Ok(Choice::LeaveOut);
        }
        if path == WAL {
            return self.empty_wal(intake, place);
        }
        if let Some(place) = tablespace_oid(path).and_then(|oid| self.places.get(&oid)) {
            return Ok(Choice::Follow(place.clone()));
        }
        // Other clusters and other things may lie beside the files of this one, as in a base backup.
        if tablespace_entry(path).is_some_and(|name| name != self.version_directory.as_bytes()) {
            return Ok(Choice::LeaveOut);
        }
        // A tablespace within the data directory is in the backup once.
        if found.is_dir() && self.is_tablespace(path, place) {
            intake.directory(path, attributes(found))?;
            return Ok(Choice::Stored);
        }
        match inclusion(path) {
            Inclusion::LeftOut | Inclusion::Wal => return Ok(Choice::LeaveOut),
            Inclusion::EmptyDirectory => {
                // A link becomes a directory, as in a base backup.
                let found = fs::metadata(place).map_err(|error| cannot_read(place, &error))?;
                intake.directory(path, attributes(&found))?;
                return Ok(Choice::Stored);
            }
            Inclusion::Included => {}
        }
        if found.is_symlink() {
            return match is_own(path) {
                true => Err(linked(place)),
                false => leave_link_out(path, place),
            };
        }
        if found.is_dir() && is_database(path) {
            refuse_empty(place)?;
        }
        if !found.is_file() {
            return Ok(Choice::Take);
        }
        self.file(intake, path, place)
    }

    fn is_tablespace(&self, path: &[u8], place: &Path) -> bool {
        !path.starts_with(TABLESPACES) && self.places.values().any(|tablespace| tablespace == place)
    }

    fn too_new(&self, page: &str) -> Error {
        let newest = self.rules.newest;
        if newest == self.stop {
            return Error::failed(format!(
                "The snapshot was taken after the backup ended, at least that of this disk: {page}, the backup stopped at {newest}"
            ));
        }
        Error::failed(format!(
            "The snapshot of this disk is newer than that of the data directory, whose global/pg_control needs the WAL up to \
             {newest} only: {page}"
        ))
        .hint("Of a standby, take all disks at one instant, or that of the data directory last")
    }

    /// `pg_wal` and its directories, without files: the archive has the WAL.
    fn empty_wal(&self, intake: &mut Intake<'_>, place: &Path) -> Result<Choice, Error> {
        // It may be a link that leads nowhere here.
        let found = fs::metadata(place).or_else(|_| fs::symlink_metadata(place));
        let like = found
            .map(|found| attributes(&found))
            .map_err(|error| cannot_read(place, &error))?;
        let like = Attributes { mode: 0o700, ..like };
        for path in wal_directories(self.major) {
            intake.directory(path, like)?;
        }
        Ok(Choice::Stored)
    }

    /// Stores a file of a relation, and looks at its pages.
    fn file(&mut self, intake: &mut Intake<'_>, path: &[u8], place: &Path) -> Result<Choice, Error> {
        let Some(file) = relation_name::parse(path) else {
            return Ok(Choice::Take);
        };
        if file.fork != Fork::Init && is_unlogged(place, file.filenode) {
            return Ok(Choice::LeaveOut);
        }
        let source: File = open_regular(place).map_err(|error| cannot_read(place, &error))?;
        let found = source.metadata().map_err(|error| cannot_read(place, &error))?;
        let named = (printable(path), &file);
        let mut pages = Pages::new(source, named, self.rules, &mut self.findings);
        intake.file(path, attributes(&found), found.len(), &mut pages)?;
        match &self.findings.newer {
            None => Ok(Choice::Stored),
            Some(page) => Err(self.too_new(page)),
        }
    }
}

/// The OID in `pg_tblspc/<oid>`.
fn tablespace_oid(path: &[u8]) -> Option<u32> {
    let name = path.strip_prefix(TABLESPACES)?;
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// `base/<oid>`: it has at least the map of its catalogs. That of a database in a tablespace may be empty.
fn is_database(path: &[u8]) -> bool {
    let name = path.strip_prefix(b"base/").unwrap_or_default();
    !name.is_empty() && name.iter().all(u8::is_ascii_digit)
}

fn refuse_empty(place: &Path) -> Result<(), Error> {
    let mut entries = fs::read_dir(place).map_err(|error| cannot_read(place, &error))?;
    match entries.next() {
        Some(_) => Ok(()),
        None => Err(hole(place)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directories_of_databases_are_known_by_their_paths() {
        for (path, is) in [
            ("base/5", true),
            ("base", false),
            ("base/pgsql_tmp", false),
            ("base/5/1259", false),
            ("pg_tblspc/16384/PG_18_202506291/5", false),
        ] {
            assert_eq!(is_database(path.as_bytes()), is, "{path}");
        }
        assert_eq!(tablespace_oid(b"pg_tblspc/16384"), Some(16384));
        assert_eq!(tablespace_oid(b"pg_tblspc/16384/x"), None);
        assert_eq!(tablespace_entry(b"pg_tblspc/16384/x"), Some(&b"x"[..]));
        for path in ["pg_tblspc/16384", "pg_tblspc/16384/x/5", "base/5/1259"] {
            assert_eq!(tablespace_entry(path.as_bytes()), None, "{path}");
        }
    }
}
