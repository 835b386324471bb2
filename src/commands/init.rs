//! `barmanfs init`: makes a repository, and says what to put on the server and into the configuration.
//!
//! It works before there is a configuration, because it is the first command that somebody runs.

use std::path::{Path, PathBuf};

use barmanfs_bucket::Location;
use barmanfs_catalog::{
    CreateOptions, Error as CatalogError, FirstKey, NewRecipient, Repository, ServerName,
};
use barmanfs_store::IdHash;
use nix::unistd::Uid;

use super::key;
use crate::cli::GlobalOptions;
use crate::cli::upkeep::InitArgs;
use crate::config::{Config, ConfigError};
use crate::error::{Error, Outcome};
use crate::fstab;
use crate::invocation::Invocation;
use crate::output::Output;
use crate::ownership;
use crate::place::Place;
use crate::restore::resolved;

/// Where repositories are in the README.
const USUAL: &str = "/var/lib/barmanfs";

/// Runs the command.
pub(crate) fn run(out: &mut Output, options: &GlobalOptions, args: &InitArgs) -> Result<Outcome, Error> {
    let config = match super::load(options) {
        Ok(config) => Some(config),
        // There is none yet, or it waits for its first key.
        Err(ConfigError::NotFound(_) | ConfigError::Incomplete { .. }) => None,
        Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(config) = &config {
        crate::keys::use_those_of(config);
    }
    let place = place(args, config.as_ref())?;
    if args.take_over {
        return take_over(out, &place);
    }
    match place.open() {
        Err(CatalogError::NoRepository { .. }) => make(out, &place, args, config.as_ref())?,
        other => {
            let made = other?;
            if args.encrypt && made.settings().encryption.is_none() {
                return Err(
                    Error::failed(format!("{} is a plain repository already", place.shown()))
                        .hint("'barmanfs key init' and 'barmanfs encrypt' make it an encrypted one"),
                );
            }
            out.line(format_args!("{} is a repository already", place.shown()))?;
        }
    }
    if place.is_remote() {
        out.line(format_args!(
            "Its cache on this host is {}",
            place.home().display()
        ))?;
    }
    if options.quiet {
        return Ok(Outcome::Done);
    }
    for text in advice(&place, config.as_ref(), options, &args.servers) {
        out.line("")?;
        out.line(text)?;
    }
    Ok(Outcome::Done)
}

/// Makes the repository that the command line asks for, and says what the object store can do if it is in one.
fn make(out: &mut Output, place: &Place, args: &InitArgs, config: Option<&Config>) -> Result<(), Error> {
    let mut abilities = None;
    if args.encrypt {
        place.refuse_remote("Encryption")?;
        let wanted = key::recipients_or_own(&args.recipients, config)?;
        create(place, Some((&first_key(args), &wanted)), &mut |_| ())?;
    } else {
        create(place, None, &mut |said| abilities = Some(said))?;
    }
    out.line(format_args!("Created the repository {}", place.shown()))?;
    abilities.map_or(Ok(()), |abilities| out.line(abilities))?;
    Ok(())
}

/// The place that the command line names, or the configuration.
fn place(args: &InitArgs, config: Option<&Config>) -> Result<Place, Error> {
    let named = match (&args.directory, config) {
        (Some(named), _) => named.clone(),
        (None, Some(config)) => return Ok(Place::of(config)),
        (None, None) => PathBuf::from(USUAL),
    };
    if let Some(url) = named.to_str().filter(|text| Location::is_url(text)) {
        let location = Location::parse(url).map_err(|reason| Error::usage(format!("The URL {reason}")))?;
        return match config.filter(|config| config.location.as_ref() == Some(&location)) {
            Some(config) => Ok(Place::of(config)),
            None => Err(Error::usage(format!("{url} is not the repository of the configuration"))
                .hint(format!("Set 'repository = {url}' first, with the keys that say how to reach it (docs/object-stores.md)"))),
        };
    }
    let path = std::path::absolute(&named)
        .map_err(|error| Error::usage(format!("Cannot find {}: {error}", named.display())))?;
    Ok(Place::directory(&path))
}

fn take_over(out: &mut Output, place: &Place) -> Result<Outcome, Error> {
    ownership::refuse_foreign_root(place.home())?;
    let shown = place.shown();
    match place.take_over()? {
        Some(host) => out.line(format_args!(
            "This host writes into {shown} from now on, and host {host} no longer does"
        ))?,
        None => out.line(format_args!("This host writes into {shown}"))?,
    }
    Ok(Outcome::Done)
}

/// Refuses a place in the data directory of a server: it would be lost together with what it is for, and each backup by the
/// server would take all earlier ones along.
fn refuse_in_data_directory(path: &Path) -> Result<(), Error> {
    let real = resolved(path).unwrap_or_else(|_| path.to_owned());
    let is_data =
        |place: &&Path| place.join("PG_VERSION").is_file() && place.join("global/pg_control").is_file();
    match real.ancestors().find(is_data) {
        None => Ok(()),
        Some(data) => Err(Error::failed(format!(
            "{} is in the data directory {}: what destroys the server would destroy its backups",
            path.display(),
            data.display()
        ))
        .hint("Name a directory elsewhere, best on another disk")),
    }
}

fn first_key(args: &InitArgs) -> FirstKey {
    match &args.keys_of {
        Some(other) => FirstKey::LikeThatOf(other.clone()),
        None => FirstKey::New(args.id_hash.unwrap_or(IdHash::Blake3Keyed)),
    }
}

/// Creates a repository. Refuses the directory of a disk that is not mounted, and a user whose files the archiving user
/// could not write. `said` gets what an object store can do.
pub(super) fn create(
    place: &Place,
    encryption: Option<(&FirstKey, &[NewRecipient])>,
    said: &mut dyn FnMut(String),
) -> Result<Repository, Error> {
    let path = place.home();
    if let Some(mount_point) = fstab::missing_mount(path) {
        return Err(Error::failed(format!(
            "{} is not mounted: no repository is created in its place",
            mount_point.display()
        ))
        .hint(format!(
            "Mount {} first; /etc/fstab lists it",
            mount_point.display()
        )));
    }
    ownership::refuse_foreign_root(path)?;
    refuse_in_data_directory(path)?;
    let made = match encryption {
        None => place.create(said),
        Some((first, recipients)) => {
            Repository::create_encrypted(path, CreateOptions::default(), first, recipients)
        }
    };
    match made {
        Ok(repository) => {
            tracing::info!("Created the repository {}", place.shown());
            Ok(repository)
        }
        // Another process may have created it first.
        Err(error) if !place.is_remote() => place.open().map_err(|_| {
            let error = Error::from(error);
            match path.exists() {
                true => error,
                false => error.hint(directory_hint(path)),
            }
        }),
        Err(error) => Err(error.into()),
    }
}

/// The warning about a repository that was created without having been asked for.
pub(super) fn is_new(place: &Place) -> String {
    if place.is_remote() {
        return format!(
            "WARNING: There was no repository in {}, so a new and empty one was created there. If there should have been one, \
             'repository' names another bucket or prefix\n",
            place.shown()
        );
    }
    let path = place.home();
    format!(
        "WARNING: There was no repository in {0}, so a new and empty one was created there. If there should have been one: is \
         the file system of {0} mounted? If not, stop this, remove the new one, and mount it\n",
        path.display()
    )
}

/// How to make the directory.
fn directory_hint(path: &Path) -> String {
    format!(
        "Make it for the user PostgreSQL runs as: sudo install -d -o postgres -g postgres -m 700 {}",
        path.display()
    )
}

/// What is left to do, in paragraphs.
fn advice(
    place: &Place,
    config: Option<&Config>,
    options: &GlobalOptions,
    servers: &[ServerName],
) -> Vec<String> {
    let is_here = |config: &&Config| config.repository == place.home();
    let known = config.filter(is_here);
    let mut names: Vec<ServerName> = servers.to_vec();
    if names.is_empty() {
        names.extend(
            known
                .iter()
                .flat_map(|config| &config.servers)
                .map(|server| server.name.clone()),
        );
    }
    let file = config.map_or_else(
        || "/etc/barmanfs.conf".to_owned(),
        |config| config.file.display().to_string(),
    );
    let mut lines = Vec::new();
    if known.is_none() {
        lines.push(format!(
            "In {file}:\n\n  [barmanfs]\n  repository = {}",
            place.shown()
        ));
    }
    if names.is_empty() {
        lines.push("'barmanfs init --server NAME' says what a server needs.".to_owned());
    }
    let invocation = Invocation::current(options.config.as_deref());
    for name in &names {
        let is_configured = known.is_some_and(|config| config.server(name.as_str()).is_some());
        lines.extend(for_server(name, is_configured, &file, &invocation));
    }
    if Uid::effective().is_root() {
        lines.push("Everything that writes into the repository runs as its owner, not as root.".to_owned());
    }
    lines
}

fn for_server(name: &ServerName, is_configured: bool, file: &str, invocation: &Invocation) -> Vec<String> {
    let mut lines = Vec::new();
    if !is_configured {
        lines.push(format!(
            "For server {name}, in {file}:\n\n  [{name}]\n  conninfo = host=HOST user=barmanfs dbname=postgres"
        ));
    }
    lines.push(format!(
        "On server {name}, as a superuser:\n\n  CREATE ROLE barmanfs LOGIN REPLICATION PASSWORD '...';\n  GRANT pg_monitor TO barmanfs;"
    ));
    lines.push(
        "In its pg_hba.conf, with the address of this host (for a server on this host: 'local' and no address):\n\n  \
         host  replication,postgres  barmanfs  ADDRESS/32  scram-sha-256"
            .to_owned(),
    );
    lines.push(format!(
        "In its postgresql.conf, if it runs on this host (archive_mode needs a restart):\n\n  wal_level = replica\n  \
         archive_mode = on\n  {}",
        invocation.archive_command(name.as_str())
    ));
    lines.push(format!(
        "If it runs on another host, its WAL comes as a stream, by the service '{}'. In its section:\n\n  \
         streaming_archiver = on\n  slot_name = barmanfs\n  create_slot = auto",
        invocation.with(&format!("receive-wal {name}"))
    ));
    lines.push(format!(
        "Then:\n\n  {}\n  {}",
        invocation.with(&format!("check {name}")),
        invocation.with(&format!("backup {name}"))
    ));
    lines
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn no_repository_is_made_in_a_data_directory_at_any_depth_nor_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        fs::create_dir_all(data.join("global")).unwrap();
        fs::write(data.join("PG_VERSION"), "19\n").unwrap();
        let place = data.join("backups/repository");
        refuse_in_data_directory(&place).unwrap();
        fs::write(data.join("global/pg_control"), "").unwrap();
        std::os::unix::fs::symlink(&data, directory.path().join("link")).unwrap();
        for place in [data.clone(), place, directory.path().join("link/repository")] {
            let refused = refuse_in_data_directory(&place).unwrap_err();
            assert!(
                refused.to_string().contains("is in the data directory"),
                "{refused}"
            );
        }
        refuse_in_data_directory(&directory.path().join("repository")).unwrap();
    }
}
