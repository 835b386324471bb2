//! Archived files with a content that does not fit their name, or that arrived under a name in use. The kind: a file is
//! acknowledged although it is unusable, and from then on it blocks all others. `.history` and `.backup` files are
//! parsed before they are acknowledged. A bad one in the archive makes only itself unreadable. A person can look at
//! quarantined files, and release or delete them.

use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};
use crate::damage::flip_byte;
use std::fs;
use std::path::PathBuf;

topic! {
    once files_are_parsed_before_they_are_acknowledged,
    with_postgres files_that_postgresql_writes_are_accepted,
    once a_history_that_cannot_be_read_makes_only_itself_unreadable,
    once a_wrong_history_is_taken_out_by_force,
    once a_wrong_history_costs_no_backup,
    once wal_without_its_history_is_no_success,
    once quarantined_files_are_shown_and_deleted,
    once a_quarantined_file_replaces_only_an_unusable_one,
}

fn archived(site: &Site, server: &PgServer) -> (String, Vec<u8>) {
    server.query(
        "CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler SELECT generate_series(1, 2000)",
    );
    let name = server.archive_current_segment();
    let bytes = site.barmanfs(&["get-wal", "main", &name]).ok().stdout;
    (name, bytes)
}

fn forget_catalog(site: &Site) {
    site.sh(&format!(
        "rm -f '{}'/catalog.sqlite*",
        site.repository().display()
    ))
    .ok();
    site.ok(&["rebuild-catalog"]);
}

/// The pack that `work` adds.
fn pack_of(site: &Site, work: impl FnOnce()) -> PathBuf {
    let before = site.packs();
    work();
    let new: Vec<_> = site
        .packs()
        .into_iter()
        .filter(|pack| !before.contains(pack))
        .collect();
    let [pack] = new.as_slice() else {
        panic!("one pack was expected: {new:?}")
    };
    pack.clone()
}

fn files_are_parsed_before_they_are_acknowledged(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    server.archive_current_segment();
    let label = "START WAL LOCATION: 0/F2000028 (file 0000000100000000000000F2)\n";
    let rest =
        "STOP WAL LOCATION: 0/F2000100 (file 0000000100000000000000F2)\nCHECKPOINT LOCATION: 0/2000060\n";
    let huge = "1\t0/3000000\treason\n".repeat(70_000);
    let bad: &[(&str, &[u8])] = &[
        ("00000002.history", b"hello\n"),
        ("00000002.history", b""),
        ("00000002.history", b"\n"),
        ("00000002.history", b"1\t0/3000"),
        ("00000002.history", b"2\t0/3000000\tits own\n"),
        ("00000002.history", b"3\t0/3000000\ta later one\n"),
        ("00000004.history", b"2\t0/3000000\tr\n1\t0/4000000\tr\n"),
        ("00000004.history", b"1\t0/5000000\tr\n2\t0/4000000\tr\n"),
        ("00000002.history", &[0; 8192]),
        ("00000002.history", b"\xff\xfe\x01\n"),
        ("00000002.history", huge.as_bytes()),
        ("00000001.history", b"1\t0/3000000\tr\n"),
        ("0000000100000000000000F2.00000028.backup", b"hello\n"),
        ("0000000100000000000000F2.00000028.backup", b""),
        ("0000000100000000000000F2.00000028.backup", label.as_bytes()),
    ];
    for (name, bytes) in bad {
        let path = site.write_file(name, bytes);
        let run = site.barmanfs(&["wal-archive", "main", &path.to_string_lossy()]);
        run.refused(1).says(&[name]);
        assert_eq!(site.barmanfs(&["get-wal", "main", name]).code(), Some(1));
    }
    site.ok(&["timeline", "main"]);
    site.ok(&["explain", "main", "now"]);
    // In any encoding of the server's messages.
    for (name, bytes) in [
        (
            "00000002.history",
            &b"1\t0/3000000\tat restore point \"caf\xe9\"\n"[..],
        ),
        (
            "0000000100000000000000F2.00000028.backup",
            (label.to_owned() + rest).as_bytes(),
        ),
    ] {
        let path = site.write_file(name, bytes);
        site.ok(&["wal-archive", "main", &path.to_string_lossy()]);
        assert!(site.barmanfs(&["get-wal", "main", name]).ok().stdout == bytes);
    }
}

/// The server's own archiver archives a history and a backup file of each version.
fn files_that_postgresql_writes_are_accepted(install: &'static Install) {
    let (site, mut server) = Site::with_server(install);
    site.backup();
    server.stop("fast");
    site.sh(&format!("touch '{}/standby.signal'", server.data.display()))
        .ok();
    server.start();
    server.query("SELECT pg_promote()");
    server.wait_until_promoted();
    server.query("SELECT pg_create_restore_point('é\t%')");
    site.backup();
    server.archive_current_segment();
    assert_eq!(server.query("SELECT failed_count FROM pg_stat_archiver"), "0");
    let mount = Mount::new(&site);
    let names = site.list(&mount.path("main/wal"));
    assert!(names.contains(&"00000002.history".into()), "{names:?}");
    assert_eq!(
        names.iter().filter(|name| name.ends_with(".backup")).count(),
        2,
        "{names:?}"
    );
    mount.unmount();
}

