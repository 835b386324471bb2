//! Trouble around it: the network, the disk, the archive, a missing slot.

use super::{
    Receiver, STREAMING, assert_same_as_on, fill_segments, spooled, streaming_site, streams, transact_one,
    wait_for,
};
use crate::common::disk::SmallDisk;
use crate::common::load::fill;
use crate::common::process::until;
use crate::common::proxy::{Fate, Proxy};
use crate::common::random::Random;
use crate::common::{Install, PgServer, Site};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub(super) fn a_network_that_loses_messages_loses_no_wal(install: &'static Install) {
    let (site, server) = streaming_site(install, STREAMING, "");
    let mut random = Random::new("a_network_that_loses_messages_loses_no_wal");
    let lost = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&lost);
    let proxy = Proxy::start(&server.sockets(), move |payload| {
        let fate = match random.below(40) {
            0 => Fate::Cut,
            1 if payload.first() == Some(&b'w') => Fate::Drop,
            2 if payload.first() == Some(&b'w') => {
                // A message from another place in the stream.
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

/// A fork: nothing is mixed into the archive, and no received WAL is lost until a decision.
pub(super) fn a_different_segment_in_the_archive_loses_nothing(install: &'static Install) {
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

    // Another process archives another segment of that name.
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
    until(&format!("segment {last} is put aside"), || {
        let listed = site.barmanfs(&["quarantine", "main", "list"]);
        listed.text().contains(&last)
    });
    receiver.says("other content");
    site.barmanfs(&["check", "main"]).refused(3).says(&["history"]);
    let kept = site
        .barmanfs(&["get-wal", "main", &format!("{partial}.partial")])
        .ok();
    assert!(kept.stdout == before, "What was received is kept as it was");
    let archived = site.barmanfs(&["get-wal", "main", &partial]).ok();
    assert!(archived.stdout == other, "What was archived is never overwritten");
}

/// The repository's file system is full for a while: the server keeps the WAL that cannot be received.
pub(super) fn receiving_waits_while_the_disk_is_full(install: &'static Install) {
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

pub(super) fn after_a_gap_receiving_restarts_on_request(install: &'static Install) {
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
