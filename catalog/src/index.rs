//! The catalog's file and its look-ups: packs, records, places of chunks; the registered writers, and the condemned
//! packs that wait for them.

pub(crate) mod chunk_index;
pub(crate) mod chunk_lists;
pub(crate) mod chunk_set;
pub(crate) mod condemned;
pub(crate) mod convert;
pub(crate) mod damaged_wal;
pub(crate) mod db;
pub(crate) mod footer_ids;
pub(crate) mod footers;
pub(crate) mod forget;
pub(crate) mod read_segments;
pub(crate) mod records;
pub(crate) mod remote;
pub(crate) mod repository;
pub(crate) mod reserve;
pub(crate) mod runs;
pub(crate) mod schema;
pub(crate) mod sorted;
pub(crate) mod unread;
pub(crate) mod writer;
