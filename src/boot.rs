//! The boot test: PostgreSQL starts on a throw-away clone of a backup, recovers, is promoted and queried. Everything is
//! removed afterwards.
//!
//! The repository is mounted for this test only, in a private directory. The mount shows everything as owned by the
//! user that the server runs as. A [`Bench`] owns everything that is created. However the test ends, it removes server,
//! clone, mount and directory in this order. If this process is killed, its server ends with it ([`server`]). Its clone
//! and a dead mount remain; the next test of that server removes them.

mod checks;
mod client;
mod mount;
mod server;
mod workspace;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use barmanfs_catalog::{Backup, BootCheck, BootOutcome, BootTest, CloneName, Repository};
use nix::unistd::{Gid, Uid};

use self::checks::Client;
pub(crate) use self::client::Stdout;
use self::mount::PrivateMount;
use self::server::Server;
use self::workspace::Workspace;
pub(crate) use self::workspace::remove_leftovers;
use crate::error::Error;
use crate::instance::{Instance, Programs, Setting};
use crate::progress::Progress;
use crate::signals::Interruption;

/// The `errno` of a read that fails because of damage.
const EIO: i32 = nix::errno::Errno::EIO as i32;

/// Messages of a server whose host has not enough disk space, quota or memory.
const LACKING: [&str; 4] = [
    "No space left on device",
    "Disk quota exceeded",
    "Cannot allocate memory",
    "could not map anonymous shared memory",
];

/// Messages of a server that cannot load a library because it is not installed on this host: a backup has no libraries.
const NOT_INSTALLED: [&str; 2] = ["could not access file \"", "could not load library \""];

/// The backup to test, and the tests.
#[derive(Debug)]
pub(crate) struct Request {
    /// The backup. Its WAL must be archived.
    pub(crate) backup: Backup,
    /// The directory of PostgreSQL's programs, if not one of the usual places.
    pub(crate) bindir: Option<PathBuf>,
    /// A directory to search before the usual places.
    pub(crate) path_prefix: Option<PathBuf>,
    /// A file with SQL to run: an absolute path.
    pub(crate) sql: Option<PathBuf>,
    /// The destination of the SQL's output.
    pub(crate) sql_stdout: Stdout,
    /// Whether to check all tables and indexes.
    pub(crate) amcheck: bool,
    /// Settings for the server.
    pub(crate) settings: Vec<Setting>,
    /// Names of users to try for the login.
    pub(crate) users: Vec<String>,
}

/// The result of a test.
#[derive(Debug)]
pub(crate) struct Report {
    /// The part that is stored with the backup.
    pub(crate) test: BootTest,
    /// Details of a failure: the output of the server or of a check, in lines.
    pub(crate) details: Option<String>,
}

/// Why the backup failed its test.
#[derive(Debug)]
struct Failure {
    /// The reason in one line.
    message: String,
    /// The output of the server or of a check.
    details: String,
}

impl Failure {
    /// Whether the reason may be that this host lacks something, or does not have enough of it.
    fn is_of_this_host(&self) -> bool {
        let lacks = |words: &&str| self.message.contains(*words) || self.details.contains(*words);
        let is_not_installed = |words: &&str| self.message.contains(*words);
        LACKING.iter().any(lacks) || NOT_INSTALLED.iter().any(is_not_installed)
    }
}

/// Why a test ends early.
#[derive(Debug)]
enum Stop {
    /// The backup failed, which is a result.
    Failed(Failure),
    /// The test could not be run, which is not a result about the backup.
    Error(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Stop {
    /// The failure for an error while reading on the private mount.
    fn reading(doing: &str, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(EIO) => Self::Failed(Failure {
                message: format!("{doing}: {error}"),
                details: "The messages above name what is damaged".to_owned(),
            }),
            _ => Error::failed(format!("{doing}: {error}")).into(),
        }
    }
}

/// Everything that is created for a test and removed afterwards.
#[derive(Debug)]
struct Bench<'a> {
    request: &'a Request,
    repository: &'a Repository,
    clone: CloneName,
    // Dropped in this order.
    server: Option<Server>,
    mount: Option<PrivateMount>,
    workspace: Workspace,
}

/// Tests a backup. Only the report remains of the test.
///
/// # Errors
/// When the test could not be run.
pub(crate) fn run(
    repository: &Repository,
    request: &Request,
    interruption: &Interruption,
    progress: &Progress,
) -> Result<Report, Error> {
    let (began, began_at) = (Instant::now(), SystemTime::now().into());
    let major = request.backup.server_version.major();
    let programs = Programs::find(major, request.bindir.as_deref(), request.path_prefix.as_deref())?;
    if request.amcheck && !programs.has("pg_amcheck") {
        return Err(
            Error::failed(format!("This PostgreSQL {major} has no pg_amcheck"))
                .hint("It comes with PostgreSQL 14 and later; name other programs with --bindir"),
        );
    }
    let _lock = repository.lock_boot_test(&request.backup.server)?;
    mount::remove_leftovers(repository, &request.backup.server)?;
    remove_leftovers();
    let owner = owner(repository, &request.backup)?;
    let mut bench = Bench {
        request,
        repository,
        clone: mount::clone_name(request.backup.id)?,
        server: None,
        mount: None,
        workspace: Workspace::make(owner.0, owner.1)?,
    };
    let mut postgresql = programs.version().unwrap_or_else(|| major.to_string());
    let ended = bench.test(owner, interruption, progress, &mut postgresql);
    bench.clear();
    let failure = verdict(ended)?;
    let outcome = failure.as_ref().map_or(BootOutcome::Ok, |_| BootOutcome::Failed);
    let (message, details) = failure.map(|failure| (failure.message, failure.details)).unzip();
    Ok(Report {
        test: BootTest {
            outcome,
            began_at,
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            postgresql,
            checks: request.checks(),
            message,
        },
        details,
    })
}

