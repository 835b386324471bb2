//! Keys that are right and do nothing, because of what the other keys of their server say. Somebody relies on each of them.

use super::{Archiver, BackupMethod, Incremental, PrimaryKind, ServerConfig};

const OF_RECEIVER: &str = "nothing receives WAL as a stream: that needs 'streaming_archiver = on'";
const OF_PRIMARY: &str =
    "the server is not passive: that needs primary_repository, primary_home or primary_ssh_command";
const OF_BARMAN: &str =
    "the primary is a Barman, which has no record of deletions and no such segments to give";
const OF_PASSIVE: &str = "the server is passive: its backups and its WAL come from another site";

impl ServerConfig {
    /// Why a key that is set for it has no effect. One that says what holds without it is left alone.
    pub(in crate::config) fn idle(&self, key: &str) -> Option<&'static str> {
        if self.is_passive() {
            return self.idle_on_a_passive_node(key);
        }
        let (why, is_idle) = match key {
            "slot_name" | "create_slot" | "streaming_archiver_name" => {
                (OF_RECEIVER, !self.streaming_archiver)
            }
            "primary_checkpoint_timeout" => (
                "nobody is asked for a checkpoint: that needs primary_conninfo",
                self.primary_checkpoint_timeout.is_some() && self.primary_conninfo.is_none(),
            ),
            "incoming_wals_directory" => (
                "with 'archiver = off' nothing is read from it",
                self.archiver == Archiver::Off,
            ),
            "audit_sample" => (
                "no backup is an incremental one",
                self.audit_sample > 0
                    && (self.incremental == Incremental::Never
                        || self.backup_method == BackupMethod::Snapshot),
            ),
            "sync_deletions" => (OF_PRIMARY, self.primary.deletions),
            "sync_partial" => (OF_PRIMARY, self.primary.partial),
            "forward_config_path" => (OF_PRIMARY, self.primary.forward_config_path),
            "primary_kind" | "last_sync_maximum_age" => (OF_PRIMARY, true),
            _ => return None,
        };
        is_idle.then_some(why)
    }

    fn idle_on_a_passive_node(&self, key: &str) -> Option<&'static str> {
        let is_of_barman = self.primary.kind() == PrimaryKind::Barman;
        let (why, is_idle) = match key {
            "sync_deletions" => (OF_BARMAN, self.primary.deletions && is_of_barman),
            "sync_partial" => (OF_BARMAN, self.primary.partial && is_of_barman),
            "forward_config_path" => (
                "no host is asked: that needs primary_ssh_command",
                self.primary.forward_config_path && self.primary.ssh_command.is_none(),
            ),
            "backup_schedule" => (OF_PASSIVE, self.backup_schedule.is_some()),
            "streaming_archiver" => (OF_PASSIVE, self.streaming_archiver),
            "incoming_wals_directory" | "slot_name" => (OF_PASSIVE, true),
            "audit_sample" => (OF_PASSIVE, self.audit_sample > 0),
            _ => return None,
        };
        is_idle.then_some(why)
    }
}
