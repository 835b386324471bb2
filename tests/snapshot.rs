//! Backups from snapshots of the storage: btrfs on loop devices, the data directory on one disk and a tablespace on another.

use crate::common::load::{Load, assert_sums_agree, fill, transactions};
use crate::common::process::{run, until};
use crate::common::registry::topic;
use crate::common::site::check_line;
use crate::common::snapshots::{Disk, OPTIONS};
use crate::common::standby::{catch_up, standby_of};
use crate::common::{Install, Mount, PgServer, Site};
use std::fs;
use std::path::{Path, PathBuf};

topic! {
    once a_snapshot_is_read_into_the_repository(as_root),
    once what_is_no_snapshot_of_the_backup_is_refused_by_name(as_root),
    once a_snapshot_that_stays_in_the_storage_is_restored_on_its_disks(as_root),
    once the_storage_decides_about_the_record_of_a_snapshot(as_root),
    once of_a_standby_no_page_is_newer_than_its_control_file,
}

/// The name of the check.
const CHECK: &str = "snapshots of the storage";

const ROWS: &str = "SELECT count(*) || ' ' || coalesce(sum(n), 0) FROM there";

/// A server whose data directory is on one disk, and a tablespace on another.
struct TwoDisks {
    site: Site,
    server: PgServer,
    main: Disk,
    fast: Disk,
}

impl TwoDisks {
    fn new(install: &'static Install) -> Self {
        let site = Site::with_repository();
        let (main, fast) = (Disk::new(&site, "disk", 600), Disk::new(&site, "fast", 200));
        let server = PgServer::init(install, &main.point.join("main"), &[]);
        server.configure(&format!(
            "archive_mode = on\narchive_command = '{}'",
            site.archive_command()
        ));
        let mut disks = Self {
            site,
            server,
            main,
            fast,
        };
        disks.write_config("");
        disks.server.start();
        let space = disks.fast.point.join("space");
        fs::create_dir(&space).unwrap();
        crate::common::user::give(&space);
        disks
            .server
            .query(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
        disks
            .server
            .query("CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 20000) n");
        disks.server.query("CREATE UNLOGGED TABLE brief AS SELECT 1 n");
        fill(&disks.server, 1);
        disks
    }

    /// The commands of the storage; `more` are further lines.
    fn write_config(&self, more: &str) {
        let name = "\"$BARMANFS_SNAPSHOT_NAME\"";
        let record = |disk: &Disk, word: &str| {
            format!(
                "printf '{{\"disk\": \"{word}\", \"snapshot\": \"%s\", \"mount_point\": \"{0}\", \"mount_options\": \"%s\"}}\\n' {name} \
                 \"$(findmnt -no OPTIONS '{0}')\"",
                disk.point.display()
            )
        };
        let take = format!(
            "set -e\ntest -d \"$BARMANFS_DATA_DIRECTORY\" && test -d \"$BARMANFS_TABLESPACES\"\n{}\nsleep 1\n{}\n{}\n{}\n",
            self.main.take(name),
            self.fast.take(name),
            record(&self.main, "main"),
            record(&self.fast, "fast")
        );
        self.site.write_file("take.sh", take.as_bytes());
        let snaps = [&self.main, &self.fast].map(|disk| disk.all.join("snaps").display().to_string());
        let mount = format!(
            "set -e\nln -sfn {0}/{name} '{2}'\nln -sfn {1}/{name}/space '{3}'\n",
            snaps[0],
            snaps[1],
            self.snapshot().parent().unwrap().display(),
            self.site.path("mnt-fast").display()
        );
        self.site.write_file("mount.sh", mount.as_bytes());
        let delete = format!(
            "for all in '{}' '{}'; do test ! -d $all/{name} || btrfs -q subvolume delete $all/{name} || exit 1; done\n",
            snaps[0], snaps[1]
        );
        self.site.write_file("delete.sh", delete.as_bytes());
        let script = |name: &str| format!("sh {}", self.site.path(name).display());
        let lines = format!(
            "snapshot_command = {}\nsnapshot_mount_command = {}\nsnapshot_umount_command = rm {} {}\n\
             snapshot_delete_command = {}\nsnapshot_list_command = ls {}\nsnapshot_disks = main, fast\n{more}",
            script("take.sh"),
            script("mount.sh"),
            self.site.path("mnt").display(),
            self.site.path("mnt-fast").display(),
            script("delete.sh"),
            snaps[0]
        );
        // What the test says counts.
        let key = |line: &str| line.split(" = ").next().map(str::to_owned);
        let said: Vec<_> = more.lines().map(key).collect();
        let (usual, more) = lines.split_once("snapshot_disks").unwrap();
        let usual: Vec<&str> = usual.lines().filter(|line| !said.contains(&key(line))).collect();
        let lines = format!("{}\nsnapshot_disks{more}", usual.join("\n"));
        self.site.write_config_of(&self.server, &lines);
    }

    /// The data directory in a mounted snapshot.
    fn snapshot(&self) -> PathBuf {
        self.site.path("mnt/main")
    }

    /// What must be in a copy.
    fn rows(&self) -> String {
        rows(&self.server)
    }

    /// Takes snapshots by hand, with what the server returns in the files NAME.label, NAME.map and NAME.lsn. `before` and
    /// `after` are shell commands before the start and after the end of the backup.
    fn by_hand(&self, name: &str, (before, within, after): (&str, &str, &str)) {
        let file = |what: &str| self.site.path(&format!("{name}.{what}")).display().to_string();
        let script = format!(
            "\\! {before}\nSELECT pg_backup_start('by hand', true);\n\\! {within}\n\
             SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop(false) \\gset\n\\! {after}\n\
             \\o {}\n\\qecho :labelfile\n\\o {}\n\\qecho :spcmapfile\n\\o {}\n\\qecho :lsn\n",
            file("label"),
            file("map"),
            file("lsn")
        );
        let path = self.site.write_file("by_hand.sql", script.as_bytes());
        run(self
            .server
            .client("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f"])
            .arg(path))
        .ok();
    }

