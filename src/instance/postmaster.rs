//! The process behind a `postmaster.pid`: whether it is the server of this data directory.
//!
//! A process number in a file that a crash left may be in use again by now. The process is the server if it runs as the
//! data's owner and works in the data directory. Where that cannot be seen, its start time must match the file.
//!
//! A server outlives its mount when the mount's process is killed, or the mount is removed by force. Such a server has lost
//! its files and does not notice. As long as it runs, PostgreSQL starts no other server there.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The file in which a server describes itself, in its data directory.
pub(crate) const PID_FILE: &str = "postmaster.pid";

/// The tolerance between the start of a process and the start that it notes, also for a clock that was set meanwhile.
const START_TOLERANCE_S: u64 = 30;

/// A server that runs, by its `postmaster.pid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) pid: i32,
    pub(crate) port: u16,
    pub(crate) socket_directory: PathBuf,
    /// The mount it works on is gone: it can neither read nor write.
    pub(crate) has_outlived_its_mount: bool,
    /// When it has begun, in seconds since 1970.
    started_s: u64,
}

/// A process that has not ended. A zombie has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    uid: u32,
    /// Its start, in clock ticks since the host booted: no other process with its number has started at that time.
    started_ticks: u64,
}

/// The working directory of a process, compared with a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorksIn {
    /// It is the data directory.
    Data,
    Elsewhere,
    /// On a file system that does not answer any more.
    GoneMount,
    Unknown,
}

/// The server that runs in a data directory; `None` also where the directory cannot be read.
pub(crate) fn running(data: &Path) -> Option<Running> {
    running_in(data).ok().flatten()
}

/// The server that runs in a data directory.
///
/// # Errors
/// When the directory cannot be read: then it is unknown.
pub(crate) fn running_in(data: &Path) -> io::Result<Option<Running>> {
    let text = match fs::read(data.join(PID_FILE)) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        text => text?,
    };
    let owner = fs::metadata(data)?.uid();
    Ok(owned_by(&String::from_utf8_lossy(&text), data, owner))
}

fn owned_by(text: &str, data: &Path, owner: u32) -> Option<Running> {
    let found = parse_pid_file(text)?;
    let process = Process::of(found.pid).filter(|process| process.uid == owner)?;
    let works_in = works_in(found.pid, data);
    let is_it = match works_in {
        WorksIn::Data => true,
        WorksIn::Elsewhere => false,
        WorksIn::GoneMount | WorksIn::Unknown => process.began_at(found.started_s),
    };
    is_it.then_some(Running {
        // A relative path is relative to the server's working directory.
        socket_directory: in_directory(data, &found.socket_directory),
        has_outlived_its_mount: works_in == WorksIn::GoneMount,
        ..found
    })
}

fn in_directory(data: &Path, sockets: &Path) -> PathBuf {
    match sockets.as_os_str().as_encoded_bytes() {
        b"." => data.to_owned(),
        // The line is empty when there is none.
        [] => PathBuf::new(),
        _ => data.join(sockets),
    }
}

/// The server that a `postmaster.pid` names, where no mount shows the data directory: it has lost its files.
pub(crate) fn running_by(text: &str) -> Option<Running> {
    let found = parse_pid_file(text)?;
    let process = Process::of(found.pid)?;
    process.began_at(found.started_s).then_some(Running {
        has_outlived_its_mount: true,
        ..found
    })
}

/// Whether there may be a process of PostgreSQL that has lost its files with their mount. One of another user, whose
/// directory cannot be seen, may be.
pub(crate) fn may_any_have_lost_its_files() -> bool {
    let Ok(pids) = processes() else {
        return true;
    };
    pids.into_iter().any(|pid| is_postgres(pid) && !has_files(pid))
}

/// Whether the working directory of a process still answers.
fn has_files(pid: i32) -> bool {
    let directory = PathBuf::from(format!("/proc/{pid}/cwd"));
    match rustix::fs::statfs(&directory) {
        // The kernel answers for a mount that keeps this user out. A look into it shows that.
        Ok(_) => fs::metadata(&directory).is_ok(),
        Err(error) => io::Error::from(error).kind() == io::ErrorKind::NotFound,
    }
}

/// Removes the lock files of a server that has ended while its parent has not waited for it. PostgreSQL takes such a
/// process for alive and does not start; under a parent that never waits, as in a container without an init, it never
/// would. A session that has survived its server keeps them: it may still write.
pub(super) fn remove_locks_of_zombie(data: &Path, socket_directory: &Path) -> Result<(), Error> {
    let file = data.join(PID_FILE);
    let text = fs::read_to_string(&file).unwrap_or_default();
    let holder = holder_of(text.as_bytes());
    let remove = || {
        if holder.is_some_and(is_zombie) && !anybody_works_in(data)? {
            fs::remove_file(&file)?;
        }
        match socket_directory.is_dir() {
            true => super::sockets::remove_locks_of_zombies(socket_directory),
            false => Ok(()),
        }
    };
    remove().map_err(|error: io::Error| {
        Error::failed(format!(
            "Cannot remove the lock files of the server that has ended in {}: {error}",
            data.display()
        ))
    })
}

