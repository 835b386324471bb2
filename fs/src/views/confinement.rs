//! Confines a server that is started from a view: a copy, a clone or a boot test.
//!
//! The invariant: it reads and writes nothing outside its own directory and the mount, and takes nothing away from
//! another server. (Programs, libraries and time zones are PostgreSQL's own. SQL commands that access files are the
//! user's decision.) This module alone decides what follows for settings:
//!
//! - Settings whose value says where the server keeps files of its own ([`OWN_FILES`]) are removed from every file that
//!   PostgreSQL would read (`includes`), since the right value depends on where the server is started, and no later
//!   value could correct them. So is an `include` of a file that the view does not have.
//! - All other settings get a harmless value in the file that is read last ([`kept_to_itself`], `overrides`).
//! - `pg_hba.conf` and `pg_ident.conf` that name files outside are replaced by strict ones (`access`).
//!
//! A server that barmanfs starts gets the same settings on its command line, where they cannot be overridden.

mod access;
mod includes;
mod overrides;
mod room;
mod source;

pub(super) use access::access_files;
pub(super) use includes::{Confined, TAKEN_OUT, Values, confine};
pub use overrides::DEFAULT_SIZES;
pub(super) use overrides::{Override, overrides};
pub(super) use room::{origins_setting, room};
pub(super) use source::{Source, Stored, TreeSource};

/// Files that a server must find in its own data directory: the setting, the file's name there (empty for the
/// directory itself), and the first version that has the setting.
pub const OWN_FILES: [(&str, &str, u32); 5] = [
    ("data_directory", "", 0),
    ("hba_file", "pg_hba.conf", 0),
    ("ident_file", "pg_ident.conf", 0),
    // PostgreSQL logs a complaint about an empty name.
    ("external_pid_file", "postmaster.external.pid", 0),
    ("hosts_file", "pg_hosts.conf", 19),
];

/// A setting with the value that confines a server.
#[derive(Debug)]
struct Kept {
    name: &'static str,
    value: &'static str,
    /// The first and the last version that have it.
    versions: (u32, u32),
}

const fn kept(name: &'static str, value: &'static str) -> Kept {
    between(name, value, 0, u32::MAX)
}

const fn between(name: &'static str, value: &'static str, first: u32, last: u32) -> Kept {
    Kept {
        name,
        value,
        versions: (first, last),
    }
}

/// Used if `archive_mode` is turned on again.
const ARCHIVES_NOWHERE: &str = "echo \"%p stays in pg_wal: what barmanfs made is a copy, and no copy or clone there \
    archives for the original. Give it an archive_command of its own\" >&2; false";

/// WAL is not archived, and no archive is read or cleaned. The changes that a publisher keeps for the original's
/// subscriptions are not consumed, and no WAL is taken from the original's primary. The log and the statistics are not
/// written into the original's directories, and nothing waits for the original's standbys. The server listens in its
/// own directory, for the user it runs as: `pg_hba.conf` may trust everybody who could reach the original, and other
/// users can reach the copy.
const KEPT: [Kept; 17] = [
    kept("archive_mode", "off"),
    kept("archive_command", ARCHIVES_NOWHERE),
    between("archive_library", "", 15, u32::MAX),
    kept("archive_cleanup_command", ""),
    kept("recovery_end_command", ""),
    kept("primary_conninfo", ""),
    kept("primary_slot_name", ""),
    between("promote_trigger_file", "", 13, 15),
    kept("max_logical_replication_workers", "0"),
    kept("log_directory", "log"),
    between("stats_temp_directory", "pg_stat_tmp", 13, 14),
    kept("synchronous_standby_names", ""),
    between("synchronized_standby_slots", "", 17, u32::MAX),
    kept("listen_addresses", ""),
    kept("unix_socket_directories", "."),
    kept("unix_socket_permissions", "0700"),
    // The original's locale may be unknown on the copy's host.
    kept("unix_socket_group", ""),
];

/// The settings that confine a server of this major version.
pub fn kept_to_itself(major: u32) -> impl Iterator<Item = (&'static str, &'static str)> {
    let has = move |kept: &&Kept| (kept.versions.0..=kept.versions.1).contains(&major);
    KEPT.iter().filter(has).map(|kept| (kept.name, kept.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_gets_only_settings_it_knows() {
        let names = |major| kept_to_itself(major).map(|(name, _)| name).collect::<Vec<_>>();
        assert!(names(13).contains(&"stats_temp_directory") && !names(13).contains(&"archive_library"));
        assert!(names(15).contains(&"promote_trigger_file") && names(15).contains(&"archive_library"));
        assert!(!names(16).contains(&"promote_trigger_file"));
        assert!(names(19).contains(&"synchronized_standby_slots"));
    }
}
