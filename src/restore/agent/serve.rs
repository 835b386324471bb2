//! Answers the requests of an agent, on the side that has the repository.

use std::io::{BufReader, Read, Write};
use std::sync::Arc;

use barmanfs_fs::entry::Content;
use barmanfs_store::Window;

use super::wire::{self, Bytes, Entries, Failure, FarEntry, FarKind, Frame, Request};
use crate::error::Error;
use crate::restore::source::{FileContent, PartWindows, Wanted};
use crate::restore::view::ViewTree;
use crate::throttle::Throttle;

/// Entries in one frame.
const ENTRIES_AT_ONCE: usize = 1000;

/// A request for more is none of an agent.
const MAX_WINDOWS: usize = 4096;
const MAX_PART_BYTES: u64 = 64 << 20;

/// Windows of what is not stored in windows.
const MADE_WINDOW_BYTES: u32 = 128 << 10;

/// Why a connection has ended before the other side ended it.
#[derive(Debug)]
pub(in crate::restore) enum Unserved {
    /// Something could not be read here. The other side was told.
    Here(Error),
    /// The connection has failed.
    Connection(Error),
}

/// A tree for one connection.
pub(in crate::restore) struct Server<'a> {
    pub(in crate::restore) view: &'a ViewTree,
    pub(in crate::restore) throttle: Option<&'a Throttle>,
    /// The file of the last request, which is mostly that of the next one.
    last: Option<(Vec<u8>, Arc<FileContent>)>,
}

impl<'a> Server<'a> {
    pub(in crate::restore) fn new(view: &'a ViewTree, throttle: Option<&'a Throttle>) -> Self {
        Self {
            view,
            throttle,
            last: None,
        }
    }

    /// Answers until the other side ends the connection.
    pub(in crate::restore) fn run(&mut self, from: impl Read, to: &mut impl Write) -> Result<(), Unserved> {
        let mut from = BufReader::new(from);
        loop {
            let request = match wire::read_frame(&mut from) {
                Ok(None) => return Ok(()),
                Ok(Some((Frame::Message, bytes))) => wire::json::<Request>(&bytes),
                Ok(Some(_)) => Err(wire::garbled("no request")),
                Err(error) => Err(error),
            };
            let answered = match request.map_err(Unserved::Connection)? {
                Request::List { path } => self.list(&path, to),
                Request::Windows { path, from, to: end } => self.windows(&path, (from, end), to),
                Request::Content { path, windows } => self.content(&path, &windows, to),
            };
            if let Err(error) = answered {
                let told = wire::write_json(to, Frame::Failure, &Failure::from(&error));
                return Err(told.map_or_else(Unserved::Connection, |()| Unserved::Here(error)));
            }
            to.flush()
                .map_err(|error| Error::failed(format!("Cannot send to the other host: {error}")))
                .map_err(Unserved::Connection)?;
        }
    }

    fn list(&self, path: &Bytes, to: &mut impl Write) -> Result<(), Error> {
        let directory = self.view.directory(&path.0)?;
        let directory = directory.ok_or_else(|| wire::garbled("a directory that does not exist"))?;
        let mut entries = Vec::new();
        for child in directory.entries()? {
            let child = child?;
            entries.push(FarEntry {
                stat: (&child.stat).into(),
                kind: match child.content {
                    Content::Directory(_) => FarKind::Directory,
                    Content::File => FarKind::File,
                    Content::Symlink(target) => FarKind::Link(Bytes(target.to_vec())),
                },
                name: Bytes(child.name),
            });
            if entries.len() == ENTRIES_AT_ONCE {
                let entries = std::mem::take(&mut entries);
                wire::write_json(to, Frame::Entries, &Entries { entries, more: true })?;
            }
        }
        wire::write_json(to, Frame::Entries, &Entries { entries, more: false })
    }

