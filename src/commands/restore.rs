//! `barmanfs restore`: a data directory that recovers to a target, written without a mount.

mod annotated;
mod catching_up;
mod hooked;
mod on_disks;
mod origin;
mod request;
mod shown;
mod watch;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use barmanfs_catalog::recovery::Plan;
use barmanfs_catalog::{Backup, Repository, ServerName, TargetSpec};
use barmanfs_fs::views::{BarmanLayout, CopyOptions, StandbyOptions, ViewOptions};
use serde_json::json;

use super::App;
use super::explain;
use crate::cli::catchup::CatchupArgs;
use crate::cli::patroni::PatroniCommand;
use crate::cli::restore::RestoreArgs;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::forks;
use crate::invocation::Invocation;
use crate::mounts::user_name;
use crate::output::Form;
use crate::report::{CatchupDocument, RestoreReport};
use crate::restore::catch_up::{CatchUp, CaughtUp};
use crate::restore::configuration::ConfigurationTarget;
use crate::restore::remote::{self, RemotePlace, RemotePrepared, RemoteShell};
use crate::restore::{
    DESCRIPTION, Prepared, Ready, Relocations, ViewTree, WriteOptions, destination, rates, same_host,
    settings,
};
use request::AUTO;

/// Names that `--recovery-conf-filename` cannot have: PostgreSQL reads them as something else.
const NOT_FOR_RECOVERY: [&str; 5] = [
    "postgresql.conf",
    "pg_hba.conf",
    "pg_ident.conf",
    "pg_hosts.conf",
    "PG_VERSION",
];

/// Streams to another host, unless `-j` says how many.
const MOST_STREAMS: usize = 4;

/// What is restored.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) backup: Backup,
    /// How the copy recovers; a backup of a clone starts as it is.
    pub(super) plan: Option<Plan>,
    /// What there is to say about it.
    pub(super) notes: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &RestoreArgs) -> Result<Outcome, Error> {
    match &args.watch {
        Some(directory) => watch::run(app, directory, args.json.json),
        None => carry_out(app, args, None),
    }
}

/// Runs `catchup`: a restore onto a standby, whose own files stay.
pub(crate) fn catch_up(app: &mut App, args: &CatchupArgs) -> Result<Outcome, Error> {
    carry_out(app, &args.restore(), Some(args.force))
}

/// Runs `patroni`: a restore that Patroni asks for.
pub(crate) fn patroni(app: &mut App, command: &PatroniCommand) -> Result<Outcome, Error> {
    carry_out(app, &command.restore()?, None)
}

