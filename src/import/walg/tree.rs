//! The files of one backup, from its archives and the backup before.

use std::collections::HashSet;
use std::io::Read;

use barmanfs_foreign::walg::{ArchiveRole, FileState, FilesMetadata, Increment, Sentinel};
use barmanfs_pg::TimestampMicros;
use barmanfs_store::Attributes;

use crate::error::Error;
use crate::import::Intake;
use crate::import::changed::Base;
use crate::import::intake::wrong;
use crate::import::members::Members;
use crate::output::printable;
use crate::postgres::{TarEntry, TarKind};

/// The control file, which is in an archive of its own.
const CONTROL: &[u8] = b"global/pg_control";

/// What ends a backup, in an archive of its own.
const LABELS: [&[u8]; 2] = [b"backup_label", b"tablespace_map"];

/// Where tablespaces are.
const TABLESPACES: &[u8] = b"pg_tblspc";

/// Directories that a server needs. WAL-G leaves them out where they are links.
const NEEDED: [&[u8]; 2] = [b"pg_tblspc", b"pg_wal"];

/// A file may grow by so much without a page in an increment: a server makes it larger before it writes there, and a segment has
/// 1 GiB.
const GROWTH_BYTES: u64 = 1 << 30;

/// What a sentinel says about the size of a backup may be wrong by so much.
const SIZE_SLACK_BYTES: u64 = 1 << 30;

/// What becomes of the members of the archives.
pub(super) struct Tree<'t, 'i> {
    intake: &'t mut Intake<'i>,
    /// What is listed and did not come yet; `None` if there is no list.
    files: Option<FilesMetadata>,
    base: Option<Base>,
    /// The kinds of archives that there are.
    roles: Vec<ArchiveRole>,
    finish_time: Option<TimestampMicros>,
    root: Option<Attributes>,
    /// A directory with the owner and the permissions of the data directory, which a server does not send.
    like_root: Option<Attributes>,
    directories: HashSet<Vec<u8>>,
    content_bytes: u64,
    /// More than this is not what was backed up.
    content_bytes_max: u64,
}

impl<'t, 'i> Tree<'t, 'i> {
    pub(super) fn new(
        intake: &'t mut Intake<'i>,
        files: FilesMetadata,
        base: Option<Base>,
        (sentinel, roles): (&Sentinel, Vec<ArchiveRole>),
    ) -> Self {
        let claimed = sentinel.uncompressed_bytes.max(sentinel.catalog_bytes);
        let content_bytes_max = match claimed {
            0 => u64::MAX,
            claimed => claimed.saturating_mul(2).saturating_add(SIZE_SLACK_BYTES),
        };
        Self {
            intake,
            files: (!files.is_empty()).then_some(files),
            base,
            roles,
            finish_time: sentinel.metadata.finish_time,
            root: None,
            like_root: None,
            directories: HashSet::new(),
            content_bytes: 0,
            content_bytes_max,
        }
    }

