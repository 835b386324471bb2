//! Combines an incremental backup with its parent, file by file while it arrives.
//!
//! For a relation that has changed little, the server sends `INCREMENTAL.<name>`: the changed blocks, and how much of
//! the rest is still valid. Together with the parent's map of that relation, this is stored as the whole file at once.
//! Nothing is on disk in between, and memory holds one block and one file's list of blocks. The checksum of each file
//! is taken as it was sent ([`SentNotes`]), before it is combined, so that it can be compared with the server's
//! manifest.

use barmanfs_catalog::Backup;
use barmanfs_pg::backup_label::{self, BackupLabel};
use barmanfs_pg::incremental::{self, HeaderParser, IncrementalHeader};
use barmanfs_store::layout::{BLOCK_BYTES, DATA_WINDOW_BYTES};
use barmanfs_store::{Attributes, ComposedSink, DirectoryRef, Finder, TreeReader, TreeWriter};

use super::files::{LABEL, LABEL_FILE_MAX_BYTES, file_map};
use super::sent_manifest::{SentFile, SentNotes, SentNotesWriter};
use crate::output::printable;
use crate::postgres::SinkError;

/// The data from the server cannot be combined with the parent. A full backup does not need the parent.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Incompatible(pub(super) String);

/// Combines an incremental backup with its parent. Without a parent, it refuses one that needs a parent.
#[derive(Debug)]
pub(crate) struct Composer {
    parent: Option<Parent>,
    notes: SentNotesWriter,
    /// Whether a file is stored in another form than it was sent.
    has_altered: bool,
    /// Number of files that are longer than a segment according to the server.
    clamped: u64,
}

/// The backup that an incremental one builds on.
#[derive(Debug)]
pub(crate) struct Parent {
    backup: Backup,
    files: Finder,
}

impl Parent {
    /// A backup and its tree.
    pub(crate) fn new(backup: Backup, (trees, root): (TreeReader, DirectoryRef)) -> Self {
        Self {
            backup,
            files: Finder::new(trees, root),
        }
    }
}

impl Composer {
    /// `notes` is for files that are stored in another form than they were sent.
    pub(crate) fn new(parent: Option<Parent>, notes: SentNotesWriter) -> Self {
        Self {
            parent,
            notes,
            has_altered: false,
            clamped: 0,
        }
    }

    /// Whether any file was stored in another form than it was sent.
    pub(crate) fn has_altered(&self) -> bool {
        self.has_altered
    }

    /// Begins the file sent as `path` if it is stored in another form.
    pub(super) fn begin(&self, path: &[u8], attributes: Attributes, size_bytes: u64) -> Option<Altered> {
        let content = if path == LABEL {
            Content::Label(Vec::new())
        } else {
            let plain = incremental::plain_path(path)?;
            Content::Header(plain, HeaderParser::new(size_bytes))
        };
        Some(Altered {
            sent: SentFile {
                path: path.to_vec(),
                size_bytes,
                crc32c: 0,
            },
            attributes,
            content,
        })
    }

