//! The effect of the original's settings on copies, clones and boot tests: none of them touches anything of others, and
//! none is kept from starting. The kind: a setting is right for the original on its host, and wrong elsewhere, whatever
//! file or command line it comes from.

use crate::clone_commands::Stage;
use crate::common::process::{Run, run, until};
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Watcher};
use std::fs;
use std::path::Path;
use std::time::Duration;

topic! {
    with_postgres no_file_of_the_original_is_touched,
    with_postgres a_copy_does_not_run_the_originals_subscriptions,
    edges a_clone_archives_nothing_after_its_settings_are_reset,
    edges settings_that_this_host_cannot_meet_are_replaced_with_set,
    edges every_view_starts_whatever_the_server_was_started_with,
    with_postgres settings_for_the_servers_host_do_not_stop_a_copy,
    once authentication_files_outside_the_copy_are_never_read,
    once a_linked_configuration_is_stored_with_the_backup,
}

/// `verify --boot` of a backup.
fn boot(stage: &Stage, id: &str, more: &[&str]) -> Run {
    let bindir = stage.install.bindir.to_str().expect("a path");
    let arguments = [&["verify", "main", id, "--boot", "--bindir", bindir], more].concat();
    run(stage
        .site
        .barmanfs_command(&arguments)
        .env("TMPDIR", stage.site.make_directory("tmp")))
}

/// Trusts all local users. The `pg_hba.conf` of such a view lets local users connect under their own name only.
fn let_everybody_in(stage: &Stage, data: &Path) {
    let hba = data.join("pg_hba.conf");
    stage
        .site
        .sh(&format!("echo 'local all all trust' > '{}'", hba.display()))
        .ok();
}

fn no_file_of_the_original_is_touched(install: &'static Install) {
    let mut stage = Stage::new(install);
    let (outside, data) = (stage.site.make_directory("etc"), stage.primary.data.clone());
    let (etc, at) = (outside.display(), data.display());
    stage.site.write_file(
        "etc/hba.conf",
        b"local all all trust\nlocal replication all trust\n",
    );
    stage.site.write_file("etc/ident.conf", b"");
    stage.primary.configure(&format!(
        "data_directory = '{at}'\nHba_File='{etc}/hba.conf'\n  ident_file '{etc}/ident.conf'\n\
         external_pid_file = '{etc}/main.pid'\nlogging_collector = on\nlog_directory = '{etc}'\n\
         log_filename = 'main.log'"
    ));
    stage.primary.stop("fast");
    stage.primary.start();
    let id = stage.site.backup();
    stage.primary.stop("fast");
    let control = data.join("global/pg_control");
    let (was, had) = (fs::read(&control).unwrap(), stage.site.checksums(&outside));
    let assert_untouched = |by: &str| {
        assert!(fs::read(&control).unwrap() == was, "{by} has written {at}");
        assert_eq!(stage.site.checksums(&outside), had, "{by}");
    };
    let mount = Mount::new(&stage.site);

    stage.clone(&["create", "main", "test1"]).ok();
    let path = mount.path("main/live/test1");
    let_everybody_in(&stage, &path);
    stage.clone(&["start", "main", "test1", "--replay"]).ok();
    let own = |name: &str| path.join(name).display().to_string();
    for (setting, expected) in [
        ("data_directory", own("")),
        ("hba_file", own("pg_hba.conf")),
        ("ident_file", own("pg_ident.conf")),
        ("external_pid_file", own("postmaster.external.pid")),
    ] {
        let value = stage.query("test1", &format!("SHOW {setting}"));
        assert_eq!(value, expected.trim_end_matches('/'), "{setting}");
    }
    stage.clone(&["stop", "main", "test1"]).ok();
    assert_untouched("clone start");

    let mut clone = PgServer::on_mount(install, &path, &stage.site.path("test1"));
    clone.start();
    assert_eq!(clone.query("SHOW data_directory"), own("").trim_end_matches('/'));
    clone.stop("fast");
    assert_untouched("pg_ctl on the clone");

    boot(&stage, &id, &[]).ok().says(&["OK main"]);
    assert_untouched("verify --boot");

    let latest = mount.path("main/latest");
    stage.primary.verify_backup(&latest, None);
    let mut copy = PgServer::on(install, &stage.site.copy(&latest, "copy"));
    let_everybody_in(&stage, &copy.data);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SHOW data_directory"), copy.data.to_str().unwrap());
    copy.stop("fast");
    assert_untouched("pg_ctl on a copy");
}

