//! Runs PostgreSQL on a data directory: that of a clone or of a throw-away clone.
//!
//! PostgreSQL's own `pg_ctl` does the work, as the owner of the data directory. No connection is made: the server's
//! files show whether it runs, and how far its recovery is. So no password is needed.

mod auto_conf;
mod control_file;
mod foreign;
mod postmaster;
mod programs;
mod recovery_end;
mod setting;
pub(crate) mod sockets;
mod stopping;

use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use barmanfs_fs::confinement::{DEFAULT_SIZES, OWN_FILES, kept_to_itself};
use barmanfs_pg::pg_control::{ClusterState, ControlFile};
use nix::unistd::{Uid, User};

pub(crate) use auto_conf::{AUTO_CONF, AUTO_CONF_MAX_BYTES, last_value};
pub(crate) use postmaster::{
    PID_FILE, Running, holder_of, may_any_have_lost_its_files, parent_of, process_in, process_with, running,
    running_by, running_in,
};
pub(crate) use programs::Programs;
pub(crate) use recovery_end::{Replayed, has_shut_down_at_target};
pub(crate) use setting::Setting;
pub(crate) use stopping::{Stop, stop, stop_server};

use crate::error::Error;

/// The first port of clones: far from PostgreSQL's own, and below the ephemeral ports of Linux's default range.
const FIRST_PORT: u16 = 25_432;

/// Number of ports to try.
const PORTS: u16 = 1000;

/// Message of a server whose port is in use. In other languages, only a check of the port can show that.
const PORT_IS_TAKEN: &str = "Address already in use";

/// How often to choose another port when another process took the first one in that moment.
const PORT_TRIES: u32 = 10;

/// Runs a program as another user with all groups of that user.
const SETPRIV: &str = "setpriv";

/// The file with a second copy of a server's process id. A view hides it, and a backup leaves it out.
pub(crate) const EXTERNAL_PID_FILE: &str = "postmaster.external.pid";

/// The log of a server that was started on a clone, in the clone's own directory: it goes with the clone.
pub(crate) const LOG: &str = "barmanfs-server.log";

/// The file with the server's state.
const CONTROL: &str = "global/pg_control";

/// Maximum bytes of a server's log to show when it does not start.
const LOG_TAIL_BYTES: u64 = 2000;

/// These settings send a server's log to the person who starts it, and not to the original's place.
const LOGGED_HERE: [(&str, &str); 2] = [("logging_collector", "off"), ("log_destination", "stderr")];

/// The state of the server of a data directory.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn control(data: &Path) -> Result<ControlFile, Error> {
    Ok(control_file::read(&data.join(CONTROL))?.1)
}

/// How to start a server.
#[derive(Debug, Clone)]
pub(crate) struct StartOptions {
    /// Its port; with `None`, a free one is chosen.
    pub(crate) port: Option<u16>,
    /// The directory of its socket.
    pub(crate) socket_directory: PathBuf,
    /// Whether the directory's group may connect as well as the user it runs as.
    pub(crate) share: bool,
    /// Addresses in addition to the socket, in the format of `listen_addresses`; none if empty.
    pub(crate) listen: String,
    /// Settings that override its configuration.
    pub(crate) settings: Vec<Setting>,
    /// The file for its log.
    pub(crate) log: PathBuf,
    /// How long to wait until it answers.
    pub(crate) timeout: Duration,
}

/// A data directory, and the programs for it.
#[derive(Debug)]
pub(crate) struct Instance {
    programs: Programs,
    major: u32,
    data: PathBuf,
    uid: u32,
    gid: u32,
}

impl Instance {
    /// The server in `data`. The caller must be the directory's owner, or root.
    pub(crate) fn at(data: &Path, bindir: Option<&Path>, path_prefix: Option<&Path>) -> Result<Self, Error> {
        let owner = fs::metadata(data).map_err(|error| unreadable(data, &error))?;
        let me = Uid::effective();
        if owner.uid() == 0 {
            return Err(Error::failed(format!(
                "{} belongs to root, as whom PostgreSQL refuses to run",
                data.display()
            ))
            .hint("Mount with --uid postgres --gid postgres"));
        }
        if !me.is_root() && me.as_raw() != owner.uid() {
            return Err(Error::failed(format!(
                "{} belongs to another user (uid {}), and PostgreSQL runs as the owner of its data",
                data.display(),
                owner.uid()
            ))
            .hint("Run this as that user, or as root"));
        }
        let version = data.join("PG_VERSION");
        let text = fs::read_to_string(&version).map_err(|error| unreadable(&version, &error))?;
        let major = text
            .trim()
            .parse()
            .map_err(|_| Error::failed(format!("{} holds no version of PostgreSQL", version.display())))?;
        Ok(Self {
            programs: Programs::find(major, bindir, path_prefix)?,
            major,
            data: data.to_owned(),
            uid: owner.uid(),
            gid: owner.gid(),
        })
    }

