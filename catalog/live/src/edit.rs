//! Names looked up, made and removed.
//!
//! An operation first finds out, names locked, whether it is possible; then it is written down; then it happens, which
//! cannot fail. So what is refused has not happened, and the journal has all in the order it happened in.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::attributes::{introduction, recorded};
use crate::clone::LiveClone;
use crate::error::Result;
use crate::names::Names;
use crate::node::Node;
use crate::record::Change;
use crate::stat::{Meta, Time};

/// A name, and what stands under it after an edit.
#[derive(Debug)]
struct Named {
    parent: Arc<Node>,
    name: Vec<u8>,
    node: Option<Arc<Node>>,
}

/// What an operation does, once it is known that it can be done.
#[derive(Debug, Default)]
pub(crate) struct Edit {
    names: Vec<Named>,
    /// Nodes whose count of names or times change.
    metas: Vec<(Arc<Node>, Meta)>,
}

impl Edit {
    /// Puts a node, or nothing, under a name.
    pub(crate) fn name(&mut self, parent: &Arc<Node>, name: &[u8], node: Option<&Arc<Node>>) {
        self.names.push(Named {
            parent: Arc::clone(parent),
            name: name.to_vec(),
            node: node.cloned(),
        });
        // The directory changes with it, once.
        if !self.metas.iter().any(|(other, _)| other.id == parent.id) {
            let now = Time::now();
            let meta = *parent.meta();
            self.metas.push((
                Arc::clone(parent),
                Meta {
                    mtime: now,
                    ctime: now,
                    ..meta
                },
            ));
        }
    }

    /// Changes how many names a node has: by `more` less `fewer`.
    pub(crate) fn links(&mut self, node: &Arc<Node>, more: u32, fewer: u32) {
        let meta = *node.meta();
        let links = (meta.links + more).saturating_sub(fewer);
        let now = Time::now();
        self.metas.push((
            Arc::clone(node),
            Meta {
                links,
                ctime: now,
                ..meta
            },
        ));
    }

    /// Has directories keep the times they have: what happens is no change to anyone.
    pub(crate) fn keep_times(&mut self) {
        for (node, meta) in &mut self.metas {
            *meta = *node.meta();
        }
    }

    /// What the journal is told.
    fn changes(&self, made: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        for (node, meta) in &self.metas {
            if node.origin.is_none() && !node.recorded.load(Ordering::Relaxed) {
                changes.push(Change::Made { count: made });
            }
            // Of what was never spoken of, that it is no more need not be said: its name says it.
            if meta.links > 0 || node.recorded.load(Ordering::Relaxed) {
                changes.extend(introduction(node));
                changes.push(Change::Attributes {
                    id: node.id,
                    meta: *meta,
                });
            }
        }
        changes.extend(
            self.names
                .iter()
                .map(|Named { parent, name, node }| Change::Name {
                    parent: parent.id,
                    name: name.clone(),
                    node: node.as_ref().map(|node| node.id),
                }),
        );
        changes
    }
}

impl LiveClone {
    /// Writes an operation down, and lets it happen. Returns the nodes that nothing leads to any more.
    pub(crate) fn commit(&self, names: &mut Names, edit: Edit) -> Result<Vec<Arc<Node>>> {
        self.journal.append(&edit.changes(names.made))?;
        let mut gone = Vec::new();
        for (node, next) in &edit.metas {
            let mut meta = node.meta();
            meta.links = next.links;
            meta.ctime = next.ctime;
            if node.is_directory() {
                meta.mtime = next.mtime;
            }
            if next.links > 0 {
                recorded(node);
            }
        }
        for Named { parent, name, node } in &edit.names {
            names.keep(parent);
            if let Some(node) = node {
                names.keep(node);
            }
            names.set(parent, name, node.as_deref());
        }
        for (node, meta) in edit.metas {
            if meta.links == 0 {
                names.unlinked(&node);
                names.release(&node);
                if node.users.load(Ordering::Relaxed) == 0 {
                    gone.push(node);
                }
            }
        }
        Ok(gone)
    }

    /// For nodes an edit left without names.
    pub(crate) fn doom_all(&self, gone: Vec<Arc<Node>>) {
        gone.into_iter().for_each(|node| self.doom(&node));
    }
}
