//! Restores whose files are elsewhere than in the original: the WAL on a disk of its own, here and on another host, and what
//! Barman would have written, under its names.

use crate::common::disk::SmallDisk;
use crate::common::moments::rows;
use crate::common::process::Run;
use crate::common::registry::topic;
use crate::common::sshd::Sshd;
use crate::common::tree::differences;
use crate::common::{Install, PgServer, Site};
use crate::restore::{Moments, moments};
use std::fs;
use std::path::Path;

topic! {
    once the_wal_has_a_disk_of_its_own(as_root),
    once barmans_layout_has_barmans_names,
}

fn restore(site: &Site, backup: &str, name: &str, options: &[&str]) -> Run {
    let directory = site.path(name);
    let words = ["restore", "main", backup, directory.to_str().unwrap()];
    site.barmanfs(&[&words, options].concat())
}

/// Starts a copy that has these rows, and ends it.
#[track_caller]
fn starts(install: &'static Install, data: &Path, expected: &str) {
    let mut copy = PgServer::on(install, data);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(rows(&copy), expected);
    copy.stop("fast");
}

fn the_wal_has_a_disk_of_its_own(install: &'static Install) {
    let Moments { site, server, .. } = &moments(install);
    site.write_config_of(server, "recovery_host = backup\n");
    server.query("CREATE TABLE much AS SELECT md5(n::text) FROM generate_series(1, 100000) n");
    server.archive_current_segment();
    let disk = site.make_directory("disk");
    let small = SmallDisk::mount(&disk, 1);
    let (wal, contained) = (site.path("disk/wal/of main"), ["--no-get-wal"]);
    let place = wal.display().to_string();
    let options = [&contained[..], &["--waldir", &place]].concat();
    // The WAL does not fit there, whatever room the directory has.
    restore(site, "auto", "none", &options)
        .refused(1)
        .says(&["The file system of", "has", "free", "/disk"]);
    assert!(!site.path("none").exists() && !wal.exists());
    small.grow(256);
    restore(site, "auto", "inside", &contained).ok();
    let said = restore(site, "auto", "copy", &options).ok();
    said.says(&["WAL directory", &place]);
    let link = site.path("copy/pg_wal");
    assert_eq!(fs::read_link(&link).unwrap(), wal);
    assert_same(site, "inside", "copy", &wal);
    // What is there belongs to that copy.
    restore(site, "auto", "other", &options).refused(1).says(&[
        "The place of pg_wal",
        "is not empty",
        "--waldir",
    ]);
    let inside = site.path("new/wal").display().to_string();
    restore(site, "auto", "new", &["--waldir", &inside])
        .refused(2)
        .says(&["would be in"]);
    restore(site, "auto", "new", &["--waldir", "wal"])
        .refused(2)
        .says(&["absolute"]);
    starts(install, &site.path("copy"), "1,2,3,4");
    // An update leaves it there, and removes what is not in the backup.
    let update = [&options[..], &["--delta-restore"]].concat();
    restore(site, "auto", "copy", &update).ok();
    assert_same(site, "inside", "copy", &wal);
    // Without the option it is inside, and what is outside stays as it is.
    let outside = site.checksums(&wal);
    let said = restore(
        site,
        "auto",
        "copy",
        &[&contained[..], &["--delta-restore"]].concat(),
    )
    .ok();
    said.says(&["is a link to", "--waldir"]);
    assert!(fs::symlink_metadata(&link).unwrap().is_dir());
    assert_eq!(site.checksums(&wal), outside);
    on_the_other_host(site, &small);
}

/// With barmanfs over there and without.
fn on_the_other_host(site: &Site, small: &SmallDisk) {
    fs::remove_dir_all(site.path("disk/wal")).unwrap();
    let sshd = Sshd::start(site);
    for (name, command) in [("bare", sshd.bare()), ("agent", sshd.command())] {
        let place = site.path("disk").join(name);
        let place_text = place.display().to_string();
        let options = [
            "--no-get-wal",
            "--waldir",
            &place_text,
            "--remote-ssh-command",
            &command,
        ];
        small.grow(1);
        restore(site, "auto", name, &options)
            .refused(1)
            .says(&["free", "needed"]);
        small.grow(512);
        restore(site, "auto", name, &options).ok();
        assert_eq!(fs::read_link(site.path(name).join("pg_wal")).unwrap(), place);
        assert_same(site, "inside", name, &place);
        fs::remove_dir_all(place).unwrap();
        fs::remove_dir_all(site.path(name)).unwrap();
    }
}

