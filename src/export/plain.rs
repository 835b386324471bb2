//! `pg_basebackup`'s plain format: the data directory, with the WAL that makes it consistent.

use std::path::{Path, PathBuf};
use std::time::Instant;

use barmanfs_catalog::Backup;
use barmanfs_fs::views::PlainOptions;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

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
    let to = destination::resolved(to)?;
    let places = tablespaces
        .tablespaces()
        .map(|(_, place)| destination::resolved(place));
    let places = places.collect::<Result<Vec<_>, Error>>()?;
    // What is written is reached by a descriptor, whose path says nothing.
    for place in places.iter().chain([&to]) {
        destination::refuse_place(Some(asked.repository), place)?;
    }
    destination::refuse_shared(&to, &places)?;
    let unfinished = UnfinishedDirectory::make(&to)?;
    let outside = tablespaces
        .tablespaces()
        .map(|(oid, place)| Ok((oid, UnfinishedDirectory::make(place)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    let places = outside.iter().map(|(oid, unfinished)| (*oid, unfinished.below()));
    let tree = DataDirectory {
        path: unfinished.below(),
        tablespaces: Relocations::at(places),
    };
    let progress = Progress::start(format!("Export of {}", backup.id), Counted::Bytes, asked.quiet);
    let signals = Interruption::watch(|| {})?;
    let named = |error| {
        let all = outside.iter().map(|(_, unfinished)| unfinished);
        all.chain([&unfinished])
            .fold(error, |error, one| one.named(error))
    };
    let written = tree.write(asked, view, None, &progress, &signals);
    let mut exported = written.map_err(named)?;
    for (oid, unfinished) in &outside {
        tree.link(*oid, unfinished.destination()).map_err(named)?;
    }
    exported.path = Some(unfinished.destination().to_owned());
    exported.wal_files = match asked.with_wal {
        true => own_segments(backup).len() as u64,
        false => 0,
    };
    let outside = outside.into_iter().map(|(_, unfinished)| unfinished);
    UnfinishedDirectory::put_all(outside.chain([unfinished]).collect())?;
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
        let place = self.path.join("pg_tblspc");
        let (link, name) = (place.join(oid.to_string()), oid.to_string());
        let fail = |error: Errno| failed("make", &link, &error.into());
        // The directory may belong to another user by now.
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::open(&place, flags, Mode::empty()).map_err(fail)?;
        match rustix::fs::unlinkat(&place, &name, AtFlags::empty()) {
            // A tablespace that the backup has no files of.
            Err(Errno::NOENT) => Ok(()),
            removed => removed
                .and_then(|()| rustix::fs::symlinkat(to, &place, &name))
                .map_err(fail),
        }
    }
}
