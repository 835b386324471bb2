//! A passive node: takes over what another site has of a server.
//!
//! The work itself is in the catalog ([`Repository::sync_from`]). Here is where the other site is: a directory of this host,
//! or another host that runs `barmanfs agent --packs` ([`remote`], [`serve`]), or a Barman, here or on another host, whose home is
//! imported ([`barman`]).

mod barman;
mod remote;
pub(crate) mod serve;
mod spool;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use barmanfs_catalog::{
    Locked, Monitor, Repository, ServerName, SyncOptions, SyncReport, SyncSource, SyncedBackups,
    repository_id,
};
use barmanfs_store::LocalPacks;

use crate::config::{PrimaryKind, ServerConfig};
use crate::error::Error;
use remote::FarPacks;
use wire::SpoolEntry;

/// What of a server is synced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) backups: SyncedBackups,
    pub(crate) wal: bool,
}

impl Extent {
    pub(crate) const ALL: Self = Self {
        backups: SyncedBackups::All,
        wal: true,
    };
}

/// What a sync has done.
#[derive(Debug)]
pub(crate) struct Synced {
    /// Where from, for messages.
    pub(crate) primary: String,
    pub(crate) report: SyncReport,
    /// Segments that the primary has received and not archived.
    pub(crate) partial_segments: u64,
}

/// The repository of a primary.
enum Primary {
    Directory { path: PathBuf, id: String },
    Far(Arc<FarPacks>),
}

impl Primary {
    fn open(server: &ServerConfig, config: Option<&Path>) -> Result<Self, Error> {
        let primary = &server.primary;
        if let Some(path) = &primary.repository {
            let id = repository_id(path)
                .map_err(|error| Error::from(error).context("The primary of primary_repository"))?;
            return Ok(Self::Directory {
                path: path.clone(),
                id,
            });
        }
        let command = primary.ssh_command.as_ref().ok_or_else(|| not_passive(server))?;
        let config = config.filter(|_| primary.forward_config_path);
        let packs = FarPacks::connect(command, config, server.name.as_str())?;
        Ok(Self::Far(Arc::new(packs)))
    }

    fn source(&self) -> Result<SyncSource<'_>, Error> {
        Ok(match self {
            Self::Directory { path, id } => {
                let packs = LocalPacks::open(&path.join("packs")).map_err(barmanfs_catalog::Error::from)?;
                SyncSource {
                    id,
                    packs: Locked::of(path)?.open(Arc::new(packs))?,
                }
            }
            Self::Far(packs) => SyncSource {
                id: &packs.id,
                packs: packs.locked.open(Arc::clone(packs) as _)?,
            },
        })
    }

    fn spool(&self, server: &ServerName) -> Result<Vec<SpoolEntry>, Error> {
        match self {
            Self::Directory { path, .. } => spool::list(path, server),
            Self::Far(packs) => packs.spool(server.as_str()),
        }
    }

    fn read_spool(
        &self,
        server: &ServerName,
        name: &str,
        place: (u64, u32),
    ) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Self::Directory { path, .. } => spool::read(path, server, name, place),
            Self::Far(packs) => packs.read_spool(server.as_str(), name, place),
        }
    }
}

/// Where the backups and the WAL of a passive server come from, for messages.
pub(crate) fn described(server: &ServerConfig) -> String {
    let primary = &server.primary;
    match (&primary.repository, &primary.home, &primary.ssh_command) {
        (Some(path), ..) => format!("repository {}", path.display()),
        (None, Some(home), _) => format!("Barman home {}", home.display()),
        (None, None, Some(command)) => {
            format!("primary by '{}'", server.secrets.hide(command.clone()))
        }
        (None, None, None) => "nothing".to_owned(),
    }
}

/// Whether the primary can be reached and is what it should be, for checks. Nothing is changed.
///
/// # Errors
/// When it is not.
pub(crate) fn reach(server: &ServerConfig, config: Option<&Path>) -> Result<String, Error> {
    match server.primary.kind() {
        PrimaryKind::Barman => barman::reach(server, config),
        PrimaryKind::Barmanfs => Primary::open(server, config).map(|_| described(server)),
    }
}

/// Syncs a server, and remembers how it ended.
///
/// # Errors
/// When it is not passive, the primary cannot be read, or this repository cannot be written.
pub(crate) fn run(
    repository: &Repository,
    server: &ServerConfig,
    config: Option<&Path>,
    extent: Extent,
    monitor: &mut dyn Monitor,
) -> Result<Synced, Error> {
    server.refuse_disabled()?;
    if !server.is_passive() {
        return Err(not_passive(server));
    }
    let synced = match server.primary.kind() {
        PrimaryKind::Barman => barman::sync(repository, server, config, extent),
        PrimaryKind::Barmanfs => sync(repository, server, config, extent, monitor),
    };
    if let Err(error) = &synced {
        let noted = repository.note_failed_sync(&server.name, &error.to_string());
        if let Err(error) = noted {
            tracing::warn!("That the sync has failed cannot be remembered: {error}");
        }
    }
    synced
}

fn sync(
    repository: &Repository,
    server: &ServerConfig,
    config: Option<&Path>,
    extent: Extent,
    monitor: &mut dyn Monitor,
) -> Result<Synced, Error> {
    let primary = Primary::open(server, config)?;
    let options = SyncOptions {
        rules: server.retention_rules(),
        deletions: server.primary.deletions,
        backups: extent.backups,
        wal: extent.wal,
    };
    let mut report = repository.sync_from(&server.name, &primary.source()?, &options, monitor)?;
    let mut partial_segments = 0;
    if server.primary.partial && extent.wal {
        let _acting = repository.as_owner()?;
        let taken = spool::take(repository, &server.name, &primary)?;
        partial_segments = taken.segments;
        if !taken.problems.is_empty() {
            report.problems.extend(taken.problems);
            repository.note_sync(&server.name, |memory| {
                memory.problems.clone_from(&report.problems);
            })?;
        }
    }
    Ok(Synced {
        primary: described(server),
        report,
        partial_segments,
    })
}

fn not_passive(server: &ServerConfig) -> Error {
    Error::usage(format!("Server '{}' is not passive: it has no primary", server.name)).hint(
        "Name another repository with 'primary_repository', or the command that reaches its host with 'primary_ssh_command'",
    )
}
