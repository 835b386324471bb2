//! Stores the backups of a source one by one.
//!
//! A backup counts when all its files are stored and agree with its manifest, its label and its control file. Until then
//! nothing of it is shown. An interrupted import leaves only chunks, which the next one finds.

use std::fs::File;
use std::io::{self, Seek};

use barmanfs_catalog::{
    Backup, BackupEnd, BackupRun, ConfigurationFiles, Error as CatalogError, Import, NewBackup, Repository,
    ServerName,
};
use barmanfs_pg::backup_label::BackupLabel;
use barmanfs_pg::backup_manifest::WalRange;
use barmanfs_pg::pg_control::{ClusterState, ControlError, ControlFile};
use barmanfs_pg::wal_name::{SegmentName, segments_between};
use barmanfs_pg::wal_scan::Wholeness;
use barmanfs_store::{Attributes, DirectoryRef, FileMap, TreeReader};

use super::manifest::{self, Files};
use super::{
    Arrived, ForeignBackup, ForeignConfiguration, Intake, LeftOut, Manifest, OwnWal, Source, composed,
    has_damaged_files,
};
use crate::backup::compose::{Composer, Parent};
use crate::backup::configuration::store_files;
use crate::backup::files::{BackupFiles, MANIFEST, file_map};
use crate::backup::finish::read_label;
use crate::backup::receive::{manifest_attributes, spooled};
use crate::backup::sent_manifest::SentNotesWriter;
use crate::error::Error;
use crate::incoming::whole;
use crate::made_manifest::{self, NAMES_CLUSTER_SINCE};
use crate::moment;
use crate::progress::{Counted, Progress};
use crate::signals::Interruption;

/// Path of the control file.
const CONTROL: &[u8] = b"global/pg_control";

/// The size of a control file.
const CONTROL_BYTES: usize = 8192;

/// Where backups are imported to, and how.
#[derive(Debug)]
pub(crate) struct Importer<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) server: &'a ServerName,
    pub(crate) signals: &'a Interruption,
    pub(crate) quiet: bool,
}

/// What became of one backup.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is stored now.
    Imported {
        backup: Box<Backup>,
        /// Bytes that were read of its source.
        read_bytes: u64,
        /// Bytes of files that were taken over from other backups, and not read.
        shared_bytes: u64,
    },
    /// It was here before.
    Present(Box<Backup>),
    /// It was here and damaged, and is whole again.
    Repaired {
        backup: Box<Backup>,
        read_bytes: u64,
        shared_bytes: u64,
    },
    /// It cannot be taken.
    LeftOut(LeftOut),
}

