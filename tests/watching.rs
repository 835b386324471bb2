//! Copies, clones and boot tests never leave themselves. The kind: whatever the files that PostgreSQL reads contain, a
//! server that starts from a view of the backup opens, reads, writes, makes and removes nothing in the original's
//! directories. The original is shut down, and inotify watches all its directories. Copies, clones and boot tests
//! start, replay, write, are promoted and reconfigured.

use crate::clone_commands::Stage;
use crate::common::process::{run, until};
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Watcher};
use std::path::{Path, PathBuf};
use std::time::Duration;

topic! {
    alone a_watcher_sees_every_access,
    edges nothing_of_the_original_is_touched_whatever_its_files_say,
    edges no_library_archives_for_a_copy,
    once included_files_are_confined_by_postgresqls_own_rules,
}

fn a_watcher_sees_every_access() {
    let directory = tempfile::tempdir().unwrap();
    let below = directory.path().join("a/b");
    std::fs::create_dir_all(&below).unwrap();
    let file = below.join("file");
    std::fs::write(&file, "text").unwrap();
    let watcher = Watcher::on(&[directory.path()]);
    watcher.assert_untouched("nobody");
    for (access, seen) in [
        (&(|| drop(std::fs::read(&file))) as &dyn Fn(), "ACCESS"),
        (&|| drop(std::fs::read_dir(&below)), "OPEN"),
        (&|| std::fs::write(&file, "other").unwrap(), "MODIFY"),
        (&|| std::fs::write(below.join("new"), "").unwrap(), "CREATE"),
        (&|| std::fs::remove_file(below.join("new")).unwrap(), "DELETE"),
    ] {
        access();
        let accesses = watcher.accesses();
        assert!(
            accesses.iter().any(|line| line.contains(seen)),
            "{seen}: {accesses:?}"
        );
    }
    watcher.assert_untouched("nobody");
    // A directory that was opened before, as a child process may hold it until it executes its program.
    let opened = std::fs::File::open(&below).unwrap();
    let watcher = Watcher::on(&[directory.path()]);
    drop(opened);
    watcher.assert_untouched("a process that closes what it had opened before");
}

/// Settings that lead to the original and to its other servers, in files included three levels deep.
fn lead_back(stage: &Stage, publisher: &PgServer) -> String {
    let site = &stage.site;
    let at = |name: &str| site.path(name).display().to_string();
    let (etc, archive, data) = (at("etc"), at("archive"), stage.primary.data.display());
    let major = stage.install.major;
    let mut lines = format!(
        "Data_Directory = '{data}'\nHBA_FILE='{etc}/hba.conf'\nident_file '{etc}/ident.conf'\n\
         external_pid_file = '{etc}/main\\056pid'\nlogging_collector = on\nlog_directory = '{etc}'\n\
         log_filename = '../etc/main.log'\nunix_socket_group = ''\n\
         archive_mode = always\narchive_command = 'cp %p {archive}/%f && {}'\n\
         restore_command = 'cp {archive}/%f %p'\narchive_cleanup_command = 'touch {archive}/cleaned'\n\
         recovery_end_command = 'touch {archive}/ended'\n\
         primary_conninfo = 'host={} user=postgres'\nprimary_slot_name = 'standby'\n\
         krb_server_keyfile = '{etc}/krb5.keytab'\ntemp_tablespaces = 'sp'\ndefault_tablespace = 'sp'\n",
        site.archive_command(),
        publisher.sockets().display(),
    );
    if has_library(stage.install, "pg_stat_statements") {
        lines += &format!(
            "shared_preload_libraries = 'pg_stat_statements,pg_prewarm'\npg_prewarm.autoprewarm = on\n\
             local_preload_libraries = ''\nssl = on\nssl_cert_file = '{etc}/server.crt'\n\
             ssl_key_file = '{etc}/server.key'\nssl_passphrase_command = 'touch {etc}/asked'\n"
        );
        site.sh(&format!(
            "cd '{etc}' && openssl req -new -x509 -days 3 -nodes -subj /CN=test -newkey rsa:2048 \
             -keyout server.key -out server.crt && chmod 600 server.key"
        ))
        .ok();
    }
    if major < 15 {
        lines += &format!("stats_temp_directory = '{etc}'\n");
    }
    if major < 16 {
        lines += &format!("promote_trigger_file = '{etc}/promote'\n");
    }
    lines
}

