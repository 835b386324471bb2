//! `barmanfs clone`: a DBA creates, starts, resets and destroys clones, and sees what prevents a command.

use std::process::{Command, Stdio};

use crate::common::load::{fill, transact, transactions};
use crate::common::process::{Run, run, state_of, until};
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};
use serde_json::Value;

topic! {
    edges a_clone_is_made_started_reset_and_destroyed_by_root(as_root),
    edges the_database_user_manages_clones_on_its_own_mount,
    once clones_start_from_the_requested_backup_and_point_in_time,
    edges a_clone_waits_at_its_target_or_shuts_down_there,
    edges the_mounts_options_decide_what_a_clone_does_at_its_target,
    once a_refused_clone_command_names_the_obstacle,
    once a_clone_of_another_user_on_a_mount_is_left_alone(as_root),
    once clones_do_not_exceed_their_limits,
    once a_full_clone_continues_when_its_limit_is_raised,
    once a_copy_of_a_clone_is_independent(as_root),
    once a_server_that_outlived_its_mount_is_stopped(as_root),
    once a_server_is_found_although_no_mount_is_left(as_root),
    once a_clone_is_discarded_although_its_server_does_not_shut_down(as_root),
    once a_pid_of_another_users_process_is_no_server,
}

/// A backup of a database whose server is shut down, and the means to start servers on clones.
pub(crate) struct Stage {
    pub(crate) site: Site,
    pub(crate) install: &'static Install,
    pub(crate) primary: PgServer,
    /// Commands run as the user of the tests, and not as the database user.
    pub(crate) own: bool,
}

impl Stage {
    pub(crate) fn new(install: &'static Install) -> Self {
        let (site, primary) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
        let stage = Self {
            site,
            install,
            primary,
            own: false,
        };
        stage.configure("");
        fill(&stage.primary, 1);
        stage.site.backup();
        stage
    }

    pub(crate) fn configure(&self, lines: &str) {
        let path_prefix = format!("path_prefix = {}\n", self.install.bindir.display());
        self.site.write_config_of(&self.primary, &(path_prefix + lines));
    }

    /// `barmanfs clone ...`
    pub(crate) fn clone(&self, arguments: &[&str]) -> Run {
        let arguments = [&["clone"], arguments].concat();
        match self.own {
            true => run(&mut self.site.own_barmanfs_command(&arguments)),
            false => self.site.barmanfs(&arguments),
        }
    }

    fn list(&self) -> Vec<Value> {
        let listed = self.clone(&["list", "--json"]).ok();
        let listed: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
        listed["clones"].as_array().expect("a list").clone()
    }

    /// The entry of one clone in the list.
    #[track_caller]
    pub(crate) fn listed(&self, name: &str) -> Value {
        let found = self.list().into_iter().find(|clone| clone["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is not listed"))
    }

    /// Queries the server on a clone, through the line for psql that was printed for it.
    #[track_caller]
    pub(crate) fn query(&self, name: &str, sql: &str) -> String {
        let (sockets, port) = self.reached_at(name);
        let psql = self.install.program("psql");
        let psql = psql.display();
        let script = format!("{psql} -h '{sockets}' -p {port} -U postgres -XAtqc \"{sql}\" postgres");
        self.site.sh(&script).ok().text()
    }

    /// The socket directory and the port of the server on a clone. Earlier releases had no directory for each server.
    #[track_caller]
    pub(crate) fn reached_at(&self, name: &str) -> (String, u64) {
        let listed = self.listed(name);
        let sockets = listed["socket_directory"].as_str().unwrap_or("/tmp");
        (sockets.to_owned(), listed["port"].as_u64().expect("it runs"))
    }
}

impl Drop for Stage {
    /// No server survives its test, failed or not.
    fn drop(&mut self) {
        let listed = self.clone(&["list", "--json"]);
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
        let listed = listed["clones"].as_array().cloned().unwrap_or_default();
        for clone in listed.iter().filter(|clone| clone["running"] == true) {
            let name = clone["name"].as_str().unwrap_or_default();
            self.clone(&["destroy", "main", name, "--stop"]);
        }
    }
}

