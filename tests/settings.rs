//! What copies, clones and boot tests make of the original's settings: none of them reaches what is not theirs.

use crate::clone_commands::Stage;
use crate::common::process::run;
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer};
use std::fs;
use std::path::Path;

topic! {
    with_postgres no_file_of_the_original_is_touched,
}

/// `verify --boot` of a backup.
#[track_caller]
fn boot(stage: &Stage, id: &str) {
    let bindir = stage.install.bindir.to_str().expect("a path");
    run(stage
        .site
        .barmanfs_command(&["verify", "main", id, "--boot", "--bindir", bindir])
        .env("TMPDIR", stage.site.make_directory("tmp")))
    .ok()
    .says(&["OK main"]);
}

/// Where a view's `pg_hba.conf` lets local users in under their own name only.
fn let_everybody_in(stage: &Stage, data: &Path) {
    let hba = data.join("pg_hba.conf");
    stage
        .site
        .sh(&format!("echo 'local all all trust' > '{}'", hba.display()))
        .ok();
}

fn no_file_of_the_original_is_touched(install: &'static Install) {
    let mut stage = Stage::new(install);
    let (outside, data) = (stage.site.make_directory("etc"), stage.primary.data.clone());
    let (etc, at) = (outside.display(), data.display());
    stage.site.write_file(
        "etc/hba.conf",
        b"local all all trust\nlocal replication all trust\n",
    );
    stage.site.write_file("etc/ident.conf", b"");
    stage.primary.configure(&format!(
        "data_directory = '{at}'\nHba_File='{etc}/hba.conf'\n  ident_file '{etc}/ident.conf'\n\
         external_pid_file = '{etc}/main.pid'\nlogging_collector = on\nlog_directory = '{etc}'\n\
         log_filename = 'main.log'"
    ));
    stage.primary.stop("fast");
    stage.primary.start();
    let id = stage.site.backup();
    stage.primary.stop("fast");
    let control = data.join("global/pg_control");
    let (was, had) = (fs::read(&control).unwrap(), stage.site.checksums(&outside));
    let assert_untouched = |by: &str| {
        assert!(fs::read(&control).unwrap() == was, "{by} has written {at}");
        assert_eq!(stage.site.checksums(&outside), had, "{by}");
    };
    let mount = Mount::new(&stage.site);

    stage.clone(&["create", "main", "test1"]).ok();
    let path = mount.path("main/live/test1");
    let_everybody_in(&stage, &path);
    stage.clone(&["start", "main", "test1", "--replay"]).ok();
    let own = |name: &str| path.join(name).display().to_string();
    for (setting, expected) in [
        ("data_directory", own("")),
        ("hba_file", own("pg_hba.conf")),
        ("ident_file", own("pg_ident.conf")),
        ("external_pid_file", own("postmaster.external.pid")),
    ] {
        let value = stage.query("test1", &format!("SHOW {setting}"));
        assert_eq!(value, expected.trim_end_matches('/'), "{setting}");
    }
    stage.clone(&["stop", "main", "test1"]).ok();
    assert_untouched("clone start");

    let mut clone = PgServer::on_mount(install, &path, &stage.site.path("test1"));
    clone.start();
    assert_eq!(clone.query("SHOW data_directory"), own("").trim_end_matches('/'));
    clone.stop("fast");
    assert_untouched("pg_ctl on the clone");

    boot(&stage, &id);
    assert_untouched("verify --boot");

    let latest = mount.path("main/latest");
    stage.primary.verify_backup(&latest, None);
    let mut copy = PgServer::on(install, &stage.site.copy(&latest, "copy"));
    let_everybody_in(&stage, &copy.data);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SHOW data_directory"), copy.data.to_str().unwrap());
    copy.stop("fast");
    assert_untouched("pg_ctl on a copy");
}
