//! The keys that a process holds of one repository.

use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock, Mutex};

use lru::LruCache;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::{ChunkId, KeyId, PackId};
use crate::sync::lock;

use super::sealed_key::{DATA, FOOTERS};
use super::{EndKeys, FrameKey, Salt, SealedKey, Secret};

/// Packs whose key is remembered, some 600 bytes each: making one costs a read and a microsecond.
const OPENED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

const PROOF: &str = "barmanfs 2026-11-30 settings";

/// How the ids of chunks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdHash {
    /// BLAKE3 of the bytes: in plain repositories, and in those that were plain once.
    Blake3,
    /// BLAKE3 of the bytes under a key: in repositories that are made encrypted.
    Blake3Keyed,
}

impl IdHash {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Blake3Keyed => "blake3-keyed",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Blake3, Self::Blake3Keyed]
            .into_iter()
            .find(|hash| hash.name() == name)
    }
}

/// Makes ids of chunks.
#[derive(Debug, Clone, Default)]
pub struct ChunkHash(Option<Arc<Secret>>);

impl ChunkHash {
    /// The one under a key.
    pub fn keyed(key: Secret) -> Self {
        Self(Some(Arc::new(key)))
    }

    /// The id of these bytes.
    pub fn id_of(&self, bytes: &[u8]) -> ChunkId {
        match &self.0 {
            None => ChunkId::of(bytes),
            Some(key) => ChunkId(*blake3::keyed_hash(key.expose(), bytes).as_bytes()),
        }
    }

    /// Its key, if it has one.
    pub fn key(&self) -> Option<&Secret> {
        self.0.as_deref()
    }

    /// Whether both give the same ids.
    pub fn is_same(&self, other: &Self) -> bool {
        self.key().map(Secret::expose) == other.key().map(Secret::expose)
    }
}

/// Whether packs that are not sealed belong to an encrypted repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainPacks {
    /// They are there from before, until everything is sealed.
    Accepted,
    /// Such a pack is not of this repository.
    Refused,
}

/// One key, with what follows from it.
#[derive(Debug)]
struct Held {
    id: KeyId,
    data: Secret,
    footers: Secret,
}

/// The keys of the packs of a storage. Without any, packs are plain.
#[derive(Debug)]
pub struct Keys {
    /// The last one is for new packs.
    held: Vec<Held>,
    hash: ChunkHash,
    plain: PlainPacks,
    opened: Mutex<LruCache<PackId, Option<Arc<FrameKey>>>>,
}

static NONE: LazyLock<Keys> =
    LazyLock::new(|| Keys::with(Vec::new(), ChunkHash::default(), PlainPacks::Accepted));

impl Keys {
    /// No key: all packs are plain.
    pub fn none() -> &'static Self {
        &NONE
    }

    /// The keys of an encrypted repository.
    ///
    /// # Errors
    /// When there is none, or they do not belong together.
    pub fn of(keys: &[SealedKey], plain: PlainPacks) -> Result<Self> {
        let mut sorted: Vec<&SealedKey> = keys.iter().collect();
        sorted.sort_by_key(|key| key.generation);
        let newest = sorted.last();
        let newest =
            newest.ok_or_else(|| Error::Invalid("A repository without keys is not encrypted".to_owned()))?;
        let hash = ChunkHash(newest.ids.clone().map(Arc::new));
        if !sorted
            .iter()
            .all(|key| hash.is_same(&ChunkHash(key.ids.clone().map(Arc::new))))
        {
            return Err(Error::Invalid(
                "The keys are not all of one repository: they name chunks differently".to_owned(),
            ));
        }
        let held = sorted.iter().map(|key| Held {
            id: key.id(),
            data: key.packs.derive(DATA, &[]),
            footers: key.packs.derive(FOOTERS, &[]),
        });
        Ok(Self::with(held.collect(), hash, plain))
    }

    fn with(held: Vec<Held>, hash: ChunkHash, plain: PlainPacks) -> Self {
        Self {
            held,
            hash,
            plain,
            opened: Mutex::new(LruCache::new(OPENED)),
        }
    }

    /// The keys for reading packs of two storages together, whose chunks have the same names.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Self {
        let copy = |held: &Held| Held {
            id: held.id,
            data: held.data.clone(),
            footers: held.footers.clone(),
        };
        let plain = match (self.plain, other.plain) {
            (PlainPacks::Refused, PlainPacks::Refused) => PlainPacks::Refused,
            _ => PlainPacks::Accepted,
        };
        let held = other.held.iter().chain(&self.held).map(copy).collect();
        Self::with(held, self.hash.clone(), plain)
    }

    /// Whether new packs are sealed.
    pub fn seals(&self) -> bool {
        !self.held.is_empty()
    }

    /// The key that new packs are sealed under.
    pub fn newest(&self) -> Option<KeyId> {
        self.held.last().map(|held| held.id)
    }

    /// Whether plain packs belong to the repository.
    pub fn plain_packs(&self) -> PlainPacks {
        self.plain
    }

    /// How chunks are named.
    pub fn chunk_hash(&self) -> &ChunkHash {
        &self.hash
    }

    /// The id of a chunk of these bytes.
    pub fn id_of(&self, bytes: &[u8]) -> ChunkId {
        self.hash.id_of(bytes)
    }

    /// What only somebody who has the newest key can say about `text`.
    pub fn proof(&self, text: &str) -> Option<String> {
        let key = self.held.last()?.footers.derive(PROOF, &[]);
        Some(
            blake3::keyed_hash(key.expose(), text.as_bytes())
                .to_hex()
                .to_string(),
        )
    }

    /// The keys of the end of a pack; `None` when the key is not held.
    pub(crate) fn end_keys(&self, key: KeyId, salt: &Salt) -> Option<EndKeys> {
        Some(EndKeys::of(&self.by_id(key)?.footers, salt))
    }

    /// The key of the frames of a new pack.
    pub(crate) fn frame_key(&self, key: KeyId, salt: &Salt) -> Result<Option<FrameKey>> {
        let held = self.by_id(key);
        held.map(|held| FrameKey::of(&held.data, salt)).transpose()
    }

    /// The ids of the keys that are held.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.held.iter().map(|held| held.id)
    }

    fn by_id(&self, id: KeyId) -> Option<&Held> {
        self.held.iter().find(|held| held.id == id)
    }

    /// What was remembered of a pack: the key of its frames, or that it is plain.
    pub(crate) fn remembered(&self, pack: PackId) -> Option<Option<Arc<FrameKey>>> {
        lock(&self.opened).get(&pack).cloned()
    }

    /// Remembers it.
    pub(crate) fn remember(&self, pack: PackId, opener: &Option<Arc<FrameKey>>) {
        lock(&self.opened).put(pack, opener.clone());
    }
}
