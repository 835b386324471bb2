//! Removes from a directory what the tree does not have, or has as something else: a file where there is a directory, a
//! link where there is a file. What a link leads to is never touched, except a part of the tree in the place that was asked for.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use barmanfs_fs::entry::{Content, Directory};
use rustix::fs::FileType;

use super::destination::{HELD, Opened, all_mount_points, is_of_the_file_system};
use super::marker;
use super::own_files::OwnFiles;
use super::part::Part;
use super::pattern::Pattern;
use super::place::{Found, Place};
use super::view::ViewTree;
use crate::error::Error;

/// How many removed entries are named at most: a directory may have had very many files.
const MAX_NAMED: usize = 10_000;

/// Whether something is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// It is only listed.
    List,
    /// It is removed.
    Remove,
}

/// What is not removed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stays<'a> {
    /// Entries that the tree does not have.
    pub(super) keep: &'a [Pattern],
    /// Files of a standby, whether the tree has them or not.
    pub(super) own: Option<&'a OwnFiles>,
}

/// Removes what does not belong to the tree, or lists it, which fails if something of it cannot be removed. Returns the
/// paths below the directory, without those of what was in a removed
/// directory.
pub(super) fn prune(
    view: &ViewTree,
    opened: &Opened,
    stays: Stays<'_>,
    mode: Mode,
) -> Result<Vec<PathBuf>, Error> {
    let mut pruning = Pruning {
        opened,
        stays,
        mode,
        mount_points: all_mount_points(),
        names: Vec::new(),
        removed: Vec::new(),
    };
    pruning.directory(&opened.root, &view.root)?;
    pruning.removed.sort();
    Ok(pruning.removed)
}

struct Pruning<'a> {
    opened: &'a Opened,
    stays: Stays<'a>,
    mode: Mode,
    /// Where file systems are mounted.
    mount_points: Vec<PathBuf>,
    /// The names of the present directory.
    names: Vec<Vec<u8>>,
    removed: Vec<PathBuf>,
}

