//! Backups that stay in the storage as snapshots: what is recorded of them, their restore on cloned disks, and what is left of them.

use crate::common::Load;
use crate::common::process::{run, until};
use crate::common::registry::topic;
use crate::common::site::check_line;
use crate::common::snapshots::{OPTIONS, TwoDisks, assert_starts, forget_sockets};
use crate::common::{Install, Mount, PgServer, Site};
use std::fs;
use std::path::Path;

topic! {
    once a_snapshot_that_stays_in_the_storage_is_restored_on_its_disks(as_root),
    once the_storage_decides_about_the_record_of_a_snapshot(as_root),
}

/// The name of the check.
const CHECK: &str = "snapshots of the storage";

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
    let home = site.path("barman").display().to_string();
    let all = site.barmanfs(&["export", "main", "all", &home, "--as", "barman-home"]);
    all.refused(1).says(&["Left out", &id, "in the storage", &name]);
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
    // A script before the restore has changed what is there.
    let label = Path::new(&data).join("backup_label");
    disks.write_config(&format!(
        "backup_method = snapshot\npre_recovery_script = echo other > {}\n",
        label.display()
    ));
    restore(&[]).refused(1).says(&["backup_label"]);
    fs::remove_file(&label).unwrap();
    disks.write_config("backup_method = snapshot\n");
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
    touched.wait_for_predecessor();
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
    // A kill when the storage has it: it is named, and the next backup deletes it.
    let place = |name: &str| site.path(name).display().to_string();
    disks.write_config(&format!(
        "{method}snapshot_command = sh {} && touch {} && until test -e {}; do sleep 0.1; done\n",
        place("take.sh"),
        place("taken"),
        place("killed")
    ));
    let mut killed = site.spawn(&["backup", "main", "--fast-checkpoint"]);
    until("the storage has it", || site.path("taken").exists());
    killed.kill().unwrap();
    killed.wait().unwrap();
    site.write_file("killed", b"");
    disks.write_config(method);
    let left = disks.main.snapshots(site);
    assert_eq!(left.len(), 1);
    let checked = site.barmanfs(&["check", "main", "--json"]);
    let line = check_line(&checked, CHECK);
    assert!(
        line["status"] == "WARNING" && line["hint"].as_str().unwrap().contains(&left[0]),
        "{checked}"
    );
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
    let kept = site.barmanfs(&["retention", "main", "--enforce"]).refused(3);
    kept.says(&[&first, "is not deleted", "snapshot_delete_command"]);
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
