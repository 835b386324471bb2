//! The private PostgreSQL server whose database is backed up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::site::{self, Site};

/// The name of the server's superuser.
pub(crate) const USER: &str = "bench";

/// How long archiving may take; here it is only a copy.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(120);

/// A server in the benchmark's directory.
#[derive(Debug)]
pub(crate) struct Server<'a> {
    site: &'a Site,
    bindir: PathBuf,
    running: bool,
}

impl<'a> Server<'a> {
    /// Creates a new cluster without starting it.
    pub(crate) fn create(site: &'a Site, bindir: &Path) -> Result<Self> {
        let server = Self {
            site,
            bindir: bindir.to_owned(),
            running: false,
        };
        site.empty_postgres_directory("server")?;
        site.empty_postgres_directory("segments")?;
        let mut initdb = site.as_postgres(server.program("initdb"));
        initdb.args([
            "-A",
            "trust",
            "-U",
            USER,
            "--data-checksums",
            "-E",
            "UTF8",
            "--locale=C",
            "-D",
        ]);
        site.run(initdb.arg(server.data()))?;
        server.configure()?;
        Ok(server)
    }

    /// Settings that prevent all background work: no autovacuum, no checkpoint by time or size,
    /// `pg_wal` no larger than necessary, and WAL is collected only while the file `collect`
    /// exists.
    fn configure(&self) -> Result<()> {
        let socket = self.socket();
        let (collect, segments) = (self.site.path("server/collect"), self.site.path("segments"));
        let mut settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nshared_buffers = '256MB'\n\
             autovacuum = off\ncheckpoint_timeout = '1h'\nmax_wal_size = '16GB'\nwal_recycle = off\n\
             synchronous_commit = off\njit = off\narchive_mode = on\n\
             archive_command = 'test ! -e {} || cp %p {}/%f'\n",
            socket.display(),
            collect.display(),
            segments.display()
        );
        if self.major()? >= 17 {
            settings.push_str("summarize_wal = on\n");
        }
        let path = self.data().join("postgresql.auto.conf");
        fs::write(&path, settings).with_context(|| format!("Cannot write {}", path.display()))
    }

    /// One of the server's programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bindir.join(name)
    }

    /// The directory of its programs.
    pub(crate) fn bindir(&self) -> &Path {
        &self.bindir
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.site.path("server/data")
    }

    /// The directory of the server's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.site.path("server")
    }

    /// The version as the server's programs print it: "15.18 (Debian 15.18-0+deb12u1)".
    pub(crate) fn version(&self) -> Result<String> {
        let text = site::output(Command::new(self.program("postgres")).arg("--version"))?;
        Ok(text
            .trim()
            .trim_start_matches("postgres (PostgreSQL) ")
            .to_owned())
    }

    /// The version's first part.
    pub(crate) fn major(&self) -> Result<u32> {
        let version = self.version()?;
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        digits
            .parse()
            .with_context(|| format!("Cannot read the server's version {version:?}"))
    }

    /// Starts the server, if it does not run, and waits until it answers.
    pub(crate) fn start(&mut self) -> Result<()> {
        if !self.running {
            self.control(&["start", "-l"], Some(&self.site.path("server/log")))?;
            self.running = true;
        }
        Ok(())
    }

    /// Stops the server, if it runs.
    pub(crate) fn stop(&mut self) -> Result<()> {
        if self.running {
            self.control(&["stop", "-m", "fast"], None)?;
            self.running = false;
        }
        Ok(())
    }

    fn control(&self, arguments: &[&str], log: Option<&Path>) -> Result<()> {
        let mut command = self.site.as_postgres(self.program("pg_ctl"));
        command
            .args(arguments)
            .args(log)
            .args(["-w", "-t", "300", "-D"])
            .arg(self.data());
        self.site.run(&mut command)
    }

    /// Runs SQL. Returns the values.
    pub(crate) fn sql(&self, commands: &str) -> Result<String> {
        let mut psql = self.client("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", commands]);
        Ok(site::output(&mut psql)?.trim().to_owned())
    }

    /// A client program, connected to the benchmark's database.
    pub(crate) fn client(&self, program: &str) -> Command {
        let mut command = self.site.as_postgres(self.program(program));
        command.arg("-h").arg(self.socket()).args(["-U", USER]);
        if program != "pg_basebackup" {
            command.env("PGDATABASE", "postgres");
        }
        command
    }

    /// Writes everything to the data directory, and removes WAL that is not needed then.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        self.sql("SELECT pg_switch_wal()")?;
        let start = Instant::now();
        while self.sql("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'")? != "0" {
            ensure!(
                start.elapsed() < ARCHIVE_TIMEOUT,
                "The server does not archive its WAL; its log says why"
            );
            thread::sleep(Duration::from_millis(100));
        }
        self.sql("CHECKPOINT").map(drop)
    }

    /// Keeps the archived segments from now on, or stops doing so.
    pub(crate) fn collect_segments(&self, on: bool) -> Result<()> {
        let flag = self.site.path("server/collect");
        if on {
            fs::write(&flag, "").with_context(|| format!("Cannot write {}", flag.display()))
        } else {
            fs::remove_file(&flag).with_context(|| format!("Cannot remove {}", flag.display()))
        }
    }

    /// Keeps a copy of the stopped server's data directory, to return to.
    pub(crate) fn keep_state(&mut self) -> Result<()> {
        self.stop()?;
        self.copy(&self.data(), &self.site.path("pristine"))
    }

    /// Restores the kept data directory, and starts the server.
    pub(crate) fn bring_state_back(&mut self) -> Result<()> {
        self.stop()?;
        self.copy(&self.site.path("pristine"), &self.data())?;
        self.site.empty_postgres_directory("segments")?;
        self.start()
    }

    /// The same, with the segments collected so far.
    pub(crate) fn bring_state_back_keeping_segments(&mut self) -> Result<()> {
        self.stop()?;
        self.copy(&self.site.path("pristine"), &self.data())?;
        self.start()
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        site::remove(to)?;
        self.site.run(
            Command::new("cp")
                .args(["-a", "--reflink=auto"])
                .arg(from)
                .arg(to),
        )
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // The error that ends the benchmark must be reported, not that of the clean-up.
        let _ = self.stop();
    }
}