    /// Its major version.
    pub(crate) fn major(&self) -> u32 {
        self.major
    }

    /// The user it runs as.
    pub(crate) fn owner(&self) -> u32 {
        self.uid
    }

    /// The data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Starts it and waits until it answers. `None` if its recovery was quicker, and it has already shut down at its
    /// target.
    pub(crate) fn start(&self, options: &StartOptions) -> Result<Option<Running>, Error> {
        if let Some(running) = running(&self.data) {
            if running.has_outlived_its_mount {
                return Err(Error::failed(format!(
                    "The server that ran in {} before its mount went away is still there (process {})",
                    self.data.display(),
                    running.pid
                ))
                .hint("It has lost its files, and 'barmanfs clone stop' ends it"));
            }
            return Err(Error::failed(format!(
                "A server is running in {} already, on port {} (process {})",
                self.data.display(),
                running.port,
                running.pid
            )));
        }
        postmaster::remove_locks_of_zombie(&self.data, &options.socket_directory)?;
        if let Some(port) = options.port {
            return self.start_on(port, options);
        }
        // Another process may take the port after it was checked and before the server does.
        let mut tries = 1;
        loop {
            let port = free_port(&options.socket_directory)?;
            let log_before = size_bytes(&options.log);
            let started = self.start_on(port, options);
            let taken = || {
                let said = tail(&options.log, log_before).unwrap_or_default();
                let is_told = said.contains(PORT_IS_TAKEN) || said.contains(&socket_lock(port));
                is_told || !is_free(port, &options.socket_directory)
            };
            if started.is_ok() || tries == PORT_TRIES || !taken() {
                return started;
            }
            tries += 1;
        }
    }

    fn start_on(&self, port: u16, options: &StartOptions) -> Result<Option<Running>, Error> {
        let log_before = size_bytes(&options.log);
        let control_before = control_file::bytes(&self.data.join(CONTROL))?;
        // The server outlives this program, so it must not hold inherited locks or pipes.
        crate::background::keep_inherited();
        let ended = self
            .command("pg_ctl")
            .args(["start", "-s", "-w", "-t"])
            .arg(options.timeout.as_secs().to_string())
            .arg("-D")
            .arg(&self.data)
            .arg("-l")
            .arg(&options.log)
            .arg("-o")
            .arg(server_options(self.major, &self.data, port, options))
            .stdout(Stdio::null())
            .output()
            .map_err(|error| Error::failed(format!("Cannot run pg_ctl: {error}")))?;
        match running(&self.data) {
            Some(running) if ended.status.success() => Ok(Some(running)),
            Some(_) => Err(Error::failed(format!(
                "PostgreSQL in {} does not answer after {} s; it goes on starting",
                self.data.display(),
                options.timeout.as_secs()
            ))
            .hint(format!("Its log is {}", options.log.display()))),
            None if self.has_shut_down_at_target(&control_before)? => Ok(None),
            None => Err(self.why_not(&options.log, log_before, &ended.stderr)),
        }
    }

    /// Whether the server has recovered and shut down at its target (`recovery_target_action = shutdown`). `pg_ctl`
    /// reports that as a failure.
    fn has_shut_down_at_target(&self, before: &[u8]) -> Result<bool, Error> {
        let (now, control) = control_file::read(&self.data.join(CONTROL))?;
        Ok(now != before && control.state == ClusterState::ShutDownInRecovery)
    }

