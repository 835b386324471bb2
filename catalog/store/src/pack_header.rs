//! A pack's header: to bytes and back.

use crate::id::{KeyId, PackId};
use crate::layout::{FORMAT_VERSION, PACK_HEADER_BYTES, SEALED_FORMAT_VERSION, SEALED_HEADER_BYTES};
use crate::seal::{SALT_BYTES, Salt};

/// First bytes of a pack.
const HEADER_MAGIC: [u8; 8] = *b"bmfspack";

/// A pack's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    /// Of a pack that everybody can read.
    Plain { id: PackId },
    /// Of a pack that is sealed under `key`.
    Sealed { id: PackId, key: KeyId, salt: Salt },
}

impl Header {
    pub(crate) fn id(&self) -> PackId {
        match self {
            Self::Plain { id } | Self::Sealed { id, .. } => *id,
        }
    }

    pub(crate) fn version(&self) -> u32 {
        match self {
            Self::Plain { .. } => FORMAT_VERSION,
            Self::Sealed { .. } => SEALED_FORMAT_VERSION,
        }
    }

    /// Where the first frame begins.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Plain { .. } => PACK_HEADER_BYTES,
            Self::Sealed { .. } => SEALED_HEADER_BYTES,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut header = Vec::with_capacity(SEALED_HEADER_BYTES);
        header.extend_from_slice(&HEADER_MAGIC);
        header.extend_from_slice(&self.version().to_le_bytes());
        header.extend_from_slice(&0_u32.to_le_bytes());
        header.extend_from_slice(self.id().as_bytes());
        if let Self::Sealed { key, salt, .. } = self {
            header.extend_from_slice(key.as_bytes());
            header.extend_from_slice(salt);
        }
        header
    }

    /// The header at the beginning of these bytes, if they are one of a version that is known.
    pub(crate) fn parse(bytes: &[u8; SEALED_HEADER_BYTES]) -> Option<Self> {
        let (first, rest) = bytes.split_first_chunk::<PACK_HEADER_BYTES>()?;
        let id = id_in_header(first)?;
        let (key, salt) = rest.split_first_chunk::<{ KeyId::BYTES }>()?;
        let salt = *salt.first_chunk::<SALT_BYTES>()?;
        let key = KeyId(*key);
        let both = [Self::Plain { id }, Self::Sealed { id, key, salt }];
        both.into_iter().find(|header| header.encode().starts_with(first))
    }
}

/// The pack id in a file's header; `None` if it is not the header of a pack.
pub(crate) fn id_in_header(header: &[u8; PACK_HEADER_BYTES]) -> Option<PackId> {
    let (magic, rest) = header.split_first_chunk::<8>()?;
    let id = rest.last_chunk::<{ PackId::BYTES }>()?;
    (*magic == HEADER_MAGIC).then_some(PackId(*id))
}
