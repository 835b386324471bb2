//! The object store of a repository, as the catalog asks for it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use barmanfs_bucket::{BlockCache, Bucket, Claim, ObjectPacks, Stream, StreamId};
use barmanfs_catalog::{Remote, RemotePacks, StreamPrefix};
use barmanfs_store::sync::lock;
use barmanfs_store::{PackId, PackStorage, Result as StoreResult};

use super::SETTINGS;
use crate::error::Error;

/// The directory of what was read, in the cache of a repository.
const BLOCKS: &str = "blocks";

/// The file with the names of this host's packs.
const STREAM: &str = "stream";

/// Who only looks for news waits no longer than this for a store that does not answer.
const NEWS_WITHIN: Duration = Duration::from_secs(5);

/// How often a process that only reads asks whether this host still writes.
const ASKED_EVERY: Duration = Duration::from_secs(60);

/// How often streams are listed, in one process: what comes out of order, and new streams, show only there.
const LISTED_EVERY: Duration = Duration::from_secs(60);

/// An object store with a repository.
#[derive(Debug)]
pub(super) struct Store {
    bucket: Arc<Bucket>,
    packs: Arc<ObjectPacks>,
    cached: Arc<BlockCache>,
    claim: Arc<Claim>,
    /// For those who only look.
    soon: Arc<Bucket>,
    soon_packs: ObjectPacks,
    /// When it was asked whether this host still writes.
    asked: Mutex<Instant>,
    listed: Mutex<Listed>,
}

/// When a process has listed what.
#[derive(Debug, Default)]
struct Listed {
    streams: Option<(Instant, Vec<StreamId>)>,
    packs: HashMap<StreamId, Instant>,
}

impl Store {
    pub(super) fn open(bucket: Arc<Bucket>, home: &Path, cache_max_bytes: u64) -> Self {
        let claim = Arc::new(Claim::of(Arc::clone(&bucket), home));
        let stream = Stream::in_file(&home.join(STREAM));
        let packs = ObjectPacks::of_host(Arc::clone(&bucket), stream, Arc::clone(&claim));
        let packs = Arc::new(packs);
        let cached = BlockCache::new(Arc::clone(&packs), &home.join(BLOCKS), cache_max_bytes);
        let soon = Arc::new(bucket.within(NEWS_WITHIN));
        Self {
            soon_packs: ObjectPacks::new(Arc::clone(&soon)),
            soon,
            asked: Mutex::new(Instant::now()),
            bucket,
            packs,
            cached: Arc::new(cached),
            claim,
            listed: Mutex::default(),
        }
    }

    pub(super) fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    pub(super) fn packs(self: &Arc<Self>) -> RemotePacks {
        super::packs(Arc::clone(&self.cached) as _, self)
    }

    pub(super) fn direct_packs(self: &Arc<Self>) -> RemotePacks {
        super::packs(Arc::clone(&self.packs) as _, self)
    }

    /// Returns the name of the host before.
    pub(super) fn take_over(&self) -> Result<Option<String>, Error> {
        let was_ours = self.claim.is_ours().map_err(barmanfs_catalog::Error::from)?;
        let before = self.claim.take_over().map_err(barmanfs_catalog::Error::from)?;
        Ok(before.filter(|_| !was_ours).map(|holder| holder.name))
    }

    fn streams(&self) -> StoreResult<Vec<StreamId>> {
        if let Some((at, streams)) = &lock(&self.listed).streams
            && at.elapsed() < LISTED_EVERY
        {
            return Ok(streams.clone());
        }
        let streams = self.soon_packs.streams()?;
        lock(&self.listed).streams = Some((Instant::now(), streams.clone()));
        Ok(streams)
    }

    fn was_listed(&self, stream: StreamId) -> bool {
        let at = lock(&self.listed).packs.get(&stream).copied();
        at.is_some_and(|at| at.elapsed() < LISTED_EVERY)
    }
}

impl Remote for Store {
    fn place(&self) -> &str {
        self.bucket.place()
    }

    fn settings(&self) -> StoreResult<Option<Vec<u8>>> {
        let found = self.bucket.within(super::FIRST_ANSWER_WITHIN).get(SETTINGS)?;
        Ok(found.map(|found| found.bytes.to_vec()))
    }

    fn direct(&self) -> Arc<dyn PackStorage> {
        Arc::clone(&self.packs) as _
    }

    fn sizes(&self, each: &mut dyn FnMut(PackId, u64) -> StoreResult<()>) -> StoreResult<()> {
        self.packs.sizes(each)
    }

    fn news(
        &self,
        lists: bool,
        newest: &dyn Fn(StreamPrefix) -> StoreResult<Option<PackId>>,
        each: &mut dyn FnMut(PackId) -> StoreResult<()>,
    ) -> StoreResult<()> {
        if lists {
            *lock(&self.listed) = Listed::default();
        }
        for stream in self.streams()? {
            let newest = newest(stream.0)?;
            let is_still = match newest {
                Some(newest) => self.was_listed(stream) && !self.soon_packs.has_next(newest)?,
                None => false,
            };
            if is_still {
                continue;
            }
            self.soon_packs.newer(stream, newest, &mut |pack, _| each(pack))?;
            lock(&self.listed).packs.insert(stream, Instant::now());
        }
        Ok(())
    }

    fn require_writing(&self) -> StoreResult<()> {
        // Before each pack is put, the store is asked.
        match self.claim.seems_ours() {
            true => Ok(()),
            false => self.claim.require(),
        }
    }

    fn require_writing_now(&self) -> StoreResult<()> {
        self.claim.require()
    }

    fn writing_elsewhere(&self) -> StoreResult<Option<String>> {
        let soon = self.bucket.within(super::FIRST_ANSWER_WITHIN);
        Ok(match self.claim.is_still_ours(&soon)? {
            true => None,
            false => self.claim.known().map(|holder| holder.name),
        })
    }

    fn seems_to_write(&self) -> bool {
        if !self.claim.seems_ours() {
            return false;
        }
        // A mount lives long.
        let mut asked = lock(&self.asked);
        if asked.elapsed() < ASKED_EVERY {
            return true;
        }
        *asked = Instant::now();
        drop(asked);
        self.claim.is_still_ours(&self.soon).unwrap_or(true)
    }
}
