//! A backup taken while the server works starts after `cp -a`, with no other step, and never harms the original server.

use crate::common::load::{assert_sums_agree, fill, transact, transactions};
use crate::common::process::{COMMAND_LIMIT, run, until, wait};
use crate::common::registry::topic;
use crate::common::site::check_line;
use crate::common::tree::differences;
use crate::common::{Install, Load, Mount, PgServer, Site};
use crate::settings::{make_origins, origins_setting};
use std::fs;
use std::path::Path;

topic! {
    once no_quiet_backup_makes_a_repository,
    with_postgres a_backup_under_load_starts_from_a_plain_copy,
    with_postgres pg_verifybackup_passes_through_the_mount,
    with_postgres tablespaces_are_restored_as_directories,
    edges a_server_that_archives_nothing_can_be_backed_up,
    edges an_interrupted_backup_is_failed_and_the_next_one_succeeds,
    edges a_copy_without_configuration_files_starts,
    once configuration_files_outside_the_data_directory_are_kept_and_used,
    edges a_view_without_configuration_files_starts_with_the_servers_settings,
    with_postgres unlogged_tables_and_large_segments_are_restored,
}

pub(crate) fn a_backup_under_load_starts_from_a_plain_copy(install: &'static Install) {
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

/// The kind: a repository that is not mounted is replaced by an empty one, in silence.
fn no_quiet_backup_makes_a_repository(install: &'static Install) {
    let site = Site::new();
    let mut server = PgServer::init(install, &site.path("main"), &[]);
    site.write_config_of(
        &server,
        "backup_schedule = * * * * *\nimmediate_checkpoint = on\n",
    );
    server.start();
    let barmanfs = format!("'{}' -c '{}'", site.program().display(), site.config().display());
    for refused in [
        site.sh(&format!("{barmanfs} cron")),
        site.sh(&format!("{barmanfs} -q backup main")),
    ] {
        assert_eq!(refused.code(), Some(1), "{refused}");
        assert!(
            refused.all().contains("file system mounted") && refused.all().contains("barmanfs init"),
            "{refused}"
        );
    }
    assert!(!site.repository().exists());
    let made = site
        .sh(&format!("{barmanfs} --log-level error backup main"))
        .ok()
        .all();
    assert!(made.contains("new and empty one was created"), "{made}");
    let again = site.barmanfs(&["backup", "main"]).ok().all();
    assert!(!again.contains("new and empty one"), "{again}");
}

pub(crate) fn a_server_that_archives_nothing_can_be_backed_up(install: &'static Install) {
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

/// How many backups the server sends, or has a session for while its files are read.
pub(crate) const COPIES: &str = "SELECT (SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 4000000)
    + (SELECT count(*) FROM pg_stat_activity WHERE state = 'idle' AND query LIKE 'SELECT pg_catalog.pg_is_in_recovery()%')";

pub(crate) fn an_interrupted_backup_is_failed_and_the_next_one_succeeds(install: &'static Install) {
    let (site, mut primary) = Site::with_server(install);
    fill(&primary, 5);
    // Slow enough that the server stops in the middle of it.
    let mut backup = site.spawn(&["backup", "main", "--fast-checkpoint", "--max-rate", "8192"]);
    until("the backup runs", || primary.query(COPIES) == "1");
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
    site.write_config_of(&primary, "backup_options = external_configuration\n");
    fill(&primary, 1);
    start_as_on_debian(&site, &mut primary);
    let etc = site.path("etc");
    let files =
        ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"].map(|name| etc.join(name).display().to_string());
    let files = files.each_ref().map(String::as_str);
    site.backup();
    site.barmanfs(&["check", "main"]).says(&files).says(&["WARNING"]);
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    // Only local users can connect to such a copy, and only under their own name. So the test reads its log.
    copy.try_start();
    until("the copy is promoted", || {
        copy.log().contains("ready to accept connections")
    });
}

/// As on Debian, with includes in all forms. A role without privileges gets what this host lets barmanfs read.
fn configuration_files_outside_the_data_directory_are_kept_and_used(install: &'static Install) {
    let (site, mut primary) = Site::with_server(install);
    fill(&primary, 1);
    let (etc, elsewhere) = (site.make_directory("etc"), site.make_directory("elsewhere"));
    site.make_directory("etc/conf.d");
    let shared = elsewhere.join("shared.conf");
    primary.configure(&format!(
        "include_dir = 'conf.d'\ninclude '{}' # of all servers\ninclude_if_exists = '{}'\ninclude '../up.conf'",
        shared.display(),
        elsewhere.join("absent.conf").display()
    ));
    let hba = "local all @admins,plain trust\nlocal replication all trust\n";
    let memory = format!(
        "work_mem = '7MB'\ninclude_if_exists '{}'\n",
        elsewhere.join("deep.conf").display()
    );
    let texts = [
        ("etc/conf.d/memory.conf", memory.as_str()),
        ("elsewhere/deep.conf", "temp_buffers = '9MB'\n"),
        ("etc/admins", "postgres\n"),
        ("elsewhere/more.conf", "statement_timeout = '77s'\n"),
        (
            "elsewhere/shared.conf",
            "maintenance_work_mem = '77MB'\ninclude 'more.conf'\n",
        ),
        ("up.conf", "lock_timeout = '78s'\n"),
        ("main/pg_hba.conf", hba),
    ];
    for (name, text) in texts {
        site.write_file(name, text.as_bytes());
    }
    start_as_on_debian(&site, &mut primary);
    let run = site.barmanfs(&["backup", "main", "--fast-checkpoint"]).ok();
    assert!(!run.text().contains("does not have"), "{run}");
    let checked = site.barmanfs(&["check", "main", "--json"]);
    assert_eq!(check_line(&checked, "configuration files")["status"], "OK");

    let id = site.backup_ids().pop().unwrap();
    let names = [
        "elsewhere/deep.conf",
        "elsewhere/more.conf",
        "elsewhere/shared.conf",
        "etc/admins",
        "etc/conf.d/memory.conf",
        "etc/pg_hba.conf",
        "etc/pg_ident.conf",
        "etc/postgresql.conf",
        "up.conf",
    ];
    let paths = names.map(|name| site.path(name).display().to_string());
    assert_eq!(
        site.json(&["show-backup", "main", &id])["configuration_files"],
        serde_json::json!(paths)
    );
    let mount = Mount::new(&site);
    for path in &paths {
        let kept = mount.path(&format!("main/info/{id}/config{path}"));
        site.sh(&format!("cmp '{}' '{path}'", kept.display())).ok();
    }

    primary.stop("fast");
    let outside = site.checksums(&etc) + &site.checksums(&elsewhere);
    let view = mount.path("main/latest");
    primary.verify_backup(&view, None);
    let mut copy = PgServer::on(install, &site.copy(&view, "copy"));
    assert_eq!(fs::read_to_string(copy.data.join("pg_hba.conf")).unwrap(), hba);
    copy.start();
    copy.wait_until_promoted();
    let settings = "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings
        WHERE name IN ('work_mem', 'maintenance_work_mem', 'statement_timeout', 'lock_timeout', 'temp_buffers')";
    assert_eq!(copy.query(settings), "78000 78848 77000 1152 7168");
    copy.stop("fast");
    let bindir = install.bindir.to_str().unwrap();
    site.ok(&["clone", "create", "main", "test1", "--start", "--bindir", bindir]);
    let clone = mount.path("main/live/test1");
    site.sh(&format!(
        "grep 7MB '{}'",
        clone.join("conf.d/memory.conf").display()
    ))
    .ok();
    site.ok(&["clone", "destroy", "main", "test1", "--stop"]);
    assert_eq!(site.checksums(&etc) + &site.checksums(&elsewhere), outside);
    drop(mount);
    site.ok(&["rebuild-catalog"]);
    assert_eq!(
        site.json(&["show-backup", "main", &id])["configuration_files"],
        serde_json::json!(paths)
    );

    // What cannot be read is named, and the backup counts without it.
    start_with_config_in(&primary, &etc);
    primary.query("CREATE ROLE plain LOGIN REPLICATION IN ROLE pg_read_all_settings");
    let plain = primary.conninfo().replace("user=postgres", "user=plain");
    site.write_config_with(&[("main", &plain)]);
    site.barmanfs(&["backup", "main", "--fast-checkpoint"]).ok();
    let kept = |id: &str| site.json(&["show-backup", "main", id])["configuration_files"].clone();
    let id = site.backup_ids().pop().unwrap();
    assert_eq!(
        kept(&id),
        serde_json::json!(paths),
        "this host's files are read directly"
    );
    site.sh(&format!("chmod 0 '{}'", shared.display())).ok();
    site.barmanfs(&["backup", "main", "--fast-checkpoint"])
        .ok()
        .says(&["does not have", "elsewhere/shared.conf", "pg_read_server_files"]);
}

fn a_view_without_configuration_files_starts_with_the_servers_settings(install: &'static Install) {
    let (site, mut primary) = Site::with_initdb_options(install, &["--wal-segsize=64"]);
    site.write_config_of(&primary, "backup_options = external_configuration\n");
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

pub(crate) fn unlogged_tables_and_large_segments_are_restored(install: &'static Install) {
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
