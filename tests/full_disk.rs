//! A repository on a full file system: clear errors, and everything earlier intact.

use crate::common::disk::SmallDisk;
use crate::common::load::transact;
use crate::common::process::{run, until};
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};
use std::process::Command;

topic! {
    once a_full_file_system_loses_nothing_that_was_acknowledged (as_root),
}

fn a_full_file_system_loses_nothing_that_was_acknowledged(install: &'static Install) {
    let site = Site::new();
    let _disk = SmallDisk::mount(&site.make_directory("repository"), 64);
    let mut server = PgServer::init(install, &site.path("main"), &[]);
    server.configure(&format!(
        "archive_mode = on\narchive_command = '{}'",
        site.archive_command()
    ));
    site.write_config(&[("main", &server)]);
    server.start();
    crate::common::load::fill(&server, 1);
    let id = site.backup();
    let checksums = checksums_of(&site, &id);

    // 90 MB that do not compress; the WAL of it does not fit either.
    server.query("CREATE TABLE noise AS SELECT sha512(n::text::bytea) || sha512((n + 0.5)::text::bytea) FROM generate_series(1, 700000) n");
    let backup = site.barmanfs(&["backup", "main", "--fast-checkpoint", "--wait-timeout", "5"]);
    backup.refused(1).says(&["space"]);
    until("an archive_command fails for want of space", || {
        server.query("SELECT failed_count > 0 FROM pg_stat_archiver") == "t"
    });
    assert!(
        server.log().to_lowercase().contains("space"),
        "The archiver's error does not say what is wrong:\n{}",
        server.log()
    );

    // All that was there before is, and all that was acknowledged.
    site.barmanfs(&["verify"]).ok();
    assert_eq!(checksums_of(&site, &id), checksums);
    let archived = server.query("SELECT last_archived_wal FROM pg_stat_archiver");
    site.ok(&[
        "get-wal",
        "main",
        &archived,
        &site.path("fetched").to_string_lossy(),
    ]);

    // With room again, everything goes on.
    run(Command::new("mount")
        .args(["-o", "remount,size=1g"])
        .arg(site.repository()))
    .ok();
    transact(&server, 10);
    server.archive_current_segment();
    site.backup();
    site.ok(&["verify"]);
}

fn checksums_of(site: &Site, id: &str) -> String {
    let mount = Mount::new(site);
    let checksums = site.checksums(&mount.path(&format!("main/{id}")));
    mount.unmount();
    checksums
}
