//! The files that a view adds to the stored tree, and the files that it leaves out.
//!
//! | place | `raw/<id>` | startable |
//! |---|---|---|
//! | `pg_wal` | the segments from start to stop | the same, or all up to the target, as a copy may [`replay`] them, and the `.history` files |
//! | `pg_wal/archive_status` | | a `.done` for each of them: nothing is archived again |
//! | `pg_tblspc` | no symbolic links: they point into the server's own directories | the same |
//! | root, and files its configuration includes | | `configuration`, which leads nowhere else, and `recovery.signal`; no `tablespace_map`, `postmaster.*`, `standby.signal`, no lock files of sockets |
//! | anywhere | | no symbolic link that leads out of the directory it is in |
//!
//! In the layout of Barman, a startable tree has its manifest under another name, and may have the WAL in `barman_wal`.
//!
//! In `pg_basebackup`'s plain format (`Style::Plain`), `raw/<id>` has no `tablespace_map`, and a `.done` for each segment.
//!
//! A backup of a clone starts as it is: its WAL is in `pg_wal`, and it needs at most crash recovery. The view adds
//! nothing from the archive, whose timelines are not those of the clone, and no `recovery.signal`.
//!
//! `pg_verifybackup` passes on both views: it ignores `pg_wal`, `postgresql.auto.conf` and `recovery.signal`, and
//! where another file is added or left out, the view has a manifest of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use barmanfs_catalog::Plan;
use barmanfs_live::leads_out;
use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::socket::is_socket_lock;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{TimelineId, TimestampMicros};
use barmanfs_store::{Attributes, Entry, Node};

use super::context::BARMAN_WAL;
use super::tree::{BackupTree, Place, Style, TreeDirectory};
use super::view_manifest::ViewManifest;
use super::{configuration, context, receiving, replay, view_manifest};
use crate::entry::Body;
use crate::error::{Error, Result};

/// It leads to where tablespaces were on the server.
const TABLESPACE_MAP: &str = "tablespace_map";

/// A history file has one line for each timeline. A larger file is not a history file.
const MAX_HISTORY_BYTES: u64 = 1 << 20;

/// The differences between a directory of a view and the stored directory.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The entries that replace or join the stored ones.
    pub(super) added: BTreeMap<Vec<u8>, Addition>,
    /// The differences of its subdirectories that have no [`Place`] of their own.
    pub(super) nested: BTreeMap<Vec<u8>, Arc<Changes>>,
}

impl Changes {
    /// Adds a file below this directory.
    fn add(&mut self, path: &[u8], addition: Addition) {
        let Some(end) = path.iter().position(|byte| *byte == b'/') else {
            self.added.insert(path.to_vec(), addition);
            return;
        };
        if let (Some(name), Some(rest)) = (path.get(..end), path.get(end + 1..)) {
            let below = self.nested.entry(name.to_vec()).or_default();
            // This reference is still the only one.
            if let Some(below) = Arc::get_mut(below) {
                below.add(rest, addition);
            }
        }
    }

    /// Adds the view's own manifest, if the stored one has a file that is left out, or lacks one of `listed`.
    fn manifest(&mut self, root: &TreeDirectory, listed: Vec<(Vec<u8>, Arc<[u8]>)>) -> Result<()> {
        let mut unlisted = Vec::new();
        for entry in root.tree.context.trees.entries(&root.listing) {
            let entry = entry?;
            if matches!(entry.node, Node::File(_)) && is_hidden(root, &entry) {
                unlisted.push(entry.name);
            }
        }
        if let Some(Entry {
            attributes,
            node: Node::File(stored),
            ..
        }) = root.stored(view_manifest::NAME)?
            && !(unlisted.is_empty() && listed.is_empty())
        {
            let content = Added::Manifest(ViewManifest {
                stored,
                unlisted,
                listed,
            });
            self.add(&manifest_name(&root.tree), Addition { attributes, content });
        }
        Ok(())
    }
}

/// Barman gives it the id of the backup: what is written there is none of `pg_basebackup` any more.
fn manifest_name(tree: &BackupTree) -> Vec<u8> {
    match tree.barman_layout() {
        Some(_) => [view_manifest::NAME, b".", tree.backup.id.to_string().as_bytes()].concat(),
        None => view_manifest::NAME.to_vec(),
    }
}

/// A file or directory the view adds.
#[derive(Debug)]
pub(super) struct Addition {
    pub(super) attributes: Attributes,
    content: Added,
}

#[derive(Debug)]
enum Added {
    Directory,
    File(Body),
    /// A file of the archive. It is looked up when it is opened, because there may be very many.
    Archived(WalName),
    /// The manifest, generated when it is read.
    Manifest(ViewManifest),
}

