//! The files of a backup as members of an archive.

use barmanfs_fs::entry::Stat;
use barmanfs_pg::wal_name::WalName;

use super::archive::{Archive, member_bytes};
use crate::error::Error;
use crate::restore::part::Part as TreePart;
use crate::restore::{SourceFile, ViewTree, Visitor};

/// The file without which no server starts: it comes last.
const CONTROL: &[u8] = b"global/pg_control";

/// Which part of a tree is added.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    /// Before the paths in the archive.
    pub(super) prefix: &'a [u8],
    /// `pg_wal` has the segments that are in the tree.
    pub(super) with_wal: bool,
    /// The manifest is a file among the others.
    pub(super) with_manifest: bool,
    /// Symbolic links are added.
    pub(super) with_links: bool,
    /// The tablespaces that are not in it.
    pub(super) outside: &'a [u32],
}

/// Number and size of the files of a tree.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Size {
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// Bytes of an archive that has all of it.
    pub(super) archive_bytes: u64,
}

impl Size {
    pub(super) fn of(view: &ViewTree) -> Result<Self, Error> {
        let mut size = Self::default();
        view.walk(&mut size)?;
        Ok(size)
    }
}

impl Visitor for Size {
    fn enter(&mut self, _: &[u8], _: &Stat) -> Result<(), Error> {
        self.archive_bytes += member_bytes(0);
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn file(&mut self, file: SourceFile) -> Result<(), Error> {
        self.files += 1;
        self.bytes += file.stat.size_bytes;
        self.archive_bytes += member_bytes(file.stat.size_bytes);
        Ok(())
    }

    fn link(&mut self, _: &[u8], _: &Stat, _: &[u8]) -> Result<(), Error> {
        self.archive_bytes += member_bytes(0);
        Ok(())
    }
}

/// Adds the data directory, without its tablespaces, which are trees of their own. Returns the symbolic links that were
/// left out.
pub(super) fn add_data(
    archive: &mut Archive<'_>,
    view: &ViewTree,
    part: &Part<'_>,
) -> Result<Vec<Vec<u8>>, Error> {
    let mut adder = Adder {
        archive,
        part,
        names: Vec::new(),
        left_out: Vec::new(),
        is_tablespace: false,
    };
    view.walk(&mut adder)?;
    let left_out = adder.left_out;
    add_links(archive, view, part)?;
    if let Some(control) = view.file(CONTROL)? {
        archive.file(&[part.prefix, CONTROL].concat(), &control)?;
    }
    Ok(left_out)
}

/// Adds the links to where tablespaces were on the server, unless a file says that.
fn add_links(archive: &mut Archive<'_>, view: &ViewTree, part: &Part<'_>) -> Result<(), Error> {
    if !part.with_links || view.file(b"tablespace_map")?.is_some() {
        return Ok(());
    }
    let spaces = view.backup.tablespaces.iter();
    let mut outside = spaces.filter(|space| part.outside.contains(&space.oid));
    outside.try_for_each(|space| {
        let path = [part.prefix, &tablespace(space.oid)].concat();
        let stat = Stat {
            mode: 0o777,
            ..view.stat
        };
        archive.link(&path, &stat, space.location.as_bytes())
    })
}

/// Adds a tablespace.
pub(super) fn add_tablespace(
    archive: &mut Archive<'_>,
    view: &ViewTree,
    oid: u32,
    prefix: &[u8],
) -> Result<(), Error> {
    let part = Part {
        prefix,
        with_wal: true,
        with_manifest: true,
        with_links: true,
        outside: &[],
    };
    let mut adder = Adder {
        archive,
        part: &part,
        names: Vec::new(),
        left_out: Vec::new(),
        is_tablespace: true,
    };
    view.walk_below(&tablespace(oid), &mut adder)
}

/// Where a tablespace is in the data directory.
fn tablespace(oid: u32) -> Vec<u8> {
    format!("pg_tblspc/{oid}").into_bytes()
}

/// The WAL files in the tree.
pub(super) fn wal(view: &ViewTree) -> Result<Vec<SourceFile>, Error> {
    let mut found = Found::default();
    view.walk_below(b"pg_wal", &mut found)?;
    Ok(found.files)
}

/// The WAL files directly in a directory.
#[derive(Default)]
struct Found {
    depth: usize,
    files: Vec<SourceFile>,
}

impl Visitor for Found {
    fn enter(&mut self, _: &[u8], _: &Stat) -> Result<(), Error> {
        self.depth += 1;
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Error> {
        self.depth -= 1;
        Ok(())
    }

    fn file(&mut self, file: SourceFile) -> Result<(), Error> {
        if self.depth == 0 && is_wal(&file.name) {
            self.files.push(file);
        }
        Ok(())
    }

    fn link(&mut self, _: &[u8], _: &Stat, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}

fn is_wal(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| name.parse::<WalName>().is_ok())
}

struct Adder<'a, 'w> {
    archive: &'a mut Archive<'w>,
    part: &'a Part<'a>,
    /// Below the directory that is walked.
    names: Vec<Vec<u8>>,
    left_out: Vec<Vec<u8>>,
    /// A tablespace is walked, not the data directory.
    is_tablespace: bool,
}

impl Adder<'_, '_> {
    fn path(&self, name: &[u8]) -> Vec<u8> {
        let below = [self.names.as_slice(), &[name.to_vec()]].concat().join(&b'/');
        [self.part.prefix, &below].concat()
    }

    /// Whether the present directory belongs to a tablespace that is a tree of its own.
    fn is_elsewhere(&self) -> bool {
        let is_outside = |part| matches!(part, TreePart::Tablespace(oid) if self.part.outside.contains(&oid));
        !self.is_tablespace && TreePart::of(&self.names).is_some_and(is_outside)
    }

    fn is_wanted(&self, name: &[u8]) -> bool {
        if self.is_tablespace {
            return true;
        }
        let directory: Vec<&[u8]> = self.names.iter().map(Vec::as_slice).collect();
        match directory.as_slice() {
            [] => self.part.with_manifest || name != b"backup_manifest",
            [b"global"] => name != b"pg_control",
            [b"pg_wal"] => self.part.with_wal || !is_wal(name),
            [b"pg_wal", b"archive_status"] => self.part.with_wal,
            _ => true,
        }
    }
}

impl Visitor for Adder<'_, '_> {
    fn enter(&mut self, name: &[u8], stat: &Stat) -> Result<(), Error> {
        let path = self.path(name);
        self.names.push(name.to_vec());
        match self.is_elsewhere() {
            true => Ok(()),
            false => self.archive.directory(&path, stat),
        }
    }

    fn leave(&mut self) -> Result<(), Error> {
        self.names.pop();
        Ok(())
    }

    fn file(&mut self, file: SourceFile) -> Result<(), Error> {
        if self.is_elsewhere() || !self.is_wanted(&file.name) {
            return Ok(());
        }
        let path = self.path(&file.name);
        self.archive.file(&path, &file)
    }

    fn link(&mut self, name: &[u8], stat: &Stat, target: &[u8]) -> Result<(), Error> {
        if self.is_elsewhere() {
            return Ok(());
        }
        let path = self.path(name);
        if self.part.with_links {
            return self.archive.link(&path, stat, target);
        }
        self.left_out.push(path);
        Ok(())
    }
}
