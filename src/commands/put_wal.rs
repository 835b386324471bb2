//! `barmanfs put-wal`: WAL files from another host, as an archive on standard input.
//!
//! Exits with 0 only when every file is verified and durable. A different file under a name that is taken is refused, where
//! Barman acknowledges it: PostgreSQL then keeps its segment.

use std::io;

use super::App;
use crate::arrival::{self, Arriving};
use crate::cli::wal::PutWalArgs;
use crate::error::{Error, Outcome};
use crate::hooks::{Hooks, NEVER_STOPPED};
use crate::output;
use crate::wal_transfer::bundle;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &PutWalArgs) -> Result<Outcome, Error> {
    let configured = app.configured(&args.server)?.clone();
    let server = &configured.name;
    if args.test {
        configured.refuse_disabled()?;
        if !configured.active {
            return Err(Error::failed(format!("Server '{server}' is not active")));
        }
        app.repository_for_writing()?;
        app.out
            .line(format_args!("Ready to accept WAL files for the server {server}"))?;
        return Ok(Outcome::Done);
    }
    configured.refuse_storing()?;
    let repository = app.repository_for_writing()?;
    let files = bundle::receive(&mut io::stdin().lock(), repository.path())?;
    let hooks = Hooks::of(&configured, &repository, NEVER_STOPPED);
    let number = files.len();
    let mut refused = Vec::new();
    // What can be archived is, whatever else came with it.
    for received in files {
        let name = received.name;
        let arriving = Arriving {
            server,
            name,
            file: received.file,
            path: None,
            origin: "put-wal",
            checked: None,
        };
        let archived = arriving
            .decompressed(repository.path())
            .map_err(|error| Error::failed(format!("Cannot decompress {name}: {error}")))
            .and_then(|arriving| Ok(arriving.archive(&hooks)?));
        refused.extend(match archived {
            Ok(outcome) => arrival::refusal(server, &name, &outcome),
            Err(error) => Some(error),
        });
    }
    let not_archived = refused.len();
    match refused.into_iter().next() {
        None => Ok(Outcome::Done),
        Some(first) if number == 1 => Err(first),
        Some(first) => Err(first.context(format!(
            "{not_archived} of {} are not archived, the first of them",
            output::count(number, "WAL file")
        ))),
    }
}
