//! A server's directory, and `raw/` in it.

use std::sync::Arc;

use barmanfs_catalog::{Backup, BackupId, ServerName};

use super::aliases::Alias;
use super::by_name::{BY_NAME, ByName};
use super::context::Context;
use super::info::Info;
use super::live::Live;
use super::pitr::Pitr;
use super::snapshot::ServerState;
use super::tree::{BackupTree, Style};
use super::wal::Wal;
use super::{generated, no_files};
use crate::entry::{Body, Child, Children, Directory, Lifetime};
use crate::error::Result;

const FIXED: [&str; 6] = ["raw", "pitr", "wal", "live", "info", BY_NAME];
const ALIASES: [&str; 2] = ["latest", "oldest"];

/// `<server>/`.
#[derive(Debug)]
pub(super) struct ServerDirectory {
    context: Arc<Context>,
    name: ServerName,
}

impl ServerDirectory {
    /// The entry of this server in the root.
    pub(super) fn child(context: &Arc<Context>, server: &ServerState) -> Child {
        let directory = Self {
            context: Arc::clone(context),
            name: server.name.clone(),
        };
        generated::directory(
            context,
            server.name.as_str(),
            &directory.attributes(server),
            Arc::new(directory),
        )
    }

    /// The time of the directory: the end of its newest backup.
    fn attributes(&self, server: &ServerState) -> barmanfs_store::Attributes {
        let latest = server.latest();
        let time = latest.map_or(self.context.started, |backup| {
            backup.end_time.unwrap_or(backup.begin_time)
        });
        self.context.own(0o555, time)
    }

    fn state(&self) -> Result<Option<Arc<ServerState>>> {
        Ok(self.context.snapshot()?.server(self.name.as_str()).cloned())
    }

    /// The entries of every server.
    fn fixed(&self, server: &ServerState, name: &str) -> Option<Child> {
        let context = &self.context;
        let attributes = self.attributes(server);
        match name {
            "raw" => {
                let raw = Raw {
                    context: Arc::clone(context),
                    name: self.name.clone(),
                };
                Some(generated::directory(context, name, &attributes, Arc::new(raw)))
            }
            "pitr" => {
                let pitr = Pitr::new(Arc::clone(context), self.name.clone());
                Some(generated::directory(context, name, &attributes, Arc::new(pitr)))
            }
            BY_NAME => Some(ByName::child(context, server, &attributes)),
            "wal" => Some(Wal::child(context, server)),
            "live" => Some(Live::child(context, server)),
            "info" => {
                let info = Info::new(Arc::clone(context), self.name.clone());
                Some(generated::directory(context, name, &attributes, Arc::new(info)))
            }
            _ => None,
        }
    }

    fn alias(&self, server: &ServerState, name: &str) -> Option<Child> {
        let tree = self.context.alias(server, &Alias::of(name)?)?;
        // Another backup gets another inode, so a process in the old one stays there.
        let identity = generated::identity(tree.backup.id.to_string().as_bytes());
        tree.child(name).map(|child| Child { identity, ..child })
    }
}

impl Directory for ServerDirectory {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let (Ok(name), Some(server)) = (std::str::from_utf8(name), self.state()?) else {
            return Ok(None);
        };
        if let Some(child) = self.fixed(&server, name).or_else(|| self.alias(&server, name)) {
            return Ok(Some(child));
        }
        Ok(backup_child(&self.context, &server, name, &Style::Startable))
    }

    fn entries(&self) -> Result<Children> {
        let Some(server) = self.state()? else {
            return Ok(Box::new(std::iter::empty()));
        };
        let mut children: Vec<Child> = FIXED
            .iter()
            .filter_map(|name| self.fixed(&server, name))
            .collect();
        children.extend(ALIASES.iter().filter_map(|name| self.alias(&server, name)));
        children.extend(backup_children(&self.context, &server, &Style::Startable));
        Ok(Box::new(children.into_iter().map(Ok)))
    }

    fn open(&self, _name: &[u8]) -> Result<Body> {
        no_files()
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::UntilNotified
    }
}

/// `<server>/raw/`.
#[derive(Debug)]
struct Raw {
    context: Arc<Context>,
    name: ServerName,
}

impl Raw {
    fn style(&self) -> Style {
        self.context.options.plain.map_or(Style::Raw, Style::Plain)
    }
}

impl Directory for Raw {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let snapshot = self.context.snapshot()?;
        let (Ok(name), Some(server)) = (std::str::from_utf8(name), snapshot.server(self.name.as_str()))
        else {
            return Ok(None);
        };
        Ok(backup_child(&self.context, server, name, &self.style()))
    }

    fn entries(&self) -> Result<Children> {
        let snapshot = self.context.snapshot()?;
        let Some(server) = snapshot.server(self.name.as_str()) else {
            return Ok(Box::new(std::iter::empty()));
        };
        let children = backup_children(&self.context, server, &self.style());
        Ok(Box::new(children.into_iter().map(Ok)))
    }

    fn open(&self, _name: &[u8]) -> Result<Body> {
        no_files()
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::UntilNotified
    }
}

fn backup_child(context: &Arc<Context>, server: &ServerState, name: &str, style: &Style) -> Option<Child> {
    let id: BackupId = name.parse().ok()?;
    tree(context, server.backup(id)?, style).child(name)
}

fn backup_children(context: &Arc<Context>, server: &ServerState, style: &Style) -> Vec<Child> {
    let child = |backup: &Arc<Backup>| tree(context, backup, style).child(&backup.id.to_string());
    server.backups.iter().filter_map(child).collect()
}

fn tree(context: &Arc<Context>, backup: &Arc<Backup>, style: &Style) -> Arc<BackupTree> {
    let view = if style.is_startable() { "id" } else { "raw" };
    context.tree(backup, style.clone(), view)
}
