//! `raw/<id>` is what the server had on its disk: bytes, modes and times.

use crate::common::load::{fill, transact};
use crate::common::registry::topic;
use crate::common::tree::differences;
use crate::common::{Install, Mount, Site};

topic! {
    with_postgres raw_agrees_with_the_data_directory,
    edges the_view_adds_only_what_pg_verifybackup_ignores,
}

/// Files that are not in a base backup (PostgreSQL's own list), or that the backup makes.
fn is_excluded(path: &str) -> bool {
    const EMPTIED: [&str; 8] = [
        "pg_wal/",
        "pg_dynshmem/",
        "pg_notify/",
        "pg_replslot/",
        "pg_serial/",
        "pg_snapshots/",
        "pg_stat_tmp/",
        "pg_subtrans/",
    ];
    const NAMES: [&str; 6] = [
        "postmaster.pid",
        "postmaster.opts",
        "backup_label",
        "backup_manifest",
        "tablespace_map",
        "current_logfiles",
    ];
    NAMES.contains(&path)
        || EMPTIED.iter().any(|directory| path.starts_with(directory))
        || path.ends_with("pg_internal.init")
        || path.contains("pgsql_tmp")
}

pub(crate) fn raw_agrees_with_the_data_directory(install: &'static Install) {
    let (site, mut primary) = Site::with_server(install);
    // The server itself writes nothing between the backup and the comparison.
    primary.query("ALTER SYSTEM SET bgwriter_lru_maxpages = 0");
    primary.query("ALTER SYSTEM SET checkpoint_timeout = '1h'");
    primary.query("SELECT pg_reload_conf()");
    fill(&primary, 2);
    transact(&primary, 500);
    primary.query("CREATE TABLE many_columns (id int, t text)");
    primary.query(
        "INSERT INTO many_columns SELECT n, repeat(md5(n::text), 300) FROM generate_series(1, 2000) n",
    );
    primary.query("DELETE FROM pgbench_accounts WHERE aid % 3 = 0");
    primary.query("VACUUM FREEZE");
    // Hint bits and statistics are written first, so that nothing is left to write after the backup's checkpoint.
    primary.query("SELECT count(*) FROM pgbench_accounts; SELECT count(*) FROM many_columns; CHECKPOINT");
    let id = site.backup();
    // Without a shutdown checkpoint: the data directory stays as the backup found it.
    primary.stop("immediate");

    let mount = Mount::new(&site);
    let raw = site.copy(&mount.path(&format!("main/raw/{id}")), "raw");
    let mut found = differences(&primary.data, &raw, &is_excluded);
    // The backup created and dropped its temporary slot in one of them. Some minor releases write the other at that
    // moment, so it has that time.
    let other_times = ["pg_replslot: time", "global/pg_control: time"];
    found.retain(|difference| !other_times.iter().any(|known| difference.starts_with(known)));
    assert!(
        found.is_empty(),
        "{} differences:\n{}",
        found.len(),
        found.join("\n")
    );
}

fn the_view_adds_only_what_pg_verifybackup_ignores(install: &'static Install) {
    let (site, primary) = Site::with_server(install);
    fill(&primary, 1);
    let id = site.backup();
    let mount = Mount::new(&site);
    let raw = site.copy(&mount.path(&format!("main/raw/{id}")), "raw");
    let view = site.copy(&mount.path(&format!("main/{id}")), "view");
    let allowed = |path: &str| {
        path.starts_with("pg_wal/")
            || ["recovery.signal", "postgresql.auto.conf", "backup_manifest"].contains(&path)
    };
    let found = differences(&raw, &view, &allowed);
    assert!(
        found.is_empty(),
        "{} differences:\n{}",
        found.len(),
        found.join("\n")
    );
    let auto_conf = std::fs::read_to_string(view.join("postgresql.auto.conf")).unwrap();
    for line in [
        "archive_mode",
        "restore_command",
        "recovery_target",
        "recovery_target_action",
    ] {
        assert!(
            auto_conf.contains(line),
            "No {line} in postgresql.auto.conf:\n{auto_conf}"
        );
    }
    assert!(view.join("recovery.signal").exists() && view.join("backup_label").exists());
}
