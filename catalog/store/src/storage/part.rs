//! The parts a store is spread over, so that a search for unknown packs looks only where something changed.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::id::PackId;

/// A change may come within one step of the file system's clock after the look and leave the time as it is. Two seconds are
/// more than any such step.
const CLOCK_STEP: Duration = Duration::from_secs(2);

/// Where packs lie: in the part of their id's first byte. The root holds no packs, only what was put there by mistake.
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

/// Tells whether a part may have changed: two equal settled marks mean the same packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartMark {
    /// The part is not there.
    Missing,
    /// It cannot be told whether it changed.
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
    /// Whether a listing made after this mark was taken, at `now`, is what any later listing with an equal mark gives.
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
    /// A file with a pack's name in its place. Whether it is a whole one its footer tells.
    Pack(PackId),
    /// A pack, by its first bytes, under a name or in a place where nobody looks for it.
    Astray {
        /// The file.
        path: PathBuf,
        /// The pack it says it is.
        pack: PackId,
    },
}
