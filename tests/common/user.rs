//! The user who runs the servers and the program: the tests' own user, or the database user if that is root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The user that owns databases and repositories.
#[derive(Debug)]
pub(crate) struct DatabaseUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn database_user() -> &'static DatabaseUser {
    static USER: OnceLock<DatabaseUser> = OnceLock::new();
    USER.get_or_init(|| {
        if !is_root() {
            return DatabaseUser {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            };
        }
        ["postgres", "nobody"]
            .into_iter()
            .find_map(look_up)
            .expect("No user postgres or nobody in /etc/passwd")
    })
}

fn look_up(name: &str) -> Option<DatabaseUser> {
    let passwd = fs::read_to_string("/etc/passwd").expect("Cannot read /etc/passwd");
    let fields: Vec<&str> = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields[0] == name)?;
    Some(DatabaseUser {
        uid: fields[2].parse().ok()?,
        gid: fields[3].parse().ok()?,
    })
}

/// A command of the database user, with only PATH and TMPDIR from this process's environment.
///
/// `setpriv` changes the user, not this process: to do it itself, it would have to fork, which copies the page tables of
/// its whole memory. That was a quarter of the tests' time.
pub(crate) fn command(program: impl AsRef<Path>, home: &Path) -> Command {
    if !is_root() {
        return own_command(program, home);
    }
    let DatabaseUser { uid, gid } = database_user();
    let mut command = own_command("setpriv", home);
    command
        .arg(format!("--reuid={uid}"))
        .arg(format!("--regid={gid}"))
        .args(["--clear-groups", "--"])
        .arg(program.as_ref());
    command
}

/// The program's path: a command with another PATH than this process is only started without a fork if it needs no
/// search.
fn found(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&path).map(|directory| directory.join(program));
    candidates
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| program.to_owned())
}

/// A command of the user who runs the tests.
pub(crate) fn own_command(program: impl AsRef<Path>, home: &Path) -> Command {
    let mut command = Command::new(found(program.as_ref()));
    command
        .env_clear()
        .env("HOME", home)
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .current_dir(home);
    for name in ["PATH", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Makes the database user the owner.
pub(crate) fn give(path: &Path) {
    if is_root() {
        let user = database_user();
        std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid))
            .unwrap_or_else(|error| panic!("Cannot give away {}: {error}", path.display()));
    }
}
