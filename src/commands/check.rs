//! `barmanfs check`: can a server be backed up and recovered?
//!
//! Every line is one fact with its remedy. What does not depend on the server is checked when it is down, too.

mod archiving;
mod repository;
mod server;
mod streaming;

use serde::Serialize;

use super::App;
use crate::cli::CheckArgs;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::output::{Output, Style};

/// Nagios: a plugin's exit code for a critical state.
const NAGIOS_CRITICAL: u8 = 2;

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Line {
    name: &'static str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// All lines about one server.
#[derive(Debug, Serialize)]
struct Checked {
    server: String,
    active: bool,
    ok: bool,
    checks: Vec<Line>,
}

/// Collects lines.
#[derive(Debug, Default)]
struct Lines(Vec<Line>);

impl Lines {
    fn ok(&mut self, name: &'static str, hint: impl Into<Option<String>>) {
        self.0.push(Line {
            name,
            ok: true,
            hint: hint.into(),
        });
    }

    fn failed(&mut self, name: &'static str, hint: impl Into<String>) {
        self.0.push(Line {
            name,
            ok: false,
            hint: Some(hint.into()),
        });
    }

    /// OK with what was found, or the error with its remedy.
    fn result<T>(
        &mut self,
        name: &'static str,
        result: Result<T, Error>,
        found: impl FnOnce(&T) -> Option<String>,
    ) -> Option<T> {
        match result {
            Ok(value) => {
                self.ok(name, found(&value));
                Some(value)
            }
            Err(error) => {
                let hint = error
                    .hint_text()
                    .map(|hint| format!(". {hint}"))
                    .unwrap_or_default();
                self.failed(name, format!("{error}{hint}"));
                None
            }
        }
    }
}

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &CheckArgs) -> Result<Outcome, Error> {
    let servers = app.configured_servers(&args.servers)?;
    let checked: Vec<Checked> = servers.iter().map(|server| check(app, server)).collect();
    let ok = checked.iter().all(|server| server.ok);
    if args.nagios {
        app.out.line(nagios(&checked))?;
        return Ok(if ok {
            Outcome::Done
        } else {
            Outcome::Told(NAGIOS_CRITICAL)
        });
    }
    if args.json.json {
        app.out.json(&checked)?;
    } else {
        checked.iter().try_for_each(|server| show(&mut app.out, server))?;
    }
    Ok(if ok { Outcome::Done } else { Outcome::Problems })
}

fn check(app: &App, server: &ServerConfig) -> Checked {
    let mut lines = Lines::default();
    let repository = repository::check(app, server, &mut lines);
    server::check(repository.as_ref(), server, &mut lines);
    let ok = lines.0.iter().all(|line| line.ok);
    Checked {
        server: server.name.to_string(),
        active: server.active,
        ok,
        checks: lines.0,
    }
}

fn show(out: &mut Output, checked: &Checked) -> Result<(), Error> {
    let inactive = if checked.active { "" } else { " (inactive)" };
    out.line(format_args!("Server {}{inactive}:", checked.server))?;
    for line in &checked.checks {
        let word = if line.ok {
            out.paint("OK", Style::Green)
        } else {
            out.paint("FAILED", Style::Red)
        };
        let hint = line
            .hint
            .as_ref()
            .map(|hint| format!(" ({hint})"))
            .unwrap_or_default();
        out.line(format_args!("\t{}: {word}{hint}", line.name))?;
    }
    Ok(())
}

fn nagios(checked: &[Checked]) -> String {
    let bad: Vec<String> = checked
        .iter()
        .filter(|server| !server.ok)
        .map(|server| {
            let names: Vec<&str> = server
                .checks
                .iter()
                .filter(|line| !line.ok)
                .map(|line| line.name)
                .collect();
            format!("{} FAILED: {}", server.server, names.join(", "))
        })
        .collect();
    if bad.is_empty() {
        let names: Vec<&str> = checked.iter().map(|server| server.server.as_str()).collect();
        format!("BARMANFS OK - ready to serve: {}", names.join(", "))
    } else {
        format!("BARMANFS CRITICAL - {}", bad.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(ok: bool) -> Checked {
        let mut lines = Lines::default();
        lines.ok("PostgreSQL", Some("15.18".to_owned()));
        if !ok {
            lines.failed("archive_mode", "off");
        }
        Checked {
            server: "main".to_owned(),
            active: true,
            ok,
            checks: lines.0,
        }
    }

    #[test]
    fn nagios_gets_one_line() {
        assert_eq!(nagios(&[checked(true)]), "BARMANFS OK - ready to serve: main");
        assert_eq!(
            nagios(&[checked(true), checked(false)]),
            "BARMANFS CRITICAL - main FAILED: archive_mode"
        );
    }
}