impl Addition {
    /// The file's content; `None` for a directory.
    pub(super) fn body(&self, tree: &BackupTree) -> Result<Option<Body>> {
        match &self.content {
            Added::Directory => Ok(None),
            Added::File(body) => Ok(Some(body.clone())),
            Added::Archived(name) => {
                let file = tree.context.repository.wal(tree.backup.archive()).find(name)?;
                let file = file.ok_or_else(|| {
                    not_shown(
                        tree,
                        format!("{name}, which it needs, has been deleted from the archive"),
                    )
                })?;
                match tree.style.is_startable() {
                    true => replay::archived(&tree.context, file).map(Some),
                    false => Ok(Some(Body::Stored(Arc::new(file.map)))),
                }
            }
            Added::Manifest(manifest) => tree.context.manifests.open(tree, manifest).map(Some),
        }
    }

    /// The file's size and its bytes outside holes; `None` for a directory.
    pub(super) fn sizes(&self, tree: &BackupTree) -> Result<Option<(u64, u64)>> {
        if let Added::Manifest(manifest) = &self.content {
            let size_bytes = tree.context.manifests.size_bytes(tree, manifest)?;
            return Ok(Some((size_bytes, size_bytes)));
        }
        if let Added::Archived(name) = &self.content
            && let Some(file) = tree.context.repository.wal(tree.backup.archive()).find(name)?
        {
            let body = Body::Stored(Arc::new(file.map));
            return Ok(Some((
                body.size_bytes(),
                body.allocated_bytes(&tree.context.trees)?,
            )));
        }
        let sizes = |body: Body| Ok((body.size_bytes(), body.allocated_bytes(&tree.context.trees)?));
        self.body(tree)?.map(sizes).transpose()
    }

    fn directory(tree: &BackupTree) -> Self {
        Self {
            attributes: tree.attributes(true),
            content: Added::Directory,
        }
    }

    fn file(attributes: Attributes, body: Body) -> Self {
        Self {
            attributes,
            content: Added::File(body),
        }
    }

    fn made(tree: &BackupTree, bytes: impl Into<Arc<[u8]>>) -> Self {
        Self::file(tree.attributes(false), Body::Made(bytes.into()))
    }
}

/// The differences of one directory.
pub(super) fn of(directory: &TreeDirectory) -> Result<Changes> {
    let added = match directory.place {
        Place::Root => return root(directory),
        Place::Wal => wal(directory)?,
        Place::ArchiveStatus if directory.tree.style.has_status_files() => archive_status(directory)?,
        _ => BTreeMap::new(),
    };
    Ok(Changes {
        added,
        ..Changes::default()
    })
}

/// The path of an added entry, and its content; none for a directory.
type PlacedAddition = (Vec<u8>, Attributes, Option<Body>);

/// Everything that a view adds, except its manifest. A directory comes before its entries.
pub(super) fn additions(tree: &Arc<BackupTree>) -> Result<Vec<PlacedAddition>> {
    let mut all = Vec::new();
    for (path, directory) in TreeDirectory::changed(tree)? {
        for (name, addition) in of(&directory)?.added {
            if matches!(addition.content, Added::Manifest(_)) {
                continue;
            }
            let path = [path, &name].concat();
            all.push((path, addition.attributes, addition.body(tree)?));
        }
    }
    Ok(all)
}

/// Whether the view leaves this entry out.
pub(super) fn is_hidden(directory: &TreeDirectory, entry: &Entry) -> bool {
    let startable = directory.tree.style.is_startable();
    if let Node::Symlink(target) = &entry.node {
        return directory.place == Place::Tablespaces || (startable && leads_out(target));
    }
    directory.place == Place::Root
        && match directory.tree.style {
            Style::Raw => false,
            Style::Plain(_) => entry.name == TABLESPACE_MAP.as_bytes(),
            Style::Startable | Style::Target(_) => {
                is_of_the_running_server(&entry.name)
                    || entry.name == view_manifest::NAME && directory.tree.barman_layout().is_some()
            }
        }
}

/// Files that describe how the server was run, or where its tablespaces were. In a copy they are wrong or dangerous: by the
/// lock file of a socket, another process that has the number in it keeps the copy from starting.
pub(super) fn is_of_the_running_server(name: &[u8]) -> bool {
    name.starts_with(b"postmaster.")
        || is_socket_lock(name)
        || matches!(name, b"tablespace_map" | b"standby.signal" | b"recovery.conf")
}

