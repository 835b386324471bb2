//! The repository's directory contains other things than barmanfs put there: garbage, pipes and directories in the
//! place of files, a file system or a user that may only read. The kind: a file is opened on the assumption that
//! barmanfs made it. Nothing hangs, the suggested remedies help, and all readable data can be read.

use crate::common::process::run;
use crate::common::registry::topic;
use crate::common::{Install, Mount, Site};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

topic! {
    once garbage_in_repository_json_is_mended_as_the_error_says,
    once a_pipe_in_place_of_a_file_blocks_no_command,
    once a_damaged_catalog_is_noticed_by_check_and_verify,
    once a_rebuild_that_cannot_read_every_pack_changes_nothing,
    once incomplete_packs_are_reported_and_all_others_are_read,
    once an_unwritable_repository_is_reported_before_a_segment_arrives (as_root),
    once a_repository_on_a_read_only_file_system_can_be_used (as_root),
    once another_user_who_may_read_the_repository_can_use_it (as_root),
}

fn garbage_in_repository_json_is_mended_as_the_error_says(install: &'static Install) {
    let (site, _server) = Site::with_server(install);
    let id = site.backup();
    let settings = site.repository().join("repository.json");
    for garbage in [
        &b"garbage"[..],
        b"",
        b"{}",
        b"{\"format_version\": 1}",
        &[0; 4096],
    ] {
        fs::write(&settings, garbage).unwrap();
        for arguments in [
            &["list-backups", "main"][..],
            &["verify"],
            &["get-wal", "main", "000000010000000000000001"],
        ] {
            let run = site.barmanfs(arguments);
            assert_ne!(run.code(), Some(0), "{run}");
            let said = run.all();
            assert!(
                said.contains("rebuild-catalog") && !said.contains("'barmanfs verify'"),
                "{said}"
            );
        }
        site.ok(&["rebuild-catalog"]);
        assert_eq!(site.backup_ids(), std::slice::from_ref(&id));
        site.ok(&["verify"]);
    }
}

fn a_pipe_in_place_of_a_file_blocks_no_command(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    let name = server.archive_current_segment();
    let pack = site.packs().pop().unwrap();
    let repository = site.repository();
    let kept = site.path("kept");
    for (place, made) in [
        ("repository.json", "mkfifo"),
        ("catalog.sqlite", "mkfifo"),
        ("catalog.sqlite", "mkdir"),
        ("catalog.sqlite-wal", "mkfifo"),
        ("catalog.sqlite-shm", "mkfifo"),
        ("locks/writers", "mkfifo"),
        ("repository.json", "mkdir"),
    ] {
        let file = repository.join(place);
        let was_there = fs::rename(&file, &kept).is_ok();
        site.sh(&format!("{made} '{}'", file.display())).ok();
        let mut said = String::new();
        for arguments in [
            &["list-backups", "main"][..],
            &["verify"],
            &["get-wal", "main", &name],
            &["delete", "main", "latest", "--force"],
            &["rebuild-catalog"],
        ] {
            // Only writers take a lock.
            let run = site.barmanfs(arguments);
            said += &run.all();
            assert!(
                run.code() != Some(0) || place.starts_with("locks"),
                "{made} {place}: {run}"
            );
            if place.starts_with("locks") && arguments[0] == "verify" {
                break;
            }
        }
        if !place.starts_with("locks") {
            assert!(
                said.contains("regular file") && said.contains(place),
                "{made} {place}: {said}"
            );
        }
        site.sh(&format!("rm -r '{}'", file.display())).ok();
        if was_there {
            fs::rename(&kept, &file).unwrap();
        }
    }
    fs::rename(&pack, &kept).unwrap();
    site.sh(&format!("mkfifo '{}'", pack.display())).ok();
    site.barmanfs(&["verify"]).refused(3).says(&["pipe"]);
    fs::remove_file(&pack).unwrap();
    fs::rename(&kept, &pack).unwrap();
    // In the place where only unfinished packs are searched.
    site.sh(&format!("mkfifo '{}/packs/tmp-00.partial'", repository.display()))
        .ok();
    site.ok(&["sweep"]);
    site.ok(&["verify"]);
}

