//! `barmanfs umount`.

use std::fs;
use std::path::{Path, PathBuf};

use barmanfs_fs::{Holder, Unmounting};

use crate::cli::mount::UmountArgs;
use crate::error::{Error, Outcome};
use crate::instance;
use crate::mounts::user_name;

/// The directory with a server's clones.
const LIVE: &str = "live";

/// Runs the command. This needs no configuration.
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
    let how = match (args.force, args.lazy) {
        (true, _) => Unmounting::ByForce,
        (_, true) => Unmounting::Lazily,
        _ => Unmounting::Unused,
    };
    match barmanfs_fs::unmount(&args.mount_point, how) {
        Err(barmanfs_fs::Error::InUse {
            path,
            holders,
            inside,
        }) => Err(in_use(&path, &holders, &inside)),
        unmounted => {
            // They do nothing useful any more, and PostgreSQL starts no other server where one of its processes lives.
            for holder in unmounted? {
                tracing::warn!(
                    "Still there, without its files:{}. End it: kill -QUIT {}",
                    described(&holder),
                    holder.process
                );
            }
            Ok(Outcome::Done)
        }
    }
}

/// Prints the users of the mount, and what can be done about them.
fn in_use(path: &Path, holders: &[Holder], inside: &[PathBuf]) -> Error {
    let mut lines: Vec<String> = holders
        .iter()
        .map(|holder| format!(" {}", described(holder)))
        .collect();
    lines.extend(
        inside
            .iter()
            .map(|inside| format!("  {} is mounted in it", inside.display())),
    );
    let is_root = rustix::process::geteuid().is_root();
    if lines.is_empty() && !is_root {
        lines.push("  by a process of another user: as root this command names it".to_owned());
    }
    let who = match lines.is_empty() {
        true => " by a process that cannot be seen from here".to_owned(),
        false => format!(":\n{}", lines.join("\n")),
    };
    Error::failed(format!("{} stays mounted, it is in use{who}", path.display())).hint(
        "End what uses it. Or --lazy takes it out of sight and lets all finish with what they have open; \
         --force cuts them off",
    )
}

/// ` process 4711 (cp) of user postgres has open /mnt/backups/main/latest/base/1/1259`
fn described(holder: &Holder) -> String {
    format!(
        " process {} ({}) of {} {} {}",
        holder.process,
        holder.command.escape_debug(),
        user_name(holder.user),
        holder.doing,
        holder.path.display()
    )
}

/// A server that runs on a clone of this mount. Directories that this user cannot read have no server of the
/// user; a server that has lost an earlier mount does not count.
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
