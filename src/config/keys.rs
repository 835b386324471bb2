//! All keys of a Barman configuration, and their effect here.
//!
//! A configuration that comes from Barman must neither be refused nor silently be obeyed in part: each key
//! without effect causes a warning with the reason.

/// Where a key has its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Only in `[barmanfs]`.
    Global,
    /// Only in a server's section.
    Server,
    /// In a server's section, or in `[barmanfs]` as the default of every server.
    ServerOrGlobal,
    /// A key of Barman that has no effect here; the text says why.
    NoEffect(&'static str),
    /// In neither Barman nor barmanfs.
    Unknown,
}

/// The keys of a server that have an effect here.
#[cfg(test)]
pub(super) fn of_servers() -> impl Iterator<Item = &'static str> {
    SERVER.iter().chain(SERVER_OR_GLOBAL).chain(HOOKS).copied()
}

/// Barman's keys of a server that have an effect here only by what is wrong with them, or on another key.
pub(super) const WITHOUT_VALUE: [&str; 3] = ["reuse_backup", "basebackups_directory", "wals_directory"];

/// Barman's keys of a server that have no value here.
pub(crate) fn of_barman_alone() -> impl Iterator<Item = &'static str> {
    const OF_THE_WHOLE: &[&str] = &[
        "barman_home",
        "barman_lock_directory",
        "lock_directory_cleanup",
        "log_format",
        "config_changes_queue",
        "model",
        "disabled",
    ];
    let keys = NO_EFFECT.iter().flat_map(|(_, keys)| keys.iter().copied());
    keys.filter(|key| !OF_THE_WHOLE.contains(key))
        .chain(WITHOUT_VALUE)
}

const GLOBAL: &[&str] = &[
    "repository",
    "cache",
    "cache_max_bytes",
    "log_level",
    "log_file",
    "barman_user",
    "recovery_target_action",
    "verify_budget",
    "key_file",
    "key_command",
    "passphrase_file",
    "configuration_files_directory",
    "bucket_endpoint",
    "bucket_region",
    "bucket_path_style",
    "bucket_ca_file",
    "bucket_proxy",
    "bucket_sse",
    "bucket_sse_kms_key",
    "bucket_storage_class",
    "bucket_profile",
    "bucket_timeout",
];
const SERVER: &[&str] = &[
    "description",
    "conninfo",
    "streaming_conninfo",
    "primary_conninfo",
    "wal_conninfo",
    "wal_streaming_conninfo",
    "primary_checkpoint_timeout",
    "active",
    "cluster",
    "incoming_wals_directory",
    "primary_repository",
    "primary_home",
    "primary_kind",
    "basebackups_directory",
    "wals_directory",
];
const SERVER_OR_GLOBAL: &[&str] = &[
    "archiver",
    // Before `incremental`, which counts if both are set.
    "reuse_backup",
    "incremental",
    "streaming_archiver",
    "streaming_archiver_name",
    "slot_name",
    "create_slot",
    "backup_method",
    "backup_options",
    "immediate_checkpoint",
    "bandwidth_limit",
    "streaming_backup_name",
    "primary_ssh_command",
    "forward_config_path",
    "sync_deletions",
    "sync_partial",
    "last_sync_maximum_age",
    "encryption",
    "clone_max_size",
    "clone_max_count",
    "path_prefix",
    "minimum_redundancy",
    "retention_policy",
    "retention_policy_mode",
    "wal_retention_policy",
    "failed_backup_retention",
    "last_backup_maximum_age",
    "last_backup_minimum_size",
    "last_wal_maximum_age",
    "last_boot_test_maximum_age",
    "clone_maximum_age",
    "max_incoming_wals_queue",
    "check_timeout",
    "backup_schedule",
    "boot_test_schedule",
    "audit_sample",
    "recovery_options",
    "parallel_jobs",
    "recovery_host",
    "hook_timeout",
    "notify_command",
    "snapshot_command",
    "snapshot_delete_command",
    "snapshot_list_command",
    "snapshot_mount_command",
    "snapshot_umount_command",
    "snapshot_disks",
    "snapshot_directory",
    "snapshot_tablespaces",
    "snapshot_timeout",
];