    /// Reads the snapshot SNAP by the label of NAME.
    fn read(&self, name: &str, snap: &str, more: &[&str]) -> crate::common::process::Run {
        let file = |what: &str| self.site.path(&format!("{name}.{what}")).display().to_string();
        let lsn = fs::read_to_string(file("lsn")).unwrap();
        let from = self.main.all.join("snaps").join(snap).join("main");
        let from = from.display().to_string();
        let (label, map) = (file("label"), file("map"));
        let words = [
            "backup",
            "main",
            "--from",
            &from,
            "--backup-label",
            &label,
            "--tablespace-map",
            &map,
            "--stop-lsn",
            lsn.trim(),
        ];
        self.site.barmanfs(&[&words[..], more].concat())
    }

    /// `--tablespace` for a snapshot of the second disk.
    fn space(&self, snap: &str) -> String {
        format!(
            "{}/space:{}",
            self.fast.point.display(),
            self.fast.all.join("snaps").join(snap).join("space").display()
        )
    }
}

fn rows(server: &PgServer) -> String {
    format!("{} {}", server.query(ROWS), transactions(server))
}

/// The original's sockets are on the disk, too. It has ended, and its number may not be free yet.
fn forget_sockets(site: &Site, copy: &PgServer) {
    site.sh(&format!("rm -f '{}'/.s.PGSQL.*", copy.sockets().display()))
        .ok();
}

/// Starts a server on a copy, and looks for the rows.
#[track_caller]
fn assert_starts(disks: &TwoDisks, data: &Path, rows_then: &str) -> PgServer {
    let mut copy = PgServer::on(disks.server.install, data);
    copy.configure_auto("archive_mode = off");
    forget_sockets(&disks.site, &copy);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(rows(&copy), rows_then);
    assert_eq!(copy.query("SELECT count(*) FROM brief"), "0");
    assert_sums_agree(&copy);
    copy
}

