//! `barmanfs metrics`: what the checks have counted, for Prometheus.

mod families;
mod file;
mod repository;
mod server;
mod sheet;

use std::time::Duration;

use super::App;
use crate::cli::metrics::MetricsArgs;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::health;
use crate::invocation::Invocation;
use sheet::Sheet;

/// How long the checks of a server may take where the configuration sets no limit: who collects metrics comes again in a
/// minute.
const WITHIN: Duration = Duration::from_secs(30);

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &MetricsArgs) -> Result<Outcome, Error> {
    let servers = app.configured_servers(&args.servers)?;
    let request = health::Request {
        place: &app.place,
        servers: &servers,
        invocation: &Invocation::current(app.options.config.as_deref()),
        measured: true,
    };
    let found = health::check(&request, |server: &ServerConfig| {
        Some(server.check_timeout.unwrap_or(WITHIN))
    });
    let mut sheet = Sheet::default();
    repository::add(&mut sheet, &app.place, WITHIN)?;
    server::add_checks(&mut sheet, "", &found.repository.findings)?;
    for (server, checked) in servers.iter().zip(&found.servers) {
        server::add(&mut sheet, server.name.as_str(), checked)?;
    }
    let text = sheet.text()?;
    match &args.output {
        Some(path) => file::replace(path, &text)?,
        None => app.out.bytes(text.as_bytes())?,
    }
    Ok(Outcome::Done)
}
