//! The files of a backup: as they were sent (`raw/<id>`), or with the few differences that make a data directory in
//! which PostgreSQL can be started.
//!
//! Everything here is immutable, so the kernel may cache it for as long as it likes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use barmanfs_catalog::{Backup, ConfigurationFiles};
use barmanfs_store::sync::lock;
use barmanfs_store::{Attributes, DirectoryRef, Entry, Node};

use super::changes::{self, Addition, Changes};
use super::context::{BarmanLayout, Context, PlainOptions};
use super::copy_recovery::Recovery;
use crate::entry::{Body, Child, Children, Content, Directory, Lifetime, SMALL_BYTES};
use crate::error::{NOT_FOUND, Result};
use crate::usage::Usage;

/// The kind of a view.
#[derive(Debug, Clone)]
pub(super) enum Style {
    /// As it was sent.
    Raw,
    /// As `pg_basebackup` writes it in its plain format: with its tablespaces in it, and no map to where they were.
    Plain(PlainOptions),
    /// To be copied and started: the copy recovers to the backup's end.
    Startable,
    /// To be copied and started: the copy recovers to a target.
    Target(Arc<Recovery>),
}

impl Style {
    /// Whether it can be started.
    pub(super) fn is_startable(&self) -> bool {
        matches!(self, Self::Startable | Self::Target(_))
    }

    /// Whether `pg_wal` says of its segments that they are archived.
    pub(super) fn has_status_files(&self) -> bool {
        match self {
            Self::Raw => false,
            Self::Plain(plain) => plain.wal,
            Self::Startable | Self::Target(_) => true,
        }
    }

    /// The copy's recovery, if it is not to the backup's end.
    pub(super) fn recovery(&self) -> Option<&Recovery> {
        match self {
            Self::Raw | Self::Plain(_) | Self::Startable => None,
            Self::Target(recovery) => Some(recovery),
        }
    }
}

/// The place of a directory in the data directory. Only some places differ from the stored tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The data directory itself.
    Root,
    /// `pg_wal`.
    Wal,
    /// `pg_wal/archive_status`.
    ArchiveStatus,
    /// `pg_tblspc`.
    Tablespaces,
    /// Any other.
    Elsewhere,
}

impl Place {
    fn of_child(self, name: &[u8]) -> Self {
        match (self, name) {
            (Self::Root, b"pg_wal") => Self::Wal,
            (Self::Root, b"pg_tblspc") => Self::Tablespaces,
            (Self::Wal, b"archive_status") => Self::ArchiveStatus,
            _ => Self::Elsewhere,
        }
    }
}

/// One view of one backup.
#[derive(Debug)]
pub(super) struct BackupTree {
    pub(super) context: Arc<Context>,
    pub(super) backup: Arc<Backup>,
    pub(super) style: Style,
    pub(super) usage: Arc<Usage>,
    /// Its configuration files from outside the data directory, once they were looked up.
    configuration: OnceLock<Option<ConfigurationFiles>>,
}

impl BackupTree {
    pub(super) fn new(context: Arc<Context>, backup: Arc<Backup>, style: Style, usage: Arc<Usage>) -> Self {
        Self {
            context,
            backup,
            style,
            usage,
            configuration: OnceLock::new(),
        }
    }

    /// The layout of Barman, if it is written in that.
    pub(super) fn barman_layout(&self) -> Option<BarmanLayout> {
        let copy = self.context.options.copy.as_ref()?;
        copy.barman_layout.filter(|_| self.style.is_startable())
    }

    /// Its configuration files from outside the data directory, if there are any.
    pub(super) fn configuration(&self) -> Result<Option<&ConfigurationFiles>> {
        if self.configuration.get().is_none() {
            let found = self.context.repository.configuration_files(&self.backup)?;
            // Another thread has found the same.
            let _ = self.configuration.set(found);
        }
        Ok(self.configuration.get().and_then(Option::as_ref))
    }

    /// The entry `name` that shows its configuration files from outside the data directory, each under its path on the
    /// server; `None` if there are none.
    pub(super) fn configuration_child(self: &Arc<Self>, name: &str) -> Result<Option<Child>> {
        let (Some(files), Some(root)) = (self.configuration()?, &self.backup.root) else {
            return Ok(None);
        };
        let directory = TreeDirectory::new(Arc::clone(self), files.directory.clone(), Place::Elsewhere);
        Ok(Some(Child {
            name: name.into(),
            identity: 0,
            stat: self.context.stat(&root.attributes, 0, 0),
            content: Content::Directory(Arc::new(directory)),
            lifetime: Lifetime::UntilNotified,
            map: None,
        }))
    }

