//! The PostgreSQL versions that this release knows, and messages about others.
//!
//! Stored data does not depend on this: backups and WAL of any version are kept byte for byte. If a format cannot be
//! interpreted, this is reported loudly, and a later release can interpret the data.

use barmanfs_catalog::WalFile;
use barmanfs_pg::ServerVersion;
use barmanfs_pg::wal_scan::SegmentIndex;

/// The version of Barman whose command line, output and variables these are.
pub(crate) const BARMAN: &str = "3.19.1";

/// The oldest and the newest major version whose formats this release was tried with.
pub(crate) const KNOWN: std::ops::RangeInclusive<u32> = 13..=19;

/// Describes what works with WAL that cannot be interpreted, and what does not.
pub(crate) const UNKNOWN_WAL: &str = "cannot be read by this release of barmanfs: it is archived safely, but nothing that \
                                      replays it is offered until a release that knows it has run 'barmanfs index-wal'";

/// The message about a server of this version; `None` if the version is known.
pub(crate) fn unknown(version: ServerVersion) -> Option<String> {
    let major = version.major();
    (!KNOWN.contains(&major)).then(|| {
        format!(
            "PostgreSQL {version} is not known to this release of barmanfs, which was tried with {} to {}: backups and WAL \
             are kept byte for byte, and what needs their formats to be understood (incremental backups, points in time, \
             startable views) may not be there",
            KNOWN.start(),
            KNOWN.end()
        )
    })
}

/// Warns if an archived file cannot be interpreted.
pub(crate) fn warn_of_wal(file: &WalFile) {
    if file
        .index
        .as_ref()
        .is_some_and(SegmentIndex::is_of_unknown_version)
    {
        tracing::warn!("{} of server {} {UNKNOWN_WAL}", file.name, file.server);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untested_versions_are_reported() {
        assert_eq!(unknown(ServerVersion(130_000)), None);
        assert_eq!(unknown(ServerVersion(190_001)), None);
        assert!(unknown(ServerVersion(200_000)).is_some());
        assert!(unknown(ServerVersion(120_022)).is_some());
    }
}
