//! `.barmanfs/`: the status of the mount, and interfaces for programs.
//!
//! `absent/<server>/<name>` exists when the archive certainly has no file of that name. With it `restore_command`
//! distinguishes "there is no such segment", on which PostgreSQL ends recovery, from "unknown": the mount is gone, a
//! directory is not readable, the catalog cannot be read. A missing file proves nothing; an existing file here does.
//! `replay/<server>/<name>` is the archived file as a copy may replay it, see `replay`. `receiving/<server>/<name>` is
//! the received part of a segment that is not archived, see `receiving`.
//!
//! `released/<server>/<clone>` exists when this mount does not serve the clone. Looking it up stops the serving: all
//! writes are made durable, and another process can take the clone's lock. It fails with EBUSY while the clone is in
//! use, and may do so for a moment after its last file was closed. The next request below the clone serves it again.
//! Only users who may create and remove clones may look it up.

use std::sync::Arc;

use barmanfs_catalog::json::document;
use barmanfs_catalog::{CloneName, ServerName};
use barmanfs_pg::wal_name::WalName;
use serde_json::json;

use super::context::Context;
use super::receiving::Receiving;
use super::snapshot::ServerState;
use super::wal::Wal;
use super::{generated, live, no_files};
use crate::counters::MountCounters;
use crate::entry::{Body, Child, Children, Directory, Lifetime};
use crate::error::{Error, Result};

const ALIVE: &str = "alive";
const STATUS: &str = "status.json";
const OF_SERVERS: [(&str, OfServer); 4] = [
    ("absent", Absent::child),
    ("receiving", Receiving::child),
    ("released", Released::child),
    ("replay", Wal::to_replay),
];

/// `.barmanfs`.
#[derive(Debug)]
pub(super) struct ControlDirectory {
    context: Arc<Context>,
}

impl ControlDirectory {
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
        let stored = context.repository.counters().snapshot();
        let counters = MountCounters::of(&context.counters().snapshot(), &stored);
        let status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "mount_point": context.options.mount_point,
            "repository": context.repository.path(),
            "started_at": context.started,
            "uptime_seconds": context.uptime().as_secs(),
            "generation": context.repository.generation()?,
            "counters": counters,
            "servers": snapshot.servers.iter().map(server).collect::<Vec<_>>(),
        });
        let status = document(&status).map_err(|error| Error::io("describe", "(the mount)", error))?;
        Ok(format!("{status:#}\n").into_bytes())
    }

    fn file(&self, name: &str, content: &[u8]) -> Child {
        let attributes = self.context.own(0o444, self.context.started);
        // Never cached: a dead mount must not look alive.
        generated::file(
            &self.context,
            name,
            &attributes,
            content.len() as u64,
            Lifetime::Never,
        )
    }

    fn servers(&self, name: &str, of: OfServer) -> Child {
        let servers = Servers {
            context: Arc::clone(&self.context),
            of,
        };
        let attributes = self.context.own(0o555, self.context.started);
        generated::directory(&self.context, name, &attributes, Arc::new(servers))
    }
}

impl Directory for ControlDirectory {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let Ok(name) = std::str::from_utf8(name) else {
            return Ok(None);
        };
        if let Some((name, of)) = OF_SERVERS.iter().find(|(known, _)| *known == name) {
            return Ok(Some(self.servers(name, *of)));
        }
        Ok(self.content(name)?.map(|content| self.file(name, &content)))
    }

    fn entries(&self) -> Result<Children> {
        let status = self.status()?;
        let files = [self.file(ALIVE, b"alive\n"), self.file(STATUS, &status)];
        let servers = OF_SERVERS.iter().map(|(name, of)| self.servers(name, *of));
        let children: Vec<_> = files.into_iter().chain(servers).map(Ok).collect();
        Ok(Box::new(children.into_iter()))
    }

    fn open(&self, name: &[u8]) -> Result<Body> {
        generated::body(name, |name| self.content(name))
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::Never
    }
}

/// Makes the entry of a server in a directory with one entry for each server.
type OfServer = fn(&Arc<Context>, &ServerState) -> Child;

/// A directory with one entry for each server.
#[derive(Debug)]
struct Servers {
    context: Arc<Context>,
    of: OfServer,
}