fn a_snapshot_is_read_into_the_repository(install: &'static Install) {
    let disks = TwoDisks::new(install);
    let (site, server) = (&disks.site, &disks.server);
    let from = disks.snapshot().display().to_string();
    let place = format!("fast:{}", site.path("mnt-fast").display());
    let load = Load::start(server);
    site.ok(&[
        "backup",
        "main",
        "--from",
        &from,
        "--tablespace",
        &place,
        "--fast-checkpoint",
    ]);
    let first = &site.backups()[0];
    assert_eq!(
        (&first["status"], &first["kind"]),
        (&"DONE".into(), &"full".into())
    );
    assert_eq!(first["checksum_failures"], serde_json::json!([]));
    assert_eq!(first["tablespaces"][0]["name"], "fast");
    // The second one takes what is configured, and stores what has changed.
    disks.write_config(&format!(
        "backup_method = snapshot\nsnapshot_directory = {from}\nsnapshot_tablespaces = {place}\n"
    ));
    server.query("INSERT INTO there VALUES (1000000)");
    let id = site.backup();
    load.stop();
    let second = &site.backups()[1];
    let bytes = |key: &str| second[key].as_u64().unwrap();
    assert!(bytes("new_stored_bytes") * 5 < bytes("logical_bytes"), "{second}");
    // Nothing is left in the storage.
    assert_eq!(disks.main.snapshots(site), [""; 0]);
    assert_eq!(disks.fast.snapshots(site), [""; 0]);
    site.ok(&["verify", "main"]);
    let mount = Mount::new(site);
    let raw = site.copy(&mount.path(&format!("main/raw/{id}")), "raw");
    mount.unmount();
    server.verify_backup(&raw, None);
    let manifest = fs::metadata(raw.join("backup_manifest")).unwrap().len();
    assert_eq!(bytes("sent_bytes") + manifest, bytes("logical_bytes"), "{second}");
    for gone in ["postmaster.pid", "pg_replslot/x", "backup_label.old"] {
        assert!(!raw.join(gone).exists(), "{gone}");
    }
    server.query("INSERT INTO there VALUES (2000000)");
    server.query("SELECT pg_create_restore_point('later')");
    let then = disks.rows();
    server.query("INSERT INTO there VALUES (1)");
    server.archive_current_segment();
    let to = site.path("copy").display().to_string();
    site.ok(&[
        "restore",
        "main",
        &id,
        &to,
        "--target-name",
        "later",
        "--target-action",
        "promote",
    ]);
    drop(assert_starts(&disks, &site.path("copy"), &then));
}