/// The whole life of a clone, for any user who runs the commands.
fn walk_through(stage: &Stage, mount: &Mount<'_>) {
    let expected = transactions(&stage.primary);
    let made = stage
        .clone(&["create", "main", "test1", "--start", "--replay"])
        .ok()
        .text();
    let path = mount.path("main/live/test1");
    assert!(made.contains(&path.display().to_string()), "{made}");
    assert!(
        made.contains(&format!("psql -h {} -p ", path.display())),
        "{made}"
    );
    let count = "SELECT count(*) FROM pgbench_history";
    assert_eq!(stage.query("test1", count), expected.to_string());

    stage.query(
        "test1",
        "CREATE TABLE mine AS SELECT generate_series(1, 100000) AS n",
    );
    stage.query("test1", "CHECKPOINT");
    let listed = stage.listed("test1");
    assert_eq!(
        (&listed["running"], &listed["server"]),
        (&Value::from(true), &Value::from("main"))
    );
    assert!(listed["written_bytes"].as_u64() > Some(1 << 20), "{listed}");
    let table = stage.clone(&["list"]).ok().text();
    assert!(table.contains("test1") && table.contains("port "), "{table}");

    let stop_it = "barmanfs clone stop main test1";
    for command in ["destroy", "reset"] {
        stage
            .clone(&[command, "main", "test1"])
            .refused(1)
            .says(&["runs on clone test1", stop_it]);
    }
    stage
        .clone(&["start", "main", "test1"])
        .refused(1)
        .says(&["already"]);
    // Stopping needs none of PostgreSQL's programs: an upgrade may have removed them.
    stage.site.write_config_of(&stage.primary, "");
    stage.clone(&["stop", "main", "test1"]).ok();
    stage.configure("");
    assert_eq!(stage.listed("test1")["running"], false);
    stage
        .clone(&["stop", "main", "test1"])
        .ok()
        .says(&["No server runs"]);
    stage.clone(&["start", "main", "test1"]).ok().says(&["psql"]);
    assert_eq!(stage.query("test1", "SELECT count(*) FROM mine"), "100000");

    stage.clone(&["reset", "main", "test1", "--stop"]).ok();
    assert!(stage.listed("test1")["written_bytes"].as_u64() < Some(1 << 20));
    stage
        .clone(&["start", "main", "test1", "--replay"])
        .ok()
        .says(&["psql"]);
    assert_eq!(stage.query("test1", "SELECT to_regclass('mine') IS NULL"), "t");
    assert_eq!(stage.query("test1", count), expected.to_string());

    stage.clone(&["destroy", "main", "test1", "--stop"]).ok();
    assert_eq!(stage.site.list(&mount.path("main/live")), [""; 0]);
    stage.clone(&["list"]).ok().says(&["No clone"]);
    stage
        .clone(&["destroy", "main", "test1"])
        .refused(1)
        .says(&["no clone test1"]);
    stage.site.ok(&["verify", "main"]);
}

fn a_clone_is_made_started_reset_and_destroyed_by_root(install: &'static Install) {
    let mut stage = Stage::new(install);
    stage.own = true;
    let mount = Mount::for_all(&stage.site);
    walk_through(&stage, &mount);
}

fn the_database_user_manages_clones_on_its_own_mount(install: &'static Install) {
    let stage = Stage::new(install);
    let mount = Mount::new(&stage.site);
    walk_through(&stage, &mount);
    mount.unmount();
}

