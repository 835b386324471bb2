//! PostgreSQL servers: found, created, started on a private socket, and always stopped.

use super::process::{Run, children_of, run, state_of, until};
use super::template::new_cluster;
use super::user::{command, give};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// One installed PostgreSQL.
#[derive(Debug)]
pub(crate) struct Install {
    pub(crate) major: u32,
    pub(crate) bindir: PathBuf,
}

impl Install {
    /// All installations in `BARMANFS_TEST_PG_BINDIRS` ("15=/a/bin:16=/b/bin", as scripts/test.sh sets it), or else
    /// those that Debian's packages and an earlier run of scripts/test.sh left here.
    pub(crate) fn all() -> &'static [Install] {
        static ALL: OnceLock<Vec<Install>> = OnceLock::new();
        ALL.get_or_init(|| match std::env::var("BARMANFS_TEST_PG_BINDIRS") {
            Ok(list) => list.split(':').map(Self::parse).collect(),
            Err(_) => Self::debian(),
        })
    }

    fn parse(entry: &str) -> Self {
        let (major, bindir) = entry
            .split_once('=')
            .expect("BARMANFS_TEST_PG_BINDIRS is MAJOR=BINDIR:MAJOR=BINDIR");
        let install = Self {
            major: major.parse().expect("a major version"),
            bindir: bindir.into(),
        };
        assert!(
            install.program("postgres").exists(),
            "There is no {bindir}/postgres"
        );
        install
    }

    fn debian() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/usr/lib/postgresql") else {
            return Vec::new();
        };
        let mut found: Vec<Self> = entries
            .flatten()
            .filter_map(|entry| {
                let major = entry
                    .file_name()
                    .to_str()?
                    .parse()
                    .ok()
                    .filter(|major| *major >= 13)?;
                let install = Self {
                    major,
                    bindir: entry.path().join("bin"),
                };
                install.program("postgres").exists().then_some(install)
            })
            .collect();
        found.sort_by_key(|install| install.major);
        found
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bindir.join(name)
    }

    /// Whether it is the newest one that was found.
    pub(crate) fn is_newest(&self) -> bool {
        Self::all().iter().all(|other| other.major <= self.major)
    }
}

/// A server on a data directory `DIR/NAME`, with its socket in `DIR/NAME.s` and its log in `DIR/NAME.log`.
#[derive(Debug)]
pub(crate) struct PgServer {
    pub(crate) install: &'static Install,
    pub(crate) data: PathBuf,
    /// The base of the names of its socket directory and log; not the data directory itself, if that is on a mount.
    name: PathBuf,
    running: bool,
    /// What else its processes have in their environment, as `env` takes it.
    pub(crate) environment: Vec<String>,
}

/// No test checks the effect of a lost machine on a server, so these do not wait for the disk.
const FOR_TESTS: &str = "fsync = off\nautovacuum = off\nmax_wal_size = 4GB\nlog_checkpoints = on\n";

impl PgServer {
    /// Makes a new database cluster with page checksums.
    pub(crate) fn init(install: &'static Install, data: &Path, initdb_options: &[&str]) -> Self {
        new_cluster(install, data, initdb_options);
        let server = Self::on(install, data);
        server.configure(FOR_TESTS);
        server
    }

    /// The server of an existing data directory, like a copy out of a mount.
    pub(crate) fn on(install: &'static Install, data: &Path) -> Self {
        Self::on_mount(install, data, data)
    }

