//! `barmanfs switch-wal`: makes servers close the segment that they are writing, and waits until it is archived.

use std::time::{Duration, Instant};

use barmanfs_catalog::Repository;
use barmanfs_pg::wal_name::{SegmentName, WalName};

use super::App;
use crate::cli::server::SwitchWalArgs;
use crate::cluster::switch::{self, Switched};
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::output::Output;
use crate::report::SwitchedServer;

/// How often to look whether the segment is archived.
const POLL: Duration = Duration::from_millis(100);

/// Runs the command. A server that fails does not stop the next one.
pub(crate) fn run(app: &mut App, args: &SwitchWalArgs) -> Result<Outcome, Error> {
    let servers = app.configured_servers(&args.servers)?;
    // Without it, nothing can be waited for: that is an error before anything is switched.
    let repository = args.archive.then(|| app.repository()).transpose()?;
    let wait = Duration::from_secs(args.archive_timeout);
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for server in &servers {
        match switch(server, args.force, repository.as_ref(), wait) {
            Ok(switched) => {
                if !args.json.json {
                    show(&mut app.out, &switched, args.archive)?;
                }
                done.push(switched);
            }
            Err(error) => failures.push(error.context(format!("Server {}", server.name))),
        }
    }
    if args.json.json {
        app.out.json_list("servers", &done)?;
    }
    let late = done.iter().filter(|switched| switched.archived == Some(false));
    failures.extend(late.map(|switched| {
        let closed = switched.closed.map(|name| name.to_string()).unwrap_or_default();
        Error::failed(format!(
            "The WAL file {closed} of server {} was not archived within {} s",
            switched.server, args.archive_timeout
        ))
        .hint(format!("'barmanfs check {}' tells why", switched.server))
    }));
    match failures.len() {
        0 => Ok(Outcome::Done),
        1 => Err(failures.remove(0)),
        count => {
            failures.iter().for_each(|error| tracing::error!("{error}"));
            Err(Error::failed(format!(
                "{count} of {} servers failed",
                servers.len()
            )))
        }
    }
}

fn switch(
    server: &ServerConfig,
    force: bool,
    repository: Option<&Repository>,
    wait: Duration,
) -> Result<SwitchedServer, Error> {
    let switched = switch::switch(server, force)?;
    let closed = match switched {
        Switched::Closed(name) => Some(name),
        Switched::NotRequired | Switched::Standby => None,
    };
    let archived = match (repository, closed) {
        (Some(repository), Some(name)) => Some(is_archived_within(repository, server, name, wait)?),
        _ => None,
    };
    Ok(SwitchedServer {
        server: server.name.clone(),
        closed,
        standby: switched == Switched::Standby,
        archived,
    })
}

fn is_archived_within(
    repository: &Repository,
    server: &ServerConfig,
    name: SegmentName,
    wait: Duration,
) -> Result<bool, Error> {
    let began = Instant::now();
    let name = WalName::Segment(name);
    loop {
        if repository.wal(&server.name).entry(&name)?.is_some() {
            return Ok(true);
        }
        if began.elapsed() >= wait {
            return Ok(false);
        }
        std::thread::sleep(POLL);
    }
}

fn show(out: &mut Output, switched: &SwitchedServer, waited: bool) -> Result<(), Error> {
    let server = &switched.server;
    match switched.closed {
        _ if switched.standby => out.line(format_args!(
            "No switch performed because server '{server}' is a standby."
        )),
        None => out.line(format_args!("No switch required for server '{server}'")),
        Some(name) => {
            out.line(format_args!(
                "The WAL file {name} has been closed on server '{server}'"
            ))?;
            match waited && switched.archived == Some(true) {
                true => out.line(format_args!(
                    "The WAL file {name} of server '{server}' is archived"
                )),
                false => Ok(()),
            }
        }
    }
}