fn what_is_no_snapshot_of_the_backup_is_refused_by_name(install: &'static Install) {
    let disks = TwoDisks::new(install);
    let (site, server) = (&disks.site, &disks.server);
    let both = |name: &str| format!("{} && {}", disks.main.take(name), disks.fast.take(name));
    let work = format!(
        "{} -X -q -c \"UPDATE there SET n = n + 1\" -c CHECKPOINT '{}'",
        install.program("psql").display(),
        server.conninfo()
    );
    disks.by_hand(
        "a",
        (
            &both("before"),
            &both("within"),
            &format!("{work} && {}", both("after")),
        ),
    );
    let space = disks.space("within");
    let tablespace = ["--tablespace", space.as_str()];
    disks
        .read("a", "before", &tablespace)
        .refused(1)
        .says(&["before the backup began", "pg_control"]);
    disks
        .read("a", "after", &tablespace)
        .refused(1)
        .says(&["after the backup ended", "pg_control"]);
    let late = disks.space("after");
    disks
        .read("a", "within", &["--tablespace", &late])
        .refused(1)
        .says(&["after the backup ended", "of this disk", "pg_tblspc/"]);
    // The link leads to the live tablespace.
    disks
        .read("a", "within", &[])
        .refused(1)
        .says(&["tablespace", "is not in the snapshot", "--tablespace"]);
    let live = format!(
        "{}/space:{}",
        disks.fast.point.display(),
        disks.main.point.display()
    );
    disks
        .read("a", "within", &["--tablespace", &live])
        .refused(1)
        .says(&["it is not tablespace"]);
    disks
        .read(
            "a",
            "within",
            &[&tablespace[..], &["--tablespace", "slow:/tmp"]].concat(),
        )
        .refused(1)
        .says(&["has no tablespace slow"]);
    // A link that the map names is not there, and one is there that it does not name.
    let cut = |script: &str| {
        let all = disks.main.all.join("snaps");
        run(std::process::Command::new("sh").args([
            "-c",
            &format!(
                "cd '{}' && rm -rf cut && btrfs -q subvolume snapshot within cut && cd cut/main && {script}",
                all.display()
            ),
        ]))
        .ok();
    };
    cut("rm pg_tblspc/*");
    disks
        .read("a", "cut", &[])
        .refused(1)
        .says(&["has no pg_tblspc/", "tablespace_map"]);
    cut("ln -s /tmp pg_tblspc/99999");
    disks
        .read("a", "cut", &tablespace)
        .refused(1)
        .says(&["pg_tblspc/99999", "does not name"]);
    // A volume of its own is an empty directory in the snapshot.
    cut("rm -rf base/5/*");
    disks
        .read("a", "cut", &tablespace)
        .refused(1)
        .says(&["base/5 is empty"]);
    cut("rm global/pg_control");
    disks
        .read("a", "cut", &tablespace)
        .refused(1)
        .says(&["no global/pg_control"]);
    // A page that nothing changed since has another checksum.
    cut("printf x | dd of=base/5/1247 bs=1 seek=9000 conv=notrunc status=none");
    disks.read("a", "cut", &tablespace).refused(3);
    let damaged = site.backups().pop().unwrap();
    let failures = damaged["checksum_failures"].as_array().unwrap();
    assert_eq!(failures.len(), 1, "{damaged}");
    assert!(
        failures[0].as_str().unwrap().starts_with("base/5/1247, block 1"),
        "{damaged}"
    );
    // The server's own directory.
    let from = disks.main.point.join("main").display().to_string();
    let words = ["backup", "main", "--from", &from, "--fast-checkpoint"];
    site.barmanfs(&words).refused(1).says(&["running server"]);
    // Another cluster.
    let mut other = PgServer::init(install, &site.path("other"), &["--wal-segsize=1"]);
    other.start();
    other.stop("fast");
    let stopped = ["label", "map", "lsn"].map(|what| site.path(&format!("a.{what}")));
    let from = site.path("other").display().to_string();
    let lsn = fs::read_to_string(&stopped[2]).unwrap();
    let label = stopped[0].display().to_string();
    let words = [
        "backup",
        "main",
        "--from",
        &from,
        "--backup-label",
        &label,
        "--stop-lsn",
        lsn.trim(),
    ];
    site.barmanfs(&words).refused(1).says(&["system identifier"]);
    // And what is one.
    disks.read("a", "within", &tablespace).ok();
    let good = site.backups().pop().unwrap();
    assert_eq!(good["status"], "DONE");
    let to = site.path("copy").display().to_string();
    site.ok(&[
        "restore",
        "main",
        good["id"].as_str().unwrap(),
        &to,
        "--target-immediate",
        "--target-action",
        "promote",
    ]);
    let mut copy = PgServer::on(install, &site.path("copy"));
    copy.configure_auto("archive_mode = off");
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query(ROWS), "20000 200010000");
}

