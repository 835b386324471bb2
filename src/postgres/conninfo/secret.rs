//! A value that must not get into a log.

use std::fmt;

/// A password. Neither `Debug` nor `Display` can show it.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::postgres) struct Secret(Vec<u8>);

impl Secret {
    pub(super) fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The password itself, only for the authentication exchange.
    pub(in crate::postgres) fn expose(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}
