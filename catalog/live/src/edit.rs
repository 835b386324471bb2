//! Changes of names, as one step.
//!
//! An operation checks under the lock of names whether it is possible, then writes its records to the journal, then
//! changes the names in memory, which cannot fail. So a refused operation has no effect, and the journal has all
//! operations in their order.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::attributes::{introduction, recorded};
use crate::error::Result;
use crate::live_clone::LiveClone;
use crate::names::Names;
use crate::node::Node;
use crate::record::Change;
use crate::stat::{Meta, Time};

/// A name, and the node it leads to after the edit.
#[derive(Debug)]
struct Named {
    parent: Arc<Node>,
    name: Vec<u8>,
    node: Option<Arc<Node>>,
}

/// The effect of an operation that has passed its checks.
#[derive(Debug, Default)]
pub(crate) struct Edit {
    names: Vec<Named>,
    /// Nodes whose count of names or whose times change.
    metas: Vec<(Arc<Node>, Meta)>,
}

impl Edit {
    /// Makes a name lead to a node, or to nothing.
    pub(crate) fn name(&mut self, parent: &Arc<Node>, name: &[u8], node: Option<&Arc<Node>>) {
        self.names.push(Named {
            parent: Arc::clone(parent),
            name: name.to_vec(),
            node: node.cloned(),
        });
        // The directory's times change once.
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

    /// Adds `more` to the number of a node's names and subtracts `fewer`.
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

    /// Keeps the times of directories: the edit is not a change that a user made.
    pub(crate) fn keep_times(&mut self) {
        for (node, meta) in &mut self.metas {
            *meta = *node.meta();
        }
    }

    /// The journal records of this edit.
    fn changes(&self, made: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        for (node, meta) in &self.metas {
            if node.origin.is_none() && !node.recorded.load(Ordering::Relaxed) {
                changes.push(Change::Made { count: made });
            }
            // A node that was never recorded and is gone needs no record: the record of its name is enough.
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
    /// Writes the edit to the journal and applies it. Returns the nodes that have no name and no user left.
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

    /// Schedules the removal of the upper files of nodes that an edit left without names.
    pub(crate) fn doom_all(&self, gone: Vec<Arc<Node>>) {
        gone.into_iter().for_each(|node| self.doom(&node));
    }
}
