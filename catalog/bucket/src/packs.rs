//! Packs under their keys in a bucket.
//!
//! `packs/local/ab/abcd…` is a pack whose id is random: those of repositories in directories, and their copies.
//! `packs/<stream>/<number>` is a pack of a repository that is in the bucket ([`stream`](crate::stream)). An id does not say which
//! it is: both keys are tried. One PUT makes a pack durable and visible, so there is nothing to settle and nothing unfinished
//! to remove.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use barmanfs_store::sync::lock;
use barmanfs_store::{Error, Keys, Listed, PackId, PackStorage, PackUpload, Part, PartMark};
use bytes::Bytes;
use lru::LruCache;

use crate::Result;
use crate::bucket::{Bucket, Found, OBJECT_MAX_BYTES, is_about_ranges};
use crate::claim::Claim;
use crate::held::Held;
use crate::stream::{self, Stream, StreamId};

/// Read from the end of a pack at once: footer and trailer of nearly all of them.
const END_BYTES: u64 = 128 * 1024;

/// Ends that are kept, for those who read the size of a pack and then its footer.
const ENDS: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// Packs of which the kind of their key is kept.
const KINDS: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();

/// A listing for what is new begins so many packs before the newest known one: packs of one stream arrive in another order than
/// that in which they were begun.
const OVERLAP: u64 = 512;

const ALL: &str = "packs";
const LOCAL: &str = "packs/local";

/// How the key of a pack is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Local,
    Streamed,
}

/// Packs in a bucket.
#[derive(Debug)]
pub struct ObjectPacks {
    bucket: Arc<Bucket>,
    ends: Mutex<LruCache<PackId, End>>,
    kinds: Mutex<LruCache<PackId, Kind>>,
    writing: Option<Arc<Writing>>,
}

/// Where new packs go, and whether they may.
#[derive(Debug)]
struct Writing {
    stream: Stream,
    claim: Arc<Claim>,
}

#[derive(Debug, Clone)]
struct End {
    from: u64,
    bytes: Bytes,
}

/// A whole pack, compared with the checksum that was stored with it.
#[derive(Debug, Clone)]
pub struct Verified(pub Bytes);

impl ObjectPacks {
    /// The packs of a bucket. New ones have random ids.
    #[must_use]
    pub fn new(bucket: Arc<Bucket>) -> Self {
        Self {
            bucket,
            ends: Mutex::new(LruCache::new(ENDS)),
            kinds: Mutex::new(LruCache::new(KINDS)),
            writing: None,
        }
    }

    /// The packs of a repository in a bucket. New ones are in `stream`, while this host has the claim.
    #[must_use]
    pub fn of_host(bucket: Arc<Bucket>, stream: Stream, claim: Arc<Claim>) -> Self {
        Self {
            writing: Some(Arc::new(Writing { stream, claim })),
            ..Self::new(bucket)
        }
    }

    /// Calls `each` with every pack and its size, from one listing.
    ///
    /// # Errors
    /// When the listing does not come to its end, and whatever `each` returns.
    pub fn sizes(&self, each: &mut dyn FnMut(PackId, u64) -> Result<()>) -> Result<()> {
        self.bucket
            .list(ALL, &mut |name, bytes| self.entry(name, bytes, each))
    }

    /// The streams that there are.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn streams(&self) -> Result<Vec<StreamId>> {
        let names = self.bucket.directories(ALL)?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Whether the stream has a pack behind this one: one request that mostly finds nothing.
    ///
    /// # Errors
    /// When the store does not say.
    pub fn has_next(&self, newest: PackId) -> Result<bool> {
        let next = StreamId::of(newest).pack(stream::number(newest).saturating_add(1));
        Ok(self.bucket.size(&key(next, Kind::Streamed))?.is_some())
    }

    /// Calls `each` with the packs of a stream from a little before `newest` on; with all of them, if none is known.
    ///
    /// # Errors
    /// As for [`sizes`](Self::sizes).
    pub fn newer(
        &self,
        stream: StreamId,
        newest: Option<PackId>,
        each: &mut dyn FnMut(PackId, u64) -> Result<()>,
    ) -> Result<()> {
        let from = newest.map_or(0, |newest| stream::number(newest).saturating_sub(OVERLAP));
        let after = key(stream.pack(from), Kind::Streamed);
        let under = format!("{ALL}/{stream}");
        self.bucket
            .list_after(&under, &after, &mut |name, bytes| self.entry(name, bytes, each))
    }