    /// The server of a data directory that can have nothing beside it: its socket and log are named after `name`.
    pub(crate) fn on_mount(install: &'static Install, data: &Path, name: &Path) -> Self {
        let server = Self {
            install,
            data: data.to_owned(),
            name: name.to_owned(),
            running: false,
            environment: Vec::new(),
        };
        let sockets = server.sockets();
        if !sockets.exists() {
            fs::create_dir(&sockets)
                .unwrap_or_else(|error| panic!("Cannot make {}: {error}", sockets.display()));
            give(&sockets);
        }
        server
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.name.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    /// Short: the path of a socket has at most 107 bytes.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.beside(".s")
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.beside(".log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read(self.log_file()).map_or_else(
            |_| String::new(),
            |text| String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// The connection string for libpq and barmanfs.
    pub(crate) fn conninfo(&self) -> String {
        format!("host={} user=postgres dbname=postgres", self.sockets().display())
    }

    /// Adds lines to postgresql.conf; they apply at the next start.
    pub(crate) fn configure(&self, lines: &str) {
        append(&self.data.join("postgresql.conf"), lines);
    }

    /// Adds lines to postgresql.auto.conf, which overrides all other files.
    pub(crate) fn configure_auto(&self, lines: &str) {
        append(&self.data.join("postgresql.auto.conf"), lines);
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        command(self.install.program(program), parent(&self.name))
    }

    /// A client program connected to this server.
    pub(crate) fn client(&self, program: &str) -> Command {
        let mut client = self.command(program);
        client
            .env("PGHOST", self.sockets())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        client
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Run {
        run(command("env", parent(&self.name))
            .args(&self.environment)
            .arg(self.install.program("pg_ctl"))
            .args(["-s", "-w", "-t", "120", "-D"])
            .arg(&self.data)
            .args(arguments))
    }

    /// Starts it and waits until it accepts connections, or returns the reason why it does not.
    pub(crate) fn try_start(&mut self) -> Run {
        let options = format!("-k '{}' -c listen_addresses=''", self.sockets().display());
        let log = self.beside(".log");
        let run = self.pg_ctl(&["-l", &log.to_string_lossy(), "-o", &options, "start"]);
        self.running = self.data.join("postmaster.pid").exists();
        run
    }

    /// Ends a server whose data directory is gone: nothing there has the id of its process any more.
    pub(crate) fn end_without_data(&mut self, postmaster: i32) {
        let postmaster = Pid::from_raw(postmaster).expect("a process");
        // As the other processes do when they notice that it is gone.
        let _ = kill_process(postmaster, Signal::QUIT);
        until("the server is gone", || test_kill_process(postmaster).is_err());
        self.running = false;
    }

    /// The server has ended without a stop: its data directory is gone.
    pub(crate) fn is_gone(&mut self) {
        self.running = false;
    }

    /// Waits until the process in the data directory's postmaster.pid has ended.
    pub(crate) fn wait_for_predecessor(&self) {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let pid = text.lines().next().and_then(|pid| pid.parse().ok());
        if let Some(postmaster) = pid.and_then(Pid::from_raw) {
            until("the server before is gone", || {
                test_kill_process(postmaster).is_err()
            });
        }
    }

    /// Its process id.
    pub(crate) fn postmaster(&self) -> i32 {
        let text = run(command("cat", parent(&self.name)).arg(self.data.join("postmaster.pid")))
            .ok()
            .text();
        text.lines()
            .next()
            .and_then(|pid| pid.parse().ok())
            .expect("a process")
    }

    #[track_caller]
    pub(crate) fn start(&mut self) {
        let run = self.try_start();
        assert!(
            run.code() == Some(0),
            "PostgreSQL did not start: {run}\n{}",
            self.last_of_log()
        );
        self.await_connections();
    }

    /// Without hot standby, `pg_ctl` takes a server for started as soon as its recovery begins.
    fn await_connections(&self) {
        let limit = Instant::now() + Duration::from_secs(30);
        while Instant::now() < limit
            && self
                .try_query("SELECT 1")
                .all()
                .contains("Hot standby mode is disabled")
        {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `mode` is pg_ctl's: smart, fast or immediate.
    pub(crate) fn stop(&mut self, mode: &str) {
        self.pg_ctl(&["-m", mode, "stop"]).ok();
        self.running = false;
    }

    /// SIGKILL for all its processes: a crash, not a stop.
    pub(crate) fn kill(&mut self) {
        let pid_file = fs::read_to_string(self.data.join("postmaster.pid")).expect("it runs");
        let postmaster = pid_file.lines().next().expect("a process number");
        let children = children_of(postmaster);
        // The postmaster first, so that it starts no new ones.
        for process in std::iter::once(postmaster).chain(children.iter().map(String::as_str)) {
            let _ = Pid::from_raw(process.parse().expect("a process number"))
                .map(|process| kill_process(process, Signal::KILL));
        }
        until("the postmaster is gone", || {
            !Path::new(&format!("/proc/{postmaster}")).exists()
        });
        // The next start finds that the processes in a killed postmaster's files are gone.
        self.running = false;
    }

    pub(crate) fn try_query(&self, sql: &str) -> Run {
        run(self
            .client("psql")
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]))
    }

    /// The answer as psql prints it, unaligned, without headings.
    #[track_caller]
    pub(crate) fn query(&self, sql: &str) -> String {
        let run = self.try_query(sql);
        assert!(
            run.code() == Some(0),
            "Query failed: {run}\n{}",
            self.last_of_log()
        );
        run.text()
    }

    /// Ends the current segment and waits until the archiver has archived it. Returns its name.
    pub(crate) fn archive_current_segment(&self) -> String {
        let name = self.query(
            "CREATE TABLE IF NOT EXISTS segment_ends (); DROP TABLE segment_ends; \
                               SELECT pg_walfile_name(pg_switch_wal())",
        );
        until(
            &format!("segment {name} is archived\n{}", self.last_of_log()),
            || {
                self.query(&format!(
                    "SELECT coalesce(last_archived_wal >= '{name}', false) FROM pg_stat_archiver"
                )) == "t"
            },
        );
        name
    }

    /// Until the server has archived everything that is complete. A backup may end before that, and then brings its WAL: its
    /// views show the segments with other times as soon as they are in the archive.
    pub(crate) fn await_archiver(&self) {
        let status = self.data.join("pg_wal/archive_status");
        until("all complete segments are archived", || {
            let names = fs::read_dir(&status).expect("Cannot list a directory");
            names
                .map(|entry| entry.expect("Cannot list a directory").file_name())
                .all(|name| !name.to_string_lossy().ends_with(".ready"))
        });
    }

    /// Stops the archiver between two commands until the guard is dropped: what a test sees of the repository is then
    /// only its own work.
    pub(crate) fn hold_archiver(&self) -> HeldArchiver {
        let archiver = self.query("SELECT pid FROM pg_stat_activity WHERE backend_type = 'archiver'");
        let process = Pid::from_raw(archiver.parse().expect("a process number")).expect("a process number");
        kill_process(process, Signal::STOP).expect("Cannot stop the archiver");
        until("the archiver is stopped, and its command has ended", || {
            let has_ended = |child: &String| state_of(child) == Some('Z');
            state_of(&archiver) == Some('T') && children_of(&archiver).iter().all(has_ended)
        });
        HeldArchiver(process)
    }

    /// Waits for the end of recovery; the server must come up.
    #[track_caller]
    pub(crate) fn wait_until_promoted(&self) {
        until("recovery ends and the server is promoted", || {
            assert!(
                self.data.join("postmaster.pid").exists(),
                "PostgreSQL ended instead of being promoted\n{}",
                self.last_of_log()
            );
            self.try_query("SELECT pg_is_in_recovery()").text() == "f"
        });
    }

    pub(crate) fn timeline(&self) -> u32 {
        let text = run(self.command("pg_controldata").arg(&self.data)).ok().text();
        let line = text
            .lines()
            .find(|line| line.starts_with("Latest checkpoint's TimeLineID:"));
        line.and_then(|line| line.rsplit(' ').next())
            .and_then(|id| id.parse().ok())
            .expect("pg_controldata tells it")
    }

    /// Everything in it can be read and is consistent: heaps and indexes by pg_amcheck if this installation has the
    /// extension, otherwise every row by pg_dump.
    #[track_caller]
    pub(crate) fn assert_sound(&self) {
        let has_amcheck =
            self.query("SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'") == "1";
        if has_amcheck {
            run(self
                .client("pg_amcheck")
                .args(["--install-missing", "--heapallindexed", "--all"]))
            .ok();
        } else {
            run(self.client("pg_dumpall").arg("--no-sync")).ok();
        }
    }

    /// Runs pg_verifybackup on a backup, or a view of one; `wal` is given if its WAL is not in its own pg_wal.
    #[track_caller]
    pub(crate) fn verify_backup(&self, backup: &Path, wal: Option<&Path>) {
        if run(self.command("pg_verifybackup").arg("--version"))
            .code()
            .is_none()
        {
            eprintln!(
                "The pg_verifybackup of {} does not run: left out",
                self.install.bindir.display()
            );
            return;
        }
        let mut pg_verifybackup = self.command("pg_verifybackup");
        if let Some(wal) = wal {
            pg_verifybackup.arg("-w").arg(wal);
        }
        run(pg_verifybackup.arg(backup)).ok();
    }

    /// Stops it and checks the checksum of every page.
    #[track_caller]
    pub(crate) fn stop_and_assert_checksums(&mut self) {
        self.stop("fast");
        run(self
            .command("pg_checksums")
            .args(["--check", "-D"])
            .arg(&self.data))
        .ok();
    }

    fn last_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(30);
        format!(
            "The end of {}:\n{}",
            self.beside(".log").display(),
            lines[from..].join("\n")
        )
    }
}

/// The archiver of a server, stopped.
#[derive(Debug)]
pub(crate) struct HeldArchiver(Pid);

impl Drop for HeldArchiver {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

impl Drop for PgServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.last_of_log());
        }
        if self.running || self.data.join("postmaster.pid").exists() {
            let _ = self
                .command("pg_ctl")
                .args(["-s", "-w", "-m", "immediate", "stop", "-D"])
                .arg(&self.data)
                .output();
        }
    }
}

