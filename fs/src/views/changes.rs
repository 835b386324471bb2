//! What a view shows that is not in the stored tree, and what of the tree it leaves out.
//!
//! | place | `raw/<id>` | startable |
//! |---|---|---|
//! | `pg_wal` | the segments from start to stop | the same, and the `.history` files |
//! | `pg_wal/archive_status` | | a `.done` for each of them: nothing is archived again |
//! | `pg_tblspc` | no symbolic links: they point into the server's own directories | the same |
//! | root | | configuration and `recovery.signal`; no `tablespace_map`, `postmaster.*`, `standby.signal` |
//! | anywhere | | no symbolic link that leads out of the directory it is in |
//!
//! `pg_verifybackup` passes on both: it does not look at `pg_wal`, `postgresql.auto.conf` and `recovery.signal`, and
//! where anything else comes or goes the manifest is made anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use barmanfs_pg::TimelineId;
use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_name::WalName;
use barmanfs_store::{Attributes, Entry, Node};

use super::tree::{BackupTree, Place, Style, TreeDirectory};
use super::{Body, configuration, context, manifest};
use crate::error::{Error, Result};

/// A history file has one line for each timeline; larger than this it is none.
pub(super) const MAX_HISTORY_BYTES: u64 = 1 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Shown instead of what is stored under the name, if anything is.
    pub(super) added: BTreeMap<Vec<u8>, Addition>,
}

/// A file or directory the view adds.
#[derive(Debug)]
pub(super) struct Addition {
    pub(super) attributes: Attributes,
    /// `None` for a directory.
    pub(super) body: Option<Body>,
}

/// The differences of one directory.
pub(super) fn of(directory: &TreeDirectory) -> Result<Changes> {
    let added = match (directory.place, directory.tree.style) {
        (Place::Root, style) => root(directory, style)?,
        (Place::Wal, style) => wal(directory, style)?,
        (Place::ArchiveStatus, Style::Startable) => archive_status(directory)?,
        _ => BTreeMap::new(),
    };
    Ok(Changes { added })
}

/// Whether the view leaves this entry out.
pub(super) fn is_hidden(directory: &TreeDirectory, entry: &Entry) -> bool {
    let startable = directory.tree.style == Style::Startable;
    if let Node::Symlink(target) = &entry.node {
        return directory.place == Place::Tablespaces || (startable && leads_out(target));
    }
    startable && directory.place == Place::Root && is_of_the_running_server(&entry.name)
}

fn leads_out(target: &[u8]) -> bool {
    target.first() == Some(&b'/') || target.split(|&byte| byte == b'/').any(|name| name == b"..")
}

/// Files that say how the server was run, or where its tablespaces were; in a copy they are wrong or dangerous.
fn is_of_the_running_server(name: &[u8]) -> bool {
    name.starts_with(b"postmaster.")
        || matches!(name, b"tablespace_map" | b"standby.signal" | b"recovery.conf")
}

fn root(directory: &TreeDirectory, style: Style) -> Result<BTreeMap<Vec<u8>, Addition>> {
    let tree = &directory.tree;
    let mut added = BTreeMap::new();
    if directory.stored(b"pg_wal")?.is_none() {
        added.insert(
            b"pg_wal".to_vec(),
            Addition {
                attributes: tree.attributes(true),
                body: None,
            },
        );
    }
    if style == Style::Raw {
        return Ok(added);
    }
    let file = |body| Addition {
        attributes: tree.attributes(false),
        body: Some(body),
    };
    added.insert(b"recovery.signal".to_vec(), file(made(Vec::new())));
    added.insert(b"postgresql.auto.conf".to_vec(), auto_conf(directory)?);
    let mut listed = Vec::new();
    for (name, text) in configuration::MINIMAL {
        if directory.stored(name.as_bytes())?.is_none() {
            listed.push((name, text));
            added.insert(name.as_bytes().to_vec(), file(made(text.into())));
        }
    }
    let unlisted = directory.stored(b"tablespace_map")?.map(|_| "tablespace_map");
    if let Some(Entry {
        attributes,
        node: Node::File(map),
        ..
    }) = directory.stored(manifest::NAME)?
        && (unlisted.is_some() || !listed.is_empty())
    {
        let body = manifest::made_anew(tree, map, unlisted, &listed)?;
        added.insert(
            manifest::NAME.to_vec(),
            Addition {
                attributes,
                body: Some(body),
            },
        );
    }
    Ok(added)
}

