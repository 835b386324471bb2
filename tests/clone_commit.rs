//! A clone becomes a backup or a plain directory; both start at once. Of a backup only the changes are stored.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::disk::SmallDisk;
use crate::common::load::{assert_sums_agree, fill, transact, transactions};
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};

topic! {
    with_postgres a_clone_that_was_shut_down_becomes_a_backup_of_what_changed(as_root),
    edges a_clone_that_crashed_becomes_a_backup_that_recovers(as_root),
    once a_backup_of_a_clone_is_never_used_for_the_server(as_root),
    once an_exported_clone_is_a_plain_directory(as_root),
    once a_running_clone_is_left_alone(as_root),
    edges a_clones_tablespaces_become_directories_or_are_refused(as_root),
    once a_killed_commit_leaves_no_backup_and_can_be_repeated(as_root),
}

const PAGE: usize = 8192;

/// Bytes that directories and listings, a manifest and a segment of WAL (here of 1 MiB) add.
const BESIDES_PAGES: u64 = 1 << 20;

/// A site with a backup of a filled database, for a mount and clones.
fn filled_site(install: &'static Install) -> (Site, PgServer) {
    let (site, primary) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    fill(&primary, 4);
    transact(&primary, 100);
    site.backup();
    (site, primary)
}

/// Makes a clone, starts it, and waits until it has reached the end of its recovery.
#[track_caller]
fn started_clone(site: &Site, mount: &Mount, install: &'static Install, of: &str) -> PgServer {
    site.sh(&format!(
        "mkdir '{}'",
        mount.path(&format!("main/live/test1{of}")).display()
    ))
    .ok();
    let mut clone = PgServer::on_mount(install, &mount.path("main/live/test1"), &site.path("test1"));
    clone.start();
    clone.wait_until_promoted();
    clone
}

/// Unmounts root's mount cleanly: all writes to its clones are on disk, and it no longer serves them.
#[track_caller]
fn end(mut mount: Mount<'_>) {
    assert_eq!(mount.end_by(rustix::process::Signal::TERM), Some(0));
}

#[track_caller]
fn commit(site: &Site, clone: &str, options: &[&str]) -> String {
    let backup = site.json(&[&["clone", "commit", "main", clone], options].concat());
    assert_eq!(backup["status"], "DONE", "{backup}");
    backup["id"].as_str().expect("an id").to_owned()
}

#[track_caller]
fn shown(site: &Site, id: &str) -> serde_json::Value {
    site.json(&["show-backup", "main", id])
}

/// Starts a copy of a view of the backup without changes; returns its server.
#[track_caller]
fn start_copy(site: &Site, install: &'static Install, from: &Path, name: &str) -> PgServer {
    let mut copy = PgServer::on(install, &site.copy(from, name));
    copy.start();
    assert_eq!(copy.query("SELECT pg_is_in_recovery()"), "f");
    assert_eq!(copy.query("SHOW archive_mode"), "off");
    copy
}

/// The segments in a backup's own pg_wal.
fn segments(site: &Site, mount: &Mount, id: &str) -> Vec<String> {
    let mut names = site.list(&mount.path(&format!("main/raw/{id}/pg_wal")));
    names.retain(|name| name.len() == 24);
    names
}

fn files_under(directory: &Path, prefix: &str, files: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files_under(&entry.path(), &format!("{path}/"), files);
        } else {
            files.insert(path, entry.path());
        }
    }
}

/// Pages of the second directory that are not in the first, without WAL.
fn changed_pages(before: &Path, after: &Path) -> u64 {
    let mut files = BTreeMap::new();
    files_under(after, "", &mut files);
    let mut changed = 0;
    for (path, file) in files.iter().filter(|(path, _)| !path.starts_with("pg_wal/")) {
        let after = fs::read(file).unwrap();
        let before = fs::read(before.join(path)).unwrap_or_default();
        let pages = after
            .chunks(PAGE)
            .zip(before.chunks(PAGE).chain(std::iter::repeat(&[][..])));
        changed += pages.filter(|(after, before)| after != before).count() as u64;
    }
    changed
}