impl Importer<'_> {
    /// Imports one backup, unless it is here. One that is here and damaged is stored again: what its files had in common
    /// with the source is whole then. `previous` is the one before it in the source.
    ///
    /// # Errors
    /// When the repository fails, or the user interrupts. What is wrong with the backup itself is [`Taken::LeftOut`].
    pub(crate) fn take(
        &self,
        source: &mut dyn Source,
        backup: &ForeignBackup,
        previous: Option<&Backup>,
    ) -> Result<Taken, Error> {
        let here = backup.identity().find(self.repository, self.server)?;
        if let Some(here) = &here {
            self.keep(backup, here)?;
            if !has_damaged_files(self.repository, here)? {
                return Ok(Taken::Present(Box::new(here.clone())));
            }
        }
        let left_out = |error: &Error| Taken::LeftOut(LeftOut::problem(&backup.name, error.to_string()));
        let parent = match self.parent(backup) {
            Ok(parent) => parent,
            Err(error) => return Ok(left_out(&error)),
        };
        let writer = self.repository.writer(&format!("import of {}", self.server))?;
        let (new, import) = described(backup);
        let mut run = match writer.begin_import(self.server, new, import) {
            Err(error @ CatalogError::OtherSystem { .. }) => return Ok(left_out(&error.into())),
            begun => begun?,
        };
        if let Some(target) = backup.keep {
            run.keep(target, Some(kept_there()));
        }
        run.annotate(backup.annotations.clone());
        let parent = build_on(&mut run, parent, previous)?;
        let mut repository_failed = false;
        let stored = self.store(source, backup, &mut run, parent, &mut repository_failed);
        match (stored, here) {
            (Ok((end, read_bytes, shared_bytes)), None) => Ok(Taken::Imported {
                backup: Box::new(run.finish(end)?),
                read_bytes,
                shared_bytes,
            }),
            (Ok((_, read_bytes, shared_bytes)), Some(here)) => {
                run.leave()?;
                match has_damaged_files(self.repository, &here)? {
                    false => Ok(Taken::Repaired {
                        backup: Box::new(here),
                        read_bytes,
                        shared_bytes,
                    }),
                    true => Ok(Taken::LeftOut(LeftOut::problem(
                        &backup.name,
                        format!(
                            "it is damaged here, as {}, and what is damaged is not in the source any more: \
                             'barmanfs delete {} {}' and import it again",
                            here.id, self.server, here.id
                        ),
                    ))),
                }
            }
            (Err(error), _) => {
                run.fail(&error.to_string());
                match repository_failed {
                    true => Err(error.context(format_args!("Import of {}", backup.name))),
                    false => Ok(left_out(&error)),
                }
            }
        }
    }

    /// The backup here that an incremental one builds on.
    fn parent(&self, backup: &ForeignBackup) -> Result<Option<Backup>, Error> {
        let Some((start_lsn, timeline)) = backup.parent_start else {
            return Ok(None);
        };
        let is_parent = |here: &Backup| {
            here.is_complete()
                && here.system_id == backup.system_id
                && here.start_lsn == Some(start_lsn)
                && here.timeline == Some(timeline)
        };
        let found = self.repository.backups(self.server)?.into_iter().find(is_parent);
        match found {
            Some(parent) => Ok(Some(parent)),
            None => Err(Error::failed(format!(
                "it builds on the backup that starts at {start_lsn} on timeline {timeline}, which is not here"
            ))),
        }
    }

    /// Stores the files and checks them.
    fn store(
        &self,
        source: &mut dyn Source,
        backup: &ForeignBackup,
        run: &mut BackupRun,
        parent: Option<Parent>,
        repository_failed: &mut bool,
    ) -> Result<(BackupEnd, u64, u64), Error> {
        let what = format!("Import of {}", backup.name);
        let progress = Progress::start(what, Counted::Bytes, self.quiet);
        progress.set(0, backup.size_bytes);
        let composer = Composer::new(parent, SentNotesWriter::in_any_order());
        let files = BackupFiles::new(run, Some(composer), Intake::root_mode());
        let mut intake = Intake::new(
            files,
            (self.repository, self.server),
            (&progress, self.signals),
            (backup.size_bytes, OwnWal::of(backup)),
        );
        let arrived = source.read(backup, &mut intake);
        *repository_failed = intake.repository_failed;
        let arrived = arrived?;
        let (read_bytes, shared_bytes) = (intake.read_bytes, intake.shared_bytes);
        let composed = std::mem::take(&mut intake.composed);
        let sums = intake.files.take_sums();
        let (_, seen, composer) = intake.files.finish();
        let has_altered = composer.as_ref().is_some_and(Composer::has_altered);
        let notes = composer.map_or_else(|| SentNotesWriter::in_any_order().finish(), Composer::finish);
        let notes = notes.map_err(|error| Error::failed(error.to_string()))?;
        progress.note("checking");
        // From here on, what fails is the repository unless a check does.
        let ended = run.end_tree(arrived.root);
        *repository_failed = ended.is_err();
        let (trees, root) = ended?;
        composed::check(&trees, &root, &composed)?;
        let files = Files {
            seen,
            notes,
            sums,
            has_altered,
            trees: &trees,
            root: &root,
        };
        let end = self.check(backup, run, arrived, files, read_bytes)?;
        Ok((end, read_bytes, shared_bytes))
    }

    /// Checks the stored files, and adds the manifest.
    fn check(
        &self,
        backup: &ForeignBackup,
        run: &mut BackupRun,
        arrived: Arrived,
        files: Files<'_>,
        read_bytes: u64,
    ) -> Result<BackupEnd, Error> {
        let (trees, root) = (files.trees, files.root);
        let control = read_control(trees, root, backup)?;
        let from_standby = match backup.is_cold {
            true => check_cold(backup, control.as_ref()).map(|()| false)?,
            false => {
                let label = read_label(trees, root)?;
                check_label(backup, &label)?;
                label.from.as_deref() == Some("standby")
            }
        };
        let is_included = has_wal(trees, root, backup)?;
        let (mut content, size_bytes) = self.manifest(backup, arrived.manifest, files)?;
        let attributes = manifest_attributes(arrived.root);
        run.add_file(MANIFEST, attributes, size_bytes, &mut content)?;
        run.set_wal_included(is_included);
        if let Some(configuration) = arrived.configuration {
            store_configuration(run, arrived.root, configuration)?;
        }
        Ok(BackupEnd {
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            timeline: backup.timeline,
            data_checksums: control.map(|control| control.data_checksum_version != 0),
            tablespaces: arrived.tablespaces,
            sent_bytes: read_bytes,
            checksum_failures: Vec::new(),
            from_standby,
        })
    }

    /// The manifest of the stored files, which agrees with the given one.
    fn manifest(
        &self,
        backup: &ForeignBackup,
        manifest: Manifest,
        files: Files<'_>,
    ) -> Result<(File, u64), Error> {
        let spool = self.repository.path();
        match manifest {
            Manifest::Given(mut given) => {
                let mut copy = spooled(spool)?;
                io::copy(&mut given, &mut copy)
                    .and_then(|_| copy.rewind())
                    .map_err(|error| Error::failed(format!("Cannot read backup_manifest: {error}")))?;
                manifest::check(copy, files, (backup.system_id, backup.server_version), spool)
            }
            Manifest::Made => {
                let names_cluster = backup.server_version.major() >= NAMES_CLUSTER_SINCE;
                let range = WalRange {
                    timeline: backup.timeline,
                    start_lsn: backup.start_lsn,
                    end_lsn: backup.stop_lsn,
                };
                let system_id = names_cluster.then_some(backup.system_id);
                made_manifest::write((files.trees, files.root), system_id, range, spool)
            }
        }
    }

    /// Keeps a backup that was imported before as its user does, unless somebody has decided about it here. One that is
    /// imported now is kept by its run.
    fn keep(&self, foreign: &ForeignBackup, here: &Backup) -> Result<(), Error> {
        // A backup that was not imported has its own keeper.
        let Some(target) = foreign.keep.filter(|_| here.imported.is_some()) else {
            return Ok(());
        };
        match self.repository.keep_as_imported(here, target, kept_there()) {
            // The import notices at its end that it is gone.
            Err(CatalogError::NoSuchBackup { .. }) => Ok(()),
            kept => Ok(kept?),
        }
    }
}

