//! The parts that a store is divided into, so that a search for unknown packs only looks where something changed.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::id::PackId;

/// A change may come within one step of the file system's clock after the listing and leave the time unchanged. Two
/// seconds are more than any such step.
const CLOCK_STEP: Duration = Duration::from_secs(2);

/// Where packs are: in the part of their id's first byte. The root has no packs, only what was put there by mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The root itself.
    Root,
    /// The packs whose ids begin with this byte.
    First(u8),
}

impl Part {
    /// All parts.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Root).chain((0..=u8::MAX).map(Self::First))
    }
}

/// Shows whether a part may have changed: two equal settled marks mean the same packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PartMark {
    /// The part does not exist.
    Missing,
    /// It is unknown whether the part changed.
    Unknown,
    /// The directory and its times, in seconds and nanoseconds.
    At {
        /// Device and inode.
        file: (u64, u64),
        /// Last change of the directory itself.
        changed: (i64, i64),
        /// Last change of its content.
        modified: (i64, i64),
    },
}

impl PartMark {
    /// When the content last changed, in seconds and nanoseconds, if that is known.
    #[must_use]
    pub fn modified(&self) -> Option<(i64, i64)> {
        match self {
            Self::At { modified, .. } => Some(*modified),
            Self::Missing | Self::Unknown => None,
        }
    }

    /// Whether a listing made at `now`, after this mark was taken, equals every later listing with an equal mark.
    #[must_use]
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let Self::At {
            changed, modified, ..
        } = self
        else {
            return false;
        };
        let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else {
            return false;
        };
        let limit = now.saturating_sub(CLOCK_STEP).as_secs();
        let old = |(seconds, _): (i64, i64)| u64::try_from(seconds).is_ok_and(|seconds| seconds < limit);
        old(*changed) && old(*modified)
    }
}

/// Something that lies in a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// A file with a pack's name in its place. Only its footer shows whether the pack is whole.
    Pack(PackId),
    /// A pack, by its first bytes, under a name or in a place where packs are not looked for.
    Astray {
        /// The file.
        path: PathBuf,
        /// The pack id in its header.
        pack: PackId,
    },
}