fn a_copy_does_not_run_the_originals_subscriptions(install: &'static Install) {
    let mut stage = Stage::new(install);
    let mut publisher = PgServer::init(install, &stage.site.path("publisher"), &[]);
    publisher.configure("wal_level = logical");
    publisher.start();
    publisher.query("CREATE TABLE events (n int); CREATE PUBLICATION events FOR TABLE events");
    stage.primary.query("CREATE TABLE events (n int)");
    stage.primary.query(&format!(
        "CREATE SUBSCRIPTION events CONNECTION '{}' PUBLICATION events",
        publisher.conninfo()
    ));
    publisher.query("INSERT INTO events VALUES (1)");
    let count = "SELECT count(*) FROM events";
    until("the subscriber has it", || stage.primary.query(count) == "1");
    stage.site.backup();
    stage.primary.stop("fast");
    let slot = "SELECT active, confirmed_flush_lsn FROM pg_replication_slots";
    until("nobody reads", || publisher.query(slot).starts_with("f|"));
    publisher.query("INSERT INTO events VALUES (2)");
    let was = publisher.query(slot);

    let mount = Mount::new(&stage.site);
    // Much longer than a background worker takes to start.
    let assert_untouched = |by: &str| {
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(publisher.query(slot), was, "{by}");
    };
    let mut copy = PgServer::on(install, &stage.site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    assert_untouched("a copy");
    assert_eq!(copy.query("SELECT pid FROM pg_stat_subscription"), "");
    copy.stop("fast");
    stage.clone(&["create", "main", "test1", "--replay"]).ok();
    stage.query("test1", "ALTER SYSTEM RESET ALL");
    stage.clone(&["stop", "main", "test1"]).ok();
    stage.clone(&["start", "main", "test1"]).ok();
    assert_untouched("a clone");

    stage.primary.start();
    until("the subscriber has all", || stage.primary.query(count) == "2");
}

fn a_clone_archives_nothing_after_its_settings_are_reset(install: &'static Install) {
    let mut stage = Stage::new(install);
    let archive = stage.site.make_directory("archive");
    stage.primary.configure(&format!(
        "archive_mode = always\narchive_command = 'cp %p {}/%f && {}'",
        archive.display(),
        stage.site.archive_command()
    ));
    stage.primary.stop("fast");
    stage.primary.start();
    stage.site.backup();
    stage.primary.stop("fast");
    let mount = Mount::new(&stage.site);
    let archived = stage.site.list(&archive);
    assert!(!archived.is_empty());
    let work = "CREATE TABLE IF NOT EXISTS work (); DROP TABLE work; SELECT pg_switch_wal(); CHECKPOINT";
    let state = "SELECT current_setting('archive_mode'), archived_count + failed_count FROM pg_stat_archiver";

    stage.clone(&["create", "main", "test1", "--replay"]).ok();
    stage.query("test1", "ALTER SYSTEM RESET ALL");
    stage.clone(&["stop", "main", "test1"]).ok();
    stage.clone(&["start", "main", "test1"]).ok();
    stage.query("test1", work);
    assert_eq!(stage.query("test1", state), "off|0");
    stage.clone(&["stop", "main", "test1"]).ok();

    let path = mount.path("main/live/test1");
    let mut clone = PgServer::on_mount(install, &path, &stage.site.path("test1"));
    clone.start();
    clone.query(work);
    assert_eq!(clone.query(state), "off|0");
    assert_eq!(clone.query("SHOW max_logical_replication_workers"), "0");
    clone.stop("fast");
    assert_eq!(stage.site.list(&archive), archived);

    // A clone of a backup of this clone has the block once, too, and starts although this one ran with other settings
    // than it has.
    let minimal = ["--set", "wal_level=minimal", "--set", "max_wal_senders=0"];
    stage
        .clone(&[&["start", "main", "test1"][..], &minimal].concat())
        .ok();
    stage.clone(&["stop", "main", "test1"]).ok();
    let committed = stage.site.json(&["clone", "commit", "main", "test1"]);
    let id = committed["id"].as_str().expect("an id");
    stage
        .clone(&["create", "main", "test2", "--backup", id, "--start"])
        .ok();
    stage.clone(&["stop", "main", "test2"]).ok();
    let conf = mount.path("main/live/test2/postgresql.conf");
    let conf = stage.site.sh(&format!("cat '{}'", conf.display())).ok().text();
    assert_eq!(conf.matches("\narchive_mode = off\n").count(), 1, "{conf}");
}

fn settings_that_this_host_cannot_meet_are_replaced_with_set(install: &'static Install) {
    let stage = Stage::new(install);
    // Settings of the server's host, which has both.
    stage.primary.configure(
        "shared_buffers = 8000GB\nshared_preload_libraries = 'not_on_this_host'\nsearch_path = public",
    );
    let id = stage.site.backup();
    let _mount = Mount::new(&stage.site);
    stage.clone(&["create", "main", "test1"]).ok();
    let start = |more: &[&str]| stage.clone(&[&["start", "main", "test1", "--replay"], more].concat());
    // As in the log, line by line.
    start(&[]).refused(1).says(&["ends with:\n"]);
    let library = "shared_preload_libraries=";
    start(&["--set", library]).refused(1);
    start(&["--set", "Port=1"]).refused(2).says(&["--port"]);
    start(&["--set", "data_directory=/srv"])
        .refused(2)
        .says(&["data_directory"]);
    start(&["--set", "ARCHIVE_MODE=on"])
        .refused(2)
        .says(&["never archives"]);
    start(&["--set", "shared_buffers"])
        .refused(2)
        .says(&["NAME=VALUE"]);
    start(&["--set", "a b=1"]).refused(2).says(&["NAME=VALUE"]);
    let buffers = [
        "--set",
        library,
        "--set",
        "shared_buffers=1GB",
        "--set",
        "shared_buffers=16MB",
    ];
    start(&[&buffers[..], &["--set", "search_path=\"it's\",public"]].concat()).ok();
    assert_eq!(stage.query("test1", "SHOW shared_buffers"), "16MB");
    assert_eq!(stage.query("test1", "SHOW search_path"), "\"it's\",public");
    stage
        .clone(&[&["create", "main", "test2"][..], &buffers].concat())
        .ok()
        .says(&["psql"]);

    // The backup is not the cause of any of these.
    let kept = || stage.site.json(&["show-backup", "main", &id])["boot_test"].clone();
    boot(&stage, &id, &[])
        .refused(1)
        .says(&["not_on_this_host", "says nothing about the backup"]);
    assert!(kept().is_null(), "{}", kept());
    boot(&stage, &id, &["--set", library]).ok().says(&["OK main"]);
    assert_eq!(kept()["outcome"], "ok");
    // Before the mount is removed under them.
    for name in ["test1", "test2"] {
        stage.clone(&["destroy", "main", name, "--stop"]).ok();
    }
}

/// The setting that limits the number of replication origins with a state.
pub(crate) fn origins_setting(install: &Install) -> &'static str {
    match install.major >= 18 {
        true => "max_active_replication_origins",
        false => "max_replication_slots",
    }
}