fn root(directory: &TreeDirectory) -> Result<Changes> {
    let tree = &directory.tree;
    let mut changes = Changes::default();
    if directory.stored(b"pg_wal")?.is_none() {
        changes.add(b"pg_wal", Addition::directory(tree));
    }
    match tree.style {
        Style::Raw => return Ok(changes),
        Style::Plain(_) => {
            changes.manifest(directory, Vec::new())?;
            return Ok(changes);
        }
        Style::Startable | Style::Target(_) => {}
    }
    let stays = tree
        .context
        .options
        .copy
        .as_ref()
        .is_some_and(|copy| copy.same_timeline);
    if tree.backup.is_of_server() && !stays {
        let recovery = tree.style.recovery();
        let signal: &[u8] = match recovery.is_some_and(|recovery| recovery.standby.is_some()) {
            true => b"standby.signal",
            false => b"recovery.signal",
        };
        changes.add(signal, Addition::made(tree, []));
    }
    if wal_is_apart(tree) {
        changes.add(BARMAN_WAL.as_bytes(), Addition::directory(tree));
        for name in recovery_wal(tree)? {
            let file = match archived(tree, &name)? {
                None => not_archived(tree, &name)?,
                archived => archived,
            };
            if let Some(file) = file {
                changes.add(format!("{BARMAN_WAL}/{name}").as_bytes(), file);
            }
        }
    }
    let mut listed = Vec::new();
    for (name, text) in tree.context.options.copy.iter().flat_map(|copy| &copy.files) {
        let text: Arc<[u8]> = text.as_slice().into();
        changes.add(name.as_bytes(), Addition::made(tree, Arc::clone(&text)));
        listed.push((name.clone().into_bytes(), text));
    }
    let files = configuration::files(directory)?;
    for path in configuration::added_directories(directory, &files)? {
        changes.add(&path, Addition::directory(tree));
    }
    for file in files {
        let text: Arc<[u8]> = file.text.into();
        let shown = Addition::file(file.attributes, Body::Made(Arc::clone(&text)));
        changes.add(&file.path, shown);
        if file.path != configuration::AUTO_CONF.as_bytes() {
            listed.push((file.path, text));
        }
    }
    changes.manifest(directory, listed)?;
    Ok(changes)
}

/// The WAL that makes the backup consistent or leads to the target.
fn wal(directory: &TreeDirectory) -> Result<BTreeMap<Vec<u8>, Addition>> {
    let tree = &directory.tree;
    let mut added = BTreeMap::new();
    for name in wal_names(tree)? {
        let text = name.to_string().into_bytes();
        let file = match archived(tree, &name)? {
            None if directory.stored(&text)?.is_some() => None,
            None => not_archived(tree, &name)?,
            archived => archived,
        };
        added.extend(file.map(|file| (text, file)));
    }
    if tree.style.is_startable() {
        confine_stored(directory, &mut added)?;
    }
    if tree.style.has_status_files() && directory.stored(b"archive_status")?.is_none() {
        added.insert(b"archive_status".to_vec(), Addition::directory(tree));
    }
    Ok(added)
}

/// What there is of a file that is not archived: the segment that is still being received. `None` for a history that is not there.
fn not_archived(tree: &BackupTree, name: &WalName) -> Result<Option<Addition>> {
    if matches!(name, WalName::History(_)) {
        return Ok(None);
    }
    // It may have been archived since.
    let file = match unfinished(tree, name)? {
        Some(file) => Some(file),
        None => archived(tree, name)?,
    };
    file.map(Some)
        .ok_or_else(|| not_shown(tree, format!("{name} is no longer in the archive")))
}

/// Replaces the segments in the backup by what a copy may replay.
fn confine_stored(directory: &TreeDirectory, added: &mut BTreeMap<Vec<u8>, Addition>) -> Result<()> {
    let tree = &directory.tree;
    let trees = &tree.context.trees;
    let mut beside = |name: SegmentName| {
        let entry = trees.lookup(&directory.listing, name.to_string().as_bytes())?;
        Ok(match entry.map(|entry| entry.node) {
            Some(Node::File(map)) => Some(map),
            _ => None,
        })
    };
    for entry in trees.entries(&directory.listing) {
        let entry = entry?;
        let name = std::str::from_utf8(&entry.name)
            .ok()
            .and_then(|name| name.parse().ok());
        let (Some(name), Node::File(map)) = (name, entry.node) else {
            continue;
        };
        if added.contains_key(&entry.name) {
            continue;
        }
        let shown = replay::stored(&tree.context, tree.backup.archive(), name, map, &mut beside)?;
        if matches!(shown, Body::Edited(_)) {
            added.insert(entry.name, Addition::file(entry.attributes, shown));
        }
    }
    Ok(())
}

