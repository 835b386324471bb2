//! The kind: WAL that the server keeps for a backup is released too early. PostgreSQL drops the temporary slots of a
//! session when any command of that session fails, even if the failure is expected and the backup continues. So the WAL
//! of a backup must be kept whatever else fails.

use crate::common::load::fill;
use crate::common::process::{run, until};
use crate::common::proxy::{Fate, Proxy, is_header_of};
use crate::common::registry::topic;
use crate::common::user::command;
use crate::common::{Install, Mount, PgServer, Site};
use std::path::PathBuf;
use std::process::Stdio;

topic! {
    since_17 a_backup_that_becomes_a_full_one_keeps_its_wal,
    once a_backup_that_becomes_a_full_one_keeps_its_wal_on_one_connection,
    edges a_backup_with_bad_pages_keeps_its_wal,
}

/// A server that removes WAL as soon as it may.
fn forgetful_server(install: &'static Install, settings: &str) -> (Site, PgServer) {
    let site = Site::with_repository();
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    server.configure("min_wal_size = 2MB\nmax_wal_size = 2MB\nwal_keep_size = 0\narchive_mode = off");
    server.configure(settings);
    server.start();
    site.write_config(&[("main", &server)]);
    (site, server)
}

/// A session that fills segments and makes the server remove those that nothing keeps.
#[derive(Clone)]
struct Rotation {
    psql: PathBuf,
    sockets: PathBuf,
}

impl Rotation {
    fn of(server: &PgServer) -> Self {
        Self {
            psql: server.install.program("psql"),
            sockets: server.sockets(),
        }
    }

    fn run(&self) {
        let mut psql = command(&self.psql, &self.sockets);
        psql.args(["-XAtq", "-h"]).arg(&self.sockets);
        psql.args(["-U", "postgres", "-d", "postgres"]);
        for _ in 0..8 {
            psql.args(["-c", "SELECT txid_current()", "-c", "SELECT pg_switch_wal()"]);
        }
        run(psql.args([
            "-c",
            "CHECKPOINT",
            "-c",
            "SELECT txid_current()",
            "-c",
            "CHECKPOINT",
        ]))
        .ok();
    }
}

/// The second backup is requested as an incremental one, which fails: the summaries do not reach back.
fn becomes_full(install: &'static Install, settings: &str) {
    let (site, mut server) = forgetful_server(install, settings);
    fill(&server, 1);
    site.backup();
    server.stop("fast");
    server.configure("summarize_wal = on");
    server.start();
    let rotation = Rotation::of(&server);
    let proxy = Proxy::start(&server.sockets(), move |payload| {
        if is_header_of(payload, "base/1/PG_VERSION") {
            rotation.run();
        }
        Fate::Pass
    });
    site.write_config_with(&[("main", &proxy.conninfo())]);
    site.barmanfs(&["backup", "main", "--fast-checkpoint"])
        .ok()
        .says(&["becomes a full one"]);
    let newest = site.backups().pop().expect("a backup");
    assert_eq!(newest["status"], "DONE", "{newest}");
    let mount = Mount::new(&site);
    server.verify_backup(&mount.path("main/latest"), None);
    until("the slot went with its backup", || {
        server.query("SELECT count(*) FROM pg_replication_slots") == "0"
    });
}

fn a_backup_that_becomes_a_full_one_keeps_its_wal(install: &'static Install) {
    becomes_full(install, "");
}

/// With only one WAL sender, none is left for the slot.
fn a_backup_that_becomes_a_full_one_keeps_its_wal_on_one_connection(install: &'static Install) {
    becomes_full(install, "max_wal_senders = 1");
}

/// PostgreSQL ends such a backup with an error after it has sent everything. WAL that did not arrive through the
/// archive is fetched from the server afterwards.
fn a_backup_with_bad_pages_keeps_its_wal(install: &'static Install) {
    let (site, mut server) = forgetful_server(install, "");
    fill(&server, 1);
    let table = server.query("SELECT pg_relation_filepath('pgbench_accounts')");
    server.stop("fast");
    site.sh(&format!(
        "printf 'spoilt' | dd of='{}/{table}' bs=1 seek=20000 conv=notrunc status=none",
        server.data.display()
    ))
    .ok();
    server.start();
    site.write_config_of(&server, "archiver = on\n");
    let mut backup = site
        .barmanfs_command(&["backup", "main", "--fast-checkpoint", "--wait-timeout", "20"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("Cannot run barmanfs");
    until("the backup waits for its WAL", || {
        site.backups()
            .pop()
            .is_some_and(|backup| backup["status"] == "WAITING_FOR_WALS")
    });
    Rotation::of(&server).run();
    crate::common::process::wait(&mut backup, crate::common::process::COMMAND_LIMIT);
    let newest = site.backups().pop().expect("a backup");
    assert_eq!(newest["status"], "DONE", "{newest}");
    assert_ne!(newest["checksum_failures"], serde_json::json!([]), "{newest}");
}
