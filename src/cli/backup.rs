//! The command line of `barmanfs backup`.

use clap::Args;

use super::JsonOption;
use crate::config::Incremental;
use crate::postgres::MAX_RATE_KIB;
use crate::size;

/// Ends `barmanfs backup --help`.
pub(super) const BACKUP_HELP: &str = "\
Every backup is a full one: it can be deleted at any time and never needs another. Stored is only what
changed; from PostgreSQL 17 on, with summarize_wal = on, no more than that is sent either.

When WAL of the server arrives through 'wal-archive', the backup waits for its segments;
otherwise it brings them itself.

Examples:
  barmanfs backup main
  barmanfs backup main --fast-checkpoint --label before_upgrade
  barmanfs backup main --incremental never
  barmanfs backup all --max-rate 50M";

/// `backup`
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Servers of the configuration, or 'all' for every active one
    #[arg(required = true, value_name = "SERVER|all")]
    pub(crate) servers: Vec<String>,
    /// A text kept with the backup
    #[arg(long, value_name = "TEXT", value_parser = label)]
    pub(crate) label: Option<String>,
    /// Begin with a checkpoint at full speed instead of waiting for a spread one
    #[arg(long, alias = "immediate-checkpoint")]
    pub(crate) fast_checkpoint: bool,
    /// Most that is read from the server per second, in kB or with k, M or G
    #[arg(long, alias = "bwlimit", value_name = "RATE", value_parser = max_rate)]
    pub(crate) max_rate: Option<u32>,
    /// Let the server send only what has changed since an earlier backup [default: as configured, or auto]
    #[arg(long, value_name = "WHEN", value_enum)]
    pub(crate) incremental: Option<Incremental>,
    /// How long to wait for the backup's WAL to arrive in the archive, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) wait_timeout: u64,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// PostgreSQL accepts long paths as labels. This limit keeps a label on one line of a list.
pub(super) fn label(text: &str) -> Result<String, String> {
    const MAX_LABEL_BYTES: usize = 256;
    if text.len() > MAX_LABEL_BYTES || text.chars().any(char::is_control) {
        return Err(format!("allowed are at most {MAX_LABEL_BYTES} bytes on one line"));
    }
    Ok(text.to_owned())
}

/// Parses a rate in kilobytes per second, in PostgreSQL's units.
fn max_rate(text: &str) -> Result<u32, String> {
    let wrong = || {
        let (low, high) = (MAX_RATE_KIB.start(), MAX_RATE_KIB.end());
        format!("allowed is a rate from {low} to {high} kB per second, like 4000, 32M or 1G")
    };
    let kilobytes = match size::scaled(text) {
        Some((number, None)) => Some(number),
        Some((number, Some(unit))) => number.checked_mul(unit).map(|bytes| bytes / 1024),
        None => None,
    };
    let rate = kilobytes
        .and_then(|kb| u32::try_from(kb).ok())
        .ok_or_else(wrong)?;
    if MAX_RATE_KIB.contains(&rate) {
        Ok(rate)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_kilobytes() {
        assert_eq!(max_rate("4000"), Ok(4000));
        assert_eq!(max_rate("32M"), Ok(32 * 1024));
        assert_eq!(max_rate("1G"), Ok(1_048_576));
        assert!(max_rate("31").is_err() && max_rate("2G").is_err() && max_rate("M").is_err());
    }
}