/// What is known of a backup before it is read.
fn described(backup: &ForeignBackup) -> (NewBackup, Import) {
    let new = NewBackup {
        label: backup.label.clone(),
        system_id: backup.system_id,
        server_version: backup.server_version,
        segment_size: backup.segment_size,
        wal_included: false,
        timezone: None,
        fork: None,
    };
    let import = Import {
        id: backup.id,
        tool: backup.tool.clone(),
        name: backup.name.clone(),
        begin_time: backup.begin_time,
        end_time: backup.end_time,
        shut_down: backup.is_cold,
    };
    (new, import)
}

/// Builds a backup on its parent, or compares it with the one before it in the source.
fn build_on(
    run: &mut BackupRun,
    parent: Option<Backup>,
    previous: Option<&Backup>,
) -> Result<Option<Parent>, Error> {
    let Some(parent) = parent else {
        if let Some(previous) = previous {
            run.compare_with(previous)?;
        }
        return Ok(None);
    };
    let files = run.build_on(&parent)?;
    Ok(Some(Parent::new(parent, files)))
}

/// Why an imported backup is kept.
fn kept_there() -> String {
    format!("kept where it was imported from, at {}", moment::now())
}

/// A backup without a label begins where its control file says, which must be as it was when the server was stopped.
fn check_cold(backup: &ForeignBackup, control: Option<&ControlFile>) -> Result<(), Error> {
    let is_same = |control: &ControlFile| {
        control.state == ClusterState::ShutDown
            && (control.redo, control.timeline) == (backup.start_lsn, backup.timeline)
    };
    match control.is_some_and(is_same) {
        true => Ok(()),
        false => Err(Error::failed("its control file changed while it was read")),
    }
}

