//! What Barman writes.
