//! The ids of everything that is needed, whatever of it can be read.
//!
//! Each backup is walked through beside the one before of its server, as a mark of a sweep does it, so a year of backups costs one
//! full walk and the changes. What cannot be read is needed, too; what it refers to is unknown. From then on, trees are walked
//! through alone: a page that could not be read when it was met has handed nothing on, so none may be compared with it.

use barmanfs_store::tree::ChunkRole;
use barmanfs_store::{ChunkId, DirectoryRef, FileMap};

use crate::error::Result;
use crate::index::chunk_set::{ChunkSet, Met, Role};
use crate::index::repository::Repository;
use crate::index::sorted::{Collector, Sorted};
use crate::monitor::{Monitor, Unit};
use crate::upkeep::verify::Subject;

/// Collects the ids.
pub(super) struct Needed<'a> {
    repository: &'a Repository,
    /// Pages of listings and pieces of maps.
    visited: ChunkSet,
    ids: Collector<{ ChunkId::BYTES }>,
    /// Whether each page and piece could be read.
    is_whole: bool,
    backups: u64,
}

impl<'a> Needed<'a> {
    /// Nothing yet.
    pub(super) fn new(repository: &'a Repository) -> Result<Self> {
        Ok(Self {
            repository,
            visited: ChunkSet::new()?,
            ids: Collector::new(),
            is_whole: true,
            backups: 0,
        })
    }

    /// All that was added.
    pub(super) fn finish(self) -> Sorted<{ ChunkId::BYTES }> {
        self.ids.finish()
    }

    /// Adds what a subject needs.
    pub(super) fn add(&mut self, subject: &Subject, monitor: &mut dyn Monitor) -> Result<()> {
        let repository = self.repository;
        let mut before = None;
        for backup in &subject.backups {
            let Some(_guard) = repository.verifying(backup)? else {
                continue;
            };
            // That of its data comes first, then that of its configuration.
            for (number, tree) in repository.trees_of(backup)?.into_iter().enumerate() {
                let beside = before.as_ref().filter(|_| number == 0);
                self.add_tree(&tree, beside)?;
                if number == 0 {
                    before = Some(tree);
                }
            }
            self.backups += 1;
            monitor.progress(self.backups, None, Unit::Chunks);
        }
        for clone in &subject.clones {
            self.add_tree(&clone.root.directory, None)?;
            let mut grafts = clone.grafts.iter();
            grafts.try_for_each(|graft| self.add_file(&graft.map))?;
        }
        let mut quarantined = subject.quarantined.iter();
        quarantined.try_for_each(|file| self.add_file(&file.map))?;
        repository.each_wal(subject, &mut |file| self.add_file(&file.map))
    }

    fn add_tree(&mut self, tree: &DirectoryRef, before: Option<&DirectoryRef>) -> Result<()> {
        let before = before.filter(|_| self.is_whole);
        let (repository, visited, ids) = (self.repository, &self.visited, &self.ids);
        let mut is_whole = self.is_whole;
        let mut enter = |id, role| Ok(enter(repository, visited, ids, &mut is_whole, id, role)?);
        let walked = repository
            .trees()
            .chunks_beside(tree, before, &mut enter, &|found| {
                Ok(ids.add(found.iter().map(|id| id.0))?)
            });
        self.is_whole = is_whole;
        Ok(walked?)
    }

    fn add_file(&mut self, map: &FileMap) -> Result<()> {
        let Self {
            repository,
            visited,
            ids,
            is_whole,
            ..
        } = self;
        Ok(repository.trees().chunks_of_file(map, &mut |id, role| {
            Ok(enter(repository, visited, ids, is_whole, id, role)?)
        })?)
    }
}

/// Adds a chunk; returns whether to continue with what it refers to: not if that has been done, or if the chunk cannot be
/// read.
fn enter(
    repository: &Repository,
    visited: &ChunkSet,
    ids: &Collector<{ ChunkId::BYTES }>,
    is_whole: &mut bool,
    id: ChunkId,
    role: ChunkRole,
) -> Result<bool> {
    if role == ChunkRole::Window {
        ids.add([id.0])?;
        return Ok(true);
    }
    if visited.meet(&id, Role::Tree(role))? == Met::Before {
        return Ok(false);
    }
    ids.add([id.0])?;
    match repository.chunks().get(&id) {
        Ok(_) => Ok(true),
        Err(error) if error.is_damage() => {
            *is_whole = false;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