fn a_snapshot_that_stays_in_the_storage_is_restored_on_its_disks(install: &'static Install) {
    let mut disks = TwoDisks::new(install);
    disks.write_config("backup_method = snapshot\n");
    let load = Load::start(&disks.server);
    let id = disks.site.backup();
    load.stop();
    let (site, server) = (&disks.site, &disks.server);
    let taken = site.backups().pop().unwrap();
    assert_eq!(
        (&taken["kind"], &taken["status"]),
        (&"snapshot".into(), &"DONE".into())
    );
    let name = taken["snapshot"]["name"].as_str().unwrap().to_owned();
    assert_eq!(disks.main.snapshots(site), [name.as_str()]);
    let shown = site.ok(&["show-backup", "main", &id]);
    for word in [
        name.as_str(),
        "noatime",
        "Tablespace",
        "a snapshot of the storage",
    ] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    assert!(site.ok(&["verify", "main"]).contains("Not checked: 1 snapshot"));
    let checked = site.barmanfs(&["check", "main", "--json"]);
    assert_eq!(check_line(&checked, CHECK)["status"], "OK", "{checked}");
    for words in [
        &["list-files", "main", &id][..],
        &["verify", "main", &id, "--boot"],
        &["export", "main", &id, "/nowhere", "--as", "plain"],
    ] {
        site.barmanfs(words).refused(1).says(&["in the storage", &name]);
    }
    let mount = Mount::new(site);
    assert_eq!(site.list(&mount.path("main/raw")), [""; 0]);
    mount.unmount();
    server.query("INSERT INTO there VALUES (2000000)");
    server.query("SELECT pg_create_restore_point('later')");
    let then = disks.rows();
    server.query("INSERT INTO there VALUES (1)");
    server.archive_current_segment();
    disks.server.stop("fast");
    let data = disks.server.data.display().to_string();
    let restore = |more: &[&str]| {
        let words = [
            "restore",
            "main",
            &id,
            &data,
            "--target-name",
            "later",
            "--target-action",
            "promote",
        ];
        disks.site.barmanfs(&[&words[..], more].concat())
    };
    // The disks of the server itself are there: they have gone on.
    restore(&[]).refused(1).says(&["not as the snapshot was taken"]);
    disks.fast.umount();
    restore(&[]).refused(1).says(&["Nothing is mounted at", "fast"]);
    disks.main.umount();
    for disk in [&disks.main, &disks.fast] {
        disk.clone_of(&name, "clone");
    }
    disks.fast.mount("clone", OPTIONS);
    disks.main.mount("clone", "user_subvol_rm_allowed");
    restore(&[]).refused(1).says(&["is mounted without noatime"]);
    disks.main.umount();
    disks.main.mount("clone", OPTIONS);
    let before = disks.site.checksums(Path::new(&data));
    restore(&["--dry-run"]).ok().says(&["would be placed"]);
    restore(&["--no-get-wal"]).refused(2).says(&["--no-get-wal"]);
    let elsewhere = disks.site.path("elsewhere").display().to_string();
    let words = ["restore", "main", &id, &elsewhere, "--target-immediate"];
    disks
        .site
        .barmanfs(&words)
        .refused(1)
        .says(&["is not on a disk of the snapshot"]);
    assert_eq!(disks.site.checksums(Path::new(&data)), before);
    restore(&[]).ok();
    let names = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
    let (before, after) = (names(&before), names(&disks.site.checksums(Path::new(&data))));
    let mut changed: Vec<&str> = after
        .iter()
        .filter(|line| !before.contains(line))
        .filter_map(|line| line.split("./").nth(1))
        .collect();
    changed.sort_unstable();
    assert_eq!(
        changed,
        [
            "backup_label",
            "postgresql.auto.conf",
            "recovery.signal",
            "tablespace_map"
        ]
    );
    drop(assert_starts(&disks, Path::new(&data), &then));
    // Clones on which the host has started the server, which went a way of its own.
    for disk in [&disks.main, &disks.fast] {
        disk.umount();
        disk.clone_of(&name, "touched");
        disk.mount("touched", OPTIONS);
    }
    let mut touched = PgServer::on(install, Path::new(&data));
    touched.configure_auto("archive_mode = off");
    forget_sockets(&disks.site, &touched);
    touched.start();
    touched.kill();
    restore(&[]).refused(1).says(&["A server was started"]);
    drop(touched);
    // New clones, over a command that reaches their host.
    for disk in [&disks.main, &disks.fast] {
        disk.umount();
        disk.clone_of(&name, "again");
        disk.mount("again", OPTIONS);
    }
    let near = disks
        .site
        .write_file("near", b"#!/bin/sh\nexec sh -c \"$1\"\n")
        .display()
        .to_string();
    run(std::process::Command::new("chmod").args(["755", &near])).ok();
    let get = format!(
        "{} -c {} get-wal main %f --replay --output-directory . >/dev/null && mv %f %p",
        disks.site.program().display(),
        disks.site.config().display()
    );
    let there = ["--remote-ssh-command", &near, "--restore-command", &get];
    restore(&there).ok();
    drop(assert_starts(&disks, Path::new(&data), &then));
}

