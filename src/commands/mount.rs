//! `barmanfs mount`.

use std::path::Path;

use barmanfs_catalog::Repository;
use barmanfs_fs::{MountOptions, MountedFs};
use barmanfs_store::threads;
use nix::unistd::{Group, User};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::App;
use crate::background;
use crate::cli::mount::MountArgs;
use crate::error::{Error, Outcome};
use crate::mount_helper;
use crate::signals::Interruption;

/// This file exists while the daemon serves. The mount answers when the file can be looked up.
const ALIVE: &str = ".barmanfs/alive";

/// Runs the command. In the background it runs twice: in the parent, which only waits, and in the child.
pub(crate) fn run(app: &App, args: MountArgs) -> Result<Outcome, Error> {
    if !args.foreground && !args.background_child {
        // The arguments have been parsed successfully before.
        let arguments = mount_helper::translate(std::env::args_os().collect()).map_err(Error::usage)?;
        return background::start(arguments.into_iter().skip(1));
    }
    if args.background_child {
        background::enter_background()?;
    }
    let mount_point = std::path::absolute(&args.mount_point)
        .map_err(|error| Error::failed(format!("Cannot find {}: {error}", args.mount_point.display())))?;
    let background = args.background_child;
    let repository = app.repository()?;
    let options = options(app, &repository, args)?;
    raise_descriptor_limit();
    let mounted = barmanfs_fs::mount(repository, options)?;
    serve(app, mounted, &mount_point, background)
}

/// Raises the limit of open files to its maximum: a server on a clone has thousands of files open, and the daemon has
/// each of them open, too.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("Cannot raise the number of files that may be open: {error}");
    }
}

fn options(app: &App, repository: &Repository, args: MountArgs) -> Result<MountOptions, Error> {
    let servers = args
        .servers
        .iter()
        .map(|name| app.known_server(repository, name))
        .collect::<Result<Vec<_>, _>>()?;
    let addressable = |bytes: u64| {
        usize::try_from(bytes).map_err(|_| {
            Error::usage(format!(
                "A cache of {bytes} bytes is more than this machine can address"
            ))
        })
    };
    Ok(MountOptions {
        mount_point: args.mount_point,
        servers: (!servers.is_empty()).then_some(servers),
        allow_other: args.allow_other,
        uid: args.uid.as_deref().map(user_id).transpose()?,
        gid: args.gid.as_deref().map(group_id).transpose()?,
        cache_bytes: args.cache_size.map(addressable).transpose()?,
        clone_limits: app
            .config
            .servers
            .iter()
            .map(|server| (server.name.clone(), server.clone_limits))
            .collect(),
        threads: None,
        recovery_target_action: args.recovery_target_action.or(app.config.recovery_target_action),
    })
}

/// Serves until the tree is unmounted or a signal arrives.
fn serve(app: &App, mounted: MountedFs, mount_point: &Path, background: bool) -> Result<Outcome, Error> {
    let unmounter = mounted.unmounter();
    let on_failure = mounted.unmounter();
    let _signals = Interruption::watch(move || {
        if let Err(error) = unmounter.unmount() {
            tracing::error!("Cannot unmount: {error}");
        }
    })?;
    let serving = threads::start("mount", move || mounted.serve())?;
    let answered = answers(mount_point).and_then(|()| {
        tracing::info!("Serving {} at {}", app.place.shown(), mount_point.display());
        if background {
            return background::ready(app.config.log_file.as_deref());
        }
        // A service manager that gets no notification gives up by itself.
        background::notify()
            .map_err(|error| Error::failed(format!("Cannot tell the service manager: {error}")))
    });
    if let Err(error) = answered {
        on_failure.unmount()?;
        // Why it does not answer.
        return Err(match serving.join() {
            Ok(Err(cause)) => cause.into(),
            _ => error,
        });
    }
    match serving.join() {
        Ok(served) => served?,
        Err(_) => {
            return Err(Error::failed(format!(
                "The mount at {} ended by a bug",
                mount_point.display()
            )));
        }
    }
    tracing::info!("Unmounted {}", mount_point.display());
    Ok(Outcome::Done)
}

fn answers(mount_point: &Path) -> Result<(), Error> {
    std::fs::metadata(mount_point.join(ALIVE))
        .map(drop)
        .map_err(|error| {
            Error::failed(format!(
                "The mount at {} does not answer: {error}",
                mount_point.display()
            ))
        })
}

/// A user id, or the name of a user.
fn user_id(text: &str) -> Result<u32, Error> {
    let named = || User::from_name(text).ok().flatten().map(|user| user.uid.as_raw());
    text.parse()
        .ok()
        .or_else(named)
        .ok_or_else(|| Error::usage(format!("There is no user '{text}'")))
}

/// A group id, or the name of a group.
fn group_id(text: &str) -> Result<u32, Error> {
    let named = || {
        Group::from_name(text)
            .ok()
            .flatten()
            .map(|group| group.gid.as_raw())
    };
    text.parse()
        .ok()
        .or_else(named)
        .ok_or_else(|| Error::usage(format!("There is no group '{text}'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_have_names_or_numbers() {
        assert_eq!(user_id("root").unwrap(), 0);
        assert_eq!(user_id("4711").unwrap(), 4711);
        assert_eq!(user_id("nobody-of-that-name").unwrap_err().code(), 2);
        assert_eq!(group_id("root").unwrap(), 0);
        assert!(group_id("no-such-group").is_err());
    }
}