fn a_clone_that_was_shut_down_becomes_a_backup_of_what_changed(install: &'static Install) {
    let (site, primary) = filled_site(install);
    let base = site.backup_ids().remove(0);
    transact(&primary, 100);
    primary.query("SELECT pg_create_restore_point('before migration')");
    transact(&primary, 20);
    primary.archive_current_segment();
    let mount = Mount::for_all(&site);
    let mut clone = started_clone(&site, &mount, install, "@name:before migration");
    assert_eq!(transactions(&clone), 200);
    transact(&clone, 300);
    clone.query("CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS n; CREATE TABLE migrated (n int)");
    clone.stop("fast");
    let changed = changed_pages(
        &mount.path(&format!("main/raw/{base}")),
        &mount.path("main/live/test1"),
    );
    end(mount);

    let stored_before = site.stored_bytes();
    let id = commit(&site, "test1", &["--label", "migrated"]);
    let backup = shown(&site, &id);
    assert_eq!(
        (&backup["kind"], &backup["label"]),
        (&"clone".into(), &"migrated".into())
    );
    assert_eq!(backup["parent"], base.as_str());
    assert_eq!(
        backup["cloned_from"],
        serde_json::json!({"name": "test1", "target": "name:before%20migration", "shut_down": true})
    );
    let page_bytes = changed * PAGE as u64;
    let read_bytes = backup["sent_bytes"].as_u64().unwrap();
    let added_bytes = backup["new_stored_bytes"].as_u64().unwrap();
    println!(
        "{changed} pages of {} files changed: {read_bytes} bytes read, {added_bytes} added",
        backup["files"]
    );
    // A page may have been written and have the same content again: its hint bits, or those of a transaction that is
    // gone.
    assert!(
        read_bytes < 2 * page_bytes + BESIDES_PAGES,
        "{read_bytes} of {page_bytes}"
    );
    assert!(
        added_bytes < page_bytes + BESIDES_PAGES,
        "{added_bytes} of {page_bytes}"
    );
    assert!(site.stored_bytes() - stored_before < page_bytes + 2 * BESIDES_PAGES);
    assert!(backup["logical_bytes"].as_u64().unwrap() > 4 * page_bytes);
    site.barmanfs(&["show-backup", "main", &id])
        .ok()
        .says(&["clone test1 of", "nothing to replay"]);

    let mount = Mount::for_all(&site);
    assert_eq!(segments(&site, &mount, &id).len(), 1);
    for view in [format!("main/raw/{id}"), format!("main/{id}")] {
        clone.verify_backup(&mount.path(&view), None);
        let mut copy = start_copy(&site, install, &mount.path(&view), "copy");
        let log = copy.log();
        assert!(log.contains("database system was shut down at"), "{log}");
        assert!(!log.contains("redo"), "{log}");
        assert_eq!(transactions(&copy), 500);
        assert_eq!(
            copy.query("SELECT (SELECT count(*) FROM unlogged), (SELECT count(*) FROM migrated)"),
            "1|0"
        );
        assert_sums_agree(&copy);
        copy.assert_sound();
        copy.stop_and_assert_checksums();
        drop(copy);
        site.sh(&format!("rm -rf '{0}' '{0}.log'", site.path("copy").display()))
            .ok();
    }

    // A clone of this backup also starts at once, and a commit of its changes is a backup again.
    let made = mount.path(&format!("main/live/again@backup={id}"));
    site.sh(&format!("mkdir '{}'", made.display())).ok();
    let mut again = PgServer::on_mount(install, &mount.path("main/live/again"), &site.path("again"));
    again.start();
    assert!(!again.log().contains("redo"), "{}", again.log());
    transact(&again, 5);
    assert_eq!(
        (transactions(&again), again.query("SHOW archive_mode")),
        (505, "off".to_owned())
    );
    again.stop("fast");
    end(mount);
    let next = shown(&site, &commit(&site, "again", &[]));
    assert_eq!(
        (&next["parent"], next["timeline"].as_u64()),
        (&backup["id"], backup["timeline"].as_u64())
    );
    let mount = Mount::for_all(&site);

    // The new backup needs neither the clone nor the backup under that clone.
    site.sh(&format!("rmdir '{}'", mount.path("main/live/test1").display()))
        .ok();
    end(mount);
    site.barmanfs(&["delete", "main", &id])
        .refused(1)
        .says(&["again"]);
    site.ok(&["delete", "main", &base, "--force"]);
    site.ok(&["sweep"]);
    site.ok(&["verify", "main"]);
    site.ok(&["rebuild-catalog"]);
    site.ok(&["verify", "main"]);
    // Only its neighbour in the list has changed.
    let mut expected = backup;
    expected["previous_backup"] = serde_json::Value::Null;
    assert_eq!(shown(&site, &id), expected);
    let mount = Mount::for_all(&site);
    let copy = start_copy(&site, install, &mount.path(&format!("main/{id}")), "last");
    assert_eq!(transactions(&copy), 500);
}

