//! What WAL-G writes.
