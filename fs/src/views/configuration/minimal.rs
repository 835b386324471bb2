//! Configuration files for a data directory without them: Debian keeps them elsewhere.

use barmanfs_pg::pg_control::RequiredSettings;

/// The settings are those of the server at the backup. If the server raised one later, a standby could not continue,
/// so `hot_standby` is off: the copy is promoted after recovery and does not need it.
const POSTGRESQL_CONF: &str = "\
# Made by barmanfs: the data directory that was backed up has no postgresql.conf,
# the server keeps it elsewhere (Debian: /etc/postgresql). Replace this file by the
# server's own before the copy takes over production.
listen_addresses = ''
hot_standby = off
";

/// A `postgresql.conf` with the known settings that must not be smaller than the server's for recovery.
pub(super) fn postgresql_conf(required: Option<RequiredSettings>) -> String {
    let required = required.map(|required| {
        [
            ("max_connections", required.max_connections),
            ("max_worker_processes", required.max_worker_processes),
            ("max_wal_senders", required.max_wal_senders),
            ("max_prepared_transactions", required.max_prepared_transactions),
            ("max_locks_per_transaction", required.max_locks_per_transaction),
        ]
    });
    let lines = required.into_iter().flatten();
    let lines = lines.map(|(name, value)| format!("{name} = {value}\n"));
    std::iter::once(POSTGRESQL_CONF.to_owned()).chain(lines).collect()
}

pub(super) const PG_HBA_CONF: &str = "\
# Made by barmanfs: the data directory that was backed up has no pg_hba.conf, or its
# server was told to use another one (hba_file).
# Local connections only, under the operating system's user name.
local  all          all  peer
local  replication  all  peer
";

pub(super) const PG_IDENT_CONF: &str = "\
# Made by barmanfs: the data directory that was backed up has no pg_ident.conf, or its
# server was told to use another one (ident_file). No user is another one here.
";

/// The comment at the top of such a file.
pub(super) const NAMES_FILES_OUTSIDE: &str = "\
# The server's own, below, names files that are not in this data directory. So it is not
# complete, and counts for nothing.
";