    /// The entry `name` that shows the backup's data directory; `None` for a backup without files.
    pub(super) fn child(self: &Arc<Self>, name: &str) -> Option<Child> {
        let root = self.backup.root.as_ref()?;
        let directory = TreeDirectory::new(Arc::clone(self), root.directory.clone(), Place::Root);
        Some(Child {
            name: name.into(),
            identity: 0,
            stat: self.context.stat(&root.attributes, 0, 0),
            content: Content::Directory(Arc::new(directory)),
            lifetime: Lifetime::UntilNotified,
            map: None,
        })
    }

    /// Attributes of added files and directories: those of the data directory, with PostgreSQL's permissions.
    pub(super) fn attributes(&self, directory: bool) -> Attributes {
        let time = self.backup.end_time.unwrap_or(self.backup.begin_time);
        let (mtime_s, mtime_ns) = super::context::seconds(time);
        let like = self.backup.root.as_ref().map(|root| root.attributes);
        let group = like.is_some_and(|root| root.mode & 0o050 == 0o050);
        let mode = match (directory, group) {
            (true, true) => 0o750,
            (true, false) => 0o700,
            (false, true) => 0o640,
            (false, false) => 0o600,
        };
        let (uid, gid) = like.map_or((0, 0), |root| (root.uid, root.gid));
        Attributes {
            mode,
            uid,
            gid,
            mtime_s,
            mtime_ns,
        }
    }
}

/// A directory of a backup.
#[derive(Debug)]
pub(super) struct TreeDirectory {
    pub(super) tree: Arc<BackupTree>,
    pub(super) listing: DirectoryRef,
    pub(super) place: Place,
    /// The differences from the stored directory.
    changes: Mutex<Known>,
}

/// What a directory knows of its differences from the stored one.
#[derive(Debug, Default)]
enum Known {
    #[default]
    Nothing,
    /// They stay with the directory.
    Kept(Arc<Changes>),
    /// They were computed, and may have to be computed again: the texts of thousands of views would fill the memory.
    Computed(Weak<Changes>),
}

/// The differences that were computed last.
#[derive(Debug, Default)]
pub(super) struct RecentChanges {
    kept: Mutex<VecDeque<Arc<Changes>>>,
}

impl RecentChanges {
    /// Enough for a few readers; each takes some 50 KB at most, for the texts of a configuration.
    const MAX: usize = 64;

    fn keep(&self, changes: &Arc<Changes>) {
        let mut kept = lock(&self.kept);
        if kept.len() == Self::MAX {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(changes));
    }
}

impl TreeDirectory {
    fn new(tree: Arc<BackupTree>, listing: DirectoryRef, place: Place) -> Self {
        Self {
            tree,
            listing,
            place,
            changes: Mutex::default(),
        }
    }

    /// The data directory.
    pub(super) fn root(tree: &Arc<BackupTree>) -> Self {
        let listing = tree.backup.root.as_ref().map(|root| root.directory.clone());
        Self::new(Arc::clone(tree), listing.unwrap_or_default(), Place::Root)
    }

    /// The directories that may differ from the stored tree, by the beginning of their paths.
    pub(super) fn changed(tree: &Arc<BackupTree>) -> Result<Vec<(&'static [u8], Self)>> {
        let at = |listing: DirectoryRef, place| Self::new(Arc::clone(tree), listing, place);
        let stored = |parent: &Self, name: &[u8]| -> Result<DirectoryRef> {
            Ok(match parent.stored(name)?.map(|entry| entry.node) {
                Some(Node::Directory(listing)) => listing,
                _ => DirectoryRef::default(),
            })
        };
        let root = Self::root(tree);
        let wal = at(stored(&root, b"pg_wal")?, Place::Wal);
        let status = at(stored(&wal, b"archive_status")?, Place::ArchiveStatus);
        Ok(vec![
            (b"", root),
            (b"pg_wal/", wal),
            (b"pg_wal/archive_status/", status),
        ])
    }

    /// The stored entry, without the view's differences.
    pub(super) fn stored(&self, name: &[u8]) -> Result<Option<Entry>> {
        Ok(self.tree.context.trees.lookup(&self.listing, name)?)
    }

    /// Whether a symbolic link of this name is stored.
    pub(super) fn is_link(&self, name: &[u8]) -> Result<bool> {
        let entry = self.stored(name)?;
        Ok(entry.is_some_and(|entry| matches!(entry.node, Node::Symlink(_))))
    }

