//! Configuration files for a data directory without its own: Debian keeps them outside.

/// `hot_standby` would demand settings at least as large as the original's, which are not known here; the copy is
/// promoted as soon as it is consistent and has no use for it.
pub(super) const POSTGRESQL_CONF: &str = "\
# Made by barmanfs: the data directory that was backed up has no postgresql.conf,
# the server keeps it elsewhere (Debian: /etc/postgresql). Replace this file by the
# server's own before the copy takes over production.
listen_addresses = ''
hot_standby = off
";

pub(super) const PG_HBA_CONF: &str = "\
# Made by barmanfs: the data directory that was backed up has no pg_hba.conf, or its
# server was told to use another one (hba_file).
# Local connections only, under the operating system's user name.
local  all          all  peer
local  replication  all  peer
";
