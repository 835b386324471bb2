//! The only synchronous standby: a commit that has returned is never lost, whatever is killed.

use super::{Receiver, STREAMING};
use crate::common::committer::{Committer, assert_none_lost};
use crate::common::load::fill;
use crate::common::process::until;
use crate::common::random::Random;
use crate::common::{Install, Load, Mount, PgServer, Site};
use std::time::{Duration, Instant};

/// Clients that count their commits.
const CLIENTS: u32 = 3;

/// How long processes are killed; `BARMANFS_TEST_SECONDS` overrides it, and 120 is the full test.
const USUAL_SECONDS: u64 = 15;

pub(super) fn no_acknowledged_commit_is_lost(install: &'static Install) {
    let mut random = Random::new("no_acknowledged_commit_is_lost");
    let (site, mut server) = synchronous_site(install);
    let mut receiver = Receiver::start(&site);
    until("it is the synchronous standby", || {
        server.query(
            "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'barmanfs_receive_wal'",
        ) == "sync"
    });
    site.backup();

    let seconds = std::env::var("BARMANFS_TEST_SECONDS").map_or(USUAL_SECONDS, |text| {
        text.parse().expect("BARMANFS_TEST_SECONDS is a number")
    });
    let until_then = Instant::now() + Duration::from_secs(seconds);
    let mut clients = Committer::several(&site, CLIENTS);
    let (mut killed_receivers, mut killed_servers) = (0, 0);
    while Instant::now() < until_then {
        let load = Load::start(&server);
        clients.iter_mut().for_each(|client| client.start(&server));
        // Some rounds kill only the receiver, a few times, while the commits wait for it.
        for _ in 0..random.below(4) {
            std::thread::sleep(random.duration_below(Duration::from_millis(1500)));
            receiver.kill();
            killed_receivers += 1;
            std::thread::sleep(random.duration_below(Duration::from_millis(100)));
            receiver = Receiver::start(&site);
        }
        std::thread::sleep(random.duration_below(Duration::from_millis(1500)));
        if random.below(2) == 0 {
            receiver.kill();
            killed_receivers += 1;
        }
        server.kill();
        killed_servers += 1;
        drop(load);
        clients.iter_mut().for_each(Committer::collect);
        server.start();
        if Instant::now() < until_then {
            receiver.kill();
            receiver = Receiver::start(&site);
        }
    }
    receiver.kill();
    server.kill();
    let commits: usize = clients.iter().map(Committer::returned).sum();
    println!(
        "{commits} commits returned, {killed_receivers} receivers and {killed_servers} servers were killed"
    );
    assert!(
        commits > 100,
        "Only {commits} commits returned: nothing was tested"
    );
    assert_all_are_there(&site, install, &clients);
}

/// A server whose commits wait only for `receive-wal`.
fn synchronous_site(install: &'static Install) -> (Site, PgServer) {
    let site = Site::with_repository();
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    site.write_config_of(&server, STREAMING);
    server.start();
    fill(&server, 1);
    Committer::make_table(&server);
    server.stop("fast");
    server.configure(
        "synchronous_standby_names = 'barmanfs_receive_wal'\nsynchronous_commit = on\nwal_sender_timeout = '5s'",
    );
    server.start();
    (site, server)
}

/// Recovers from the repository alone.
fn assert_all_are_there(site: &Site, install: &'static Install, clients: &[Committer]) {
    let mount = Mount::new(site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/pitr/now"), "copy"));
    copy.configure_auto("synchronous_standby_names = ''");
    copy.start();
    copy.wait_until_promoted();
    assert_none_lost(&copy, clients);
    crate::common::load::assert_sums_agree(&copy);
    copy.assert_sound();
}
