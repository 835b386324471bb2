//! Describes what cannot be recovered of a server: after gaps in its WAL, and after a start without full WAL.

use barmanfs_catalog::recovery::Gap;
use barmanfs_catalog::{Backup, MinimalStretch, Repository, ServerName};

use crate::error::Error;
use crate::output;

/// What cannot be recovered because of a start with `wal_level = minimal`.
pub(crate) fn behind(stretch: &MinimalStretch) -> String {
    let until = match stretch.backup_after {
        Some(backup) => format!("to the end of backup {backup}"),
        None => "on, until there is a new backup".to_owned(),
    };
    format!(
        "from LSN {} {until}, as the server was started with wal_level = minimal",
        stretch.lsn
    )
}

/// The missing segments: `2 segments, 000000010000000000000007 to 000000010000000000000008`
pub(crate) fn missing(gap: &Gap) -> String {
    match gap.count {
        1 => format!("segment {}", gap.first),
        count => format!("{count} segments, {} to {}", gap.first, gap.last),
    }
}

/// What cannot be recovered because of a gap.
pub(crate) fn lost(gap: &Gap) -> String {
    let after = match gap.after {
        Some(time) => output::second(time),
        None => gap.unreachable.from.to_string(),
    };
    let until = match (gap.until, gap.backup_after) {
        (Some(time), Some(backup)) => format!("to {} (the end of backup {backup})", output::second(time)),
        (None, Some(backup)) => format!("to the end of backup {backup}"),
        (_, None) => "on, until there is a new backup".to_owned(),
    };
    format!("from {after} {until}, for want of {}", missing(gap))
}

/// The gaps that make something of a server unrecoverable; `backups` are all of the server's.
pub(crate) fn gaps_that_matter(
    repository: &Repository,
    server: &ServerName,
    backups: &[Backup],
) -> Result<Vec<Gap>, Error> {
    let mut gaps = repository.gaps(server, backups)?;
    gaps.retain(Gap::matters);
    Ok(gaps)
}
