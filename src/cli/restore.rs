//! The command line of `barmanfs restore`. Names are Barman's.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use barmanfs_catalog::{Action, Annotation, TimelineChoice};
use clap::Args;

use super::JsonOption;
use crate::config;
use crate::restore::{Layout, Pattern, Relocation};
use crate::size;

/// Ends `barmanfs restore --help`.
pub(super) const RESTORE_HELP: &str = "\
Writes the data directory that 'cp -a' would copy from a mount, without a mount: from the newest backup that
leads to the target ('auto'), or from the one that is named. Without a target, all WAL there is is replayed.
The target is checked before anything is written, as by 'barmanfs explain'. PostgreSQL does not start in
DEST before all of it is on disk; the same command continues a restore that was interrupted.

Examples:
  barmanfs restore main auto /var/lib/postgresql/restored
  barmanfs restore main latest /srv/restored --target-immediate
  barmanfs restore main latest /srv/restored --annotation release=4.2 --target-immediate
  barmanfs restore main auto /srv/restored --target-time '2026-11-20 14:03:07+00' --target-action pause
  barmanfs restore main auto /srv/restored --target-name before_migration --no-get-wal
  barmanfs restore main 20261120T101500 /srv/restored --tablespace fast:/srv/fast -j 4
  barmanfs restore main auto /srv/restored --waldir /srv/wal/restored
  barmanfs restore main auto /srv/restored --barman-layout
  barmanfs restore main auto /var/lib/postgresql/18/main --delta-restore --dry-run
  barmanfs restore --watch /srv/restored
  barmanfs restore --watch /srv/restored --json
  barmanfs restore main auto /var/lib/postgresql/18/main --restore-config /etc/postgresql/18/main
  barmanfs restore main auto /srv/restored -j 4 \\
    --remote-ssh-command 'ssh -o BatchMode=yes -o ServerAliveInterval=20 postgres@db2'
  barmanfs restore main auto /var/lib/postgresql/standby --standby-mode --primary-conninfo 'host=db1'";

/// `restore`
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "options of a command line")]
pub(crate) struct RestoreArgs {
    /// Server to restore
    #[arg(
        required_unless_present = "watch",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) server: String,
    /// Id or name of the backup, or latest, oldest; auto for the newest one that leads to the target
    #[arg(
        value_name = "BACKUP|auto",
        required_unless_present = "watch",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) backup: String,
    /// Directory to write
    #[arg(
        value_name = "DEST",
        required_unless_present = "watch",
        default_value = ".",
        hide_default_value = true
    )]
    pub(crate) destination: PathBuf,
    /// Restore nothing: show how far the recovery in a restored directory has come, once its server is started; with
    /// --json, how far it is now
    #[arg(long, value_name = "DIR", conflicts_with = "server")]
    pub(crate) watch: Option<PathBuf>,
    /// From a backup with this annotation; BACKUP is 'auto', or 'latest' for the newest one; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = Annotation::from_str)]
    pub(crate) annotation: Vec<Annotation>,
    /// How far to recover.
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Make a standby: it follows the archive, and its primary if it has one
    #[arg(long)]
    pub(crate) standby_mode: bool,
    /// How the standby connects to its primary
    #[arg(long, value_name = "CONNINFO", requires = "standby_mode")]
    pub(crate) primary_conninfo: Option<String>,
    /// The copy fetches WAL from the repository when it is started; that is the default
    #[arg(long, conflicts_with = "no_get_wal")]
    pub(crate) get_wal: bool,
    /// Put all WAL that is needed into the copy
    #[arg(long)]
    pub(crate) no_get_wal: bool,
    /// The copy's restore_command, instead of one that calls 'barmanfs get-wal'
    #[arg(long, value_name = "COMMAND")]
    pub(crate) restore_command: Option<String>,
    /// Stay on the timeline of the backup, as Barman does without a target; implies --no-get-wal
    #[arg(long, conflicts_with_all = ["get_wal", "standby_mode", "restore_command", "recovery_conf_filename", "target_time", "target_xid", "target_lsn", "target_name", "target_immediate"])]
    pub(crate) same_timeline: bool,
    /// Write what Barman would write, under its names: all WAL is in DEST ('barman_wal' if there is a target) unless --get-wal is
    /// given, and there are .barman-recover.info, *.origin, lines '#BARMAN#' and backup_manifest.ID
    #[arg(long)]
    pub(crate) barman_layout: bool,
    /// Write no settings for a recovery: DEST is as the server's was, for a program that writes them (Patroni, repmgr)
    #[arg(long, conflicts_with_all = ["get_wal", "no_get_wal", "standby_mode", "restore_command", "recovery_conf_filename", "same_timeline", "barman_layout", "keep_origin", "target_action"])]
    pub(crate) no_recovery: bool,
    /// Also put postgresql.conf and postgresql.auto.conf into DEST as they are in the backup, as <name>.origin
    #[arg(long)]
    pub(crate) keep_origin: bool,
    /// DEST is on the host that this command reaches; it needs sh and tar there
    #[arg(long, value_name = "COMMAND")]
    pub(crate) remote_ssh_command: Option<String>,
    /// With --remote-ssh-command: port of the ssh of this host, from which the copy fetches WAL
    #[arg(long, value_name = "PORT", requires = "remote_ssh_command")]
    pub(crate) recovery_option_port: Option<u16>,
    /// File in DEST for the settings of the recovery, instead of postgresql.auto.conf
    #[arg(long, value_name = "FILE")]
    pub(crate) recovery_conf_filename: Option<String>,
    /// Put a tablespace there, and a symbolic link into DEST; repeatable
    #[arg(long, value_name = "NAME:LOCATION")]
    pub(crate) tablespace: Vec<Relocation>,
    /// Where the other tablespaces are: in DEST, or where they were on the server
    #[arg(
        long,
        value_name = "inside|original",
        value_enum,
        default_value = "inside",
        hide_possible_values = true
    )]
    pub(crate) tablespace_layout: Layout,
    /// Put pg_wal there, an absolute path, and a symbolic link into DEST
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub(crate) waldir: Option<PathBuf>,
    /// Write the configuration files that the server kept outside its data directory there, and use DEST in them
    #[arg(long, value_name = "DIR")]
    pub(crate) restore_config: Option<PathBuf>,
    /// DEST may hold another state of the same server: write only what differs
    #[arg(long)]
    pub(crate) delta_restore: bool,
    /// Write nothing; with --delta-restore, show what would be written and removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// With --delta-restore: leave this path of DEST, although the backup does not have it; repeatable
    #[arg(long, value_name = "PATTERN")]
    pub(crate) keep: Vec<Pattern>,
    /// Number of threads that write [default: one for each core]
    #[arg(short, long, alias = "parallel", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: Option<u16>,
    /// Most that is written per second, in kB or with k, M or G
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(crate) bwlimit: Option<u64>,
    /// Options of Barman.
    #[command(flatten)]
    pub(crate) of_barman: OfBarman,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