    fn file(&mut self, path: &Bytes) -> Result<Arc<FileContent>, Error> {
        if let Some((last, content)) = &self.last
            && *last == path.0
        {
            return Ok(Arc::clone(content));
        }
        let file = self.view.file(&path.0)?;
        let file = file.ok_or_else(|| wire::garbled("a file that does not exist"))?;
        let content = Arc::new(file.open()?);
        self.last = Some((path.0.clone(), Arc::clone(&content)));
        Ok(content)
    }

    fn windows(&mut self, path: &Bytes, (from, end): (u64, u64), to: &mut impl Write) -> Result<(), Error> {
        let file = self.file(path)?;
        let end = end.min(file.size_bytes());
        if end.saturating_sub(from) > MAX_PART_BYTES || !from.is_multiple_of(MAX_PART_BYTES / 2) {
            return Err(wire::garbled("a part that is none"));
        }
        let part = match file.windows((from, end.max(from)))? {
            Some(part) => part,
            None => made(&file, (from, end))?,
        };
        wire::write_frame(to, Frame::Windows, &wire::rows(&part))
    }

    fn content(&mut self, path: &Bytes, windows: &[u64], to: &mut impl Write) -> Result<(), Error> {
        if windows.len() > MAX_WINDOWS {
            return Err(wire::garbled("too many windows at once"));
        }
        let file = self.file(path)?;
        let throttle = self.throttle;
        let mut send = |bytes: &[u8]| {
            let packed = wire::packed(bytes);
            if let Some(throttle) = throttle {
                throttle.take(packed.len() as u64);
            }
            wire::write_frame(to, Frame::Content, &packed)
        };
        for n in windows {
            let at = |window_bytes: u32| n.saturating_mul(window_bytes.into());
            match stored(&file, *n)? {
                Some(wanted) => file.contents(&[wanted], &mut |_, bytes| send(bytes))?,
                None => send(&read(&file, at(MADE_WINDOW_BYTES), MADE_WINDOW_BYTES)?)?,
            }
        }
        Ok(())
    }
}

/// A window of a stored file.
fn stored(file: &FileContent, n: u64) -> Result<Option<Wanted>, Error> {
    let FileContent::Own(body, trees) = file else {
        return Ok(None);
    };
    let barmanfs_fs::entry::Body::Stored(map) = body else {
        return Ok(None);
    };
    if n >= map.window_count() {
        return Err(wire::garbled("a window that does not exist"));
    }
    let chunk = trees.window(map, n)?.chunk;
    let chunk = chunk.ok_or_else(|| wire::garbled("the bytes of a hole are asked for"))?;
    Ok(Some(Wanted {
        n,
        length: map.window_length(n),
        chunk,
    }))
}

/// The windows of what is not stored in windows.
fn made(file: &FileContent, (from, to): (u64, u64)) -> Result<PartWindows, Error> {
    let window_bytes = u64::from(MADE_WINDOW_BYTES);
    let mut part = PartWindows {
        window_bytes: MADE_WINDOW_BYTES,
        first: from.div_ceil(window_bytes),
        windows: Vec::new(),
    };
    let mut at = part.first * window_bytes;
    let hash = file.chunk_hash();
    while at < to {
        let bytes = read(file, at, MADE_WINDOW_BYTES)?;
        part.windows.push(Window {
            chunk: Some(hash.id_of(&bytes)),
            crc32c: crc32c::crc32c(&bytes),
        });
        at += window_bytes;
    }
    Ok(part)
}

fn read(file: &FileContent, at: u64, length: u32) -> Result<Vec<u8>, Error> {
    let left = file.size_bytes().saturating_sub(at).min(length.into());
    let mut bytes = vec![0; usize::try_from(left).unwrap_or(0)];
    let mut count = 0;
    while count < bytes.len() {
        match file.read_at(at + count as u64, bytes.get_mut(count..).unwrap_or_default())? {
            0 => return Err(Error::failed("A file of the backup ends early")),
            read => count += read,
        }
    }
    Ok(bytes)
}