impl Pruning<'_> {
    fn directory(&mut self, place: &Place, tree: &Arc<dyn Directory>) -> Result<(), Error> {
        // Removing names while they are listed may skip some, so a listing is complete first. It is one directory's.
        let names = place.names()?.collect::<Result<Vec<_>, _>>()?;
        for name in names {
            let name = name.as_bytes();
            if self.is_ours(name) {
                continue;
            }
            if let Some(found) = place.find(name)? {
                self.entry(place, tree, name, found)?;
            }
        }
        Ok(())
    }

    /// Files of the restore itself, and what belongs to the file system.
    fn is_ours(&self, name: &[u8]) -> bool {
        let directory = self.names.join(&b'/');
        let is_held = HELD
            .iter()
            .any(|(held_in, real, held)| *held_in == directory && (*held == name || *real == name));
        let is_top = self.names.is_empty() || self.opened.relocations.at_top(&self.names).is_some();
        is_held
            || is_top && is_of_the_file_system(name)
            || self.names.is_empty() && name == marker::NAME.as_bytes()
    }

    fn entry(
        &mut self,
        place: &Place,
        tree: &Arc<dyn Directory>,
        name: &[u8],
        found: Found,
    ) -> Result<(), Error> {
        let path = self.path_of(name);
        if self.stays.own.is_some_and(|own| own.covers(&path)) {
            return Ok(());
        }
        let child = tree.lookup(name)?;
        let outside = self.opened.relocations.of_child(&self.names, name);
        match (child.map(|child| child.content), outside) {
            (Some(Content::Directory(below)), Some((part, location))) => {
                let outside = self.opened.outside(part).cloned();
                if found.kind != FileType::Symlink
                    || place.link_target(name)? != location.as_os_str().as_bytes()
                {
                    self.remove(place, name, found)?;
                }
                match outside {
                    Some(outside) => self.below(name, &outside, &below),
                    None => Ok(()),
                }
            }
            (Some(Content::Directory(below)), None) if found.kind == FileType::Directory => {
                self.below(name, &place.enter(name)?, &below)
            }
            (Some(Content::File), _) if found.kind == FileType::RegularFile && !found.is_shared => Ok(()),
            (Some(Content::Symlink(target)), _)
                if found.kind == FileType::Symlink && place.link_target(name)? == *target =>
            {
                Ok(())
            }
            (None, _) if self.is_kept(name) || self.is_of_another_version(name) => Ok(()),
            // Something in it is kept.
            (None, _) if found.kind == FileType::Directory && self.may_keep_below(name) => {
                self.absent(name, &place.enter(name)?)
            }
            // The tree has a file of this name, which is not written then.
            (Some(_), _) if found.kind == FileType::Directory && self.is_above_own(name) => {
                self.absent(name, &place.enter(name)?)
            }
            _ => self.remove(place, name, found),
        }
    }

    fn below(&mut self, name: &[u8], place: &Place, tree: &Arc<dyn Directory>) -> Result<(), Error> {
        self.names.push(name.to_vec());
        let done = self.directory(place, tree);
        self.names.pop();
        done
    }

    /// A directory that the tree does not have, and that stays because of what is kept in it.
    fn absent(&mut self, name: &[u8], place: &Place) -> Result<(), Error> {
        self.names.push(name.to_vec());
        for name in place.names()?.collect::<Result<Vec<_>, _>>()? {
            let name = name.as_bytes();
            match place.find(name)? {
                Some(_) if self.is_kept(name) => {}
                Some(found) if found.kind == FileType::Directory && self.may_keep_below(name) => {
                    self.absent(name, &place.enter(name)?)?;
                }
                Some(found) => self.remove(place, name, found)?,
                None => {}
            }
        }
        self.names.pop();
        Ok(())
    }

    fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut names: Vec<&[u8]> = self.names.iter().map(Vec::as_slice).collect();
        names.push(name);
        names.join(&b'/')
    }

    fn is_kept(&self, name: &[u8]) -> bool {
        let path = self.path_of(name);
        self.stays.own.is_some_and(|own| own.covers(&path))
            || self.stays.keep.iter().any(|pattern| pattern.matches(&path))
    }

    /// Whether it belongs to a server of another version that shares the place of a tablespace: pg_upgrade leaves that of
    /// the old one there.
    fn is_of_another_version(&self, name: &[u8]) -> bool {
        let part = self.opened.relocations.at_top(&self.names);
        name.starts_with(b"PG_") && matches!(part, Some(Part::Tablespace(_)))
    }

    /// A file system that is mounted in the directory belongs to somebody else.
    fn refuse_mounted(&self, path: &Path) -> Result<(), Error> {
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match self.mount_points.iter().find(|point| point.starts_with(&real)) {
            None => Ok(()),
            Some(point) => Err(Error::failed(format!(
                "A file system is mounted at {}, and the backup has no such directory",
                point.display()
            ))
            .hint("Unmount it, or name it with --keep: then it stays as it is")),
        }
    }

    fn is_above_own(&self, name: &[u8]) -> bool {
        let path = self.path_of(name);
        self.stays.own.is_some_and(|own| own.is_above_some(&path))
    }

    fn may_keep_below(&self, name: &[u8]) -> bool {
        let path = self.path_of(name);
        self.is_above_own(name)
            || self
                .stays
                .keep
                .iter()
                .any(|pattern| pattern.may_match_below(&path))
    }

    fn remove(&mut self, place: &Place, name: &[u8], found: Found) -> Result<(), Error> {
        if found.kind == FileType::Directory {
            self.refuse_mounted(&place.path_of(name))?;
        }
        if self.removed.len() < MAX_NAMED {
            let path = std::ffi::OsString::from(std::ffi::OsStr::from_bytes(&self.path_of(name)));
            self.removed.push(path.into());
        }
        match self.mode {
            Mode::List => Ok(()),
            Mode::Remove => place.remove(name, found.kind),
        }
    }
}
