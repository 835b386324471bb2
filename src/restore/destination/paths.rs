//! Paths of the directory that is written to, and of tablespaces: resolved, apart from each other, and none that barmanfs uses.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use barmanfs_catalog::Repository;

use crate::error::Error;
use crate::fstab::mounted_at;
use crate::restore::place::{Place, failed};
use crate::restore::tablespaces::Relocations;

/// Neither the repository nor what shows it may be overwritten.
pub(crate) fn refuse_place(repository: Option<&Repository>, path: &Path) -> Result<(), Error> {
    let refuse = |why: String| Err(Error::usage(format!("{} {why}", path.display())));
    if path.parent().is_none() {
        return refuse("is the root of the file system".to_owned());
    }
    if let Some(repository) = repository {
        let home = std::fs::canonicalize(repository.path()).unwrap_or_else(|_| repository.path().to_owned());
        if path.starts_with(&home) || home.starts_with(path) {
            return refuse(format!("is in the repository {}, or around it", home.display()));
        }
    }
    // There may be others, and on another host none is known.
    if let Some(home) = path.ancestors().find(|path| is_repository(path)) {
        return refuse(format!("is in the repository {}", home.display()));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    match mount_points(&mounts).find(|point| path.starts_with(point)) {
        Some(point) => refuse(format!("is in the mount at {}", point.display())),
        None => Ok(()),
    }
}

/// Whether a directory is a repository of barmanfs.
fn is_repository(path: &Path) -> bool {
    path.join("repository.json").is_file() && path.join("packs").is_dir()
}

/// Where the parts outside really are, behind links. None is in the data directory or in another one, or around it.
pub(super) fn separate_places(directory: &Path, relocations: &Relocations) -> Result<Vec<PathBuf>, Error> {
    let places = relocations.iter().map(|(_, location)| resolved(location));
    let places = places.collect::<Result<Vec<_>, Error>>()?;
    refuse_shared(directory, &places)?;
    Ok(places)
}

/// Refuses places of parts that are in the data directory or in each other. The paths have no links in them.
pub(crate) fn refuse_shared(directory: &Path, places: &[PathBuf]) -> Result<(), Error> {
    for (number, place) in places.iter().enumerate() {
        let shares = |other: &&Path| place.starts_with(other) || other.starts_with(place);
        let others = places.iter().take(number).map(PathBuf::as_path);
        if let Some(other) = others.chain([directory]).find(shares) {
            return Err(Error::usage(format!(
                "The directory {} would be in {}, or around it",
                place.display(),
                other.display()
            )));
        }
    }
    Ok(())
}

/// The places where barmanfs is mounted.
fn mount_points(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    let ours = mountinfo.lines().filter(|line| {
        let rest = line.split_once(" - ").map_or("", |(_, rest)| rest);
        rest.starts_with("fuse.barmanfs ")
    });
    ours.filter_map(mounted_at)
}

/// The places where any file system is mounted.
pub(in crate::restore) fn all_mount_points() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter_map(mounted_at).collect()
}

/// An absolute path without links, of something that need not exist.
pub(crate) fn resolved(path: &Path) -> Result<PathBuf, Error> {
    let absolute = std::path::absolute(path).map_err(|error| failed("find", path, error))?;
    let existing = nearest_existing(&absolute);
    let rest = absolute.strip_prefix(existing).unwrap_or(Path::new(""));
    if rest.components().any(|part| part.as_os_str() == "..") {
        return Err(Error::usage(format!("{} does not exist", path.display())));
    }
    let first = rest.components().next().map(|first| existing.join(first));
    if let Some((link, target)) = first.and_then(|link| std::fs::read_link(&link).ok().map(|to| (link, to))) {
        return Err(dangling(&link, Some(&target)));
    }
    let existing = std::fs::canonicalize(existing).map_err(|error| failed("find", existing, error))?;
    Ok(match rest.as_os_str().is_empty() {
        true => existing,
        false => existing.join(rest),
    })
}

