//! Hook scripts: what a site runs before and after backups, archiving, deletions and recoveries.
//!
//! Keys, order, exit codes and variables are Barman's: [`environment`] has the variables, [`script`] runs one script. No lock
//! of the repository is held while one runs, except that of the operation itself, and what is done before a post hook runs
//! stays done: a post hook fails nothing.

mod backup_info;
mod environment;
pub(crate) mod retention;
mod script;
pub(crate) mod storage;

use std::path::{Path, PathBuf};

use barmanfs_catalog::{Backup, Repository, ServerName};

use crate::config::ServerConfig;
use crate::error::Error;
use crate::mounts::Mounts;
use environment::Variables;
pub(crate) use environment::{Recovery, Wal};
use script::{Ended, Script};
pub(crate) use script::{Notice, Told, notify};

/// An operation that has hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// A backup.
    Backup,
    /// A WAL file is archived.
    Archive,
    /// A backup is deleted.
    Delete,
    /// A WAL file is removed.
    WalDelete,
    /// A backup is restored.
    Recovery,
}

impl Hook {
    /// Its part of the keys.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Archive => "archive",
            Self::Delete => "delete",
            Self::WalDelete => "wal_delete",
            Self::Recovery => "recovery",
        }
    }
}

/// When a script runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Pre,
    Post,
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Post => "post",
        }
    }
}

/// Whether the process that waits for a hook has been asked to end.
pub(crate) type IsStopped<'a> = &'a (dyn Fn() -> bool + Sync);

/// For commands that a signal ends at once.
pub(crate) const NEVER_STOPPED: IsStopped<'static> = &|| false;

/// The hooks of one server.
#[derive(Clone, Copy)]
pub(crate) struct Hooks<'a> {
    server: &'a ServerConfig,
    repository: &'a Repository,
    is_stopped: IsStopped<'a>,
}

impl<'a> Hooks<'a> {
    /// Those of this server. Once `is_stopped`, a script is ended, and a retry script is not tried again.
    pub(crate) fn of(
        server: &'a ServerConfig,
        repository: &'a Repository,
        is_stopped: IsStopped<'a>,
    ) -> Self {
        Self {
            server,
            repository,
            is_stopped,
        }
    }

    /// The server that has them.
    pub(crate) fn server(&self) -> &ServerName {
        &self.server.name
    }