/// A process of PostgreSQL that works in a data directory, whatever its `postmaster.pid` says: in a container the process
/// has another number there, and sessions may outlive their postmaster.
pub(crate) fn process_in(data: &Path) -> Option<i32> {
    let pids = processes().ok()?;
    pids.into_iter()
        .find(|&pid| is_postgres(pid) && works_in(pid, data) == WorksIn::Data)
}

/// A process of PostgreSQL whose server has a directory of its data directory at this place.
pub(crate) fn process_with(directory: &Path, location: &Path) -> Option<i32> {
    let pids = processes().ok()?;
    let is_there = |&pid: &i32| {
        let link = PathBuf::from(format!("/proc/{pid}/cwd")).join(directory);
        is_postgres(pid) && place(&link).is_ok_and(|there| place(location).is_ok_and(|here| here == there))
    };
    pids.into_iter().find(is_there)
}

fn processes() -> io::Result<Vec<i32>> {
    let pid =
        |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
    let pids: io::Result<Vec<Option<i32>>> = fs::read_dir("/proc")?.map(pid).collect();
    Ok(pids?.into_iter().flatten().collect())
}

/// Whether a living process calls itself PostgreSQL: `/usr/bin/postgres -D ...`, or `postgres: checkpointer`. Where the
/// dynamic loader was called to run it (ld.so(8)), the name is an option of that.
fn is_postgres(pid: i32) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = command.split(|byte| *byte == 0);
    let program = words.next().unwrap_or_default();
    let program = match words.next() {
        Some(b"--argv0") => words.next().unwrap_or_default(),
        _ => program,
    };
    let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let is_named = matches!(name, b"postgres" | b"postmaster") || program.starts_with(b"postgres:");
    is_named && is_alive(pid)
}

/// What a path leads to, as the number of its file system and its own.
fn place(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Whether a process has its working directory in a data directory, as all processes of a server do.
fn anybody_works_in(data: &Path) -> io::Result<bool> {
    let works_here = |pid: i32| is_alive(pid) && works_in(pid, data) == WorksIn::Data;
    Ok(processes()?.into_iter().any(works_here))
}

/// The process that a lock file names in its first line, be it of a data directory or of a socket.
/// The path that follows may not be UTF-8, or cut.
pub(crate) fn holder_of(lock: &[u8]) -> Option<i32> {
    let first = lock.split(|&byte| byte == b'\n').next()?;
    str::from_utf8(first).ok()?.trim().parse().ok()
}

/// Whether there is such a process.
pub(super) fn is_alive(pid: i32) -> bool {
    Process::of(pid).is_some()
}

/// The living processes that a process has started.
pub(super) fn children_of(parent: i32) -> Vec<i32> {
    let pids = processes().unwrap_or_default();
    let is_child = |pid: &i32| {
        stat_fields(*pid).is_some_and(|fields| !has_ended(&fields) && parent_in(&fields) == Some(parent))
    };
    pids.into_iter().filter(is_child).collect()
}

/// Whether a process has ended, and its parent has not waited for it.
pub(super) fn is_zombie(pid: i32) -> bool {
    stat_fields(pid).is_some_and(|fields| has_ended(&fields))
}

/// The process that has started this one.
pub(crate) fn parent_of(pid: i32) -> Option<i32> {
    parent_in(&stat_fields(pid)?)
}

/// The parent is field 4.
fn parent_in(fields: &[String]) -> Option<i32> {
    fields.get(1)?.parse().ok()
}

fn stat_fields(pid: i32) -> Option<Vec<String>> {
    fields_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The fields of `/proc/PID/stat` from the state on, 3 in proc_pid_stat(5).
fn fields_in(stat: &str) -> Option<Vec<String>> {
    // The name, in brackets, may hold anything.
    let fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some(fields.map(str::to_owned).collect())
}

fn has_ended(fields: &[String]) -> bool {
    matches!(fields.first().map(String::as_str), Some("Z" | "X"))
}

impl Process {
    /// Read from files that everybody may read, whichever user owns the process.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let uid = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
        let fields = stat_fields(pid)?;
        // The start is field 22.
        let started_ticks = fields.get(19)?.parse().ok()?;
        (!has_ended(&fields)).then_some(Self { uid, started_ticks })
    }

    fn began_at(&self, seconds: u64) -> bool {
        let began =
            host_started_s().map(|host| host + self.started_ticks / rustix::param::clock_ticks_per_second());
        began.is_some_and(|began| began.abs_diff(seconds) <= START_TOLERANCE_S)
    }
}

/// When the host was started, in seconds since 1970, by the clock as it is set now.
fn host_started_s() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

fn works_in(pid: i32, data: &Path) -> WorksIn {
    let directory = PathBuf::from(format!("/proc/{pid}/cwd"));
    // A cache may know the directory of a dead mount for a while; this asks who serves it.
    match rustix::fs::statfs(&directory) {
        Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED) => return WorksIn::GoneMount,
        Err(error) if io::Error::from(error).kind() == io::ErrorKind::NotFound => return WorksIn::Elsewhere,
        Err(_) => return WorksIn::Unknown,
        Ok(_) => {}
    }
    match (place(&directory), place(data)) {
        (Ok(works_in), Ok(data)) if works_in == data => WorksIn::Data,
        (Ok(_), Ok(_)) => WorksIn::Elsewhere,
        _ => WorksIn::Unknown,
    }
}

