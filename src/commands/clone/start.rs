//! `barmanfs clone start` and `barmanfs clone stop`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use barmanfs_catalog::{CloneDescription, CloneName, Repository, ServerName, Target, TargetSpec};
use barmanfs_fs::FoundMount;
use barmanfs_pg::wal_name::SegmentName;
use nix::errno::Errno;
use nix::unistd::Uid;

use super::create::quoted;
use crate::cli::clone::{ServerOptions, StartArgs, StopArgs};
use crate::commands::App;
use crate::error::{Error, Outcome};
use crate::instance::{Instance, LOG, Replayed, Running, StartOptions, Stop, sockets};
use crate::mounts::{CloneServer, Mounts, known_user, user_name};
use crate::progress::{Counted, Progress};
use crate::restore::replay_progress::ReplayProgress;
use crate::restore::watch::Watched;

/// Runs `clone start`.
pub(super) fn run(app: &mut App, args: &StartArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.which.server)?;
    let name = &args.which.name;
    let clone = repository.clone_named(&server, name).map_err(|error| {
        Error::from(error).hint(format!("'barmanfs clone list {server}' shows those there are"))
    })?;
    let mounts = Mounts::of(&repository)?;
    start(
        app,
        &mounts,
        &clone,
        &args.server,
        args.mount.mount_point.as_deref(),
    )?;
    Ok(Outcome::Done)
}

/// Starts PostgreSQL on a clone, and prints how to connect to it.
pub(super) fn start(
    app: &mut App,
    mounts: &Mounts<'_>,
    clone: &CloneDescription,
    options: &ServerOptions,
    mount_point: Option<&Path>,
) -> Result<(), Error> {
    let CloneDescription { id, server, name, .. } = clone;
    let (mount, path) = mounts.place_of(server, name, mount_point)?;
    refuse_closed(mount, &path)?;
    let instance = instance(app, server, &path, options.bindir.as_deref())?;
    let share = options.share.as_deref();
    let start = StartOptions {
        port: options.port,
        socket_directory: sockets::place(&path, &id.to_string(), instance.owner(), share)?,
        share: share.is_some(),
        listen: options.listen.clone().unwrap_or_default(),
        settings: options.settings.clone(),
        log: path.join(LOG),
        timeout: Duration::from_secs(options.wait_timeout),
    };
    let shown = format!("Starting PostgreSQL {} on {server}/live/{name}", instance.major());
    let progress = Progress::start(shown, Counted::Time, app.options.quiet);
    let running = instance.start(&start);
    if !matches!(running, Ok(Some(_))) {
        sockets::remove(&id.to_string());
    }
    let running = running?;
    drop(progress);
    let replayed = match options.replay {
        true => Some(wait_for_recovery(app, &instance, clone, options)?),
        false => None,
    };
    if replayed == Some(Replayed::ShutDown) {
        sockets::remove(&id.to_string());
    }
    tell(
        app,
        &instance,
        (server, name),
        running.as_ref(),
        replayed,
        options,
    )
}

/// Waits until it has recovered, and shows how far it is.
fn wait_for_recovery(
    app: &App,
    instance: &Instance,
    clone: &CloneDescription,
    options: &ServerOptions,
) -> Result<Replayed, Error> {
    let repository = app.repository()?;
    let window = needed_segments(&repository, clone).unwrap_or_else(|error| {
        tracing::debug!("Which WAL the clone replays is unknown: {error}");
        None
    });
    let mut watched = Watched::new(instance.data(), Some(clone.server.clone()), window)?;
    let server = app.config.server(clone.server.as_str());
    watched.path_prefix = server.and_then(|server| server.path_prefix.clone());
    let what = format!("Replay of {}/live/{}", clone.server, clone.name);
    let mut progress = ReplayProgress::start(&watched, Some(&repository), &what, app.options.quiet);
    let timeout = options.replay_timeout.map(Duration::from_secs);
    instance.wait_for_recovery(timeout, |takes_connections| match takes_connections {
        true => progress.ask(),
        false => drop(progress.look()),
    })
}

/// The first and the last segment that a clone replays, by what is archived now.
fn needed_segments(
    repository: &Repository,
    clone: &CloneDescription,
) -> Result<Option<(SegmentName, SegmentName)>, Error> {
    let target = clone.origin.target.as_deref().map(str::parse::<TargetSpec>);
    let spec = match target {
        Some(Ok(spec)) => spec,
        Some(Err(_)) => return Ok(None),
        None => Target::Immediate.into(),
    };
    let spec = TargetSpec {
        backup: Some(clone.origin.backup),
        ..spec
    };
    let plan = repository.plan(&clone.server, &spec)?.ok();
    Ok(plan.map(|plan| (plan.first_segment, plan.last_segment)))
}

