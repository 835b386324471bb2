//! restic: a deduplicating backup of the files, with a mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Mount, Peer};
use crate::server::Server;
use crate::site::{self, Site};

/// restic with a repository on local disk. It copies files, so the server is stopped for it: a copy
/// of a running server's files could not be started.
pub(crate) struct Restic<'a> {
    site: &'a Site,
    program: PathBuf,
}

impl<'a> Restic<'a> {
    pub(crate) fn new(site: &'a Site, program: &Path) -> Self {
        Self {
            site,
            program: program.to_owned(),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-q").arg("-r").arg(self.repository());
        command
            .arg("--cache-dir")
            .arg(self.site.path("restic-cache"))
            .env("RESTIC_PASSWORD", "bench");
        command
    }
}

impl Peer for Restic<'_> {
    fn name(&self) -> &'static str {
        "restic"
    }

    fn version(&self) -> Result<String> {
        let text = site::output(Command::new(&self.program).arg("version"))?;
        Ok(text
            .split(" compiled")
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned())
    }

    fn prepare(&mut self, _server: &Server<'_>) -> Result<()> {
        self.site.empty_directory("restic")?;
        self.site.empty_directory("restic-cache")?;
        // The second version of the repository has compression.
        self.site
            .run(self.command().args(["init", "--repository-version", "2"]))
    }

    fn repository(&self) -> PathBuf {
        self.site.path("restic")
    }

    fn needs_stopped_server(&self) -> bool {
        true
    }

    fn backup(&mut self, server: &Server<'_>) -> Result<Command> {
        let mut command = self.command();
        command.arg("backup").arg(server.data());
        Ok(command)
    }

    fn restore(&mut self, _server: &Server<'_>, target: &str) -> Result<Option<Command>> {
        let target = self.site.empty_directory(target)?;
        let mut command = self.command();
        command.args(["restore", "latest", "--target"]).arg(target);
        Ok(Some(command))
    }

    /// It restores into the whole path of the original, below the target.
    fn restore_to_start(&mut self, _server: &Server<'_>, _target: &str) -> Result<Option<Command>> {
        Ok(None)
    }

    fn mount(&self, server: &Server<'_>, at: &Path) -> Option<Mount> {
        let mut serve = self.command();
        serve.arg("mount").arg(at);
        let mut unmount = Command::new("fusermount3");
        unmount.arg("-u").arg(at);
        let inside = server.data().strip_prefix("/").ok()?.to_owned();
        Some(Mount {
            serve,
            unmount,
            data: at.join("snapshots/latest").join(inside),
            wal: None,
            clone: None,
        })
    }
}