    fn entry(&self, name: &str, bytes: u64, each: &mut dyn FnMut(PackId, u64) -> Result<()>) -> Result<()> {
        let Some((id, kind)) = id_of(name) else {
            return Ok(());
        };
        lock(&self.kinds).put(id, kind);
        each(id, bytes)
    }

    /// What keeps a pack from being deleted for good; `None` where the store has no words for it.
    ///
    /// # Errors
    /// When the store does not say.
    pub fn held(&self, id: PackId) -> Result<Option<Held>> {
        for kind in [Kind::Local, Kind::Streamed] {
            let held = self.bucket.held(&key(id, kind))?;
            if held.is_some() {
                return Ok(held);
            }
        }
        Ok(None)
    }

    /// Reads a whole pack.
    ///
    /// # Errors
    /// [`Error::MissingPack`], [`Error::Damaged`] when it is not what was put, [`Error::Io`].
    pub fn whole(&self, id: PackId) -> Result<Verified> {
        let found = self.find(id, |key| self.bucket.get(key))?;
        if !found.is_as_put() {
            let reason = "It is not what was put into the bucket: its SHA-256 is another";
            return Err(Error::damaged(format!("Pack {id}"), reason));
        }
        Ok(Verified(found.bytes))
    }

    /// Reads bytes of a pack, fewer where it ends.
    pub(crate) fn range(&self, id: PackId, offset: u64, bytes: u64) -> Result<Found> {
        match self.find(id, |key| self.bucket.get_range(key, offset, bytes)) {
            Err(Error::Io { source, .. }) if is_about_ranges(&source) => {
                Err(short(id, offset.saturating_add(bytes)))
            }
            found => found,
        }
    }

    /// Bytes that were read with the end of the pack; `None` if there are none.
    pub(crate) fn kept(&self, id: PackId, offset: u64, buf: &mut [u8]) -> Option<Result<()>> {
        let kept = lock(&self.ends).get(&id).cloned();
        let kept = kept.filter(|kept| kept.from <= offset)?;
        let range = usize::try_from(offset - kept.from).ok();
        let bytes = range.and_then(|from| kept.bytes.get(from..from.checked_add(buf.len())?));
        Some(match bytes {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(short(id, offset.saturating_add(buf.len() as u64))),
        })
    }

    /// Asks for a pack under the key that it has, as far as that is known, or under both.
    fn find<T>(&self, id: PackId, ask: impl Fn(&str) -> Result<Option<T>>) -> Result<T> {
        let known = lock(&self.kinds).get(&id).copied();
        let kinds: &[Kind] = match (known, &self.writing) {
            (Some(Kind::Local), _) => &[Kind::Local],
            (Some(Kind::Streamed), _) => &[Kind::Streamed],
            (None, None) => &[Kind::Local, Kind::Streamed],
            (None, Some(_)) => &[Kind::Streamed, Kind::Local],
        };
        for kind in kinds {
            if let Some(found) = ask(&key(id, *kind))? {
                if known.is_none() {
                    lock(&self.kinds).put(id, *kind);
                }
                return Ok(found);
            }
        }
        Err(Error::MissingPack(id))
    }

    fn upload(&self, id: PackId, writing: Option<Arc<Writing>>, kind: Kind) -> Box<dyn PackUpload> {
        lock(&self.kinds).put(id, kind);
        Box::new(ObjectUpload {
            bucket: Arc::clone(&self.bucket),
            id,
            kind,
            writing,
            bytes: Vec::new(),
        })
    }
}

fn key(id: PackId, kind: Kind) -> String {
    let name = id.to_string();
    match kind {
        Kind::Local => format!("{LOCAL}/{}/{name}", name.get(..2).unwrap_or_default()),
        Kind::Streamed => {
            let (stream, number) = name.split_at(2 * StreamId::BYTES);
            format!("{ALL}/{stream}/{number}")
        }
    }
}

fn id_of(name: &str) -> Option<(PackId, Kind)> {
    let mut parts = name.rsplit('/');
    let (last, before) = (parts.next()?, parts.next()?);
    let (id, kind) = match last.parse() {
        Ok(id) => (id, Kind::Local),
        Err(_) => (format!("{before}{last}").parse().ok()?, Kind::Streamed),
    };
    (key(id, kind) == name).then_some((id, kind))
}

