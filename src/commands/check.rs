//! `barmanfs check`: prints the findings of [`health`] as text, as JSON or for Nagios.

mod nagios;

use super::{ALL, App};
use crate::barman;
use crate::cli::check::CheckArgs;
use crate::config::{ServerConfig, unless_zero};
use crate::error::{Error, Outcome};
use crate::health::{self, Finding, State};
use crate::invocation::Invocation;
use crate::output::{Output, Style};
use crate::report::{CheckReport, CheckedRepository, CheckedServer};

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &CheckArgs) -> Result<Outcome, Error> {
    let report = check(app, args)?;
    let is_barmans = app.options.format.is_some();
    let worst = match is_barmans {
        // There what concerns the repository is a part of each server.
        true => report.worst_of_barmans(),
        false => report.worst(),
    };
    if args.nagios {
        let plugin = if is_barmans { nagios::BARMAN } else { nagios::OWN };
        let lines = match is_barmans {
            true => nagios::lines(plugin, None, &report.into_barmans()),
            false => nagios::lines(plugin, Some(&report.repository), &report.servers),
        };
        for line in lines {
            app.out.line(line)?;
        }
        return Ok(nagios::outcome(plugin, worst));
    }
    if let Some(format) = app.options.format {
        barman::servers::check(&mut app.out, format, &report.into_barmans())?;
    } else if args.json.json {
        app.out.json(&report)?;
    } else {
        let repository = &report.repository;
        app.out.line(format_args!("Repository {}:", repository.path))?;
        show(&mut app.out, &repository.findings)?;
        for server in &report.servers {
            let inactive = if server.active { "" } else { " (inactive)" };
            app.out
                .line(format_args!("Server {}{inactive}:", server.server))?;
            show(&mut app.out, &server.findings)?;
        }
    }
    Ok(match worst {
        State::Failed => Outcome::Problems,
        State::Ok | State::Warning => Outcome::Done,
    })
}

fn check(app: &App, args: &CheckArgs) -> Result<CheckReport, Error> {
    let servers = app.configured_servers(&args.servers)?;
    let request = health::Request {
        place: &app.place,
        servers: &servers,
        invocation: &Invocation::current(app.options.config.as_deref()),
        measured: false,
    };
    let limit = |server: &ServerConfig| args.check_timeout.map_or(server.check_timeout, unless_zero);
    let found = health::check(&request, limit);
    let checked = servers.iter().zip(found.servers);
    let mut checked: Vec<CheckedServer> = checked
        .map(|(server, checked)| CheckedServer::new(server, checked))
        .collect();
    checked.extend(app.misnamed(&args.servers).map(CheckedServer::misnamed));
    if args.servers.iter().any(|name| name == ALL) {
        checked.extend(unconfigured(app, request.invocation));
    }
    let repository = CheckedRepository::new(&request.place.shown(), found.repository);
    Ok(CheckReport::new(repository, checked))
}

/// Servers of which WAL is still being received, although the configuration has no section for them: it was renamed or
/// removed under the process. What cannot be read here is reported by the checks of the repository.
fn unconfigured(app: &App, invocation: &Invocation) -> Vec<CheckedServer> {
    let Ok(Some(repository)) = app.repository_if_made() else {
        return Vec::new();
    };
    let servers = repository.servers().unwrap_or_default().into_iter();
    let strays = servers.filter(|server| app.config.server(server.as_str()).is_none());
    let running = strays.filter_map(|server| Some((repository.receiver(&server).ok()??, server)));
    let found = running.map(|(receiver, server)| {
        let stop = invocation.with(&format!("receive-wal {server} --stop"));
        let message = format!(
            "{} has no section [{server}], and a process still receives its WAL ({}): '{stop}' ends it, or give the section its \
             name back",
            app.config.file.display(),
            receiver.description
        );
        CheckedServer::unconfigured(&server, Finding::failed("configuration", message))
    });
    found.collect()
}

fn show(out: &mut Output, findings: &[Finding]) -> Result<(), Error> {
    for finding in findings {
        let style = match finding.state {
            State::Ok => Style::Green,
            State::Warning => Style::Yellow,
            State::Failed => Style::Red,
        };
        let word = out.paint(finding.state.word(), style);
        let text = finding.text().map(|text| format!(" ({text})"));
        out.line(format_args!(
            "\t{}: {word}{}",
            finding.name,
            text.unwrap_or_default()
        ))?;
    }
    Ok(())
}