fn a_clone_that_crashed_becomes_a_backup_that_recovers(install: &'static Install) {
    let (site, _primary) = filled_site(install);
    let mount = Mount::for_all(&site);
    let mut clone = started_clone(&site, &mount, install, "");
    transact(&clone, 250);
    clone.query("CHECKPOINT");
    transact(&clone, 200);
    clone.query("CREATE TABLE late AS SELECT generate_series(1, 1000) AS n");
    // These segments were recycled for later use. They are in the clone and contain nothing that is needed.
    let present = clone.query("SELECT name FROM pg_ls_waldir() WHERE length(name) = 24 ORDER BY 1");
    let current = clone.query("SELECT pg_walfile_name(pg_current_wal_lsn())");
    let redo = clone.query("SELECT pg_walfile_name(redo_lsn) FROM pg_control_checkpoint()");
    clone.kill();
    end(mount);
    let id = commit(&site, "test1", &[]);
    assert_eq!(shown(&site, &id)["cloned_from"]["shut_down"], false);
    let mount = Mount::for_all(&site);
    let mut needed: Vec<&str> = present.lines().collect();
    needed.retain(|name| (redo.as_str()..=current.as_str()).contains(name));
    assert!(
        (2..present.lines().count()).contains(&needed.len()),
        "{needed:?} of {present}"
    );
    assert_eq!(segments(&site, &mount, &id), needed, "{present}");
    let bindir = install.bindir.to_string_lossy();
    site.ok(&["verify", "main", &id, "--boot", "--bindir", &bindir]);
    clone.verify_backup(&mount.path(&format!("main/raw/{id}")), None);
    for view in [format!("main/raw/{id}"), format!("main/{id}")] {
        let mut copy = start_copy(&site, install, &mount.path(&view), "copy");
        let log = copy.log();
        assert!(log.contains("redo done"), "{log}");
        assert_eq!(transactions(&copy), 550);
        assert_eq!(copy.query("SELECT count(*) FROM late"), "1000");
        assert_sums_agree(&copy);
        copy.assert_sound();
        copy.stop("fast");
        drop(copy);
        site.sh(&format!("rm -rf '{0}' '{0}.log'", site.path("copy").display()))
            .ok();
    }
}

