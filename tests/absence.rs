//! A file is absent only if the catalog has read every pack. The kind: "not found" is taken for "not stored". A pack
//! may be damaged, misplaced or lost, the catalog may be out of date, a part of the store may not be mounted. In each
//! case what can be read is found. For what cannot be read, recovery stops with an error instead of ending early and
//! promoting.

use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};
use crate::damage::flip_byte;
use std::fs;
use std::path::{Path, PathBuf};

topic! {
    edges recovery_does_not_end_early_for_a_pack_that_cannot_be_read,
    once a_pack_that_cannot_be_read_proves_no_absence,
    once an_older_catalog_finds_later_packs,
    once misplaced_and_lost_packs_prove_no_absence,
    once absence_is_cheap_to_prove,
}

/// A name that was never archived.
const ABSENT: &str = "0000000100000000000000F0";

/// Exit codes from this one on stop recovery with an error.
const TROUBLE: i32 = 200;

/// Archives a segment. Returns its name, its bytes, and the packs that were added with it.
fn archive(site: &Site, server: &PgServer) -> (String, Vec<u8>, Vec<PathBuf>) {
    let before = site.packs();
    server.query(
        "CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler SELECT generate_series(1, 2000)",
    );
    let name = server.archive_current_segment();
    let bytes = site.barmanfs(&["get-wal", "main", &name]).ok().stdout;
    let packs = site.packs();
    let new = packs.into_iter().filter(|pack| !before.contains(pack)).collect();
    (name, bytes, new)
}

#[track_caller]
fn assert_not_proven(site: &Site, name: &str) {
    let run = site.barmanfs(&["get-wal", "main", name]);
    assert!(
        run.code().is_some_and(|code| code >= TROUBLE),
        "{name} counts as absent: {run}"
    );
    let mount = Mount::new(site);
    let proof = mount.path(&format!(".barmanfs/absent/main/{name}"));
    let found = site.sh(&format!("test -e '{}'", proof.display()));
    assert_eq!(found.code(), Some(1), "{name} is proven to be absent");
    mount.unmount();
}

#[track_caller]
fn assert_proven(site: &Site, name: &str) {
    let run = site.barmanfs(&["get-wal", "main", name]);
    assert_eq!(run.code(), Some(1), "{run}");
    let mount = Mount::new(site);
    let proof = mount.path(&format!(".barmanfs/absent/main/{name}"));
    site.sh(&format!("test -e '{}'", proof.display())).ok();
    mount.unmount();
}

#[track_caller]
fn assert_there(site: &Site, name: &str, bytes: &[u8]) {
    let run = site.barmanfs(&["get-wal", "main", name]).ok();
    assert!(run.stdout == bytes, "{name} reads back otherwise");
}

/// The last byte of a footer is right before the trailer.
fn damage_footer(pack: &Path) {
    let bytes = pack.metadata().unwrap().len();
    flip_byte(pack, bytes - 56 - 3);
}

fn remove_catalog(site: &Site, suffixes: &[&str]) {
    for suffix in suffixes {
        let _ = fs::remove_file(site.repository().join(format!("catalog.sqlite{suffix}")));
    }
}

fn name_of(pack: &Path) -> String {
    pack.file_name().unwrap().to_string_lossy().into_owned()
}

fn recovery_does_not_end_early_for_a_pack_that_cannot_be_read(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    server.archive_current_segment();
    let (_, _, packs) = archive(&site, &server);
    archive(&site, &server);
    damage_footer(packs.last().expect("a segment makes a pack"));
    site.barmanfs(&["rebuild-catalog"]).refused(3);

    // Both ways to read the archive.
    let mount = Mount::new(&site);
    let command = format!(
        "{} -c {} get-wal main %f %p",
        site.program().display(),
        site.config().display()
    );
    let by_command = site.copy(&mount.path("main/latest"), "by-command");
    let auto = by_command.join("postgresql.auto.conf");
    site.sh(&format!("sed -i '/^restore_command/d;/^recovery_target/d' '{0}'; echo \"restore_command = '{command}'\" >> '{0}'", auto.display()))
        .ok();
    let by_mount = site.copy(&mount.path("main/pitr/now"), "by-mount");
    for data in [by_command, by_mount] {
        let mut copy = PgServer::on(install, &data);
        copy.try_start();
        until("recovery has come to the pack", || {
            let log = copy.log();
            assert!(
                !log.contains("archive recovery complete"),
                "It ended early:\n{log}"
            );
            log.contains("could not restore file")
        });
    }
    mount.unmount();
}

fn a_pack_that_cannot_be_read_proves_no_absence(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    server.archive_current_segment();
    assert_proven(&site, ABSENT);
    let (name, bytes, packs) = archive(&site, &server);
    let pack = packs.last().expect("a segment makes a pack");
    damage_footer(pack);
    site.barmanfs(&["rebuild-catalog"])
        .refused(3)
        .says(&[&name_of(pack)]);
    assert_not_proven(&site, &name);
    assert_not_proven(&site, ABSENT);
    site.barmanfs(&["verify"]).refused(3).says(&[&name_of(pack)]);
    site.barmanfs(&["verify", "main", "wal"])
        .refused(3)
        .says(&[&name_of(pack)]);
    site.barmanfs(&["check", "main"])
        .refused(3)
        .says(&[&name_of(pack)]);

    // Once it is restored from a copy it is found, without any further command.
    damage_footer(pack);
    assert_there(&site, &name, &bytes);
    assert_proven(&site, ABSENT);
    site.ok(&["verify"]);
}

