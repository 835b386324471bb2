//! `barmanfs receive-wal`: receives WAL as a stream until it is stopped; and the related options.
//!
//! Like `wal-archive` it never creates a repository.

use std::time::{Duration, Instant};

use barmanfs_catalog::ServerName;
use rustix::process::{Pid, Signal, kill_process};

use super::App;
use crate::cli::wal::ReceiveWalArgs;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::receive;

/// How long a receiver may take to end: it finishes archiving the segment that it is archiving.
const STOPS_WITHIN: Duration = Duration::from_secs(60);

/// How often to check that meanwhile.
const POLL: Duration = Duration::from_millis(50);

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &ReceiveWalArgs) -> Result<Outcome, Error> {
    let server = app.configured(&args.server)?.clone();
    if args.stop {
        return stop(app, &server.name);
    }
    server.refuse_disabled()?;
    if args.create_slot || args.drop_slot {
        return change_slot(app, &server, args);
    }
    if !server.streaming_archiver {
        return Err(
            Error::usage(format!("Server '{}' has streaming_archiver = off", server.name)).hint(format!(
                "Set streaming_archiver = on in its section [{}]: backups then know that WAL comes this way",
                server.name
            )),
        );
    }
    let repository = app.repository_for_writing()?;
    if args.reset {
        let segment = receive::reset(&repository, &server)?;
        app.out.line(format_args!(
            "WAL of server {} will be received from segment {segment} on",
            server.name
        ))?;
        return Ok(Outcome::Done);
    }
    receive::run(&repository, &server)?;
    Ok(Outcome::Done)
}

fn change_slot(app: &mut App, server: &ServerConfig, args: &ReceiveWalArgs) -> Result<Outcome, Error> {
    let slot = server.slot_name.as_deref().unwrap_or_default();
    let done = if args.drop_slot {
        receive::slot::drop(server)?;
        "dropped"
    } else if receive::slot::create(server, args.if_not_exists)? {
        "created"
    } else {
        "there already"
    };
    app.out.line(format_args!(
        "Replication slot {slot} of server {} is {done}",
        server.name
    ))?;
    Ok(Outcome::Done)
}

/// Sends a signal to the process that receives, and waits until it has ended.
pub(super) fn stop(app: &mut App, server: &ServerName) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let Some(receiver) = repository.receiver(server)? else {
        return Err(Error::failed(format!(
            "No process receives WAL of server {server}"
        )));
    };
    let unreachable = || {
        Error::failed(format!(
            "The process that receives WAL of server {server} cannot be signalled ({})",
            receiver.description
        ))
        .hint("Run this on its host, as its user")
    };
    let process = receiver.process.and_then(|id| i32::try_from(id).ok());
    let process = process.and_then(Pid::from_raw).ok_or_else(unreachable)?;
    kill_process(process, Signal::TERM).map_err(|_| unreachable())?;
    let began = Instant::now();
    while repository
        .receiver(server)?
        .is_some_and(|now| now.process == receiver.process)
    {
        if began.elapsed() > STOPS_WITHIN {
            return Err(Error::failed(format!(
                "The process that receives WAL of server {server} was asked to stop and still runs ({})",
                receiver.description
            )));
        }
        std::thread::sleep(POLL);
    }
    app.out
        .line(format_args!("Receiving WAL of server {server} is stopped"))?;
    Ok(Outcome::Done)
}
