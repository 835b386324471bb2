//! `<server>/wal/`: the archive by name, decompressed, and the segment being received as `<segment>.partial`.
//!
//! `.barmanfs/replay/<server>/` is the same with the archived files as a copy may [`replay`] them.
//!
//! A missing segment may arrive at any moment, and recovery asks for the next one again and again. So absence is never
//! cached.

use std::sync::{Arc, Mutex};

use barmanfs_catalog::{ServerName, WalEntry, WalFile};
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{SegmentSize, TimestampMicros};
use barmanfs_store::Attributes;
use barmanfs_store::sync::lock;

use super::context::{self, Context};
use super::snapshot::ServerState;
use super::{receiving, replay};
use crate::entry::{Body, Child, Children, Content, Directory, Lifetime};
use crate::error::{NOT_FOUND, Result};

/// Entries of a listing read at a time.
const PAGE: usize = 1000;

/// Recovery opens segments one after the other. This many are decoded ahead of it.
const SEGMENTS_AHEAD: usize = 4;

/// Bytes of the next segment that are decoded before a sequence is recognised.
const FIRST_AHEAD_BYTES: u64 = 2 << 20;

/// The directory.
#[derive(Debug)]
pub(super) struct Wal {
    context: Arc<Context>,
    server: ServerName,
    to_replay: bool,
    progress: Mutex<Progress>,
}

impl Wal {
    /// The entry `wal` of a server. WAL contains the data of tables, so it belongs to the owner of the data directory.
    pub(super) fn child(context: &Arc<Context>, server: &ServerState) -> Child {
        Self::named(context, server, "wal", false)
    }

    /// The same as copies may replay it, under the server's name.
    pub(super) fn to_replay(context: &Arc<Context>, server: &ServerState) -> Child {
        Self::named(context, server, server.name.as_str(), true)
    }

    fn named(context: &Arc<Context>, server: &ServerState, name: &str, to_replay: bool) -> Child {
        let owner = owner(context, Some(server));
        let wal = Self {
            context: Arc::clone(context),
            server: server.name.clone(),
            to_replay,
            progress: Mutex::default(),
        };
        Child {
            name: name.into(),
            identity: 0,
            stat: context.stat(&owner, 0, 0),
            content: Content::Directory(Arc::new(wal)),
            lifetime: Lifetime::UntilNotified,
            map: None,
        }
    }

    fn find(&self, name: &WalName) -> Result<Option<WalFile>> {
        Ok(self.context.repository.wal(&self.server).find(name)?)
    }

    /// A missing file may be in a pack that is not in the catalog yet.
    fn entry(&self, name: &WalName) -> Result<Option<WalEntry>> {
        let archive = self.context.repository.wal(&self.server);
        match archive.entry(name)? {
            None if self.context.repository.adopt_unknown_packs()? => Ok(archive.entry(name)?),
            found => Ok(found),
        }
    }

    /// Decodes the segments that recovery needs next, and reads the first of them into the page cache. Errors are
    /// ignored here; the real read reports them.
    fn read_ahead(&self, opened: SegmentName, file: &WalFile) {
        let Ok(size) = SegmentSize::try_from(file.size_bytes) else {
            return;
        };
        let mut progress = lock(&self.progress);
        let (segments, bytes) = match progress.step(opened, size) {
            Step::Warming => return,
            Step::Sequence => (SEGMENTS_AHEAD, u64::MAX),
            Step::First => (1, FIRST_AHEAD_BYTES),
        };
        drop(progress);
        let mut next = opened;
        for n in 0..segments {
            next = next.next(size);
            let Ok(Some(file)) = self.find(&WalName::Segment(next)) else {
                return;
            };
            let windows = file.map.windows_of(0, bytes);
            if self.context.trees.read_ahead(&file.map, windows).is_err() {
                return;
            }
            if n == 0 && segments > 1 {
                self.warm(next);
            }
        }
    }

    fn warm(&self, next: SegmentName) {
        let mut progress = lock(&self.progress);
        let path = match self.to_replay {
            true => format!(".barmanfs/replay/{}/{next}", self.server),
            false => format!("{}/wal/{next}", self.server),
        };
        if self.context.warm(path.into()) {
            progress.warming = Some(next);
        }
    }
}

/// The meaning of an open of a segment.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It was for the page cache.
    Warming,
    /// The segments are read in sequence.
    Sequence,
    /// A sequence may start here.
    First,
}

/// The progress of readers in the archive.
#[derive(Debug, Default)]
struct Progress {
    /// The last opened segment. An open of the following one continues a sequence.
    last: Option<SegmentName>,
    /// The segment that the page cache thread is about to open. The first of its open and the reader's open counts as
    /// its own, whichever comes first; the other one continues the sequence.
    warming: Option<SegmentName>,
}

impl Progress {
    fn step(&mut self, opened: SegmentName, size: SegmentSize) -> Step {
        if self.warming == Some(opened) {
            self.warming = None;
            return Step::Warming;
        }
        let last = self.last.replace(opened);
        match last.is_some_and(|last| last == opened || last.next(size) == opened) {
            true => Step::Sequence,
            false => Step::First,
        }
    }
}