/// Each subscription has one of these.
pub(crate) fn make_origins(server: &PgServer, count: u32) {
    server.query(&format!(
        "SELECT pg_replication_origin_create('o' || n) FROM generate_series(1, {count}) n"
    ));
    server.query(&format!(
        "SELECT pg_replication_origin_advance('o' || n, '0/1') FROM generate_series(1, {count}) n"
    ));
}

/// Settings that are in no file.
fn start_with(server: &PgServer, settings: &[&str]) {
    let mut options = format!("-k '{}' -c listen_addresses=''", server.sockets().display());
    for setting in settings {
        options += &format!(" -c {setting}");
    }
    let mut pg_ctl = server.command("pg_ctl");
    pg_ctl.args(["-s", "-w", "-o", &options, "-D"]).arg(&server.data);
    run(pg_ctl.arg("-l").arg(server.log_file()).arg("start")).ok();
}

fn every_view_starts_whatever_the_server_was_started_with(install: &'static Install) {
    let mut stage = Stage::new(install);
    // With the number of connections in the files, not even one for superusers would be left.
    stage.primary.configure(
        "max_connections = 10\nsuperuser_reserved_connections = 15\nmax_wal_senders = 3\nwal_level = minimal",
    );
    stage.primary.stop("fast");
    start_with(
        &stage.primary,
        &[
            "max_connections=150",
            "max_prepared_transactions=5",
            "max_worker_processes=20",
            "max_wal_senders=12",
            "max_locks_per_transaction=100",
            "wal_level=logical",
            &format!("{}=50", origins_setting(install)),
        ],
    );
    make_origins(&stage.primary, 25);
    stage
        .primary
        .query("BEGIN; CREATE TABLE prepared (); PREPARE TRANSACTION 'before'");
    let id = stage.site.backup();
    stage.primary.query("SELECT pg_create_restore_point('later')");
    stage.primary.archive_current_segment();
    stage.primary.archive_current_segment();
    let mount = Mount::new(&stage.site);
    for (name, of) in [
        ("copy1", "main/latest".to_owned()),
        ("copy2", format!("main/{id}")),
        ("copy3", "main/pitr/immediate".to_owned()),
        ("copy4", "main/pitr/name:later".to_owned()),
        ("copy5", "main/pitr/name:later,action=pause".to_owned()),
    ] {
        let mut copy = PgServer::on(install, &stage.site.copy(&mount.path(&of), name));
        copy.start();
        if of.ends_with("pause") {
            until("it pauses", || {
                copy.try_query("SELECT pg_is_wal_replay_paused()").text() == "t"
            });
        } else {
            copy.wait_until_promoted();
            copy.query("COMMIT PREPARED 'before'");
            copy.query("SELECT FROM prepared");
        }
        assert_eq!(copy.query("SHOW max_connections"), "150", "{of}");
        let origins = "SELECT count(*) FROM pg_replication_origin_status";
        assert_eq!(copy.query(origins), "25", "{of}");
        copy.stop("fast");
    }
    boot(&stage, &id, &[]).ok().says(&["OK main"]);
    stage.clone(&["create", "main", "test1", "--replay"]).ok();
    assert_eq!(
        stage.query("test1", "SELECT gid FROM pg_prepared_xacts"),
        "before"
    );
    stage
        .clone(&[
            "create",
            "main",
            "test2",
            "--replay",
            "--set",
            "max_connections=20",
        ])
        .ok();
    assert_eq!(stage.query("test2", "SHOW max_connections"), "20");
    for name in ["test1", "test2"] {
        stage.clone(&["destroy", "main", name, "--stop"]).ok();
    }
}

