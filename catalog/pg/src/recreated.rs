//! Names in a data directory of what a server makes again when it starts. No backup has it.
//!
//! Source: `excludeDirContents` and `excludeFiles` in `src/backend/backup/basebackup.c`, `looks_like_temp_rel_name` in
//! `src/backend/storage/file/fd.c`.

/// Directories that a server needs, and empties when it starts. Replication slots would keep WAL for nobody.
pub const EMPTIED_DIRECTORIES: [&[u8]; 7] = [
    b"pg_dynshmem",
    b"pg_notify",
    b"pg_replslot",
    b"pg_serial",
    b"pg_snapshots",
    b"pg_stat_tmp",
    b"pg_subtrans",
];

/// Whether this is the name of a temporary file, or of a directory of them.
pub fn is_temporary_file(name: &[u8]) -> bool {
    name.starts_with(b"pgsql_tmp")
}

/// Whether this is the name of a cache of the system catalogs.
pub fn is_relation_cache(name: &[u8]) -> bool {
    name.starts_with(b"pg_internal.init")
}

/// Whether this is the name of a file of a temporary relation: `t<backend>_<filenode>`, then perhaps a fork and a segment.
pub fn is_temporary_relation(name: &[u8]) -> bool {
    let Some((backend, relation)) = name
        .strip_prefix(b"t")
        .and_then(|rest| std::str::from_utf8(rest).ok())
        .and_then(|rest| rest.split_once('_'))
    else {
        return false;
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (relation, segment) = match relation.split_once('.') {
        Some((relation, segment)) => (relation, Some(segment)),
        None => (relation, None),
    };
    let (filenode, fork) = match relation.split_once('_') {
        Some((filenode, fork)) => (filenode, Some(fork)),
        None => (relation, None),
    };
    is_number(backend)
        && is_number(filenode)
        && segment.is_none_or(is_number)
        && fork.is_none_or(|fork| matches!(fork, "fsm" | "vm" | "init"))
}