    fn changes(&self) -> Result<Option<Arc<Changes>>> {
        let mut known = lock(&self.changes);
        let found = match &*known {
            Known::Nothing => None,
            Known::Kept(changes) => Some(Arc::clone(changes)),
            Known::Computed(changes) => changes.upgrade(),
        };
        if found.is_some() || self.place == Place::Elsewhere {
            return Ok(found);
        }
        let changes = Arc::new(changes::of(self)?);
        // Those of a point in time may depend on what has been received since, and there are never many.
        *known = match self.tree.style {
            Style::Target(_) => Known::Kept(Arc::clone(&changes)),
            Style::Raw | Style::Plain(_) | Style::Startable => {
                self.tree.context.recent_changes.keep(&changes);
                Known::Computed(Arc::downgrade(&changes))
            }
        };
        Ok(Some(changes))
    }

    fn shown(&self, entry: Entry) -> Result<Child> {
        let context = &self.tree.context;
        let mut sizes = (0, 0);
        let mut small = None;
        let content = match entry.node {
            Node::File(map) => {
                let map = Arc::new(map);
                let body = Body::Stored(Arc::clone(&map));
                sizes = (map.size_bytes, body.allocated_bytes(&context.trees)?);
                small = (map.size_bytes <= SMALL_BYTES).then_some(map);
                Content::File
            }
            Node::Directory(listing) => self.directory(listing, &entry.name)?,
            Node::Symlink(target) => {
                sizes = (target.len() as u64, 0);
                Content::Symlink(target.into())
            }
        };
        let stat = context.stat(&entry.attributes, sizes.0, sizes.1);
        Ok(Child {
            name: entry.name,
            identity: 0,
            stat,
            content,
            lifetime: Lifetime::Forever,
            map: small,
        })
    }

    fn added(&self, name: &[u8], addition: &Addition) -> Result<Child> {
        let context = &self.tree.context;
        let (content, sizes) = match addition.sizes(&self.tree)? {
            Some(sizes) => (Content::File, sizes),
            None => (self.directory(DirectoryRef::default(), name)?, (0, 0)),
        };
        let stat = context.stat(&addition.attributes, sizes.0, sizes.1);
        Ok(Child {
            name: name.to_vec(),
            identity: 0,
            stat,
            content,
            lifetime: Lifetime::Forever,
            map: None,
        })
    }

    fn directory(&self, listing: DirectoryRef, name: &[u8]) -> Result<Content> {
        let place = self.place.of_child(name);
        let changes = self.changes()?;
        let nested = changes.and_then(|changes| changes.nested.get(name).cloned());
        let mut directory = Self::new(Arc::clone(&self.tree), listing, place);
        // The differences of its place come first.
        if matches!(place, Place::Elsewhere | Place::Tablespaces) {
            directory.changes = Mutex::new(nested.map_or(Known::Nothing, Known::Kept));
        }
        Ok(Content::Directory(Arc::new(directory)))
    }
}

impl Directory for TreeDirectory {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let changes = self.changes()?;
        if let Some(addition) = changes.as_ref().and_then(|changes| changes.added.get(name)) {
            return self.added(name, addition).map(Some);
        }
        let entry = self
            .stored(name)?
            .filter(|entry| !changes::is_hidden(self, entry));
        entry.map(|entry| self.shown(entry)).transpose()
    }

    fn entries(&self) -> Result<Children> {
        let changes = self.changes()?.unwrap_or_default();
        let this = Arc::new(Self {
            tree: Arc::clone(&self.tree),
            listing: self.listing.clone(),
            place: self.place,
            changes: Mutex::new(Known::Kept(Arc::clone(&changes))),
        });
        let names: Vec<Vec<u8>> = changes.added.keys().cloned().collect();
        let added = {
            let (this, changes) = (Arc::clone(&this), Arc::clone(&changes));
            names
                .into_iter()
                .filter_map(move |name| Some(this.added(&name, changes.added.get(&name)?)))
        };
        let stored = self
            .tree
            .context
            .trees
            .entries(&self.listing)
            .filter_map(move |entry| match entry {
                Ok(entry) if changes.added.contains_key(&entry.name) || changes::is_hidden(&this, &entry) => {
                    None
                }
                Ok(entry) => Some(this.shown(entry)),
                Err(error) => Some(Err(error.into())),
            });
        Ok(Box::new(added.chain(stored)))
    }

    fn open(&self, name: &[u8]) -> Result<Body> {
        let changes = self.changes()?;
        if let Some(addition) = changes.as_ref().and_then(|changes| changes.added.get(name)) {
            return addition.body(&self.tree)?.ok_or(NOT_FOUND);
        }
        match self.stored(name)?.map(|entry| entry.node) {
            Some(Node::File(map)) => Ok(Body::Stored(Arc::new(map))),
            _ => Err(NOT_FOUND),
        }
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::Forever
    }

    fn usage(&self) -> Option<&Arc<Usage>> {
        Some(&self.tree.usage)
    }
}
