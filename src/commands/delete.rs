//! `barmanfs delete`.

mod choice;
mod guard;
mod remains;

use std::time::SystemTime;

use barmanfs_catalog::{Backup, BackupId, CloneName, Repository, ServerName};

use super::App;
use crate::barman;
use crate::cli::upkeep::DeleteArgs;
use crate::error::{Error, Outcome};
use crate::health::Doubts;
use crate::hooks::{Hook, Hooks, NEVER_STOPPED, storage};
use crate::moment;
use crate::output::{self, Output};
use crate::report::Deletion;
use choice::{Place, Rule};

/// Runs the command. All names are resolved first, so a misspelt name deletes nothing. If one of the backups must not
/// be deleted, none is. Two concurrent commands decide one after the other, so that the second one sees the result of
/// the first.
pub(crate) fn run(app: &mut App, args: &DeleteArgs) -> Result<Outcome, Error> {
    let repository = match args.dry_run {
        true => app.repository()?,
        false => app.repository_for_writing()?,
    };
    let server = app.known_server(&repository, &args.server)?;
    if let Some(configured) = app.config.server(server.as_str()) {
        // The minimum that somebody meant may be the value that is wrong.
        configured.refuse_disabled()?;
    }
    app.config.refuse_deletions(&server)?;
    let configured = app.config.server(server.as_str()).cloned();
    let hooks = configured
        .as_ref()
        .map(|configured| Hooks::of(configured, &repository, NEVER_STOPPED));
    let hooks = hooks.filter(|hooks| hooks.has(Hook::Delete) && !args.dry_run);
    let approved = match &hooks {
        Some(hooks) => Some(approved(app, (&repository, &server), hooks, args)?),
        None => None,
    };
    let alone = match args.dry_run {
        true => None,
        false => Some(repository.deleting(&server)?),
    };
    let backups = match approved {
        Some(approved) => approved,
        None => asked(app, &repository, &server, args)?,
    };
    let (plan, refusal) = plan(app, &repository, &server, &backups, args)?;
    if args.dry_run {
        return dry_run(app, args, &backups, plan, refusal);
    }
    if let Some(error) = refusal {
        return Err(error);
    }
    if backups.is_empty() && !args.json.json {
        app.out.line("No backup to delete")?;
        return Ok(Outcome::Done);
    }
    let began = SystemTime::now().into();
    let mut deleted = Vec::new();
    let done = backups.iter().try_for_each(|backup| {
        let force = (args.force, NEVER_STOPPED);
        storage::delete(&repository, configured.as_ref(), backup, force)
            .map_err(|error| after(&deleted, error))?;
        if let Err(error) = repository.delete_backup(backup, args.force) {
            return Err(after(&deleted, error.into()));
        }
        deleted.push(backup);
        say_deleted(app, args, backup)
    });
    drop(alone);
    if let Some(hooks) = &hooks {
        deleted
            .iter()
            .for_each(|backup| hooks.after_backup(Hook::Delete, backup));
    }
    done?;
    if args.json.json {
        app.out.json(&plan)?;
    } else if app.options.format.is_some() {
        barman::backups::deleted(&mut app.out, &backups, began)?;
    } else if !app.options.quiet {
        show(&mut app.out, &plan)?;
        app.out
            .line("'barmanfs sweep' frees the space that nothing else uses")?;
    }
    Ok(Outcome::Done)
}

/// The backups that may be deleted, after the scripts that run before that. Nobody waits for a lock meanwhile.
fn approved(
    app: &App,
    (repository, server): (&Repository, &ServerName),
    hooks: &Hooks<'_>,
    args: &DeleteArgs,
) -> Result<Vec<Backup>, Error> {
    let backups = asked(app, repository, server, args)?;
    if let (_, Some(error)) = plan(app, repository, server, &backups, args)? {
        return Err(error);
    }
    for backup in &backups {
        hooks.before_backup(Hook::Delete, backup, backup.status.as_str())?;
    }
    Ok(backups)
}

