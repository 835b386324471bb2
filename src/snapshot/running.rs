//! Which servers of this host run, as far as their files and processes show.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::places::is_same;
use crate::import::directory::read_small;
use crate::instance::{self, PID_FILE};

/// The most that `postmaster.pid` may have.
const SMALL_BYTES: u64 = 64 << 10;

/// What `postmaster.pid` says.
#[derive(Debug)]
pub(super) struct PidFile {
    pub(super) pid: u32,
    /// The data directory as the server knows it.
    pub(super) data: Option<PathBuf>,
}

/// Reads it; `None` where it is not, or holds no process. A snapshot of a running server has that of the server.
pub(super) fn pid_file(data: &Path) -> Option<PidFile> {
    let bytes = read_small(&data.join(PID_FILE), SMALL_BYTES).ok()??;
    let pid = u32::try_from(instance::holder_of(&bytes)?).ok()?;
    let said = bytes.split(|byte| *byte == b'\n').nth(1);
    let said = said.map(|line| PathBuf::from(OsStr::from_bytes(line)));
    Some(PidFile {
        pid,
        data: said.filter(|said| said.is_absolute()),
    })
}

/// Whether a server runs in a data directory: its process works there. Of another user's process that cannot be seen.
fn runs_in(data: &Path) -> bool {
    let (Some(said), Ok(found)) = (pid_file(data), fs::metadata(data)) else {
        return false;
    };
    let place = PathBuf::from(format!("/proc/{}/cwd", said.pid));
    match fs::metadata(&place) {
        Ok(_) => is_same(&place, &found),
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    }
}

/// The data directory of a running server whose tablespace `oid` is `place`. `live` is one that may be known already.
pub(super) fn uses(oid: u32, place: &Path, live: Option<&Path>) -> Option<PathBuf> {
    let found = fs::metadata(place).ok()?;
    let has = |data: &Path| is_same(&data.join("pg_tblspc").join(oid.to_string()), &found);
    if let Some(live) = live.filter(|live| has(live) && runs_in(live)) {
        return Some(live.to_owned());
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.map(|pid| (pid, PathBuf::from(format!("/proc/{pid}/cwd"))))
        .filter(|(pid, data)| has(data) && pid_file(data).is_some_and(|said| said.pid == *pid))
        .find_map(|(_, data)| fs::read_link(data).ok())
}
