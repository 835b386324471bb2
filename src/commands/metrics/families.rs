//! All metrics.

use super::sheet::Family;

/// Declares families. A name in capitals is the metric's name without the prefix `barmanfs_`.
macro_rules! families {
    ($($constant:ident $name:literal $labels:tt $help:literal)*) => {
        $(pub(super) const $constant: Family = Family {
            name: concat!("barmanfs_", $name),
            help: $help,
            labels: &$labels,
        };)*

        /// Each of them.
        #[cfg(test)]
        const ALL: &[Family] = &[$($constant,)*];
    };
}

families! {
    BUILD_INFO "build_info" ["version"] "The version of barmanfs; always 1."
    MEASURED_AT "measured_timestamp_seconds" [] "When this was measured."
    UP "up" ["server"] "Whether the server answers on each connection that barmanfs needs."
    CHECK_STATUS "check_status" ["server", "check"] "The result of a check: 0 OK, 1 WARNING, 2 FAILED; without a server, of the repository."

    BACKUPS "backups" ["server", "status"] "The number of backups."
    FIRST_BACKUP_END "first_backup_end_timestamp_seconds" ["server"] "When the oldest complete backup ended."
    LAST_BACKUP_END "last_backup_end_timestamp_seconds" ["server"] "When the newest complete backup ended."
    LAST_BACKUP_DURATION "last_backup_duration_seconds" ["server"] "How long the newest complete backup took."
    LAST_BACKUP_SIZE "last_backup_size_bytes" ["server"] "Size of the files in the newest complete backup."
    LAST_BACKUP_SENT "last_backup_sent_bytes" ["server"] "What the server sent for the newest complete backup."
    LAST_BACKUP_ADDED "last_backup_added_bytes" ["server"] "What the newest complete backup added to the repository."
    DAMAGED_BACKUPS "damaged_backups" ["server"] "Complete backups that need data known to be damaged."
    BOOT_TEST_START "last_boot_test_start_timestamp_seconds" ["server"] "When the newest boot test began."
    BOOT_TEST_DURATION "last_boot_test_duration_seconds" ["server"] "How long the newest boot test took."
    BOOT_TEST_SUCCESS "last_boot_test_success" ["server"] "Whether PostgreSQL started and passed the checks then."

    RECOVERABLE_FROM "recoverable_from_timestamp_seconds" ["server"] "The earliest time that can be recovered."
    RECOVERABLE_TO "recoverable_to_timestamp_seconds" ["server"] "The last commit that can be recovered."
    RPO_KNOWN "rpo_known" ["server"] "Whether it is known what would be lost with the server."
    RPO_SECONDS "rpo_seconds" ["server"] "Age of the oldest commit that would be lost with the server; 0 if there is none, +Inf if nothing can be recovered."
    RPO_BYTES "rpo_bytes" ["server"] "WAL that would be lost with the server; 0 if no commit is in it."
    WAL_SINCE_BACKUP "wal_since_backup_bytes" ["server"] "What WAL has added to the repository since the newest backup."
    LAST_WAL "last_wal_timestamp_seconds" ["server"] "When WAL last arrived."
    LAST_SYNC "last_sync_timestamp_seconds" ["server"] "All WAL that the primary of a passive server had archived then is here."
    GAPS "wal_gaps" ["server"] "Gaps in the WAL that make something unrecoverable."
    OPEN_FORKS "undecided_forks" ["server"] "Timelines with two histories of which none was chosen."
    QUARANTINED "quarantined_wal_files" ["server"] "WAL files in quarantine."
    SPOOLED "spooled_wal_segments" ["server"] "Received segments that are not archived, the current one among them."
    RECEIVER_RUNNING "receive_wal_running" ["server"] "Whether receive-wal runs."
    RECEIVER_LAG "receive_wal_lag_bytes" ["server"] "What the server has flushed and receive-wal has not reported as durable."
    RECEIVER_SILENCE "receive_wal_last_report_seconds" ["server"] "Seconds since receive-wal's last report to the server."
    WAITING_FILES "archive_command_waiting_files" ["server"] "Files that wait for the server's archive_command."
    CLONES "clones" ["server"] "The number of clones."
    OLDEST_CLONE "oldest_clone_timestamp_seconds" ["server"] "When the oldest clone was made."

    CRON_RUN "cron_last_run_timestamp_seconds" ["server"] "When cron last looked at the server; without a server, when it last ended."
    TASK_START "cron_task_start_timestamp_seconds" ["server", "task"] "When cron last started the task."
    TASK_DURATION "cron_task_duration_seconds" ["server", "task"] "How long the task took, if it has ended."
    TASK_FAILURES "cron_task_failures" ["server", "task"] "How often the task has failed since it last succeeded."

    REPOSITORY_UP "repository_up" [] "Whether the repository can be read."
    PACKS "repository_packs" [] "The number of packs."
    PACK_BYTES "repository_pack_bytes" [] "Size of all packs."
    CATALOG_BYTES "repository_catalog_bytes" [] "Size of the catalog."
    FREE_BYTES "repository_free_bytes" [] "Free space of the file system."
    GROWTH "repository_growth_bytes_per_second" [] "What backups and WAL have added in the last week."
    LOGICAL_BYTES "repository_logical_bytes" ["what"] "What the files of all backups, and of all WAL, would take as copies."
    DEDUP_RATIO "repository_dedup_ratio" [] "The logical bytes for each byte in a pack."
    MOUNTS "mounts" [] "Mounts of this repository that answer."
    MOUNT_REQUESTS "mount_requests_total" ["mount", "request"] "Requests of the kernel that a mount has answered."
    MOUNT_SECONDS "mount_request_seconds_total" ["mount", "request"] "How long these requests took altogether."
    MOUNT_ERRORS "mount_request_errors_total" ["mount", "errno"] "Answers that were an error, by its number."
    MOUNT_READ_BYTES "mount_read_bytes_total" ["mount"] "What a mount has sent to readers."
    MOUNT_PACK_BYTES "mount_pack_read_bytes_total" ["mount"] "What a mount has read from packs."
    MOUNT_PACK_FAILURES "mount_pack_read_failures_total" ["mount"] "Reads of packs that failed."
    MOUNT_CHUNKS "mount_chunks_decoded_total" ["mount"] "Chunks that a mount has decoded."
    MOUNT_CHUNK_BYTES "mount_chunk_decoded_bytes_total" ["mount"] "What these chunks have."
    MOUNT_HITS "mount_cache_hits_total" ["mount"] "Chunks that a mount had in its cache."
    MOUNT_MISSES "mount_cache_misses_total" ["mount"] "Chunks that a mount had to decode."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_and_are_documented() {
        let documented = include_str!("../../../docs/operation.md");
        for Family { name, help, .. } in ALL {
            let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
            // What only grows while a mount lives is a counter, all else may become less.
            let is_counter = name.starts_with("barmanfs_mount_");
            assert!(
                name.chars().all(is_name) && name.ends_with("_total") == is_counter,
                "{name}"
            );
            assert!(help.ends_with('.'), "{name}: {help}");
            assert!(
                documented.contains(&format!("`{name}`")),
                "{name} is not in operation.md"
            );
        }
    }
}
