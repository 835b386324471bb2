//! `<server>/info/`: the catalog's data as JSON, the `restore_command` for this mount, and the configuration files that
//! servers keep outside their data directories.

use std::sync::Arc;

use barmanfs_catalog::{Backup, ServerName, json};
use serde_json::Value;

use super::context::Context;
use super::generated;
use super::restore::restore_command;
use super::tree::{BackupTree, Style};
use crate::entry::{Body, Child, Children, Directory, Lifetime};
use crate::error::{Error, NOT_FOUND, Result};

const BACKUPS: &str = "backups.json";
const TIMELINES: &str = "timeline.json";
const RESTORE_COMMAND: &str = "restore_command";
const CONFIGURATION: &[u8] = b"config";

const RESTORE_COMMAND_NOTE: &str = "\
# For restore_command, between single quotes, in the configuration of a copy that is to recover from this mount.
# It ends with 1 only when the archive certainly has no such file, and with 255 when that cannot be said: then
# recovery stops and can be started again. A plain cp would end recovery early and promote the copy.
";

/// The directory.
#[derive(Debug)]
pub(super) struct Info {
    context: Arc<Context>,
    server: ServerName,
}

impl Info {
    pub(super) fn new(context: Arc<Context>, server: ServerName) -> Self {
        Self { context, server }
    }

    fn content(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let repository = &self.context.repository;
        match name {
            BACKUPS => {
                let backups = repository.backups(&self.server)?;
                let backups = backups.iter().map(described).collect::<Result<Vec<_>>>()?;
                text(json::list("backups", &backups)).map(Some)
            }
            TIMELINES => text(json::document(&repository.timelines(&self.server)?)).map(Some),
            RESTORE_COMMAND => {
                let command = restore_command(&self.context.options.mount_point, &self.server);
                Ok(command.map(|command| format!("{RESTORE_COMMAND_NOTE}{command}\n").into_bytes()))
            }
            _ => {
                let Some(id) = name.strip_suffix(".json").and_then(|id| id.parse().ok()) else {
                    return Ok(None);
                };
                let backups = repository.backups(&self.server)?;
                let backup = backups.iter().find(|backup| backup.id == id);
                backup
                    .map(|backup| text(json::document(&described(backup)?)))
                    .transpose()
            }
        }
    }

    fn child(&self, name: &str, size_bytes: usize) -> Child {
        let attributes = self.context.own(0o444, self.context.started);
        generated::file(
            &self.context,
            name,
            &attributes,
            size_bytes as u64,
            Lifetime::Never,
        )
    }
}

impl Info {
    /// The directory of a backup that has configuration files from outside the data directory; otherwise `None`.
    fn of_backup(&self, backup: Backup) -> Result<Option<Child>> {
        let context = &self.context;
        let backup = Arc::new(backup);
        let tree = context.tree(&backup, Style::Raw, "raw");
        if tree.configuration()?.is_none() {
            return Ok(None);
        }
        let attributes = context.own(0o555, context.started);
        let directory = Arc::new(OfBackup { tree });
        let name = backup.id.to_string();
        Ok(Some(generated::directory(context, name, &attributes, directory)))
    }
}

/// `<server>/info/<backup>/`.
#[derive(Debug)]
struct OfBackup {
    tree: Arc<BackupTree>,
}

impl Directory for OfBackup {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        match name {
            CONFIGURATION => self.tree.configuration_child("config"),
            _ => Ok(None),
        }
    }

    fn entries(&self) -> Result<Children> {
        Ok(Box::new(self.lookup(CONFIGURATION)?.into_iter().map(Ok)))
    }

    fn open(&self, _name: &[u8]) -> Result<Body> {
        Err(NOT_FOUND)
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::UntilNotified
    }
}

impl Directory for Info {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let Ok(name) = std::str::from_utf8(name) else {
            return Ok(None);
        };
        if let Ok(id) = name.parse() {
            let backups = self.context.repository.backups(&self.server)?;
            return match backups.into_iter().find(|backup| backup.id == id) {
                Some(backup) => self.of_backup(backup),
                None => Ok(None),
            };
        }
        Ok(self.content(name)?.map(|content| self.child(name, content.len())))
    }

    fn entries(&self) -> Result<Children> {
        let mut children = Vec::new();
        for name in [BACKUPS, TIMELINES, RESTORE_COMMAND] {
            children.extend(self.content(name)?.map(|content| self.child(name, content.len())));
        }
        for backup in self.context.repository.backups(&self.server)? {
            children.push(self.child(
                &format!("{}.json", backup.id),
                text(json::document(&described(&backup)?))?.len(),
            ));
            children.extend(self.of_backup(backup)?);
        }
        Ok(Box::new(children.into_iter().map(Ok)))
    }

    fn open(&self, name: &[u8]) -> Result<Body> {
        generated::body(name, |name| self.content(name))
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::UntilNotified
    }
}

/// A backup, without the location of its files in the repository.
fn described(backup: &Backup) -> Result<Value> {
    json::backup(backup).map_err(unexpected)
}

fn text(document: serde_json::Result<Value>) -> Result<Vec<u8>> {
    let mut text = document
        .and_then(|document| serde_json::to_vec_pretty(&document))
        .map_err(unexpected)?;
    text.push(b'\n');
    Ok(text)
}

fn unexpected(error: serde_json::Error) -> Error {
    Error::io("describe", "(a backup)", std::io::Error::from(error))
}
