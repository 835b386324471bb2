//! `barmanfs archive-wal`: archives what waits in `incoming_wals_directory` and in the spool, now.

use std::path::Path;

use barmanfs_catalog::Repository;

use super::App;
use crate::arrival;
use crate::cli::wal::ArchiveWalArgs;
use crate::config::{Archiver, ServerConfig};
use crate::error::{Error, Outcome};
use crate::hooks::{Hooks, NEVER_STOPPED};
use crate::incoming;
use crate::output;
use crate::receive;
use barmanfs_pg::wal_name::WalName;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &ArchiveWalArgs) -> Result<Outcome, Error> {
    let server = app.configured(&args.server)?.clone();
    let repository = app.repository_for_writing()?;
    let mut names = archive_incoming(&repository, &server)?;
    names.extend(archive_spool(&repository, &server)?);
    if app.options.quiet {
        return Ok(Outcome::Done);
    }
    if let (true, Some((waiting, directory))) = (names.is_empty(), still_waiting(&server)) {
        app.out.line(format_args!(
            "{} in {} may still be copied, and wait",
            output::count(waiting, "file"),
            directory.display()
        ))?;
    } else if names.is_empty() {
        app.out.line(format_args!(
            "No WAL of server {} waits to be archived",
            server.name
        ))?;
    }
    for name in names {
        app.out.line(name)?;
    }
    Ok(Outcome::Done)
}

/// Archives what lies in the server's directory, if it has one. Returns the names.
pub(super) fn archive_incoming(repository: &Repository, server: &ServerConfig) -> Result<Vec<String>, Error> {
    server.refuse_storing()?;
    match &server.incoming_wals_directory {
        Some(directory) if server.archiver != Archiver::Off => {
            incoming::archive(repository, server, directory)
        }
        _ => Ok(Vec::new()),
    }
}

/// How many files wait in the server's directory, if any do.
fn still_waiting(server: &ServerConfig) -> Option<(usize, &Path)> {
    let directory = server.incoming_wals_directory.as_deref();
    let directory = directory.filter(|_| server.archiver != Archiver::Off)?;
    let waiting = incoming::waiting(directory).map_or(0, |names| names.len());
    (waiting > 0).then_some((waiting, directory))
}

/// Archives what an earlier `receive-wal` has left. A running one does that by itself.
fn archive_spool(repository: &Repository, server: &ServerConfig) -> Result<Vec<String>, Error> {
    let name = &server.name;
    if repository.receiver(name)?.is_some() || repository.receiving(name)?.is_empty() {
        return Ok(Vec::new());
    }
    let spool = repository.spool(name)?;
    let hooks = Hooks::of(server, repository, NEVER_STOPPED);
    let mut names = Vec::new();
    for segment in spool.complete()? {
        let outcome = receive::archive(&spool, &hooks, segment)?;
        match arrival::refusal(name, &WalName::Segment(segment), &outcome) {
            None => names.push(segment.to_string()),
            Some(refusal) => tracing::error!("{refusal}"),
        }
    }
    Ok(names)
}