fn clones_start_from_the_requested_backup_and_point_in_time(install: &'static Install) {
    let stage = Stage::new(install);
    let first = stage.site.backup_ids().remove(0);
    let at_first = transactions(&stage.primary);
    transact(&stage.primary, 30);
    stage.primary.query("SELECT pg_create_restore_point('before')");
    let at_point = transactions(&stage.primary);
    transact(&stage.primary, 30);
    stage.primary.archive_current_segment();
    let second = stage.site.backup();
    let mount = Mount::new(&stage.site);
    stage
        .clone(&["create", "main", "a", "--backup", "oldest", "--start", "--replay"])
        .ok();
    stage
        .clone(&["create", "main", "b", "--at", "name:before", "--replay"])
        .ok();
    let by_hand = mount.path(&format!("main/live/c@backup={second}"));
    stage.site.sh(&format!("mkdir '{}'", by_hand.display())).ok();
    let of = |name: &str| stage.listed(name)["backup"].as_str().map(str::to_owned);
    assert_eq!((of("a"), of("c")), (Some(first.clone()), Some(second)));
    let count = "SELECT count(*) FROM pgbench_history";
    assert_eq!(stage.query("a", count), at_first.to_string());
    assert_eq!(stage.query("b", count), at_point.to_string());
    assert_eq!(stage.listed("b")["target"], "name:before");

    // A reset uses the same backup as before, even if there is a newer one.
    stage.query("b", "TRUNCATE pgbench_history");
    stage.clone(&["reset", "main", "b", "--stop"]).ok();
    assert_eq!(of("b"), Some(first));
    stage.clone(&["start", "main", "b", "--replay"]).ok();
    assert_eq!(stage.query("b", count), at_point.to_string());
}

fn a_clone_waits_at_its_target_or_shuts_down_there(install: &'static Install) {
    let stage = Stage::new(install);
    transact(&stage.primary, 30);
    stage.primary.query("SELECT pg_create_restore_point('before')");
    stage.primary.archive_current_segment();
    let _mount = Mount::new(&stage.site);
    let paused = stage.clone(&[
        "create",
        "main",
        "a",
        "--at",
        "name:before,action=pause",
        "--replay",
    ]);
    paused.ok().says(&["waits there", "psql"]);
    assert_eq!(stage.query("a", "SELECT pg_is_in_recovery()"), "t");
    let shut_down = stage.clone(&[
        "create",
        "main",
        "b",
        "--at",
        "name:before,action=shutdown",
        "--replay",
    ]);
    shut_down.ok().says(&["has shut down there"]);
    assert_eq!(stage.listed("b")["running"], false);
}

fn the_mounts_options_decide_what_a_clone_does_at_its_target(install: &'static Install) {
    let stage = Stage::new(install);
    transact(&stage.primary, 30);
    stage.primary.query("SELECT pg_create_restore_point('before')");
    transact(&stage.primary, 30);
    stage.primary.archive_current_segment();
    // The options of the mount decide the action, not the configuration of the user who starts the server.
    let mount = Mount::prepare(&stage.site, "mnt");
    let options = ["mount", &mount.text(), "--recovery-target-action", "pause"];
    stage.site.ok(&options);
    let create = |name: &str, at: &str| {
        let options = ["--at", at, "--replay", "--replay-timeout", "60"];
        stage.clone(&[&["create", "main", name], &options[..]].concat())
    };
    create("a", "name:before").ok().says(&["waits there"]);
    // At the end of the WAL a recovery cannot pause, and during recovery the copy cannot be queried.
    create("b", "now,action=pause").ok().says(&["has recovered"]);
    assert_eq!(stage.query("b", "SELECT pg_is_in_recovery()"), "f");
}

