//! Secret bytes in memory.

use std::fmt;

use zeroize::Zeroize;

use crate::error::{Error, Result};

/// Secret bytes: kept out of swap where the system allows it, overwritten when they are dropped, and never shown.
pub struct Secret(Box<[u8; Secret::BYTES]>);

impl Secret {
    /// Length in bytes.
    pub const BYTES: usize = 32;

    /// A new secret.
    ///
    /// # Errors
    /// [`Error::Random`] when the operating system has no random bytes to give.
    pub fn random() -> Result<Self> {
        let mut secret = Self::empty();
        getrandom::fill(secret.0.as_mut_slice()).map_err(|source| Error::Random(source.to_string()))?;
        Ok(secret)
    }

    /// A secret of these bytes, which are overwritten where they were.
    pub fn take(bytes: &mut [u8; Self::BYTES]) -> Self {
        let mut secret = Self::empty();
        secret.0.copy_from_slice(bytes);
        bytes.zeroize();
        secret
    }

    fn empty() -> Self {
        let secret = Self(Box::new([0; Self::BYTES]));
        keep_in_memory(secret.0.as_ref());
        secret
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// Another secret, which follows from this one, `context` and `salt`.
    pub(crate) fn derive(&self, context: &str, salt: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(self.expose()).update(salt);
        let mut hash = hasher.finalize();
        let mut secret = Self::empty();
        secret.0.copy_from_slice(hash.as_bytes());
        hash.zeroize();
        hasher.zeroize();
        secret
    }
}

impl Clone for Secret {
    fn clone(&self) -> Self {
        let mut secret = Self::empty();
        secret.0.copy_from_slice(self.expose());
        secret
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Keeps the page of these bytes out of swap. It stays so when they are freed, because another secret may be in the same
/// page: a process has few secrets. Where the limit of locked memory is reached, the secret may be swapped out.
#[allow(unsafe_code)]
fn keep_in_memory(bytes: &[u8]) {
    // SAFETY: the range is that of a live slice, and locking a page changes nothing that a program can read or write.
    let _ = unsafe { rustix::mm::mlock(bytes.as_ptr().cast_mut().cast(), bytes.len()) };
}
