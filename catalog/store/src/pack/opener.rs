//! The key of a pack that is read.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::id::{KeyId, PackId};
use crate::layout::{PACK_HEADER_BYTES, SEALED_HEADER_BYTES};
use crate::pack_header::Header;
use crate::seal::{FrameKey, PlainPacks};
use crate::storage::PackStorage;

/// The key of the frames of a pack; `None` for a plain pack.
pub(super) fn opener(storage: &dyn PackStorage, pack: PackId) -> Result<Option<Arc<FrameKey>>> {
    let keys = storage.keys();
    if !keys.seals() {
        return Ok(None);
    }
    if let Some(known) = keys.remembered(pack) {
        return Ok(known);
    }
    let header = match read_header(storage, pack) {
        // It may be a plain pack, of which all else is whole: what a frame decodes to is checked in any case.
        Err(Error::Damaged { .. }) if keys.plain_packs() == PlainPacks::Accepted => return Ok(None),
        header => header?,
    };
    let opener = match header {
        Header::Plain { .. } if keys.plain_packs() == PlainPacks::Accepted => None,
        Header::Plain { .. } => return Err(not_sealed(pack)),
        Header::Sealed { key, salt, .. } => {
            let frames = keys.frame_key(key, &salt)?;
            let frames = frames.ok_or_else(|| Error::no_key(format!("Pack {pack}"), key))?;
            Some(Arc::new(frames))
        }
    };
    keys.remember(pack, &opener);
    Ok(opener)
}

/// What to say of a frame that is not as it should be, where no keys are held: a sealed pack is not damaged.
pub(crate) fn explain(storage: &dyn PackStorage, pack: PackId, damage: Error) -> Error {
    if storage.keys().seals() || !damage.is_damage() {
        return damage;
    }
    match read_header(storage, pack) {
        Ok(Header::Sealed { key, .. }) => Error::no_key(format!("Pack {pack}"), key),
        _ => damage,
    }
}

/// The id of a pack's key; `None` for a plain pack. Its checksum is not checked.
///
/// # Errors
/// When the pack cannot be read, or does not begin as a pack.
pub fn key_of_pack(storage: &dyn PackStorage, pack: PackId) -> Result<Option<KeyId>> {
    Ok(match read_header(storage, pack)? {
        Header::Plain { .. } => None,
        Header::Sealed { key, .. } => Some(key),
    })
}

/// A plain pack where all are sealed.
pub(super) fn not_sealed(pack: PackId) -> Error {
    let reason = "It is not sealed, as all packs of this repository are: it is not one of them";
    Error::damaged(format!("Pack {pack}"), reason)
}

/// The header of a pack. Every pack of version 1 is at least as long as a header of version 2.
fn read_header(storage: &dyn PackStorage, pack: PackId) -> Result<Header> {
    let mut header = [0; SEALED_HEADER_BYTES];
    storage.read_at(pack, 0, &mut header)?;
    let header = Header::parse(&header).filter(|header| header.id() == pack);
    header.ok_or_else(|| {
        let reason = format!("Its first {PACK_HEADER_BYTES} bytes are not those of a pack with its name");
        Error::damaged(format!("Pack {pack}"), reason)
    })
}