impl Directory for Servers {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let Ok(name) = std::str::from_utf8(name) else {
            return Ok(None);
        };
        let snapshot = self.context.snapshot()?;
        Ok(snapshot
            .server(name)
            .map(|server| (self.of)(&self.context, server)))
    }

    fn entries(&self) -> Result<Children> {
        let snapshot = self.context.snapshot()?;
        let children: Vec<_> = snapshot
            .servers
            .iter()
            .map(|server| Ok((self.of)(&self.context, server)))
            .collect();
        Ok(Box::new(children.into_iter()))
    }

    fn open(&self, _name: &[u8]) -> Result<Body> {
        no_files()
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::Never
    }
}

/// `absent/<server>`.
#[derive(Debug)]
struct Absent {
    context: Arc<Context>,
    server: ServerName,
}

impl Absent {
    fn child(context: &Arc<Context>, server: &ServerState) -> Child {
        let absent = Self {
            context: Arc::clone(context),
            server: server.name.clone(),
        };
        let attributes = context.own(0o555, context.started);
        generated::directory(context, server.name.as_str(), &attributes, Arc::new(absent))
    }

    /// Whether the archive certainly has no file of this name. Only a name that PostgreSQL asks for can be answered.
    fn is_proven(&self, name: &[u8]) -> Result<bool> {
        let wal = std::str::from_utf8(name)
            .ok()
            .and_then(|name| name.parse::<WalName>().ok());
        match wal {
            Some(wal) => self.is_absent(&wal),
            None => Ok(false),
        }
    }

    /// A pack that the catalog has not read yet may have the file. Then the absence is not proven, and recovery stops
    /// with an error instead of ending early.
    fn is_absent(&self, wal: &WalName) -> Result<bool> {
        let repository = &self.context.repository;
        let archive = repository.wal(&self.server);
        if archive.entry(wal)?.is_some() {
            return Ok(false);
        }
        match repository.prove_completeness() {
            // Where retention has removed the file, recovery must not take its absence for the end of the archive.
            Ok(()) => {
                Ok(archive.entry(wal)?.is_none() && !repository.interrupts_recovery(&self.server, wal)?)
            }
            Err(error @ barmanfs_catalog::Error::NotProven { .. }) => {
                tracing::warn!(
                    "Whether WAL file {wal} of server {} is absent cannot be determined: {error}",
                    self.server
                );
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Directory for Absent {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let attributes = self.context.own(0o444, self.context.started);
        let proof = || generated::file(&self.context, name, &attributes, 0, Lifetime::Never);
        Ok(self.is_proven(name)?.then(proof))
    }

    /// There are too many absent names to list.
    fn entries(&self) -> Result<Children> {
        Ok(Box::new(std::iter::empty()))
    }

    fn open(&self, name: &[u8]) -> Result<Body> {
        match self.is_proven(name)? {
            true => Ok(Body::Made(Arc::from([]))),
            false => no_files(),
        }
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::Never
    }

    fn is_open_ended(&self) -> bool {
        true
    }
}

/// `released/<server>`.
#[derive(Debug)]
struct Released {
    context: Arc<Context>,
    server: ServerName,
}

impl Released {
    fn child(context: &Arc<Context>, server: &ServerState) -> Child {
        let released = Self {
            context: Arc::clone(context),
            server: server.name.clone(),
        };
        let owner = live::owner(context, server);
        generated::directory(context, server.name.as_str(), &owner, Arc::new(released))
    }
}

impl Directory for Released {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let clone = std::str::from_utf8(name)
            .ok()
            .and_then(|name| name.parse::<CloneName>().ok());
        let Some(clone) = clone else { return Ok(None) };
        self.context.release(&self.server, &clone)?;
        let attributes = self.context.own(0o444, self.context.started);
        Ok(Some(generated::file(
            &self.context,
            name,
            &attributes,
            0,
            Lifetime::Never,
        )))
    }

    /// A look-up releases a clone; a listing must not.
    fn entries(&self) -> Result<Children> {
        Ok(Box::new(std::iter::empty()))
    }

    fn open(&self, _name: &[u8]) -> Result<Body> {
        Ok(Body::Made(Arc::from([])))
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::Never
    }

    fn is_open_ended(&self) -> bool {
        true
    }
}
