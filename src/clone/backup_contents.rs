//! Decides which files of a clone belong in a backup. Like `pg_basebackup`, a backup omits what a server recreates at
//! every start (`excludeDirContents` and `excludeFiles` in `src/backend/backup/basebackup.c`). Unlogged relations are
//! kept: they are valid after a clean shutdown, and a server that recovers from a crash resets them itself.

use barmanfs_pg::recreated::{
    EMPTIED_DIRECTORIES, is_relation_cache, is_temporary_file, is_temporary_relation,
};
use barmanfs_pg::socket::is_socket_lock;

use crate::instance;

/// Whether an entry is in the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inclusion {
    /// It is. The entries of a directory are checked one by one.
    Included,
    /// Only the directory is, without its entries.
    EmptyDirectory,
    /// It is not.
    LeftOut,
    /// It is a file directly in `pg_wal`: that depends on what is needed to start.
    Wal,
}

/// Directories for status files of segments that are not in the backup.
const OF_WAL: [&[u8]; 2] = [b"pg_wal/archive_status", b"pg_wal/summaries"];

/// Files of a running server, or of another backup.
const LEFT_OUT: [&[u8]; 8] = [
    instance::LOG.as_bytes(),
    instance::EXTERNAL_PID_FILE.as_bytes(),
    b"postmaster.pid",
    b"postmaster.opts",
    b"postgresql.auto.conf.tmp",
    b"current_logfiles.tmp",
    b"backup_manifest",
    b"tablespace_map",
];

/// The directories of relations.
const RELATIONS: [&[u8]; 2] = [b"base/", b"pg_tblspc/"];

/// Whether the entry at `path` is in the backup.
pub(crate) fn inclusion(path: &[u8]) -> Inclusion {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let is_relation = || RELATIONS.iter().any(|place| path.starts_with(place));
    if EMPTIED_DIRECTORIES.contains(&path) || OF_WAL.contains(&path) {
        Inclusion::EmptyDirectory
    } else if LEFT_OUT.contains(&path)
        || is_socket_lock(path)
        || is_temporary_file(name)
        || is_relation_cache(name)
        || (is_relation() && is_temporary_relation(name))
    {
        Inclusion::LeftOut
    } else if path
        .strip_prefix(b"pg_wal/")
        .is_some_and(|name| !name.contains(&b'/'))
    {
        Inclusion::Wal
    } else {
        Inclusion::Included
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_a_server_recreates_are_left_out() {
        for (path, expected) in [
            ("PG_VERSION", Inclusion::Included),
            ("base/5/1259", Inclusion::Included),
            ("base/5/16400_init", Inclusion::Included),
            ("base/5/t3_16400", Inclusion::LeftOut),
            ("base/5/t3_16400_fsm.1", Inclusion::LeftOut),
            ("base/5/t3_x", Inclusion::Included),
            ("t3_16400", Inclusion::Included),
            ("base/pgsql_tmp", Inclusion::LeftOut),
            ("base/5/pg_internal.init", Inclusion::LeftOut),
            ("global/pg_internal.init.4711", Inclusion::LeftOut),
            ("pg_tblspc/16435/PG_18_202506291/5/t12_9", Inclusion::LeftOut),
            ("postmaster.pid", Inclusion::LeftOut),
            ("postmaster.external.pid", Inclusion::LeftOut),
            (".s.PGSQL.25432.lock", Inclusion::LeftOut),
            ("barmanfs-server.log", Inclusion::LeftOut),
            ("log/postgresql.log", Inclusion::Included),
            ("log/postmaster.pid", Inclusion::Included),
            ("pg_replslot", Inclusion::EmptyDirectory),
            ("pg_stat", Inclusion::Included),
            ("pg_wal", Inclusion::Included),
            ("pg_wal/archive_status", Inclusion::EmptyDirectory),
            ("pg_wal/000000010000000000000001", Inclusion::Wal),
            ("pg_wal/summaries", Inclusion::EmptyDirectory),
        ] {
            assert_eq!(inclusion(path.as_bytes()), expected, "{path}");
        }
    }
}