fn a_backup_of_a_clone_is_never_used_for_the_server(install: &'static Install) {
    let (site, primary) = filled_site(install);
    let base = site.backup_ids().remove(0);
    let mount = Mount::for_all(&site);
    let mut clone = started_clone(&site, &mount, install, "");
    transact(&clone, 10);
    clone.stop("fast");
    end(mount);
    let id = commit(&site, "test1", &[]);
    assert_eq!(shown(&site, "latest")["id"], base.as_str());
    assert_eq!(shown(&site, "oldest")["id"], base.as_str());
    site.barmanfs(&["check", "main"]).ok().says(&[&base]);
    let committed = shown(&site, &id);
    let stop = committed["stop_lsn"].as_str().unwrap();

    transact(&primary, 100);
    primary.archive_current_segment();
    let mount = Mount::for_all(&site);
    let plan = site.ok(&["explain", "main", "now"]);
    assert!(plan.contains(&base) && !plan.contains(&id), "{plan}");
    let timeline = site.ok(&["timeline", "main"]);
    assert!(timeline.contains(&base) && !timeline.contains(&id), "{timeline}");
    assert!(
        !site
            .list(&mount.path("main/pitr"))
            .contains(&format!("lsn:{stop}"))
    );
    assert_eq!(
        site.sh(&format!(
            "cat '{}'",
            mount.path("main/latest/backup_label").display()
        ))
        .ok()
        .text(),
        site.sh(&format!(
            "cat '{}'",
            mount.path(&format!("main/{base}/backup_label")).display()
        ))
        .ok()
        .text()
    );
    assert!(site.list(&mount.path("main")).contains(&id));
    let mut latest = PgServer::on(install, &site.copy(&mount.path("main/latest"), "latest"));
    latest.start();
    latest.wait_until_promoted();
    assert_eq!(transactions(&latest), 100);
    end(mount);

    // The next backup builds on the server's own newest backup, even if the clone's is newer.
    if install.major >= 17 {
        primary.query("ALTER SYSTEM SET summarize_wal = on");
        primary.query("SELECT pg_reload_conf()");
        site.backup();
    }
    let own = site.backups().pop().unwrap();
    transact(&primary, 10);
    let next = shown(&site, &site.backup());
    assert_ne!(next["kind"], "clone");
    assert_ne!(next["parent"], id.as_str());
    if own["id"] != id.as_str() && next["kind"] == "incremental" {
        assert_eq!(next["parent"], own["id"]);
    }
    assert!(next["new_stored_bytes"].as_u64().unwrap() < next["logical_bytes"].as_u64().unwrap() / 10);
    site.ok(&["delete", "main", &id]);
    site.ok(&["verify", "main"]);
}

fn an_exported_clone_is_a_plain_directory(install: &'static Install) {
    let (site, _primary) = filled_site(install);
    let mount = Mount::for_all(&site);
    let mut clone = started_clone(&site, &mount, install, "");
    transact(&clone, 50);
    clone.query("CREATE TABLE made (n int)");
    clone.stop("fast");
    // A hole of a megabyte, then data.
    let file = fs::File::create(mount.path("main/live/test1/sparse")).unwrap();
    file.write_all_at(b"end", 1 << 20).unwrap();
    drop(file);
    site.sh(&format!(
        "ln -s PG_VERSION '{}'",
        mount.path("main/live/test1/alias").display()
    ))
    .ok();
    let expected = site.checksums(&mount.path("main/live/test1"));
    // How a server was started is not part of its data.
    let expected: Vec<&str> = expected
        .lines()
        .filter(|line| !line.contains("postmaster.opts"))
        .collect();
    end(mount);

    let occupied = site.make_directory("occupied");
    site.write_file("occupied/file", b"");
    let to = site.path("exported");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    site.barmanfs(&["clone", "export", "main", "test1", &text(&occupied)])
        .refused(1)
        .says(&["is not empty"]);
    let full = site.make_directory("full");
    let _disk = SmallDisk::mount(&full, 10);
    site.barmanfs(&["clone", "export", "main", "test1", &text(&full)])
        .refused(1)
        .says(&["is where a file system is mounted"]);
    site.barmanfs(&["clone", "export", "main", "test1", &text(&full.join("copy"))])
        .refused(1)
        .says(&["No space left"]);
    assert_eq!(site.list(&full), [""; 0]);
    // An export that was killed has left this.
    site.make_directory(".exported.exporting");
    site.write_file(".exported.exporting/half", b"of a file");
    site.barmanfs(&["clone", "export", "main", "test1", &text(&to)])
        .ok()
        .says(&["archive_mode = off"]);
    assert!(!site.path(".exported.exporting").exists());
    assert_eq!(site.checksums(&to).lines().collect::<Vec<_>>(), expected);
    assert_eq!(fs::read_link(to.join("alias")).unwrap(), Path::new("PG_VERSION"));
    let sparse = fs::metadata(to.join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 100_000, "{}", sparse.blocks());
    // An empty directory is accepted, also behind a link, which remains a link.
    let empty = site.make_directory("empty");
    site.sh("ln -s empty link").ok();
    site.ok(&["clone", "export", "main", "test1", &text(&site.path("link"))]);
    assert_eq!(site.list(&empty), site.list(&to));
    let rootly = text(&site.path("rootly"));
    let as_root = || {
        crate::common::process::run(
            &mut site.own_barmanfs_command(&["clone", "export", "main", "test1", &rootly]),
        )
    };
    // The owner of the directory could put links into it, and root would write where they lead.
    let anothers = site.make_directory(".rootly.exporting");
    as_root().refused(1).says(&["belongs to another user"]);
    fs::remove_dir(&anothers).unwrap();
    std::os::unix::fs::symlink(&empty, &anothers).unwrap();
    as_root().refused(1).says(&[".rootly.exporting"]);
    fs::remove_file(&anothers).unwrap();
    as_root().ok();
    for path in ["PG_VERSION", "base", "global/pg_control"] {
        let (own, root) = (
            fs::metadata(to.join(path)).unwrap(),
            fs::metadata(site.path("rootly").join(path)).unwrap(),
        );
        assert_eq!(
            (own.uid(), own.mode(), own.mtime()),
            (root.uid(), root.mode(), root.mtime()),
            "{path}"
        );
    }
    let mut server = PgServer::on(install, &to);
    server.start();
    assert_eq!(transactions(&server), 150);
    assert_sums_agree(&server);
    server.assert_sound();
    server.stop_and_assert_checksums();
}