/// Restores. `catchup` is whether a catch-up is forced, if it is one.
fn carry_out(app: &mut App, args: &RestoreArgs, catchup: Option<bool>) -> Result<Outcome, Error> {
    refuse(args)?;
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.server)?;
    forks::log_open(&repository, &server)?;
    let Some(mut choice) = choose(app, args, &repository, &server)? else {
        return Ok(Outcome::Unreachable);
    };
    if let Some(snapshot) = choice.backup.snapshot.clone() {
        if catchup.is_some() {
            return Err(Error::failed(choice.backup.files_elsewhere().unwrap_or_default()));
        }
        return on_disks::run(app, args, &repository, &choice, &snapshot);
    }
    let command = match args.no_recovery {
        true => String::new(),
        false => restore_command(app, args, &choice)?,
    };
    let catch_up = match catchup {
        Some(is_forced) => Some(catching_up::order(
            &repository,
            args,
            &choice,
            &command,
            is_forced,
        )?),
        None => None,
    };
    let view = open_view(app, args, &repository, &choice, command)?;
    note_reader(&repository, args, &view, &mut choice);
    let notable = match catchup {
        // The settings of the directory stay, and are no copy's.
        Some(_) => Vec::new(),
        None => settings::notable(&view)?,
    };
    let config = app.config.server(server.as_str()).cloned();
    let options = write_options(app, args, config.as_ref());
    if !options.delta && !options.keep.is_empty() {
        return Err(Error::usage(
            "--keep names what --delta-restore leaves: without that, DEST is empty",
        ));
    }
    note_without_effect(args, &mut choice);
    note_primary(args, catchup.is_some(), &mut choice);
    if args.no_recovery {
        choice.notes.push(
            "It has no settings for a recovery, and archives as the server does: let the program that asked for it write \
             them before PostgreSQL is started"
                .to_owned(),
        );
    }
    let configuration = configuration_target(args, &repository, &choice.backup)?;
    let (ready, caught_up) = ready(args, &repository, view, catch_up, options)?;
    let directory = ready.directory().to_owned();
    choice.notes.extend_from_slice(ready.notes());
    let mut report = RestoreReport::new(&choice.backup, choice.plan.as_ref(), &ready);
    report.notes.clone_from(&choice.notes);
    report.standby = args.standby_mode;
    report.dry_run = args.dry_run;
    report.settings = notable;
    report.catchup = caught_up;
    report.estimate(&rates::known(&repository));
    report.configuration = configuration.as_ref().map(ConfigurationTarget::report);
    if !args.json.json {
        shown::plan(app, args, &choice, &report)?;
        app.out.flush()?;
    }
    let what = (&choice.backup, directory.as_path(), args);
    let restored = match args.dry_run {
        true => ready.dry_run()?,
        false => hooked::with_hooks(&repository, config.as_ref(), what, || {
            let restored = ready.run()?;
            if let Some(configuration) = &configuration {
                ready.write_configuration(&repository, configuration)?;
            }
            Ok(restored)
        })?,
    };
    report.take(&restored);
    if report.state == "vacant" && !report.remote && !args.dry_run && args.bwlimit.is_none() {
        rates::keep_copy(&repository, restored.written_bytes, restored.elapsed);
    }
    match (args.json.json, &report.catchup) {
        (false, _) => shown::result(app, &report, &restored)?,
        (true, None) => app.out.json(&report)?,
        (true, Some(catchup)) => app.out.json(&CatchupDocument {
            restore: &report,
            catchup,
        })?,
    }
    Ok(Outcome::Done)
}

fn write_options(app: &App, args: &RestoreArgs, config: Option<&ServerConfig>) -> WriteOptions {
    WriteOptions {
        jobs: jobs(args, config.and_then(|config| config.parallel_jobs)),
        bandwidth_limit: args.bwlimit.or_else(|| configured_limit(config)),
        delta: args.delta_restore || config.is_some_and(|config| config.delta_restore),
        keep: args.keep.clone(),
        own: None,
        like: None,
        quiet: app.options.quiet,
    }
}

/// Checks the destination, and what a standby is that is to be caught up. Nothing is written.
fn ready(
    args: &RestoreArgs,
    repository: &Repository,
    view: ViewTree,
    catch_up: Option<CatchUp>,
    mut options: WriteOptions,
) -> Result<(Ready, Option<CaughtUp>), Error> {
    let directory = resolved(args, &args.destination)?;
    let asked = Relocations::of_backup(&view.backup, &args.tablespace, args.tablespace_layout)?;
    let asked = asked.with_wal(args.waldir.as_deref())?;
    let Some(command) = &args.remote_ssh_command else {
        let examined = match &catch_up {
            Some(catch_up) => Some(catch_up.examine(&directory, &view.backup)?),
            None => None,
        };
        let (relocations, found, notes) = match examined {
            Some(examined) => {
                options.own = Some(examined.own);
                (examined.relocations, Some(examined.found), examined.notes)
            }
            None => (asked, None, Vec::new()),
        };
        let mut prepared = Prepared::new(repository, view, directory, relocations, options)?;
        prepared.add_notes(notes);
        return Ok((Ready::Here(Box::new(prepared)), found));
    };
    let place = RemotePlace {
        shell: RemoteShell::new(command)?,
        directory,
        configuration: args.restore_config.clone(),
        fetches_wal: !(args.is_self_contained() || args.no_recovery) && args.restore_command.is_none(),
        catch_up,
    };
    let prepared = RemotePrepared::new(repository, view, place, &asked, options)?;
    let found = prepared.caught_up().cloned();
    Ok((Ready::There(Box::new(prepared)), found))
}

