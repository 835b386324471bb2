//! `wal-archive` acknowledges only safe segments; `get-wal` and `wal/` return the same bytes.

use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};
use std::fs;
use std::path::PathBuf;

topic! {
    with_postgres archived_files_read_back,
    once the_same_segment_twice_is_success_and_other_bytes_are_refused,
    once a_segment_of_another_system_is_refused,
    once a_segment_of_the_wrong_size_or_name_is_refused,
    once history_and_backup_files_are_kept,
    once get_wal_distinguishes_absence_from_failure,
}

/// Fills some segments and copies them before they are archived: the server recycles its own files.
fn segments(site: &Site, server: &PgServer, count: usize) -> Vec<PathBuf> {
    let kept = site.make_directory("kept");
    (0..count)
        .map(|_| {
            server.query("CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler SELECT generate_series(1, 5000)");
            let name = server.archive_current_segment();
            let copy = kept.join(&name);
            site.sh(&format!("cp '{}/pg_wal/{name}' '{}'", server.data.display(), copy.display())).ok();
            copy
        })
        .collect()
}

fn name_of(segment: &std::path::Path) -> String {
    segment.file_name().unwrap().to_string_lossy().into_owned()
}

fn archived_files_read_back(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let kept = segments(&site, &server, 3);
    let mount = Mount::new(&site);
    for segment in &kept {
        let name = name_of(segment);
        site.sh(&format!(
            "cmp '{}' '{}/main/wal/{name}'",
            segment.display(),
            mount.point.display()
        ))
        .ok();
        let fetched = site.path("fetched");
        site.ok(&["get-wal", "main", &name, &fetched.to_string_lossy()]);
        assert!(
            fs::read(&fetched).unwrap() == fs::read(segment).unwrap(),
            "get-wal gives other bytes for {name}"
        );
        for (redirection, said) in [(">&-", "Standard output is closed"), ("1</dev/null", "Bad file")] {
            let get = format!(
                "'{}' --config '{}' get-wal main {name}",
                site.program().display(),
                site.config().display()
            );
            let run = site.sh(&format!("{get} {redirection}"));
            run.refused(201).says(&[said]);
        }
        let printed = site.barmanfs(&["get-wal", "main", &name]).ok();
        assert!(
            printed.stdout == fs::read(segment).unwrap(),
            "get-wal prints other bytes for {name}"
        );
    }
    let names: Vec<String> = kept.iter().map(|segment| name_of(segment)).collect();
    assert_eq!(
        site.list(&mount.path("main/wal"))
            .into_iter()
            .filter(|name| names.contains(name))
            .count(),
        names.len()
    );
    assert_eq!(server.query("SELECT failed_count FROM pg_stat_archiver"), "0");
}

fn the_same_segment_twice_is_success_and_other_bytes_are_refused(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let segment = segments(&site, &server, 1).remove(0);
    let original = fs::read(&segment).unwrap();
    let path = segment.to_string_lossy().into_owned();
    let before = site.stored_bytes();
    site.ok(&["wal-archive", "main", &path]);
    assert!(
        site.stored_bytes() - before < 100_000,
        "Archiving the same segment again stored it again"
    );

    let mut other = original.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    fs::write(&segment, &other).unwrap();
    site.barmanfs(&["wal-archive", "main", &path])
        .refused(1)
        .says(&[&name_of(&segment)]);
    let there = site.barmanfs(&["get-wal", "main", &name_of(&segment)]).ok();
    assert!(there.stdout == original, "The archived segment was overwritten");
    site.ok(&["verify"]);
}

fn a_segment_of_another_system_is_refused(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    segments(&site, &server, 1);
    let mut stranger = PgServer::init(install, &site.path("stranger"), &[]);
    stranger.start();
    let name = stranger.query("SELECT pg_walfile_name(pg_current_wal_lsn())");
    stranger.query("SELECT pg_switch_wal()");
    // Far ahead of the archived WAL, so that only its system identifier is wrong.
    let path = stranger.data.join("pg_wal").join(&name);
    site.barmanfs(&["wal-archive", "main", &path.to_string_lossy()])
        .refused(1)
        .says(&["system"]);
}

fn a_segment_of_the_wrong_size_or_name_is_refused(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let segment = segments(&site, &server, 1).remove(0);
    let bytes = fs::read(&segment).unwrap();
    let listed = |site: &Site| {
        let mount = Mount::new(site);
        let names = site.list(&mount.path("main/wal"));
        mount.unmount();
        names
    };
    let before = listed(&site);
    let refused = |name: &str, bytes: &[u8]| {
        let path = site.write_file(name, bytes);
        site.barmanfs(&["wal-archive", "main", &path.to_string_lossy()])
            .rejected()
            .says(&[name]);
    };
    refused("0000000100000000000000F0", &bytes);
    refused("0000000100000000000000F1", &bytes[..bytes.len() / 2]);
    refused("0000000100000000000000F2", &[]);
    refused("0000000100000000000000F3", &vec![0; bytes.len()]);
    refused("not-a-segment", &bytes);
    refused("000000010000000000000001.gz", &bytes);
    site.barmanfs(&["wal-archive", "main", "pg_wal/0000000100000000000000F4"])
        .refused(1);
    site.barmanfs(&["wal-archive", "nobody", &segment.to_string_lossy()])
        .refused(2)
        .says(&["nobody"]);
    assert_eq!(listed(&site), before, "A refused segment is shown");
}

fn history_and_backup_files_are_kept(install: &'static Install) {
    let (site, mut server) = Site::with_server(install);
    site.backup();
    server.stop("fast");
    site.sh(&format!("touch '{}/standby.signal'", server.data.display()))
        .ok();
    server.start();
    server.query("SELECT pg_promote()");
    server.wait_until_promoted();
    server.archive_current_segment();
    let mount = Mount::new(&site);
    let names = site.list(&mount.path("main/wal"));
    assert!(names.contains(&"00000002.history".into()), "{names:?}");
    assert!(names.iter().any(|name| name.ends_with(".backup")), "{names:?}");
    let data = server.data.display();
    site.sh(&format!(
        "cmp '{data}/pg_wal/00000002.history' '{}/main/wal/00000002.history'",
        mount.point.display()
    ))
    .ok();
    // A backup on the new timeline has the history in its own pg_wal.
    site.backup();
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    copy.query("CHECKPOINT");
    assert_eq!(copy.timeline(), 3);
}

fn get_wal_distinguishes_absence_from_failure(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let segment = segments(&site, &server, 1).remove(0);
    let absent = site.barmanfs(&["get-wal", "main", "0000000100000000000000F0"]);
    assert_eq!(absent.code(), Some(1), "{absent}");
    let destination = site.path("no such directory/x");
    let unwritable = site.barmanfs(&[
        "get-wal",
        "main",
        &name_of(&segment),
        &destination.to_string_lossy(),
    ]);
    assert!(
        unwritable.code().is_some_and(|code| code > 125),
        "Only a proven absence may exit 1: {unwritable}"
    );
    fs::rename(site.repository(), site.path("elsewhere")).unwrap();
    let gone = site.barmanfs(&["get-wal", "main", &name_of(&segment), "x"]);
    assert!(
        gone.code().is_some_and(|code| code > 125),
        "Without a repository nothing is proven: {gone}"
    );
}
