//! `barmanfs check`: can a server be backed up and recovered?
//!
//! Every line is one fact with its remedy. What does not depend on the server is checked when it is down, too.

mod arrival;
mod backups;
mod doubtful;
mod lines;
mod nagios;
mod repository;
mod server;
mod streaming;

use serde::{Serialize, Serializer};

use super::App;
use crate::cli::CheckArgs;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::invocation::Invocation;
use crate::output::{Output, Style};
use lines::{Level, Line, Lines};

/// All lines about one server.
#[derive(Debug, Serialize)]
struct Checked {
    server: String,
    active: bool,
    /// No line is FAILED.
    ok: bool,
    /// The worst of the lines.
    status: Level,
    checks: Vec<Line>,
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::json!({
            "name": self.name,
            "ok": self.level < Level::Failed,
            "status": self.level,
            "hint": self.hint,
        })
        .serialize(serializer)
    }
}

/// What every check is given.
#[derive(Debug)]
struct Context<'a> {
    app: &'a App,
    server: &'a ServerConfig,
    /// For commands that somebody else is to run.
    invocation: Invocation,
}

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &CheckArgs) -> Result<Outcome, Error> {
    let servers = app.configured_servers(&args.servers)?;
    let checked: Vec<Checked> = servers.iter().map(|server| check(app, server)).collect();
    let worst = checked
        .iter()
        .map(|server| server.status)
        .max()
        .unwrap_or(Level::Ok);
    if args.nagios {
        app.out.line(nagios::line(&checked))?;
        return Ok(nagios::outcome(worst));
    }
    if args.json.json {
        app.out.json_list("servers", &checked)?;
    } else {
        checked.iter().try_for_each(|server| show(&mut app.out, server))?;
    }
    Ok(match worst {
        Level::Failed => Outcome::Problems,
        Level::Ok | Level::Warning => Outcome::Done,
    })
}

fn check(app: &App, server: &ServerConfig) -> Checked {
    let mut lines = Lines::default();
    let context = Context {
        app,
        server,
        invocation: Invocation::current(app.options.config.as_deref()),
    };
    let stored = repository::check(&context, &mut lines);
    server::check(&context, stored.as_ref(), &mut lines);
    let status = lines.worst();
    Checked {
        server: server.name.to_string(),
        active: server.active,
        ok: status < Level::Failed,
        status,
        checks: lines.0,
    }
}

fn show(out: &mut Output, checked: &Checked) -> Result<(), Error> {
    let inactive = if checked.active { "" } else { " (inactive)" };
    out.line(format_args!("Server {}{inactive}:", checked.server))?;
    for line in &checked.checks {
        let style = match line.level {
            Level::Ok => Style::Green,
            Level::Warning => Style::Yellow,
            Level::Failed => Style::Red,
        };
        let word = out.paint(line.level.word(), style);
        let hint = line
            .hint
            .as_ref()
            .map(|hint| format!(" ({hint})"))
            .unwrap_or_default();
        out.line(format_args!("\t{}: {word}{hint}", line.name))?;
    }
    Ok(())
}