fn the_storage_decides_about_the_record_of_a_snapshot(install: &'static Install) {
    let disks = TwoDisks::new(install);
    let site = &disks.site;
    let method = "backup_method = snapshot\nretention_policy = REDUNDANCY 1\n";
    // A command that fails leaves no snapshot and no server in backup mode.
    disks.write_config(&format!("{method}snapshot_command = echo no room >&2; exit 5\n"));
    let failed = site.barmanfs(&["backup", "main", "--fast-checkpoint"]).refused(1);
    failed.says(&["snapshot_command", "ended with code 5", "no room"]);
    disks.write_config(&format!(
        "{method}snapshot_command = sleep 60\nsnapshot_timeout = 1\n"
    ));
    site.barmanfs(&["backup", "main", "--fast-checkpoint"])
        .refused(1)
        .says(&["took longer"]);
    disks.write_config(&format!("{method}snapshot_command = true\n"));
    site.barmanfs(&["backup", "main", "--fast-checkpoint"])
        .refused(1)
        .says(&["named no disk"]);
    disks.write_config(method);
    assert_eq!(disks.main.snapshots(site), [""; 0]);
    let (first, second) = (site.backup(), site.backup());
    let names = disks.main.snapshots(site);
    assert_eq!(names.len(), 2);
    // What cannot be deleted in the storage stays a backup.
    disks.write_config(&format!("{method}snapshot_delete_command = false\n"));
    site.barmanfs(&["delete", "main", &first]).refused(1).says(&[
        &first,
        "is kept",
        "snapshot_delete_command",
    ]);
    site.ok(&["retention", "main", "--enforce"]);
    assert_eq!(
        site.backups()
            .iter()
            .filter(|backup| backup["status"] == "DONE")
            .count(),
        2
    );
    disks.write_config(method);
    site.ok(&["retention", "main", "--enforce"]);
    assert_eq!(disks.main.snapshots(site), names[1..]);
    assert_eq!(disks.fast.snapshots(site), names[1..]);
    let done = |site: &Site| -> Vec<String> {
        let backups = site.backups();
        let done = backups.iter().filter(|backup| backup["status"] == "DONE");
        done.map(|backup| backup["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(done(site), [second.as_str()]);
    // One that is gone from the storage is no backup.
    let all = disks.main.all.join("snaps").join(&names[1]);
    run(std::process::Command::new("btrfs")
        .args(["-q", "subvolume", "delete"])
        .arg(all))
    .ok();
    let checked = site.barmanfs(&["check", "main", "--json"]);
    let line = check_line(&checked, CHECK);
    assert_eq!(line["status"], "FAILED", "{checked}");
    assert!(line["hint"].as_str().unwrap().contains(&names[1]), "{line}");
    // Nothing is deleted for its sake. A scheduled backup is taken by the same method.
    site.ok(&["cron", "--task", "backup", "--server", "main"]);
    until("the backup is taken", || done(site).len() == 2);
    let third = site.backups().pop().unwrap();
    assert_eq!(third["kind"], "snapshot");
    let enforced = site.barmanfs(&["retention", "main", "--enforce"]);
    enforced.refused(3).says(&["is gone from the storage", &names[1]]);
    disks.write_config(&format!("{method}snapshot_delete_command = false\n"));
    site.ok(&["delete", "main", &second, "--force"]);
    assert_eq!(done(site), [third["id"].as_str().unwrap()]);
}

/// A copy of a standby whose processes stand still is what a storage would freeze. One file is copied later, as from another disk.
fn of_a_standby_no_page_is_newer_than_its_control_file(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    let standby = standby_of(&site, &server, install, "standby");
    let table = server.query("SELECT pg_relation_filepath('pgbench_branches')");
    catch_up(&server, &standby);
    let data = standby.data.display().to_string();
    let frozen = site.write_file(
        "freeze.sh",
        format!(
            "set -e\npid=$(head -1 {data}/postmaster.pid)\nall=\"$pid $(cat /proc/$pid/task/$pid/children)\"\n\
             kill -STOP $all\ncp -a {data} {0}\nkill -CONT $all\n",
            site.path("frozen").display()
        )
        .as_bytes(),
    );
    let sql = |name: &str| install.program(name).display().to_string();
    let later = site.write_file(
        "later.sh",
        format!(
            "set -e\n{psql} -X -q -c 'UPDATE pgbench_branches SET bbalance = bbalance' '{primary}'\n\
             lsn=$({psql} -XAtc 'SELECT pg_current_wal_flush_lsn()' '{primary}')\n\
             until test \"$({psql} -XAtc \"SELECT pg_last_wal_replay_lsn() >= '$lsn'\" '{standby}')\" = t; do sleep 0.1; done\n\
             {psql} -X -q -c CHECKPOINT '{primary}'\n\
             lsn=$({psql} -XAtc 'SELECT pg_current_wal_flush_lsn()' '{primary}')\n\
             until test \"$({psql} -XAtc \"SELECT pg_last_wal_replay_lsn() >= '$lsn'\" '{standby}')\" = t; do sleep 0.1; done\n\
             {psql} -X -q -c CHECKPOINT '{standby}'\ncp -a {data}/{table} {late}\n",
            psql = sql("psql"),
            primary = server.conninfo(),
            standby = standby.conninfo(),
            late = site.path("late").display()
        )
        .as_bytes(),
    );
    let file = |name: &str| site.path(name).display().to_string();
    let script = format!(
        "SELECT pg_backup_start('by hand', true);\n\\! sh {} && sh {}\n\
         SELECT lsn, labelfile FROM pg_backup_stop(false) \\gset\n\
         \\o {}\n\\qecho :labelfile\n\\o {}\n\\qecho :lsn\n",
        frozen.display(),
        later.display(),
        file("label"),
        file("lsn")
    );
    let script = site.write_file("by_hand.sql", script.as_bytes());
    let mut psql = standby.client("psql");
    run(psql
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f"])
        .arg(script))
    .ok();
    server.archive_current_segment();
    let lsn = fs::read_to_string(file("lsn")).unwrap();
    let (from, label) = (file("frozen"), file("label"));
    let words = [
        "backup",
        "main",
        "--from",
        &from,
        "--backup-label",
        &label,
        "--stop-lsn",
        lsn.trim(),
    ];
    site.ok(&words);
    let good = site.backups().pop().unwrap();
    assert_eq!(
        (&good["status"], &good["from_standby"]),
        (&"DONE".into(), &true.into())
    );
    let copied = format!("cp '{}' '{from}/{table}'", file("late"));
    site.sh(&copied).ok();
    site.barmanfs(&words)
        .refused(1)
        .says(&["newer than that of the data directory", &table]);
    let to = file("copy");
    let id = good["id"].as_str().unwrap();
    site.ok(&[
        "restore",
        "main",
        id,
        &to,
        "--target-immediate",
        "--target-action",
        "promote",
    ]);
    let mut copy = PgServer::on(install, Path::new(&to));
    copy.start();
    copy.wait_until_promoted();
    assert_sums_agree(&copy);
}
