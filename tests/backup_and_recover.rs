//! A backup taken while the server works starts after `cp -a`, with no other step, and never harms the original server.

use crate::common::load::{assert_sums_agree, fill, transact, transactions};
use crate::common::process::{COMMAND_LIMIT, run, until, wait};
use crate::common::registry::topic;
use crate::common::tree::differences;
use crate::common::{Install, Load, Mount, PgServer, Site};
use crate::settings::{make_origins, origins_setting};
use std::fs;
use std::path::Path;

topic! {
    with_postgres a_backup_under_load_starts_from_a_plain_copy,
    with_postgres pg_verifybackup_passes_through_the_mount,
    with_postgres tablespaces_are_restored_as_directories,
    edges a_server_that_archives_nothing_can_be_backed_up,
    edges an_interrupted_backup_is_failed_and_the_next_one_succeeds,
    edges a_copy_without_configuration_files_starts,
    edges a_view_without_configuration_files_starts_with_the_servers_settings,
    with_postgres unlogged_tables_and_large_segments_are_restored,
}

fn a_backup_under_load_starts_from_a_plain_copy(install: &'static Install) {
    let (site, primary) = Site::with_server(install);
    fill(&primary, 3);
    let load = Load::start(&primary);
    site.backup();
    let at_the_end = transactions(&primary);
    load.stop();
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    mount.unmount();

    copy.start();
    copy.wait_until_promoted();
    assert_sums_agree(&copy);
    let there = transactions(&copy);
    assert!(
        there > 0 && there <= at_the_end,
        "{there} transactions, of {at_the_end} when the backup ended"
    );
    assert_eq!(copy.query("SHOW archive_mode"), "off", "A copy must not archive");
    copy.query("CHECKPOINT");
    assert_eq!(copy.timeline(), 2, "A copy starts a timeline of its own");
    let mut ready = fs::read_dir(copy.data.join("pg_wal/archive_status"))
        .unwrap()
        .flatten();
    assert!(
        !ready.any(|entry| entry.file_name().to_string_lossy().ends_with(".ready")),
        "Segments wait for archiving"
    );
    transact(&copy, 100);
    assert_sums_agree(&copy);
    copy.assert_sound();
    copy.stop_and_assert_checksums();
}

fn pg_verifybackup_passes_through_the_mount(install: &'static Install) {
    let (site, primary) = Site::with_server(install);
    fill(&primary, 1);
    let load = Load::start(&primary);
    let id = site.backup();
    load.stop();
    let mount = Mount::new(&site);
    for view in [&id, "latest", "oldest"] {
        primary.verify_backup(&mount.path(&format!("main/{view}")), None);
    }
    // The bytes from PostgreSQL include no WAL; that is in wal/.
    let raw = mount.path(&format!("main/raw/{id}"));
    primary.verify_backup(&raw, Some(&mount.path("main/wal")));
}

fn tablespaces_are_restored_as_directories(install: &'static Install) {
    let (site, mut primary) = Site::with_server(install);
    let spaces = ["fast disk", "big"].map(|name| site.make_directory(name));
    for (number, space) in spaces.iter().enumerate() {
        primary.query(&format!(
            "CREATE TABLESPACE space{number} LOCATION '{}'",
            space.display()
        ));
        primary.query(&format!(
            "CREATE TABLE kept{number} TABLESPACE space{number} AS SELECT generate_series(1, 30000) n"
        ));
    }
    let id = site.backup();
    let mount = Mount::new(&site);
    primary.verify_backup(&mount.path(&format!("main/{id}")), None);
    let raw = mount.path(&format!("main/raw/{id}"));
    primary.verify_backup(&raw, Some(&mount.path("main/wal")));
    let data = site.copy(&mount.path("main/latest"), "copy");

    // The primary is stopped, so that only the copy can change its files now.
    primary.stop("fast");
    let before = spaces.each_ref().map(|space| copy_of(&site, space));
    let mut copy = PgServer::on(install, &data);
    copy.start();
    copy.wait_until_promoted();
    for number in 0..2 {
        assert_eq!(
            copy.query(&format!("SELECT sum(n) FROM kept{number}")),
            "450015000"
        );
        copy.query(&format!(
            "INSERT INTO kept{number} SELECT generate_series(1, 30000)"
        ));
    }
    copy.query("CHECKPOINT");
    assert_sound_and_stop(copy);
    for (space, before) in spaces.iter().zip(&before) {
        assert_eq!(
            differences(before, space, &|_| false),
            [""; 0],
            "The copy wrote into {}",
            space.display()
        );
    }
}

fn copy_of(site: &Site, directory: &Path) -> std::path::PathBuf {
    site.copy(
        directory,
        &format!("{} before", directory.file_name().unwrap().to_string_lossy()),
    )
}

fn assert_sound_and_stop(mut server: PgServer) {
    server.assert_sound();
    server.stop_and_assert_checksums();
}

fn a_server_that_archives_nothing_can_be_backed_up(install: &'static Install) {
    let site = Site::new();
    let mut primary = PgServer::init(install, &site.path("main"), &[]);
    site.write_config(&[("main", &primary)]);
    primary.start();
    fill(&primary, 1);
    let load = Load::start(&primary);
    site.backup();
    load.stop();
    assert_eq!(site.backups()[0]["status"], "DONE");

    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    assert_sums_agree(&copy);
}