impl Directory for Wal {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let Some(name) = wal_name(name) else {
            return Ok(None);
        };
        let entry = self.entry(&name)?;
        let owner = owner_of(&self.context, &self.server)?;
        if self.to_replay {
            let shown = |entry| {
                replay::shown(
                    &self.context,
                    &self.server,
                    shown(&self.context, &owner, &entry),
                    &name,
                )
            };
            return entry.map(shown).transpose();
        }
        if let (None, WalName::Partial(segment)) = (&entry, name) {
            let received = receiving::find(&self.context, &self.server, segment)?;
            return Ok(
                received.map(|segment| receiving::child(&self.context, &owner, &segment, name.to_string()))
            );
        }
        Ok(entry.map(|entry| shown(&self.context, &owner, &entry)))
    }

    fn entries(&self) -> Result<Children> {
        let owner = owner_of(&self.context, &self.server)?;
        let archive = self.context.repository.wal(&self.server);
        let mut received = Vec::new();
        let spooled = match self.to_replay {
            true => Vec::new(),
            false => self.context.repository.receiving(&self.server)?,
        };
        for segment in spooled {
            let name = WalName::Partial(segment.name);
            if archive.entry(&name)?.is_none() {
                received.push(Ok(receiving::child(
                    &self.context,
                    &owner,
                    &segment,
                    name.to_string(),
                )));
            }
        }
        let archived = Listing {
            context: Arc::clone(&self.context),
            server: self.server.clone(),
            owner,
            page: Vec::new().into_iter(),
            last: None,
            ended: false,
        };
        Ok(Box::new(archived.chain(received)))
    }

    fn open(&self, name: &[u8]) -> Result<Body> {
        let name = wal_name(name).ok_or(NOT_FOUND)?;
        match (self.find(&name)?, name) {
            (Some(file), name) => {
                if let WalName::Segment(segment) = name {
                    self.read_ahead(segment, &file);
                }
                match self.to_replay {
                    true => replay::archived(&self.context, file),
                    false => Ok(Body::Stored(Arc::new(file.map))),
                }
            }
            (None, WalName::Partial(segment)) if !self.to_replay => {
                receiving::open(&self.context, &self.server, segment)
            }
            (None, _) => Err(NOT_FOUND),
        }
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::Never
    }
}

/// The owner of a server's archive, with the permissions of its directory.
pub(super) fn owner_of(context: &Context, server: &ServerName) -> Result<Attributes> {
    let snapshot = context.snapshot()?;
    Ok(owner(
        context,
        snapshot.server(server.as_str()).map(|server| &**server),
    ))
}

/// The same for a known server.
pub(super) fn owner(context: &Context, server: Option<&ServerState>) -> Attributes {
    let own = context.own(0o700, context.started);
    let owner = server.and_then(ServerState::owner);
    owner.map_or(own, |owner| Attributes {
        mode: owner.mode & 0o750 | 0o500,
        ..*owner
    })
}

/// Attributes of a file in the archive's directory.
pub(super) fn of_a_file(owner: &Attributes) -> Attributes {
    Attributes {
        mode: owner.mode & 0o640 | 0o400,
        ..*owner
    }
}

fn wal_name(name: &[u8]) -> Option<WalName> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

fn shown(context: &Context, owner: &Attributes, entry: &WalEntry) -> Child {
    let (mtime_s, mtime_ns) = context::seconds(entry.archived_at);
    let attributes = Attributes {
        mtime_s,
        mtime_ns,
        ..of_a_file(owner)
    };
    Child {
        name: entry.name.to_string().into_bytes(),
        identity: identity(entry.archived_at),
        stat: context.stat(&attributes, entry.size_bytes, entry.size_bytes),
        content: Content::File,
        lifetime: Lifetime::UntilNotified,
        map: None,
    }
}

/// A name that was deleted and archived again may have other bytes: it gets another inode.
fn identity(archived_at: TimestampMicros) -> u64 {
    archived_at.unix_micros().cast_unsigned()
}

/// The archive's entries, read page by page.
#[derive(Debug)]
struct Listing {
    context: Arc<Context>,
    server: ServerName,
    owner: Attributes,
    page: std::vec::IntoIter<WalEntry>,
    last: Option<WalName>,
    ended: bool,
}

impl Listing {
    fn refill(&mut self) -> Result<()> {
        let page = self
            .context
            .repository
            .wal(&self.server)
            .page(self.last.as_ref(), PAGE)?;
        self.ended = page.len() < PAGE;
        self.last = page.last().map(|entry| entry.name);
        self.page = page.into_iter();
        Ok(())
    }
}

impl Iterator for Listing {
    type Item = Result<Child>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.page.next() {
                return Some(Ok(shown(&self.context, &self.owner, &entry)));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.refill() {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(progress: &mut Progress, number: u64) -> Step {
        let start = barmanfs_pg::Lsn(number * SegmentSize::DEFAULT.bytes());
        let name = SegmentName::from_lsn(barmanfs_pg::TimelineId(1), start, SegmentSize::DEFAULT);
        let step = progress.step(name, SegmentSize::DEFAULT);
        if step == Step::Sequence {
            progress.warming = Some(name.next(SegmentSize::DEFAULT));
        }
        step
    }

    #[test]
    fn every_segment_of_a_sequence_is_warmed_once() {
        let mut progress = Progress::default();
        assert_eq!(opened(&mut progress, 5), Step::First);
        assert_eq!(opened(&mut progress, 6), Step::Sequence);
        // One open is for the page cache and one is the reader's. Their order does not matter.
        for number in 7..20 {
            assert_eq!(opened(&mut progress, number), Step::Warming);
            assert_eq!(opened(&mut progress, number), Step::Sequence);
        }
        assert_eq!(opened(&mut progress, 77), Step::First);
    }
}
