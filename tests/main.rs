//! The program against real servers: one file for each topic, each test once for each PostgreSQL that is found.
//! `scripts/test.sh` finds the servers and runs this; `cargo test --test program -- NAME` runs some of the tests.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod absence;
mod backup_and_recover;
mod bad_backups;
mod barman;
mod boot;
mod bucket;
mod by_files;
mod byte_for_byte;
mod catchup;
mod checks;
mod cli;
mod clone_commands;
mod clone_commit;
mod clone_servers;
mod common;
mod configuration;
mod copy;
mod crash;
mod cron;
mod damage;
mod debian;
mod delete_and_sweep;
mod documented;
mod encryption;
mod export;
mod full_disk;
mod gaps;
mod green;
mod handover;
mod history;
mod hooks;
mod hostile;
mod hosts;
mod import;
mod import_barman;
mod import_pgbackrest;
mod import_walg;
mod incremental;
mod json_shape;
mod lineage;
mod looking;
mod many_lookups;
mod messages;
mod metrics;
mod mount_in_use;
mod mount_lifecycle;
mod nobody_gets_in;
mod odd_files;
mod over_ssh;
mod passive;
mod patroni;
mod pitr;
mod quarantine;
mod readme;
mod rebuild;
mod receive_wal;
mod remote_restore;
mod repository_files;
mod restore;
mod restore_layout;
mod restore_options;
mod retention;
mod second_backup;
mod settings;
mod silent_server;
mod slots;
mod snapshot;
mod snapshot_in_storage;
mod standby;
mod status;
mod tablespaces;
mod ten_thousand;
mod terminals;
mod torture;
mod troubled_disk;
mod upgrade;
mod wal_archive;
mod wal_level;
mod wal_recovery;
mod walg;
mod watching;
mod year;

use common::{Install, Test};
use libtest_mimic::Arguments;
use std::num::NonZero;
use std::process::ExitCode;

/// In the order in which they run. A test that takes minutes is not among the last: the other cores would wait for it.
const TOPICS: &[(&str, &[Test])] = &[
    ("cli", cli::TESTS),
    ("backup_and_recover", backup_and_recover::TESTS),
    ("wal_archive", wal_archive::TESTS),
    ("wal_recovery", wal_recovery::TESTS),
    ("over_ssh", over_ssh::TESTS),
    ("wal_level", wal_level::TESTS),
    ("pitr", pitr::TESTS),
    ("patroni", patroni::TESTS),
    ("passive", passive::TESTS),
    ("restore", restore::TESTS),
    ("restore_options", restore_options::TESTS),
    ("restore_layout", restore_layout::TESTS),
    ("catchup", catchup::TESTS),
    ("export", export::TESTS),
    ("walg", walg::TESTS),
    ("remote_restore", remote_restore::TESTS),
    ("receive_wal", receive_wal::TESTS),
    ("by_files", by_files::TESTS),
    ("byte_for_byte", byte_for_byte::TESTS),
    ("second_backup", second_backup::TESTS),
    ("incremental", incremental::TESTS),
    ("snapshot", snapshot::TESTS),
    ("snapshot_in_storage", snapshot_in_storage::TESTS),
    ("import", import::TESTS),
    ("import_pgbackrest", import_pgbackrest::TESTS),
    ("import_walg", import_walg::TESTS),
    ("import_barman", import_barman::TESTS),
    ("handover", handover::TESTS),
    ("cron", cron::TESTS),
    ("year", year::TESTS),
    ("ten_thousand", ten_thousand::TESTS),
    ("hooks", hooks::TESTS),
    ("troubled_disk", troubled_disk::TESTS),
    ("json_shape", json_shape::TESTS),
    ("clone_servers", clone_servers::TESTS),
    ("messages", messages::TESTS),
    ("clone_commands", clone_commands::TESTS),
    ("boot", boot::TESTS),
    ("bucket", bucket::TESTS),
    ("nobody_gets_in", nobody_gets_in::TESTS),
    ("odd_files", odd_files::TESTS),
    ("settings", settings::TESTS),
    ("tablespaces", tablespaces::TESTS),
    ("slots", slots::TESTS),
    ("standby", standby::TESTS),
    ("status", status::TESTS),
    ("looking", looking::TESTS),
    ("silent_server", silent_server::TESTS),
    ("watching", watching::TESTS),
    ("torture", torture::TESTS),
    ("clone_commit", clone_commit::TESTS),
    ("delete_and_sweep", delete_and_sweep::TESTS),
    ("retention", retention::TESTS),
    ("gaps", gaps::TESTS),
    ("green", green::TESTS),
    ("checks", checks::TESTS),
    ("metrics", metrics::TESTS),
    ("quarantine", quarantine::TESTS),
    ("readme", readme::TESTS),
    ("documented", documented::TESTS),
    ("encryption", encryption::TESTS),
    ("lineage", lineage::TESTS),
    ("history", history::TESTS),
    ("upgrade", upgrade::TESTS),
    ("rebuild", rebuild::TESTS),
    ("repository_files", repository_files::TESTS),
    ("mount_lifecycle", mount_lifecycle::TESTS),
    ("mount_in_use", mount_in_use::TESTS),
    ("many_lookups", many_lookups::TESTS),
    ("terminals", terminals::TESTS),
    ("damage", damage::TESTS),
    ("debian", debian::TESTS),
    ("bad_backups", bad_backups::TESTS),
    ("barman", barman::TESTS),
    ("absence", absence::TESTS),
    ("hostile", hostile::TESTS),
    ("configuration", configuration::TESTS),
    ("copy", copy::TESTS),
    ("hosts", hosts::TESTS),
    ("full_disk", full_disk::TESTS),
    ("crash", crash::TESTS),
];

fn main() -> ExitCode {
    if let Some(done) = ten_thousand::act::ordered() {
        return done;
    }
    let installs = Install::all();
    if installs.is_empty() {
        eprintln!("No PostgreSQL found: only the tests that need none run. scripts/test.sh gets some");
    }
    let trials = TOPICS
        .iter()
        .flat_map(|(topic, tests)| tests.iter().flat_map(|test| test.trials(topic, installs)));
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert_with(threads);
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    common::template::remove();
    conclusion.exit_code()
}

/// One more than there are cores: a test spends much of its time waiting for a server or a disk.
fn threads() -> usize {
    1 + std::thread::available_parallelism().map_or(1, NonZero::get)
}