/// Barman's other keys, by the reason why they have no effect.
const NO_EFFECT: &[(&str, &[&str])] = &[
    (
        "the repository holds everything, see 'repository' in [barmanfs]",
        &[
            "barman_home",
            "barman_lock_directory",
            "lock_directory_cleanup",
            "backup_directory",
            "streaming_wals_directory",
            "errors_directory",
            "xlogdb_directory",
        ],
    ),
    ("every line of the log has the same form", &["log_format"]),
    (
        "'barmanfs config-update' makes its changes at once",
        &["config_changes_queue"],
    ),
    ("this is a server's section", &["model"]),
    (
        "it is computed: a server is disabled by errors in its configuration",
        &["disabled"],
    ),
    (
        "barmanfs always copies over the replication protocol, on one connection, and stores only changes",
        &[
            "ssh_command",
            "parallel_jobs_start_batch_size",
            "parallel_jobs_start_batch_period",
            "network_compression",
            "autogenerate_manifest",
            "tablespace_bandwidth_limit",
            "basebackup_retry_times",
            "basebackup_retry_sleep",
            "archiver_batch_size",
            "streaming_archiver_batch_size",
        ],
    ),
    (
        "set keepalives, keepalives_idle and tcp_user_timeout in the connection string",
        &["keepalive_interval"],
    ),
    (
        "barmanfs always compresses, and the file system shows everything decompressed",
        &[
            "compression",
            "backup_compression",
            "backup_compression_format",
            "backup_compression_level",
            "backup_compression_location",
            "backup_compression_workers",
            "custom_compression_filter",
            "custom_decompression_filter",
            "custom_compression_magic",
        ],
    ),
    (
        "barmanfs chooses a level by what it compresses",
        &["compression_level"],
    ),
    (
        "WAL is only removed where a retention policy says so, and never before the first backup; a sweep removes what nothing \
         needs, so the repository cannot be on immutable storage",
        &["worm_mode"],
    ),
    ("nothing is staged: every backup is a full one", STAGING),
    (
        "the whole repository is encrypted, or nothing: see 'barmanfs key --help'",
        &["encryption_key_id", "encryption_passphrase_command"],
    ),
    ("WarehousePG is not supported", &["warehousepg_dbid"]),
    ("cloud storage is not supported", CLOUD),
    (
        "'snapshot_command' and the commands beside it are run as they are: name the provider, the instance and the zone in them",
        SNAPSHOTS_OF_CLOUDS,
    ),
];

/// Keys whose value may be a secret, or have one in it, in other ways than a connection string has.
const SECRET: &[&str] = &[
    "encryption_passphrase_command",
    "azure_credential",
    "notify_command",
    "bucket_proxy",
    "key_command",
];

/// Connection strings.
const CONNECTION_STRINGS: &[&str] = &[
    "conninfo",
    "streaming_conninfo",
    "primary_conninfo",
    "wal_conninfo",
    "wal_streaming_conninfo",
];

/// Where a wrong value in one of Barman's files disables the server, because Barman's default would be less safe than what
/// somebody meant. Wrong values of other keys are ignored there, as Barman does.
const SAFETY: &[&str] = &[
    "active",
    "slot_name",
    "backup_method",
    "primary_ssh_command",
    "primary_repository",
    "primary_home",
    "primary_kind",
    "sync_deletions",
    "encryption",
    "basebackups_directory",
    "wals_directory",
    "minimum_redundancy",
    "retention_policy",
    "wal_retention_policy",
    "failed_backup_retention",
];

const STAGING: &[&str] = &[
    "staging_path",
    "staging_location",
    "combine_mode",
    "local_staging_path",
    "recovery_staging_path",
];

/// Scripts before and after an operation, of a server or of all.
pub(crate) const HOOKS: &[&str] = &[
    "pre_backup_script",
    "pre_backup_retry_script",
    "post_backup_script",
    "post_backup_retry_script",
    "pre_archive_script",
    "pre_archive_retry_script",
    "post_archive_script",
    "post_archive_retry_script",
    "pre_delete_script",
    "pre_delete_retry_script",
    "post_delete_script",
    "post_delete_retry_script",
    "pre_wal_delete_script",
    "pre_wal_delete_retry_script",
    "post_wal_delete_script",
    "post_wal_delete_retry_script",
    "pre_recovery_script",
    "pre_recovery_retry_script",
    "post_recovery_script",
    "post_recovery_retry_script",
];

const CLOUD: &[&str] = &[
    "cloud_staging_directory",
    "cloud_staging_max_size",
    "cloud_upload_max_archive_size",
    "cloud_upload_min_chunk_size",
    "cloud_delete_batch_size",
    "cloud_wal_archive_parallel",
    "cloud_wal_restore_parallel",
    "aws_region",
    "aws_profile",
    "aws_encryption",
    "aws_sse_kms_key_id",
    "aws_read_timeout",
    "aws_check_object_lock",
    "aws_await_snapshots_timeout",
    "aws_snapshot_lock_mode",
    "aws_snapshot_lock_duration",
    "aws_snapshot_lock_cool_off_period",
    "aws_snapshot_lock_expiration_date",
    "azure_credential",
    "azure_resource_group",
    "azure_subscription_id",
    "gcp_project",
    "gcp_zone",
];

