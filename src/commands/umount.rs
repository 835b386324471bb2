//! `barmanfs umount`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::UmountArgs;
use crate::error::{Error, Outcome};
use crate::instance;

/// Where a server's clones are.
const LIVE: &str = "live";

/// Runs the command; needs no configuration.
pub(crate) fn run(args: &UmountArgs) -> Result<Outcome, Error> {
    if !args.force
        && let Some((clone, running)) = a_running_server(&args.mount_point)
    {
        return Err(Error::failed(format!(
            "A server runs on {} (process {}, port {})",
            clone.display(),
            running.pid,
            running.port
        ))
        .hint("Stop it first, or end it as a loss of power would with --force"));
    }
    barmanfs_fs::unmount(&args.mount_point)?;
    Ok(Outcome::Done)
}

/// What cannot be read, no server of this user's runs on; nor does one that has lost an earlier mount.
fn a_running_server(mount_point: &Path) -> Option<(PathBuf, instance::Running)> {
    let clones = entries(mount_point).flat_map(|server| entries(&server.join(LIVE)));
    clones
        .filter_map(|clone| instance::running(&clone).map(|running| (clone, running)))
        .find(|(_, running)| !running.has_outlived_its_mount)
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.flatten().map(|entry| entry.path())
}