/// Ends all servers of a data directory that is gone, where nothing has the ids of their processes any more.
pub(crate) fn end_servers_of(data: &Path) {
    for postmaster in servers_in(data) {
        // As the other processes do when they notice that it is gone.
        let _ = kill_process(postmaster, Signal::QUIT);
        until("the server is gone", || test_kill_process(postmaster).is_err());
    }
}

/// The servers whose data directory is this, or lies below it.
pub(crate) fn servers_in(place: &Path) -> Vec<Pid> {
    let is_there = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let there =
            |pair: &[&[u8]]| pair[0] == b"-D" && Path::new(OsStr::from_bytes(pair[1])).starts_with(place);
        let is_pg_ctl = arguments.iter().any(|argument| argument.ends_with(b"pg_ctl"));
        !is_pg_ctl && arguments.windows(2).any(there)
    };
    let processes = fs::read_dir("/proc").expect("Cannot read /proc").flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| is_there(*pid))
        .filter_map(Pid::from_raw)
        .collect()
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().expect("a data directory is not the root directory")
}

fn append(path: &Path, lines: &str) {
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(path)
        .unwrap_or_else(|error| panic!("Cannot open {}: {error}", path.display()));
    write!(file, "\n{lines}\n").unwrap_or_else(|error| panic!("Cannot write {}: {error}", path.display()));
}