fn a_refused_clone_command_names_the_obstacle(install: &'static Install) {
    let stage = Stage::new(install);
    let create = |more: &[&str]| stage.clone(&[&["create", "main", "test1"], more].concat());
    create(&[]).refused(1).says(&["is not mounted", "barmanfs mount"]);
    let mount = Mount::new(&stage.site);
    create(&["--at", "name:never made"])
        .refused(1)
        .says(&["never made", "barmanfs explain"]);
    create(&["--at", "rubbish"]).refused(2).says(&["rubbish"]);
    create(&["--backup", "20010101T000000"])
        .refused(1)
        .says(&["list-backups"]);
    create(&["--mount", "/"])
        .refused(2)
        .says(&["no mount of the repository", &mount.text()]);
    stage.clone(&["create", "main", "a@b"]).refused(2).says(&["a@b"]);
    stage
        .clone(&["create", "nobody", "test1"])
        .refused(2)
        .says(&["nobody"]);
    create(&[]).ok();
    create(&[]).refused(1).says(&["has a clone test1 already"]);
    let start = |more: &[&str]| stage.clone(&[&["start", "main", "test1"], more].concat());
    start(&["--bindir", "/nowhere"]).refused(2).says(&["/nowhere"]);
    stage
        .clone(&["start", "main", "test2"])
        .refused(1)
        .says(&["no clone test2", "clone list"]);

    // A process has a file of the clone open.
    let held = mount.path("main/live/test1/PG_VERSION");
    let mut reader = stage
        .site
        .sh_command(&format!("exec sleep 60 < '{}'", held.display()));
    let mut reader = reader.stdin(Stdio::null()).spawn().expect("Cannot run a shell");
    until("the reader has it open", || {
        stage.clone(&["destroy", "main", "test1"]).code() != Some(0)
    });
    stage
        .clone(&["destroy", "main", "test1"])
        .refused(1)
        .says(&["files in", "are open"]);
    assert_eq!(stage.listed("test1")["running"], false);
    reader.kill().expect("Cannot kill a child");
    reader.wait().expect("Cannot wait for a child");

    // A second mount shows the clone too; only one of them serves it.
    let other = Mount::prepare(&stage.site, "other");
    stage.site.ok(&["mount", &other.text()]);
    stage
        .clone(&["create", "main", "test2"])
        .refused(2)
        .says(&["mounted more than once", "--mount"]);
    stage
        .clone(&["create", "main", "test2", "--mount", &other.text()])
        .ok();
    stage
        .clone(&["start", "main", "test1", "--mount", &mount.text()])
        .ok();
    let there = other.path("main/live/test1/PG_VERSION");
    let busy = stage.site.sh(&format!("cat '{}'", there.display()));
    assert!(busy.stderr.contains("busy"), "{busy}");
    stage
        .site
        .sh(&format!("ls -l '{}'", other.path("main/live").display()))
        .ok();
    stage.clone(&["stop", "main", "test1"]).ok();
    stage.clone(&["reset", "main", "test1"]).ok();
    stage.clone(&["destroy", "main", "test1"]).ok();
    stage.clone(&["destroy", "main", "test2"]).ok();
}

fn a_clone_of_another_user_on_a_mount_is_left_alone(install: &'static Install) {
    let stage = Stage::new(install);
    let mount = Mount::prepare(&stage.site, "mnt");
    let arguments = ["mount", &mount.text(), "--allow-other", "--uid", "nobody"];
    run(&mut stage.site.own_barmanfs_command(&arguments)).ok();
    std::fs::create_dir(mount.path("main/live/test1")).expect("Cannot make a clone");
    std::fs::read(mount.path("main/live/test1/PG_VERSION")).expect("Cannot look into the clone");
    stage
        .clone(&["destroy", "main", "test1"])
        .refused(1)
        .says(&[&mount.text(), "only user nobody can ask"]);
    let released = mount.path(".barmanfs/released/main/test1");
    until("root has it let go", || released.exists());
    stage.clone(&["destroy", "main", "test1"]).ok();
}

fn clones_do_not_exceed_their_limits(install: &'static Install) {
    let stage = Stage::new(install);
    stage.configure("clone_max_count = 2\nclone_max_size = 4M\n");
    let mount = Mount::new(&stage.site);
    stage.clone(&["create", "main", "a"]).ok();
    stage.clone(&["create", "main", "b"]).ok();
    stage
        .clone(&["create", "main", "c"])
        .refused(1)
        .says(&["has 2 already", "clone_max_count"]);
    let by_hand = mount.path("main/live/c");
    let refused = stage.site.sh(&format!("mkdir '{}'", by_hand.display()));
    assert!(refused.stderr.contains("quota"), "{refused}");
    assert_eq!(stage.listed("a")["max_bytes"], 4 << 20);
    let file = mount.path("main/live/a/large");
    let full = stage
        .site
        .sh(&format!("head -c 8000000 /dev/zero > '{}'", file.display()));
    assert!(full.stderr.contains("No space left"), "{full}");
    stage
        .site
        .sh(&format!(
            "rm '{}' && echo small > '{}'",
            file.display(),
            file.display()
        ))
        .ok();
    stage.clone(&["destroy", "main", "b"]).ok();
    stage.clone(&["create", "main", "c"]).ok();
}