    /// A command for one of PostgreSQL's programs, run as the data's owner, with `/` as its working directory.
    pub(crate) fn command(&self, name: &str) -> Command {
        let program = self.programs.path(name);
        let mut command = match self.switcher() {
            // With the user's other groups: a server may need one to read its key.
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command
                    .arg(format!("--reuid={}", self.uid))
                    .arg(format!("--regid={}", self.gid))
                    .arg("--init-groups")
                    .arg("--")
                    .arg(program);
                command
            }
            None => self.as_owner(&program),
        };
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    fn as_owner(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if Uid::effective().is_root() {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// A command for the server itself, as a child of this process and not in the background. There must be no program
    /// in between: the kernel would then not end the server when this process dies.
    pub(crate) fn server(&self, port: u16, options: &StartOptions) -> Command {
        let mut command = self.as_owner(&self.programs.path("postgres"));
        command.current_dir("/").stdin(Stdio::null());
        command.arg("-D").arg(&self.data);
        for Setting { name, value } in server_settings(self.major, &self.data, port, options) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command
    }

    /// The `setpriv` of util-linux, if this is root and the host knows the user.
    fn switcher(&self) -> Option<PathBuf> {
        User::from_uid(Uid::from_raw(self.uid)).ok().flatten()?;
        let path = std::env::var_os("PATH").filter(|_| Uid::effective().is_root())?;
        std::env::split_paths(&path)
            .map(|directory| directory.join(SETPRIV))
            .find(|setpriv| setpriv.is_file())
    }

    fn control(&self) -> Result<ControlFile, Error> {
        control(&self.data)
    }

    fn why_not(&self, log: &Path, from: u64, said: &[u8]) -> Error {
        let failed = Error::failed(format!("PostgreSQL does not start in {}", self.data.display()));
        let why = match tail(log, from) {
            Some(tail) => format!("Its log {} ends with:\n{tail}", log.display()),
            // Not even a log exists.
            None => String::from_utf8_lossy(said).trim().to_owned(),
        };
        let foreign = match why.contains("ermission denied") {
            true => foreign::first_file(&self.data, self.uid),
            false => None,
        };
        failed.hint(match foreign {
            Some(file) => format!(
                "{why}\n{} does not belong to user {}, as whom PostgreSQL runs: chown it",
                file.display(),
                self.uid
            ),
            None => why,
        })
    }
}

fn free_port(socket_directory: &Path) -> Result<u16, Error> {
    let mut ports = FIRST_PORT..FIRST_PORT + PORTS;
    let free = ports.find(|port| is_free(*port, socket_directory));
    free.ok_or_else(|| {
        Error::failed(format!(
            "None of the ports {FIRST_PORT} to {} is free",
            FIRST_PORT + PORTS - 1
        ))
        .hint("Name one with --port")
    })
}

fn size_bytes(log: &Path) -> u64 {
    fs::metadata(log).map_or(0, |log| log.len())
}

/// Whether a server can use this port. A killed server leaves its socket and the socket's lock file behind, and the
/// next server replaces them. So this checks whether a process listens, and whether the lock's process exists: a server
/// that starts or stops does not listen.
fn is_free(port: u16, socket_directory: &Path) -> bool {
    let socket = socket_directory.join(format!(".s.PGSQL.{port}"));
    let nobody_listens = UnixStream::connect(socket)
        .is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused));
    let lock = fs::read_to_string(socket_directory.join(socket_lock(port))).unwrap_or_default();
    let is_held = holder_of(lock.as_bytes()).is_some_and(postmaster::is_alive);
    nobody_listens && !is_held && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The lock file of a socket (`src/backend/utils/init/miscinit.c`). Its first line is the process id.
fn socket_lock(port: u16) -> String {
    format!(".s.PGSQL.{port}.lock")
}

/// The state of the server in a data directory, from the last line of its `postmaster.pid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// Its recovery has not begun.
    Starting,
    /// It recovers from the archive, and takes no connections.
    Recovering,
    /// It takes connections.
    Ready,
}

/// The state of the server in a data directory.
pub(crate) fn status(data: &Path) -> Status {
    let text = fs::read_to_string(data.join(PID_FILE)).unwrap_or_default();
    parse_status(&text)
}

/// Line 8 (`src/include/utils/pidfile.h`). A hot standby writes "ready" as well.
fn parse_status(text: &str) -> Status {
    match text.lines().nth(7).map(str::trim) {
        Some("ready") => Status::Ready,
        Some("standby") => Status::Recovering,
        _ => Status::Starting,
    }
}

