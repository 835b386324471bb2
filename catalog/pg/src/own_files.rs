//! Which names in a data directory are those of PostgreSQL's own data: without them a copy is not the cluster.

/// The directories and files that hold it. What a server makes again, its WAL and its statistics are not among them.
const OWN: [&[u8]; 9] = [
    b"PG_VERSION",
    b"base",
    b"global",
    b"pg_commit_ts",
    b"pg_logical",
    b"pg_multixact",
    b"pg_tblspc",
    b"pg_twophase",
    b"pg_xact",
];

/// Whether PostgreSQL has data at this path or below it. A link in `pg_tblspc` says where a tablespace is, and may be that of one
/// which is being made; in a tablespace, only directories of versions are PostgreSQL's own.
#[must_use]
pub fn is_own(path: &[u8]) -> bool {
    let mut parts = path.split(|&byte| byte == b'/');
    let first = parts.next().unwrap_or_default();
    match (first, parts.next(), parts.next()) {
        (b"pg_tblspc", Some(_), version) => version.is_some_and(|name| name.starts_with(b"PG_")),
        _ => OWN.contains(&first),
    }
}

/// The name in `pg_tblspc/<oid>/<name>`.
#[must_use]
pub fn tablespace_entry(path: &[u8]) -> Option<&[u8]> {
    let mut names = path.strip_prefix(b"pg_tblspc/")?.split(|byte| *byte == b'/');
    let (_oid, name) = (names.next()?, names.next()?);
    names.next().is_none().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_data_is_told_from_what_lies_beside_it() {
        for path in [
            "base",
            "base/5",
            "base/5/16384.1",
            "global/1262",
            "pg_xact",
            "pg_xact/0000",
            "pg_twophase",
            "pg_tblspc",
            "pg_tblspc/16384/PG_18_202506291",
            "pg_tblspc/16384/PG_18_202506291/5/16390",
        ] {
            assert!(is_own(path.as_bytes()), "{path}");
        }
        for path in [
            "",
            "log",
            "postgresql.conf",
            "pg_wal",
            "pg_stat",
            "pg_hba.conf",
            "pg_tblspc/16384",
            "pg_tblspc/16384/stray",
            "baseball",
        ] {
            assert!(!is_own(path.as_bytes()), "{path}");
        }
    }
}