const SNAPSHOTS_OF_CLOUDS: &[&str] = &[
    "snapshot_provider",
    "snapshot_instance",
    "snapshot_zone",
    "snapshot_gcp_project",
];

/// Commands of the storage. They may have a token in them.
pub(crate) const SNAPSHOT_COMMANDS: &[&str] = &[
    "snapshot_command",
    "snapshot_delete_command",
    "snapshot_list_command",
    "snapshot_mount_command",
    "snapshot_umount_command",
];

/// Whether the key is of the global section alone.
pub(super) fn is_global(key: &str) -> bool {
    GLOBAL.contains(&key)
}

/// Whether a wrong value disables the server also in one of Barman's files.
pub(super) fn is_about_safety(key: &str) -> bool {
    SAFETY.contains(&key) || CONNECTION_STRINGS.contains(&key)
}

/// Whether nothing of a server is stored while the key is wrong.
pub(super) fn forbids_storing(key: &str) -> bool {
    key == "encryption"
}

/// Whether a model may not set it, as in Barman: directories and hooks belong to the server.
pub(super) fn is_kept_by_models(key: &str) -> bool {
    HOOKS.contains(&key)
        || SNAPSHOT_COMMANDS.contains(&key)
        || key.ends_with("_directory") && !key.starts_with("cloud")
}

/// The rank in which the keys of a server are set, whatever the order of their lines.
pub(super) fn rank(key: &str) -> usize {
    let ranked = SERVER.iter().chain(SERVER_OR_GLOBAL).chain(HOOKS);
    ranked.take_while(|known| **known != key).count()
}

/// Whether, and how, a value can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrecy {
    /// As it is.
    Plain,
    /// Without its password.
    ConnectionString,
    /// Not at all. That holds for unknown keys, too: one may be a misspelt `conninfo`.
    Hidden,
}

/// See [`Secrecy`].
pub(super) fn secrecy(key: &str) -> Secrecy {
    match known(key) {
        _ if CONNECTION_STRINGS.contains(&key) => Secrecy::ConnectionString,
        Known::Unknown => Secrecy::Hidden,
        // A command line may have a token in it.
        _ if SECRET.contains(&key) || HOOKS.contains(&key) || SNAPSHOT_COMMANDS.contains(&key) => {
            Secrecy::Hidden
        }
        _ => Secrecy::Plain,
    }
}

/// Looks up `key` (in lower case).
pub(super) fn known(key: &str) -> Known {
    if GLOBAL.contains(&key) {
        return Known::Global;
    }
    if SERVER.contains(&key) {
        return Known::Server;
    }
    if SERVER_OR_GLOBAL.contains(&key) || HOOKS.contains(&key) {
        return Known::ServerOrGlobal;
    }
    NO_EFFECT
        .iter()
        .find(|(_, keys)| keys.contains(&key))
        .map_or(Known::Unknown, |(reason, _)| Known::NoEffect(reason))
}

/// The key of barmanfs that a misspelt one most likely means.
pub(super) fn nearest(key: &str) -> Option<&'static str> {
    // Two swapped letters, or one letter too many and one missing.
    const FARTHEST: usize = 2;
    [GLOBAL, SERVER, SERVER_OR_GLOBAL, HOOKS]
        .into_iter()
        .flatten()
        .map(|candidate| (strsim::damerau_levenshtein(key, candidate), *candidate))
        .filter(|(distance, _)| *distance <= FARTHEST)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_key_is_in_two_lists() {
        let lists = [GLOBAL, SERVER, SERVER_OR_GLOBAL];
        let all: Vec<&str> = lists
            .into_iter()
            .flatten()
            .chain(NO_EFFECT.iter().flat_map(|(_, keys)| *keys))
            .copied()
            .collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert!(all.iter().all(|key| *key == key.to_lowercase()));
    }

    #[test]
    fn finds_the_key_that_was_meant() {
        assert_eq!(nearest("coninfo"), Some("conninfo"));
        assert_eq!(nearest("repositroy"), Some("repository"));
        assert_eq!(nearest("zebra"), None);
    }

    #[test]
    fn all_keys_about_safety_have_an_effect() {
        for key in SAFETY {
            assert!(
                matches!(known(key), Known::Server | Known::ServerOrGlobal),
                "{key}"
            );
        }
        assert!(rank("reuse_backup") < rank("incremental"));
        assert_eq!(secrecy("coninfo"), Secrecy::Hidden);
    }
}
