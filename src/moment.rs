//! Times on the command line, in any form that PostgreSQL reads.

use std::time::SystemTime;

use barmanfs_catalog::recovery::{Target, TargetSpec};
use barmanfs_catalog::{Repository, ServerName};
use barmanfs_pg::TimestampMicros;

use crate::error::Error;

/// This moment.
pub(crate) fn now() -> TimestampMicros {
    SystemTime::now().into()
}

/// Reads a time. Without a zone, it is in that of the server.
pub(crate) fn parse(
    repository: &Repository,
    server: &ServerName,
    text: &str,
) -> Result<TimestampMicros, Error> {
    match text.parse::<TargetSpec>().map(|spec| spec.target) {
        Ok(Target::Time(time)) => Ok(repository.moment(server, time)?),
        // The error of a target names other targets.
        _ => Err(Error::usage(format!(
            "'{text}' is no time: allowed is one like '2027-01-31 14:00+00'"
        ))),
    }
}
