//! The spool of a primary: the WAL that its receiver has and its archive does not.
//!
//! It is a directory of files that grow, so what comes is the state of a moment, and replaces what came before if it begins with
//! the same bytes. Here it lies in the spool, too, where recovery finds it, and goes when the archive has the segment.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use barmanfs_catalog::{Repository, ServerName};
use barmanfs_pg::SegmentSize;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::open_regular;

use super::Primary;
use super::wire::SpoolEntry;
use crate::error::Error;

/// Bytes that are asked for at a time.
const BLOCK_BYTES: u32 = 1 << 20;

/// A spool has a few segments; a receiver that cannot archive stops.
const MAX_ENTRIES: usize = 100;

/// The ending of a segment that is not complete.
const PARTIAL: &str = ".partial";

fn directory(repository: &Path, server: &ServerName) -> PathBuf {
    repository.join("spool").join(server.as_str())
}

fn unreadable(place: &Path, error: &io::Error) -> Error {
    Error::failed(format!("Cannot read {}: {error}", place.display()))
}

/// Lists a spool.
pub(super) fn list(repository: &Path, server: &ServerName) -> Result<Vec<SpoolEntry>, Error> {
    let directory = directory(repository, server);
    let found = match fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(|error| unreadable(&directory, &error))?,
    };
    let mut entries = Vec::new();
    for entry in found {
        let entry = entry.map_err(|error| unreadable(&directory, &error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let (segment, complete) = match name.strip_suffix(PARTIAL) {
            Some(segment) => (segment.to_owned(), false),
            None => (name, true),
        };
        // It may be archived at this moment.
        let Ok(found) = entry.metadata() else { continue };
        if segment.parse::<SegmentName>().is_ok() && found.is_file() && found.len() > 0 {
            entries.push(SpoolEntry {
                name: segment,
                size_bytes: found.len(),
                complete,
                modified: (found.mtime(), found.mtime_nsec()),
            });
        }
    }
    entries.truncate(MAX_ENTRIES);
    Ok(entries)
}

/// Reads a part of a segment in a spool, without the zeros at its end; `None` if it is not there any more.
pub(super) fn read(
    repository: &Path,
    server: &ServerName,
    name: &str,
    (offset, bytes): (u64, u32),
) -> Result<Option<Vec<u8>>, Error> {
    let name: SegmentName = name
        .parse()
        .map_err(|_| Error::failed(format!("{name} is no segment")))?;
    let directory = directory(repository, server);
    for file in [format!("{name}{PARTIAL}"), name.to_string()] {
        let path = directory.join(file);
        let file = match open_regular(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            file => file.map_err(|error| unreadable(&path, &error))?,
        };
        let mut buffer = vec![0; bytes as usize];
        let mut done = 0;
        while let Some(left) = buffer.get_mut(done..).filter(|left| !left.is_empty()) {
            match file.read_at(left, offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) => return Err(unreadable(&path, &error)),
            }
        }
        let end = buffer
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        buffer.truncate(end);
        return Ok(Some(buffer));
    }
    Ok(None)
}

/// What was taken over.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Segments that were copied.
    pub(super) segments: u64,
    /// What could not be taken.
    pub(super) problems: Vec<String>,
}

/// Takes over what the primary has received and not archived.
pub(super) fn take(repository: &Repository, server: &ServerName, primary: &Primary) -> Result<Taken, Error> {
    let entries = primary.spool(server)?;
    let archive = repository.wal(server);
    let spool = repository.spool(server)?;
    let mut taken = Taken::default();
    for entry in entries.iter().take(MAX_ENTRIES) {
        let name: SegmentName = entry
            .name
            .parse()
            .map_err(|_| Error::failed("The primary's spool has a file that is no segment"))?;
        let size = SegmentSize::try_from(entry.size_bytes)
            .map_err(|_| Error::failed(format!("{name} in the primary's spool has no segment's size")))?;
        if archive.entry(&WalName::Segment(name))?.is_some() || spool.has_received(name, entry.modified) {
            continue;
        }
        let mut content = Content {
            primary,
            server,
            name: entry.name.as_str(),
            size_bytes: entry.size_bytes,
            offset: 0,
            block: Vec::new(),
            read: 0,
            failed: None,
        };
        let replaced = spool.replace_partial(name, size, entry.modified, &mut content);
        match content.failed.take() {
            // The segment was archived there meanwhile, and comes with the next sync.
            Some(Gone::Archived) => continue,
            Some(Gone::Failed(error)) => return Err(error),
            None => match replaced {
                Ok(is_replaced) => taken.segments += u64::from(is_replaced),
                // What is here stays, and is settled when the archive has the segment.
                Err(error @ barmanfs_catalog::Error::SpoolDiverges { .. }) => taken.problems.push(format!(
                    "What the primary has received of {name} is not taken: {error}"
                )),
                Err(error) => return Err(error.into()),
            },
        }
    }
    // What the archive has by now is not needed any more.
    let newest = spool.partial()?.last().map(|name| name.timeline);
    if let Some(newest) = newest {
        spool.settle(newest)?;
    }
    Ok(taken)
}

/// Why a segment cannot be read on.
enum Gone {
    Archived,
    Failed(Error),
}

/// The content of a segment in a spool.
struct Content<'a> {
    primary: &'a Primary,
    server: &'a ServerName,
    name: &'a str,
    size_bytes: u64,
    offset: u64,
    block: Vec<u8>,
    read: usize,
    failed: Option<Gone>,
}

impl Content<'_> {
    fn next_block(&mut self) -> io::Result<()> {
        let left = self.size_bytes.saturating_sub(self.offset);
        let bytes = u32::try_from(left).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        let read = self
            .primary
            .read_spool(self.server, self.name, (self.offset, bytes));
        let failed = match read {
            Ok(Some(mut block)) if block.len() <= bytes as usize => {
                block.resize(bytes as usize, 0);
                self.offset += u64::from(bytes);
                (self.block, self.read) = (block, 0);
                return Ok(());
            }
            Ok(Some(_)) => Gone::Failed(Error::failed(
                "The primary has sent more of a segment than asked for",
            )),
            Ok(None) => Gone::Archived,
            Err(error) => Gone::Failed(error),
        };
        self.failed = Some(failed);
        Err(io::Error::other("the primary does not give it"))
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.block.len() && self.offset < self.size_bytes {
            self.next_block()?;
        }
        let left = self.block.get(self.read..).unwrap_or_default();
        let count = left.len().min(buffer.len());
        buffer.iter_mut().zip(left).for_each(|(to, from)| *to = *from);
        self.read += count;
        Ok(count)
    }
}
