//! `barmanfs copy`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use barmanfs_bucket::Location;
use barmanfs_catalog::{Monitor, RebuildReport, Repository, is_home};
use indicatif::HumanBytes;

use super::App;
use crate::cli::copy::CopyArgs;
use crate::copy::{self, Copied, CopyOptions};
use crate::error::{Error, Outcome};
use crate::output::{self, Output};
use crate::progress::Shown;
use crate::report::Copy;
use crate::restore::resolved;
use crate::{fstab, ownership};

/// Locked packs that are named in a text.
const LOCKED_SHOWN: usize = 20;

/// One side of a copy.
enum Side {
    Directory(PathBuf),
    Bucket(Location),
}

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &CopyArgs) -> Result<Outcome, Error> {
    let options = CopyOptions {
        dry_run: args.dry_run,
        delete: args.delete,
    };
    let mut monitor = Shown::start("Copy", app.options.quiet || args.json.json);
    let keys = &app.config.bucket;
    let (from, to) = (side(&args.from)?, side(&args.to)?);
    let (copied, catalog) = match (&from, &to) {
        (Side::Directory(path), Side::Bucket(location)) => {
            if args.from_versions {
                return Err(Error::usage(
                    "--from-versions is for a copy from an object store: it reads old versions there",
                ));
            }
            ownership::refuse_foreign_root(path)?;
            let repository = Repository::open(path)?;
            refuse_mixed(path, location)?;
            let bucket = copy::open(location, keys)?;
            (copy::out::run(&repository, &bucket, options, &mut monitor)?, None)
        }
        (Side::Bucket(location), Side::Directory(path)) => {
            if args.delete {
                return Err(Error::usage(
                    "--delete is for a copy to an object store: this one goes into an empty directory",
                ));
            }
            refuse_unmounted(path)?;
            refuse_mixed(path, location)?;
            ownership::refuse_foreign_root(path)?;
            back(app, args, location, path, options, &mut monitor)?
        }
        _ => {
            return Err(Error::usage(
                "One side of a copy is a directory, and the other the URL of an object store",
            )
            .hint("barmanfs copy /var/lib/barmanfs s3://BUCKET/PREFIX"));
        }
    };
    drop(monitor);
    let is_well = copied.problems.is_empty() && catalog.as_ref().is_none_or(RebuildReport::is_complete);
    let report = Copy {
        from: shown(&from),
        to: shown(&to),
        dry_run: args.dry_run,
        copied,
        catalog,
    };
    if args.json.json {
        app.out.json(&report)?;
    } else if !(app.options.quiet && is_well) {
        show(&mut app.out, &report)?;
    }
    Ok(if is_well { Outcome::Done } else { Outcome::Problems })
}

/// A copy from a bucket, as it is or as it was written first.
fn back(
    app: &App,
    args: &CopyArgs,
    location: &Location,
    path: &Path,
    options: CopyOptions,
    monitor: &mut Shown,
) -> Result<(Copied, Option<RebuildReport>), Error> {
    let bucket = copy::open(location, &app.config.bucket)?;
    if !args.from_versions {
        return copy::back::run(&bucket, path, options, monitor);
    }
    monitor.stage("Listing the versions of all objects");
    let (oldest, found) = bucket.at_oldest_versions(args.before)?;
    let (mut copied, catalog) = copy::back::run(&Arc::new(oldest), path, options, monitor)?;
    copied.from_versions = Some(found.into());
    Ok((copied, catalog))
}

fn side(text: &OsStr) -> Result<Side, Error> {
    match text.to_str() {
        Some(url) if Location::is_url(url) => match Location::parse(url) {
            Ok(location) => Ok(Side::Bucket(location)),
            Err(reason) => Err(Error::usage(format!("The URL {reason}"))),
        },
        _ => {
            let path = std::path::absolute(text);
            let path = path.map_err(|error| {
                let text = Path::new(text).display();
                Error::usage(format!("'{text}' is neither a directory nor a URL: {error}"))
            })?;
            Ok(Side::Directory(path))
        }
    }
}

fn shown(side: &Side) -> String {
    match side {
        Side::Directory(path) => path.display().to_string(),
        Side::Bucket(location) => location.to_string(),
    }
}

