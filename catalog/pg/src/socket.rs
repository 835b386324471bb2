//! The names of a server's sockets.
//!
//! Source: `UNIXSOCK_PATH` in `src/include/libpq/pqcomm.h`, `CreateSocketLockFile` in `src/backend/utils/init/miscinit.c`.

/// The prefix of the names of sockets, and of the lock files beside them.
pub const SOCKET_PREFIX: &[u8] = b".s.PGSQL.";

/// Whether this is the name of a lock file that a server has made beside a socket. The number of its process is in it.
#[must_use]
pub fn is_socket_lock(name: &[u8]) -> bool {
    name.starts_with(SOCKET_PREFIX) && name.ends_with(b".lock")
}
