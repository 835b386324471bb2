//! `barmanfs clone create`, and the creation that `clone reset` shares with it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use barmanfs_catalog::{
    BackupId, BackupSelector, CloneDescription, CloneName, Error as CatalogError, Repository, ServerName,
    TargetSpec,
};
use nix::errno::Errno;

use super::copy::copy;
use super::start;
use crate::cli::clone::CreateArgs;
use crate::commands::App;
use crate::error::{Error, Outcome};
use crate::mounts::{Mounts, live};

/// The source of a clone.
#[derive(Debug)]
pub(super) enum Of {
    /// The newest backup.
    Latest,
    /// A backup.
    Backup(BackupId),
    /// A point in time.
    Target(TargetSpec),
}

impl Of {
    /// The source from which the clone was created, and nothing newer.
    pub(super) fn origin(description: &CloneDescription) -> Result<Self, Error> {
        let backup = description.origin.backup;
        let Some(target) = &description.origin.target else {
            return Ok(Self::Backup(backup));
        };
        let mut spec: TargetSpec = target.parse().map_err(|error| {
            Error::failed(format!(
                "Clone {} of server {} has an origin that cannot be read: {error}",
                description.name, description.server
            ))
        })?;
        spec.backup = Some(backup);
        Ok(Self::Target(spec))
    }

    /// Checks that the source exists.
    pub(super) fn check(&self, repository: &Repository, server: &ServerName) -> Result<(), Error> {
        let hint = format!("'barmanfs list-backups {server}' shows the backups there are");
        match self {
            Self::Latest => {
                let backups = repository.backups(server)?;
                match backups.iter().any(barmanfs_catalog::Backup::is_complete) {
                    true => Ok(()),
                    false => Err(Error::failed(format!("Server {server} has no complete backup")).hint(hint)),
                }
            }
            Self::Backup(id) => {
                let found = repository.backup(server, &BackupSelector::Id(*id));
                match found.map_err(|error| Error::from(error).hint(hint.clone()))? {
                    backup if backup.is_complete() => Ok(()),
                    backup if backup.is_snapshot() => {
                        Err(Error::failed(backup.files_elsewhere().unwrap_or_default()))
                    }
                    _ => Err(
                        Error::failed(format!("Backup {id} of server {server} is not complete")).hint(hint),
                    ),
                }
            }
            Self::Target(spec) => match repository.plan(server, spec)? {
                Ok(_) => Ok(()),
                Err(reason) => Err(Error::failed(format!(
                    "{spec} of server {server} cannot be recovered: {reason}"
                ))
                .hint(format!(
                    "'barmanfs explain {server} {}' tells what can be",
                    quoted(&spec.to_string())
                ))),
            },
        }
    }
}

impl fmt::Display for Of {
    /// The form that follows the clone's name in `mkdir`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => Ok(()),
            Self::Backup(id) => write!(f, "@backup={id}"),
            Self::Target(spec) => write!(f, "@{spec}"),
        }
    }
}

/// Runs the command.
pub(super) fn run(app: &mut App, args: &CreateArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.which.server)?;
    let name = &args.which.name;
    let mounts = Mounts::of(&repository)?;
    let mount_point = args.mount.mount_point.as_deref();
    let path = match &args.from {
        Some(from) => {
            copy(app, &repository, &server, from, name)?;
            mounts
                .place_of(&server, name, mount_point)
                .ok()
                .map(|(_, path)| path)
        }
        None => {
            let of = asked(app, &repository, &server, args)?;
            Some(make(&repository, &mounts, &server, name, &of, mount_point)?)
        }
    };
    tell_made(app, &repository, &server, name, path.as_deref())?;
    if args.start || args.server.is_given() {
        let clone = repository.clone_named(&server, name)?;
        start::start(app, &mounts, &clone, &args.server, mount_point)?;
    }
    Ok(Outcome::Done)
}

fn asked(app: &App, repository: &Repository, server: &ServerName, args: &CreateArgs) -> Result<Of, Error> {
    if let Some(text) = &args.at {
        let spec = text
            .parse()
            .map_err(|error: barmanfs_catalog::TargetError| Error::usage(error.to_string()))?;
        return Ok(Of::Target(spec));
    }
    match &args.backup {
        Some(selector) => Ok(Of::Backup(app.backup(repository, server, selector)?.id)),
        None => Ok(Of::Latest),
    }
}