/// Line 1 is the process, 3 its start, 4 the port, 5 the first socket directory (`src/include/utils/pidfile.h`).
fn parse_pid_file(text: &str) -> Option<Running> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    Some(Running {
        pid: lines.first()?.parse().ok().filter(|pid| *pid > 0)?,
        started_s: lines.get(2)?.parse().ok()?,
        port: lines.get(3)?.parse().ok()?,
        socket_directory: PathBuf::from(lines.get(4)?),
        has_outlived_its_mount: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::{Duration, Instant};

    const POLL: Duration = Duration::from_millis(20);

    #[test]
    fn the_parent_is_behind_the_name_of_the_process() {
        let parent = |stat| fields_in(stat).and_then(|fields| parent_in(&fields));
        assert_eq!(parent("42 (postgres) S 7 42 42 0 -1"), Some(7));
        assert_eq!(parent("42 (a) b (c) R 8 42"), Some(8));
        assert_eq!(parent("42"), None);
        assert_eq!(parent(""), None);
    }

    /// As this very process would write it, had it begun so much earlier or later.
    fn pid_file(pid: u32, later_s: i64) -> String {
        let own = Process::of(std::process::id().cast_signed()).unwrap();
        let began = host_started_s().unwrap() + own.started_ticks / rustix::param::clock_ticks_per_second();
        format!(
            "{pid}\n/data\n{}\n5432\n/tmp\n",
            began.saturating_add_signed(later_s)
        )
    }

    #[test]
    fn only_lock_files_of_a_server_that_has_ended_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path();
        let locks = [data.join(PID_FILE), data.join(".s.PGSQL.25432.lock")];
        let lock_by = |pid: u32| {
            for lock in &locks {
                fs::write(lock, format!("{pid}\n{}\n", data.display())).unwrap();
            }
        };
        let left = || {
            remove_locks_of_zombie(data, data).unwrap();
            locks.each_ref().map(|lock| lock.exists())
        };
        lock_by(std::process::id());
        assert_eq!(left(), [true, true]);
        let mut session = Command::new("sleep").arg("60").current_dir(data).spawn().unwrap();
        let mut server = Command::new("true").spawn().unwrap();
        while is_alive(server.id().cast_signed()) {
            std::thread::sleep(POLL);
        }
        lock_by(server.id());
        // The socket is not the data: nobody can write through it any more.
        assert_eq!(left(), [true, false]);
        session.kill().unwrap();
        session.wait().unwrap();
        assert_eq!(left(), [false, false]);
        server.wait().unwrap();
    }

    #[test]
    fn a_pid_file_has_process_port_and_socket() {
        let text = "4711\n/mnt/backups/main/live/a\n1763700000\n25432\n/tmp\nlocalhost\n  1 2\nready   \n";
        let running = parse_pid_file(text).unwrap();
        assert_eq!((running.pid, running.port), (4711, 25432));
        assert_eq!(running.socket_directory, Path::new("/tmp"));
        // Being written, or of a stand-alone backend.
        assert_eq!(parse_pid_file("4711\n/data\n"), None);
        assert_eq!(parse_pid_file("-4711\n/data\n1\n5432\n/tmp\n"), None);
    }

    #[test]
    fn a_relative_socket_directory_starts_at_the_data_directory() {
        let data = Path::new("/mnt/main/live/a");
        for (said, is) in [
            (".", "/mnt/main/live/a"),
            ("/tmp/s", "/tmp/s"),
            ("s", "/mnt/main/live/a/s"),
            ("", ""),
        ] {
            assert_eq!(in_directory(data, Path::new(said)), Path::new(is));
        }
    }

    #[test]
    fn a_process_that_works_elsewhere_is_not_the_server() {
        let data = tempfile::tempdir().unwrap();
        let own = std::process::id();
        fs::write(data.path().join(PID_FILE), pid_file(own, 0)).unwrap();
        assert_eq!(running(data.path()), None);
        let here = std::env::current_dir().unwrap();
        assert_eq!(works_in(own.cast_signed(), &here), WorksIn::Data);
    }

    #[test]
    fn a_process_that_began_at_another_time_is_not_the_server() {
        let own = std::process::id();
        assert!(running_by(&pid_file(own, 0)).is_some());
        assert_eq!(running_by(&pid_file(own, 3600)), None);
        assert_eq!(running_by(&pid_file(own, -3600)), None);
    }

    #[test]
    fn a_zombie_has_ended() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id().cast_signed();
        let until = Instant::now() + Duration::from_secs(10);
        while is_alive(pid) {
            assert!(Instant::now() < until, "the process counts as alive");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait().unwrap();
    }
}