pub(crate) fn short(id: PackId, end: u64) -> Error {
    Error::damaged(format!("Pack {id}"), format!("It ends before byte {end}"))
}

impl PackStorage for ObjectPacks {
    fn keys(&self) -> &Keys {
        Keys::none()
    }

    fn begin(&self) -> Result<Box<dyn PackUpload>> {
        match &self.writing {
            None => Ok(self.upload(PackId::random()?, None, Kind::Local)),
            Some(writing) => {
                let id = writing.stream.next()?;
                Ok(self.upload(id, Some(Arc::clone(writing)), Kind::Streamed))
            }
        }
    }

    fn begin_copy(&self, id: PackId) -> Result<Box<dyn PackUpload>> {
        Ok(self.upload(id, self.writing.clone(), Kind::Local))
    }

    fn read_at(&self, id: PackId, offset: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        if let Some(read) = self.kept(id, offset, buf) {
            return read;
        }
        let wanted = buf.len() as u64;
        let found = self.range(id, offset, wanted)?;
        if found.bytes.len() != buf.len() {
            return Err(short(id, offset.saturating_add(wanted)));
        }
        buf.copy_from_slice(&found.bytes);
        Ok(())
    }

    // A caller that reads much at once asks for it in one piece.
    fn will_read(&self, _id: PackId, _offset: u64, _bytes: u32) {}

    fn bytes(&self, id: PackId) -> Result<u64> {
        let found = self.find(id, |key| self.bucket.get_end(key, END_BYTES))?;
        let from = found.object_bytes.saturating_sub(found.bytes.len() as u64);
        let end = End {
            from,
            bytes: found.bytes,
        };
        lock(&self.ends).put(id, end);
        Ok(found.object_bytes)
    }

    fn list(&self, each: &mut dyn FnMut(PackId) -> Result<()>) -> Result<()> {
        self.sizes(&mut |id, _| each(id))
    }

    fn part_mark(&self, _part: Part) -> Result<PartMark> {
        Ok(PartMark::Unknown)
    }

    fn list_part(&self, part: Part, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        // Keys are not moved by hand, as files are.
        let Part::First(first) = part else {
            return Ok(());
        };
        self.sizes(&mut |id, _| match id.as_bytes().first() == Some(&first) {
            true => each(Listed::Pack(id)),
            false => Ok(()),
        })
    }

    fn remove(&self, id: PackId) -> Result<()> {
        if let Some(writing) = &self.writing {
            writing.claim.require()?;
        }
        lock(&self.ends).pop(&id);
        let known = lock(&self.kinds).get(&id).copied();
        for kind in [Kind::Local, Kind::Streamed] {
            if known.is_none_or(|known| known == kind) {
                self.bucket.delete(&key(id, kind))?;
            }
        }
        Ok(())
    }

    // What can be seen is durable.
    fn settle(&self, _packs: &[PackId]) -> Result<()> {
        Ok(())
    }

    // An upload is one request: a killed writer leaves nothing.
    fn remove_abandoned(&self, _older_than: Duration) -> Result<usize> {
        Ok(0)
    }
}

/// A pack that is put when it is complete.
#[derive(Debug)]
struct ObjectUpload {
    bucket: Arc<Bucket>,
    id: PackId,
    kind: Kind,
    writing: Option<Arc<Writing>>,
    bytes: Vec<u8>,
}

impl PackUpload for ObjectUpload {
    fn id(&self) -> PackId {
        self.id
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let total = self.bytes.len() as u64 + bytes.len() as u64;
        if total > OBJECT_MAX_BYTES {
            return Err(Error::TooLarge {
                what: "A pack for an object store",
                bytes: total,
                limit: OBJECT_MAX_BYTES,
            });
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        if let Some(writing) = &self.writing {
            writing.claim.require()?;
        }
        match self
            .bucket
            .create(&key(self.id, self.kind), &Bytes::from(self.bytes))
        {
            Err(Error::Invalid(_)) => {
                if let (Some(writing), Kind::Streamed) = (&self.writing, self.kind) {
                    writing.stream.end(StreamId::of(self.id))?;
                }
                Err(Error::other_bytes(self.id))
            }
            created => created.map(|_| ()),
        }
    }
}
