//! New ids of packs and records.

use crate::error::{Error, Result};
use crate::id::{PackId, RecordId};

impl PackId {
    /// A new id.
    ///
    /// # Errors
    /// [`Error::Random`] when the operating system has no random bytes to give.
    pub fn random() -> Result<Self> {
        random_bytes().map(Self)
    }
}

impl RecordId {
    /// A new id.
    ///
    /// # Errors
    /// [`Error::Random`] when the operating system has no random bytes to give.
    pub fn random() -> Result<Self> {
        random_bytes().map(Self)
    }
}

fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|source| Error::Random(source.to_string()))?;
    Ok(bytes)
}
