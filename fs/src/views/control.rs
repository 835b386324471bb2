//! `.barmanfs/`: whether the mount works, and what can be said about it to programs.
//!
//! `absent/<server>/<name>` exists when the archive certainly has no file of that name. It is how `restore_command`
//! tells "there is no such segment", on which PostgreSQL ends recovery, from "I cannot say": a mount that is gone, a
//! directory without permission, a catalog that cannot be read. Not finding a file is no proof of anything; finding
//! this one is.

use std::sync::Arc;

use barmanfs_pg::wal_name::WalName;
use serde_json::json;

use super::context::Context;
use super::snapshot::ServerState;
use super::{Body, Children, Directory, made, no_files};
use crate::error::Result;
use crate::namespace::{Child, Lifetime};

const ALIVE: &str = "alive";
const STATUS: &str = "status.json";
const ABSENT: &str = "absent";

/// `.barmanfs`.
#[derive(Debug)]
pub(super) struct Control {
    context: Arc<Context>,
}

impl Control {
    pub(super) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    fn content(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match name {
            ALIVE => Ok(Some(b"alive\n".to_vec())),
            STATUS => self.status().map(Some),
            _ => Ok(None),
        }
    }

    fn status(&self) -> Result<Vec<u8>> {
        let context = &self.context;
        let snapshot = context.snapshot()?;
        let server = |state: &Arc<ServerState>| {
            json!({
                "name": state.name,
                "backups": state.backups.len(),
                "latest": state.latest().map(|backup| backup.id),
                "oldest": state.oldest().map(|backup| backup.id),
            })
        };
        let status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "mount_point": context.options.mount_point,
            "repository": context.repository.path(),
            "started_at": context.started,
            "uptime_seconds": context.uptime().as_secs(),
            "generation": context.repository.generation()?,
            "servers": snapshot.servers.iter().map(server).collect::<Vec<_>>(),
        });
        Ok(format!("{status:#}\n").into_bytes())
    }

    fn file(&self, name: &str, content: &[u8]) -> Child {
        let attributes = self.context.own(0o444, self.context.started);
        // Never from a cache: it must not look alive when it is not.
        made::file(
            &self.context,
            name,
            &attributes,
            content.len() as u64,
            Lifetime::Never,
        )
    }

    fn absent(&self) -> Child {
        let absent = Arc::new(Absent {
            context: Arc::clone(&self.context),
            server: None,
        });
        made::directory(
            &self.context,
            ABSENT,
            &self.context.own(0o555, self.context.started),
            absent,
        )
    }
}

impl Directory for Control {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let Ok(name) = std::str::from_utf8(name) else {
            return Ok(None);
        };
        if name == ABSENT {
            return Ok(Some(self.absent()));
        }
        Ok(self.content(name)?.map(|content| self.file(name, &content)))
    }

    fn entries(&self) -> Result<Children> {
        let status = self.status()?;
        let children = [
            self.file(ALIVE, b"alive\n"),
            self.file(STATUS, &status),
            self.absent(),
        ];
        Ok(Box::new(children.into_iter().map(Ok)))
    }

    fn open(&self, name: &[u8]) -> Result<Body> {
        made::body(name, |name| self.content(name))
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::Never
    }
}

/// `absent/`, and below it one directory for each server.
#[derive(Debug)]
struct Absent {
    context: Arc<Context>,
    server: Option<Arc<ServerState>>,
}

impl Absent {
    fn of(&self, server: &Arc<ServerState>) -> Child {
        let absent = Self {
            context: Arc::clone(&self.context),
            server: Some(Arc::clone(server)),
        };
        let attributes = self.context.own(0o555, self.context.started);
        made::directory(&self.context, server.name.as_str(), &attributes, Arc::new(absent))
    }
}

impl Directory for Absent {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let Ok(name) = std::str::from_utf8(name) else {
            return Ok(None);
        };
        let Some(server) = &self.server else {
            return Ok(self
                .context
                .snapshot()?
                .server(name)
                .map(|server| self.of(server)));
        };
        // Only of a name PostgreSQL would ask for can it be said that it is missing.
        let Ok(wal) = name.parse::<WalName>() else {
            return Ok(None);
        };
        if self.context.repository.wal(&server.name).entry(&wal)?.is_some() {
            return Ok(None);
        }
        let attributes = self.context.own(0o444, self.context.started);
        Ok(Some(made::file(
            &self.context,
            name,
            &attributes,
            0,
            Lifetime::Never,
        )))
    }

    /// The names that are missing are too many to list.
    fn entries(&self) -> Result<Children> {
        if self.server.is_some() {
            return Ok(Box::new(std::iter::empty()));
        }
        let snapshot = self.context.snapshot()?;
        let children: Vec<_> = snapshot
            .servers
            .iter()
            .map(|server| Ok(self.of(server)))
            .collect();
        Ok(Box::new(children.into_iter()))
    }

    fn open(&self, name: &[u8]) -> Result<Body> {
        if self.server.is_some() && self.lookup(name)?.is_some() {
            return Ok(Body::Made(Arc::from([])));
        }
        no_files()
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::Never
    }
}