fn a_running_clone_is_left_alone(install: &'static Install) {
    let (site, _primary) = filled_site(install);
    let mount = Mount::for_all(&site);
    let made = mount.path("main/live/test1");
    site.sh(&format!("mkdir '{}'", made.display())).ok();
    site.barmanfs(&["clone", "commit", "main", "none"])
        .refused(1)
        .says(&["none"]);
    site.barmanfs(&["clone", "commit", "main", "test1"])
        .refused(1)
        .says(&[
            "recovery of clone test1 of main has not ended",
            "clone start main test1 --replay",
        ]);
    let mut clone = PgServer::on_mount(install, &made, &site.path("test1"));
    clone.start();
    clone.wait_until_promoted();
    let to = site.path("exported").to_string_lossy().into_owned();
    let commands: [&[&str]; 2] = [
        &["clone", "commit", "main", "test1"],
        &["clone", "export", "main", "test1", &to],
    ];
    for command in commands {
        site.barmanfs(command).refused(1).says(&["clone stop main test1"]);
    }
    assert_eq!(site.backup_ids().len(), 1);
    transact(&clone, 1);
    clone.stop("fast");
    // The mount that serves the clone releases it, and serves it again afterwards.
    let id = commit(&site, "test1", &[]);
    site.ok(&["clone", "export", "main", "test1", &to]);
    clone.start();
    transact(&clone, 1);
    let copies = [mount.path(&format!("main/{id}")), to.into()];
    for (n, copy) in copies.iter().enumerate() {
        let copy = start_copy(&site, install, copy, &format!("copy{n}"));
        assert_eq!((transactions(&copy), transactions(&clone)), (101, 102));
    }
    clone.stop("fast");
}

