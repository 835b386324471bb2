//! The measured tools. Each defines its commands; the timing is the same for all.

mod barmanfs;
mod basebackup;
mod cp;
mod pgbackrest;
mod restic;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

pub(crate) use self::barmanfs::Barmanfs;
use self::basebackup::BaseBackup;
use self::cp::Cp;
use self::pgbackrest::PgBackRest;
use self::restic::Restic;
use crate::server::Server;
use crate::site::Site;

/// The operations of a tool. Every returned command is timed as it is; its preparations are done
/// before it is returned. `None`: the tool has no such operation.
pub(crate) trait Peer {
    /// Its name in the report.
    fn name(&self) -> &'static str;

    /// Its version; an error says why it cannot take part.
    fn version(&self) -> Result<String>;

    /// Makes an empty repository, in place of an existing one.
    fn prepare(&mut self, server: &Server<'_>) -> Result<()>;

    /// The directory with everything that it stores.
    fn repository(&self) -> PathBuf;

    /// Whether it can only copy the files of a stopped server.
    fn needs_stopped_server(&self) -> bool {
        false
    }

    /// A backup of the server; the second and later ones may build on earlier ones.
    fn backup(&mut self, server: &Server<'_>) -> Result<Command>;

    /// Copies the newest backup to `target`, which does not exist.
    fn restore(&mut self, _server: &Server<'_>, _target: &str) -> Result<Option<Command>> {
        Ok(None)
    }

    /// Makes the newest backup of `target` again, to which it was restored; what did not change is not written.
    fn restore_delta(&mut self, _target: &str) -> Result<Option<Command>> {
        Ok(None)
    }

    /// Adds what a server on the newest backup needs in addition. If that is simpler, takes the
    /// backup again.
    fn complete(&mut self, _server: &Server<'_>) -> Result<()> {
        Ok(())
    }

    /// The same as [`restore`](Self::restore), and a server can be started on it.
    fn restore_to_start(&mut self, server: &Server<'_>, target: &str) -> Result<Option<Command>> {
        self.restore(server, target)
    }

    /// The name of the restore, if it is another program.
    fn restore_name(&self) -> &'static str {
        self.name()
    }

    /// Shows its backups as directories.
    fn mount(&self, _server: &Server<'_>, _at: &Path) -> Option<Mount> {
        None
    }

    /// Archives a WAL segment.
    fn archive(&self, _segment: &Path) -> Option<Command> {
        None
    }

    /// Fetches a segment from its archive, without a mount.
    fn fetch(&self, _segment: &str, _to: &Path) -> Option<Command> {
        None
    }
}

/// The use of a tool's mount.
pub(crate) struct Mount {
    /// Serves it, in the foreground.
    pub(crate) serve: Command,
    /// Unmounts it.
    pub(crate) unmount: Command,
    /// The newest backup's data directory, which exists once the mount answers.
    pub(crate) data: PathBuf,
    /// The directory of archived segments.
    pub(crate) wal: Option<PathBuf>,
    /// A directory whose creation makes a data directory that a server can run on.
    pub(crate) clone: Option<PathBuf>,
}

/// Paths of the tools' programs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Programs {
    /// The barmanfs to measure
    #[arg(long, default_value = "target/release/barmanfs", value_name = "FILE")]
    barmanfs: PathBuf,
    /// The pgBackRest to compare with
    #[arg(long, default_value = "pgbackrest", value_name = "FILE")]
    pgbackrest: PathBuf,
    /// The restic to compare with
    #[arg(long, default_value = "restic", value_name = "FILE")]
    restic: PathBuf,
}

/// All tools, in the order of the report.
pub(crate) fn all<'a>(site: &'a Site, programs: &Programs) -> Result<Vec<Box<dyn Peer + 'a>>> {
    Ok(vec![
        Box::new(Cp::new(site)),
        Box::new(BaseBackup::new(site)),
        Box::new(PgBackRest::new(site, &programs.pgbackrest)),
        Box::new(Restic::new(site, &programs.restic)),
        Box::new(Barmanfs::new(site, &programs.barmanfs)),
    ])
}
