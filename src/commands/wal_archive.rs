//! `barmanfs wal-archive`: stores one WAL file in the archive, for `archive_command`.
//!
//! It is started for every segment: it parses one small file, opens the repository and stores. With `--remote`, the archive
//! is on another host, and no configuration is read here.

use std::str::FromStr;

use barmanfs_pg::wal_name::WalName;
use barmanfs_store::open_regular;

use super::{App, start_client_log};
use crate::arrival::{self, Arriving};
use crate::cli::GlobalOptions;
use crate::cli::wal::{SendOptions, WalArchiveArgs};
use crate::error::{Error, Outcome};
use crate::hooks::{Hooks, NEVER_STOPPED, absolute};
use crate::wal_transfer::remote::{self, Remote};
use crate::wal_transfer::send::{Sending, refuse_shown};

/// Runs the command.
pub(crate) fn run(app: &App, args: &WalArchiveArgs) -> Result<Outcome, Error> {
    if args.send.is_any() {
        return Err(Error::usage("This option is for --remote only"));
    }
    let configured = app.configured(&args.server)?;
    configured.refuse_storing()?;
    let server = &configured.name;
    let path = args.path()?;
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = WalName::from_str(&file_name).map_err(|error| Error::usage(error.to_string()))?;
    let file = open_regular(path)
        .map_err(|error| Error::failed(format!("Cannot read {}: {error}", path.display())))?;
    refuse_shown(&file, path, server)?;
    let repository = app.repository_for_writing()?;
    let hooks = Hooks::of(configured, &repository, NEVER_STOPPED);
    let arriving = Arriving {
        server,
        name,
        file,
        path: Some(absolute(path)),
        origin: "wal-archive",
        checked: None,
    };
    let outcome = arriving.archive(&hooks)?;
    match arrival::refusal(server, &name, &outcome) {
        Some(refusal) => Err(refusal),
        None => Ok(Outcome::Done),
    }
}

/// Runs the command with `--remote`.
pub(crate) fn send(options: &GlobalOptions, args: &WalArchiveArgs) -> Result<Outcome, Error> {
    start_client_log(options);
    let (host, port) = remote::host_and_port(args.remote.as_deref().unwrap_or_default())?;
    let config = options.config.as_ref().map(|path| path.display().to_string());
    let remote = Remote {
        host,
        port,
        program: args.send.program.clone(),
        config,
        server: args.server.clone(),
    };
    let sending = sending(remote, &args.send);
    match args.send.test {
        true => Ok(Outcome::Told(sending.test()?)),
        false => sending.run(args.path()?).map(|()| Outcome::Done),
    }
}

/// What these options ask for.
pub(crate) fn sending(remote: Remote, options: &SendOptions) -> Sending {
    Sending {
        remote,
        hash: options.hash(),
        compression: options.compression(),
        level: options.compression_level,
    }
}