/// The error of a deletion behind others: a program that reads only the error must know of these.
fn after(deleted: &[&Backup], error: Error) -> Error {
    let ids: Vec<String> = deleted.iter().map(|backup| backup.id.to_string()).collect();
    match ids.is_empty() {
        true => error,
        false => error.context(format_args!("After backup {} was deleted", ids.join(", "))),
    }
}

fn say_deleted(app: &mut App, args: &DeleteArgs, backup: &Backup) -> Result<(), Error> {
    if args.json.json || app.options.quiet || app.options.format.is_some() {
        return Ok(());
    }
    app.out.line(format_args!(
        "Deleted backup {} of server {}",
        backup.id, backup.server
    ))
}

/// The backups that the command line names, or a rule in it.
fn asked(
    app: &App,
    repository: &Repository,
    server: &ServerName,
    args: &DeleteArgs,
) -> Result<Vec<Backup>, Error> {
    let place = |text: &Option<String>| {
        let place = text.as_ref().map(|text| place_of(app, repository, server, text));
        place.transpose()
    };
    let rule = match (args.retain.as_slice(), place(&args.before)?) {
        ([], None) if !args.all => {
            let names: Vec<String> = args.backups.iter().chain(&args.target).cloned().collect();
            return named(app, repository, server, &names);
        }
        ([], None) => Rule::All,
        ([], Some(place)) => Rule::Before(place),
        (words, _) => Rule::Retain {
            count: retained(words)?,
            after: place(&args.after)?,
        },
    };
    let all = repository.backups(server)?;
    let kept = repository.keeps(&all, moment::now())?.into_keys().collect();
    let doubts = Doubts::find(repository, &all)?;
    let is_doubtful = |id| doubts.concern(id);
    Ok(choice::chosen(rule, &all, &kept, is_doubtful, moment::now()))
}

/// The number of backups to retain, behind a word that makes no difference.
fn retained(words: &[String]) -> Result<usize, Error> {
    let number = match words {
        [number] => number,
        [word, number] if matches!(word.as_str(), "FULL" | "FIND_FULL") => number,
        _ => {
            return Err(Error::usage(
                "--retain takes a number of backups, like --retain 7",
            ));
        }
    };
    match number.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(Error::usage(format!(
            "--retain {number} is no number of backups; for none, use --all"
        ))),
    }
}

/// The place of a backup, or of a time.
fn place_of(app: &App, repository: &Repository, server: &ServerName, text: &str) -> Result<Place, Error> {
    let backup = || {
        app.backup(repository, server, text)
            .map(|backup| Place::Backup(backup.id))
    };
    match text.parse::<BackupId>() {
        Ok(_) => backup(),
        Err(_) => moment::parse(repository, server, text)
            .map(Place::Time)
            .or_else(|_| backup()),
    }
}

fn named(
    app: &App,
    repository: &Repository,
    server: &ServerName,
    names: &[String],
) -> Result<Vec<Backup>, Error> {
    let mut backups: Vec<Backup> = Vec::new();
    for name in names {
        let backup = app.backup(repository, server, name)?;
        if backups.iter().all(|known| known.id != backup.id) {
            backups.push(backup);
        }
    }
    Ok(backups)
}