fn check_label(backup: &ForeignBackup, label: &BackupLabel) -> Result<(), Error> {
    if (label.start_lsn, label.start_timeline) == (backup.start_lsn, backup.timeline) {
        return Ok(());
    }
    Err(Error::failed(format!(
        "its backup_label says that it starts at {} on timeline {}, its description says {} on timeline {}",
        label.start_lsn, label.start_timeline, backup.start_lsn, backup.timeline
    )))
}

/// The control file, which must be of the same cluster; `None` if its layout is unknown.
fn read_control(
    trees: &TreeReader,
    root: &DirectoryRef,
    backup: &ForeignBackup,
) -> Result<Option<ControlFile>, Error> {
    let found = trees.find(root, CONTROL).map_err(barmanfs_catalog::Error::from)?;
    let Some(map) = found.and_then(file_map) else {
        return Err(Error::failed("global/pg_control is missing"));
    };
    let mut bytes = vec![0; CONTROL_BYTES];
    let length = trees
        .read_at(&map, 0, &mut bytes)
        .map_err(barmanfs_catalog::Error::from)?;
    match ControlFile::parse(bytes.get(..length).unwrap_or_default()) {
        Ok(control) if control.system_id == backup.system_id => Ok(Some(control)),
        Ok(control) => Err(Error::failed(format!(
            "global/pg_control is of the cluster {}, the backup of {}",
            control.system_id, backup.system_id
        ))),
        Err(ControlError::UnknownVersion { .. }) => Ok(None),
        Err(error) => Err(Error::failed(error.to_string())),
    }
}

/// Whether `pg_wal` of the backup has every segment that it needs. One that is there must be the one that its name says, up to
/// where the backup ends: PostgreSQL would read it.
fn has_wal(trees: &TreeReader, root: &DirectoryRef, backup: &ForeignBackup) -> Result<bool, Error> {
    let needed = segments_between(
        backup.timeline,
        backup.start_lsn,
        backup.stop_lsn,
        backup.segment_size,
    );
    let mut has_all = true;
    for segment in needed {
        let path = format!("pg_wal/{segment}");
        let found = trees
            .find(root, path.as_bytes())
            .map_err(barmanfs_catalog::Error::from)?;
        match found.and_then(file_map) {
            None => has_all = false,
            Some(map) => check_segment(&segment, map, trees, backup)
                .map_err(|why| Error::failed(format!("{path}: {why}")))?,
        }
    }
    Ok(has_all)
}

fn check_segment(
    segment: &SegmentName,
    map: FileMap,
    trees: &TreeReader,
    backup: &ForeignBackup,
) -> Result<(), String> {
    let size_bytes = map.size_bytes;
    let scanned = whole::scan(segment, size_bytes, &mut trees.reader(map));
    let (facts, wholeness) = scanned.map_err(|error| format!("it cannot be read back: {error}"))??;
    if facts.system_id != backup.system_id {
        let (found, own) = (facts.system_id, backup.system_id);
        return Err(format!(
            "it is WAL of the cluster {found}, the backup is of {own}"
        ));
    }
    match wholeness {
        // Behind the backup's end may be anything: the last segment is filled up, or was used before.
        Wholeness::Cut(end) if end < backup.stop_lsn => Err(format!(
            "its WAL ends at {end}, and the backup ends at {}",
            backup.stop_lsn
        )),
        _ => Ok(()),
    }
}

fn store_configuration(
    run: &mut BackupRun,
    root: Attributes,
    configuration: ForeignConfiguration,
) -> Result<(), Error> {
    let files = configuration.files.iter();
    let files = files.map(|(path, attributes, content)| (path.as_str(), *attributes, content.as_slice()));
    let directory = store_files(run, root, files)?;
    run.set_configuration(ConfigurationFiles {
        directory,
        read_at: moment::now(),
        data_directory: configuration.data_directory,
        config_file: configuration.config_file,
        hba_file: configuration.hba_file,
        ident_file: configuration.ident_file,
    });
    Ok(())
}
