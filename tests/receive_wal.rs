//! `receive-wal`: a DBA's days with streamed WAL. In the hardest case, in [`commits`], it is the only synchronous
//! standby and everything is killed all the time. Server changes are in [`failover`], mishaps in [`trouble`].

mod commits;
mod failover;
mod trouble;

use crate::common::load::{assert_sums_agree, fill, transact, transactions};
use crate::common::process::{COMMAND_LIMIT, until, wait};
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};
use commits::no_acknowledged_commit_is_lost;
use failover::{a_promoted_standby_is_followed, wal_of_a_lost_primary_is_kept};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use trouble::{
    a_different_segment_in_the_archive_loses_nothing, a_network_that_loses_messages_loses_no_wal,
    after_a_gap_receiving_restarts_on_request, receiving_waits_while_the_disk_is_full,
};

topic! {
    with_postgres the_archive_gets_all_wal_of_the_server,
    edges a_slot_is_created_used_checked_and_dropped,
    once only_one_process_receives_until_it_is_stopped,
    once a_receiver_goes_on_with_a_changed_configuration,
    edges both_ways_of_archiving_store_the_same_segments,
    edges a_backup_waits_for_the_stream,
    edges a_backup_fetches_wal_that_does_not_arrive,
    edges a_killed_receiver_continues_where_it_was,
    edges a_restarted_server_is_followed,
    once a_network_that_loses_messages_loses_no_wal,
    once a_different_segment_in_the_archive_loses_nothing,
    once receiving_waits_while_the_disk_is_full(as_root),
    edges a_promoted_standby_is_followed,
    edges wal_of_a_lost_primary_is_kept,
    edges after_a_gap_receiving_restarts_on_request,
    edges no_acknowledged_commit_is_lost,
}

/// The configuration of a server that only streams.
const STREAMING: &str = "archiver = off\nstreaming_archiver = on\nslot_name = barmanfs\ncreate_slot = auto\n";

/// Small segments, which the server all keeps for comparison.
fn streaming_site(install: &'static Install, configuration: &str, settings: &str) -> (Site, PgServer) {
    let site = Site::with_repository();
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    server.configure("wal_keep_size = '4GB'\nwal_sender_timeout = '5s'");
    server.configure(settings);
    site.write_config_of(&server, configuration);
    server.start();
    (site, server)
}

/// The kind: a process goes on for weeks with a configuration that nobody has any more.
fn a_receiver_goes_on_with_a_changed_configuration(install: &'static Install) {
    let (site, server) = streaming_site(install, STREAMING, "");
    site.backup();
    let receiver = Receiver::start(&site);
    let name = |name: &str| {
        server.query(&format!(
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = '{name}'"
        ))
    };
    until("it streams", || name("barmanfs_receive_wal") == "1");
    // One that cannot be used changes nothing.
    site.write_config_of(&server, &format!("{STREAMING}archiver = perhaps\n"));
    std::thread::sleep(std::time::Duration::from_secs(13));
    assert_eq!(name("barmanfs_receive_wal"), "1");
    site.write_config_of(
        &server,
        &format!("{STREAMING}streaming_archiver_name = renamed\n"),
    );
    until("it has the new name", || name("renamed") == "1");
    receiver.says("has changed: receiving starts again");
    // The section is renamed: the process is still there, and is named.
    let config = fs::read_to_string(site.config()).unwrap();
    site.write_file("barmanfs.conf", config.replace("[main]", "[other]").as_bytes());
    site.barmanfs(&["check", "all"]).refused(3).says(&[
        "Server main:",
        "no section [main]",
        "receive-wal main --stop",
    ]);
    site.ok(&["receive-wal", "main", "--stop"]);
    assert!(!site.barmanfs(&["check", "all"]).all().contains("Server main:"));
    drop(receiver);
}

/// A running `receive-wal`; killed on drop.
pub(crate) struct Receiver {
    child: Child,
    log: PathBuf,
}

impl Receiver {
    pub(super) fn start(site: &Site) -> Self {
        Self::of(&mut site.barmanfs_command(&["receive-wal", "main", "-v"]), site)
    }

