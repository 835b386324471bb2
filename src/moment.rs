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
    let wrong = |why: String| Error::usage(format!("'{text}' is no time: {why}"));
    let spec: TargetSpec = text.parse().map_err(|error| wrong(format!("{error}")))?;
    match spec.target {
        Target::Time(time) => Ok(repository.moment(server, time)?),
        _ => Err(wrong("allowed is a time like '2027-01-31 14:00+00'".to_owned())),
    }
}