    /// Takes the members of one archive.
    pub(super) fn take(
        &mut self,
        role: ArchiveRole,
        members: &mut Members<Box<dyn Read>>,
    ) -> Result<(), Error> {
        while let Some(entry) = members.next_member()? {
            match entry.kind {
                TarKind::Directory => self.directory(&entry.path, entry.attributes())?,
                TarKind::Symlink => self.link(&entry)?,
                TarKind::File => self.file(role, &entry, members)?,
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: &[u8], attributes: Attributes) -> Result<(), Error> {
        if let Some(files) = &mut self.files {
            files.take(path);
        }
        if path.is_empty() {
            self.root = Some(attributes);
            return Ok(());
        }
        if path == b"base" {
            self.like_root = Some(attributes);
        }
        match self.directories.insert(path.to_vec()) {
            true => self.intake.directory(path, attributes),
            // A composer may write it twice.
            false => Ok(()),
        }
    }

    /// A link to a tablespace becomes the directory for its files; any other one leads to a server's files.
    fn link(&mut self, entry: &TarEntry) -> Result<(), Error> {
        let name = entry.path.strip_prefix(TABLESPACES).unwrap_or_default();
        let oid = name.strip_prefix(b"/").unwrap_or_default();
        if !oid.is_empty() && oid.iter().all(u8::is_ascii_digit) {
            let mode = self.root_or(&entry.attributes()).mode;
            let attributes = Attributes {
                mode,
                ..entry.attributes()
            };
            return self.directory(&entry.path, attributes);
        }
        tracing::warn!("{} is a symbolic link: it is left out", printable(&entry.path));
        if let Some(files) = &mut self.files {
            files.take(&entry.path);
        }
        Ok(())
    }

    fn has(&self, role: ArchiveRole) -> bool {
        self.roles.contains(&role)
    }

    fn file(
        &mut self,
        role: ArchiveRole,
        entry: &TarEntry,
        members: &mut Members<Box<dyn Read>>,
    ) -> Result<(), Error> {
        let path = entry.path.as_slice();
        let is_label = LABELS.contains(&path);
        // The same file may be in two archives; then the one of its own counts.
        let is_elsewhere = role == ArchiveRole::Part
            && ((path == CONTROL && self.has(ArchiveRole::Control))
                || (is_label && self.has(ArchiveRole::Label)));
        if is_elsewhere {
            return Ok(());
        }
        self.count(path, entry.size_bytes)?;
        let state = match &mut self.files {
            None => FileState::Whole,
            Some(files) => match files.take(path) {
                Some(state) => state,
                None if is_label || path == CONTROL => FileState::Whole,
                None => {
                    tracing::warn!(
                        "{} is not in the list of the backup's files: it is left out, as WAL-G does",
                        printable(path)
                    );
                    return Ok(());
                }
            },
        };
        let attributes = match role {
            ArchiveRole::Label => self.of_label(entry.attributes()),
            _ => entry.attributes(),
        };
        match state {
            FileState::Increment => self.increment(path, attributes, entry.size_bytes, members),
            FileState::Whole | FileState::Skipped => {
                self.intake.file(path, attributes, entry.size_bytes, members)
            }
        }
    }

    /// A backup holds what its server had, whatever its archives promise.
    fn count(&mut self, path: &[u8], bytes: u64) -> Result<(), Error> {
        self.content_bytes = self.content_bytes.saturating_add(bytes);
        match self.content_bytes > self.content_bytes_max {
            true => Err(wrong(
                path,
                format_args!("with it, the archives hold far more than the sentinel says"),
            )),
            false => Ok(()),
        }
    }

    fn increment(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        stored_bytes: u64,
        content: &mut Members<Box<dyn Read>>,
    ) -> Result<(), Error> {
        let Some(base) = &self.base else {
            return Err(wrong(
                path,
                format_args!("it is an increment, and there is no backup before"),
            ));
        };
        let increment =
            Increment::read(content, stored_bytes).map_err(|error| wrong(path, format_args!("{error}")))?;
        let (_, map) = base.file(path)?;
        let file_bytes = increment.file_bytes();
        let reached = map.size_bytes.max(increment.pages_end());
        if file_bytes > reached.saturating_add(GROWTH_BYTES) {
            return Err(wrong(
                path,
                format_args!("its increment makes {file_bytes} bytes of it, {reached} can be known"),
            ));
        }
        let (shape, from) = ((attributes, file_bytes), (base, &map));
        self.intake.changed(path, shape, from, increment.pages(), content)
    }

    /// WAL-G writes the label from memory: it belongs to nobody, and is of no time.
    fn of_label(&self, attributes: Attributes) -> Attributes {
        let root = self.root_or(&attributes);
        let micros = self.finish_time.map_or(0, TimestampMicros::unix_micros);
        match attributes.mtime_s {
            0 => Attributes {
                uid: root.uid,
                gid: root.gid,
                mtime_s: micros.div_euclid(1_000_000),
                ..attributes
            },
            _ => attributes,
        }
    }

    fn root_or(&self, other: &Attributes) -> Attributes {
        self.root.or(self.like_root).unwrap_or(*other)
    }

    /// Takes over what is as in the backup before, and adds directories that were links. Returns the attributes of the data
    /// directory.
    pub(super) fn finish(mut self, tablespaces: &[u32]) -> Result<Attributes, Error> {
        for (path, state) in self.files.take().unwrap_or_default().into_rest() {
            match (state, &self.base) {
                (FileState::Skipped, Some(base)) => {
                    let (attributes, map) = base.file(&path)?;
                    self.intake.unchanged(&path, attributes, (base, &map))?;
                }
                (FileState::Skipped, None) => {
                    return Err(wrong(
                        &path,
                        format_args!("it is as before, and there is no backup before"),
                    ));
                }
                (FileState::Whole | FileState::Increment, _) => {
                    return Err(wrong(&path, format_args!("it is in none of the archives")));
                }
            }
        }
        let root = self.root.or(self.like_root);
        let root = root.ok_or_else(|| Error::failed("the data directory itself is missing"))?;
        let spaces = tablespaces
            .iter()
            .map(|oid| format!("pg_tblspc/{oid}").into_bytes());
        for path in NEEDED.iter().map(|path| path.to_vec()).chain(spaces) {
            if self.directories.insert(path.clone()) {
                self.intake.directory(&path, root)?;
            }
        }
        Ok(root)
    }
}
