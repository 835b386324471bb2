//! The parts of the tests: real PostgreSQL servers, the program with its own repository, mounts that are always
//! unmounted, and a few ways to compare the results.
//!
//! PostgreSQL refuses to run as root. If the tests run as root, servers and program run as the database user, as they
//! do on a database host. Mounts made by that user are closed to root, so everything that reads a mount is a command
//! too (`Site::sh`), not a call of this process.

pub(crate) mod barman;
pub(crate) mod clock;
pub(crate) mod committer;
pub(crate) mod disk;
pub(crate) mod fake;
pub(crate) mod forgetful;
pub(crate) mod histories;
pub(crate) mod load;
pub(crate) mod moments;
pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod object_store;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod random;
pub(crate) mod recorder;
pub(crate) mod registry;
pub(crate) mod site;
pub(crate) mod snapshots;
pub(crate) mod ssh;
pub(crate) mod sshd;
pub(crate) mod standby;
pub(crate) mod template;
pub(crate) mod tree;
pub(crate) mod user;
pub(crate) mod watcher;

pub(crate) use load::Load;
pub(crate) use mount::Mount;
pub(crate) use postgres::{Install, PgServer};
pub(crate) use registry::{Test, alone, before_17, edges, once, since_17, with_postgres};
pub(crate) use site::Site;
pub(crate) use watcher::Watcher;
