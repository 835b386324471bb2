//! barmanfs, as its users run it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Mount, Peer};
use crate::server::{Server, USER};
use crate::site::{self, Site};

/// barmanfs with a repository on local disk, and one server, `main`.
pub(crate) struct Barmanfs<'a> {
    site: &'a Site,
    program: PathBuf,
}

impl<'a> Barmanfs<'a> {
    /// Its name in the report, in which all ratios refer to it.
    pub(crate) const NAME: &'static str = "barmanfs";

    pub(crate) fn new(site: &'a Site, program: &Path) -> Self {
        Self {
            site,
            program: program.to_owned(),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.site.path("barmanfs.conf"));
        command
    }

    fn restore_latest(&self, target: &str) -> Command {
        let mut command = self.command();
        command
            .args(["--quiet", "restore", "main", "latest"])
            .arg(self.site.path(target));
        command
    }
}

impl Peer for Barmanfs<'_> {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn version(&self) -> Result<String> {
        Ok(site::output(Command::new(&self.program).arg("--version"))?
            .trim()
            .to_owned())
    }

    fn prepare(&mut self, server: &Server<'_>) -> Result<()> {
        let repository = self.site.empty_directory("barmanfs")?;
        let conninfo = format!("host={} user={USER} dbname=postgres", server.socket().display());
        let configuration = format!(
            "[barmanfs]\nrepository = {}\n\n[main]\nconninfo = {conninfo}\nstreaming_conninfo = {conninfo}\n",
            repository.display()
        );
        let path = self.site.path("barmanfs.conf");
        fs::write(&path, configuration).with_context(|| format!("Cannot write {}", path.display()))
    }

    fn repository(&self) -> PathBuf {
        self.site.path("barmanfs")
    }

    fn backup(&mut self, _server: &Server<'_>) -> Result<Command> {
        let mut command = self.command();
        command.args(["backup", "main", "--fast-checkpoint"]);
        Ok(command)
    }

    fn restore(&mut self, _server: &Server<'_>, target: &str) -> Result<Option<Command>> {
        Ok(Some(self.restore_latest(target)))
    }

    fn restore_delta(&mut self, target: &str) -> Result<Option<Command>> {
        let mut command = self.restore_latest(target);
        command.arg("--delta-restore");
        Ok(Some(command))
    }

    fn restore_to_start(&mut self, _server: &Server<'_>, target: &str) -> Result<Option<Command>> {
        let mut command = self.restore_latest(target);
        command.args(["--target-immediate", "--target-action", "promote", "--no-get-wal"]);
        Ok(Some(command))
    }

    fn mount(&self, _server: &Server<'_>, at: &Path) -> Option<Mount> {
        let mut serve = self.command();
        serve.arg("mount").arg(at).args(["--foreground", "--allow-other"]);
        let mut unmount = self.command();
        unmount.arg("umount").arg(at);
        Some(Mount {
            serve,
            unmount,
            data: at.join("main/latest"),
            wal: Some(at.join("main/wal")),
            clone: Some(at.join("main/live/bench")),
        })
    }

    fn archive(&self, segment: &Path) -> Option<Command> {
        let mut command = self.command();
        command.args(["wal-archive", "main"]).arg(segment);
        Some(command)
    }
}
