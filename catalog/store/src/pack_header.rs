//! A pack's header: to bytes and back.

use crate::id::PackId;
use crate::layout::PACK_HEADER_BYTES;

/// First bytes of a pack.
const HEADER_MAGIC: [u8; 8] = *b"bmfspack";

/// A pack's first bytes.
pub(crate) fn encode_header(id: PackId, version: u32) -> Vec<u8> {
    let mut header = Vec::with_capacity(PACK_HEADER_BYTES);
    header.extend_from_slice(&HEADER_MAGIC);
    header.extend_from_slice(&version.to_le_bytes());
    header.extend_from_slice(&0_u32.to_le_bytes());
    header.extend_from_slice(id.as_bytes());
    header
}

/// The pack id in a file's header; `None` if it is not the header of a pack.
pub(crate) fn id_in_header(header: &[u8; PACK_HEADER_BYTES]) -> Option<PackId> {
    let (magic, rest) = header.split_first_chunk::<8>()?;
    let id = rest.last_chunk::<{ PackId::BYTES }>()?;
    (*magic == HEADER_MAGIC).then_some(PackId(*id))
}
