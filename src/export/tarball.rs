//! The tarball of `barman export-backup`, which `barman import-backup` takes.
//!
//! Members, in this order: `identity.json`, `backup.info`, `barman.json`, `backup/` with `data/` and a directory for each
//! tablespace, `wals/`, `xlog.db`. Barman wants a checksum in the name, and no symbolic links.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use barmanfs_catalog::{Backup, BackupStatus, Repository};
use barmanfs_fs::entry::Stat;
use barmanfs_fs::views::PlainOptions;
use barmanfs_pg::wal_name::WalName;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::archive::{Archive, Run};
use super::compressed::{compressed, suffix};
use super::tar::to_standard_output;
use super::tree::{self, Part, Size};
use super::{Asked, Exported, backup_info, outside, own_segments, xlog_db};
use crate::error::Error;
use crate::moment;
use crate::output::printable;
use crate::restore::{SourceFile, ViewTree};
use crate::unfinished::UnfinishedFile;
use crate::wal_transfer::compression::Compression;

/// A label file has a few lines.
const MAX_LABEL_BYTES: u64 = 64 << 10;

/// Characters of the checksum in the name.
const CHECKSUM_CHARACTERS: usize = 8;

/// Exports a backup. If a directory is named, the tarball gets the name that Barman demands.
pub(crate) fn export(asked: &Asked<'_>, backup: &Backup) -> Result<Exported, Error> {
    let began = Instant::now();
    refuse(asked, backup)?;
    let _reading = asked.repository.reading(backup)?;
    let tarball = Tarball::open(asked, backup)?;
    let size = Size::of(&tarball.view)?;
    let run = || Run::start(&format!("Export of {}", backup.id), size.bytes, asked.quiet);
    let mut exported = Exported {
        backups: vec![backup.id],
        files: size.files,
        bytes: size.bytes,
        wal_files: tarball.wal.len() as u64,
        ..Exported::default()
    };
    let Some(to) = asked.to else {
        let run = run()?;
        exported.notes = to_standard_output(asked, |archive| tarball.write(archive), &run)?;
        exported.elapsed = began.elapsed();
        return Ok(exported);
    };
    write_file(&tarball, to, &size, &run()?, &mut exported)?;
    exported.elapsed = began.elapsed();
    Ok(exported)
}

/// Writes the tarball to a file, or to one in a directory.
fn write_file(
    tarball: &Tarball<'_>,
    to: &Path,
    size: &Size,
    run: &Run,
    exported: &mut Exported,
) -> Result<(), Error> {
    let asked = tarball.asked;
    let name = Name::new(asked, tarball.backup);
    let is_directory = to.is_dir();
    let provisional = match is_directory {
        true => to.join(&name.provisional),
        false => to.to_owned(),
    };
    let unfinished = UnfinishedFile::make(&provisional)?;
    super::refuse_lack_of_space(asked, unfinished.path(), size.archive_bytes)?;
    let mut target = Hashing {
        inner: unfinished.file(),
        hasher: Sha256::new(),
        bytes: 0,
    };
    compressed(asked.compression, &mut target, unfinished.path(), |output| {
        let mut archive = Archive::new(output, unfinished.path(), run);
        exported.notes = tarball.write(&mut archive)?;
        archive.finish()
    })?;
    exported.written_bytes = target.bytes;
    let checksum: String = target
        .hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let checksum = checksum.get(..CHECKSUM_CHARACTERS).unwrap_or_default();
    let path: PathBuf = match is_directory {
        true => to.join(name.with(checksum)),
        false => provisional,
    };
    if !is_directory {
        let expected = name.with(checksum);
        exported.notes.push(format!(
            "'barman import-backup' takes it only under the name {expected}"
        ));
    }
    unfinished.put(&path)?;
    exported.path = Some(path);
    Ok(())
}

fn refuse(asked: &Asked<'_>, backup: &Backup) -> Result<(), Error> {
    let refused = |why: String, hint: &str| Err(Error::usage(why).hint(hint.to_owned()));
    if !backup.is_of_server() {
        return refused(
            format!(
                "Backup {} was made of a clone: Barman has no such backups",
                backup.id
            ),
            "Use --format plain or --format tar",
        );
    }
    if backup.status != BackupStatus::Done {
        return Err(
            Error::failed(format!("Backup {} is {}", backup.id, backup.status))
                .hint("Barman takes only backups with all of their WAL"),
        );
    }
    match asked.compression {
        None | Some(Compression::Gzip | Compression::Bzip2 | Compression::Xz) => Ok(()),
        Some(_) => refused(
            "Barman reads tarballs with gzip, bzip2, xz, or without compression".to_owned(),
            "Choose one of these with --compression",
        ),
    }
}

/// The name that Barman demands.
struct Name {
    /// Until the checksum is known. It has no time, so that the next export finds what a killed one has left.
    provisional: String,
    beginning: String,
    suffix: &'static str,
}