/// The error for a link that leads to nothing: nothing can be made under its name.
pub(in crate::restore) fn dangling(link: &Path, target: Option<&Path>) -> Error {
    let target = target.map_or_else(|| "something".to_owned(), |target| target.display().to_string());
    Error::failed(format!(
        "{} is a link to {target}, which does not exist",
        link.display()
    ))
    .hint("Make that directory, remove the link, or name another directory")
}

/// The path itself or the nearest directory above it that exists.
pub(in crate::restore) fn nearest_existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"))
}

/// Makes a directory, and those above it, durably.
pub(super) fn make_directory(path: &Path) -> Result<(), Error> {
    let existing = nearest_existing(path).to_owned();
    if existing == path {
        return Ok(());
    }
    // The server's user must reach it, and nobody else look into it.
    let make = |path: &Path, mode| {
        let made = DirBuilder::new().recursive(true).mode(mode).create(path);
        made.map_err(|error| failed("make", path, error))
    };
    if let Some(parent) = path.parent() {
        make(parent, 0o755)?;
    }
    make(path, 0o700)?;
    let made = path.ancestors().skip(1);
    let made = made.take_while(|above| above.starts_with(&existing));
    made.into_iter().try_for_each(|above| Place::open(above)?.sync())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn mounts_of_barmanfs_are_known() {
        let text = "36 35 98:0 / /mnt rw - ext4 /dev/sda rw\n\
                    40 35 0:50 / /mnt/my\\040backups rw,nosuid - fuse.barmanfs /var/lib/barmanfs ro\n";
        let found: Vec<PathBuf> = mount_points(text).collect();
        assert_eq!(found, [PathBuf::from("/mnt/my backups")]);
    }

    #[test]
    fn no_link_leads_a_tablespace_into_another_place() {
        let directory = tempfile::tempdir().unwrap();
        let base = std::fs::canonicalize(directory.path()).unwrap();
        std::fs::create_dir_all(base.join("data")).unwrap();
        std::fs::create_dir_all(base.join("fast")).unwrap();
        std::os::unix::fs::symlink(base.join("data"), base.join("to_data")).unwrap();
        std::os::unix::fs::symlink(base.join("fast"), base.join("to_fast")).unwrap();
        let places = |of: &[&str]| {
            let named = (16400..)
                .zip(of)
                .map(|(oid, name)| (oid.to_string(), base.join(name)));
            let named = serde_json::to_value(named.collect::<BTreeMap<_, _>>()).unwrap();
            separate_places(&base.join("data"), &serde_json::from_value(named).unwrap())
        };
        assert_eq!(places(&["to_fast/new"]).unwrap(), [base.join("fast/new")]);
        assert!(places(&["to_fast/one", "fast/two"]).is_ok());
        for bad in [
            &["to_data"][..],
            &["to_data/pg_tblspc/1"],
            &["to_fast", "fast"],
            &["fast", "to_fast/one"],
        ] {
            assert!(places(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_path_that_does_not_exist_is_resolved_as_far_as_it_does() {
        let directory = tempfile::tempdir().unwrap();
        let base = std::fs::canonicalize(directory.path()).unwrap();
        std::os::unix::fs::symlink(&base, base.join("link")).unwrap();
        assert_eq!(resolved(&base.join("link/a/b")).unwrap(), base.join("a/b"));
        assert_eq!(resolved(&base.join("link")).unwrap(), base);
        assert!(resolved(&base.join("a/../b")).is_err());
        std::os::unix::fs::symlink(base.join("gone"), base.join("dangling")).unwrap();
        for path in ["dangling", "dangling/data"] {
            let error = resolved(&base.join(path)).unwrap_err().to_string();
            assert!(
                error.contains("/dangling is a link to") && error.contains("/gone"),
                "{error}"
            );
        }
    }
}