fn a_damaged_catalog_is_noticed_by_check_and_verify(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    for _ in 0..2 {
        site.backup();
    }
    server.archive_current_segment();
    let catalog = site.repository().join("catalog.sqlite");
    // All data is in the one file.
    site.sh(&format!(
        "rm -f '{0}'/catalog.sqlite*",
        site.repository().display()
    ))
    .ok();
    site.ok(&["rebuild-catalog"]);
    let pages = fs::metadata(&catalog).unwrap().len() / 4096;
    for first in [2, 7, pages.saturating_sub(4)] {
        let sound = fs::read(&catalog).unwrap();
        site.sh(&format!(
            "dd if=/dev/urandom of='{}' bs=4096 seek={first} count=3 conv=notrunc 2>/dev/null",
            catalog.display()
        ))
        .ok();
        for arguments in [&["check", "main"][..], &["verify"]] {
            let run = site.barmanfs(arguments);
            assert_ne!(run.code(), Some(0), "Pages from {first} on: {run}");
            assert!(run.all().contains("rebuild-catalog"), "{run}");
        }
        site.ok(&["rebuild-catalog"]);
        site.ok(&["verify"]);
        drop(sound);
    }
}

fn a_rebuild_that_cannot_read_every_pack_changes_nothing(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let id = site.backup();
    let before = site.packs();
    let name = server.archive_current_segment();
    let pack = site
        .packs()
        .into_iter()
        .find(|pack| !before.contains(pack))
        .unwrap();
    let kept = site.path("kept");
    // A pack that cannot be read now, but perhaps in a moment.
    fs::rename(&pack, &kept).unwrap();
    site.sh(&format!(
        "ln -s loop '{0}' && ln -s '{0}' '{1}/loop'",
        pack.display(),
        pack.parent().unwrap().display()
    ))
    .ok();
    site.barmanfs(&["rebuild-catalog"]).refused(1).says(&["symbolic"]);
    site.sh(&format!(
        "rm '{0}' '{1}/loop'",
        pack.display(),
        pack.parent().unwrap().display()
    ))
    .ok();
    assert_eq!(site.backup_ids(), [id]);
    // A pack that is gone.
    site.barmanfs(&["rebuild-catalog"])
        .refused(3)
        .says(&[&pack.file_name().unwrap().to_string_lossy(), "catalog.sqlite.old"]);
    assert!(site.repository().join("catalog.sqlite.old").exists());
    fs::rename(&kept, &pack).unwrap();
    site.ok(&["rebuild-catalog"]);
    assert!(!site.repository().join("catalog.sqlite.old").exists());
    site.ok(&["get-wal", "main", &name]);
}

/// Runs the same commands on a repository that cannot be written.
fn assert_readable(site: &Site, id: &str, segment: &str, command: impl Fn(&[&str]) -> Command) {
    let ok = |arguments: &[&str]| run(&mut command(arguments)).ok();
    assert!(ok(&["list-backups", "main"]).all().contains(id));
    ok(&["show-backup", "main", id]);
    ok(&["timeline", "main"]);
    ok(&["explain", "main", "now"]);
    ok(&["stats"]);
    ok(&["verify"]);
    assert!(ok(&["get-wal", "main", segment]).stdout.len() > 1 << 19);
    let absent = run(&mut command(&["get-wal", "main", "0000000100000000000000F0"]));
    assert_eq!(absent.code(), Some(1), "{absent}");
    for writing in [
        &["sweep"][..],
        &["delete", "main", id, "--force"],
        &["rebuild-catalog"],
    ] {
        run(&mut command(writing)).rejected();
    }
    assert!(site.repository().join("repository.json").exists());
}

fn without_shared_memory(site: &Site) {
    site.sh(&format!(
        "rm -f '{}/catalog.sqlite-shm'",
        site.repository().display()
    ))
    .ok();
    let wal = site.repository().join("catalog.sqlite-wal");
    assert!(
        wal.metadata().unwrap().len() > 0,
        "The catalog's WAL is empty: it should be read too"
    );
}

/// Makes it read-only, until dropped.
struct ReadOnly<'a>(&'a Path);

