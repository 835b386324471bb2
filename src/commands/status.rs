//! `barmanfs status`.

use barmanfs_catalog::Repository;

use super::App;
use crate::barman;
use crate::cli::server::StatusArgs;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::health::standing::{Standing, each};
use crate::output::Format;
use crate::report::ServerStatus;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &StatusArgs) -> Result<Outcome, Error> {
    let servers = app.configured_servers(&args.servers)?;
    let repository = app.repository_if_made()?;
    let found: Vec<ServerStatus> = each(&servers, |server| status(server, repository.as_ref()))
        .into_iter()
        .collect::<Result<_, _>>()?;
    if app.options.format == Some(Format::Json) {
        barman::servers::status(&mut app.out, &found)?;
        return Ok(Outcome::Done);
    }
    if args.json.json {
        app.out.json_list("servers", &found)?;
        return Ok(Outcome::Done);
    }
    for status in &found {
        app.out.line(format_args!("Server {}:", status.server()))?;
        for line in status.lines() {
            app.out
                .line(format_args!("\t{}: {}", line.description, line.message))?;
        }
    }
    Ok(Outcome::Done)
}

fn status(server: &ServerConfig, repository: Option<&Repository>) -> Result<ServerStatus, Error> {
    let status = ServerStatus::new(server, Standing::of(server, repository)?);
    Ok(match repository.filter(|_| server.is_passive()) {
        Some(repository) => status.with_sync(&repository.sync_memory(&server.name)?),
        None => status,
    })
}
