//! The server becomes another cluster under the same name: `pg_upgrade` to another major version. The kind: the stored
//! data is of one cluster, and new data of another, with the same file names. The two are never mixed, each command
//! reports the change, and both are there under names of their own.

use crate::common::histories::{AUTO, assert_restores, backup, digest, insert, recovered, remove, site};
use crate::common::process::run;
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};

topic! {
    once an_upgraded_cluster_is_refused_under_its_old_name,
}

fn an_upgraded_cluster_is_refused_under_its_old_name(newer: &'static Install) {
    let older = Install::all()
        .iter()
        .filter(|install| install.major < newer.major && install.program("pg_upgrade").exists())
        .max_by_key(|install| install.major);
    let Some(older) = older else {
        eprintln!("There is no server to upgrade from here: left out");
        return;
    };
    let (site, mut before) = site(older);
    let (old, _, first) = backup(&site, &before);
    insert(&before, 10_001, 12_000, "before");
    before.archive_current_segment();
    before.stop("fast");
    let server = upgrade(&site, &before, newer);

    site.barmanfs(&AUTO)
        .refused(1)
        .says(&["system identifier", "another server name"]);
    let name = server.query("SELECT pg_walfile_name(pg_switch_wal())");
    let segment = server.data.join("pg_wal").join(&name);
    site.barmanfs(&["wal-archive", "main", &segment.to_string_lossy()])
        .refused(1)
        .says(&["system identifier", "another server name"]);
    site.barmanfs(&["check", "main"])
        .refused(3)
        .says(&["system identifier: FAILED"]);
    assert_eq!(site.backup_ids(), std::slice::from_ref(&old));

    site.write_config(&[("main", &server), ("upgraded", &server)]);
    server.query(&format!(
        "ALTER SYSTEM SET archive_command = '{}'",
        site.archive_command().replace(" main ", " upgraded ")
    ));
    server.query("SELECT pg_reload_conf()");
    insert(&server, 20_001, 21_000, "after");
    let second = digest(&server);
    site.ok(&["backup", "upgraded", "--fast-checkpoint"]);
    insert(&server, 21_001, 22_000, "after");
    let end = digest(&server);
    server.archive_current_segment();
    assert_restores(&site, older, &old, &first);
    let mount = Mount::new(&site);
    for (view, expected) in [("upgraded/latest", second), ("upgraded/pitr/now", end)] {
        let data = site.copy(&mount.path(view), "copy");
        let mut copy = recovered(PgServer::on(newer, &data), view, &expected);
        copy.stop("fast");
        remove(&site, &copy);
    }
    mount.unmount();
}

/// Puts the upgraded cluster where the old one was, with its settings.
fn upgrade(site: &Site, old: &PgServer, newer: &'static Install) -> PgServer {
    let new = PgServer::init(newer, &site.path("new"), &[]);
    run(new
        .command("pg_upgrade")
        .arg("--no-sync")
        .arg("--old-bindir")
        .arg(&old.install.bindir)
        .arg("--new-bindir")
        .arg(&newer.bindir)
        .arg("--old-datadir")
        .arg(&old.data)
        .arg("--new-datadir")
        .arg(&new.data)
        .arg("--socketdir")
        .arg(new.sockets())
        .args(["--username", "postgres"]))
    .ok();
    site.sh(&format!(
        "rm -rf '{old}' && mv '{new}' '{old}'",
        old = old.data.display(),
        new = new.data.display()
    ))
    .ok();
    let mut server = PgServer::on(newer, &old.data);
    server.configure(&format!(
        "archive_mode = on\narchive_command = '{}'",
        site.archive_command()
    ));
    server.start();
    server
}