/// An absolute path of the host that is restored to. Links are followed here only.
fn resolved(args: &RestoreArgs, path: &Path) -> Result<PathBuf, Error> {
    match args.remote_ssh_command {
        Some(_) => remote::checked(path).map(|()| path.to_owned()),
        None => destination::resolved(path),
    }
}

/// Debian's tools look for the socket where the configuration says it is, and know no relative path.
fn socket_directory(args: &RestoreArgs) -> Result<Option<String>, Error> {
    if args.restore_config.is_none() {
        return Ok(None);
    }
    let directory = resolved(args, &args.destination)?;
    Ok(directory.to_str().map(str::to_owned))
}

/// Where the configuration files go that the server kept outside its data directory.
fn configuration_target(
    args: &RestoreArgs,
    repository: &Repository,
    backup: &Backup,
) -> Result<Option<ConfigurationTarget>, Error> {
    let Some(directory) = &args.restore_config else {
        return Ok(None);
    };
    let is_here = args.remote_ssh_command.is_none();
    ConfigurationTarget::new(repository, backup, resolved(args, directory)?, is_here).map(Some)
}

/// Refuses what does not exist here, before anything is looked at.
fn refuse(args: &RestoreArgs) -> Result<(), Error> {
    if let Some(option) = args.of_barman.unsupported().first() {
        return Err(Error::usage(format!(
            "{option} is not supported: backups are in the repository"
        )));
    }
    if args.destination.as_os_str().as_bytes().contains(&b':') {
        return Err(Error::usage(format!(
            "{} has a colon: it is a path, not a place of rsync",
            args.destination.display()
        )));
    }
    let Some(name) = &args.recovery_conf_filename else {
        return Ok(());
    };
    let is_name =
        !name.is_empty() && !name.contains('/') && !name.starts_with('.') && !name.ends_with(".signal");
    match is_name && !NOT_FOR_RECOVERY.contains(&name.as_str()) {
        true => Ok(()),
        false => Err(Error::usage(format!(
            "'{name}' cannot be the file with the settings of the recovery: name a new file in DEST"
        ))),
    }
}

/// Finds the backup and the way to the target; `None` if PostgreSQL would not get there, which has been printed.
fn choose(
    app: &mut App,
    args: &RestoreArgs,
    repository: &Repository,
    server: &ServerName,
) -> Result<Option<Choice>, Error> {
    let action = request::usual_action(app.config.recovery_target_action, app.config.is_barmans);
    let mut spec = args.target.spec(args.is_self_contained())?.or_action(action);
    if !args.annotation.is_empty() {
        spec.backup = Some(annotated::find(app, args, repository, server, &spec)?);
    } else if args.backup != AUTO {
        let backup = app.backup(repository, server, &args.backup)?;
        if !backup.is_of_server() {
            return of_a_clone(args, backup).map(Some);
        }
        spec.backup = Some(backup.id);
    }
    request::refuse_current(&spec, spec.backup)?;
    match repository.plan(server, &spec)? {
        Ok(mut plan) => {
            explain::doubt(repository, server, &spec, &mut plan)?;
            if args.same_timeline {
                origin::note_timeline(&mut plan)?;
            }
            Ok(Some(Choice {
                backup: plan.backup.clone(),
                notes: plan.notes.clone(),
                plan: Some(plan),
            }))
        }
        Err(reason) if args.json.json || app.options.quiet || app.out.form() == Form::BarmanJson => {
            let error = Error::failed(format!("{spec} of server {server} cannot be recovered: {reason}"));
            let hints: Vec<String> = [reason.nearest(), reason.hint()].into_iter().flatten().collect();
            Err(match hints.is_empty() {
                true => error,
                false => error.hint(hints.join("; ")),
            })
        }
        Err(reason) => {
            let elsewhere = repository.reachable_along(server, &spec)?;
            explain::show_reason(&mut app.out, server, &spec, &reason, &elsewhere)?;
            if let Some(timeline) = elsewhere.last() {
                app.out.line(format_args!(
                    "Here that is --target-tli {timeline}. Nothing was written"
                ))?;
            }
            Ok(None)
        }
    }
}

