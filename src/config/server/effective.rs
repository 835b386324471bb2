//! The values that count for a server, defaults included, under the names of their keys.

use std::fmt;

use super::{Archiver, CreateSlot, Incremental, ServerConfig};
use crate::config::Secret;
use crate::config::keys::HOOKS;
use crate::config::setting::shown;

/// A value that counts. `Display` is the form of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// A text.
    Text(String),
    /// `on` or `off`.
    Switch(bool),
    /// A number.
    Number(u64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Switch(true) => f.write_str("on"),
            Self::Switch(false) => f.write_str("off"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// A key and its value; `None` if it has none.
pub(crate) type Effective = (&'static str, Option<Value>);

impl ServerConfig {
    /// Every key that can have an effect, with the value that counts. No value is a secret, or has one in it.
    pub(crate) fn effective(&self) -> Vec<Effective> {
        let mut values = self.effective_identity();
        values.extend(self.effective_primary());
        values.extend(self.effective_transfer());
        values.extend(self.effective_upkeep());
        values.extend(self.effective_hooks());
        values.extend(self.effective_snapshots());
        for value in values.iter_mut().filter_map(|(_, value)| value.as_mut()) {
            if let Value::Text(text) = value {
                *text = self.secrets.hide(std::mem::take(text));
            }
        }
        values
    }

    fn effective_identity(&self) -> Vec<Effective> {
        let connection = |value: Option<&Secret>| text(shown("conninfo", value?.expose(), &self.secrets));
        let of_wal = |conninfo| connection(conninfo).filter(|_| self.has_wal_host());
        vec![
            ("description", self.description.clone().map(Value::Text)),
            ("active", switch(self.active)),
            ("cluster", text(self.cluster())),
            ("conninfo", connection(self.conninfo.as_ref())),
            ("streaming_conninfo", connection(self.replication_conninfo())),
            ("primary_conninfo", connection(self.primary_conninfo.as_ref())),
            (
                "primary_checkpoint_timeout",
                number(Some(
                    self.primary_checkpoint_timeout.unwrap_or_default().as_secs(),
                )),
            ),
            ("wal_conninfo", of_wal(self.wal_sql_conninfo())),
            ("wal_streaming_conninfo", of_wal(self.wal_replication_conninfo())),
            (
                "incoming_wals_directory",
                shown_text(self.incoming_wals_directory.as_ref().map(|path| path.display())),
            ),
            (
                "path_prefix",
                shown_text(self.path_prefix.as_ref().map(|path| path.display())),
            ),
        ]
    }

    fn effective_primary(&self) -> Vec<Effective> {
        let primary = &self.primary;
        let path = |path: Option<&std::path::PathBuf>| shown_text(path.map(|path| path.display()));
        vec![
            ("primary_ssh_command", shown_text(primary.ssh_command.as_ref())),
            ("primary_repository", path(primary.repository.as_ref())),
            ("primary_home", path(primary.home.as_ref())),
            (
                "primary_kind",
                shown_text(primary.is_set().then(|| primary.kind().as_str())),
            ),
            ("forward_config_path", switch(primary.forward_config_path)),
            ("sync_deletions", switch(primary.deletions)),
            ("sync_partial", switch(primary.partial)),
        ]
    }

    fn effective_transfer(&self) -> Vec<Effective> {
        let archiver = match self.archiver {
            Archiver::Auto => "auto",
            Archiver::On => "on",
            Archiver::Off => "off",
        };
        let incremental = match self.incremental {
            Incremental::Auto => "auto",
            Incremental::Always => "always",
            Incremental::Never => "never",
        };
        let create_slot = match self.create_slot {
            CreateSlot::Manual => "manual",
            CreateSlot::Auto => "auto",
        };
        let backup_options = match self.external_configuration {
            true => "concurrent_backup",
            false => "concurrent_backup, external_configuration",
        };
        vec![
            ("archiver", text(archiver)),
            ("streaming_archiver", switch(self.streaming_archiver)),
            (
                "streaming_archiver_name",
                text(self.streaming_archiver_name.as_str()),
            ),
            ("slot_name", shown_text(self.slot_name.as_ref())),
            ("create_slot", text(create_slot)),
            ("backup_method", text(self.backup_method.as_str())),
            ("backup_options", text(backup_options)),
            ("incremental", text(incremental)),
            ("immediate_checkpoint", switch(self.immediate_checkpoint)),
            ("bandwidth_limit", number(self.bandwidth_limit_kb)),
            (
                "streaming_backup_name",
                shown_text(self.streaming_backup_name.as_ref()),
            ),
            ("encryption", text("none")),
            (
                "recovery_options",
                text(if self.delta_restore {
                    "get-wal,delta-restore"
                } else {
                    "get-wal"
                }),
            ),
            ("parallel_jobs", number(self.parallel_jobs)),
            ("recovery_host", shown_text(self.recovery_host.as_ref())),
        ]
    }

    /// Command lines may have secrets in them.
    fn effective_hooks(&self) -> Vec<Effective> {
        let hooks = &self.hooks;
        let command = |key: &'static str, value: Option<&String>| {
            let value = value.map(|value| Value::Text(shown(key, value, &self.secrets)));
            (key, value)
        };
        let scripts = HOOKS.iter().map(|key| command(key, hooks.scripts.get(*key)));
        let mut values: Vec<Effective> = scripts.collect();
        values.push((
            "hook_timeout",
            number(hooks.timeout.map(|timeout| timeout.as_secs())),
        ));
        values.push(command("notify_command", hooks.notify_command.as_ref()));
        values
    }

    /// These, too.
    fn effective_snapshots(&self) -> Vec<Effective> {
        let of = &self.snapshots;
        let commands = [
            ("snapshot_command", &of.take),
            ("snapshot_delete_command", &of.delete),
            ("snapshot_list_command", &of.list),
            ("snapshot_mount_command", &of.mount),
            ("snapshot_umount_command", &of.umount),
        ];
        let hidden = |(key, value): (&'static str, &Option<String>)| {
            let value = value.as_ref();
            (
                key,
                value.map(|value| Value::Text(shown(key, value, &self.secrets))),
            )
        };
        let mut values: Vec<Effective> = commands.into_iter().map(hidden).collect();
        values.extend([
            ("snapshot_disks", shown_text(of.disks.as_ref())),
            (
                "snapshot_directory",
                shown_text(of.directory.as_ref().map(|path| path.display())),
            ),
            ("snapshot_tablespaces", {
                let places: Vec<String> = of
                    .tablespaces
                    .iter()
                    .map(|place| format!("{}:{}", place.which, place.place.display()))
                    .collect();
                text(places.join(", ")).filter(|_| !places.is_empty())
            }),
            (
                "snapshot_timeout",
                number(Some(of.timeout.unwrap_or_default().as_secs())),
            ),
        ]);
        values
    }

    fn effective_upkeep(&self) -> Vec<Effective> {
        let limits = &self.limits;
        vec![
            ("minimum_redundancy", number(Some(self.minimum_redundancy))),
            ("retention_policy_mode", text("auto")),
            ("retention_policy", shown_text(self.retention_policy)),
            (
                "wal_retention_policy",
                shown_text(Some(self.wal_retention_policy)),
            ),
            (
                "failed_backup_retention",
                shown_text(Some(&self.failed_backup_retention)),
            ),
            ("last_backup_maximum_age", shown_text(limits.backup_age.as_ref())),
            ("last_backup_minimum_size", number(limits.backup_size)),
            ("last_wal_maximum_age", shown_text(limits.wal_age.as_ref())),
            ("last_sync_maximum_age", shown_text(limits.sync_age.as_ref())),
            (
                "last_boot_test_maximum_age",
                shown_text(limits.boot_test_age.as_ref()),
            ),
            ("clone_maximum_age", shown_text(limits.clone_age.as_ref())),
            (
                "max_incoming_wals_queue",
                number(
                    self.max_incoming_wals_queue
                        .and_then(|count| u64::try_from(count).ok()),
                ),
            ),
            (
                "check_timeout",
                number(Some(self.check_timeout.unwrap_or_default().as_secs())),
            ),
            ("backup_schedule", shown_text(self.backup_schedule.as_ref())),
            ("boot_test_schedule", shown_text(self.boot_test_schedule.as_ref())),
            ("audit_sample", number(Some(self.audit_sample))),
            ("clone_max_size", number(self.clone_limits.max_bytes)),
            ("clone_max_count", number(Some(self.clone_limits.max_count))),
        ]
    }
}

fn text(value: impl Into<String>) -> Option<Value> {
    Some(Value::Text(value.into()))
}

fn shown_text(value: Option<impl ToString>) -> Option<Value> {
    value.map(|value| Value::Text(value.to_string()))
}

fn number(value: Option<impl TryInto<u64>>) -> Option<Value> {
    value?.try_into().ok().map(Value::Number)
}

fn switch(value: bool) -> Option<Value> {
    Some(Value::Switch(value))
}