    /// With this command.
    pub(crate) fn of(command: &mut Command, site: &Site) -> Self {
        let log = site.write_file("receive-wal.log", b"");
        let open = || {
            fs::File::options()
                .append(true)
                .open(&log)
                .expect("Cannot open a log")
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(open())
            .stderr(open())
            .spawn()
            .expect("Cannot run barmanfs");
        Self { child, log }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("Cannot read a log")
    }

    #[track_caller]
    pub(crate) fn says(&self, words: &str) {
        let log = &self.log;
        until(
            &format!("receive-wal says {words:?}; it said\n{}", self.log()),
            || fs::read_to_string(log).is_ok_and(|text| text.contains(words)),
        );
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = wait(&mut self.child, COMMAND_LIMIT);
    }

    /// Stops it as systemd does; it must end cleanly.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        let process = Pid::from_child(&self.child);
        kill_process(process, Signal::TERM).expect("Cannot signal");
        let status = wait(&mut self.child, COMMAND_LIMIT);
        assert!(
            status.is_some_and(|status| status.success()),
            "It did not end in order: {status:?}\n{}",
            self.log()
        );
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("receive-wal said:\n{}", self.log());
        }
    }
}

/// Fills this many segments. Returns the last one that was completed.
fn fill_segments(server: &PgServer, count: u32) -> String {
    let mut last = String::new();
    for _ in 0..count {
        server.query(
            "CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler SELECT generate_series(1, 5000)",
        );
        last = server.query("SELECT pg_walfile_name(pg_switch_wal())");
    }
    last
}

/// Whether `get-wal` finds the segment.
fn is_archived(site: &Site, name: &str) -> bool {
    site.barmanfs(&["get-wal", "main", name, "/dev/null"]).code() == Some(0)
}

#[track_caller]
fn wait_for(site: &Site, name: &str) {
    until(&format!("segment {name} is archived"), || is_archived(site, name));
}

/// The archived segments, as the mount shows them, are equal to the files of the server. Returns their number.
#[track_caller]
fn assert_same_as_on(site: &Site, server: &PgServer, from: &str) -> usize {
    let mount = Mount::new(site);
    let wal = mount.path("main/wal");
    let names: Vec<String> = site
        .list(&wal)
        .into_iter()
        .filter(|name| name.len() == 24 && name.as_str() >= from)
        .collect();
    for name in &names {
        site.sh(&format!(
            "cmp '{}/{name}' '{}/pg_wal/{name}'",
            wal.display(),
            server.data.display()
        ))
        .ok();
    }
    // None is missing between the first and the last.
    for pair in names.windows(2) {
        let number = |name: &str| u64::from_str_radix(&name[16..], 16).expect("hexadecimal digits");
        assert!(
            pair[0][..16] != pair[1][..16] || number(&pair[0]) + 1 == number(&pair[1]),
            "There is a gap between {} and {}",
            pair[0],
            pair[1]
        );
    }
    names.len()
}

fn streams(server: &PgServer) -> String {
    server.query(
        "SELECT coalesce(string_agg(application_name || ' ' || state, ','), '') FROM pg_stat_replication",
    )
}

fn the_archive_gets_all_wal_of_the_server(install: &'static Install) {
    let (site, server) = streaming_site(install, STREAMING, "");
    let receiver = Receiver::start(&site);
    receiver.says("Receiving WAL of server main");
    until("it streams", || {
        streams(&server) == "barmanfs_receive_wal streaming"
    });
    let last = fill_segments(&server, 6);
    fill(&server, 1);
    wait_for(&site, &last);
    assert!(assert_same_as_on(&site, &server, "") >= 6);

    // WAL that is not archived yet is in the spool, byte for byte, as far as the server has written it.
    transact(&server, 100);
    let flushed = server.query("SELECT pg_current_wal_flush_lsn()");
    until("all is flushed", || {
        server.query(&format!(
            "SELECT flush_lsn >= '{flushed}' FROM pg_stat_replication"
        )) == "t"
    });
    let position = server.query(&format!(
        "SELECT file_name || ' ' || file_offset FROM pg_walfile_name_offset('{flushed}')"
    ));
    let (name, offset) = position.split_once(' ').unwrap();
    let spooled = site.path(&format!("repository/spool/main/{name}.partial"));
    site.sh(&format!(
        "cmp -n {offset} '{}' '{}/pg_wal/{name}'",
        spooled.display(),
        server.data.display()
    ))
    .ok();
    assert_eq!(fs::metadata(&spooled).unwrap().len(), 1 << 20);
    receiver.stop();
}

