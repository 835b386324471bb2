//! `barmanfs check`: prints the findings of [`health`] as text, as JSON or for Nagios.

mod nagios;

use std::path::Path;

use super::App;
use crate::barman;
use crate::cli::check::CheckArgs;
use crate::config::{ServerConfig, unless_zero};
use crate::error::{Error, Outcome};
use crate::health::{self, State, standing};
use crate::invocation::Invocation;
use crate::output::{Output, Style};
use crate::report::CheckedServer;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &CheckArgs) -> Result<Outcome, Error> {
    let servers = app.configured_servers(&args.servers)?;
    let invocation = Invocation::current(app.options.config.as_deref());
    let path = &app.config.repository;
    let mut checked = standing::each(&servers, |server| check(path, args, server, &invocation));
    let is_named = |name: &str| {
        args.servers
            .iter()
            .any(|asked| asked == super::ALL || asked == name)
    };
    let misnamed = app
        .config
        .misnamed
        .iter()
        .filter(|section| is_named(&section.name));
    checked.extend(misnamed.map(CheckedServer::misnamed));
    let worst = CheckedServer::worst(&checked);
    if args.nagios {
        let plugin = match app.options.format {
            Some(_) => nagios::BARMAN,
            None => nagios::OWN,
        };
        for line in nagios::lines(plugin, &checked) {
            app.out.line(line)?;
        }
        return Ok(nagios::outcome(plugin, worst));
    }
    if let Some(format) = app.options.format {
        barman::servers::check(&mut app.out, format, &checked)?;
    } else if args.json.json {
        app.out.json_list("servers", &checked)?;
    } else {
        checked.iter().try_for_each(|server| show(&mut app.out, server))?;
    }
    Ok(match worst {
        State::Failed => Outcome::Problems,
        State::Ok | State::Warning => Outcome::Done,
    })
}

fn check(path: &Path, args: &CheckArgs, server: &ServerConfig, invocation: &Invocation) -> CheckedServer {
    let within = args.check_timeout.map_or(server.check_timeout, unless_zero);
    let checked = health::check(path, server, invocation, within);
    CheckedServer::new(server, checked)
}

fn show(out: &mut Output, checked: &CheckedServer) -> Result<(), Error> {
    let inactive = if checked.active { "" } else { " (inactive)" };
    out.line(format_args!("Server {}{inactive}:", checked.server))?;
    for finding in &checked.findings {
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
