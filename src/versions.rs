//! What this release knows of PostgreSQL's versions, and what it says of others.
//!
//! What is stored does not depend on it: backups and WAL of any version are kept byte for byte. What has to be understood
//! is said to be missing, loudly, and made up for by a later release.

use barmanfs_catalog::WalFile;
use barmanfs_pg::ServerVersion;
use barmanfs_pg::wal_scan::SegmentIndex;

/// The oldest and the newest major version whose formats this release was tried with.
pub(crate) const KNOWN: std::ops::RangeInclusive<u32> = 13..=19;

/// What works with WAL that is not understood, and what does not.
pub(crate) const UNKNOWN_WAL: &str = "cannot be read by this release of barmanfs: it is archived safely, but nothing that \
                                      replays it is offered until a release that knows it has run 'barmanfs index-wal'";

/// What to say of a server of this version; none where it is known.
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

/// Says that what was archived is not understood.
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
    fn versions_that_were_not_tried_are_told() {
        assert_eq!(unknown(ServerVersion(130_000)), None);
        assert_eq!(unknown(ServerVersion(190_001)), None);
        assert!(unknown(ServerVersion(200_000)).is_some());
        assert!(unknown(ServerVersion(120_022)).is_some());
    }
}