fn a_history_that_cannot_be_read_makes_only_itself_unreadable(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    server.query("SELECT pg_create_restore_point('before')");
    site.backup();
    server.query("SELECT pg_create_restore_point('after')");
    server.archive_current_segment();
    let good = site.write_file(
        "00000002.history",
        b"1\t0/2000000\tno recovery target specified\n",
    );
    let pack = pack_of(&site, || {
        site.ok(&["wal-archive", "main", &good.to_string_lossy()]);
    });
    flip_byte(&pack, 34);

    let says = ["00000002.history", "quarantine"];
    site.barmanfs(&["timeline", "main"]).ok().says(&says);
    site.barmanfs(&["explain", "main", "now"]).ok().says(&says);
    site.ok(&["explain", "main", "name:after"]);
    site.barmanfs(&["explain", "main", "now,timeline=2"])
        .refused(1)
        .says(&says);
    site.barmanfs(&["check", "main"]).refused(3).says(&says);
    site.ok(&["list-backups", "main"]);
    let mount = Mount::new(&site);
    site.sh(&format!("ls '{}'", mount.path("main/pitr").display()))
        .ok();

    // Removed from the archive for good.
    site.barmanfs(&["quarantine", "main", "take", "000000010000000000000001"])
        .refused(1)
        .says(&["as it should be"]);
    site.barmanfs(&["quarantine", "main", "take", "00000003.history"])
        .refused(1)
        .says(&["not in the archive"]);
    site.ok(&["quarantine", "main", "take", "00000002.history"]);
    assert_eq!(
        site.barmanfs(&["get-wal", "main", "00000002.history"]).code(),
        Some(1)
    );
    // PostgreSQL asks for it before it chooses the next timeline.
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/pitr/name:after"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    copy.stop("fast");
    mount.unmount();
    let listed = site.json(&["quarantine", "main", "list"]);
    assert_eq!(listed["files"][0]["name"], "00000002.history", "{listed}");
    forget_catalog(&site);
    assert_eq!(site.json(&["quarantine", "main", "list"]), listed);
    let timeline = site.ok(&["timeline", "main"]);
    assert!(!timeline.contains("cannot be read"), "{timeline}");
    // The right file is archived again, and the other one deleted.
    site.ok(&["wal-archive", "main", &good.to_string_lossy()]);
    site.ok(&["quarantine", "main", "delete", "00000002.history"]);
    site.ok(&["sweep"]);
    site.ok(&["verify"]);
}

/// It parses, but no server ever had such a timeline.
fn a_wrong_history_is_taken_out_by_force(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    let segment = server.archive_current_segment();
    let archive = |name: &str, text: &[u8]| {
        let path = site.write_file(name, text);
        site.ok(&["wal-archive", "main", &path.to_string_lossy()]);
    };
    archive("00000005.history", b"1\t0/B00000\tx\n");
    assert!(
        site.barmanfs(&["check", "main"])
            .all()
            .lines()
            .any(|line| line.contains("quarantine") && line.contains("FAILED"))
    );
    let take = ["quarantine", "main", "take", "00000005.history"];
    site.barmanfs(&take)
        .refused(1)
        .says(&["as it should be", "--force"]);

    // A segment of the timeline is archived: the history file says where it came from.
    let bytes = site.barmanfs(&["get-wal", "main", &segment]).ok().stdout;
    let other = format!("00000007{}", &segment[8..]);
    archive("00000007.history", b"1\t0/B00000\tx\n");
    archive(&other, &bytes);
    site.barmanfs(&["quarantine", "main", "take", "00000007.history", "--force"])
        .refused(1)
        .says(&["00000007.history", &other]);
    // Only files that say nothing about archived WAL.
    site.barmanfs(&["quarantine", "main", "take", &segment, "--force"])
        .refused(1)
        .says(&["as it should be"]);

    site.barmanfs(&[&take[..], &["--force"]].concat()).ok();
    assert_eq!(
        site.barmanfs(&["get-wal", "main", "00000005.history"]).code(),
        Some(1)
    );
    let timeline = site.ok(&["timeline", "main"]);
    assert!(!timeline.contains("imeline 5"), "{timeline}");
    let listed = site.json(&["quarantine", "main", "list"]);
    assert_eq!(listed["files"][0]["name"], "00000005.history", "{listed}");
    site.ok(&["quarantine", "main", "delete", "00000005.history"]);
    site.ok(&["verify"]);
}