fn an_older_catalog_finds_later_packs(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    server.archive_current_segment();
    let repository = site.repository();
    let repository = repository.display();
    site.sh(&format!(
        "mkdir old && cp -p '{repository}'/catalog.sqlite* old/ && rm -f old/*-shm"
    ))
    .ok();
    let put_back = || {
        site.sh(&format!(
            "rm '{repository}'/catalog.sqlite* && cp -p old/* '{repository}'/"
        ))
        .ok();
    };
    let (name, bytes, _) = archive(&site, &server);
    let id = site.backup();

    // Once the segment is read first, once the backup.
    put_back();
    assert_there(&site, &name, &bytes);
    put_back();
    site.ok(&["show-backup", "main", &id]);
    put_back();
    let mount = Mount::new(&site);
    let through = site
        .sh(&format!(
            "cat '{}'",
            mount.path(&format!("main/wal/{name}")).display()
        ))
        .ok();
    assert!(through.stdout == bytes);
    mount.unmount();
    // A chunk: the backup's record is known, and the data it refers to is not.
    put_back();
    site.ok(&["verify"]);

    // A catalog that has lost its last transactions.
    remove_catalog(&site, &["-wal", "-shm"]);
    assert_there(&site, &name, &bytes);
    remove_catalog(&site, &["-wal", "-shm"]);
    assert_proven(&site, ABSENT);
    site.ok(&["verify"]);
}

fn misplaced_and_lost_packs_prove_no_absence(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    server.archive_current_segment();
    let (name, bytes, packs) = archive(&site, &server);
    let pack = packs.last().expect("a segment makes a pack").clone();
    let directory = pack.parent().unwrap().to_owned();
    let elsewhere = site.path("elsewhere");

    // Under another name, in another directory, and below `packs` itself. The catalog is rebuilt without it.
    let other = pack.with_extension("bak");
    let upper = directory.join(name_of(&pack).to_uppercase());
    let root = site.repository().join("packs").join(name_of(&pack));
    for astray in [&other, &upper, &root] {
        fs::rename(&pack, astray).unwrap();
        // In the catalog, but not in the store.
        assert_not_proven(&site, ABSENT);
        site.barmanfs(&["rebuild-catalog"])
            .refused(3)
            .says(&[&name_of(astray)]);
        assert_not_proven(&site, &name);
        site.barmanfs(&["verify"]).refused(3).says(&[&name_of(astray)]);
        site.barmanfs(&["sweep"]).refused(1).says(&[&name_of(astray)]);
        fs::rename(astray, &pack).unwrap();
        assert_there(&site, &name, &bytes);
    }
    // A second copy beside it does no harm.
    site.sh(&format!("cp '{}' '{}'", pack.display(), other.display()))
        .ok();
    assert_proven(&site, ABSENT);
    fs::remove_file(&other).unwrap();

    fs::rename(&pack, &elsewhere).unwrap();
    site.sh(&format!("mkfifo '{}'", pack.display())).ok();
    site.barmanfs(&["rebuild-catalog"])
        .refused(3)
        .says(&[&name_of(&pack), "pipe"]);
    assert_not_proven(&site, &name);
    fs::remove_file(&pack).unwrap();
    fs::rename(&elsewhere, &pack).unwrap();
    assert_there(&site, &name, &bytes);

    // Without its directory, and without all directories.
    fs::rename(&directory, &elsewhere).unwrap();
    assert_not_proven(&site, ABSENT);
    site.barmanfs(&["rebuild-catalog"])
        .refused(3)
        .says(&[&name_of(&pack)]);
    assert_not_proven(&site, &name);
    fs::rename(&elsewhere, &directory).unwrap();
    assert_there(&site, &name, &bytes);
    let all = site.repository().join("packs");
    fs::rename(&all, &elsewhere).unwrap();
    site.make_directory("repository/packs");
    assert_not_proven(&site, ABSENT);
    site.barmanfs(&["rebuild-catalog"])
        .refused(1)
        .says(&["mounted", "--force"]);
    fs::remove_dir(&all).unwrap();
    fs::rename(&elsewhere, &all).unwrap();
    assert_there(&site, &name, &bytes);
    assert_proven(&site, ABSENT);
}

/// Recovery asks for the segment after the last one until it arrives. Under a mount, unchanged directories are not
/// listed again.
fn absence_is_cheap_to_prove(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    site.backup();
    archive(&site, &server);
    // Files that are not packs slow a listing down as packs do.
    site.sh(&format!(
        "cd '{}/packs/00' && seq -f 'no-pack-%.0f' 1 100000 | xargs touch",
        site.repository().display()
    ))
    .ok();
    let mount = Mount::new(&site);
    // The timestamp of a directory counts only when it is a few seconds old.
    std::thread::sleep(std::time::Duration::from_secs(4));
    let ask = |times: u32| {
        let script = format!(
            "i=0; while [ $i -lt {times} ]; do test -e '{}' || exit 1; i=$((i+1)); done",
            mount.path(&format!(".barmanfs/absent/main/{ABSENT}")).display()
        );
        let began = std::time::Instant::now();
        site.sh(&script).ok();
        began.elapsed()
    };
    let first = ask(1);
    let later = ask(20) / 20;
    assert!(
        later * 4 < first,
        "The first proof took {first:?}, and each later one {later:?}"
    );
    mount.unmount();
}