/// The result for the backup, if any.
fn verdict(ended: Result<(), Stop>) -> Result<Option<Failure>, Error> {
    match ended {
        Ok(()) => Ok(None),
        Err(Stop::Failed(failure)) if failure.is_of_this_host() => {
            Err(Error::failed(failure.message).hint(format!(
                "That says nothing about the backup, and is not kept. {}",
                failure.details
            )))
        }
        Err(Stop::Failed(failure)) => Ok(Some(failure)),
        Err(Stop::Error(error)) => Err(error),
    }
}

impl Request {
    fn checks(&self) -> Vec<BootCheck> {
        let sql = self.sql.as_ref().map(|_| BootCheck::Sql);
        let amcheck = self.amcheck.then_some(BootCheck::Amcheck);
        [BootCheck::Catalogs]
            .into_iter()
            .chain(sql)
            .chain(amcheck)
            .collect()
    }
}

impl Bench<'_> {
    fn test(
        &mut self,
        owner: (u32, u32),
        interruption: &Interruption,
        progress: &Progress,
        postgresql: &mut String,
    ) -> Result<(), Stop> {
        let request = self.request;
        progress.stage("making a clone");
        let server_name = &request.backup.server;
        let mount = PrivateMount::make(self.repository, server_name, self.workspace.mount_point(), owner)?;
        let mount = self.mount.insert(mount);
        let data = mount.make_clone(&self.clone, &request.backup)?;
        // The first file to be read. If it cannot be read, the backup is at fault.
        fs::read(data.join("PG_VERSION")).map_err(|error| Stop::reading("Cannot read PG_VERSION", &error))?;
        let instance = Instance::at(&data, request.bindir.as_deref(), request.path_prefix.as_deref())?;
        progress.stage(&format!("starting PostgreSQL {postgresql}"));
        let server = self.server.insert(Server::start(
            &instance,
            data,
            &self.workspace,
            &request.settings,
        )?);
        server.wait_until_ready(interruption, || progress.stage("replaying WAL"))?;
        let client = Client::connect(&instance, server, &self.workspace, interruption, &request.users)?;
        *postgresql = client.version()?;
        progress.stage("reading the catalogs of all databases");
        client.catalogs()?;
        if let Some(file) = &request.sql {
            progress.stage(&format!("running {}", file.display()));
            client.sql(file, request.sql_stdout)?;
        }
        if request.amcheck {
            progress.stage("checking all tables and indexes with pg_amcheck");
            client.amcheck()?;
        }
        Ok(())
    }

    /// Removes everything. A failure to remove something does not change the result.
    fn clear(mut self) {
        self.server = None;
        let name = &self.clone;
        let by_mount = self.mount.as_ref().map(|mount| mount.remove_clone(name));
        self.mount = None;
        if matches!(by_mount, None | Some(Ok(()))) {
            return;
        }
        // Without the mount its files are no longer in use.
        let server = &self.request.backup.server;
        let removed = self
            .repository
            .lock_clone(server, name, "removing it")
            .and_then(|lock| {
                let clone = self.repository.clone_named(server, name)?;
                self.repository.remove_clone(&clone, lock)
            });
        match removed {
            Ok(()) | Err(barmanfs_catalog::Error::NoSuchClone { .. }) => {}
            Err(error) => {
                tracing::warn!("The clone {name} is left for the next boot test to remove: {error}");
            }
        }
    }
}

/// The user that the server runs as. This is the present user; for root it is the repository's owner or, if that is
/// root as well, the owner that the files had on the server.
fn owner(repository: &Repository, backup: &Backup) -> Result<(u32, u32), Error> {
    let me = Uid::effective();
    if !me.is_root() {
        return Ok((me.as_raw(), Gid::effective().as_raw()));
    }
    let path = repository.path();
    let found = fs::metadata(path)
        .map_err(|error| Error::failed(format!("Cannot inspect {}: {error}", path.display())))?;
    if found.uid() != 0 {
        return Ok((found.uid(), found.gid()));
    }
    match &backup.root {
        Some(root) if root.attributes.uid != 0 => Ok((root.attributes.uid, root.attributes.gid)),
        _ => Err(Error::failed(
            "Repository and backup belong to root, as whom PostgreSQL refuses to run",
        )),
    }
}

/// The error for a test that the user interrupted.
fn interrupted() -> Error {
    Error::failed("Interrupted: no result is kept")
}

/// A text in one line, with single spaces.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_not_the_backups_fault() {
        let failure = |details: &str| Failure {
            message: "PostgreSQL does not start: PANIC: could not write".to_owned(),
            details: details.to_owned(),
        };
        assert!(failure("PANIC:  could not write to file: No space left on device").is_of_this_host());
        assert!(!failure("PANIC:  could not read file: Input/output error").is_of_this_host());
        // This is in the log, perhaps for another reason.
        assert!(!failure("ERROR:  could not access file \"$libdir/a\"").is_of_this_host());
    }

    #[test]
    fn damage_is_a_test_result_and_a_refusal_is_an_error() {
        let stop = |code| Stop::reading("Cannot read PG_VERSION", &io::Error::from_raw_os_error(code));
        assert!(matches!(stop(EIO), Stop::Failed(_)));
        assert!(matches!(stop(nix::errno::Errno::EACCES as i32), Stop::Error(_)));
    }
}