impl RestoreArgs {
    /// The command line without options.
    pub(crate) fn new(server: &str, backup: &str, destination: &Path) -> Self {
        Self {
            server: server.to_owned(),
            backup: backup.to_owned(),
            destination: destination.to_owned(),
            watch: None,
            annotation: Vec::new(),
            target: TargetArgs::default(),
            standby_mode: false,
            primary_conninfo: None,
            get_wal: false,
            no_get_wal: false,
            restore_command: None,
            same_timeline: false,
            barman_layout: false,
            no_recovery: false,
            keep_origin: false,
            remote_ssh_command: None,
            recovery_option_port: None,
            recovery_conf_filename: None,
            tablespace: Vec::new(),
            tablespace_layout: Layout::Inside,
            waldir: None,
            restore_config: None,
            delta_restore: false,
            dry_run: false,
            keep: Vec::new(),
            jobs: None,
            bwlimit: None,
            of_barman: OfBarman::default(),
            json: JsonOption::default(),
        }
    }

    /// Whether all WAL is put into the copy.
    pub(crate) fn is_self_contained(&self) -> bool {
        let is_barmans = self.barman_layout && !self.get_wal && self.restore_command.is_none();
        self.no_get_wal || self.same_timeline || is_barmans
    }

    /// Whether that has a directory of its own, as in a restore by Barman to a target.
    pub(crate) fn has_wal_apart(&self) -> bool {
        self.barman_layout
            && self.is_self_contained()
            && !self.standby_mode
            && !self.same_timeline
            && self.target.is_given()
    }
}

/// `agent`
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Bring a connection to the agent that waits at this socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) join: Option<PathBuf>,
    /// Give the packs of this host's repository to a passive node, for this server
    #[arg(long, value_name = "SERVER", conflicts_with = "join")]
    pub(crate) packs: Option<String>,
}

/// The target of a recovery.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TargetArgs {
    /// Recover to a point in time; without a zone the server's is meant
    #[arg(long, value_name = "TIME")]
    pub(crate) target_time: Option<String>,
    /// Recover to the end of a transaction
    #[arg(long, value_name = "XID")]
    pub(crate) target_xid: Option<String>,
    /// Recover to an LSN
    #[arg(long, value_name = "LSN")]
    pub(crate) target_lsn: Option<String>,
    /// Recover to a restore point
    #[arg(long, value_name = "NAME")]
    pub(crate) target_name: Option<String>,
    /// Recover to the end of the backup
    #[arg(long)]
    pub(crate) target_immediate: bool,
    /// Recover along this timeline: a number, latest, or current for the backup's
    #[arg(long, value_name = "N", value_parser = timeline)]
    pub(crate) target_tli: Option<TimelineChoice>,
    /// Stop just before the target
    #[arg(long)]
    pub(crate) exclusive: bool,
    /// What to do at the target: pause, promote or shutdown [default: as configured]
    #[arg(long, value_name = "ACTION", value_parser = config::recovery_target_action)]
    pub(crate) target_action: Option<Action>,
}