/// The kind: what cannot be determined counts as nothing to lose.
fn a_wrong_history_costs_no_backup(install: &'static Install) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    let ids = [site.backup(), site.backup(), site.backup()];
    server.archive_current_segment();
    site.barmanfs(&["check", "main"]).says(&["recovery to now: OK"]);
    // The timeline leaves before the first backup ends.
    let path = site.write_file("00000002.history", b"1\t0/100000\tx\n");
    site.ok(&["wal-archive", "main", &path.to_string_lossy()]);
    site.barmanfs(&["check", "main"]).refused(3).says(&[
        "recovery to now: FAILED",
        "explain main now",
        "timeline: FAILED",
    ]);
    site.barmanfs(&["delete", "main", "latest"])
        .refused(1)
        .says(&[&ids[2], "explain main now", "--force"]);
    assert_eq!(site.backup_ids(), ids);
    site.ok(&["delete", "main", "oldest"]);
    site.ok(&["quarantine", "main", "take", "00000002.history", "--force"]);
    site.barmanfs(&["check", "main"]).says(&["recovery to now: OK"]);
    site.ok(&["delete", "main", "latest"]);
    assert_eq!(site.backup_ids(), [ids[1].clone()]);
}

fn wal_without_its_history_is_no_success(install: &'static Install) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    site.backup();
    let segment = server.archive_current_segment();
    let bytes = site.barmanfs(&["get-wal", "main", &segment]).ok().stdout;
    let other = site.write_file(&format!("00000002{}", &segment[8..]), &bytes);
    site.ok(&["wal-archive", "main", &other.to_string_lossy()]);
    site.barmanfs(&["check", "main"]).refused(3).says(&[
        "recovery to now: FAILED",
        "00000002.history",
        "wal-archive main pg_wal/00000002.history",
        "backup main",
    ]);
}

fn quarantined_files_are_shown_and_deleted(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    assert_eq!(
        site.json(&["quarantine", "main", "list"])["files"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    let (name, bytes) = archived(&site, &server);
    let mut other = bytes.clone();
    other[0x0012_3456] ^= 1;
    let path = site.write_file(&name, &other);
    site.barmanfs(&["wal-archive", "main", &path.to_string_lossy()])
        .refused(1)
        .says(&[&name]);

    let listed = site.json(&["quarantine", "main", "list"]);
    let id = listed["files"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(listed["files"][0]["size_bytes"], bytes.len());
    site.barmanfs(&["quarantine", "main", "list"])
        .ok()
        .says(&[&name, &id[..8]]);
    site.barmanfs(&["check", "main"])
        .refused(3)
        .says(&["quarantined WAL: FAILED (1 file"]);
    let shown = site.json(&["quarantine", "main", "show", &name]);
    assert_eq!(shown["comparison"]["offset"], 0x0012_3456, "{shown}");
    let lsn = shown["comparison"]["lsn"].as_str().unwrap();
    assert!(lsn.ends_with("123456"), "{lsn}");
    site.barmanfs(&["quarantine", "main", "show", &id[..8]])
        .ok()
        .says(&[&name, lsn, &0x0012_3456.to_string()]);
    for replace in [&[][..], &["--replace"]] {
        let release = [&["quarantine", "main", "release", &name][..], replace].concat();
        site.barmanfs(&release).refused(1).says(&["as it should be"]);
    }
    site.barmanfs(&["quarantine", "main", "delete", "nothing"])
        .refused(1)
        .says(&["nothing", "list"]);
    site.ok(&["quarantine", "main", "delete", &id]);
    for _ in 0..2 {
        assert_eq!(
            site.json(&["quarantine", "main", "list"])["files"]
                .as_array()
                .unwrap()
                .len(),
            0
        );
        assert!(site.barmanfs(&["get-wal", "main", &name]).ok().stdout == bytes);
        forget_catalog(&site);
    }
    site.ok(&["sweep"]);
    site.ok(&["verify"]);
}

fn a_quarantined_file_replaces_only_an_unusable_one(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    server.archive_current_segment();
    let before = site.packs();
    let (name, bytes) = archived(&site, &server);
    let pack = site
        .packs()
        .into_iter()
        .find(|pack| !before.contains(pack) && fs::metadata(pack).unwrap().len() > 20_000)
        .expect("the segment's pack");
    let mut other = bytes.clone();
    // In the window that is damaged below: all other windows are stored once for both files.
    other[0x2345] ^= 1;
    let path = site.write_file(&name, &other);
    site.barmanfs(&["wal-archive", "main", &path.to_string_lossy()])
        .refused(1);
    // The archived file is damaged; the quarantined one has its own copy of the damaged window.
    flip_byte(&pack, 40);
    let damaged = site.barmanfs(&["get-wal", "main", &name]);
    if damaged.code() == Some(0) {
        panic!("The archived segment still reads: {damaged}");
    }
    site.barmanfs(&["verify"]).refused(3);
    site.barmanfs(&["quarantine", "main", "release", &name])
        .refused(1)
        .says(&["--replace"]);
    site.ok(&["quarantine", "main", "release", &name, "--replace"]);
    for _ in 0..2 {
        assert!(site.barmanfs(&["get-wal", "main", &name]).ok().stdout == other);
        let listed = site.json(&["quarantine", "main", "list"]);
        assert_eq!(listed["files"].as_array().unwrap().len(), 1, "{listed}");
        forget_catalog(&site);
    }
    site.ok(&["quarantine", "main", "delete", &name]);
    // Nothing of it is left, and it blocks no other file of that name.
    site.ok(&["wal-archive", "main", &path.to_string_lossy()]);
    site.ok(&["sweep"]);
    site.ok(&["verify"]);
}
