//! What each key of a server does with its value.

use barmanfs_catalog::retention::InvalidPolicy;

use super::{Archiver, BackupMethod, CreateSlot, Incremental, PrimaryKind, ServerConfig};
use crate::config::Snapshots;
use crate::config::keys::HOOKS;
use crate::config::limits::{age, redundancy, si_size, unless_zero};
use crate::config::setting::{Effect, Wrong};
use crate::config::values::{
    absolute, bandwidth, boolean, connection_string, count, pages, schedule, seconds, size, slot_name,
};

type Outcome = Result<Effect, Wrong>;

/// Stores a value that was read.
fn store<T>(place: &mut T, value: Result<T, String>) -> Outcome {
    *place = value?;
    Ok(Effect::Obeyed)
}

/// The same where the default is "none".
fn store_some<T>(place: &mut Option<T>, value: Result<T, String>) -> Outcome {
    store(place, value.map(Some))
}

/// The same where the value may be stored in another form than it was written in.
fn store_mapped<T>(place: &mut T, value: Result<(T, Option<String>), String>) -> Outcome {
    let (value, mapped) = value?;
    *place = value;
    Ok(mapped.map_or(Effect::Obeyed, Effect::Mapped))
}

/// Keys of one kind. `None` means that the key is of another one.
type Group = fn(&mut ServerConfig, &str, &str) -> Option<Outcome>;

const GROUPS: [Group; 10] = [
    ServerConfig::set_identity,
    ServerConfig::set_primary,
    ServerConfig::set_wal,
    ServerConfig::set_backups,
    ServerConfig::set_retention,
    ServerConfig::set_limits,
    ServerConfig::set_upkeep,
    ServerConfig::set_recovery,
    ServerConfig::set_hooks,
    ServerConfig::set_snapshots,
];

impl ServerConfig {
    /// Sets a key to a value that is not empty.
    ///
    /// # Errors
    /// What is wrong with the value, in a form that follows the key.
    pub(in crate::config) fn set(&mut self, key: &str, value: &str) -> Outcome {
        // A test keeps the groups in step with the table of keys.
        let found = GROUPS.iter().find_map(|group| group(self, key, value));
        found.unwrap_or_else(|| Err("has no meaning here".to_owned().into()))
    }

    fn set_identity(&mut self, key: &str, value: &str) -> Option<Outcome> {
        Some(match key {
            "description" => store_some(&mut self.description, Ok(value.to_owned())),
            "active" => store(&mut self.active, boolean(value)),
            "cluster" => store_some(&mut self.cluster, Ok(value.to_owned())),
            "conninfo" => store_some(&mut self.conninfo, connection_string(value)),
            "streaming_conninfo" => store_some(&mut self.streaming_conninfo, connection_string(value)),
            "primary_conninfo" => store_some(&mut self.primary_conninfo, connection_string(value)),
            "primary_checkpoint_timeout" => store(
                &mut self.primary_checkpoint_timeout,
                seconds(value).map(unless_zero),
            ),
            "wal_conninfo" => store_some(&mut self.wal_conninfo, connection_string(value)),
            "wal_streaming_conninfo" => {
                store_some(&mut self.wal_streaming_conninfo, connection_string(value))
            }
            "path_prefix" => store_some(&mut self.path_prefix, absolute(value)),
            _ => return None,
        })
    }

    /// Keys of a passive node.
    fn set_primary(&mut self, key: &str, value: &str) -> Option<Outcome> {
        let primary = &mut self.primary;
        Some(match key {
            "primary_ssh_command" => store_some(&mut primary.ssh_command, Ok(value.to_owned())),
            "primary_repository" => store_some(&mut primary.repository, absolute(value)),
            "primary_home" => store_some(&mut primary.home, absolute(value)),
            "primary_kind" => store_some(&mut primary.kind, primary_kind(value)),
            "forward_config_path" => store(&mut primary.forward_config_path, boolean(value)),
            "sync_deletions" => store(&mut primary.deletions, boolean(value)),
            "sync_partial" => store(&mut primary.partial, boolean(value)),
            _ => return None,
        })
    }

    fn set_wal(&mut self, key: &str, value: &str) -> Option<Outcome> {
        Some(match key {
            "archiver" => store(&mut self.archiver, archiver(value)),
            "streaming_archiver" => store(&mut self.streaming_archiver, boolean(value)),
            "streaming_archiver_name" => store(&mut self.streaming_archiver_name, Ok(value.to_owned())),
            "slot_name" => {
                let name = slot_name(value);
                store_mapped(
                    &mut self.slot_name,
                    name.map(|(name, mapped)| (Some(name), mapped)),
                )
            }
            "create_slot" => store(&mut self.create_slot, create_slot(value)),
            "wals_directory" => directory(value),
            "incoming_wals_directory" => match value.contains("://") {
                true => directory(value),
                false => store_some(&mut self.incoming_wals_directory, absolute(value)),
            },
            _ => return None,
        })
    }