    /// The repository.
    pub(crate) fn repository(&self) -> &'a Repository {
        self.repository
    }

    /// Whether anything is to be run for an operation.
    pub(crate) fn has(&self, hook: Hook) -> bool {
        self.server.hooks.has(hook.word())
    }

    /// Runs the scripts before an operation on a backup. `status` is what they see.
    ///
    /// # Errors
    /// When a retry script stops the operation.
    pub(crate) fn before_backup(&self, hook: Hook, backup: &Backup, status: &str) -> Result<(), Error> {
        let Some(variables) = self.of_backup(hook, backup, status, None)? else {
            return Ok(());
        };
        self.before(hook, &variables)
    }

    /// Runs the scripts after it. What goes wrong here is logged.
    pub(crate) fn after_backup(&self, hook: Hook, backup: &Backup) {
        self.run_after(hook, || {
            self.of_backup(hook, backup, backup.status.as_str(), None)
        });
    }

    /// Runs the scripts before a recovery.
    ///
    /// # Errors
    /// When a retry script stops it.
    pub(crate) fn before_recovery(&self, backup: &Backup, recovery: &Recovery<'_>) -> Result<(), Error> {
        let status = backup.status.as_str();
        let Some(variables) = self.of_backup(Hook::Recovery, backup, status, Some(recovery))? else {
            return Ok(());
        };
        self.before(Hook::Recovery, &variables)
    }

    /// Runs the scripts after it. What goes wrong here is logged.
    pub(crate) fn after_recovery(&self, backup: &Backup, recovery: &Recovery<'_>) {
        let status = backup.status.as_str();
        self.run_after(Hook::Recovery, || {
            self.of_backup(Hook::Recovery, backup, status, Some(recovery))
        });
    }

    /// Runs the scripts before a WAL file is archived or removed.
    ///
    /// # Errors
    /// When a retry script stops that.
    pub(crate) fn before_wal(&self, hook: Hook, wal: &Wal<'_>) -> Result<(), Error> {
        match self.has(hook) {
            true => self.before(hook, &Variables::of_wal(wal)),
            false => Ok(()),
        }
    }

    /// Runs the scripts after it. What goes wrong here is logged.
    pub(crate) fn after_wal(&self, hook: Hook, wal: &Wal<'_>) {
        self.run_after(hook, || {
            let place = self.shown(&format!("wal/{}", wal.name));
            let wal = Wal {
                path: place.as_deref(),
                ..*wal
            };
            Ok(Some(Variables::of_wal(&wal)))
        });
    }

    /// Where the server's directory in a mount shows this; `None` if nothing is mounted.
    pub(crate) fn shown(&self, path: &str) -> Option<PathBuf> {
        let mounts = Mounts::of(self.repository).ok()?;
        let mount = mounts.any(&self.server.name)?;
        Some(mount.join(self.server.name.as_str()).join(path))
    }

    /// The variables of a backup; `None` if there is nothing to run.
    fn of_backup(
        &self,
        hook: Hook,
        backup: &Backup,
        status: &str,
        recovery: Option<&Recovery<'_>>,
    ) -> Result<Option<Variables>, Error> {
        if !self.has(hook) {
            return Ok(None);
        }
        let (previous, next) = neighbours(self.repository, &self.server.name, backup)?;
        let directory = self.shown(&backup.id.to_string());
        let info = backup_info::file(backup, status)
            .map_err(|error| Error::failed(format!("Cannot write a temporary file for the hook: {error}")))?;
        let mut variables =
            Variables::of_backup(backup, status, (previous, next), directory.as_deref(), info);
        if let Some(recovery) = recovery {
            variables.add_recovery(recovery);
        }
        Ok(Some(variables))
    }

    fn run_after(&self, hook: Hook, variables: impl FnOnce() -> Result<Option<Variables>, Error>) {
        if !self.has(hook) {
            return;
        }
        match variables() {
            Ok(Some(variables)) => self.after(hook, &variables),
            Ok(None) => {}
            Err(error) => tracing::error!("Hooks after a {} were not run: {error}", hook.word()),
        }
    }

    fn before(&self, hook: Hook, variables: &Variables) -> Result<(), Error> {
        self.plain(hook, Phase::Pre, variables);
        match self.retried(hook, Phase::Pre, variables) {
            None | Some(Ended::Done | Ended::GivenUp) => Ok(()),
            Some(Ended::Stop(why)) => Err(Error::failed(format!(
                "pre_{}_retry_script of server {} has stopped it: {why}",
                hook.word(),
                self.server.name
            ))),
        }
    }

    fn after(&self, hook: Hook, variables: &Variables) {
        if let Some(Ended::Stop(why)) = self.retried(hook, Phase::Post, variables) {
            tracing::warn!(
                "post_{}_retry_script of server {} wants to stop what is done already: {why}",
                hook.word(),
                self.server.name
            );
        }
        self.plain(hook, Phase::Post, variables);
    }

    fn plain(&self, hook: Hook, phase: Phase, variables: &Variables) {
        if let Some(script) = self.script(hook, phase, false, variables) {
            script.run_once(self.is_stopped);
        }
    }

    fn retried(&self, hook: Hook, phase: Phase, variables: &Variables) -> Option<Ended> {
        let script = self.script(hook, phase, true, variables)?;
        Some(script.run_until_done(self.is_stopped))
    }

    fn script(&self, hook: Hook, phase: Phase, retry: bool, variables: &Variables) -> Option<Script> {
        let kind = format!("{}{}_script", hook.word(), if retry { "_retry" } else { "" });
        let key = format!("{}_{kind}", phase.word());
        let command = self.server.hooks.scripts.get(&key)?.clone();
        let mut environment = variables.common(self.server, &kind, phase.word(), retry);
        environment.extend(variables.own());
        Some(Script {
            key,
            command,
            environment,
            timeout: self.server.hooks.timeout,
            owner: script::owner_to_become(self.repository.path()),
        })
    }
}

/// The complete backups before and behind one, which may be gone itself.
fn neighbours(
    repository: &Repository,
    server: &ServerName,
    backup: &Backup,
) -> Result<(Option<String>, Option<String>), Error> {
    let all = repository.backups(server)?;
    let mut others = all.iter().filter(|other| {
        other.is_of_server() && other.has_ended_well() && other.archive() == backup.archive()
    });
    let previous = others.clone().rfind(|other| other.id < backup.id);
    let next = others.find(|other| other.id > backup.id);
    let id = |found: Option<&Backup>| found.map(|found| found.id.to_string());
    Ok((id(previous), id(next)))
}

/// The absolute form of a path, for a script that runs elsewhere.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