fn an_interrupted_backup_is_failed_and_the_next_one_succeeds(install: &'static Install) {
    let (site, mut primary) = Site::with_server(install);
    fill(&primary, 5);
    // Slow enough that the server stops in the middle of it.
    let mut backup = site.spawn(&["backup", "main", "--fast-checkpoint", "--max-rate", "8192"]);
    until("the backup runs", || {
        primary.query("SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 4000000")
            == "1"
    });
    primary.stop("immediate");
    let code = wait(&mut backup, COMMAND_LIMIT).unwrap().code();
    assert_eq!(code, Some(1), "The backup of a server that went away fails");
    let failed = &site.backups()[0];
    assert_eq!(failed["status"], "FAILED", "{failed}");
    assert!(
        failed["error"].as_str().is_some_and(|error| error.len() > 10),
        "The reason is shown: {failed}"
    );

    let mount = Mount::new(&site);
    let shown = site.list(&mount.path("main"));
    assert!(
        !shown.contains(&"latest".into()),
        "A failed backup is not shown: {shown:?}"
    );
    primary.start();
    let id = site.backup();
    let done = site.backups().pop().unwrap();
    assert_eq!(
        (done["id"].as_str(), done["status"].as_str()),
        (Some(id.as_str()), Some("DONE"))
    );
    site.ok(&["verify", "main"]);
}

fn a_copy_without_configuration_files_starts(install: &'static Install) {
    let (site, mut primary) = Site::with_server(install);
    fill(&primary, 1);
    start_as_on_debian(&site, &mut primary);
    let etc = site.path("etc");
    let files =
        ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"].map(|name| etc.join(name).display().to_string());
    let files = files.each_ref().map(String::as_str);
    site.barmanfs(&["backup", "main", "--fast-checkpoint"])
        .ok()
        .says(&files);
    site.barmanfs(&["check", "main"]).says(&files).says(&["WARNING"]);
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    // Only local users can connect to such a copy, and only under their own name. So the test reads its log.
    copy.try_start();
    until("the copy is promoted", || {
        copy.log().contains("ready to accept connections")
    });
}

fn a_view_without_configuration_files_starts_with_the_servers_settings(install: &'static Install) {
    let (site, mut primary) = Site::with_initdb_options(install, &["--wal-segsize=64"]);
    primary.configure(&format!(
        "max_prepared_transactions = 7\nmax_connections = 3\nsuperuser_reserved_connections = 0\n{} = 50",
        origins_setting(install)
    ));
    start_as_on_debian(&site, &mut primary);
    make_origins(&primary, 15);
    primary.query("BEGIN; CREATE TABLE prepared (); PREPARE TRANSACTION 'before'");
    let id = site.backup();
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    fs::write(copy.data.join("pg_hba.conf"), "local all all trust\n").unwrap();
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SELECT gid FROM pg_prepared_xacts"), "before");
    assert_eq!(copy.query("SHOW max_connections"), "3");
    let bindir = install.bindir.to_str().unwrap();
    site.ok(&["verify", "main", &id, "--boot", "--bindir", bindir]);
    let start = ["--start", "--bindir", bindir];
    site.ok(&[&["clone", "create", "main", "test1"][..], &start].concat());
    site.ok(&["clone", "destroy", "main", "test1", "--stop"]);
}

/// Restarts the server as on Debian: the configuration is in /etc, not in the data directory.
fn start_as_on_debian(site: &Site, primary: &mut PgServer) {
    primary.stop("fast");
    let etc = site.make_directory("etc");
    site.sh(&format!(
        "cd '{}' && mv postgresql.conf pg_hba.conf pg_ident.conf '{}' && echo \"data_directory = '$PWD'\" >> '{}'",
        primary.data.display(),
        etc.display(),
        etc.join("postgresql.conf").display()
    ))
    .ok();
    start_with_config_in(primary, &etc);
}

/// pg_ctl needs a -D with postgresql.conf; data_directory in it names the data.
fn start_with_config_in(server: &PgServer, etc: &Path) {
    let options = format!("-k '{}' -c listen_addresses=''", server.sockets().display());
    let log = etc.with_file_name("main.log");
    run(server
        .command("pg_ctl")
        .args(["-s", "-w", "-D"])
        .arg(etc)
        .arg("-l")
        .arg(log)
        .args(["-o", &options, "start"]))
    .ok();
}

fn unlogged_tables_and_large_segments_are_restored(install: &'static Install) {
    let (site, primary) = Site::with_initdb_options(install, &["--wal-segsize=64"]);
    primary.query("CREATE UNLOGGED TABLE scratch AS SELECT generate_series(1, 1000) n");
    primary.query("CREATE TABLE kept AS SELECT generate_series(1, 1000) n; CREATE INDEX ON kept (n)");
    site.backup();
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SELECT count(*) FROM kept"), "1000");
    assert_eq!(
        copy.query("SELECT count(*) FROM scratch"),
        "0",
        "Unlogged tables are empty after a recovery"
    );
    assert_eq!(copy.query("SHOW wal_segment_size"), "64MB");
    copy.assert_sound();
}
