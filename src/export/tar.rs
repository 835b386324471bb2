//! `pg_basebackup`'s tar format: `base.tar`, `<oid>.tar` of each tablespace, `pg_wal.tar` and `backup_manifest` in a
//! directory; or one archive on standard output, as `pg_basebackup -D - -X fetch` writes it.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use barmanfs_catalog::Backup;

use super::archive::{Archive, Run};
use super::compressed::{compressed, suffix};
use super::tree::{self, Part, Size};
use super::{Asked, Exported, outside};
use crate::error::Error;
use crate::output;
use crate::restore::{SourceFile, ViewTree};
use crate::unfinished::{UnfinishedDirectory, failed};

const MANIFEST: &str = "backup_manifest";

/// Exports a backup.
pub(crate) fn export(asked: &Asked<'_>, backup: &Backup) -> Result<Exported, Error> {
    let began = Instant::now();
    let _reading = asked.repository.reading(backup)?;
    let view = super::open(asked.repository, backup, None, None)?;
    let size = Size::of(&view)?;
    let wal = match asked.with_wal {
        true => tree::wal(&view)?,
        false => Vec::new(),
    };
    let run = || Run::start(&format!("Export of {}", backup.id), size.bytes, asked.quiet);
    let mut exported = Exported {
        backups: vec![backup.id],
        files: size.files,
        bytes: size.bytes,
        wal_files: wal.len() as u64,
        ..Exported::default()
    };
    match asked.to {
        Some(to) => {
            let unfinished = UnfinishedDirectory::make(to)?;
            super::refuse_lack_of_space(asked, unfinished.path(), size.archive_bytes)?;
            let set = Set {
                directory: &unfinished.below(),
                asked,
                view: &view,
                run: &run()?,
            };
            let written = set.write(backup, &wal);
            exported.written_bytes = written.map_err(|error| unfinished.named(error))?;
            exported.path = Some(unfinished.destination().to_owned());
            unfinished.put()?;
        }
        None => stream(asked, &view, backup, &wal, &run()?)?,
    }
    exported.elapsed = began.elapsed();
    Ok(exported)
}

/// The archives of one backup in a directory.
struct Set<'a> {
    directory: &'a Path,
    asked: &'a Asked<'a>,
    view: &'a ViewTree,
    run: &'a Run,
}

impl Set<'_> {
    fn write(&self, backup: &Backup, wal: &[SourceFile]) -> Result<u64, Error> {
        let mut written = 0;
        let outside = outside(backup);
        for oid in &outside {
            written += self.archive(&oid.to_string(), |archive| {
                tree::add_tablespace(archive, self.view, *oid, b"")
            })?;
        }
        if self.asked.with_wal {
            written += self.archive("pg_wal", |archive| add_wal(archive, self.view, b"", wal))?;
        }
        let part = Part {
            prefix: b"",
            with_wal: false,
            with_manifest: false,
            with_links: true,
            outside: &outside,
        };
        written += self.archive("base", |archive| {
            tree::add_data(archive, self.view, &part).map(drop)
        })?;
        if let Some(manifest) = self.view.file(MANIFEST.as_bytes())? {
            let path = self.directory.join(MANIFEST);
            let mut file = make(&path)?;
            let copied = io::copy(&mut manifest.read()?, &mut file);
            written += copied.map_err(|error| failed("write", &path, &error))?;
        }
        Ok(written)
    }

    /// Writes one archive. Returns its size.
    fn archive(
        &self,
        name: &str,
        add: impl FnOnce(&mut Archive<'_>) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let form = self.asked.compression;
        let path = self.directory.join(format!("{name}.tar{}", suffix(form)));
        let mut file = make(&path)?;
        compressed(form, &mut file, &path, |output| {
            let mut archive = Archive::new(output, &path, self.run);
            add(&mut archive)?;
            archive.finish()
        })?;
        let size = file.metadata().map(|found| found.len());
        size.map_err(|error| failed("look at", &path, &error))
    }
}

fn make(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(path);
    opened.map_err(|error| failed("make", path, &error))
}

/// Segments, and a file for each that says that it is archived: a server that is started archives none of them again.
fn add_wal(
    archive: &mut Archive<'_>,
    view: &ViewTree,
    prefix: &[u8],
    wal: &[SourceFile],
) -> Result<(), Error> {
    for file in wal {
        archive.file(&[prefix, &file.name].concat(), file)?;
        let done = [prefix, b"archive_status/", &file.name, b".done"].concat();
        let stat = barmanfs_fs::entry::Stat {
            mode: 0o600 | (view.stat.mode & 0o040),
            ..view.stat
        };
        archive.made(&done, &stat, b"")?;
    }
    Ok(())
}

fn stream(
    asked: &Asked<'_>,
    view: &ViewTree,
    backup: &Backup,
    wal: &[SourceFile],
    run: &Run,
) -> Result<(), Error> {
    if !outside(backup).is_empty() {
        return Err(Error::usage(format!(
            "Backup {} has tablespaces, each of which is an archive of its own",
            backup.id
        ))
        .hint("Name a directory instead of -"));
    }
    let part = Part {
        prefix: b"",
        with_wal: false,
        with_manifest: false,
        with_links: true,
        outside: &[],
    };
    to_standard_output(
        asked,
        |archive| {
            add_wal(archive, view, b"pg_wal/", wal)?;
            tree::add_data(archive, view, &part)?;
            match view.file(MANIFEST.as_bytes())? {
                Some(manifest) => archive.file(MANIFEST.as_bytes(), &manifest),
                None => Ok(()),
            }
        },
        run,
    )
}

/// Writes one archive to standard output.
pub(super) fn to_standard_output<T>(
    asked: &Asked<'_>,
    add: impl FnOnce(&mut Archive<'_>) -> Result<T, Error>,
    run: &Run,
) -> Result<T, Error> {
    let mut output = output::stdout()?;
    if output.is_terminal() {
        return Err(Error::usage("An archive cannot be shown on a terminal")
            .hint("Redirect standard output, or name a place instead of -"));
    }
    let path = Path::new("standard output");
    let mut added = None;
    compressed(asked.compression, &mut output, path, |output| {
        let mut archive = Archive::new(output, path, run);
        added = Some(add(&mut archive)?);
        archive.finish()
    })?;
    output.flush().map_err(|error| failed("write", path, &error))?;
    added.ok_or_else(|| Error::failed("Nothing was written"))
}