    fn set_backups(&mut self, key: &str, value: &str) -> Option<Outcome> {
        Some(match key {
            "backup_method" => store_mapped(&mut self.backup_method, backup_method(value)),
            "backup_options" => self.set_backup_options(value),
            "incremental" => store(&mut self.incremental, incremental(value)),
            "reuse_backup" => self.set_reuse_backup(value),
            "immediate_checkpoint" => store(&mut self.immediate_checkpoint, boolean(value)),
            "bandwidth_limit" => store_mapped(&mut self.bandwidth_limit_kb, bandwidth(value)),
            "streaming_backup_name" => store_some(&mut self.streaming_backup_name, Ok(value.to_owned())),
            "encryption" => encryption(value),
            "basebackups_directory" => directory(value),
            _ => return None,
        })
    }

    fn set_retention(&mut self, key: &str, value: &str) -> Option<Outcome> {
        Some(match key {
            "minimum_redundancy" => store(&mut self.minimum_redundancy, redundancy(value)),
            "retention_policy_mode" => match value.to_lowercase().as_str() {
                "auto" => Ok(Effect::Obeyed),
                _ => Err(format!("is '{value}': allowed is auto").into()),
            },
            "retention_policy" => store_some(&mut self.retention_policy, policy(value)),
            "wal_retention_policy" => store(&mut self.wal_retention_policy, policy(value)),
            "failed_backup_retention" => store(&mut self.failed_backup_retention, age(value)),
            _ => return None,
        })
    }

    fn set_limits(&mut self, key: &str, value: &str) -> Option<Outcome> {
        Some(match key {
            "last_backup_maximum_age" => store_some(&mut self.limits.backup_age, age(value)),
            "last_backup_minimum_size" => store_some(&mut self.limits.backup_size, si_size(value)),
            "last_wal_maximum_age" => store_some(&mut self.limits.wal_age, age(value)),
            "last_sync_maximum_age" => store_some(&mut self.limits.sync_age, age(value)),
            "last_boot_test_maximum_age" => store_some(&mut self.limits.boot_test_age, age(value)),
            "clone_maximum_age" => store_some(&mut self.limits.clone_age, age(value)),
            "max_incoming_wals_queue" => store_some(&mut self.max_incoming_wals_queue, count(value)),
            "check_timeout" => store(&mut self.check_timeout, seconds(value).map(unless_zero)),
            _ => return None,
        })
    }

    fn set_upkeep(&mut self, key: &str, value: &str) -> Option<Outcome> {
        Some(match key {
            "backup_schedule" => store(&mut self.backup_schedule, schedule(value)),
            "boot_test_schedule" => store(&mut self.boot_test_schedule, schedule(value)),
            "audit_sample" => store(&mut self.audit_sample, pages(value)),
            "clone_max_size" => store(&mut self.clone_limits.max_bytes, size(value)),
            "clone_max_count" => store(&mut self.clone_limits.max_count, count(value)),
            _ => return None,
        })
    }

    fn set_recovery(&mut self, key: &str, value: &str) -> Option<Outcome> {
        Some(match key {
            "recovery_host" => store_some(&mut self.recovery_host, host_name(value)),
            "recovery_options" => store(&mut self.delta_restore, recovery_options(value)),
            "parallel_jobs" => match count(value) {
                Ok(jobs) if jobs > 0 => store_mapped(
                    &mut self.parallel_jobs,
                    Ok((
                        Some(jobs),
                        Some("is the number of threads of a restore".to_owned()),
                    )),
                ),
                _ => Err(format!("is '{value}': allowed is a number from 1").into()),
            },
            _ => return None,
        })
    }

    /// Barman's list of words. `external_configuration` leaves configuration files out.
    fn set_backup_options(&mut self, value: &str) -> Outcome {
        let mut effect = Effect::Obeyed;
        let mut external_configuration = true;
        for option in value.split(',').map(str::trim) {
            match option.to_lowercase().as_str() {
                "concurrent_backup" => {}
                "exclusive_backup" => {
                    effect = Effect::Nothing("backups are always concurrent ones".to_owned());
                }
                "external_configuration" => external_configuration = false,
                _ => {
                    return Err(format!(
                        "has '{option}': allowed are concurrent_backup, exclusive_backup and external_configuration"
                    )
                    .into());
                }
            }
        }
        self.external_configuration = external_configuration;
        Ok(effect)
    }

    fn set_hooks(&mut self, key: &str, value: &str) -> Option<Outcome> {
        Some(match key {
            "hook_timeout" => store(&mut self.hooks.timeout, seconds(value).map(unless_zero)),
            "notify_command" => store_some(&mut self.hooks.notify_command, Ok(value.to_owned())),
            key if HOOKS.contains(&key) => {
                self.hooks.scripts.insert(key.to_owned(), value.to_owned());
                Ok(Effect::Obeyed)
            }
            _ => return None,
        })
    }

