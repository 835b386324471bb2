//! The only synchronous standby: a commit that has returned is never lost, whatever is killed.

use super::{Receiver, STREAMING};
use crate::common::load::fill;
use crate::common::process::{COMMAND_LIMIT, run, until, wait};
use crate::common::random::Random;
use crate::common::{Install, Load, Mount, PgServer, Site};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Clients that count their commits.
const CLIENTS: u32 = 3;

/// Commits one connection of a client tries; more than it gets done.
const SCRIPT_COMMITS: u64 = 20_000;

/// How long everything is killed; `BARMANFS_TEST_SECONDS` says otherwise, and 120 is the full test.
const USUAL_SECONDS: u64 = 15;

pub(super) fn no_commit_that_returned_is_lost(install: &'static Install) {
    let mut random = Random::new("no_commit_that_returned_is_lost");
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
    let mut clients: Vec<Client> = (0..CLIENTS).map(|number| Client::new(&site, number)).collect();
    let (mut killed_receivers, mut killed_servers) = (0, 0);
    while Instant::now() < until_then {
        let load = Load::start(&server);
        clients.iter_mut().for_each(|client| client.start(&server));
        // Some rounds kill the receiver alone, a few times, while the commits wait for it.
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
        clients.iter_mut().for_each(Client::collect);
        server.start();
        if Instant::now() < until_then {
            receiver.kill();
            receiver = Receiver::start(&site);
        }
    }
    receiver.kill();
    server.kill();
    let commits: usize = clients.iter().map(|client| client.returned.len()).sum();
    println!(
        "{commits} commits returned, {killed_receivers} receivers and {killed_servers} servers were killed"
    );
    assert!(
        commits > 100,
        "Only {commits} commits returned: nothing was tested"
    );
    assert_all_are_there(&site, install, &clients);
}

/// A server whose commits wait for `receive-wal`, and for nobody else.
fn synchronous_site(install: &'static Install) -> (Site, PgServer) {
    let site = Site::with_repository();
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    site.write_config_of(&server, STREAMING);
    server.start();
    fill(&server, 1);
    server.query("CREATE TABLE counted (client int, n bigint)");
    server.stop("fast");
    server.configure(
        "synchronous_standby_names = 'barmanfs_receive_wal'\nsynchronous_commit = on\nwal_sender_timeout = '5s'",
    );
    server.start();
    (site, server)
}

/// psql, which inserts numbers one by one and prints each when its commit has returned.
struct Client {
    number: u32,
    script: PathBuf,
    printed: PathBuf,
    psql: Option<Child>,
    next: u64,
    returned: Vec<u64>,
}

impl Client {
    fn new(site: &Site, number: u32) -> Self {
        Self {
            number,
            script: site.write_file(&format!("client{number}.sql"), b""),
            printed: site.write_file(&format!("client{number}.out"), b""),
            psql: None,
            next: 0,
            returned: Vec::new(),
        }
    }

    fn start(&mut self, server: &PgServer) {
        let mut script = fs::File::create(&self.script).expect("Cannot write a script");
        let numbers = self.next..self.next + SCRIPT_COMMITS;
        let text: String = numbers
            .map(|n| format!("INSERT INTO counted VALUES ({}, {n});\n\\echo {n}\n", self.number))
            .collect();
        script.write_all(text.as_bytes()).expect("Cannot write a script");
        // A number that was tried without an answer is not tried again.
        self.next += SCRIPT_COMMITS;
        let psql = server
            .client("psql")
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f"])
            .arg(&self.script)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&self.printed).expect("Cannot write"))
            .stderr(Stdio::null())
            .spawn()
            .expect("Cannot run psql");
        self.psql = Some(psql);
    }

    /// psql ends with its server.
    fn collect(&mut self) {
        let mut psql = self.psql.take().expect("it was started");
        wait(&mut psql, COMMAND_LIMIT).expect("psql ends when its server is gone");
        let printed = fs::read_to_string(&self.printed).expect("Cannot read");
        let numbers = printed.lines().map(|line| line.parse::<u64>().expect("a number"));
        self.returned.extend(numbers);
    }
}

/// Recovers from the repository alone.
fn assert_all_are_there(site: &Site, install: &'static Install, clients: &[Client]) {
    let mount = Mount::new(site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/pitr/now"), "copy"));
    copy.configure_auto("synchronous_standby_names = ''");
    copy.start();
    copy.wait_until_promoted();
    let found = run(copy.client("psql").args([
        "-XAtq",
        "-F",
        " ",
        "-c",
        "SELECT client, n FROM counted ORDER BY client, n",
    ]))
    .ok()
    .text();
    let found: std::collections::BTreeSet<(u32, u64)> = found
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(client, n)| (client.parse().expect("a number"), n.parse().expect("a number")))
        .collect();
    for client in clients {
        let lost: Vec<u64> = client
            .returned
            .iter()
            .filter(|n| !found.contains(&(client.number, **n)))
            .copied()
            .collect();
        assert!(
            lost.is_empty(),
            "{} of {} commits of client {} that returned are lost, {} first",
            lost.len(),
            client.returned.len(),
            client.number,
            lost[0]
        );
    }
    crate::common::load::assert_sums_agree(&copy);
    copy.assert_sound();
}