fn settings_for_the_servers_host_do_not_stop_a_copy(install: &'static Install) {
    let mut stage = Stage::new(install);
    stage.site.make_directory("main/conf.d");
    let mut lines = "huge_pages = on\nssl = yes\nssl_cert_file = '/nowhere/server.crt'\n\
                     log_destination = 'stderr,syslog'\nlogging_collector = on\nlog_directory = '/nowhere'\n\
                     external_pid_file = '/nowhere/main.pid'\nkrb_server_keyfile = '/nowhere/krb5.keytab'\n\
                     max_stack_depth = 40MB\n"
        .to_owned();
    if install.major < 15 {
        lines += "stats_temp_directory = '/nowhere'\n";
    }
    if install.major >= 18 {
        lines += "io_method = io_uring\n";
    }
    // As if the server had run with these settings: it has not read them.
    stage.site.write_file("main/conf.d/host.conf", lines.as_bytes());
    stage
        .primary
        .configure("include_dir 'conf.d'\ninclude '/nowhere/more.conf'");
    let id = stage.site.backup();
    stage.primary.stop("fast");
    let mount = Mount::new(&stage.site);
    let mut copy = PgServer::on(install, &stage.site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    for (setting, expected) in [
        ("huge_pages", "try"),
        ("ssl", "off"),
        ("log_destination", "stderr"),
        ("log_directory", "log"),
        ("krb_server_keyfile", ""),
        ("max_stack_depth", "7MB"),
    ] {
        assert_eq!(copy.query(&format!("SHOW {setting}")), expected, "{setting}");
    }
    copy.stop("fast");
    boot(&stage, &id, &[]).ok().says(&["OK main"]);
    stage.clone(&["create", "main", "test1", "--replay"]).ok();
    stage.query("test1", "ALTER SYSTEM RESET ALL");
    stage.clone(&["stop", "main", "test1"]).ok();
    stage.clone(&["start", "main", "test1"]).ok();
    stage.clone(&["destroy", "main", "test1", "--stop"]).ok();
}

fn authentication_files_outside_the_copy_are_never_read(install: &'static Install) {
    let stage = Stage::new(install);
    let etc = stage.site.make_directory("etc");
    stage.site.write_file("etc/banned", b"mallory\n");
    let hba = |lines: &str| format!("{lines}\nlocal all all trust\nlocal replication all trust\n");
    let mount_and_copy = |stage: &Stage, name: &str| {
        stage.site.backup();
        let mount = Mount::new(&stage.site);
        stage.primary.verify_backup(&mount.path("main/latest"), None);
        stage.site.copy(&mount.path("main/latest"), name)
    };
    let read = |copy: &Path, name: &str| fs::read_to_string(copy.join(name)).unwrap();

    // Lists in the data directory stay, and a missing file is made.
    stage.site.write_file("main/users", b"postgres, @more\n");
    stage.site.write_file("main/more", b"alice\n");
    let inside = hba("local all @users,bob trust # @no");
    stage.site.write_file("main/pg_hba.conf", inside.as_bytes());
    fs::remove_file(stage.primary.data.join("pg_ident.conf")).unwrap();
    let copy = mount_and_copy(&stage, "copy1");
    assert_eq!(read(&copy, "pg_hba.conf"), inside);
    assert!(read(&copy, "pg_ident.conf").contains("has no pg_ident.conf"));
    let mut copy = PgServer::on(install, &copy);
    copy.start();
    copy.wait_until_promoted();
    assert!(!copy.log().contains("pg_ident.conf"), "{}", copy.log());
    copy.stop("fast");

    // The users that an outside file rejects are not known in the copy.
    stage
        .site
        .write_file("main/more", format!("@{}/banned\n", etc.display()).as_bytes());
    stage
        .site
        .write_file("main/pg_hba.conf", hba("local all @users reject").as_bytes());
    stage.site.write_file(
        "main/pg_ident.conf",
        format!("include {}/map\n", etc.display()).as_bytes(),
    );
    let copy = mount_and_copy(&stage, "copy2");
    for name in ["pg_hba.conf", "pg_ident.conf"] {
        let text = read(&copy, name);
        let counts = |line: &&str| !line.starts_with('#') && !line.contains("peer");
        assert_eq!(text.lines().find(counts), None, "{text}");
        assert!(
            text.contains("names files that are not in this data directory"),
            "{text}"
        );
    }
    let mut copy = PgServer::on(install, &copy);
    copy.start();
    copy.stop("fast");
}

fn a_linked_configuration_is_stored_with_the_backup(install: &'static Install) {
    let mut stage = Stage::new(install);
    stage.site.make_directory("etc");
    let script = "mv main/$f etc/ && ln -s ../etc/$f main/$f";
    let script = format!("for f in postgresql.conf pg_hba.conf pg_ident.conf; do {script} || exit 1; done");
    let top = stage.site.path("");
    stage.site.sh(&format!("cd '{}' && {script}", top.display())).ok();
    stage.primary.stop("fast");
    stage.primary.start();
    let id = stage.site.backup();
    let kept = ["pg_hba.conf", "pg_ident.conf", "postgresql.conf"];
    let kept = kept.map(|name| stage.primary.data.join(name).display().to_string());
    let shown = stage.site.json(&["show-backup", "main", &id]);
    assert_eq!(shown["configuration_files"], serde_json::json!(kept));
    stage.primary.stop("fast");
    let mount = Mount::new(&stage.site);
    let watcher = Watcher::on(&[&stage.site.path("etc"), &stage.primary.data]);
    let mut copy = PgServer::on(install, &stage.site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    copy.stop("fast");
    watcher.assert_untouched("a copy");
}