/// The server's `postgresql.auto.conf` with the block that makes the copy recover by itself.
fn auto_conf(directory: &TreeDirectory) -> Result<Addition> {
    let tree = &directory.tree;
    let (attributes, stored) = match directory.stored(b"postgresql.auto.conf")? {
        Some(Entry {
            attributes,
            node: Node::File(map),
            ..
        }) => (attributes, Some(map)),
        _ => (tree.attributes(false), None),
    };
    let mut text = match stored {
        Some(map) => Body::Stored(Arc::new(map))
            .read_all(&tree.context.trees, configuration::MAX_AUTO_CONF_BYTES)?
            .ok_or_else(|| not_shown(tree, "its postgresql.auto.conf is too large to be one"))?,
        None => Vec::new(),
    };
    configuration::append_block(&mut text, &tree.backup);
    Ok(Addition {
        attributes,
        body: Some(made(text)),
    })
}

/// The WAL that makes the backup consistent.
fn wal(directory: &TreeDirectory, style: Style) -> Result<BTreeMap<Vec<u8>, Addition>> {
    let tree = &directory.tree;
    let mut added = BTreeMap::new();
    for segment in tree.backup.needed_wal() {
        let name = WalName::Segment(segment);
        let file = archived(tree, &name)?
            .ok_or_else(|| not_shown(tree, &format!("segment {segment} is no longer in the archive")))?;
        added.insert(name.to_string().into_bytes(), file);
    }
    if style == Style::Startable {
        for timeline in ancestry(tree)? {
            let name = WalName::History(timeline);
            let text = name.to_string().into_bytes();
            if directory.stored(&text)?.is_none()
                && let Some(file) = archived(tree, &name)?
            {
                added.insert(text, file);
            }
        }
        if directory.stored(b"archive_status")?.is_none() {
            let attributes = tree.attributes(true);
            added.insert(
                b"archive_status".to_vec(),
                Addition {
                    attributes,
                    body: None,
                },
            );
        }
    }
    Ok(added)
}

/// The timeline of the backup and those it came from that have a history file: all but the first.
fn ancestry(tree: &BackupTree) -> Result<Vec<TimelineId>> {
    let Some(timeline) = tree.backup.timeline.filter(|timeline| timeline.0 > 1) else {
        return Ok(Vec::new());
    };
    let mut timelines = vec![timeline];
    let archive = tree.context.repository.wal(&tree.backup.server);
    if let Some(file) = archive.find(&WalName::History(timeline))? {
        let text = Body::Stored(Arc::new(file.map)).read_all(&tree.context.trees, MAX_HISTORY_BYTES)?;
        // A history that cannot be read is shown all the same: PostgreSQL says best what is wrong with it.
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
    let file = tree.context.repository.wal(&tree.backup.server).find(name)?;
    Ok(file.map(|file| {
        let (mtime_s, mtime_ns) = context::seconds(file.archived_at);
        let attributes = Attributes {
            mtime_s,
            mtime_ns,
            ..tree.attributes(false)
        };
        Addition {
            attributes,
            body: Some(Body::Stored(Arc::new(file.map))),
        }
    }))
}

/// `.done` for every segment and history file of the view's `pg_wal`, stored or added.
fn archive_status(directory: &TreeDirectory) -> Result<BTreeMap<Vec<u8>, Addition>> {
    let tree = &directory.tree;
    let mut names: Vec<String> = tree
        .backup
        .needed_wal()
        .map(|segment| segment.to_string())
        .collect();
    names.extend(
        ancestry(tree)?
            .into_iter()
            .map(|timeline| WalName::History(timeline).to_string()),
    );
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
    let done = |name: String| {
        let addition = Addition {
            attributes: tree.attributes(false),
            body: Some(made(Vec::new())),
        };
        (format!("{name}.done").into_bytes(), addition)
    };
    Ok(names.into_iter().map(done).collect())
}

fn made(bytes: Vec<u8>) -> Body {
    Body::Made(bytes.into())
}

fn not_shown(tree: &BackupTree, reason: &str) -> Error {
    let backup = format!("{} of server {}", tree.backup.id, tree.backup.server);
    Error::View {
        backup,
        reason: reason.to_owned(),
    }
}
