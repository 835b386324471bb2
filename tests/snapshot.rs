//! Backups that are read from snapshots of the storage: btrfs on loop devices, the data directory on one disk and a tablespace on
//! another.

use crate::common::load::{Load, assert_sums_agree, fill};
use crate::common::process::run;
use crate::common::registry::topic;
use crate::common::snapshots::{ROWS, TwoDisks, assert_starts};
use crate::common::standby::{catch_up, standby_of};
use crate::common::{Install, Mount, PgServer, Site};
use std::fs;
use std::path::Path;

topic! {
    once a_snapshot_is_read_into_the_repository(as_root),
    once what_is_no_snapshot_of_the_backup_is_refused_by_name(as_root),
    once of_a_standby_no_page_is_newer_than_its_control_file,
}

fn a_snapshot_is_read_into_the_repository(install: &'static Install) {
    let disks = TwoDisks::new(install);
    let (site, server) = (&disks.site, &disks.server);
    let from = disks.snapshot().display().to_string();
    let place = format!("fast:{}", site.path("mnt-fast").display());
    // What others have in the directory of a tablespace is not this server's.
    let beside = |directory: &Path| ["notes", "PG_14_1/5/1"].map(|name| directory.join(name));
    let space = disks.fast.point.join("space");
    fs::create_dir_all(space.join("PG_14_1/5")).unwrap();
    beside(&space)
        .iter()
        .for_each(|path| fs::write(path, "x").unwrap());
    run(std::process::Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(&space))
    .ok();
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
    let spaces = site.list(&raw.join("pg_tblspc"));
    for path in beside(&raw.join("pg_tblspc").join(&spaces[0])) {
        assert!(!path.exists(), "{}", path.display());
    }
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