/// The limit in force is that of the configuration when a mount reads it, not when the clone was made.
fn a_full_clone_continues_when_its_limit_is_raised(install: &'static Install) {
    let stage = Stage::new(install);
    stage.configure("clone_max_size = 48M\n");
    let mount = Mount::new(&stage.site);
    stage
        .clone(&["create", "main", "full", "--start", "--replay"])
        .ok();
    let (sockets, port) = stage.reached_at("full");
    let psql = stage.install.program("psql");
    let psql = format!(
        "{} -h '{sockets}' -p {port} -U postgres -XAtq postgres",
        psql.display()
    );
    stage
        .site
        .sh(&format!(
            "{psql} -c 'CREATE TABLE kept AS SELECT 1 AS n; CHECKPOINT'"
        ))
        .ok();
    let filled = stage.site.sh(&format!(
        "{psql} -c \"CREATE TABLE large AS SELECT repeat('x', 900) AS t FROM generate_series(1, 200000)\""
    ));
    assert!(filled.code() != Some(0), "{filled}");
    // The server has no room to shut down cleanly.
    if let Some(process) = stage.listed("full")["process"].as_u64() {
        stage.site.sh(&format!("kill -QUIT {process}"));
    }
    until("the server is gone", || stage.listed("full")["running"] == false);
    // Fill it to the last byte.
    let file = mount.path("main/live/full/ballast");
    let full = stage.site.sh(&format!(
        "cat /dev/zero > '{0}'; cat /dev/zero > '{0}2'",
        file.display()
    ));
    assert!(full.stderr.contains("No space left"), "{full}");
    mount.unmount();
    stage.configure("clone_max_size = 2G\n");
    let mount = Mount::prepare(&stage.site, "again");
    stage.site.ok(&["mount", &mount.text()]);
    stage.clone(&["start", "main", "full"]).ok();
    assert_eq!(stage.listed("full")["max_bytes"], 2_u64 << 30);
    assert_eq!(stage.query("full", "SELECT n FROM kept"), "1");
    stage.query(
        "full",
        "CREATE TABLE more AS SELECT repeat('y', 900) FROM generate_series(1, 20000); CHECKPOINT",
    );
    stage.clone(&["stop", "main", "full"]).ok();
    mount.unmount();
    // And the other way round: existing data can be read, and more is refused.
    stage.configure("clone_max_size = 1M\n");
    let mount = Mount::prepare(&stage.site, "once-more");
    stage.site.ok(&["mount", &mount.text()]);
    let write = format!("echo x > '{}'", mount.path("main/live/full/x").display());
    assert!(stage.site.sh(&write).stderr.contains("No space left"));
    stage.clone(&["destroy", "main", "full"]).ok();
    mount.unmount();
}