fn refuse_unmounted(path: &Path) -> Result<(), Error> {
    match fstab::missing_mount(path) {
        None => Ok(()),
        Some(mount_point) => Err(Error::failed(format!(
            "{} is not mounted: nothing is copied in its place",
            mount_point.display()
        ))),
    }
}

/// A bucket that is a directory has the same names as a repository and another order of packs. So it must be a directory of its
/// own: not that of a repository, nor in one, nor around one.
fn refuse_mixed(repository: &Path, location: &Location) -> Result<(), Error> {
    let Some(bucket) = location.directory() else {
        return Ok(());
    };
    refuse_unmounted(bucket)?;
    let (repository, bucket) = (resolved(repository)?, resolved(bucket)?);
    let is_repository = is_home(&bucket);
    if !is_repository && !repository.starts_with(&bucket) && !bucket.starts_with(&repository) {
        return Ok(());
    }
    Err(Error::usage(match is_repository {
        true => format!(
            "{} is the directory of a repository, and no object store",
            bucket.display()
        ),
        false => format!(
            "Of {} and {location}, one is in the other: a copy there would mix them, and be lost with it",
            repository.display()
        ),
    })
    .hint("Name a directory of its own, best on another disk"))
}

fn show(out: &mut Output, report: &Copy) -> Result<(), Error> {
    let copied = &report.copied;
    for problem in &copied.problems {
        let reason = output::printable(problem.reason.as_bytes());
        out.line(format_args!("Not copied: {}: {reason}", problem.pack))?;
    }
    let verb = if report.dry_run { "Would copy" } else { "Copied" };
    out.line(format_args!(
        "{verb} {} ({}) from {} to {}; {} of {} were there",
        packs(copied.copied_packs),
        HumanBytes(copied.copied_bytes),
        output::printable(report.from.as_bytes()),
        output::printable(report.to.as_bytes()),
        copied.present_packs,
        packs(copied.packs)
    ))?;
    show_versions(out, copied)?;
    show_locked(out, copied)?;
    show_extra(out, copied, report.dry_run)?;
    if let Some(catalog) = &report.catalog {
        super::rebuild_catalog::show(out, catalog)?;
    }
    Ok(())
}

fn show_versions(out: &mut Output, copied: &Copied) -> Result<(), Error> {
    let Some(found) = copied.from_versions else {
        return Ok(());
    };
    let objects = |number: u64| output::count(usize::try_from(number).unwrap_or(usize::MAX), "object");
    out.line(format_args!(
        "Read the oldest versions: {} had been deleted, {} overwritten; {} came too late and were left out",
        objects(found.deleted),
        objects(found.overwritten),
        objects(found.too_late)
    ))
}

fn show_locked(out: &mut Output, copied: &Copied) -> Result<(), Error> {
    for locked in copied.locked.iter().take(LOCKED_SHOWN) {
        let until = locked.until.as_deref();
        let until = until.unwrap_or("its legal hold is released");
        out.line(format_args!(
            "Not removed: {} is locked until {until}",
            locked.pack
        ))?;
    }
    match copied.locked.len() {
        0 => Ok(()),
        number => out.line(format_args!(
            "{} locked by the bucket; a copy with --delete after that time removes what is locked now",
            match number {
                1 => "1 pack is".to_owned(),
                _ => format!("{number} packs are (all with --json)"),
            }
        )),
    }
}

fn show_extra(out: &mut Output, copied: &Copied, dry_run: bool) -> Result<(), Error> {
    if copied.removed_packs > 0 {
        let verb = if dry_run { "Would remove" } else { "Removed" };
        out.line(format_args!(
            "{verb} {} that the repository no longer has",
            packs(copied.removed_packs)
        ))?;
    }
    if copied.keeps_versions {
        return out.line(format_args!(
            "The bucket keeps versions: what was removed takes room there until a lifecycle rule ends old versions"
        ));
    }
    if copied.extra_packs > 0 && copied.removed_packs == 0 && copied.locked.is_empty() {
        out.line(format_args!(
            "The bucket has {} ({}) that the repository no longer has; --delete removes them",
            packs(copied.extra_packs),
            HumanBytes(copied.extra_bytes)
        ))?;
    }
    Ok(())
}

fn packs(number: u64) -> String {
    output::count(usize::try_from(number).unwrap_or(usize::MAX), "pack")
}