fn a_slot_is_created_used_checked_and_dropped(install: &'static Install) {
    let (site, server) = streaming_site(install, &STREAMING.replace("auto", "manual"), "");
    let check = || site.barmanfs(&["check", "main"]);
    check().refused(3).says(&[
        "receive-wal running: FAILED",
        "replication slot: FAILED",
        "--create-slot",
    ]);
    let receiver = Receiver::start(&site);
    receiver.says("--create-slot");
    site.ok(&["receive-wal", "main", "--create-slot"]);
    site.barmanfs(&["receive-wal", "main", "--create-slot"])
        .refused(1)
        .says(&["already exists"]);
    site.barmanfs(&["receive-wal", "main", "--create-slot", "--if-not-exists"])
        .ok()
        .says(&["there already"]);
    until("it streams with the slot", || {
        server.query("SELECT active FROM pg_replication_slots WHERE slot_name = 'barmanfs'") == "t"
    });
    let last = fill_segments(&server, 2);
    wait_for(&site, &last);
    check().says(&[
        "receive-wal running: OK",
        "receive-wal lag: OK",
        "replication slot: OK",
        "continuous archiving: OK",
    ]);
    let lsn = server.query("SELECT pg_current_wal_flush_lsn()");
    until("the slot lets go of what is durable", || {
        server.query(&format!(
            "SELECT restart_lsn >= '{lsn}' FROM pg_replication_slots"
        )) == "t"
    });
    site.barmanfs(&["receive-wal", "main", "--drop-slot"])
        .refused(1)
        .says(&["--stop"]);
    receiver.stop();
    check().refused(3).says(&["not active"]);
    site.ok(&["receive-wal", "main", "--drop-slot"]);
    assert_eq!(server.query("SELECT count(*) FROM pg_replication_slots"), "0");
}

fn only_one_process_receives_until_it_is_stopped(install: &'static Install) {
    let (site, server) = streaming_site(install, STREAMING, "");
    site.barmanfs(&["receive-wal", "main", "--stop"])
        .refused(1)
        .says(&["No process"]);
    let mut receiver = Receiver::start(&site);
    until("it streams", || streams(&server).contains("streaming"));
    site.barmanfs(&["receive-wal", "main"])
        .refused(1)
        .says(&["already", "process"]);
    site.barmanfs(&["receive-wal", "main", "--reset"]).refused(1);
    site.ok(&["receive-wal", "main", "--stop"]);
    let status = wait(&mut receiver.child, COMMAND_LIMIT).expect("it ends");
    assert!(status.success(), "{}", receiver.log());
    until("the server sees it go", || streams(&server).is_empty());
    let log = server.log();
    assert!(
        !log.contains("unexpected EOF"),
        "It left without a goodbye:\n{log}"
    );

    site.write_config_of(&server, "");
    site.barmanfs(&["receive-wal", "main"])
        .refused(2)
        .says(&["streaming_archiver = on"]);
}

fn both_ways_of_archiving_store_the_same_segments(install: &'static Install) {
    let (site, mut server) =
        streaming_site(install, &STREAMING.replace("archiver = off", "archiver = on"), "");
    server.configure(&format!(
        "archive_mode = on\narchive_command = '{}'",
        site.archive_command()
    ));
    server.stop("fast");
    server.start();
    let receiver = Receiver::start(&site);
    until("it streams", || streams(&server).contains("streaming"));
    fill_segments(&server, 4);
    fill(&server, 2);
    let last = server.archive_current_segment();
    until("receive-wal has it too", || {
        !site
            .path(&format!("repository/spool/main/{last}.partial"))
            .exists()
            && !site.path(&format!("repository/spool/main/{last}")).exists()
    });
    assert!(assert_same_as_on(&site, &server, "") >= 10);
    assert_eq!(server.query("SELECT failed_count FROM pg_stat_archiver"), "0");
    assert!(!receiver.log().contains("ERROR"), "{}", receiver.log());
    site.barmanfs(&["check", "main"])
        .says(&["archive_command: OK", "receive-wal running: OK"]);
}

