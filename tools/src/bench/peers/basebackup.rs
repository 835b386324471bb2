//! PostgreSQL's own tools: `pg_basebackup`, incremental if the server supports it, and
//! `pg_combinebackup`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::Peer;
use crate::server::Server;
use crate::site::Site;

/// The first version with incremental backups.
const INCREMENTAL_SINCE: u32 = 17;

/// `pg_basebackup`, plain format.
pub(crate) struct BaseBackup<'a> {
    site: &'a Site,
    /// The backups that make up the newest state, oldest first.
    chain: Vec<PathBuf>,
}

impl<'a> BaseBackup<'a> {
    pub(crate) fn new(site: &'a Site) -> Self {
        Self {
            site,
            chain: Vec::new(),
        }
    }
}

impl Peer for BaseBackup<'_> {
    fn name(&self) -> &'static str {
        "pg_basebackup"
    }

    fn version(&self) -> Result<String> {
        Ok("as the server".into())
    }

    fn prepare(&mut self, _server: &Server<'_>) -> Result<()> {
        self.chain.clear();
        self.site.empty_postgres_directory("basebackup")?;
        Ok(())
    }

    fn repository(&self) -> PathBuf {
        self.site.path("basebackup")
    }

    fn backup(&mut self, server: &Server<'_>) -> Result<Command> {
        let mut command = server.client("pg_basebackup");
        command.args(["-c", "fast", "-X", "fetch"]);
        match self.chain.last() {
            Some(previous) if server.major()? >= INCREMENTAL_SINCE => {
                command.arg("--incremental").arg(previous.join("backup_manifest"));
            }
            _ => {
                for old in self.chain.drain(..) {
                    crate::site::remove(&old)?;
                }
            }
        }
        let target = self.repository().join(self.chain.len().to_string());
        command.arg("-D").arg(&target);
        self.chain.push(target);
        Ok(command)
    }

    /// Before 17 a backup is a plain directory, and copying it is the same as `cp`.
    fn restore(&mut self, server: &Server<'_>, target: &str) -> Result<Option<Command>> {
        if server.major()? < INCREMENTAL_SINCE {
            return Ok(None);
        }
        let target = self.site.empty_postgres_directory(target)?;
        let mut command = self.site.as_postgres(server.program("pg_combinebackup"));
        command.args(&self.chain).arg("-o").arg(target);
        Ok(Some(command))
    }

    fn restore_name(&self) -> &'static str {
        "pg_combinebackup"
    }
}
