//! `barmanfs explain`: how a target would be recovered, or why it cannot be.

use barmanfs_catalog::recovery::{Action, Plan, TargetSpec, TimelineSpan, Unreachable};
use barmanfs_catalog::{BackupStatus, Repository, ServerName};
use barmanfs_pg::TimelineId;

use super::App;
use super::show_backup::Facts;
use crate::cli::inspect::ExplainArgs;
use crate::error::{Error, Outcome};
use crate::forks;
use crate::health::Doubts;
use crate::output::{self, Output, Style};
use crate::report::{Doubt, Explanation, path_of};

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &ExplainArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.server)?;
    let spec: TargetSpec = args
        .target
        .join(" ")
        .parse()
        .map_err(|error: barmanfs_catalog::TargetError| Error::usage(error.to_string()))?;
    let spec = spec.or_action(app.config.recovery_target_action.unwrap_or(Action::Promote));
    forks::log_open(&repository, &server)?;
    match repository.plan(&server, &spec)? {
        Ok(mut plan) => {
            let doubt = doubt(&repository, &server, &spec, &mut plan)?;
            if args.json.json {
                app.out.json(&Explanation::plan(&server, &plan, &doubt))?;
            } else {
                show_plan(&mut app.out, &server, &plan, &doubt)?;
            }
            Ok(Outcome::Done)
        }
        Err(reason) => {
            let elsewhere = repository.reachable_along(&server, &spec)?;
            if args.json.json {
                app.out
                    .json(&Explanation::unreachable(&server, &spec, &reason, &elsewhere))?;
            } else {
                show_reason(&mut app.out, &server, &spec, &reason, &elsewhere)?;
            }
            Ok(Outcome::Unreachable)
        }
    }
}

/// Finds out what is wrong with the backup of a plan. Adds that to the plan's notes, with another backup to use
/// instead.
pub(super) fn doubt(
    repository: &Repository,
    server: &ServerName,
    spec: &TargetSpec,
    plan: &mut Plan,
) -> Result<Doubt, Error> {
    let of_plan = Doubts::find(repository, std::slice::from_ref(&plan.backup))?;
    let id = plan.backup.id;
    let Some(what) = of_plan.about(id) else {
        return Ok(Doubt::default());
    };
    let mut note = format!("backup {id} {what}");
    if spec.backup.is_none() {
        note.push_str(": ");
        note.push_str(&instead(repository, server, spec)?);
    }
    plan.notes.push(note);
    Ok(Doubt {
        damaged: of_plan.damaged.contains(&id),
        not_booted: of_plan.not_booted.contains(&id),
    })
}

/// The target with the newest backup that can be relied on and from which it can be recovered.
fn instead(repository: &Repository, server: &ServerName, spec: &TargetSpec) -> Result<String, Error> {
    let backups = repository.backups(server)?;
    let doubts = Doubts::find(repository, &backups)?;
    let good = |backup: &&barmanfs_catalog::Backup| {
        backup.status == BackupStatus::Done && backup.is_of_current_history() && !doubts.concern(backup.id)
    };
    for backup in backups.iter().rev().filter(good) {
        let from = TargetSpec {
            backup: Some(backup.id),
            ..spec.clone()
        };
        if repository.plan(server, &from)?.is_ok() {
            return Ok(format!("'{from}' takes another one"));
        }
    }
    Ok("no other one leads there".to_owned())
}

fn show_plan(out: &mut Output, server: &ServerName, plan: &Plan, doubt: &Doubt) -> Result<(), Error> {
    let mut facts = Facts::default();
    let backup = &plan.backup;
    let ended = backup
        .end_time
        .map(|time| format!(", ended {}", output::second(time)));
    facts.add(
        "From backup",
        format!("{}{}", backup.id, ended.unwrap_or_default()),
    );
    facts.add("Along", along(plan));
    let count = output::count(plan.segments, "segment");
    let receiving = if plan.ends_in_partial {
        ", part of it still being received"
    } else {
        ""
    };
    facts.add(
        "WAL to replay",
        format!(
            "{count}, {} to {} ({}{receiving})",
            plan.first_segment,
            plan.last_segment,
            output::bytes(plan.wal_bytes)
        ),
    );
    facts.add_some("Moment", plan.time.map(|time| time.to_string()));
    facts.add_some(
        "Reaches at least",
        plan.reaches.map(|time| format!("the commit of {time}")),
    );
    for note in &plan.notes {
        facts.add("Note", note.clone());
    }
    facts.add("Under a mount", path_of(server, &plan.spec));
    let head = match (doubt.damaged, doubt.not_booted) {
        (true, _) => out.paint("can be recovered, but from a damaged backup", Style::Yellow),
        (false, true) => out.paint(
            "can be recovered, but from a backup with a failed boot test",
            Style::Yellow,
        ),
        (false, false) => out.paint("can be recovered", Style::Green),
    };
    out.line(format_args!("{} of server {server} {head}", plan.spec))?;
    out.bytes(facts.render().as_bytes())
}

/// `timeline 1 to 0/A000128, then timeline 2 to 0/B000000`
pub(super) fn along(plan: &Plan) -> String {
    let span = |span: &TimelineSpan| match span.to {
        Some(to) => format!("timeline {} to {to}", span.timeline),
        None => format!("timeline {}", span.timeline),
    };
    let mut text = plan.path.iter().map(span).collect::<Vec<_>>().join(", then ");
    if plan.path.last().is_none_or(|last| last.timeline != plan.timeline) {
        text.push_str(&format!(", on the way to timeline {}", plan.timeline));
    }
    text
}

pub(super) fn show_reason(
    out: &mut Output,
    server: &ServerName,
    spec: &TargetSpec,
    reason: &Unreachable,
    elsewhere: &[TimelineId],
) -> Result<(), Error> {
    let head = out.paint("cannot be recovered", Style::Red);
    out.line(format_args!("{spec} of server {server} {head}"))?;
    let mut facts = Facts::default();
    facts.add("Why", reason.to_string());
    facts.add_some("Nearest", reason.nearest());
    match elsewhere.last() {
        _ if matches!(reason, Unreachable::BadHistory { .. }) => facts.add_some("What to do", reason.hint()),
        Some(timeline) => facts.add(
            "Other timeline",
            format!("it can be reached along timeline {timeline}: add ,timeline={timeline}"),
        ),
        None => facts.add_some("What to do", reason.hint()),
    }
    out.bytes(facts.render().as_bytes())
}