/// The owner of the clone's files runs the server, so the mount must be open to that user.
fn refuse_closed(mount: &FoundMount, path: &Path) -> Result<(), Error> {
    let files = std::fs::metadata(path).map_err(|error| {
        let failed = Error::failed(format!("Cannot look into {}: {error}", path.display()));
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EBUSY) => {
                failed.hint("Another process works on the clone: try again when it has ended")
            }
            _ => failed,
        }
    })?;
    if mount.is_open_to(files.uid()) {
        return Ok(());
    }
    Err(Error::failed(format!(
        "The files of {} belong to {}, whom the mount at {} keeps out",
        path.display(),
        user_name(files.uid()),
        mount.mount_point.display()
    ))
    .hint("Mount with --allow-other, or as that user"))
}

fn tell(
    app: &mut App,
    instance: &Instance,
    (server, name): (&ServerName, &CloneName),
    running: Option<&Running>,
    replayed: Option<Replayed>,
    options: &ServerOptions,
) -> Result<(), Error> {
    if app.options.quiet {
        return Ok(());
    }
    let Some(running) = running.filter(|_| replayed != Some(Replayed::ShutDown)) else {
        return app.out.line(format_args!(
            "PostgreSQL has recovered {server}/live/{name} to its target and has shut down there, as it was asked to"
        ));
    };
    let so_far = match replayed {
        Some(Replayed::Paused) => ", is at its recovery target and waits there",
        Some(_) => " and has recovered",
        None if instance.is_recovering()? => ", still recovering (--replay waits for the end)",
        None => "",
    };
    app.out.line(format_args!(
        "PostgreSQL {} runs on {server}/live/{name}{so_far} (port {}, process {}; log {})",
        instance.major(),
        running.port,
        running.pid,
        instance.data().join(LOG).display()
    ))?;
    let line = psql(instance, running);
    app.out.line(format_args!("  {line}"))?;
    if let Some(group) = &options.share {
        app.out.line(format_args!(
            "  members of the group {group} can connect there, too"
        ))?;
    }
    if let Some(addresses) = options.listen.as_ref().filter(|addresses| !addresses.is_empty()) {
        app.out.line(format_args!(
            "  it listens on {addresses}, too; its pg_hba.conf says who gets in"
        ))?;
    }
    Ok(())
}

/// A command line for the user to type. It runs psql as the user that can connect without a password in most
/// configurations.
fn psql(instance: &Instance, running: &Running) -> String {
    let command = format!(
        "psql -h {} -p {} postgres",
        quoted(&running.socket_directory.to_string_lossy()),
        running.port
    );
    match Uid::effective().as_raw() == instance.owner() {
        true => command,
        false => format!("sudo -u {} {command}", for_sudo(instance.owner())),
    }
}

/// A user in the form for `sudo -u`: a number if this host has no name for the user.
fn for_sudo(uid: u32) -> String {
    known_user(uid).unwrap_or_else(|| format!("'#{uid}'"))
}

/// Runs `clone stop`.
pub(super) fn stop(app: &mut App, args: &StopArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.which.server)?;
    let name = &args.which.name;
    let clone = repository.clone_named(&server, name)?;
    let mounts = Mounts::of(&repository)?;
    let found = match &args.mount.mount_point {
        Some(asked) => mounts.server_at(&server, name, asked)?,
        None => mounts.server_on(&server, name)?,
    };
    match found {
        Some(found) => {
            let timeout = Duration::from_secs(args.wait_timeout);
            stop_running(app, &clone, &found, Stop::Keeping(timeout))?;
        }
        None if !app.options.quiet => {
            app.out
                .line(format_args!("No server runs on clone {name} of server {server}"))?;
        }
        None => {}
    }
    Ok(Outcome::Done)
}

/// Stops the server that runs on the clone.
pub(super) fn stop_running(
    app: &mut App,
    clone: &CloneDescription,
    found: &CloneServer,
    how: Stop,
) -> Result<(), Error> {
    let CloneDescription { id, server, name, .. } = clone;
    let progress = Progress::start(
        format!("Stopping PostgreSQL on {server}/live/{name}"),
        Counted::Time,
        app.options.quiet,
    );
    found.stop(&format!("{server}/live/{name}"), how)?;
    sockets::remove(&id.to_string());
    drop(progress);
    if !app.options.quiet {
        app.out.line(format_args!(
            "Stopped PostgreSQL on clone {name} of server {server}"
        ))?;
    }
    Ok(())
}

fn instance(app: &App, server: &ServerName, path: &Path, bindir: Option<&Path>) -> Result<Instance, Error> {
    let configured = app.config.server(server.as_str());
    let path_prefix: Option<&PathBuf> = configured.and_then(|server| server.path_prefix.as_ref());
    Instance::at(path, bindir, path_prefix.map(PathBuf::as_path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_gets_a_name_or_a_number() {
        assert_eq!(for_sudo(0), "root");
        assert_eq!(for_sudo(4_000_000_007), "'#4000000007'");
    }
}
