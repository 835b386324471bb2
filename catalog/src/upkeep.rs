//! Keeping a repository: freeing space, checking what is stored, making the catalog again, counting.

pub(crate) mod rebuild;
pub(crate) mod stats;
pub(crate) mod sweep;
pub(crate) mod verify;
