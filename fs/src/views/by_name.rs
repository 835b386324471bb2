//! `<server>/by-name/`: the backups that a person gave a name, by their names.
//!
//! Several backups may have one name: the newest one counts, as in the place of an id on the command line. As `latest`
//! does, a name moves on to a new backup only when nobody is at work in the old one.

use std::sync::Arc;

use barmanfs_catalog::ServerName;
use barmanfs_store::Attributes;

use super::aliases::Alias;
use super::context::Context;
use super::snapshot::ServerState;
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

fn child(context: &Arc<Context>, server: &ServerState, name: &str) -> Option<Child> {
    let tree = context.alias(server, &Alias::Named(name.to_owned()))?;
    // Another backup gets another inode, so a process in the old one stays there.
    let identity = generated::identity(tree.backup.id.to_string().as_bytes());
    tree.child(name).map(|child| Child { identity, ..child })
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
        let children: Vec<Child> = server
            .labels()
            .filter_map(|label| child(&self.context, &server, label))
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