fn a_clones_tablespaces_become_directories_or_are_refused(install: &'static Install) {
    let (site, primary) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    let space = site.make_directory("fast");
    primary.query(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
    primary.query("CREATE TABLE kept TABLESPACE fast AS SELECT generate_series(1, 30000) AS n");
    site.backup();
    let mount = Mount::for_all(&site);
    let mut clone = started_clone(&site, &mount, install, "");
    clone.query("UPDATE kept SET n = n + 1 WHERE n <= 10");
    clone.query("CREATE TABLESPACE own LOCATION ''");
    clone.query("CREATE TABLE new TABLESPACE own AS SELECT 1 AS n");
    clone.stop("fast");
    let id = commit(&site, "test1", &[]);
    let spaces = shown(&site, &id)["tablespaces"].clone();
    assert_eq!(spaces.as_array().unwrap().len(), 2, "{spaces}");
    assert!(spaces.to_string().contains(&*space.to_string_lossy()), "{spaces}");
    clone.verify_backup(&mount.path(&format!("main/raw/{id}")), None);
    let copy = start_copy(&site, install, &mount.path(&format!("main/{id}")), "copy");
    assert_eq!(
        copy.query("SELECT sum(n), (SELECT n FROM new) FROM kept"),
        "450015010|1"
    );

    clone.start();
    let outside = site.make_directory("outside");
    clone
        .try_query(&format!(
            "CREATE TABLESPACE outside LOCATION '{}'",
            outside.display()
        ))
        .refused(1)
        .says(&["not permitted"]);
    clone.stop("fast");
    let in_clone = |script: &str| site.sh(&format!("cd '{}' && {script}", clone.data.display()));
    let outside = outside.to_string_lossy();
    in_clone(&format!(
        "mkdir new && ln -s '{outside}' new/1 && mv pg_tblspc old && mv new pg_tblspc"
    ))
    .refused(1)
    .says(&["not permitted"]);
    in_clone("mv old pg_tblspc && rm -r new").ok();

    // Elsewhere links are the user's own responsibility, but their targets would not be in a backup.
    let move_wal = format!("mv pg_wal '{outside}' && ln -s '{outside}/pg_wal' pg_wal");
    in_clone(&move_wal).ok();
    site.barmanfs(&["clone", "commit", "main", "test1"])
        .refused(1)
        .says(&["pg_wal of", "leads out of it", &outside]);
    in_clone(&format!("rm pg_wal && mv '{outside}/pg_wal' .")).ok();
    in_clone(&format!(
        "for space in pg_tblspc/*; do ln -s '{outside}' $space/link; done"
    ))
    .ok();
    site.barmanfs(&["clone", "commit", "main", "test1"])
        .refused(1)
        .says(&["pg_tblspc/", "leads out of it", &outside]);
    assert_eq!(site.backups().pop().unwrap()["status"], "FAILED");
    // It does not count as a failure of the server's backups.
    site.ok(&["check", "main"]);
}

fn a_killed_commit_leaves_no_backup_and_can_be_repeated(install: &'static Install) {
    let (site, _primary) = filled_site(install);
    let mount = Mount::for_all(&site);
    let mut clone = started_clone(&site, &mount, install, "");
    transact(&clone, 200);
    clone.stop("fast");
    end(mount);
    for after_ms in [5, 20, 40, 80, 120, 160, 240] {
        let mut commit = site.spawn(&["clone", "commit", "main", "test1"]);
        std::thread::sleep(Duration::from_millis(after_ms));
        let _ = commit.kill();
        let _ = commit.wait();
    }
    let id = commit(&site, "test1", &[]);
    let done = |backup: &serde_json::Value| backup["status"] == "DONE";
    assert!(
        site.backups()
            .iter()
            .all(|backup| done(backup) || backup["status"] == "FAILED")
    );
    site.ok(&["sweep"]);
    site.ok(&["verify", "main"]);
    let mount = Mount::for_all(&site);
    for backup in site
        .backups()
        .iter()
        .filter(|backup| done(backup) && backup["kind"] == "clone")
    {
        clone.verify_backup(
            &mount.path(&format!("main/raw/{}", backup["id"].as_str().unwrap())),
            None,
        );
    }
    let copy = start_copy(&site, install, &mount.path(&format!("main/{id}")), "copy");
    assert_eq!(transactions(&copy), 300);
}