/// The effect of deleting these backups, and the reason if it is refused.
fn plan(
    app: &App,
    repository: &Repository,
    server: &ServerName,
    backups: &[Backup],
    args: &DeleteArgs,
) -> Result<(Deletion, Option<Error>), Error> {
    let all = repository.backups(server)?;
    let doubts = Doubts::find(repository, &all)?;
    let left: Vec<&Backup> = all
        .iter()
        .filter(|backup| backups.iter().all(|gone| gone.id != backup.id))
        .collect();
    let every: Vec<&Backup> = all.iter().collect();
    let before = remains::find(repository, server, &every, &doubts)?;
    let after = remains::find(repository, server, &left, &doubts)?;
    let last = remains::newest_reliable(&every, &doubts);
    let takes_the_newest = last.is_some_and(|last| backups.iter().any(|gone| gone.id == last.id));
    let on_its_timeline = match last.and_then(|last| last.timeline).filter(|_| takes_the_newest) {
        Some(timeline) => (
            remains::along(repository, server, &every, &doubts, timeline)?,
            remains::along(repository, server, &left, &doubts, timeline)?,
        ),
        None => (None, None),
    };
    let mut clones = Vec::new();
    for backup in backups {
        clones.extend(repository.clones_of(backup)?);
    }
    let minimum = app
        .config
        .server(server.as_str())
        .map_or(0, |server| server.minimum_redundancy);
    let asked = guard::Asked {
        server: server.as_str(),
        backups,
        left: &left,
        doubts: &doubts,
        before: &before,
        after: &after,
        on_its_timeline: &on_its_timeline,
        takes_the_newest,
        clones: &clones,
        minimum,
        force: args.force,
    };
    let mut refusal = guard::refusal(&asked);
    for backup in backups {
        if refusal.is_none() {
            refusal = repository
                .refuse_deletion(backup, args.force)
                .err()
                .map(Error::from);
        }
    }
    let deletion = Deletion {
        server: server.to_string(),
        dry_run: args.dry_run,
        deleted: backups.iter().map(|backup| backup.id).collect(),
        before,
        after,
        unneeded_wal: repository.wal_without_use(server, &left)?,
        clones,
        refused: None,
    };
    Ok((deletion, refusal))
}

fn dry_run(
    app: &mut App,
    args: &DeleteArgs,
    backups: &[Backup],
    mut plan: Deletion,
    refusal: Option<Error>,
) -> Result<Outcome, Error> {
    if args.json.json {
        plan.refused = refusal.as_ref().map(ToString::to_string);
        app.out.json(&plan)?;
    } else {
        for backup in backups {
            app.out.line(format_args!(
                "Would delete backup {} of server {}: {}, {}; it added {} when it was taken, and what others share of \
                 that stays",
                backup.id,
                plan.server,
                backup.status.as_str(),
                output::bytes(backup.logical_bytes),
                output::bytes(backup.new_stored_bytes)
            ))?;
        }
        show(&mut app.out, &plan)?;
    }
    match refusal {
        // The JSON already contains the reason.
        Some(_) if args.json.json => Ok(Outcome::Told(crate::error::exit::FAILED)),
        Some(error) => Err(error),
        None => Ok(Outcome::Done),
    }
}

/// Prints what can still be recovered, and what no longer can.
fn show(out: &mut Output, plan: &Deletion) -> Result<(), Error> {
    if !plan.clones.is_empty() {
        let names: Vec<&str> = plan.clones.iter().map(CloneName::as_str).collect();
        out.line(format_args!(
            "Clones that keep what they need: {}",
            names.join(", ")
        ))?;
    }
    let wal: u64 = plan.unneeded_wal.iter().map(|wal| wal.totals.files).sum();
    if wal > 0 {
        let bytes = plan.unneeded_wal.iter().map(|wal| wal.totals.logical_bytes).sum();
        out.line(format_args!(
            "WAL that no backup needs then: {}, {}",
            output::count(wal, "file"),
            output::bytes(bytes)
        ))?;
    }
    let doubtful = plan.after.doubtful;
    if plan.after.done == 0 && doubtful == 0 {
        return out.line("Nothing can be recovered: no complete backup is left");
    }
    let others = match doubtful {
        0 => String::new(),
        _ => format!(", and {doubtful} damaged or with a failed boot test"),
    };
    out.line(format_args!(
        "Left: {} to recover from{others}",
        output::count(plan.after.done, "complete backup")
    ))?;
    let places = [
        (
            "Earliest to recover:",
            &plan.before.earliest,
            &plan.after.earliest,
        ),
        ("Newest to recover:  ", &plan.before.newest, &plan.after.newest),
    ];
    for (title, before, after) in places {
        let now = remains::shown(after.as_ref());
        let was = match before == after {
            true => String::new(),
            false => format!(" (was {})", remains::shown(before.as_ref())),
        };
        out.line(format_args!("{title} {now}{was}"))?;
    }
    Ok(())
}