/// A server with all these settings, a tablespace, a subscription and a foreign table. Returns its own directories.
fn tangled(stage: &mut Stage, publisher: &PgServer) {
    let site = &stage.site;
    for name in ["etc", "archive", "ts", "main/conf.d", "main/conf.d/more"] {
        site.make_directory(name);
    }
    site.write_file(
        "etc/hba.conf",
        b"local all all trust\nlocal replication all trust\n",
    );
    site.write_file("etc/ident.conf", b"");
    site.write_file("etc/rows.csv", b"1\n2\n");
    site.write_file("main/conf.d/a.conf", b"include_dir 'more'\n");
    site.write_file(
        "main/conf.d/more/b.conf",
        b"Include_If_Exists = '../deep/c.settings' # there\n",
    );
    site.make_directory("main/conf.d/deep");
    site.write_file(
        "main/conf.d/deep/c.settings",
        lead_back(stage, publisher).as_bytes(),
    );
    let primary = &mut stage.primary;
    primary.configure("include_dir = 'conf.d'\nmax_connections = 30");
    primary.stop("fast");
    primary.start();
    primary.query(&format!(
        "CREATE TABLESPACE sp LOCATION '{}'",
        site.path("ts").display()
    ));
    primary.query("CREATE TABLE kept TABLESPACE sp AS SELECT generate_series(1, 1000) n");
    primary.query("CREATE TABLE events (n int)");
    primary.query(&format!(
        "CREATE SUBSCRIPTION events CONNECTION '{}' PUBLICATION events",
        publisher.conninfo()
    ));
    primary.query("CREATE UNLOGGED TABLE unlogged TABLESPACE sp AS SELECT generate_series(1, 1000) n");
    if has_library(primary.install, "file_fdw") {
        primary.query(&format!(
            "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw; \
             CREATE FOREIGN TABLE outside (n int) SERVER files OPTIONS (filename '{}')",
            site.path("etc/rows.csv").display()
        ));
        primary.query(&format!(
            "CREATE EXTENSION dblink; CREATE EXTENSION pg_stat_statements; CREATE EXTENSION pg_prewarm; \
             CREATE EXTENSION postgres_fdw; \
             CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{}'); \
             CREATE USER MAPPING FOR postgres SERVER other; \
             CREATE FOREIGN TABLE far (n int) SERVER other OPTIONS (table_name 'events')",
            publisher.sockets().display()
        ));
    }
    watch_over(primary, &site.path("etc/audit"));
}

/// A database whose triggers write to a file at each login and each definition of an object.
fn watch_over(primary: &PgServer, file: &Path) {
    primary.query("CREATE DATABASE audited");
    let mut sql = format!(
        "CREATE FUNCTION audit() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN COPY (SELECT now()) TO '{}'; END $$;\
         CREATE EVENT TRIGGER defined ON ddl_command_end EXECUTE FUNCTION audit();\
         ALTER EVENT TRIGGER defined ENABLE ALWAYS;",
        file.display()
    );
    if primary.install.major >= 17 {
        sql += "CREATE EVENT TRIGGER logged_in ON login EXECUTE FUNCTION audit();\
                ALTER EVENT TRIGGER logged_in ENABLE ALWAYS;";
    }
    let mut client = primary.client("psql");
    run(client.args(["-X", "-v", "ON_ERROR_STOP=1", "-d", "audited", "-c", &sql])).ok();
}

/// After promotion the server writes, is reconfigured and restarted.
fn work_on(server: &mut PgServer) {
    assert_eq!(server.query("SELECT count(*) FROM kept"), "1000");
    server
        .query("SET temp_tablespaces = sp; CREATE TEMP TABLE t AS SELECT 1; INSERT INTO unlogged VALUES (1)");
    server.query("UPDATE kept SET n = n + 1; CREATE TABLE worked TABLESPACE sp AS SELECT 1; ANALYZE");
    server.query("CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT");
    server.query("ALTER SYSTEM SET work_mem = '5MB'");
    server.query("ALTER SYSTEM SET archive_timeout = 1");
    server.stop("fast");
    server.start();
    server.query("CREATE TABLE more AS SELECT 1; SELECT pg_switch_wal()");
    server.query("SELECT pg_reload_conf(); CHECKPOINT");
}