fn a_copy_of_a_clone_is_independent(install: &'static Install) {
    let mut stage = Stage::new(install);
    stage.own = true;
    let mount = Mount::for_all(&stage.site);
    stage.clone(&["create", "main", "one", "--replay"]).ok();
    stage.query("one", "CREATE TABLE kept AS SELECT 1 AS n");
    stage
        .clone(&["create", "main", "two", "--from", "one"])
        .refused(1)
        .says(&["runs on clone one"]);
    stage.clone(&["stop", "main", "one"]).ok();
    // The kernel's cached data of a clone stays valid while the mount releases it, even for a process whose working
    // directory is in the clone.
    let inside = mount.path("main/live/one/base");
    let waiting = format!(
        "cd '{}' && cat 1/PG_VERSION && read line; cat 1/PG_VERSION",
        inside.display()
    );
    let mut reader = stage.site.sh_command(&waiting);
    let mut reader = reader
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Cannot run a shell");
    let known = stage
        .site
        .sh(&format!("cd '{}' && ls -lRi", inside.display()))
        .ok()
        .text();
    stage
        .clone(&["create", "main", "two", "--from", "one", "--start"])
        .ok();
    assert_eq!(stage.listed("two")["copied_from"], "one");
    drop(reader.stdin.take());
    let read = reader.wait_with_output().expect("Cannot wait for a child");
    let version = format!("{}\n", install.major);
    assert_eq!(String::from_utf8_lossy(&read.stdout), version.repeat(2));
    let again = stage
        .site
        .sh(&format!("cd '{}' && ls -lRi", inside.display()))
        .ok()
        .text();
    assert_eq!(again, known);
    stage.clone(&["start", "main", "one"]).ok();
    stage.query("two", "INSERT INTO kept VALUES (2)");
    transact_on(&stage, &mount, "two");
    assert_eq!(stage.query("one", "SELECT count(*) FROM kept"), "1");
    assert_eq!(stage.query("two", "SELECT count(*) FROM kept"), "2");
    stage.clone(&["destroy", "main", "one", "--stop"]).ok();
    stage.clone(&["stop", "main", "two"]).ok();
    stage.clone(&["start", "main", "two", "--replay"]).ok();
    assert_eq!(stage.query("two", "SELECT count(*) FROM kept"), "2");
    stage.clone(&["reset", "main", "two", "--stop"]).ok();
    stage.clone(&["start", "main", "two", "--replay"]).ok();
    assert_eq!(stage.query("two", "SELECT to_regclass('kept') IS NULL"), "t");
    stage.clone(&["stop", "main", "two"]).ok();
}

fn a_server_that_outlived_its_mount_is_stopped(install: &'static Install) {
    let mut stage = Stage::new(install);
    stage.own = true;
    let mut mount = Mount::for_all(&stage.site);
    stage.clone(&["create", "main", "test1", "--replay"]).ok();
    let process = stage.listed("test1")["process"].to_string();
    // After a checkpoint nothing is left to write: a failed write would end the server.
    stage.query("test1", "CHECKPOINT");
    mount.kill();
    drop(mount);
    let mut mount = Mount::for_all(&stage.site);
    assert!(is_alive(&process), "it was idle, and has noticed nothing");

    stage
        .clone(&["start", "main", "test1"])
        .refused(1)
        .says(&[&process, "barmanfs clone stop"]);
    assert_eq!(stage.listed("test1")["outlived_its_mount"], true);
    stage.clone(&["list"]).ok().says(&["without its mount"]);
    stage.clone(&["stop", "main", "test1"]).ok().says(&["Stopped"]);
    assert!(!is_alive(&process));
    stage.clone(&["start", "main", "test1"]).ok().says(&["psql"]);
    assert_eq!(stage.query("test1", "SELECT 1"), "1");
    stage.clone(&["stop", "main", "test1"]).ok();

    // The same, but nothing has accessed the clone since.
    stage.clone(&["start", "main", "test1"]).ok();
    let process = stage.listed("test1")["process"].to_string();
    stage.query("test1", "CHECKPOINT");
    mount.kill();
    drop(mount);
    let _mount = Mount::for_all(&stage.site);
    stage.clone(&["stop", "main", "test1"]).ok().says(&["Stopped"]);
    assert!(!is_alive(&process));
}

/// A clone whose server has lost its mount, and the dead mount.
fn lost_server(stage: &Stage) -> (Mount<'_>, String) {
    let mut mount = Mount::for_all(&stage.site);
    stage
        .clone(&["create", "main", "test1", "--start", "--replay"])
        .ok();
    let process = stage.listed("test1")["process"].to_string();
    // After a checkpoint nothing is left to write: a failed write would end the server.
    stage.query("test1", "CHECKPOINT");
    mount.kill();
    (mount, process)
}