    fn set_snapshots(&mut self, key: &str, value: &str) -> Option<Outcome> {
        if let Some(command) = self.snapshots.command_mut(key) {
            return Some(store_some(command, Ok(value.to_owned())));
        }
        Some(match key {
            "snapshot_disks" => store_some(&mut self.snapshots.disks, Ok(value.to_owned())),
            "snapshot_directory" => store_some(&mut self.snapshots.directory, absolute(value)),
            "snapshot_tablespaces" => store(&mut self.snapshots.tablespaces, Snapshots::places(value)),
            "snapshot_timeout" => store(&mut self.snapshots.timeout, seconds(value).map(unless_zero)),
            _ => return None,
        })
    }

    /// Barman's way to say that backups share files. Here they always share what is equal.
    fn set_reuse_backup(&mut self, value: &str) -> Outcome {
        match value.to_lowercase().as_str() {
            "off" => {
                self.incremental = Incremental::Never;
                Ok(Effect::Mapped(
                    "is the same as 'incremental = never' here".to_owned(),
                ))
            }
            "copy" | "link" => Ok(Effect::Nothing("backups always share what is equal".to_owned())),
            _ => Err(format!("is '{value}': allowed are copy, link and off").into()),
        }
    }
}

fn policy<T: std::str::FromStr<Err = InvalidPolicy>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: InvalidPolicy| error.to_string())
}

/// Barman's list. A copy fetches its WAL from the repository in any case. Returns whether a restore may update a copy.
fn recovery_options(value: &str) -> Result<bool, String> {
    let mut is_delta = false;
    for word in value
        .split([',', ' '])
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        match word {
            "delta-restore" => is_delta = true,
            "get-wal" | "external_configuration" => {}
            other => return Err(format!("has '{other}': allowed are get-wal and delta-restore")),
        }
    }
    Ok(is_delta)
}

/// It becomes a word of a command, and ssh must not take it for an option.
fn host_name(value: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]%".contains(c);
    match !value.is_empty() && value.chars().all(is_plain) && !value.starts_with('-') {
        true => Ok(value.to_owned()),
        false => Err(format!(
            "is '{value}': allowed is the name or the address of a host"
        )),
    }
}

fn archiver(value: &str) -> Result<Archiver, String> {
    if value.eq_ignore_ascii_case("auto") {
        return Ok(Archiver::Auto);
    }
    match boolean(value) {
        Ok(true) => Ok(Archiver::On),
        Ok(false) => Ok(Archiver::Off),
        Err(_) => Err(format!("is '{value}': allowed are on, off and auto")),
    }
}

fn primary_kind(value: &str) -> Result<PrimaryKind, String> {
    match value.to_lowercase().as_str() {
        "barmanfs" => Ok(PrimaryKind::Barmanfs),
        "barman" => Ok(PrimaryKind::Barman),
        _ => Err(format!("is '{value}': allowed are barmanfs and barman")),
    }
}

fn create_slot(value: &str) -> Result<CreateSlot, String> {
    match value.to_lowercase().as_str() {
        "manual" => Ok(CreateSlot::Manual),
        "auto" => Ok(CreateSlot::Auto),
        _ => Err(format!("is '{value}': allowed are manual and auto")),
    }
}

fn incremental(value: &str) -> Result<Incremental, String> {
    <Incremental as clap::ValueEnum>::from_str(value, true)
        .map_err(|_| format!("is '{value}': allowed are auto, always and never"))
}

/// How backups are taken. What Barman does with rsync comes over the replication protocol.
fn backup_method(value: &str) -> Result<(BackupMethod, Option<String>), String> {
    match value.to_lowercase().as_str() {
        "postgres" => Ok((BackupMethod::Postgres, None)),
        "files" => Ok((BackupMethod::Files, None)),
        "snapshot" => Ok((BackupMethod::Snapshot, None)),
        "rsync" | "local-rsync" => Ok((
            BackupMethod::Postgres,
            Some(
                "is 'postgres' here: the server needs a replication connection, see 'barmanfs check'"
                    .to_owned(),
            ),
        )),
        "local-to-cloud" => Err(format!(
            "is '{value}', which is not supported: allowed are postgres, files and snapshot"
        )),
        _ => Err(format!("is '{value}': allowed are postgres, files and snapshot")),
    }
}

/// Data in the clear, where somebody asked for encryption, is a breach.
fn encryption(value: &str) -> Outcome {
    match value.eq_ignore_ascii_case("none") {
        true => Ok(Effect::Obeyed),
        false => Err(Wrong {
            message: format!(
                "is '{value}', and barmanfs encrypts no single server: nothing of this one is stored. Encrypt the whole \
                 repository with 'barmanfs key init', and set 'encryption = none'"
            ),
            forbids_storing: true,
        }),
    }
}

/// A directory of Barman's, which may be in cloud storage.
fn directory(value: &str) -> Outcome {
    match value.contains("://") {
        true => Err(
            "is in cloud storage, which is not supported: remove it, and set 'repository'"
                .to_owned()
                .into(),
        ),
        false => Ok(Effect::Nothing(
            "the repository holds everything, see 'repository' in [barmanfs]".to_owned(),
        )),
    }
}