/// The content of the view's `pg_wal`.
fn wal_names(tree: &BackupTree) -> Result<Vec<WalName>> {
    let is_without = matches!(tree.style, Style::Plain(plain) if !plain.wal);
    match is_without || wal_is_apart(tree) {
        true => Ok(Vec::new()),
        false => recovery_wal(tree),
    }
}

/// The WAL that a view gets from the archive.
fn recovery_wal(tree: &BackupTree) -> Result<Vec<WalName>> {
    if !tree.backup.is_of_server() {
        return Ok(Vec::new());
    }
    let mut names: Vec<WalName> = match self_contained(tree) {
        Some(plan) => tree.context.repository.recovery_segments(plan)?.collect(),
        None => tree.backup.needed_wal().map(WalName::Segment).collect(),
    };
    if tree.style.is_startable() {
        names.extend(ancestry(tree)?.into_iter().map(WalName::History));
    }
    Ok(names)
}

/// Whether that is in Barman's directory.
fn wal_is_apart(tree: &BackupTree) -> bool {
    let is_apart = tree.barman_layout().is_some_and(|layout| layout.wal_apart);
    is_apart && self_contained(tree).is_some()
}

fn self_contained(tree: &BackupTree) -> Option<&Plan> {
    let plan = &tree.style.recovery()?.plan;
    plan.spec.self_contained.then_some(plan)
}

/// The timelines with a history file, of the backup and its ancestors: all except the first.
fn ancestry(tree: &BackupTree) -> Result<Vec<TimelineId>> {
    let Some(timeline) = tree.backup.timeline.filter(|timeline| timeline.0 > 1) else {
        return Ok(Vec::new());
    };
    let mut timelines = vec![timeline];
    let archive = tree.context.repository.wal(tree.backup.archive());
    if let Some(file) = archive.find(&WalName::History(timeline))? {
        let text = Body::Stored(Arc::new(file.map)).read_all(&tree.context.trees, MAX_HISTORY_BYTES)?;
        // An unreadable history is shown too: PostgreSQL reports best what is wrong with it.
        if let Some(Ok(history)) = text.map(|text| TimelineHistory::parse(&text, timeline)) {
            timelines.extend(
                history
                    .entries()
                    .iter()
                    .map(|entry| entry.timeline)
                    .filter(|of| of.0 > 1),
            );
        }
    }
    Ok(timelines)
}

fn archived(tree: &BackupTree, name: &WalName) -> Result<Option<Addition>> {
    let file = tree.context.repository.wal(tree.backup.archive()).entry(name)?;
    Ok(file.map(|file| Addition {
        attributes: at(tree, file.archived_at),
        content: Added::Archived(*name),
    }))
}

/// The received part of the segment in which the WAL of a self-contained copy ends.
fn unfinished(tree: &BackupTree, name: &WalName) -> Result<Option<Addition>> {
    let WalName::Segment(segment) = *name else {
        return Ok(None);
    };
    if self_contained(tree).is_none_or(|plan| plan.last_segment != segment) {
        return Ok(None);
    }
    match receiving::copied(&tree.context, &tree.backup.server, segment) {
        Ok(body) => Ok(Some(Addition::file(tree.attributes(false), body))),
        Err(Error::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Attributes of a file of the archive.
fn at(tree: &BackupTree, time: TimestampMicros) -> Attributes {
    let (mtime_s, mtime_ns) = context::seconds(time);
    Attributes {
        mtime_s,
        mtime_ns,
        ..tree.attributes(false)
    }
}

/// `.done` for every segment and history file of the view's `pg_wal`, stored or added.
fn archive_status(directory: &TreeDirectory) -> Result<BTreeMap<Vec<u8>, Addition>> {
    let tree = &directory.tree;
    let mut names: Vec<String> = wal_names(tree)?.iter().map(ToString::to_string).collect();
    if let Some(root) = &tree.backup.root
        && let Some(Entry {
            node: Node::Directory(stored),
            ..
        }) = tree.context.trees.lookup(&root.directory, b"pg_wal")?
    {
        for entry in tree.context.trees.entries(&stored) {
            let name = String::from_utf8_lossy(&entry?.name).into_owned();
            names.extend(Some(name).filter(|name| name.parse::<WalName>().is_ok()));
        }
    }
    let done = |name: String| (format!("{name}.done").into_bytes(), Addition::made(tree, []));
    Ok(names.into_iter().map(done).collect())
}

pub(super) fn not_shown(tree: &BackupTree, reason: impl Into<String>) -> Error {
    Error::View {
        backup: format!("{} of server {}", tree.backup.id, tree.backup.server),
        reason: reason.into(),
    }
}
