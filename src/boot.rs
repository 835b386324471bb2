//! The boot test: PostgreSQL is started on a throw-away clone of a backup, recovers, is promoted and asked, and nothing
//! of it stays.
//!
//! The repository is mounted for this alone, in a private directory, and everything is shown as the user's as whom the
//! server runs. All that is made is owned by a [`Bench`], which takes it away again in the right order however the test
//! ends: server, clone, mount, directory. A process that is killed takes its server with it ([`server`]), and leaves a clone
//! and a dead mount, which the next test of that server removes.

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
use crate::error::Error;
use crate::instance::{Instance, Programs, Setting};
use crate::progress::Progress;
use crate::signals::Interruption;

/// `errno` of what cannot be read because it is damaged.
const EIO: i32 = nix::errno::Errno::EIO as i32;

/// What a server says whose host has no disk, quota or memory left for it.
const LACKING: [&str; 4] = [
    "No space left on device",
    "Disk quota exceeded",
    "Cannot allocate memory",
    "could not map anonymous shared memory",
];

/// What a server says when it is to load a library that is not installed on this host: a backup holds no libraries.
const NOT_INSTALLED: [&str; 2] = ["could not access file \"", "could not load library \""];

/// What is to be tested, and how.
#[derive(Debug)]
pub(crate) struct Request {
    /// The backup; its WAL must be there.
    pub(crate) backup: Backup,
    /// Where PostgreSQL's programs are, if not at the usual places.
    pub(crate) bindir: Option<PathBuf>,
    /// Where they are looked for before the usual places.
    pub(crate) path_prefix: Option<PathBuf>,
    /// SQL to run: an absolute path.
    pub(crate) sql: Option<PathBuf>,
    /// Where its output goes.
    pub(crate) sql_stdout: Stdout,
    /// Whether all tables and indexes are to be checked.
    pub(crate) amcheck: bool,
    /// Settings for the server.
    pub(crate) settings: Vec<Setting>,
    /// Names under which somebody may be able to log in.
    pub(crate) users: Vec<String>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Report {
    /// What is kept.
    pub(crate) test: BootTest,
    /// More about a failure: what the server or a check wrote, in lines.
    pub(crate) details: Option<String>,
}

/// Why the backup is no good.
#[derive(Debug)]
struct Failure {
    /// In one line.
    message: String,
    /// What the server or a check wrote.
    details: String,
}

impl Failure {
    /// Whether it was this host that had not enough of something, or not at all.
    fn is_of_this_host(&self) -> bool {
        let lacks = |words: &&str| self.message.contains(*words) || self.details.contains(*words);
        let is_not_installed = |words: &&str| self.message.contains(*words);
        LACKING.iter().any(lacks) || NOT_INSTALLED.iter().any(is_not_installed)
    }
}

/// Why a test ends before its end.
#[derive(Debug)]
enum Stop {
    /// The backup has failed it: that is a result.
    Failed(Failure),
    /// The test could not be made: that says nothing about the backup.
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
    /// A failure to read on the private mount.
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

/// What was made for a test, and is taken away again.
#[derive(Debug)]
struct Bench<'a> {
    request: &'a Request,
    repository: &'a Repository,
    clone: CloneName,
    // Dropped in this order where it comes to that.
    server: Option<Server>,
    mount: Option<PrivateMount>,
    workspace: Workspace,
}

/// Tests a backup. Nothing is left of it but the report.
///
/// # Errors
/// When the test could not be made.
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
    workspace::remove_leftovers();
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

/// What a test says about the backup, if anything.
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
        // The first file that is read: that it cannot be is the backup's fault.
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

    /// Takes everything away again. What cannot be removed changes nothing about the result.
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

/// As whom the server runs: this user, or for root the repository's owner, and where that is root itself, whoever's the
/// files were on the server.
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

/// Ended by the user.
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
        // In the log, perhaps of something else.
        assert!(!failure("ERROR:  could not access file \"$libdir/a\"").is_of_this_host());
    }

    #[test]
    fn what_is_damaged_is_a_result_and_what_is_forbidden_is_none() {
        let stop = |code| Stop::reading("Cannot read PG_VERSION", &io::Error::from_raw_os_error(code));
        assert!(matches!(stop(EIO), Stop::Failed(_)));
        assert!(matches!(stop(nix::errno::Errno::EACCES as i32), Stop::Error(_)));
    }
}