impl<'a> ReadOnly<'a> {
    fn mount(path: &'a Path) -> Self {
        run(Command::new("mount").arg("--bind").arg(path).arg(path)).ok();
        let guard = Self(path);
        run(Command::new("mount").args(["-o", "remount,ro,bind"]).arg(path)).ok();
        guard
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn a_repository_on_a_read_only_file_system_can_be_used(install: &'static Install) {
    let (site, mut server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    let id = site.backup();
    let segment = server.archive_current_segment();
    server.stop("fast");
    for (n, state) in ["no -shm", "all", "no -wal"].iter().enumerate() {
        match n {
            0 => without_shared_memory(&site),
            1 => drop(site.ok(&["list-backups", "main"])),
            _ => {
                site.sh(&format!("rm '{}'/catalog.sqlite*", site.repository().display()))
                    .ok();
                site.ok(&["rebuild-catalog"]);
                assert!(!site.repository().join("catalog.sqlite-wal").exists());
            }
        }
        let repository = site.repository();
        let read_only = ReadOnly::mount(&repository);
        assert_readable(&site, &id, &segment, |arguments| site.barmanfs_command(arguments));
        let mount = Mount::new(&site);
        let bucket = format!("file://{}", site.path(&format!("bucket-{n}")).display());
        site.barmanfs(&["copy", &repository.display().to_string(), &bucket])
            .ok()
            .says(&["cannot be written to"]);
        let copy = site.copy(&mount.path("main/latest"), &format!("copy-{n}"));
        assert!(copy.join("PG_VERSION").exists(), "{state}");
        site.sh(&format!("mkdir '{}'", mount.path("main/live/x").display()))
            .refused(1)
            .says(&["Read-only file system"]);
        mount.unmount();
        drop(read_only);
    }
    server.start();
    site.backup();
    site.ok(&["verify"]);
}

fn another_user_who_may_read_the_repository_can_use_it(install: &'static Install) {
    let (site, mut server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    let id = site.backup();
    let segment = server.archive_current_segment();
    server.stop("fast");
    without_shared_memory(&site);
    site.sh(&format!(
        "chmod -R a+rX '{}' '{}'",
        site.repository().display(),
        site.config().display()
    ))
    .ok();
    assert_readable(&site, &id, &segment, |arguments| {
        let mut command = site.own_barmanfs_command(arguments);
        command.uid(65534).gid(65534);
        command
    });
}

fn incomplete_packs_are_reported_and_all_others_are_read(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    server.archive_current_segment();
    let pack = site.largest_pack(&[]);
    let name = pack.file_name().unwrap().to_string_lossy().into_owned();
    let (pack, kept) = (pack.display(), site.path("kept"));
    let kept = kept.display();
    for spoil in [
        "mkfifo PACK",
        "mkdir PACK",
        ": > PACK",
        "head -c 100000 KEPT > PACK",
        "cat KEPT KEPT > PACK",
    ] {
        let spoil = spoil
            .replace("PACK", &format!("'{pack}'"))
            .replace("KEPT", &format!("'{kept}'"));
        site.sh(&format!("mv '{pack}' '{kept}' && {spoil}")).ok();
        site.barmanfs(&["check", "main"])
            .refused(3)
            .says(&["packs are whole: FAILED", &name]);
        // They do not stop early: they report this pack, and all the others.
        site.barmanfs(&["verify"]).refused(3).says(&[&name, "1 backup,"]);
        site.barmanfs(&["rebuild-catalog"])
            .refused(3)
            .says(&[&name, "WAL files"]);
        site.sh(&format!("rm -rf '{pack}' && mv '{kept}' '{pack}'")).ok();
        site.ok(&["rebuild-catalog"]);
        site.ok(&["verify"]);
        site.ok(&["check", "main"]);
    }
}

const OF_ROOT: &str = "chown root \"$IT\"";
const OF_OWNER: &str = "chown \"$OWNER\" \"$IT\"";
const FIFO: &str = "mv \"$IT\" \"$IT.kept\" && mkfifo \"$IT\" && chown \"$OWNER\" \"$IT\"";
const BACK: &str = "rm \"$IT\" && mv \"$IT.kept\" \"$IT\"";

fn an_unwritable_repository_is_reported_before_a_segment_arrives(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    server.archive_current_segment();
    site.ok(&["check", "main"]);
    let repository = site.repository();
    // Files that a copy by root leaves, and a file in a directory's place.
    for (place, spoil, mend) in [
        ("packs", OF_ROOT, OF_OWNER),
        ("packs/3b", OF_ROOT, OF_OWNER),
        ("catalog.sqlite", OF_ROOT, OF_OWNER),
        ("catalog.sqlite-wal", OF_ROOT, OF_OWNER),
        ("spool", OF_ROOT, OF_OWNER),
        ("locks", FIFO, BACK),
    ] {
        let path = repository.join(place);
        let user = crate::common::user::database_user().uid.to_string();
        let as_root = |script: &str| {
            let mut shell = Command::new("sh");
            shell.env("IT", &path).env("OWNER", &user).args(["-c", script]);
            run(&mut shell).ok();
        };
        as_root(spoil);
        let checked = site.barmanfs(&["check", "main"]).refused(3).all();
        let is_reported = |line: &str| line.trim_start().starts_with("repository") && line.contains("FAILED");
        assert!(checked.lines().any(is_reported), "{place}: {checked}");
        as_root(mend);
        site.ok(&["check", "main"]);
    }
}