/// The words for `pg_ctl -o`. It passes them to a shell, so every word is quoted.
fn server_options(major: u32, data: &Path, port: u16, options: &StartOptions) -> String {
    let quoted = |value: &str| value.replace('\'', "'\\''");
    let word = |Setting { name, value }: &Setting| format!("-c '{name}={}'", quoted(value));
    let settings = server_settings(major, data, port, options);
    settings.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// The settings for starting a server. The last value of a setting wins. The confining settings are those of the
/// generated configuration files; they are repeated because the files may have been changed since.
fn server_settings(major: u32, data: &Path, port: u16, options: &StartOptions) -> Vec<Setting> {
    let own = |name: &str| match name {
        "" => data.to_string_lossy().into_owned(),
        name => data.join(name).to_string_lossy().into_owned(),
    };
    let socket_directory = match options.socket_directory == data {
        // With a relative path, a long path or one with a comma does not matter.
        true => ".".into(),
        false => options.socket_directory.to_string_lossy(),
    };
    let socket_permissions = if options.share { "0770" } else { "0700" };
    let files = OWN_FILES.iter().filter(|(.., since)| *since <= major);
    let mut settings: Vec<Setting> = files
        .map(|(name, file, _)| Setting::new(name, own(file)))
        .collect();
    settings.extend(kept_to_itself(major).map(|(name, value)| Setting::new(name, value)));
    settings.extend([
        Setting::new("port", port.to_string()),
        Setting::new("unix_socket_directories", socket_directory),
        // A socket inherits the group of its directory, for which it is shared.
        Setting::new("unix_socket_permissions", socket_permissions),
        Setting::new("listen_addresses", options.listen.as_str()),
    ]);
    settings.extend(LOGGED_HERE.map(|(name, value)| Setting::new(name, value)));
    // In recovery, a readable standby needs these settings at least as large as on the original.
    let is_size = |setting: &Setting| {
        DEFAULT_SIZES
            .iter()
            .any(|(size, _)| setting.name.as_str() == *size)
    };
    if options.settings.iter().any(is_size) {
        settings.push(Setting::new("hot_standby", "off"));
    }
    settings.extend_from_slice(&options.settings);
    settings
}

/// The end of a server's log, from this position on.
pub(crate) fn tail(log: &Path, from: u64) -> Option<String> {
    let mut file = fs::File::open(log).ok()?;
    let end = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(from.max(end.saturating_sub(LOG_TAIL_BYTES))))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::failed(format!("Cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_pid_file_shows_the_servers_progress() {
        let text = "4711\n/mnt/backups/main/live/a\n1763700000\n25432\n/tmp\nlocalhost\n  1 2\nready   \n";
        assert_eq!(parse_status(text), Status::Ready);
        assert_eq!(
            parse_status(&text.replace("ready  ", "standby")),
            Status::Recovering
        );
        assert_eq!(parse_status("4711\n/data\n"), Status::Starting);
    }

    #[test]
    fn a_socket_without_a_listener_leaves_the_port_free() {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        assert!(is_free(port, directory.path()));
        let socket = directory.path().join(format!(".s.PGSQL.{port}"));
        let server = UnixListener::bind(&socket).unwrap();
        assert!(!is_free(port, directory.path()));
        drop(server);
        assert!(socket.exists() && is_free(port, directory.path()));
        // A server that does not listen yet, or no longer, has a lock file; so does a killed server.
        let lock = directory.path().join(socket_lock(port));
        fs::write(&lock, format!("{}\n/data\n", std::process::id())).unwrap();
        assert!(!is_free(port, directory.path()));
        fs::write(&lock, format!("{}\n/data\n", i32::MAX)).unwrap();
        assert!(is_free(port, directory.path()));
    }

    #[test]
    fn settings_reach_the_server_through_a_shell() {
        let options = StartOptions {
            port: None,
            socket_directory: "/tmp/a b".into(),
            share: false,
            listen: String::new(),
            settings: vec![Setting::new("search_path", "it's")],
            log: PathBuf::new(),
            timeout: Duration::ZERO,
        };
        let words = server_options(18, Path::new("/it's"), 1, &options);
        assert!(words.starts_with("-c 'data_directory=/it'\\''s' "), "{words}");
        for word in [
            "-c 'port=1' -c 'unix_socket_directories=/tmp/a b' -c 'unix_socket_permissions=0700' ",
            " -c 'listen_addresses=' ",
            " -c 'search_path=it'\\''s'",
        ] {
            assert!(words.contains(word), "{words}");
        }
    }
}
