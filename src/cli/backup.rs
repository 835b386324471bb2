//! The command line of `barmanfs backup`.

use std::num::NonZero;
use std::path::PathBuf;
use std::str::FromStr;

use barmanfs_catalog::{Annotation, BackupName, BackupSelector};
use barmanfs_pg::Lsn;
use clap::{Args, ValueEnum};

use super::JsonOption;
use super::retention::KeptPart;
use crate::config::{BackupMethod, Incremental, TablespacePlace};
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
  barmanfs backup main --fast-checkpoint --name before_upgrade
  barmanfs backup main --incremental never
  barmanfs backup main --annotate release=4.2 --annotate ticket=871 --keep standalone
  barmanfs backup main --method files
  barmanfs backup main --from /mnt/snapshot/data
  barmanfs backup main --from /mnt/snapshot/data --backup-label label --stop-lsn 0/5000138 \
                       --tablespace-map map --tablespace 16384:/mnt/fast
  barmanfs backup all --jobs 4 --max-rate 50M";

/// `backup`
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Servers of the configuration, or 'all' for every active one
    #[arg(required = true, value_name = "SERVER|all")]
    pub(crate) servers: Vec<String>,
    /// A text kept with the backup
    #[arg(long, value_name = "TEXT", value_parser = label)]
    pub(crate) label: Option<String>,
    /// The same, as a word that other commands take in the place of an id
    #[arg(long, value_name = "NAME", value_parser = BackupName::from_str, conflicts_with = "label")]
    pub(crate) name: Option<BackupName>,
    /// Note something with the backup: shown in lists, and a way to find it; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = Annotation::from_str)]
    pub(crate) annotate: Vec<Annotation>,
    /// Keep the backup whatever the policy says, as 'barmanfs keep --target' does
    #[arg(long, value_name = "full|standalone", hide_possible_values = true)]
    pub(crate) keep: Option<KeptPart>,
    /// Begin with a checkpoint at full speed instead of waiting for a spread one
    #[arg(long, alias = "immediate-checkpoint", overrides_with = "no_fast_checkpoint")]
    pub(crate) fast_checkpoint: bool,
    /// Begin with a spread checkpoint, whatever the configuration says
    #[arg(long, alias = "no-immediate-checkpoint")]
    pub(crate) no_fast_checkpoint: bool,
    /// Most that is read from the server per second, in kB or with k, M or G
    #[arg(long, alias = "bwlimit", value_name = "RATE", value_parser = max_rate)]
    pub(crate) max_rate: Option<u32>,
    /// Have the server send its files, or read them on its own host [default: as configured, or postgres]
    #[arg(long, value_name = "postgres|files", value_parser = method, conflicts_with = "from")]
    pub(crate) method: Option<BackupMethod>,
    /// Let the server send only what has changed since an earlier backup [default: as configured, or auto]
    #[arg(long, value_name = "auto|always|never", value_parser = incremental)]
    pub(crate) incremental: Option<Incremental>,
    /// Read the data directory DIR of a mounted snapshot; the server sends nothing
    #[arg(long, value_name = "DIR", conflicts_with_all = ["incremental", "max_rate"])]
    pub(crate) from: Option<PathBuf>,
    /// The label that pg_backup_stop has returned for that snapshot; the server is not asked then
    #[arg(long, value_name = "FILE", requires_all = ["from", "stop_lsn"])]
    pub(crate) backup_label: Option<PathBuf>,
    /// Where pg_backup_stop has ended the backup
    #[arg(long, value_name = "LSN", requires = "backup_label")]
    pub(crate) stop_lsn: Option<Lsn>,
    /// The map of tablespaces that pg_backup_stop has returned
    #[arg(long, value_name = "FILE", requires = "backup_label")]
    pub(crate) tablespace_map: Option<PathBuf>,
    /// Where the snapshot of a tablespace is mounted; WHICH is its OID, its name or its place on the server; repeatable
    #[arg(long, value_name = "WHICH:DIR", requires = "from")]
    pub(crate) tablespace: Vec<TablespacePlace>,
    /// Servers to back up at the same time; they share --max-rate
    #[arg(short, long, value_name = "N", default_value = "1")]
    pub(crate) jobs: NonZero<usize>,
    /// How long to wait for the backup's WAL to arrive in the archive, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) wait_timeout: u64,
    /// Do not wait for it: a later archived file completes the backup
    #[arg(long, conflicts_with = "wait_timeout")]
    pub(crate) no_wait: bool,
    /// Options of Barman.
    #[command(flatten)]
    pub(crate) of_barman: OfBarman,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// Options that Barman has for its ways to copy. They are understood; there is nothing that they could change, except for
