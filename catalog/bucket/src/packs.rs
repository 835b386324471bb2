//! Packs under their keys in a bucket.
//!
//! `packs/local/ab/abcd…` is a pack whose id is random: those of repositories in directories, and their copies. One PUT makes a
//! pack durable and visible, so there is nothing to settle and nothing unfinished to remove.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use barmanfs_store::sync::lock;
use barmanfs_store::{Error, Listed, PackId, PackStorage, PackUpload, Part, PartMark};
use bytes::Bytes;
use lru::LruCache;

use crate::Result;
use crate::bucket::{Bucket, OBJECT_MAX_BYTES, is_about_ranges};

/// Read from the end of a pack at once: footer and trailer of nearly all of them.
const END_BYTES: u64 = 128 * 1024;

/// Ends that are kept, for those who read the size of a pack and then its footer.
const ENDS: NonZeroUsize = NonZeroUsize::new(8).unwrap();

const DIRECTORY: &str = "packs/local";

/// Packs in a bucket.
#[derive(Debug)]
pub struct ObjectPacks {
    bucket: Arc<Bucket>,
    ends: Mutex<LruCache<PackId, End>>,
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
    /// The packs of a bucket.
    #[must_use]
    pub fn new(bucket: Arc<Bucket>) -> Self {
        Self {
            bucket,
            ends: Mutex::new(LruCache::new(ENDS)),
        }
    }

    /// Calls `each` with every pack and its size, from one listing.
    ///
    /// # Errors
    /// When the listing does not come to its end, and whatever `each` returns.
    pub fn sizes(&self, each: &mut dyn FnMut(PackId, u64) -> Result<()>) -> Result<()> {
        self.bucket.list(DIRECTORY, &mut |name, bytes| match id_of(name) {
            Some(id) => each(id, bytes),
            None => Ok(()),
        })
    }

    /// Reads a whole pack.
    ///
    /// # Errors
    /// [`Error::MissingPack`], [`Error::Damaged`] when it is not what was put, [`Error::Io`].
    pub fn whole(&self, id: PackId) -> Result<Verified> {
        let found = self.bucket.get(&key(id))?.ok_or(Error::MissingPack(id))?;
        if !found.is_as_put() {
            let reason = "It is not what was put into the bucket: its SHA-256 is another";
            return Err(Error::damaged(format!("Pack {id}"), reason));
        }
        Ok(Verified(found.bytes))
    }

    fn upload(&self, id: PackId) -> Box<dyn PackUpload> {
        Box::new(ObjectUpload {
            bucket: Arc::clone(&self.bucket),
            id,
            bytes: Vec::new(),
        })
    }
}

fn key(id: PackId) -> String {
    let name = id.to_string();
    format!("{DIRECTORY}/{}/{name}", name.get(..2).unwrap_or_default())
}

fn id_of(name: &str) -> Option<PackId> {
    let id = name.rsplit('/').next()?.parse().ok()?;
    (key(id) == name).then_some(id)
}

fn short(id: PackId, end: u64) -> Error {
    Error::damaged(format!("Pack {id}"), format!("It ends before byte {end}"))
}

impl PackStorage for ObjectPacks {
    fn begin(&self) -> Result<Box<dyn PackUpload>> {
        Ok(self.upload(PackId::random()?))
    }

    fn begin_copy(&self, id: PackId) -> Result<Box<dyn PackUpload>> {
        Ok(self.upload(id))
    }

    fn read_at(&self, id: PackId, offset: u64, buf: &mut [u8]) -> Result<()> {
        let wanted = buf.len() as u64;
        if wanted == 0 {
            return Ok(());
        }
        let end = offset.saturating_add(wanted);
        let kept = lock(&self.ends).get(&id).cloned();
        if let Some(kept) = kept.filter(|kept| kept.from <= offset) {
            let range = usize::try_from(offset - kept.from).ok();
            let bytes = range.and_then(|from| kept.bytes.get(from..from.checked_add(buf.len())?));
            buf.copy_from_slice(bytes.ok_or_else(|| short(id, end))?);
            return Ok(());
        }
        let found = match self.bucket.get_range(&key(id), offset, wanted) {
            Err(Error::Io { source, .. }) if is_about_ranges(&source) => return Err(short(id, end)),
            found => found?.ok_or(Error::MissingPack(id))?,
        };
        if found.bytes.len() != buf.len() {
            return Err(short(id, end));
        }
        buf.copy_from_slice(&found.bytes);
        Ok(())
    }

    // A caller that reads much at once asks for it in one piece.
    fn will_read(&self, _id: PackId, _offset: u64, _bytes: u32) {}

    fn bytes(&self, id: PackId) -> Result<u64> {
        let found = self
            .bucket
            .get_end(&key(id), END_BYTES)?
            .ok_or(Error::MissingPack(id))?;
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
        self.bucket.list(
            &format!("{DIRECTORY}/{first:02x}"),
            &mut |name, _| match id_of(name) {
                Some(id) => each(Listed::Pack(id)),
                None => Ok(()),
            },
        )
    }

    fn remove(&self, id: PackId) -> Result<()> {
        lock(&self.ends).pop(&id);
        self.bucket.delete(&key(id))
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
        match self.bucket.create(&key(self.id), &Bytes::from(self.bytes)) {
            Err(Error::Invalid(_)) => Err(Error::other_bytes(self.id)),
            created => created.map(|_| ()),
        }
    }
}