/// A backup that was made of a clone has its WAL in it, and starts as it is.
fn of_a_clone(args: &RestoreArgs, backup: Backup) -> Result<Choice, Error> {
    let default = crate::cli::restore::TargetArgs::default().spec(false)?;
    if args.target.spec(false)? != default
        || args.same_timeline
        || args.barman_layout
        || args.standby_mode
        || args.recovery_conf_filename.is_some()
    {
        return Err(Error::usage(format!(
            "Backup {} was made of a clone: it starts as it is, and cannot be recovered further",
            backup.id
        )));
    }
    if !backup.is_complete() {
        return Err(Error::failed(format!(
            "Backup {} is {}",
            backup.id, backup.status
        )));
    }
    Ok(Choice {
        backup,
        plan: None,
        notes: Vec::new(),
    })
}

fn open_view(
    app: &App,
    args: &RestoreArgs,
    repository: &Repository,
    choice: &Choice,
    restore_command: String,
) -> Result<ViewTree, Error> {
    let Choice { backup, plan, .. } = choice;
    let spec = plan.as_ref().map(|plan| TargetSpec {
        backup: Some(backup.id),
        ..plan.spec.clone()
    });
    let name = args.recovery_conf_filename.as_ref();
    if let Some(name) = name
        && let Some(root) = &backup.root
        && repository
            .trees()
            .lookup(&root.directory, name.as_bytes())?
            .is_some()
    {
        return Err(Error::usage(format!(
            "Backup {} has a file '{name}' already: name another file for the settings of the recovery",
            backup.id
        )));
    }
    let (server, id) = (backup.server.to_string(), backup.id.to_string());
    if args.no_recovery {
        let options = ViewOptions {
            servers: Some(vec![backup.server.clone()]),
            ..ViewOptions::default()
        };
        return ViewTree::open(repository, backup.clone(), options, &[&server, "raw", &id]);
    }
    let mut files = vec![(DESCRIPTION.to_owned(), description(args, choice)?)];
    if args.keep_origin || args.barman_layout {
        files.extend(origin::files(repository, backup)?);
    }
    if args.barman_layout {
        files.push(origin::barmans_description(repository, backup)?);
    }
    let action = request::usual_action(app.config.recovery_target_action, app.config.is_barmans);
    let options = ViewOptions {
        servers: Some(vec![backup.server.clone()]),
        recovery_target_action: action,
        copy: Some(CopyOptions {
            restore_command,
            standby: args.standby_mode.then(|| StandbyOptions {
                primary_conninfo: args.primary_conninfo.clone(),
            }),
            recovery_file: name.cloned(),
            socket_directory: socket_directory(args)?,
            same_timeline: args.same_timeline,
            barman_layout: args.barman_layout.then(|| BarmanLayout {
                wal_apart: args.has_wal_apart(),
            }),
            files,
        }),
        ..ViewOptions::default()
    };
    let target = spec.map(|spec| spec.to_string());
    let names = match &target {
        Some(target) => vec![server.as_str(), "pitr", target],
        None => vec![server.as_str(), &id],
    };
    ViewTree::open(repository, backup.clone(), options, &names)
}

/// How the copy gets its WAL; nothing for a backup that starts as it is.
fn restore_command(app: &App, args: &RestoreArgs, choice: &Choice) -> Result<String, Error> {
    match &choice.plan {
        Some(plan) if args.remote_ssh_command.is_some() => {
            let config = app.config.server(choice.backup.server.as_str());
            let archive = request::Archive {
                configured: config.and_then(|config| config.recovery_host.as_deref()),
                user: app.config.barman_user.as_deref(),
                config: app.options.config.as_deref(),
            };
            request::remote_restore_command(&archive, args, &plan.spec)
        }
        Some(plan) => {
            request::restore_command(&Invocation::current(Some(&app.config.file)), args, &plan.spec)
        }
        None => Ok(String::new()),
    }
}