/// `--reuse-backup off`.
#[derive(Debug, Args)]
pub(crate) struct OfBarman {
    /// Where it is off, the server sends everything
    #[arg(long, hide = true, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "link",
        value_parser = ["copy", "link", "off"])]
    reuse_backup: Option<String>,
    /// Barman waits only if this is given
    #[arg(short, long, hide = true, conflicts_with = "no_wait")]
    wait: bool,
    #[arg(long, hide = true)]
    jobs_start_batch_period: Option<u32>,
    #[arg(long, hide = true)]
    jobs_start_batch_size: Option<u32>,
    #[arg(long, hide = true)]
    retry_times: Option<u32>,
    #[arg(long, hide = true)]
    retry_sleep: Option<u32>,
    #[arg(long, hide = true, conflicts_with = "retry_times")]
    no_retry: bool,
    #[arg(long, hide = true)]
    keepalive_interval: Option<u32>,
    #[arg(long, hide = true)]
    check_timeout: Option<u32>,
    #[arg(long, hide = true, overrides_with = "no_manifest")]
    manifest: bool,
    #[arg(long, hide = true)]
    no_manifest: bool,
}

impl OfBarman {
    /// What `--reuse-backup` means here.
    pub(crate) fn incremental(&self) -> Option<Incremental> {
        (self.reuse_backup.as_deref() == Some("off")).then_some(Incremental::Never)
    }

    /// The options that were given and change nothing.
    pub(crate) fn without_effect(&self) -> Vec<&'static str> {
        let given = [
            (
                self.jobs_start_batch_period.is_some(),
                "--jobs-start-batch-period",
            ),
            (self.jobs_start_batch_size.is_some(), "--jobs-start-batch-size"),
            (self.retry_times.is_some(), "--retry-times"),
            (self.retry_sleep.is_some(), "--retry-sleep"),
            (self.no_retry, "--no-retry"),
            (self.keepalive_interval.is_some(), "--keepalive-interval"),
            (self.check_timeout.is_some(), "--check-timeout"),
            (self.manifest, "--manifest"),
            (self.no_manifest, "--no-manifest"),
            (
                self.reuse_backup.is_some() && self.incremental().is_none(),
                "--reuse-backup",
            ),
        ];
        let given = given.into_iter().filter(|(given, _)| *given);
        given.map(|(_, name)| name).collect()
    }
}

/// When to take an incremental backup. Barman's word for a parent means `always`: which backup it builds on makes no
/// difference, because none depends on another, and the newest one saves most.
fn incremental(text: &str) -> Result<Incremental, String> {
    if let Ok(when) = <Incremental as ValueEnum>::from_str(text, false) {
        return Ok(when);
    }
    match text.parse::<BackupSelector>() {
        Ok(BackupSelector::Id(_) | BackupSelector::Latest) => Ok(Incremental::Always),
        _ => Err(
            "allowed are auto, always, never and, as with Barman, an id, latest or latest-full".to_owned(),
        ),
    }
}

fn method(text: &str) -> Result<BackupMethod, String> {
    match text {
        "postgres" => Ok(BackupMethod::Postgres),
        "files" => Ok(BackupMethod::Files),
        _ => Err("allowed are postgres and files".to_owned()),
    }
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
pub(super) fn max_rate(text: &str) -> Result<u32, String> {
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
    fn barmans_parents_mean_always() {
        assert_eq!(incremental("never"), Ok(Incremental::Never));
        for word in ["always", "latest", "last-full", "20261120T101500"] {
            assert_eq!(incremental(word), Ok(Incremental::Always), "{word}");
        }
        assert!(incremental("sometimes").is_err() && incremental("oldest").is_err());
    }

    #[test]
    fn rates_are_kilobytes() {
        assert_eq!(max_rate("4000"), Ok(4000));
        assert_eq!(max_rate("32M"), Ok(32 * 1024));
        assert_eq!(max_rate("1G"), Ok(1_048_576));
        assert!(max_rate("31").is_err() && max_rate("2G").is_err() && max_rate("M").is_err());
    }
}
