//! Plain copies: the comparison for every other tool.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::Peer;
use crate::server::Server;
use crate::site::{self, Site};

/// `cp -a` of the stopped server's data directory, and `cp` of segments.
pub(crate) struct Cp<'a> {
    site: &'a Site,
}

impl<'a> Cp<'a> {
    pub(crate) fn new(site: &'a Site) -> Self {
        Self { site }
    }
}

impl Peer for Cp<'_> {
    fn name(&self) -> &'static str {
        "cp"
    }

    fn version(&self) -> Result<String> {
        let text = site::output(Command::new("cp").arg("--version"))?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    fn prepare(&mut self, _server: &Server<'_>) -> Result<()> {
        self.site.empty_directory("cp")?;
        self.site.empty_directory("cp/wal")?;
        Ok(())
    }

    fn repository(&self) -> PathBuf {
        self.site.path("cp")
    }

    fn needs_stopped_server(&self) -> bool {
        true
    }

    fn backup(&mut self, server: &Server<'_>) -> Result<Command> {
        let target = self.site.path("cp/data");
        site::remove(&target)?;
        Ok(copy(&server.data(), &target))
    }

    fn restore(&mut self, _server: &Server<'_>, target: &str) -> Result<Option<Command>> {
        Ok(Some(copy(&self.site.path("cp/data"), &self.site.path(target))))
    }

    fn archive(&self, segment: &Path) -> Option<Command> {
        let mut command = Command::new("sh");
        command
            .args(["-c", "cp \"$0\" \"$1\" && sync \"$1\""])
            .arg(segment);
        command.arg(self.site.path("cp/wal").join(segment.file_name()?));
        Some(command)
    }

    fn fetch(&self, segment: &str, to: &Path) -> Option<Command> {
        let mut command = Command::new("cp");
        command.arg(self.site.path("cp/wal").join(segment)).arg(to);
        Some(command)
    }
}

/// Without reflinks, which copy nothing if the file system supports them.
pub(crate) fn copy(from: &Path, to: &Path) -> Command {
    let mut command = Command::new("cp");
    command.args(["-a", "--reflink=never"]).arg(from).arg(to);
    command
}