fn nothing_of_the_original_is_touched_whatever_its_files_say(install: &'static Install) {
    let mut stage = Stage::new(install);
    let mut publisher = PgServer::init(install, &stage.site.path("publisher"), &[]);
    publisher.configure("wal_level = logical\nlog_connections = on\nlog_line_prefix = ''");
    publisher.start();
    publisher.query("CREATE TABLE events (n int); CREATE PUBLICATION events FOR TABLE events");
    tangled(&mut stage, &publisher);
    let id = stage.site.backup();
    stage.primary.query("SELECT pg_create_restore_point('later')");
    stage.primary.archive_current_segment();
    stage.primary.archive_current_segment();
    stage.primary.stop("fast");
    let slot = "SELECT active, confirmed_flush_lsn FROM pg_replication_slots";
    until("nobody reads", || publisher.query(slot).starts_with("f|"));
    publisher.query("INSERT INTO events VALUES (1)");
    let was = publisher.query(slot);
    let connected = strangers(&publisher);

    let mount = Mount::new(&stage.site);
    let places: Vec<_> = ["main", "main.s", "ts", "etc", "archive"]
        .map(|name| stage.site.path(name))
        .into();
    let watcher = Watcher::on(&places.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    let assert_untouched = |by: &str| {
        watcher.assert_untouched(by);
        assert_eq!(publisher.query(slot), was, "{by}");
        assert_eq!(strangers(&publisher), connected, "{by}");
    };
    let trust = |data: &Path| {
        let hba = data.join("pg_hba.conf");
        stage
            .site
            .sh(&format!("echo 'local all all trust' > '{}'", hba.display()))
            .ok();
    };

    for (of, name) in [
        ("main/latest".to_owned(), "copy1"),
        (format!("main/{id}"), "copy2"),
        ("main/pitr/name:later".to_owned(), "copy3"),
        ("main/pitr/name:later,action=pause".to_owned(), "copy4"),
    ] {
        let shown = mount.path(&of);
        stage.primary.verify_backup(&shown, None);
        let mut copy = PgServer::on(install, &stage.site.copy(&shown, name));
        trust(&copy.data);
        copy.start();
        if of.ends_with("pause") {
            until("it pauses", || {
                copy.try_query("SELECT pg_is_wal_replay_paused()").text() == "t"
            });
            run(copy
                .command("pg_ctl")
                .args(["-s", "-w", "-D"])
                .arg(&copy.data)
                .arg("promote"))
            .ok();
        }
        copy.wait_until_promoted();
        work_on(&mut copy);
        // Longer than a background worker takes to start, and than archive_timeout.
        std::thread::sleep(Duration::from_millis(1500));
        copy.stop("fast");
        assert_untouched(&format!("a copy of {of}"));
    }

    let path = mount.path("main/live/test1");
    stage
        .clone(&["create", "main", "test1", "--at", "name:later"])
        .ok();
    trust(&path);
    stage.clone(&["start", "main", "test1", "--replay"]).ok();
    stage.query("test1", "CREATE TABLE own AS SELECT 1");
    stage.clone(&["stop", "main", "test1"]).ok();
    assert_untouched("clone start");
    let mut clone = PgServer::on_mount(install, &path, &stage.site.path("test1"));
    clone.start();
    work_on(&mut clone);
    clone.query("ALTER SYSTEM RESET ALL");
    clone.query("ALTER SYSTEM SET archive_mode = on");
    clone.stop("fast");
    clone.start();
    clone.query("CREATE TABLE again AS SELECT 1; SELECT pg_switch_wal(); CHECKPOINT");
    until("archiving is refused", || {
        clone.query("SELECT failed_count > 0 FROM pg_stat_archiver") == "t"
    });
    clone.stop("fast");
    assert_untouched("pg_ctl on a clone");
    stage.clone(&["destroy", "main", "test1"]).ok();

    let bindir = install.bindir.to_str().unwrap();
    let boot = ["verify", "main", &id, "--boot", "--bindir", bindir];
    stage.site.ok(&boot);
    assert_untouched("verify --boot");
    if has_library(install, "amcheck") {
        stage.site.ok(&[&boot[..], &["--amcheck"]].concat());
        assert_untouched("verify --boot --amcheck");
    }
}

/// The number of connections by other programs than psql.
fn strangers(server: &PgServer) -> usize {
    let log = server.log();
    let made = log.lines().filter(|line| line.contains("connection authorized:"));
    made.filter(|line| !line.contains("application_name=psql"))
        .count()
}

fn no_library_archives_for_a_copy(install: &'static Install) {
    let mut stage = Stage::new(install);
    if !has_library(install, "basic_archive") {
        eprintln!("PostgreSQL {} has no basic_archive here: left out", install.major);
        return;
    }
    let archive = stage.site.make_directory("archive");
    stage.site.make_directory("main/conf.d");
    stage.site.write_file(
        "main/conf.d/archive.conf",
        format!(
            "archive_mode = on\narchive_command = ''\narchive_library = 'basic_archive'\n\
             basic_archive.archive_directory = '{}'\n",
            archive.display()
        )
        .as_bytes(),
    );
    // The setting matters for a copy. The original itself would archive nothing to the repository with it.
    stage.primary.configure("include 'conf.d/archive.conf'");
    stage.site.backup();
    stage.primary.stop("fast");
    let mount = Mount::new(&stage.site);
    let places = [stage.primary.data.clone(), stage.primary.sockets(), archive];
    let watcher = Watcher::on(&places.each_ref().map(PathBuf::as_path));
    let mut copy = PgServer::on(install, &stage.site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    copy.query("CREATE TABLE own AS SELECT 1; SELECT pg_switch_wal(); CHECKPOINT");
    copy.query("ALTER SYSTEM SET archive_mode = on");
    copy.stop("fast");
    copy.start();
    copy.query("CREATE TABLE more AS SELECT 1; SELECT pg_switch_wal(); CHECKPOINT");
    until("archiving is refused", || {
        copy.query("SELECT failed_count > 0 FROM pg_stat_archiver") == "t"
    });
    copy.stop("fast");
    watcher.assert_untouched("a copy");
}

fn has_library(install: &Install, name: &str) -> bool {
    let lib = install.bindir.with_file_name("lib");
    lib.join(format!("{name}.so")).exists()
}

/// PostgreSQL's configuration files are found as PostgreSQL finds them, and all other files stay byte for byte.
fn included_files_are_confined_by_postgresqls_own_rules(install: &'static Install) {
    let mut stage = Stage::new(install);
    let site = &stage.site;
    for name in ["main/a", "main/a/b", "main/a/b/c", "etc"] {
        site.make_directory(name);
    }
    site.write_file("etc/outside.conf", b"work_mem = 7MB\n");
    let etc = site.path("etc").display().to_string();
    let harmless = "# hba_file = 'no'\nmy.hba_file = 'mine'\nsearch_path = 'hba_file'\n";
    for (name, text) in [
        ("a/first.conf", format!("INCLUDE = 'b/second'\n{harmless}")),
        ("a/b/second", "include_dir '.'\ninclude_dir'c'\n".to_owned()),
        (
            "a/b/c/z.conf",
            format!("\tidENT_file'{etc}/i\\056conf' # it''s\r\nmaintenance_work_mem = 3MB\n"),
        ),
        ("a/b/c/.hidden.conf", format!("hba_file = '{etc}/no.conf'\n")),
        ("a/b/c/no.conf~", format!("hba_file = '{etc}/no.conf'\n")),
        (
            "a/b/c/y.conf",
            format!(
                "include '{etc}/outside.conf'\ninclude_if_exists '../../../../etc/outside.conf'\n\
                 include_if_exists '{etc}/none.conf'\n"
            ),
        ),
    ] {
        site.write_file(&format!("main/{name}"), text.as_bytes());
    }
    site.write_file("etc/i.conf", b"");
    stage
        .primary
        .configure("include_dir 'a'\ninclude_if_exists 'none.conf'");
    stage.primary.stop("fast");
    stage.primary.start();
    assert_eq!(stage.primary.query("SHOW work_mem"), "7MB");
    stage.site.backup();
    stage.primary.stop("fast");
    let mount = Mount::new(&stage.site);
    let latest = mount.path("main/latest");
    stage.primary.verify_backup(&latest, None);
    let copy = stage.site.copy(&latest, "copy");
    let read = |name: &str| std::fs::read_to_string(copy.join(name)).unwrap();
    let stored = |name: &str| std::fs::read_to_string(stage.primary.data.join(name)).unwrap();
    for name in [
        "a/first.conf",
        "a/b/second",
        "a/b/c/.hidden.conf",
        "a/b/c/no.conf~",
    ] {
        assert_eq!(read(name), stored(name), "{name}");
    }
    let z = read("a/b/c/z.conf");
    assert!(z.starts_with("# Of the original (barmanfs): \tidENT_file"), "{z}");
    assert!(z.ends_with("\nmaintenance_work_mem = 3MB\n"), "{z}");
    let y = read("a/b/c/y.conf");
    assert_eq!(y.matches("is not in this data directory").count(), 1, "{y}");
    // The backup has what is outside, and the copy reads its own.
    let lines: Vec<&str> = y.lines().filter(|line| !line.starts_with('#')).collect();
    let own = format!("'../../../barmanfs_included{etc}/outside.conf'");
    assert_eq!(
        lines,
        [format!("include = {own}"), format!("include_if_exists = {own}")]
    );
    // Both by names and by a listing.
    let listed = stage
        .site
        .sh(&format!("cat '{}'/a/b/c/*.conf", latest.display()))
        .ok()
        .text();
    assert_eq!(listed, format!("{y}{z}").trim_end());
    stage.site.sh(&format!("rm -r '{etc}'")).ok();
    let mut copy = PgServer::on(install, &copy);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SHOW maintenance_work_mem"), "3MB");
    assert_eq!(copy.query("SHOW work_mem"), "7MB");
    copy.stop("fast");
}