fn a_backup_waits_for_the_stream(install: &'static Install) {
    let (site, server) = streaming_site(install, STREAMING, "");
    fill(&server, 1);
    // `receive-wal` does not run: the backup brings its WAL itself, and says so.
    site.barmanfs(&["backup", "main", "--fast-checkpoint"])
        .ok()
        .says(&["receive-wal main"]);
    let _receiver = Receiver::start(&site);
    until("it streams", || streams(&server).contains("streaming"));
    transact(&server, 100);
    site.backup();
    let newest = site.backups().pop().expect("a backup");
    assert_eq!(newest["wal_included"], false, "{newest}");
    let before = transactions(&server);
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(transactions(&copy), before);
    copy.assert_sound();
}

fn a_backup_fetches_wal_that_does_not_arrive(install: &'static Install) {
    // Archiving is configured, and nothing arrives.
    let settings = "archive_mode = on\narchive_command = 'false'";
    let (site, server) = streaming_site(install, "archiver = on\n", settings);
    fill(&server, 1);
    let backup = site.barmanfs(&["backup", "main", "--fast-checkpoint", "--wait-timeout", "8"]);
    backup.ok().says(&["fetched what it needs itself", "check main"]);
    let newest = site.backups().pop().expect("a backup");
    assert_eq!(
        (&newest["status"], &newest["wal_included"]),
        (&"DONE".into(), &false.into()),
        "{newest}"
    );
    assert!(assert_same_as_on(&site, &server, "") >= 1);
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    assert_sums_agree(&copy);
    assert_eq!(
        server.query("SELECT count(*) FROM pg_replication_slots"),
        "0",
        "The slot went with its backup"
    );
}

fn a_killed_receiver_continues_where_it_was(install: &'static Install) {
    let (site, server) = streaming_site(install, STREAMING, "");
    let mut first = String::new();
    for _ in 0..5 {
        let mut receiver = Receiver::start(&site);
        until("it streams", || streams(&server).contains("streaming"));
        let last = fill_segments(&server, 2);
        transact_one(&server);
        if first.is_empty() {
            first = last;
        }
        receiver.kill();
        // The server keeps WAL that is written meanwhile.
        fill_segments(&server, 1);
    }
    let receiver = Receiver::start(&site);
    let last = fill_segments(&server, 1);
    wait_for(&site, &last);
    assert!(assert_same_as_on(&site, &server, &first) >= 12);
    assert!(!receiver.log().contains("ERROR"), "{}", receiver.log());
    receiver.stop();
}

fn transact_one(server: &PgServer) {
    server.query("CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler VALUES (1)");
}

fn a_restarted_server_is_followed(install: &'static Install) {
    let (site, mut server) = streaming_site(install, STREAMING, "");
    let receiver = Receiver::start(&site);
    until("it streams", || streams(&server).contains("streaming"));
    transact_one(&server);
    // A server that shuts down waits until its receivers have all WAL: this must not take long.
    let began = std::time::Instant::now();
    server.stop("fast");
    assert!(
        began.elapsed().as_secs() < 20,
        "The shutdown waited for receive-wal"
    );
    receiver.says("next try in");
    server.start();
    let last = fill_segments(&server, 2);
    wait_for(&site, &last);
    server.kill();
    server.start();
    let last = fill_segments(&server, 2);
    wait_for(&site, &last);
    assert_same_as_on(&site, &server, "");
    receiver.stop();
}

fn spooled(site: &Site) -> Vec<String> {
    site.list(&site.path("repository/spool/main"))
}