/// Makes a clone, and returns its directory.
pub(super) fn make(
    repository: &Repository,
    mounts: &Mounts<'_>,
    server: &ServerName,
    name: &CloneName,
    of: &Of,
    mount_point: Option<&Path>,
) -> Result<PathBuf, Error> {
    let live = live(mounts.choose(server, mount_point)?, server);
    match fs::create_dir(live.join(format!("{name}{of}"))) {
        Ok(()) => Ok(live.join(name.as_str())),
        Err(error) => Err(why_not(repository, server, name, of, &error)),
    }
}

/// A mount can only return error numbers. This finds the reason again.
fn why_not(
    repository: &Repository,
    server: &ServerName,
    name: &CloneName,
    of: &Of,
    error: &std::io::Error,
) -> Error {
    let cannot = |why: &str| Error::failed(format!("Cannot make clone {name} of server {server}: {why}"));
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EEXIST) => {
            let (server, name) = (server.clone(), name.clone());
            CatalogError::CloneExists { server, name }.into()
        }
        Some(Errno::ENOENT) => match of.check(repository, server) {
            Err(reason) => reason,
            Ok(()) => cannot("the mount does not have what it is to be made of")
                .hint("The log of the mount says more"),
        },
        Some(Errno::EDQUOT) => {
            let count = repository.clones(server).map_or(0, |clones| clones.len());
            too_many(server, name, count)
        }
        Some(Errno::ENOSPC) => cannot("there is no room for it").hint(format!(
            "Free space in {}, or raise clone_max_size in the configuration and mount again",
            repository.path().display()
        )),
        Some(Errno::EACCES | Errno::EPERM) => {
            cannot("permission denied").hint("Run this as the owner of the server's files, or as root")
        }
        Some(Errno::ENAMETOOLONG) => cannot("its name and target are too long for the name of a directory"),
        _ => cannot(&error.to_string()).hint("The log of the mount says more"),
    }
}

/// The error when a server has the maximum number of clones.
pub(super) fn too_many(server: &ServerName, name: &CloneName, count: usize) -> Error {
    Error::failed(format!(
        "Cannot make clone {name} of server {server}: it has {count} already, and clone_max_count allows no more"
    ))
    .hint("Destroy one ('barmanfs clone list'), or raise clone_max_count in the configuration and mount again")
}

/// Prints the new clone and its directory.
pub(super) fn tell_made(
    app: &mut App,
    repository: &Repository,
    server: &ServerName,
    name: &CloneName,
    path: Option<&Path>,
) -> Result<(), Error> {
    if app.options.quiet {
        return Ok(());
    }
    let origin = repository.clone_named(server, name)?.origin;
    let target = origin
        .target
        .map_or_else(String::new, |target| format!(", to be recovered to {target}"));
    let copied = origin
        .copied_from
        .map_or_else(String::new, |from| format!(", as changed in {from}"));
    app.out.line(format_args!(
        "Clone {name} of server {server}: backup {}{target}{copied}, {}",
        origin.backup,
        path.map_or_else(
            || "not mounted".to_owned(),
            |path| format!("at {}", path.display())
        )
    ))
}

/// Quotes a word for a shell.
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:,=/@%+".contains(c);
    match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_follows_the_clones_name() {
        assert_eq!(Of::Latest.to_string(), "");
        let id: BackupId = "20261120T101500".parse().unwrap();
        assert_eq!(Of::Backup(id).to_string(), "@backup=20261120T101500");
        let spec: TargetSpec = "0/5A3F10C8,timeline=2".parse().unwrap();
        let text = Of::Target(spec).to_string();
        assert!(text.starts_with('@') && !text.contains('/'), "{text}");
    }

    #[test]
    fn suggested_commands_are_quoted() {
        assert_eq!(quoted("lsn:0-5A3F10C8,timeline=2"), "lsn:0-5A3F10C8,timeline=2");
        assert_eq!(quoted("name:it's"), "'name:it'\\''s'");
    }
}