fn a_server_is_found_although_no_mount_is_left(install: &'static Install) {
    let mut stage = Stage::new(install);
    stage.own = true;
    let (mount, process) = lost_server(&stage);
    // The dead mount is still there.
    assert_eq!(stage.listed("test1")["outlived_its_mount"], true);
    stage.clone(&["list"]).ok().says(&["without its mount"]);
    stage
        .clone(&["destroy", "main", "test1"])
        .refused(1)
        .says(&[&process, "barmanfs clone stop"]);
    stage
        .clone(&["create", "main", "test2", "--from", "test1"])
        .refused(1)
        .says(&[&process]);
    stage.clone(&["stop", "main", "test1"]).ok().says(&["Stopped"]);
    assert!(!is_alive(&process));
    stage
        .clone(&["stop", "main", "test1"])
        .ok()
        .says(&["No server runs"]);
    stage.clone(&["destroy", "main", "test1"]).ok();
    drop(mount);

    let (mount, process) = lost_server(&stage);
    drop(mount);
    stage.clone(&["destroy", "main", "test1", "--stop"]).ok();
    assert!(!is_alive(&process));

    // A mount that was taken out of sight still serves it: then nothing is known, and that is said.
    let mount = Mount::for_all(&stage.site);
    stage.clone(&["create", "main", "test1", "--start"]).ok();
    let process = stage.listed("test1")["process"].to_string();
    run(Command::new("umount").arg("-l").arg(&mount.point)).ok();
    assert_eq!(stage.listed("test1")["running"], Value::Null);
    stage.clone(&["list"]).ok().says(&["unknown"]);
    for command in ["stop", "destroy"] {
        stage
            .clone(&[command, "main", "test1"])
            .refused(1)
            .says(&["is unknown", "serving it on a mount"]);
    }
    stage.site.sh(&format!("kill -INT {process}")).ok();
    until("it has ended", || !is_alive(&process));
    until("it is destroyed", || {
        stage.clone(&["destroy", "main", "test1"]).code() == Some(0)
    });
}

fn a_clone_is_discarded_although_its_server_does_not_shut_down(install: &'static Install) {
    let mut stage = Stage::new(install);
    stage.own = true;
    let mount = Mount::for_all(&stage.site);
    stage
        .clone(&["create", "main", "test1", "--start", "--replay"])
        .ok();
    let process = stage.listed("test1")["process"].to_string();
    // A checkpoint that does not end, as on a full disk.
    stage
        .site
        .sh(&format!("pkill -STOP -P {process} -f checkpointer"))
        .ok();
    stage
        .clone(&["stop", "main", "test1", "--wait-timeout", "1"])
        .refused(1)
        .says(&["did not stop within", &process]);
    stage.clone(&["destroy", "main", "test1", "--stop"]).ok();
    assert!(!is_alive(&process));
    drop(mount);
}

/// Whether the process exists and has not ended; a zombie has ended.
fn is_alive(process: &str) -> bool {
    state_of(process).is_some_and(|state| state != 'Z')
}

fn a_pid_of_another_users_process_is_no_server(install: &'static Install) {
    let stage = Stage::new(install);
    let mount = Mount::new(&stage.site);
    stage.clone(&["create", "main", "test1"]).ok();
    let clone = mount.path("main/live/test1");
    // A crash left this file. Its process id is that of process 1 now.
    let text = format!(
        "1\\n{}\\n1763700000\\n25432\\n/tmp\\n\\n  0 0\\nready\\n",
        clone.display()
    );
    let leave = format!("printf '{text}' > '{}/postmaster.pid'", clone.display());
    stage.site.sh(&leave).ok();
    assert_eq!(stage.listed("test1")["running"], false);
    mount.unmount();
    let mount = Mount::new(&stage.site);
    stage.clone(&["start", "main", "test1"]).ok().says(&["psql"]);
    assert_eq!(stage.query("test1", "SELECT 1"), "1");
    stage.clone(&["stop", "main", "test1"]).ok();
    mount.unmount();
}

/// Runs transactions on a clone; its sums prove that they are complete.
fn transact_on(stage: &Stage, mount: &Mount<'_>, name: &str) {
    let (sockets, port) = stage.reached_at(name);
    let pgbench = stage.install.program("pgbench");
    let script = format!(
        "{} -h '{sockets}' -p {port} -U postgres -n -t 50 postgres",
        pgbench.display()
    );
    stage.site.sh(&script).ok();
    assert!(mount.is_alive());
    let sums =
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches)";
    assert_eq!(stage.query(name, sums), "t");
}