    /// Takes the next bytes of a file.
    pub(super) fn write(
        &mut self,
        file: &mut Altered,
        tree: &TreeWriter,
        mut bytes: &[u8],
    ) -> Result<(), SinkError> {
        file.sent.crc32c = crc32c::crc32c_append(file.sent.crc32c, bytes);
        while !bytes.is_empty() {
            let taken = match &mut file.content {
                Content::Label(label) => take_label(label, bytes)?,
                Content::Header(plain, parser) => {
                    let (taken, header) = parser
                        .push(bytes)
                        .map_err(|error| file.sent.incompatible(&error.to_string()))?;
                    if let Some(header) = header {
                        let plain = std::mem::take(plain);
                        let blocks = self.compose(&file.sent, file.attributes, &plain, &header, tree)?;
                        file.content = Content::Blocks(Box::new(blocks));
                    }
                    taken
                }
                Content::Blocks(blocks) => blocks.take(bytes)?,
            };
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    /// Finishes a file.
    pub(super) fn end(&mut self, file: Altered, tree: &TreeWriter) -> Result<(), SinkError> {
        match file.content {
            Content::Label(label) => self.end_label(&label, file.attributes, tree)?,
            Content::Header(..) => return Err(file.sent.incompatible("its header is cut short").into()),
            Content::Blocks(blocks) => blocks.finish()?,
        }
        Ok(self.notes.push(&file.sent)?)
    }

    /// Finishes, and returns the notes.
    pub(crate) fn finish(self) -> std::io::Result<SentNotes> {
        if self.clamped > 0 {
            tracing::warn!(
                "The server gave {} files a length beyond the end of their segment; they are stored as pg_combinebackup \
                 of 17.8 and 18.2 would make them. Those releases have the defect mended",
                self.clamped
            );
        }
        self.notes.finish()
    }

    fn compose(
        &mut self,
        sent: &SentFile,
        attributes: Attributes,
        plain: &[u8],
        header: &IncrementalHeader,
        tree: &TreeWriter,
    ) -> Result<Blocks, SinkError> {
        let Some(parent) = &mut self.parent else {
            return Err(sent
                .incompatible("it holds changes only, and the backup has no other that it builds on")
                .into());
        };
        let Some(base) = parent.files.find(plain)?.and_then(file_map) else {
            return Err(sent
                .incompatible(&format!("backup {} does not have the file", parent.backup.id))
                .into());
        };
        self.has_altered = true;
        self.clamped += u64::from(header.clamped());
        let mut sink = tree.composed_file(
            plain,
            attributes,
            u64::from(header.result_blocks()) * BLOCK_BYTES as u64,
            DATA_WINDOW_BYTES,
            Some((parent.files.tree(), &base)),
            u64::from(header.truncation_blocks()) * BLOCK_BYTES as u64,
        )?;
        sink.expect(
            header
                .blocks()
                .iter()
                .map(|number| u64::from(*number) * BLOCK_BYTES as u64),
        );
        Ok(Blocks {
            sink,
            left: header.blocks().to_vec().into_iter(),
            block: Vec::with_capacity(BLOCK_BYTES),
        })
    }

    /// The label names the backup on which the server's list of changes is based.
    fn end_label(&mut self, sent: &[u8], attributes: Attributes, tree: &TreeWriter) -> Result<(), SinkError> {
        let label = BackupLabel::parse(sent).map_err(|error| Incompatible(error.to_string()))?;
        let parent = self.parent.as_ref().map(|parent| &parent.backup);
        let expected = parent.and_then(|parent| parent.start_lsn.zip(parent.timeline));
        if label.incremental_from != expected || (parent.is_some() && expected.is_none()) {
            let from = label.incremental_from.map_or_else(
                || "no backup".to_owned(),
                |(lsn, timeline)| format!("{lsn} on timeline {timeline}"),
            );
            return Err(Incompatible(format!(
                "its backup_label says that it builds on {from}, not on {}",
                parent.map_or_else(|| "none".to_owned(), |parent| format!("backup {}", parent.id))
            ))
            .into());
        }
        let stored = backup_label::without_incremental(sent);
        self.has_altered |= stored != sent;
        let mut sink = tree.file(LABEL, attributes, stored.len() as u64, DATA_WINDOW_BYTES)?;
        sink.write(&stored)?;
        Ok(sink.finish()?)
    }
}

fn take_label(label: &mut Vec<u8>, bytes: &[u8]) -> Result<usize, SinkError> {
    if label.len() + bytes.len() > LABEL_FILE_MAX_BYTES {
        return Err("The server sent a backup_label of more than 64 KiB".into());
    }
    label.extend_from_slice(bytes);
    Ok(bytes.len())
}

/// A file in transfer that is stored in another form than it is sent.
#[derive(Debug)]
pub(super) struct Altered {
    sent: SentFile,
    attributes: Attributes,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// `backup_label`, which is a few lines.
    Label(Vec<u8>),
    /// The header before the blocks of a relation, with the path of the relation.
    Header(Vec<u8>, HeaderParser),
    /// The blocks of a relation.
    Blocks(Box<Blocks>),
}

/// The changed blocks of one relation file, in the order of the header's list.
#[derive(Debug)]
struct Blocks {
    sink: ComposedSink,
    /// The numbers of the blocks that have not arrived yet.
    left: std::vec::IntoIter<u32>,
    /// The block that is arriving.
    block: Vec<u8>,
}

impl Blocks {
    fn take(&mut self, bytes: &[u8]) -> Result<usize, SinkError> {
        let (now, _) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.block.len()));
        self.block.extend_from_slice(now);
        if self.block.len() == BLOCK_BYTES {
            // The header's parser has checked that there are as many blocks as numbers.
            let number = self
                .left
                .next()
                .ok_or("There are more blocks than the header lists")?;
            self.sink
                .block(u64::from(number) * BLOCK_BYTES as u64, &self.block)?;
            self.block.clear();
        }
        Ok(now.len())
    }

    fn finish(self) -> Result<(), SinkError> {
        if self.left.len() > 0 || !self.block.is_empty() {
            return Err("There are fewer blocks than the header lists".into());
        }
        Ok(self.sink.finish()?)
    }
}

impl SentFile {
    fn incompatible(&self, reason: &str) -> Incompatible {
        Incompatible(format!("file {}: {reason}", printable(&self.path)))
    }
}
