//! `pg_basebackup`'s plain format: the data directory, with the WAL that makes it consistent.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use barmanfs_catalog::Backup;
use barmanfs_fs::views::PlainOptions;

use super::{Asked, Exported, own_segments};
use crate::error::Error;
use crate::progress::{Counted, Progress};
use crate::restore::{Like, Prepared, Relocations, ViewTree, WriteOptions, destination};
use crate::signals::Interruption;
use crate::unfinished::{UnfinishedDirectory, failed};

/// Exports a backup to a directory, and its tablespaces to these places.
pub(crate) fn export(
    asked: &Asked<'_>,
    backup: &Backup,
    to: &Path,
    tablespaces: &Relocations,
) -> Result<Exported, Error> {
    let began = Instant::now();
    let wal = PlainOptions { wal: asked.with_wal };
    let view = super::open(asked.repository, backup, Some(wal), None)?;
    let unfinished = UnfinishedDirectory::make(&destination::resolved(to)?)?;
    let outside = tablespaces
        .iter()
        .map(|(oid, place)| Ok((oid, UnfinishedDirectory::make(place)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    let places = outside
        .iter()
        .map(|(oid, unfinished)| (*oid, unfinished.path().to_owned()));
    let tree = DataDirectory {
        path: unfinished.path().to_owned(),
        tablespaces: Relocations::at(places),
    };
    let progress = Progress::start(format!("Export of {}", backup.id), Counted::Bytes, asked.quiet);
    let signals = Interruption::watch(|| {})?;
    let mut exported = tree.write(asked, view, None, &progress, &signals)?;
    let mut written = outside.into_iter();
    written.try_for_each(|(oid, unfinished)| {
        tree.link(oid, unfinished.destination())?;
        unfinished.put()
    })?;
    exported.path = Some(unfinished.destination().to_owned());
    exported.wal_files = match asked.with_wal {
        true => own_segments(backup).len() as u64,
        false => 0,
    };
    unfinished.put()?;
    exported.elapsed = began.elapsed();
    Ok(exported)
}

/// A data directory that is written, and the places of its tablespaces outside.
#[derive(Debug)]
pub(super) struct DataDirectory {
    pub(super) path: PathBuf,
    pub(super) tablespaces: Relocations,
}

impl DataDirectory {
    pub(super) fn write(
        &self,
        asked: &Asked<'_>,
        view: ViewTree,
        like: Option<Like>,
        progress: &Progress,
        signals: &Interruption,
    ) -> Result<Exported, Error> {
        let backup = view.backup.id;
        let options = WriteOptions {
            jobs: asked.jobs,
            bandwidth_limit: None,
            delta: false,
            keep: Vec::new(),
            own: None,
            like,
            quiet: asked.quiet,
        };
        let prepared = Prepared::new(
            asked.repository,
            view,
            self.path.clone(),
            self.tablespaces.clone(),
            options,
        )?;
        let written = prepared.write(progress, signals)?;
        Ok(Exported {
            backups: vec![backup],
            files: prepared.size().files,
            bytes: written.bytes,
            written_bytes: written.written_bytes,
            ..Exported::default()
        })
    }

    /// Makes the link to a tablespace lead to where it will be.
    pub(super) fn link(&self, oid: u32, to: &Path) -> Result<(), Error> {
        let link = self.path.join("pg_tblspc").join(oid.to_string());
        // A tablespace that the backup has no files of.
        if link.symlink_metadata().is_err() {
            return Ok(());
        }
        fs::remove_file(&link)
            .and_then(|()| std::os::unix::fs::symlink(to, &link))
            .map_err(|error| failed("make", &link, &error))
    }
}
