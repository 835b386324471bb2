//! `receive-wal`: a DBA's days with WAL that is streamed. The hardest one, where it is the only synchronous standby and
//! everything is killed all the time, is in [`commits`].

mod commits;

use crate::common::disk::SmallDisk;
use crate::common::load::{assert_sums_agree, fill, transact, transactions};
use crate::common::process::{COMMAND_LIMIT, run, until, wait};
use crate::common::proxy::{Fate, Proxy};
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

topic! {
    with_postgres the_archive_gets_what_the_server_wrote,
    with_postgres a_slot_is_made_used_watched_and_dropped,
    with_postgres one_process_receives_until_it_is_stopped,
    with_postgres both_archivers_bring_the_same_segments,
    with_postgres a_backup_waits_for_the_stream,
    with_postgres a_backup_fetches_what_does_not_come,
    with_postgres killed_it_goes_on_where_it_was,
    with_postgres a_server_that_stops_and_starts_is_followed,
    with_postgres a_network_that_loses_messages_loses_no_wal,
    with_postgres another_segment_in_the_archive_stops_nothing,
    with_postgres a_full_disk_is_waited_out(as_root),
    with_postgres a_promoted_standby_is_followed,
    with_postgres what_a_lost_primary_had_sent_is_kept,
    with_postgres after_a_gap_it_begins_anew_when_told,
    with_postgres no_commit_that_returned_is_lost,
}

fn no_commit_that_returned_is_lost(install: &'static Install) {
    commits::no_commit_that_returned_is_lost(install);
}

/// The lines of a server that only streams.
const STREAMING: &str = "archiver = off\nstreaming_archiver = on\nslot_name = barmanfs\ncreate_slot = auto\n";

/// Small segments, and all of them kept for comparison.
fn streaming_site(install: &'static Install, configuration: &str, settings: &str) -> (Site, PgServer) {
    let site = Site::with_repository();
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    server.configure("wal_keep_size = '4GB'\nwal_sender_timeout = '5s'");
    server.configure(settings);
    site.write_config_of(&server, configuration);
    server.start();
    (site, server)
}

/// `receive-wal` at work; killed when this goes.
pub(super) struct Receiver {
    child: Child,
    log: PathBuf,
}

impl Receiver {
    pub(super) fn start(site: &Site) -> Self {
        let log = site.write_file("receive-wal.log", b"");
        let open = || {
            fs::File::options()
                .append(true)
                .open(&log)
                .expect("Cannot open a log")
        };
        let child = site
            .barmanfs_command(&["receive-wal", "main", "-v"])
            .stdin(Stdio::null())
            .stdout(open())
            .stderr(open())
            .spawn()
            .expect("Cannot run barmanfs");
        Self { child, log }
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("Cannot read a log")
    }

    #[track_caller]
    pub(super) fn says(&self, words: &str) {
        let log = &self.log;
        until(
            &format!("receive-wal says {words:?}; it said\n{}", self.log()),
            || fs::read_to_string(log).is_ok_and(|text| text.contains(words)),
        );
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = wait(&mut self.child, COMMAND_LIMIT);
    }

