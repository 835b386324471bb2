//! Sealing: the keys of a repository, and what they do to packs and ids. `FORMAT.md` has the construction.
//!
//! A storage says by which keys its packs are sealed ([`PackStorage::keys`](crate::PackStorage::keys)), so code that reads
//! or writes a pack there has them at hand, and nobody can write a plain pack by forgetting to pass them. Frames, footers
//! and the ends of packs have keys of their own, derived from one secret and the pack's random salt.
//!
//! A key that is not held is not damage: [`Error::NoKey`](crate::Error::NoKey).

mod keys;
mod pack_keys;
mod sealed_key;
mod secret;

pub use keys::{ChunkHash, IdHash, Keys, PlainPacks};
pub(crate) use pack_keys::{EndKeys, FrameKey, FramePlace, SALT_BYTES, Salt};
pub use sealed_key::{BadKeyText, SealedKey};
pub use secret::Secret;

/// Bytes that sealing adds to a frame or a footer: the tag.
pub const SEAL_BYTES: usize = 16;

#[cfg(test)]
mod tests;
