//! A standby beside a server.

use super::process::{run, until};
use super::{Install, PgServer, Site};

/// A standby of the server, in `DIR/NAME`.
pub(crate) fn standby_of(site: &Site, primary: &PgServer, install: &'static Install, name: &str) -> PgServer {
    standby_with(site, primary, install, name, "")
}

/// The same with these settings.
pub(crate) fn standby_with(
    site: &Site,
    primary: &PgServer,
    install: &'static Install,
    name: &str,
    settings: &str,
) -> PgServer {
    let data = site.path(name);
    run(primary
        .client("pg_basebackup")
        .args(["-X", "stream", "-c", "fast", "--no-sync", "-D"])
        .arg(&data))
    .ok();
    let mut standby = PgServer::on(install, &data);
    site.sh(&format!("touch '{}/standby.signal'", data.display()))
        .ok();
    standby.configure_auto(&format!(
        "primary_conninfo = '{}'\n{settings}",
        primary.conninfo()
    ));
    standby.start();
    until("the standby streams", || {
        let streams = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walreceiver'";
        primary.query(streams) != "0"
    });
    standby
}

/// Waits until the standby has replayed all WAL that the primary has written.
pub(crate) fn catch_up(primary: &PgServer, standby: &PgServer) {
    let lsn = primary.query("SELECT pg_current_wal_flush_lsn()");
    until("the standby has it", || {
        standby.query(&format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'")) == "t"
    });
}