impl Name {
    fn new(asked: &Asked<'_>, backup: &Backup) -> Self {
        let now = moment::now().unix_micros();
        let now = Timestamp::from_microsecond(now).unwrap_or(Timestamp::UNIX_EPOCH);
        let provisional = format!("backup-export-{}-{}", backup.server, backup.id);
        Self {
            beginning: format!("{provisional}-{}", now.strftime("%Y%m%dT%H%M%S")),
            provisional,
            suffix: suffix(asked.compression),
        }
    }

    fn with(&self, checksum: &str) -> String {
        let Self {
            beginning, suffix, ..
        } = self;
        format!("{beginning}-{checksum}.tar{suffix}")
    }
}

/// What goes into the archive.
struct Tarball<'a> {
    asked: &'a Asked<'a>,
    backup: &'a Backup,
    view: ViewTree,
    wal: Vec<(WalName, SourceFile)>,
}

impl<'a> Tarball<'a> {
    fn open(asked: &'a Asked<'a>, backup: &'a Backup) -> Result<Self, Error> {
        let view = super::open(asked.repository, backup, Some(PlainOptions { wal: true }), None)?;
        let wal = own_wal(&view, backup)?;
        Ok(Self {
            asked,
            backup,
            view,
            wal,
        })
    }

    /// Returns what was left out.
    fn write(&self, archive: &mut Archive<'_>) -> Result<Vec<String>, Error> {
        let own = Stat {
            mode: 0o644,
            mtime_s: moment::now().unix_micros() / 1_000_000,
            ..self.view.stat
        };
        let directory = Stat { mode: 0o700, ..own };
        archive.made(b"identity.json", &own, identity(self.backup).as_bytes())?;
        let info = description(self.asked.repository, self.backup, &self.view)?;
        archive.made(b"backup.info", &own, info.as_bytes())?;
        archive.made(b"barman.json", &own, origin().as_bytes())?;
        archive.directory(b"backup", &directory)?;
        archive.directory(b"backup/data", &self.view.stat)?;
        let outside = outside(self.backup);
        let part = Part {
            prefix: b"backup/data/",
            with_wal: false,
            with_manifest: true,
            with_links: false,
            outside: &outside,
        };
        let left_out = tree::add_data(archive, &self.view, &part)?;
        for oid in outside {
            let place = format!("backup/{oid}");
            archive.directory(place.as_bytes(), &directory)?;
            tree::add_tablespace(archive, &self.view, oid, format!("{place}/").as_bytes())?;
        }
        archive.directory(b"wals", &directory)?;
        let mut lines = String::new();
        for (name, file) in &self.wal {
            let place = format!("wals/{}", xlog_db::place(name));
            archive.file(place.as_bytes(), file)?;
            lines += &xlog_db::line(name, file.stat.size_bytes, xlog_db::time_of(file));
        }
        archive.made(b"xlog.db", &own, lines.as_bytes())?;
        let shown = |path: &Vec<u8>| format!("Left out: the symbolic link {}", printable(path));
        Ok(left_out.iter().map(shown).collect())
    }
}

/// The segments from the start of a backup to its end.
pub(super) fn own_wal(view: &ViewTree, backup: &Backup) -> Result<Vec<(WalName, SourceFile)>, Error> {
    let file = |segment: barmanfs_pg::wal_name::SegmentName| {
        let path = format!("pg_wal/{segment}");
        let file = view.file(path.as_bytes())?.ok_or_else(|| {
            Error::failed(format!(
                "Backup {} needs the segment {segment}, which is not archived",
                backup.id
            ))
        })?;
        Ok((WalName::Segment(segment), file))
    };
    own_segments(backup).into_iter().map(file).collect()
}

/// By this Barman knows whose backup it is.
pub(super) fn identity(backup: &Backup) -> String {
    document(&json!({
        "systemid": backup.system_id.to_string(),
        "version": backup.server_version.major().to_string(),
    }))
}

/// Barman's description of a backup.
pub(super) fn description(
    repository: &Repository,
    backup: &Backup,
    view: &ViewTree,
) -> Result<String, Error> {
    let label = view.read_small(b"backup_label", MAX_LABEL_BYTES)?;
    let label = label.map(|label| String::from_utf8_lossy(&label).into_owned());
    let files = repository.configuration_files(backup)?;
    Ok(backup_info::text(backup, label.as_deref(), files.as_ref()))
}

/// Which program has made the tarball. Barman reads it, and decides nothing by it.
fn origin() -> String {
    document(&json!({
        "barman_ver": format!("barmanfs {}", env!("CARGO_PKG_VERSION")),
        "kernel_ver": null,
        "python_executable": null,
        "python_ver": null,
        "release": null,
        "rsync_ver": null,
        "ssh_ver": null,
        "timestamp": moment::now().to_string(),
    }))
}

fn document(value: &Value) -> String {
    format!("{value:#}")
}

/// Computes the checksum of what is written.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
