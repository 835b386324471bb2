//! What a restore says to people: what it will do, and what it has done.

use std::time::Duration;

use barmanfs_catalog::Target;

use super::Choice;
use crate::cli::restore::RestoreArgs;
use crate::commands::App;
use crate::commands::explain::along;
use crate::commands::show_backup::Facts;
use crate::error::Error;
use crate::output;
use crate::report::RestoreReport;
use crate::restore::Restored;
use crate::restore::catch_up::CaughtUp;
use crate::restore::settings::NotableSetting;

/// Programs that call Barman look for this line.
const BARMANS_LAST_LINE: &str = "Your PostgreSQL server has been successfully prepared for recovery!";

/// How many configuration files a person is shown.
const MAX_OWN_SHOWN: usize = 8;

/// How many removed entries a person is shown.
const MAX_SHOWN: usize = 200;

/// What the command will do.
pub(super) fn plan(
    app: &mut App,
    args: &RestoreArgs,
    choice: &Choice,
    report: &RestoreReport<'_>,
) -> Result<(), Error> {
    let without_effect = args.of_barman.without_effect();
    if !without_effect.is_empty() {
        app.out
            .line(format_args!("Without effect: {}", without_effect.join(", ")))?;
    }
    let staging = args.of_barman.staging();
    if !staging.is_empty() {
        app.out.line(format_args!(
            "Nothing is staged, every backup is a full one: {} without effect",
            staging.join(", ")
        ))?;
    }
    if app.options.quiet {
        return Ok(());
    }
    if app.options.format.is_some() {
        app.out.line(format_args!(
            "Starting {} restore for server {} using backup {}",
            if report.remote { "remote" } else { "local" },
            choice.backup.server,
            choice.backup.id
        ))?;
        return app
            .out
            .line(format_args!("Destination directory: {}", report.directory));
    }
    let what = match report.catchup {
        Some(_) => "Catch-up with server",
        None => "Restore of server",
    };
    app.out.line(format_args!(
        "{what} {} to {}{}",
        choice.backup.server,
        report.directory,
        if report.remote { " on another host" } else { "" }
    ))?;
    app.out.bytes(facts(args, choice, report).render().as_bytes())
}

fn facts(args: &RestoreArgs, choice: &Choice, report: &RestoreReport<'_>) -> Facts {
    let mut facts = Facts::default();
    let ended = choice.backup.end_time;
    let ended = ended.map(|time| format!(", ended {}", output::second(time)));
    facts.add(
        "From backup",
        format!("{}{}", choice.backup.id, ended.unwrap_or_default()),
    );
    if let Some(plan) = &choice.plan {
        let meaning = match plan.spec.target {
            Target::Now => ", all WAL there is",
            Target::Immediate => ", the end of the backup",
            _ => "",
        };
        facts.add("Target", format!("{}{meaning}", plan.spec));
        facts.add_some("Moment", plan.time.map(|time| time.to_string()));
        facts.add("Along", along(plan));
        let count = output::count(plan.segments, "segment");
        let from = match args.is_self_contained() {
            true => "in the copy",
            false => "fetched when it is started",
        };
        facts.add(
            "WAL to replay",
            format!("{count}, {}, {from}", output::bytes(plan.wal_bytes)),
        );
    }
    let files = output::count(report.files, "file");
    facts.add("To write", format!("{files}, {}", output::bytes(report.bytes)));
    facts.add("Expected time", expected(choice, report));
    match report.state {
        "incomplete" => facts.add(
            "Continues",
            "an incomplete restore: what is there is compared".to_owned(),
        ),
        "older" => facts.add(
            "Updates",
            "what is there: all of it is compared, and only differences are written".to_owned(),
        ),
        _ => {}
    }
    if let Some(catchup) = &report.catchup {
        of_the_directory(&mut facts, catchup);
    }
    for tablespace in &report.tablespaces {
        facts.add(
            "Tablespace",
            format!("{} at {}", tablespace.oid, tablespace.location),
        );
    }
    facts.add_some("WAL directory", report.wal_directory.clone());
    if let Some(configuration) = &report.configuration {
        let files = output::count(configuration.files.len(), "file");
        facts.add("Configuration", format!("{files} in {}", configuration.directory));
        for path in &configuration.left_out {
            facts.add("Not restored", output::printable(path.as_bytes()));
        }
    }
    for note in &report.notes {
        facts.add("Note", note.clone());
    }
    facts
}

