//! The keys of one pack: AES-256-GCM over frames and the footer, and a keyed BLAKE3 at the end.
//!
//! No nonce is used twice under one key: the key of the frames follows from the pack's random salt, and the nonce is the
//! place where the frame begins in the pack. A footer has a key of its own, and a pack has one footer.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::codec::Encoding;
use crate::error::{Error, Result};
use crate::id::{ChunkId, PackId};

use super::{SEAL_BYTES, Secret};

/// Bytes of a pack's salt.
pub(crate) const SALT_BYTES: usize = 32;

/// The random bytes from which, with the secrets of a repository, the keys of one pack follow.
pub(crate) type Salt = [u8; SALT_BYTES];

const FRAMES: &str = "barmanfs 2026-11-30 frames of a pack";
const FOOTER: &str = "barmanfs 2026-11-30 footer of a pack";
const END: &str = "barmanfs 2026-11-30 end of a pack";

/// What a frame is sealed together with: it opens only as this chunk, at this place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FramePlace {
    pub(crate) pack: PackId,
    pub(crate) offset: u32,
    pub(crate) chunk: ChunkId,
    pub(crate) encoding: Encoding,
    /// Bytes in the pack, with the tag.
    pub(crate) stored_bytes: u32,
    pub(crate) raw_bytes: u32,
}

impl FramePlace {
    fn associated(&self) -> [u8; 61] {
        let mut bytes = [0; 61];
        let fields: [&[u8]; 6] = [
            self.pack.as_bytes(),
            &self.offset.to_le_bytes(),
            self.chunk.as_bytes(),
            &[self.encoding as u8],
            &self.stored_bytes.to_le_bytes(),
            &self.raw_bytes.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    fn nonce(&self) -> Nonce {
        let mut bytes = [0; NONCE_LEN];
        for (to, from) in bytes.iter_mut().zip(self.offset.to_le_bytes()) {
            *to = from;
        }
        Nonce::assume_unique_for_key(bytes)
    }
}

/// The key of a pack's frames.
pub(crate) struct FrameKey(LessSafeKey);

impl FrameKey {
    pub(super) fn of(data: &Secret, salt: &Salt) -> Result<Self> {
        Ok(Self(cipher(&data.derive(FRAMES, salt))?))
    }

    /// Seals a frame in place, and appends the tag.
    pub(crate) fn seal(&self, place: &FramePlace, frame: &mut Vec<u8>) -> Result<()> {
        let associated = Aad::from(place.associated());
        let sealed = self.0.seal_in_place_append_tag(place.nonce(), associated, frame);
        sealed.map_err(|_| Error::Invalid(format!("Chunk {} cannot be sealed", place.chunk)))
    }

    /// Opens a frame in place. `None`: it is not what was sealed for this place.
    pub(crate) fn open<'a>(&self, place: &FramePlace, frame: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let associated = Aad::from(place.associated());
        self.0.open_in_place(place.nonce(), associated, frame).ok()
    }
}

impl fmt::Debug for FrameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameKey")
    }
}

/// The keys of a pack's footer and end.
#[derive(Debug)]
pub(crate) struct EndKeys {
    footer: Secret,
    end: Secret,
}

impl EndKeys {
    pub(super) fn of(footers: &Secret, salt: &Salt) -> Self {
        Self {
            footer: footers.derive(FOOTER, salt),
            end: footers.derive(END, salt),
        }
    }

    /// Seals a footer in place, and appends the tag. `associated` is the header and the beginning of the trailer.
    pub(crate) fn seal(&self, associated: &[u8], footer: &mut Vec<u8>) -> Result<()> {
        let sealed = cipher(&self.footer)?.seal_in_place_append_tag(first(), Aad::from(associated), footer);
        sealed.map_err(|_| Error::Invalid("A footer cannot be sealed".to_owned()))
    }

    /// Opens a footer in place, and cuts off the tag. `None`: it is not what was sealed.
    pub(crate) fn open(&self, associated: &[u8], footer: &mut Vec<u8>) -> Option<()> {
        let key = cipher(&self.footer).ok()?;
        key.open_in_place(first(), Aad::from(associated), footer).ok()?;
        footer.truncate(footer.len().checked_sub(SEAL_BYTES)?);
        Some(())
    }

    /// The checksum at the end of the pack, which nobody can make without the key.
    pub(crate) fn checksum(&self, header: &[u8], checked: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(self.end.expose());
        hasher.update(header).update(checked).finalize()
    }
}

fn first() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn cipher(key: &Secret) -> Result<LessSafeKey> {
    let key = UnboundKey::new(&AES_256_GCM, key.expose());
    Ok(LessSafeKey::new(key.map_err(|_| {
        Error::Invalid("Not a key of AES-256-GCM".to_owned())
    })?))
}
