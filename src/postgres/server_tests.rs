//! The client against real servers of every version that is here, with the server's own tools as the oracle.
//!
//! The servers come from `BARMANFS_TEST_PG_BINDIRS` (`15=/a/bin:16=/b/bin`) or from Debian's packages.

mod backup;
mod server;
mod sessions;
mod stream;