/// One tree; the WAL of the second is elsewhere.
#[track_caller]
fn assert_same(site: &Site, inside: &str, copy: &str, wal: &Path) {
    let (inside, copy) = (site.path(inside), site.path(copy));
    let own = [".barmanfs-restore.json", "backup_manifest", "pg_wal"];
    let skip = |path: &str| own.contains(&path) || path.starts_with("pg_wal/");
    assert_eq!(differences(&inside, &copy, &skip), [""; 0]);
    assert_eq!(differences(&inside.join("pg_wal"), wal, &|_| false), [""; 0]);
}

fn barmans_layout_has_barmans_names(install: &'static Install) {
    let moments = moments(install);
    let (site, [first, _]) = (&moments.site, &moments.backups);
    let text = |path: &str| fs::read_to_string(site.path(path)).unwrap();
    restore(site, first, "plain", &["--barman-layout"]).ok();
    let info = text("plain/.barman-recover.info");
    for line in ["status=DONE", "server_name=main", "timeline=1", "mode=postgres"] {
        assert!(info.lines().any(|found| found == line), "{line}: {info}");
    }
    assert!(!site.path("plain/backup_manifest").exists());
    assert!(text(&format!("plain/backup_manifest.{first}")).contains("Manifest-Checksum"));
    assert_eq!(
        text("plain/postgresql.conf.origin"),
        fs::read_to_string(moments.server.data.join("postgresql.conf")).unwrap()
    );
    let conf = text("plain/postgresql.conf");
    assert!(
        conf.contains("\n#BARMAN#archive_command = '") && conf.contains("\narchive_command = false\n"),
        "{conf}"
    );
    let auto = text("plain/postgresql.auto.conf");
    assert!(
        auto.contains("#BARMAN#recovery_target_timeline = 'current'"),
        "{auto}"
    );
    assert!(text("plain/postgresql.auto.conf.origin").contains("\nrecovery_target_timeline"));
    // All WAL is in it, and yet it gets a timeline of its own.
    assert!(site.path("plain/recovery.signal").exists());
    assert!(!site.path("plain/barman_wal").exists());
    let wal = site.list(&site.path("plain/pg_wal"));
    fs::rename(site.repository(), site.path("away")).unwrap();
    starts(install, &site.path("plain"), "1,2,3,4");
    fs::rename(site.path("away"), site.repository()).unwrap();
    // To a target, the WAL is where Barman puts it.
    let options = ["--barman-layout", "--target-lsn", &moments.lsn];
    restore(site, first, "target", &options).ok();
    let apart = site.list(&site.path("target/barman_wal"));
    assert!(
        !apart.is_empty() && apart.iter().all(|name| wal.contains(name)),
        "{apart:?}"
    );
    // What came with the backup stays in pg_wal.
    let own = site.list(&site.path("target/pg_wal"));
    let newest = apart.iter().filter(|name| name.len() == 24).max().unwrap();
    assert!(!own.contains(newest) && wal.contains(newest), "{own:?} {apart:?}");
    let auto = text("target/postgresql.auto.conf");
    assert!(
        auto.contains("\nrestore_command = 'cp barman_wal/%f %p'\n"),
        "{auto}"
    );
    fs::rename(site.repository(), site.path("away")).unwrap();
    starts(install, &site.path("target"), "1,2");
    fs::rename(site.path("away"), site.repository()).unwrap();
    assert!(!site.path("target/barman_wal").exists(), "recovery_end_command");
    restore(site, first, "fetching", &["--barman-layout", "--get-wal"]).ok();
    assert!(text("fetching/postgresql.auto.conf").contains("get-wal --replay"));
    assert!(site.list(&site.path("fetching/pg_wal")).len() < wal.len());
    let same = ["--barman-layout", "--same-timeline"];
    restore(site, first, "same", &same).ok().says(&["timeline 1"]);
    assert!(!site.path("same/recovery.signal").exists());
}
