//! `barmanfs show-servers`: every key of a server with its value and its place, and what the server says.
//!
//! It shows what there is: a server that is disabled, inactive or down is no error.

use super::App;
use crate::barman;
use crate::cli::server::ShowServersArgs;
use crate::cluster::Host;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::health::standing::{self, each};
use crate::output::{Output, Style, printable};
use crate::report::{Facts, ShownHost, ShownServer};

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &ShowServersArgs) -> Result<Outcome, Error> {
    let servers = chosen(app, &args.servers)?;
    let mut shown = each(&servers, show_one);
    shown.extend(app.misnamed(&args.servers).map(ShownServer::misnamed));
    if let Some(format) = app.options.format {
        barman::shown::servers(&mut app.out, format, &shown)?;
    } else if args.json.json {
        app.out.json_list("servers", &shown)?;
    } else {
        shown.iter().try_for_each(|server| show(&mut app.out, server))?;
    }
    Ok(Outcome::Done)
}

/// The servers with these names, each once. `all` means inactive ones, too.
fn chosen(app: &App, names: &[String]) -> Result<Vec<ServerConfig>, Error> {
    let mut servers: Vec<ServerConfig> = Vec::new();
    for name in names {
        let is_misnamed = app.config.misnamed.iter().any(|section| section.name == *name);
        let named: Vec<&ServerConfig> = match name.as_str() {
            super::ALL => app.config.servers.iter().collect(),
            _ if is_misnamed => Vec::new(),
            name => vec![app.configured(name)?],
        };
        for server in named {
            if servers.iter().all(|known| known.name != server.name) {
                servers.push(server.clone());
            }
        }
    }
    Ok(servers)
}

/// A server with what its hosts say.
pub(super) fn show_one(server: &ServerConfig) -> ShownServer {
    let mut hosts = vec![("backup", Host::Backup)];
    if server.is_passive() {
        hosts.clear();
    }
    if server.has_wal_host() && !server.is_passive() {
        hosts.push(("wal", Host::Wal));
    }
    let hosts = each(&hosts, |(name, host)| {
        ShownHost::new(name, standing::ask(server, *host))
    });
    ShownServer::new(server, hosts)
}

fn show(out: &mut Output, server: &ShownServer) -> Result<(), Error> {
    let state = match (server.active, server.disabled) {
        (_, true) => " (disabled)",
        (false, false) => " (inactive)",
        (true, false) if server.passive => " (Passive)",
        (true, false) => "",
    };
    let name = out.paint(&server.server, Style::Bold);
    out.line(format_args!("Server {name}{state}:"))?;
    for error in &server.errors {
        let word = out.paint("error", Style::Red);
        out.line(format_args!("\t{word}: {error}"))?;
    }
    if let Some(model) = &server.active_model {
        out.line(format_args!("\tactive_model: {model}"))?;
    }
    for key in &server.configuration {
        let place = key.place().map(|place| format!(" ({place})")).unwrap_or_default();
        let value = key.value.as_ref().map(|value| printable(value.as_bytes()));
        out.line(format_args!("\t{}: {}{place}", key.key, none_or(value)))?;
    }
    server.hosts.iter().try_for_each(|host| show_host(out, host))
}

fn show_host(out: &mut Output, host: &ShownHost) -> Result<(), Error> {
    out.line(match host.host {
        "wal" => "    The host that WAL is received from:",
        _ => "    The server:",
    })?;
    if let Some(error) = &host.error {
        let word = out.paint("does not answer", Style::Red);
        return out.line(format_args!("\t{word}: {error}"));
    }
    for (key, value) in facts(&host.facts) {
        out.line(format_args!("\t{key}: {}", none_or(value)))?;
    }
    let mut problems = host.problems.iter();
    problems.try_for_each(|problem| out.line(format_args!("\tnot known: {problem}")))
}

fn none_or(value: Option<String>) -> String {
    value.unwrap_or_else(|| "None".to_owned())
}

/// The facts under the keys of the JSON.
fn facts(facts: &Facts) -> Vec<(&'static str, Option<String>)> {
    fn text(value: Option<impl ToString>) -> Option<String> {
        value.map(|value| value.to_string())
    }
    let slot = facts.replication_slots.first().map(|slot| {
        let state = if slot.active { "active" } else { "not active" };
        format!("{}, {state}, at {}", slot.name, none_or(text(slot.restart_lsn)))
    });
    let mut found = vec![
        ("server_version", text(facts.server_version.as_ref())),
        ("system_id", text(facts.system_id)),
        ("is_in_recovery", text(facts.is_in_recovery)),
        ("timeline", text(facts.timeline)),
        ("current_lsn", text(facts.current_lsn)),
        ("flush_lsn", text(facts.flush_lsn)),
        ("current_wal", text(facts.current_wal)),
        ("current_size_bytes", text(facts.current_size_bytes)),
        ("started_at", facts.started.map(crate::output::second)),
        ("is_superuser", text(facts.is_superuser)),
        ("has_backup_privileges", text(facts.has_backup_privileges)),
        ("has_monitoring_privileges", text(facts.has_monitoring_privileges)),
        ("replication_slot", slot),
        ("archived_count", text(facts.archived_count)),
        ("last_archived_wal", text(facts.last_archived_wal.as_ref())),
        ("failed_count", text(facts.failed_count)),
        ("last_failed_wal", text(facts.last_failed_wal.as_ref())),
    ];
    found.extend(facts.settings.iter().map(|(name, value)| (*name, value.clone())));
    found
}
