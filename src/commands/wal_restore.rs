//! `barmanfs wal-restore`: one WAL file from an archive on another host, safe as a `restore_command`.
//!
//! The exit codes are those of `get-wal`: PostgreSQL ends recovery only where the archive certainly has no such file. No
//! configuration is read here, and no repository.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use barmanfs_pg::wal_name::{SegmentName, WalName};

use crate::background;
use crate::cli::wal::FetchOptions;
use crate::error::{Error, Outcome};
use crate::signals::Interruption;
use crate::wal_transfer::compression::Compression;
use crate::wal_transfer::fetch::{Fetched, Fetching, Transit};
use crate::wal_transfer::prefetch;
use crate::wal_transfer::remote::Remote;
use crate::wal_transfer::spool::{WalSpool, Wanted};
use crate::wal_transfer::{PART, beside};

/// The name of the spool beside the file that PostgreSQL asks for: in `pg_wal`, which no backup copies.
const SPOOL: &str = ".barmanfs-spool";

/// How long a segment that is on its way is waited for.
const ON_ITS_WAY: Duration = Duration::from_secs(60);

/// The code of a process that SIGTERM has ended. PostgreSQL takes no such code for the end of WAL.
const ENDED: i32 = 143;

/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Runs the command. `user` and `program` are those on the other host where no option names others, `config` is the
/// configuration there.
pub(crate) fn run(
    options: &FetchOptions,
    user: Option<&str>,
    program: &str,
    config: Option<String>,
) -> Result<Outcome, Error> {
    let user = options.user.as_deref().or(user);
    let host = match user {
        Some(user) => format!("{user}@{}", options.host),
        None => options.host.clone(),
    };
    let remote = Remote {
        host,
        port: options.port,
        program: options.program.clone().unwrap_or_else(|| program.to_owned()),
        config,
        server: options.server.clone(),
    }
    .checked()?;
    let fetching = Fetching {
        remote,
        transit: transit(options),
        partial: options.partial,
        replay: options.replay,
    };
    if options.test {
        return Ok(Outcome::Told(u8::try_from(fetching.test()?).unwrap_or(u8::MAX)));
    }
    let restoring = Restoring { fetching, options };
    let done = restoring.run();
    if !options.prefetch && !matches!(done, Ok(Outcome::Done)) {
        std::thread::sleep(Duration::from_secs(options.sleep));
    }
    done
}

fn transit(options: &FetchOptions) -> Transit {
    if options.gzip {
        Transit::Compressed(Compression::Gzip)
    } else if options.bzip2 {
        Transit::Compressed(Compression::Bzip2)
    } else if options.keep_compression {
        Transit::Kept
    } else {
        Transit::Plain
    }
}

struct Restoring<'a> {
    fetching: Fetching,
    options: &'a FetchOptions,
}

