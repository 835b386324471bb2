//! `barmanfs receive-wal`: receives WAL as a stream until it is stopped; and the related options.
//!
//! Like `wal-archive` it never creates a repository.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use barmanfs_catalog::{Repository, ServerName};
use rustix::process::{Pid, Signal, kill_process};

use super::App;
use crate::cli::GlobalOptions;
use crate::cli::wal::ReceiveWalArgs;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::receive::{self, End};

/// How long a receiver may take to end: it finishes archiving the segment that it is archiving.
const STOPS_WITHIN: Duration = Duration::from_secs(60);

/// How often to check that meanwhile.
const POLL: Duration = Duration::from_millis(50);

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &ReceiveWalArgs) -> Result<Outcome, Error> {
    if args.stop {
        // Its section may have been removed or renamed since the process began.
        let server = app.known_server(&app.repository()?, &args.server)?;
        return stop(app, &server);
    }
    let server = app.configured(&args.server)?.clone();
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
    receive(app, &repository, &server)?;
    Ok(Outcome::Done)
}

/// Receives until it is stopped. When the server's configuration has changed, this process starts itself again with the
/// new one: what it has received is durable, and receiving goes on behind that.
pub(super) fn receive(app: &App, repository: &Repository, server: &ServerConfig) -> Result<(), Error> {
    let (options, path) = (&app.options, app.config.repository.as_path());
    match receive::run(repository, server, &|| has_changed(options, path, server))? {
        End::Stopped => Ok(()),
        End::Changed => start_again(server),
    }
}

/// Whether the files have another configuration of the server now, which can be used. Without one, it goes on with the old
/// one, and `check` says what is wrong.
fn has_changed(options: &GlobalOptions, repository: &Path, server: &ServerConfig) -> bool {
    let Ok(now) = super::load(options) else {
        return false;
    };
    now.server(server.name.as_str()).is_some_and(|new| {
        let is_same = now.repository == repository
            && new.effective() == server.effective()
            && new.connection_strings() == server.connection_strings();
        !is_same && !new.is_disabled()
    })
}

fn start_again(server: &ServerConfig) -> Result<(), Error> {
    /// How Linux names the program of a process after an upgrade has replaced it.
    const REPLACED: &[u8] = b" (deleted)";
    let failed = |error: std::io::Error| {
        Error::failed(format!(
            "Receiving WAL of server {} cannot start again with its changed configuration: {error}",
            server.name
        ))
    };
    tracing::info!(
        "The configuration of server {} has changed: receiving starts again with it",
        server.name
    );
    let program = std::env::current_exe()
        .map_err(failed)?
        .into_os_string()
        .into_vec();
    let program = program.strip_suffix(REPLACED).unwrap_or(&program);
    let mut words = std::env::args_os();
    let mut command = Command::new(OsStr::from_bytes(program));
    command.arg0(words.next().unwrap_or_default()).args(words);
    Err(failed(command.exec()))
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
