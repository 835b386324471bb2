//! `barmanfs config`.

use std::collections::BTreeSet;

use super::App;
use crate::cli::config::ConfigCommand;
use crate::config::{Effect, Setting, Source};
use crate::error::{Error, Outcome};
use crate::output::{Output, Style, count};
use crate::report::{ConfigReport, ConfiguredSection};

/// Runs the command.
pub(crate) fn run(app: &mut App, command: &ConfigCommand) -> Result<Outcome, Error> {
    match command {
        ConfigCommand::Check(json) => {
            let report = ConfigReport::new(&app.config);
            if json.json {
                app.out.json(&report)?;
            } else {
                show(&mut app.out, &report)?;
            }
            Ok(match report.ok {
                true => Outcome::Done,
                false => Outcome::Problems,
            })
        }
    }
}

fn show(out: &mut Output, report: &ConfigReport) -> Result<(), Error> {
    for section in &report.sections {
        show_section(out, section)?;
    }
    for text in &report.warnings {
        let word = out.paint("Warning:", Style::Yellow);
        out.line(format_args!("{word} {text}"))?;
    }
    for text in &report.errors {
        let word = out.paint("Error:", Style::Red);
        out.line(format_args!("{word} {text}"))?;
    }
    // A line of the global section is a setting of each server.
    let counted = |effect: fn(&Effect) -> bool| {
        let settings = report.sections.iter().flat_map(|section| &section.settings);
        let lines = settings.filter(|setting| effect(&setting.effect));
        lines
            .map(|setting| &setting.origin)
            .collect::<BTreeSet<_>>()
            .len()
    };
    out.line(format_args!(
        "{} of {}: {}, {}",
        count(report.sections.len(), "section"),
        report.file.display(),
        count(counted(|effect| matches!(effect, Effect::Nothing(_))), "key") + " without effect",
        count(counted(|effect| matches!(effect, Effect::Wrong(_))), "key") + " with something wrong"
    ))
}

fn show_section(out: &mut Output, section: &ConfiguredSection) -> Result<(), Error> {
    let mut state = match section.disabled {
        true => out.paint(", disabled", Style::Red),
        false => String::new(),
    };
    if let Some(model) = &section.active_model {
        state += &format!(", with model {model}");
    }
    let name = out.paint(&format!("[{}]", section.name), Style::Bold);
    out.line(format_args!("{name}{state}"))?;
    section
        .settings
        .iter()
        .try_for_each(|setting| show_setting(out, setting))
}

/// `key = value (FILE:LINE, from the global section): obeyed`
fn show_setting(out: &mut Output, setting: &Setting) -> Result<(), Error> {
    let (text, style) = match &setting.effect {
        Effect::Obeyed => ("obeyed".to_owned(), Style::Green),
        Effect::Unset => ("not set, and nothing is inherited".to_owned(), Style::Green),
        Effect::Mapped(what) => (what.clone(), Style::Yellow),
        Effect::Nothing(why) => (format!("no effect: {why}"), Style::Yellow),
        Effect::Wrong(what) => (format!("wrong: {what}"), Style::Red),
    };
    let source = match &setting.source {
        Source::Own => String::new(),
        Source::Default => ", from [DEFAULT]".to_owned(),
        Source::Global => ", from the global section".to_owned(),
        Source::Model(name) => format!(", from model {name}"),
    };
    let text = out.paint(&text, style);
    out.line(format_args!(
        "  {} = {} ({}{source}): {text}",
        setting.key, setting.value, setting.origin
    ))
}
