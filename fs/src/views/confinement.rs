//! What a server may reach that is started from a view: a copy, a clone or a boot test.
//!
//! The invariant: it reads and writes nothing outside its own directory and the mount, and takes nothing away from another
//! server. (Programs, libraries and time zones are PostgreSQL's own, and what somebody asks for in SQL is his affair.) This
//! module alone decides what follows for settings:
//!
//! - Settings that name files from wherever the server is started ([`OWN_FILES`]) are taken out of every file PostgreSQL would
//!   read ([`includes`]), and so is an `include` of what the view has not. No value given later could set them right.
//! - All other settings are given a harmless value in the file that is read last ([`kept_to_itself`], [`overrides`]).
//! - `pg_hba.conf` and `pg_ident.conf` that name files outside are replaced by strict ones ([`access`]).
//!
//! A server that barmanfs starts is told the same on its command line, where nothing can be set otherwise.

mod access;
mod includes;
mod overrides;
mod room;
mod source;

pub(super) use access::leads_out;
pub(super) use includes::{Confined, TAKEN_OUT, Values, confine};
pub use overrides::DEFAULT_SIZES;
pub(super) use overrides::{Override, overrides};
pub(super) use room::{origins_setting, room};
pub(super) use source::{Source, Stored, TreeSource};

/// Files of a server that it must find in its own data directory: the setting, the file's name there (the directory itself
/// where that is empty), and the first version that has the setting.
pub const OWN_FILES: [(&str, &str, u32); 5] = [
    ("data_directory", "", 0),
    ("hba_file", "pg_hba.conf", 0),
    ("ident_file", "pg_ident.conf", 0),
    // An empty name is complained about in the log.
    ("external_pid_file", "postmaster.external.pid", 0),
    ("hosts_file", "pg_hosts.conf", 19),
];

/// A setting with the value that keeps a server to itself.
#[derive(Debug)]
struct Kept {
    name: &'static str,
    value: &'static str,
    /// The versions that have it: the first, and the last.
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

/// Runs when somebody turns `archive_mode` on again.
const ARCHIVES_NOWHERE: &str = "echo \"%p stays in pg_wal: what barmanfs made is a copy, and no copy or clone there \
    archives for the original. Give it an archive_command of its own\" >&2; false";

/// WAL is not archived, neither is an archive read or cleaned; the changes a publisher keeps for the original's subscriptions
/// are not taken from it, nor WAL from the original's primary; the log and the statistics are not written among the
/// original's, and nothing waits for the original's standbys. It listens in its own directory, for the user it runs as:
/// `pg_hba.conf` may trust everybody who could reach the original, and these are others here.
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
    // The original's may be unknown where a copy starts.
    kept("unix_socket_group", ""),
];

/// Settings that keep a server of this major version to itself, and their values.
pub fn kept_to_itself(major: u32) -> impl Iterator<Item = (&'static str, &'static str)> {
    let has = move |kept: &&Kept| (kept.versions.0..=kept.versions.1).contains(&major);
    KEPT.iter().filter(has).map(|kept| (kept.name, kept.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_told_only_what_it_knows() {
        let names = |major| kept_to_itself(major).map(|(name, _)| name).collect::<Vec<_>>();
        assert!(names(13).contains(&"stats_temp_directory") && !names(13).contains(&"archive_library"));
        assert!(names(15).contains(&"promote_trigger_file") && names(15).contains(&"archive_library"));
        assert!(!names(16).contains(&"promote_trigger_file"));
        assert!(names(19).contains(&"synchronized_standby_slots"));
    }
}