/// What a directory was that is caught up, what is lost, and what stays.
fn of_the_directory(facts: &mut Facts, catchup: &CaughtUp) {
    if let Some(previous) = &catchup.previous {
        let role = match (previous.was_started, previous.was_primary) {
            (false, _) => "copy that was not started yet,",
            (true, true) => "primary",
            (true, false) => "standby",
        };
        facts.add(
            "Was",
            format!(
                "a {role} on timeline {}, last checkpoint at {}",
                previous.timeline, previous.checkpoint_lsn
            ),
        );
        let lost = previous.lost.as_ref().map(|lost| {
            let commits = output::count(lost.commits, "commit");
            format!(
                "its WAL of timeline {} from {} to {}, with {commits}: the server went on without it",
                lost.timeline, lost.from_lsn, lost.to_lsn
            )
        });
        facts.add(
            "Is lost",
            lost.unwrap_or_else(|| "nothing: it has no WAL of its own".to_owned()),
        );
    }
    let files = output::count(catchup.own_files.len(), "configuration file");
    let named = catchup
        .own_files
        .iter()
        .take(MAX_OWN_SHOWN)
        .cloned()
        .collect::<Vec<_>>();
    let more = if catchup.own_files.len() > MAX_OWN_SHOWN {
        ", ..."
    } else {
        ""
    };
    facts.add("Stays", format!("{files}: {}{more}", named.join(", ")));
}

/// The estimated time of the copy and of the replay.
fn expected(choice: &Choice, report: &RestoreReport<'_>) -> String {
    let time = |seconds: f64| output::duration(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    let copy = report.expected_copy_seconds.map_or_else(
        || "unknown before the first restore on this host".to_owned(),
        |seconds| format!("about {}", time(seconds)),
    );
    let copy = match report.remote {
        true => "unknown over the network".to_owned(),
        false => copy,
    };
    let replay = match (&choice.plan, report.expected_replay_seconds) {
        (None, _) => String::new(),
        (Some(_), Some(seconds)) => format!("; for replay {}", time(seconds)),
        (Some(_), None) => "; for replay unknown, 'restore --watch' measures it".to_owned(),
    };
    format!("{copy}{replay}")
}

/// What the command has done.
pub(super) fn result(app: &mut App, report: &RestoreReport<'_>, restored: &Restored) -> Result<(), Error> {
    let is_barmans = app.options.format.is_some();
    if report.dry_run || !report.removed.is_empty() {
        removed(app, report)?;
    }
    if report.dry_run {
        return app.out.line(format_args!(
            "Nothing was written: {} of {} would be",
            output::bytes(restored.written_bytes),
            output::bytes(restored.bytes)
        ));
    }
    if !app.options.quiet {
        notable(app, &report.settings)?;
    }
    if is_barmans {
        app.out.line(format_args!(
            "Restore operation completed (elapsed time: {})",
            output::duration(restored.elapsed)
        ))?;
        return app.out.line(BARMANS_LAST_LINE);
    }
    let millis = u64::try_from(restored.elapsed.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    let rate = output::bytes(restored.bytes.saturating_mul(1000) / millis);
    let written = format!(
        "{} of {} written, in {} ({rate}/s)",
        output::bytes(restored.written_bytes),
        output::bytes(restored.bytes),
        output::duration(restored.elapsed),
    );
    let (directory, backup) = (&report.directory, report.backup);
    match report.catchup {
        Some(_) => app.out.line(format_args!(
            "{directory} is as backup {backup} now: {written}. Started, it replays WAL and follows its primary"
        )),
        None => app
            .out
            .line(format_args!("Restored backup {backup} to {directory}: {written}")),
    }
}

fn removed(app: &mut App, report: &RestoreReport<'_>) -> Result<(), Error> {
    let what = match report.dry_run {
        true => "would be removed or replaced",
        false => "removed or replaced",
    };
    app.out.line(format_args!(
        "{} {what}",
        output::count(report.removed.len(), "entry").replace("entrys", "entries")
    ))?;
    for path in report.removed.iter().take(MAX_SHOWN) {
        app.out.line(format_args!("  {path}"))?;
    }
    match report.removed.len() > MAX_SHOWN {
        true => app.out.line("  ..., see --json"),
        false => Ok(()),
    }
}

fn notable(app: &mut App, settings: &[NotableSetting]) -> Result<(), Error> {
    if settings.is_empty() {
        return Ok(());
    }
    app.out
        .line("Settings to look at before it takes over production:")?;
    for setting in settings {
        let value = setting.value.as_deref().unwrap_or("(not shown)");
        let overridden = match setting.overridden {
            true => ", without effect as long as postgresql.auto.conf has barmanfs's block",
            false => "",
        };
        app.out.line(format_args!(
            "  {} line {}: {} = {value}{overridden}",
            setting.file, setting.line, setting.name
        ))?;
    }
    Ok(())
}