/// What the directory says about itself.
fn description(args: &RestoreArgs, choice: &Choice) -> Result<Vec<u8>, Error> {
    let Choice { backup, plan, .. } = choice;
    let text = json!({
        "server": backup.server,
        "backup": backup.id,
        "system_id": backup.system_id,
        "target": plan.as_ref().map(|plan| plan.spec.to_string()),
        "timeline": plan.as_ref().map(|plan| plan.timeline),
        "time": plan.as_ref().and_then(|plan| plan.time),
        "first_segment": plan.as_ref().map(|plan| plan.first_segment),
        "last_segment": plan.as_ref().map(|plan| plan.last_segment),
        "standby": args.standby_mode,
        "get_wal": !args.is_self_contained(),
        "started_at": crate::moment::now(),
        "user": rustix::process::geteuid().as_raw(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    let text = barmanfs_catalog::json::document(&text)
        .map_err(|error| Error::failed(format!("Cannot describe the restore: {error}")))?;
    Ok(format!("{text:#}\n").into_bytes())
}

/// The server that is started runs its restore_command as the owner of the data.
fn note_reader(repository: &Repository, args: &RestoreArgs, view: &ViewTree, choice: &mut Choice) {
    let is_fetching = !args.is_self_contained() && args.restore_command.is_none() && choice.plan.is_some();
    if !is_fetching || args.remote_ssh_command.is_some() {
        return;
    }
    let own = rustix::process::geteuid();
    let reader = if own.is_root() { view.owner() } else { own.as_raw() };
    let owner = std::fs::metadata(repository.path()).map(|found| found.uid());
    if owner.is_ok_and(|owner| owner != reader && reader != 0) {
        choice.notes.push(format!(
            "The copy fetches WAL as {}, to whom the repository does not belong: if that user cannot read it, add --no-get-wal",
            user_name(reader)
        ));
    }
}

/// A standby beside its primary can damage it. What is caught up is looked at in its own directory.
fn note_primary(args: &RestoreArgs, is_caught_up: bool, choice: &mut Choice) {
    let primary = args.primary_conninfo.as_ref();
    if let Some(primary) = primary.filter(|_| args.standby_mode && !is_caught_up) {
        let is_here = args.remote_ssh_command.is_none();
        choice.notes.extend(same_host::note(primary, is_here));
    }
}

/// Options that nothing in the copy would use.
fn note_without_effect(args: &RestoreArgs, choice: &mut Choice) {
    let reason = match (args.is_self_contained(), &choice.plan, &args.restore_command) {
        (true, _, _) => "all WAL is in the copy",
        (false, None, _) => "the backup starts as it is",
        (false, Some(_), Some(_)) => "the copy has a restore_command of its own",
        (false, Some(_), None) => return,
    };
    let is_own_used = !args.is_self_contained() && choice.plan.is_some();
    let unused = [
        (
            args.restore_command.is_some() && !is_own_used,
            "--restore-command",
        ),
        (args.recovery_option_port.is_some(), "--recovery-option-port"),
    ];
    for (_, name) in unused.into_iter().filter(|(is_unused, _)| *is_unused) {
        choice.notes.push(format!("{name} is without effect: {reason}"));
    }
}

fn configured_limit(config: Option<&ServerConfig>) -> Option<u64> {
    let kilobytes = config.and_then(|config| config.bandwidth_limit_kb);
    kilobytes
        .filter(|limit| *limit > 0)
        .map(|limit| u64::from(limit) * 1024)
}

fn jobs(args: &RestoreArgs, configured: Option<usize>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // sshd refuses some of many connections that come at once.
    let cores = || match args.remote_ssh_command {
        Some(_) => cores().min(MOST_STREAMS),
        None => cores(),
    };
    args.jobs.map(usize::from).or(configured).unwrap_or_else(cores)
}
