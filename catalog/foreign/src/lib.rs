//! The formats in which other tools keep backups and WAL: bytes in, typed values out.
//!
//! Nothing here opens a file: the caller brings the bytes, and limits how many. Sources are hostile until they are read:
//! every parser refuses what it does not understand, with the place, and never allocates more than its input justifies.
//! Paths that come out of a source are checked by [`path`].
//!
//! - [`barman`]: Barman's `backup.info`, `identity.json`, `xlog.db` and the names in its directories.
//! - [`name`]: what is wrong with a name in a source.
//! - [`pgbackrest`]: pgBackRest's `backup.info`, `backup.manifest`, `archive.info`, block maps and cipher.
//! - [`walg`]: WAL-G's sentinel and files' metadata, and its page deltas.

pub mod barman;
pub mod name;
pub mod path;
pub mod pgbackrest;
pub mod walg;
