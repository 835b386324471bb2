//! `barmanfs clone destroy` and `barmanfs clone reset`.

use barmanfs_catalog::{CloneDescription, Repository};

use super::create::{self, Of};
use super::start::stop_running;
use crate::cli::clone::EndArgs;
use crate::commands::App;
use crate::error::{Error, Outcome};
use crate::instance::{Stop, sockets};
use crate::mounts::{Mounts, hold, is_running};

/// Runs `clone destroy`. This does not need a mount.
pub(super) fn destroy(app: &mut App, args: &EndArgs) -> Result<Outcome, Error> {
    let (repository, clone) = asked(app, args)?;
    let CloneDescription { server, name, .. } = &clone;
    end_server(app, &Mounts::of(&repository)?, &clone, args.stop)?;
    remove(&repository, &clone)?;
    if !app.options.quiet {
        app.out
            .line(format_args!("Destroyed clone {name} of server {server}"))?;
    }
    Ok(Outcome::Done)
}

/// Runs `clone reset`. Whatever is known to fail, fails before anything is discarded.
pub(super) fn reset(app: &mut App, args: &EndArgs) -> Result<Outcome, Error> {
    let (repository, clone) = asked(app, args)?;
    let CloneDescription { server, name, .. } = &clone;
    let mounts = Mounts::of(&repository)?;
    let mount_point = args.mount.mount_point.as_deref();
    let (mount, _) = mounts.place_of(server, name, mount_point)?;
    let of = Of::origin(&clone)?;
    of.check(&repository, server)
        .map_err(|error| error.context(format_args!("Clone {name} cannot be created again")))?;
    end_server(app, &mounts, &clone, args.stop)?;
    remove(&repository, &clone)?;
    let path = create::make(&repository, &mounts, server, name, &of, Some(&mount.mount_point))
        .map_err(|error| error.context("The clone was removed, and was not created again"))?;
    create::tell_made(app, &repository, server, name, Some(&path))?;
    Ok(Outcome::Done)
}

/// The repository, and the clone that the command line names.
fn asked(app: &App, args: &EndArgs) -> Result<(Repository, CloneDescription), Error> {
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.which.server)?;
    let clone = repository
        .clone_named(&server, &args.which.name)
        .map_err(|error| {
            Error::from(error).hint(format!("'barmanfs clone list {server}' shows those there are"))
        })?;
    Ok((repository, clone))
}

/// Stops the server that runs on the clone, or fails because it runs.
fn end_server(app: &mut App, mounts: &Mounts<'_>, clone: &CloneDescription, stop: bool) -> Result<(), Error> {
    let CloneDescription { server, name, .. } = clone;
    match mounts.server_on(server, name)? {
        Some(found) if stop => stop_running(app, clone, &found, Stop::Discarding),
        Some(found) => Err(is_running(server, name, &found.running).hint(format!(
            "Stop it first: barmanfs clone stop {server} {name}; or add --stop"
        ))),
        None => Ok(()),
    }
}

fn remove(repository: &Repository, clone: &CloneDescription) -> Result<(), Error> {
    let lock = hold(repository, &clone.server, &clone.name, "removing it")?;
    // Checked under the lock: another clone may have the name by now.
    let now = repository.clone_named(&clone.server, &clone.name)?;
    if now.id != clone.id {
        return Err(Error::failed(format!(
            "Clone {} of server {} has just been created again by somebody else",
            clone.name, clone.server
        )));
    }
    repository.remove_clone(clone, lock)?;
    // The socket of a server that was killed, or stopped by other means.
    sockets::remove(&clone.id.to_string());
    Ok(())
}
