//! The values that count for a server, defaults included, under the names of their keys.

use std::time::Duration;

use super::{Archiver, CreateSlot, Incremental, ServerConfig};
use crate::config::Secret;
use crate::config::keys::HOOKS;
use crate::config::setting::shown;

/// A key and its value; `None` if it has none.
pub(crate) type Effective = (&'static str, Option<String>);

impl ServerConfig {
    /// Every key that can have an effect, with the value that counts. No value is a secret.
    pub(crate) fn effective(&self) -> Vec<Effective> {
        let mut values = self.effective_identity();
        values.extend(self.effective_transfer());
        values.extend(self.effective_upkeep());
        values.extend(self.effective_hooks());
        values
    }

    fn effective_identity(&self) -> Vec<Effective> {
        let of_wal = |conninfo| connection(conninfo).filter(|_| self.has_wal_host());
        vec![
            ("description", self.description.clone()),
            ("active", switch(self.active)),
            ("cluster", text(self.cluster())),
            ("conninfo", connection(self.conninfo.as_ref())),
            ("streaming_conninfo", connection(self.replication_conninfo())),
            ("primary_conninfo", connection(self.primary_conninfo.as_ref())),
            ("wal_conninfo", of_wal(self.wal_sql_conninfo())),
            ("wal_streaming_conninfo", of_wal(self.wal_replication_conninfo())),
            (
                "incoming_wals_directory",
                self.incoming_wals_directory
                    .as_ref()
                    .map(|path| path.display().to_string()),
            ),
            (
                "path_prefix",
                self.path_prefix.as_ref().map(|path| path.display().to_string()),
            ),
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
            ("streaming_archiver_name", text(&self.streaming_archiver_name)),
            ("slot_name", self.slot_name.clone()),
            ("create_slot", text(create_slot)),
            ("backup_method", text("postgres")),
            ("backup_options", text(backup_options)),
            ("incremental", text(incremental)),
            ("immediate_checkpoint", switch(self.immediate_checkpoint)),
            ("bandwidth_limit", number(self.bandwidth_limit_kb)),
            ("streaming_backup_name", self.streaming_backup_name.clone()),
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
        ]
    }

    /// Command lines may have secrets in them.
    fn effective_hooks(&self) -> Vec<Effective> {
        let hooks = &self.hooks;
        let command = |key: &'static str, value: Option<&String>| (key, value.map(|value| shown(key, value)));
        let scripts = HOOKS.iter().map(|key| command(key, hooks.scripts.get(*key)));
        let mut values: Vec<Effective> = scripts.collect();
        values.push(("hook_timeout", hooks.timeout.map(seconds)));
        values.push(command("notify_command", hooks.notify_command.as_ref()));
        values
    }

    fn effective_upkeep(&self) -> Vec<Effective> {
        let limits = &self.limits;
        vec![
            ("minimum_redundancy", number(Some(self.minimum_redundancy))),
            ("retention_policy_mode", text("auto")),
            ("retention_policy", number(self.retention_policy)),
            ("wal_retention_policy", number(Some(self.wal_retention_policy))),
            (
                "failed_backup_retention",
                number(Some(&self.failed_backup_retention)),
            ),
            ("last_backup_maximum_age", number(limits.backup_age.as_ref())),
            ("last_backup_minimum_size", number(limits.backup_size)),
            ("last_wal_maximum_age", number(limits.wal_age.as_ref())),
            (
                "last_boot_test_maximum_age",
                number(limits.boot_test_age.as_ref()),
            ),
            ("clone_maximum_age", number(limits.clone_age.as_ref())),
            ("max_incoming_wals_queue", number(self.max_incoming_wals_queue)),
            (
                "check_timeout",
                Some(seconds(self.check_timeout.unwrap_or_default())),
            ),
            ("backup_schedule", number(self.backup_schedule.as_ref())),
            ("boot_test_schedule", number(self.boot_test_schedule.as_ref())),
            ("audit_sample", number(Some(self.audit_sample))),
            ("clone_max_size", number(self.clone_limits.max_bytes)),
            ("clone_max_count", number(Some(self.clone_limits.max_count))),
        ]
    }
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

fn number(value: Option<impl ToString>) -> Option<String> {
    value.map(|value| value.to_string())
}

fn switch(value: bool) -> Option<String> {
    text(if value { "on" } else { "off" })
}

fn seconds(value: Duration) -> String {
    value.as_secs().to_string()
}

fn connection(value: Option<&Secret>) -> Option<String> {
    value.map(|value| shown("conninfo", value.expose()))
}
