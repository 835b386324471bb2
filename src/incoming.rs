//! The directory into which a server's `archive_command` copies its WAL, with `cp` or `rsync`.
//!
//! A file counts when it has a WAL file's name and its content is whole; until then it may still be copied. Its size shows
//! nothing: some copiers give a file its final size first ([`whole`]). What is archived is removed. What cannot be archived
//! goes into `errors` beside the directory, and stops nothing behind it.

pub(crate) mod whole;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use barmanfs_catalog::{Error as CatalogError, Repository};
use barmanfs_pg::TimelineId;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::open_regular;
use jiff::Timestamp;

use crate::arrival::{self, Arriving, AsChecked, NotArchived};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::hooks::{Hook, Hooks, NEVER_STOPPED};
use crate::output;
use whole::Checked;

/// How long after its last change a file that is not whole, or whose content does not show that it is, may still be copied.
const COPIED_WITHIN: Duration = Duration::from_secs(600);

/// The same of a segment that only lacks proof for a record which crosses its border.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// After how long a file should have been archived, or put aside, where `cron` runs each minute.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(2 * 600);

/// The ending of names that are not final.
const TEMPORARY: &str = ".tmp";

/// The directory for what cannot be archived, beside the incoming one.
const ERRORS: &str = "errors";

/// What becomes of a file.
enum Fate {
    /// It is the file that was like this.
    Archived(AsChecked),
    /// It cannot be read now: another run tries again, and the files behind it do not wait.
    Unreadable(Error),
    /// It may still be copied.
    Waits,
    /// It is probably whole, and waits for that to be certain; later segments of its timeline wait with it, or the archive
    /// would have a gap meanwhile.
    Settles(SegmentName),
    /// It cannot be archived: why, and the ending of its new name.
    SetAside(Error, &'static str),
}

/// The names that wait in a directory, sorted; files that are being copied under another name do not count.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn waiting(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let bytes = name.as_encoded_bytes();
        let is_final = !bytes.starts_with(b".") && !bytes.ends_with(TEMPORARY.as_bytes());
        if is_final && entry.file_type()?.is_file() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A file that has waited for so long that something is wrong with it, or with what should archive it.
pub(crate) fn stuck(directory: &Path) -> io::Result<Option<OsString>> {
    let mut names = waiting(directory)?.into_iter();
    Ok(names.find(|name| !may_be_copied(&directory.join(name), STUCK_AFTER)))
}

/// Where files of this directory go that cannot be archived.
pub(crate) fn errors_directory(directory: &Path) -> PathBuf {
    directory.parent().unwrap_or(directory).join(ERRORS)
}

/// Archives what waits. Returns the names of what was archived.
///
/// # Errors
/// When the directory cannot be read, or nothing can be archived now. Files that cannot be archived are logged.
pub(crate) fn archive(
    repository: &Repository,
    server: &ServerConfig,
    directory: &Path,
) -> Result<Vec<String>, Error> {
    let names = waiting(directory)
        .map_err(|error| Error::failed(format!("Cannot read {}: {error}", directory.display())))?;
    let hooks = Hooks::of(server, repository, NEVER_STOPPED);
    let mut archived = Vec::new();
    let mut first_error = None;
    let mut settling: Vec<TimelineId> = Vec::new();
    for name in names {
        let path = directory.join(&name);
        if let Some(Ok(WalName::Segment(segment))) = name.to_str().map(WalName::from_str)
            && settling.contains(&segment.timeline)
        {
            continue;
        }
        match archive_one(&hooks, &name, &path)? {
            Fate::Waits => {}
            Fate::Settles(segment) => settling.push(segment.timeline),
            Fate::Unreadable(error) => {
                tracing::error!("Server {}: {error}", server.name);
                first_error.get_or_insert(error);
            }
            Fate::Archived(was) => match remove(&path, &was) {
                Ok(()) => archived.push(output::printable(name.as_encoded_bytes())),
                Err(error) => {
                    tracing::error!("Server {}: {error}", server.name);
                    first_error.get_or_insert(error);
                }
            },
            Fate::SetAside(why, ending) => {
                let place = set_aside(directory, &name, ending);
                let fate = match &place {
                    Ok(place) => format!("and is now {}", place.display()),
                    Err(error) => format!(
                        "and stays where it is, since it cannot be moved to {} ({error})",
                        errors_directory(directory).display()
                    ),
                };
                let told = format!("{} is not archived, {fate}: {why}", path.display());
                tracing::error!("Server {}: {told}", server.name);
                // Nothing else shows one that stays.
                if place.is_err() {
                    first_error.get_or_insert(Error::failed(told));
                }
            }
        }
    }
    match first_error {
        None => Ok(archived),
        Some(error) => Err(error),
    }
}

fn archive_one(hooks: &Hooks<'_>, name: &OsStr, path: &Path) -> Result<Fate, Error> {
    let unusable = |why: String| match is_recent(path) {
        true => {
            tracing::debug!("{} waits: {why}", path.display());
            Fate::Waits
        }
        false => Fate::SetAside(Error::failed(why), "unknown"),
    };
    let wal_name = match name.to_str().map(WalName::from_str) {
        Some(Ok(wal_name)) => wal_name,
        Some(Err(error)) => return Ok(unusable(error.to_string())),
        None => return Ok(unusable("its name is not that of a WAL file".to_owned())),
    };
    let file: File = match open_regular(path) {
        // Another process has archived it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Fate::Waits),
        Err(error) => return Ok(unreadable(path, &error)),
        Ok(file) => file,
    };
    let checked = match AsChecked::now(&file, hooks.has(Hook::Archive)) {
        Err(error) => return Ok(unreadable(path, &error)),
        Ok(checked) => checked,
    };
    let arriving = Arriving {
        server: hooks.server(),
        name: wal_name,
        file,
        path: Some(path.to_owned()),
        origin: "archive-wal",
        checked: Some(checked.clone()),
    };
    let arriving = match arriving.decompressed(hooks.repository().path()) {
        Ok(arriving) => arriving,
        // The system failed, and not the decoder: the file may be good.
        Err(error) if error.raw_os_error().is_some() || is_full(&error) => {
            return Err(Error::failed(format!(
                "Cannot decompress {}: {error}",
                path.display()
            )));
        }
        Err(error) => return Ok(unusable(format!("it cannot be decompressed: {error}"))),
    };
    match judged(&wal_name, &arriving.file, path) {
        Err(error) => return Ok(unreadable(path, &error)),
        Ok(Judged::Wrong(why)) => return Ok(unusable(why)),
        Ok(Judged::Uncertain(segment)) => {
            tracing::debug!("{} waits until it is certain that it is whole", path.display());
            return Ok(segment.map_or(Fate::Waits, Fate::Settles));
        }
        Ok(Judged::Whole) => {}
    }
    match arriving.archive(hooks) {
        Ok(outcome) => Ok(match arrival::refusal(hooks.server(), &wal_name, &outcome) {
            None => Fate::Archived(checked),
            Some(refusal) => Fate::SetAside(refusal, "duplicate"),
        }),
        Err(NotArchived::Changed) => Ok(Fate::Waits),
        Err(NotArchived::Failed(
            error @ (CatalogError::Wal { .. }
            | CatalogError::BadWalFile { .. }
            | CatalogError::WalSize { .. }
            | CatalogError::OtherSystem { .. }),
        )) => Ok(unusable(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// What the content of a file shows that another program copies.
pub(crate) enum Judged {
    /// It may be archived.
    Whole,
    /// It may still be copied, and be likely whole. The segment that it is, if it is one.
    Uncertain(Option<SegmentName>),
    /// It is not whole: why. It may still be copied, if [`is_recent`].
    Wrong(String),
}

/// Decides about the file at `path`, whose content, decompressed, is `content`.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn judged(name: &WalName, content: &File, path: &Path) -> io::Result<Judged> {
    Ok(match whole::wholeness(name, content)? {
        Checked::Wrong(why) => Judged::Wrong(why),
        Checked::Unproven { segment, is_likely } => {
            let within = if is_likely { SETTLED_AFTER } else { COPIED_WITHIN };
            match may_be_copied(path, within) {
                true => Judged::Uncertain(segment),
                false => Judged::Whole,
            }
        }
        Checked::Whole => Judged::Whole,
    })
}

/// Whether a file that is not whole may still be copied.
pub(crate) fn is_recent(path: &Path) -> bool {
    may_be_copied(path, COPIED_WITHIN)
}

/// Whether a file may still be copied: it was changed within this time. The kernel's time of the last change counts, since a
/// copier sets the other one.
fn may_be_copied(path: &Path, within: Duration) -> bool {
    let Ok(found) = fs::symlink_metadata(path) else {
        return false;
    };
    let seconds = u64::try_from(found.ctime()).unwrap_or_default();
    match SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(seconds)) {
        Ok(age) => age < within,
        // The clock was set back.
        Err(_) => true,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn unreadable(path: &Path, error: &io::Error) -> Fate {
    Fate::Unreadable(Error::failed(format!("Cannot read {}: {error}", path.display())))
}

/// Removes what was archived. Another file that has come under its name since stays.
fn remove(path: &Path, archived: &AsChecked) -> Result<(), Error> {
    if !open_regular(path).is_ok_and(|there| archived.is_still(&there)) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::failed(format!(
            "{} is archived and cannot be removed: {error}",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Moves a file out of the way; the new name says when, and why.
fn set_aside(directory: &Path, name: &OsStr, ending: &str) -> io::Result<PathBuf> {
    let errors = errors_directory(directory);
    fs::create_dir_all(&errors)?;
    let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut new = name.to_owned();
    new.push(format!(".{stamp}.{ending}"));
    let place = errors.join(new);
    fs::rename(directory.join(name), &place)?;
    Ok(place)
}