impl Restoring<'_> {
    fn run(&self) -> Result<Outcome, Error> {
        let missing = || Error::usage("The name of a WAL file and where to put it are missing");
        let name = self.options.name.as_deref().ok_or_else(missing)?;
        let dest = self.options.dest.as_deref().ok_or_else(missing)?;
        let name = WalName::from_str(name).map_err(|error| Error::usage(error.to_string()))?;
        let dest = std::path::absolute(dest)
            .map_err(|error| Error::failed(format!("Cannot find {}: {error}", dest.display())))?;
        if dest.is_dir() {
            return Err(Error::usage(format!("{} is a directory", dest.display())));
        }
        let spool = self.spool(&dest);
        if self.options.prefetch {
            return match spool {
                Some(spool) => self.prefetch(&spool),
                None => Ok(Outcome::Done),
            };
        }
        // PostgreSQL ends its restore_command with itself, perhaps for the last time.
        let part = beside(&dest, PART);
        let _watched = Interruption::watch(move || {
            let _gone = std::fs::remove_file(&part);
            std::process::exit(ENDED);
        })?;
        match (name, spool) {
            (WalName::Segment(segment), Some(spool)) => self.with_spool(&spool, segment, &dest),
            _ => outcome(self.fetching.run(&name, &dest)?),
        }
    }

    /// The spool, if segments are to be fetched ahead. Without one they are fetched one by one.
    fn spool(&self, dest: &Path) -> Option<WalSpool> {
        if self.options.parallel == 0 {
            return None;
        }
        let parent: PathBuf = match &self.options.spool_dir {
            Some(directory) => directory.clone(),
            None => dest.with_file_name(SPOOL),
        };
        WalSpool::open(&parent, &self.fetching.remote, self.fetching.replay)
            .inspect_err(|error| tracing::warn!("No WAL is fetched ahead: {error}"))
            .ok()
    }

    fn prefetch(&self, spool: &WalSpool) -> Result<Outcome, Error> {
        background::detach(None, false)?;
        prefetch::run(&self.fetching, spool, self.options.parallel)?;
        Ok(Outcome::Done)
    }

    fn with_spool(&self, spool: &WalSpool, segment: SegmentName, dest: &Path) -> Result<Outcome, Error> {
        let began = Instant::now();
        let spooled = loop {
            match spool.take(segment, dest) {
                Ok(None) if spool.is_fetching(segment) && began.elapsed() < ON_ITS_WAY => {
                    std::thread::sleep(LOOK_EVERY);
                }
                other => break other,
            }
        };
        let size = match spooled {
            Ok(Some(size)) => size,
            found => {
                if let Err(error) = found {
                    tracing::warn!("Segment {segment} in the spool cannot be used: {error}");
                }
                // The first one of a recovery: the other process logs in at the same time.
                if spool.wanted().is_none() {
                    self.try_to_prefetch(spool, segment, dest);
                }
                match self.fetching.run(&WalName::Segment(segment), dest)? {
                    Fetched::Absent => return Ok(Outcome::Absent),
                    Fetched::File(size_bytes) => size_bytes
                        .try_into()
                        .map_err(|error| Error::failed(format!("{segment}: {error}")))?,
                }
            }
        };
        // Whatever fails from here on, PostgreSQL has its segment.
        if let Err(error) = spool.want(Wanted { segment, size }) {
            tracing::warn!("No WAL is fetched ahead: {error}");
        }
        self.try_to_prefetch(spool, segment, dest);
        Ok(Outcome::Done)
    }

    fn try_to_prefetch(&self, spool: &WalSpool, segment: SegmentName, dest: &Path) {
        if let Err(error) = self.start_prefetching(spool, segment, dest) {
            tracing::warn!("No WAL is fetched ahead: {error}");
        }
    }

    /// Starts the process that fills the spool, unless there is one.
    fn start_prefetching(&self, spool: &WalSpool, segment: SegmentName, dest: &Path) -> std::io::Result<()> {
        match spool.lock()? {
            None => return Ok(()),
            Some(free) => drop(free),
        }
        background::keep_inherited();
        let remote = &self.fetching.remote;
        let mut child = Command::new(std::env::current_exe()?);
        // Under the name of a client it would take other options.
        child.arg0("barmanfs").arg("--quiet");
        if let Some(config) = &remote.config {
            child.args(["--config", config]);
        }
        child.args(["wal-restore", "--prefetch", "--program", &remote.program]);
        if let Some(port) = remote.port {
            child.args(["--port", &port.to_string()]);
        }
        child.args(["--parallel", &self.options.parallel.to_string()]);
        if self.fetching.replay {
            child.arg("--replay");
        }
        if let Some(directory) = &self.options.spool_dir {
            child.arg("--spool-dir").arg(std::path::absolute(directory)?);
        }
        child.args(match self.fetching.transit {
            Transit::Plain => &[][..],
            Transit::Compressed(Compression::Bzip2) => &["--bzip2"],
            Transit::Compressed(_) => &["--gzip"],
            Transit::Kept => &["--keep-compression"],
        });
        child.args(["--", &remote.host, &remote.server, &segment.to_string()]);
        child.arg(dest);
        child
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        child.spawn().map(drop)
    }
}

fn outcome(fetched: Fetched) -> Result<Outcome, Error> {
    Ok(match fetched {
        Fetched::File(_) => Outcome::Done,
        Fetched::Absent => Outcome::Absent,
    })
}