impl TargetArgs {
    /// Whether there is a target, or the timeline to recover along.
    pub(crate) fn is_given(&self) -> bool {
        let texts = [
            &self.target_time,
            &self.target_xid,
            &self.target_lsn,
            &self.target_name,
        ];
        texts.iter().any(|text| text.is_some()) || self.target_immediate || self.target_tli.is_some()
    }
}

/// Options that Barman has for its ways to copy. They are understood; those for other storage are refused.
#[derive(Debug, Default, Args)]
#[allow(clippy::struct_excessive_bools, reason = "options of a command line")]
pub(crate) struct OfBarman {
    #[arg(long, hide = true)]
    retry_times: Option<u32>,
    #[arg(long, hide = true)]
    retry_sleep: Option<u32>,
    #[arg(long, hide = true, conflicts_with = "retry_times")]
    no_retry: bool,
    #[arg(long, hide = true)]
    jobs_start_batch_period: Option<u32>,
    #[arg(long, hide = true)]
    jobs_start_batch_size: Option<u32>,
    #[arg(long, hide = true, overrides_with = "no_network_compression")]
    network_compression: bool,
    #[arg(long, hide = true)]
    no_network_compression: bool,
    #[arg(long, hide = true)]
    partial_wal: bool,
    #[arg(long, hide = true)]
    staging_path: Option<PathBuf>,
    #[arg(long, hide = true)]
    staging_location: Option<String>,
    #[arg(long, hide = true)]
    combine_mode: Option<String>,
    #[arg(long, hide = true)]
    recovery_staging_path: Option<PathBuf>,
    #[arg(long, hide = true)]
    local_staging_path: Option<PathBuf>,
    #[arg(long, hide = true)]
    staging_wal_directory: Option<PathBuf>,
    #[arg(long, hide = true)]
    snapshot_recovery_instance: Option<String>,
    #[arg(long, hide = true)]
    snapshot_recovery_zone: Option<String>,
    #[arg(long, hide = true)]
    gcp_zone: Option<String>,
    #[arg(long, hide = true)]
    azure_resource_group: Option<String>,
    #[arg(long, hide = true)]
    aws_region: Option<String>,
}

impl OfBarman {
    /// The options that were given and change nothing.
    pub(crate) fn without_effect(&self) -> Vec<&'static str> {
        named(&[
            (self.retry_times.is_some(), "--retry-times"),
            (self.retry_sleep.is_some(), "--retry-sleep"),
            (self.no_retry, "--no-retry"),
            (
                self.jobs_start_batch_period.is_some(),
                "--jobs-start-batch-period",
            ),
            (self.jobs_start_batch_size.is_some(), "--jobs-start-batch-size"),
            (self.network_compression, "--network-compression"),
            (self.no_network_compression, "--no-network-compression"),
            (self.partial_wal, "--partial-wal"),
        ])
    }

    /// The options about staging that were given.
    pub(crate) fn staging(&self) -> Vec<&'static str> {
        named(&[
            (self.staging_path.is_some(), "--staging-path"),
            (self.staging_location.is_some(), "--staging-location"),
            (self.combine_mode.is_some(), "--combine-mode"),
            (self.recovery_staging_path.is_some(), "--recovery-staging-path"),
            (self.local_staging_path.is_some(), "--local-staging-path"),
            (self.staging_wal_directory.is_some(), "--staging-wal-directory"),
        ])
    }

    /// The options that were given for what does not exist here.
    pub(crate) fn unsupported(&self) -> Vec<&'static str> {
        named(&[
            (
                self.snapshot_recovery_instance.is_some(),
                "--snapshot-recovery-instance",
            ),
            (self.snapshot_recovery_zone.is_some(), "--snapshot-recovery-zone"),
            (self.gcp_zone.is_some(), "--gcp-zone"),
            (self.azure_resource_group.is_some(), "--azure-resource-group"),
            (self.aws_region.is_some(), "--aws-region"),
        ])
    }
}

fn named(options: &[(bool, &'static str)]) -> Vec<&'static str> {
    let given = options.iter().filter(|(given, _)| *given);
    given.map(|(_, name)| *name).collect()
}

fn timeline(text: &str) -> Result<TimelineChoice, String> {
    match text {
        "latest" => Ok(TimelineChoice::Latest),
        "current" => Ok(TimelineChoice::Current),
        number => number.parse().map(TimelineChoice::Id).map_err(|_| {
            "is no timeline: allowed are latest, current and the decimal numbers from 1".to_owned()
        }),
    }
}

/// As a link can lead to it from everywhere.
fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.is_absolute() {
        true => Ok(path.components().collect()),
        false => Err("allowed is an absolute path".to_owned()),
    }
}

/// A rate in bytes per second, given in kilobytes or with a unit.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let bytes = match size::scaled(text) {
        Some((number, None)) => number.checked_mul(1024),
        Some((number, Some(unit))) => number.checked_mul(unit),
        None => None,
    };
    bytes
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "allowed is a rate per second, like 4000 (kB), 32M or 1G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_kilobytes() {
        assert_eq!(rate("4"), Ok(4096));
        assert_eq!(rate("32M"), Ok(32 << 20));
        assert!(rate("0").is_err() && rate("fast").is_err());
    }
}
