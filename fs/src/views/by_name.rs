//! `<server>/by-name/`: the backups that a person gave a name, by their names.
//!
//! Several backups may have one name: the newest one counts, as in the place of an id on the command line. As `latest`
//! does, a name moves on to a new backup only when nobody is at work in the old one.

use std::collections::BTreeSet;
use std::sync::Arc;

use barmanfs_catalog::{Backup, BackupId, BackupName, ServerName};
use barmanfs_store::Attributes;

use super::context::{Alias, Context};
use super::snapshot::ServerState;
use super::tree::BackupTree;
use super::{generated, no_files};
use crate::entry::{Body, Child, Children, Directory, Lifetime};
use crate::error::Result;

/// Its name in the server's directory.
pub(crate) const BY_NAME: &str = "by-name";

/// `<server>/by-name/`.
#[derive(Debug)]
pub(super) struct ByName {
    context: Arc<Context>,
    server: ServerName,
}

impl ByName {
    /// Its entry in the server's directory.
    pub(super) fn child(context: &Arc<Context>, server: &ServerState, attributes: &Attributes) -> Child {
        let directory = Self {
            context: Arc::clone(context),
            server: server.name.clone(),
        };
        generated::directory(context, BY_NAME, attributes, Arc::new(directory))
    }

    fn state(&self) -> Result<Option<Arc<ServerState>>> {
        let snapshot = self.context.snapshot()?;
        Ok(snapshot.server(self.server.as_str()).cloned())
    }
}

/// The name that a backup has; `None` for a label that cannot be used as one.
fn name_of(backup: &Backup) -> Option<BackupName> {
    backup.label.as_deref()?.parse().ok()
}

fn tree(context: &Arc<Context>, server: &ServerState, name: &str) -> Option<Arc<BackupTree>> {
    let has_name = |backup: &&Arc<Backup>| backup.label.as_deref() == Some(name) && name_of(backup).is_some();
    let newest = server.backups.iter().rfind(has_name)?;
    let shown = |id| {
        let backup = server.backup(id);
        backup.is_some_and(|backup| backup.label.as_deref() == Some(name))
    };
    Some(context.alias(&server.name, &Alias::Named(name.to_owned()), newest, shown))
}

fn child(context: &Arc<Context>, server: &ServerState, name: &str) -> Option<Child> {
    let tree = tree(context, server, name)?;
    // Another backup gets another inode, so a process in the old one stays there.
    let identity = generated::identity(tree.backup.id.to_string().as_bytes());
    tree.child(name).map(|child| Child { identity, ..child })
}

fn names(server: &ServerState) -> BTreeSet<String> {
    let named = server.backups.iter().filter_map(|backup| name_of(backup));
    named.map(|name| name.to_string()).collect()
}

/// The names of a server's backups, and their present backups.
pub(crate) fn named(context: &Arc<Context>, server: &ServerState) -> Vec<(String, BackupId)> {
    let standing = |name: String| {
        let id = tree(context, server, &name)?.backup.id;
        Some((name, id))
    };
    names(server).into_iter().filter_map(standing).collect()
}

impl Directory for ByName {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let (Ok(name), Some(server)) = (std::str::from_utf8(name), self.state()?) else {
            return Ok(None);
        };
        Ok(child(&self.context, &server, name))
    }

    fn entries(&self) -> Result<Children> {
        let Some(server) = self.state()? else {
            return Ok(Box::new(std::iter::empty()));
        };
        let names = names(&server).into_iter();
        let children: Vec<Child> = names
            .filter_map(|name| child(&self.context, &server, &name))
            .collect();
        Ok(Box::new(children.into_iter().map(Ok)))
    }

    fn open(&self, _name: &[u8]) -> Result<Body> {
        no_files()
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::UntilNotified
    }
}
