//! pgBackRest, with zstd at level 3 and two processes, and block incremental if it supports that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Peer;
use crate::server::{Server, USER};
use crate::site::{self, Site};

/// The first versions with an option.
const BUNDLE_SINCE: (u32, u32) = (2, 39);
const BLOCK_SINCE: (u32, u32) = (2, 46);

/// pgBackRest on the database host, with a repository on local disk.
pub(crate) struct PgBackRest<'a> {
    site: &'a Site,
    program: PathBuf,
    has_backup: bool,
}

impl<'a> PgBackRest<'a> {
    pub(crate) fn new(site: &'a Site, program: &Path) -> Self {
        Self {
            site,
            program: program.to_owned(),
            has_backup: false,
        }
    }

    fn command(&self) -> Command {
        let mut command = self.site.as_postgres(&self.program);
        command.arg(format!(
            "--config={}",
            self.site.path("pgbackrest.conf").display()
        ));
        command.arg("--stanza=main");
        command
    }

    /// The numbers of "pgBackRest 2.45".
    fn version_numbers(&self) -> Result<(u32, u32)> {
        let version = self.version()?;
        let mut numbers = version
            .trim_start_matches("pgBackRest ")
            .split('.')
            .map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
            _ => anyhow::bail!("Cannot read the version {version:?}"),
        }
    }

    fn restore_as(&self, target: &str, recovery: &[&str]) -> Result<Command> {
        self.site.empty_postgres_directory(target)?;
        Ok(self.restore_into(target, recovery))
    }

    fn restore_into(&self, target: &str, recovery: &[&str]) -> Command {
        let target = self.site.path(target);
        let mut command = self.command();
        command
            .arg(format!("--pg1-path={}", target.display()))
            .args(recovery)
            .arg("restore");
        command
    }

    fn configuration(&self, server: &Server<'_>) -> Result<String> {
        let version = self.version_numbers()?;
        let home = self.site.path("pgbackrest");
        let home = home.display();
        let mut text = format!(
            "[global]\nrepo1-path={home}/repo\nlog-path={home}\nlock-path={home}\nspool-path={home}\n\
             log-level-console=warn\nlog-level-file=off\nrepo1-retention-full=9\nstart-fast=y\n\
             process-max=2\ncompress-type=zst\ncompress-level=3\narchive-check=n\n"
        );
        if version >= BUNDLE_SINCE {
            text.push_str("repo1-bundle=y\n");
        }
        if version >= BLOCK_SINCE {
            text.push_str("repo1-block=y\n");
        }
        text += &format!(
            "[main]\npg1-path={}\npg1-socket-path={}\npg1-user={USER}\n",
            server.data().display(),
            server.socket().display()
        );
        Ok(text)
    }
}

impl Peer for PgBackRest<'_> {
    fn name(&self) -> &'static str {
        "pgBackRest"
    }

    fn version(&self) -> Result<String> {
        Ok(site::output(Command::new(&self.program).arg("version"))?
            .trim()
            .to_owned())
    }

    fn prepare(&mut self, server: &Server<'_>) -> Result<()> {
        self.site.empty_postgres_directory("pgbackrest")?;
        let path = self.site.path("pgbackrest.conf");
        fs::write(&path, self.configuration(server)?)
            .with_context(|| format!("Cannot write {}", path.display()))?;
        self.has_backup = false;
        self.site.run(self.command().arg("stanza-create"))
    }

    fn repository(&self) -> PathBuf {
        self.site.path("pgbackrest/repo")
    }

    fn backup(&mut self, _server: &Server<'_>) -> Result<Command> {
        let mut command = self.command();
        command.arg("backup").arg(if self.has_backup {
            "--type=incr"
        } else {
            "--type=full"
        });
        self.has_backup = true;
        Ok(command)
    }

    fn restore(&mut self, _server: &Server<'_>, target: &str) -> Result<Option<Command>> {
        self.restore_as(target, &["--type=none"]).map(Some)
    }

    fn restore_delta(&mut self, target: &str) -> Result<Option<Command>> {
        Ok(Some(self.restore_into(target, &["--type=none", "--delta"])))
    }

    /// Takes a backup now, with the segments it needs, while the server has them.
    fn complete(&mut self, server: &Server<'_>) -> Result<()> {
        let mut backup = self.backup(server)?;
        self.site.run(&mut backup)?;
        for segment in wal_of(server)? {
            let archive = self.archive(&segment);
            archive.map_or(Ok(()), |mut archive| self.site.run(&mut archive))?;
        }
        Ok(())
    }

    fn restore_to_start(&mut self, _server: &Server<'_>, target: &str) -> Result<Option<Command>> {
        let recovery = ["--type=immediate", "--target-action=promote"];
        self.restore_as(target, &recovery).map(Some)
    }

    fn archive(&self, segment: &Path) -> Option<Command> {
        let mut command = self.command();
        command.arg("archive-push").arg(segment);
        Some(command)
    }

    fn fetch(&self, segment: &str, to: &Path) -> Option<Command> {
        let mut command = self.command();
        command.args(["archive-get", segment]).arg(to);
        Some(command)
    }
}

/// The segments in the server's `pg_wal` that it no longer writes to.
fn wal_of(server: &Server<'_>) -> Result<Vec<PathBuf>> {
    let current = server.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
    let names = server.sql("SELECT name FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' ORDER BY name")?;
    let directory = server.data().join("pg_wal");
    Ok(names
        .lines()
        .filter(|name| *name < current.as_str())
        .map(|name| directory.join(name))
        .collect())
}