    /// As systemd stops it; it must end in order.
    #[track_caller]
    fn stop(mut self) {
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

/// Work that fills so many segments; the last one it ended.
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

/// The segments `get-wal` finds, of those that are asked for.
fn is_archived(site: &Site, name: &str) -> bool {
    site.barmanfs(&["get-wal", "main", name, "/dev/null"]).code() == Some(0)
}

#[track_caller]
fn wait_for(site: &Site, name: &str) {
    until(&format!("segment {name} is archived"), || is_archived(site, name));
}

/// The archived segments with their bytes as the mount shows them equal the files of the server. How many there were.
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

fn the_archive_gets_what_the_server_wrote(install: &'static Install) {
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

    // What is not archived yet is in the spool, byte for byte, as far as the server has written it.
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

fn a_slot_is_made_used_watched_and_dropped(install: &'static Install) {
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

fn one_process_receives_until_it_is_stopped(install: &'static Install) {
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

fn both_archivers_bring_the_same_segments(install: &'static Install) {
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
    // Nobody receives: the backup brings its WAL itself, and says so.
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

fn a_backup_fetches_what_does_not_come(install: &'static Install) {
    // Archiving was told to work, and nothing arrives.
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

fn killed_it_goes_on_where_it_was(install: &'static Install) {
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
        // What comes meanwhile is kept for it.
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

fn a_server_that_stops_and_starts_is_followed(install: &'static Install) {
    let (site, mut server) = streaming_site(install, STREAMING, "");
    let receiver = Receiver::start(&site);
    until("it streams", || streams(&server).contains("streaming"));
    transact_one(&server);
    // A server that shuts down waits until its receivers have everything: this must not take long.
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

fn a_network_that_loses_messages_loses_no_wal(install: &'static Install) {
    let (site, server) = streaming_site(install, STREAMING, "");
    let mut random = Random::new("a_network_that_loses_messages_loses_no_wal");
    let lost = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&lost);
    let proxy = Proxy::start(&server.sockets(), move |payload| {
        let fate = match random.below(40) {
            0 => Fate::Cut,
            1 if payload.first() == Some(&b'w') => Fate::Drop,
            2 if payload.first() == Some(&b'w') => {
                // A message that belongs elsewhere.
                payload[5] ^= 1;
                Fate::Pass
            }
            _ => return Fate::Pass,
        };
        count.fetch_add(1, Ordering::Relaxed);
        fate
    });
    let config = fs::read_to_string(site.config()).unwrap();
    let config = config.replace(&server.conninfo(), &proxy.conninfo());
    site.write_file("barmanfs.conf", config.as_bytes());
    let receiver = Receiver::start(&site);
    until("it streams", || streams(&server).contains("streaming"));
    fill(&server, 1);
    let last = fill_segments(&server, 10);
    wait_for(&site, &last);
    assert!(assert_same_as_on(&site, &server, "") >= 15);
    assert!(lost.load(Ordering::Relaxed) > 0, "The network was too good");
    assert!(receiver.log().contains("next try in"), "{}", receiver.log());
}

fn another_segment_in_the_archive_stops_nothing(install: &'static Install) {
    let (site, server) = streaming_site(install, STREAMING, "");
    let receiver = Receiver::start(&site);
    until("it streams", || streams(&server).contains("streaming"));
    let name = fill_segments(&server, 1);
    wait_for(&site, &name);
    server.query("INSERT INTO filler SELECT generate_series(1, 500)");
    let partial = server.query("SELECT pg_walfile_name(pg_current_wal_lsn())");
    until("its beginning is received", || {
        spooled(&site) == [format!("{partial}.partial")]
    });
    let received = site.path(&format!("repository/spool/main/{partial}.partial"));
    until("and synced", || {
        fs::read(&received).is_ok_and(|bytes| bytes[20_000..20_100].iter().any(|byte| *byte != 0))
    });
    receiver.stop();
    let before = fs::read(&received).unwrap();

    // Somebody else archives another segment of that name.
    fill_segments(&server, 1);
    let mut other = fs::read(server.data.join("pg_wal").join(&partial)).unwrap();
    let at = (20_000..)
        .find(|at| before[*at] != 0)
        .expect("a byte that was received");
    other[at] ^= 0x55;
    let path = site.write_file(&partial, &other);
    site.ok(&["wal-archive", "main", &path.to_string_lossy()]);
    let receiver = Receiver::start(&site);
    let last = fill_segments(&server, 2);
    wait_for(&site, &last);
    receiver.says("other content");
    let kept = site
        .barmanfs(&["get-wal", "main", &format!("{partial}.partial")])
        .ok();
    assert!(kept.stdout == before, "What was received is kept as it was");
    let archived = site.barmanfs(&["get-wal", "main", &partial]).ok();
    assert!(archived.stdout == other, "What was archived is never overwritten");
}

/// The repository's file system is full for a while: the server keeps what cannot be received.
fn a_full_disk_is_waited_out(install: &'static Install) {
    let site = Site::new();
    let disk = SmallDisk::mount(&site.make_directory("repository"), 24);
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    server.configure("wal_keep_size = '4GB'");
    site.write_config_of(&server, STREAMING);
    server.start();
    site.backup();
    let receiver = Receiver::start(&site);
    until("it streams", || streams(&server).contains("streaming"));
    let first = fill_segments(&server, 1);
    wait_for(&site, &first);
    // WAL that does not compress.
    server.query(
        "CREATE TABLE noise AS SELECT sha512(n::text::bytea) || sha512((n + 0.5)::text::bytea) FROM generate_series(1, 200000) n",
    );
    receiver.says("No space left");
    disk.grow(400);
    let last = fill_segments(&server, 2);
    wait_for(&site, &last);
    assert!(assert_same_as_on(&site, &server, "") >= 20);
    receiver.stop();
}

/// A standby of the server, which streams from it.
fn standby_of(site: &Site, primary: &PgServer, install: &'static Install) -> PgServer {
    let data = site.path("standby");
    run(primary
        .client("pg_basebackup")
        .args(["-X", "stream", "-c", "fast", "--no-sync", "-D"])
        .arg(&data))
    .ok();
    let mut standby = PgServer::on(install, &data);
    site.sh(&format!("touch '{}/standby.signal'", data.display()))
        .ok();
    standby.configure_auto(&format!("primary_conninfo = '{}'", primary.conninfo()));
    standby.start();
    until("the standby streams", || streams(primary).contains("walreceiver"));
    standby
}

/// Waits until the standby has replayed all the primary has written.
fn catch_up(primary: &PgServer, standby: &PgServer) {
    let lsn = primary.query("SELECT pg_current_wal_flush_lsn()");
    until("the standby has it", || {
        standby.query(&format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'")) == "t"
    });
}

fn a_promoted_standby_is_followed(install: &'static Install) {
    let (site, mut primary) = streaming_site(install, STREAMING, "");
    fill(&primary, 1);
    let mut standby = standby_of(&site, &primary, install);
    site.write_config_of(&standby, STREAMING);
    let receiver = Receiver::start(&site);
    let old = fill_segments(&primary, 2);
    wait_for(&site, &old);
    transact(&primary, 50);
    catch_up(&primary, &standby);
    primary.stop("fast");
    standby.query("SELECT pg_promote()");
    standby.wait_until_promoted();
    transact(&standby, 50);
    let last = fill_segments(&standby, 3);
    assert!(last.starts_with("00000002"), "{last}");
    wait_for(&site, &last);
    assert!(assert_same_as_on(&site, &standby, "00000002") >= 3);
    receiver.stop();

    let mount = Mount::new(&site);
    let names = site.list(&mount.path("main/wal"));
    assert!(names.contains(&"00000002.history".to_owned()), "{names:?}");
    assert!(
        !names
            .iter()
            .any(|name| name.starts_with("00000001") && name.ends_with(".partial")),
        "What the new timeline took over is not kept twice: {names:?}"
    );
    assert_eq!(
        spooled(&site)
            .iter()
            .filter(|name| name.starts_with("00000001"))
            .count(),
        0
    );
    standby.stop("fast");
}

fn spooled(site: &Site) -> Vec<String> {
    site.list(&site.path("repository/spool/main"))
}

fn what_a_lost_primary_had_sent_is_kept(install: &'static Install) {
    let (site, mut primary) = streaming_site(install, STREAMING, "");
    fill(&primary, 1);
    let mut standby = standby_of(&site, &primary, install);
    let receiver = Receiver::start(&site);
    until("it streams", || {
        streams(&primary).contains("barmanfs_receive_wal streaming")
    });
    catch_up(&primary, &standby);
    standby.stop("fast");
    // These commits only the primary has, and what received from it.
    primary.query("CREATE TABLE only_there (n int); INSERT INTO only_there VALUES (42)");
    let lsn = primary.query("SELECT pg_current_wal_flush_lsn()");
    until("they are received", || {
        primary.query(&format!(
            "SELECT flush_lsn >= '{lsn}' FROM pg_stat_replication WHERE application_name = 'barmanfs_receive_wal'"
        )) == "t"
    });
    let partial = format!(
        "{}.partial",
        primary.query("SELECT pg_walfile_name(pg_current_wal_lsn())")
    );
    let before = fs::read(site.path(&format!("repository/spool/main/{partial}"))).unwrap();
    primary.kill();
    receiver.stop();

    site.write_config_of(&standby, STREAMING);
    standby.configure_auto("primary_conninfo = ''");
    standby.start();
    standby.query("SELECT pg_promote()");
    standby.wait_until_promoted();
    transact(&standby, 20);
    let receiver = Receiver::start(&site);
    let last = fill_segments(&standby, 2);
    wait_for(&site, &last);
    receiver.says("Commits in it are not on the server");
    let kept = site.barmanfs(&["get-wal", "main", &partial]).ok();
    assert!(kept.stdout == before, "{partial} is kept as it was");
    assert_same_as_on(&site, &standby, "00000002");
    assert_sums_agree(&standby);
}

fn after_a_gap_it_begins_anew_when_told(install: &'static Install) {
    // Without a slot nothing keeps the WAL.
    let configuration = "archiver = off\nstreaming_archiver = on\n";
    let settings = "wal_keep_size = 0\nmin_wal_size = 2MB\nmax_wal_size = 4MB";
    let (site, server) = streaming_site(install, configuration, settings);
    let receiver = Receiver::start(&site);
    receiver.says("no slot_name");
    until("it streams", || streams(&server).contains("streaming"));
    let before = fill_segments(&server, 2);
    wait_for(&site, &before);
    transact_one(&server);
    let lsn = server.query("SELECT pg_current_wal_flush_lsn()");
    until("it is received", || {
        server.query(&format!("SELECT flush_lsn >= '{lsn}' FROM pg_stat_replication")) == "t"
    });
    let partial = format!(
        "{}.partial",
        server.query("SELECT pg_walfile_name(pg_current_wal_lsn())")
    );
    receiver.stop();
    fill_segments(&server, 10);
    for _ in 0..2 {
        server.query("CHECKPOINT");
        fill_segments(&server, 1);
    }
    let receiver = Receiver::start(&site);
    receiver.says("there is a gap");
    receiver.says("--reset");
    receiver.stop();
    assert_eq!(
        spooled(&site),
        std::slice::from_ref(&partial),
        "What there was is still there"
    );

    site.ok(&["receive-wal", "main", "--reset"]);
    site.ok(&["get-wal", "main", &partial, &site.path("kept").to_string_lossy()]);
    let receiver = Receiver::start(&site);
    until("it streams", || streams(&server).contains("streaming"));
    let last = fill_segments(&server, 2);
    wait_for(&site, &last);
    receiver.stop();
    assert!(Path::new(&site.path("kept")).exists());
}
