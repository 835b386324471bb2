//! A clone under a working server, while the mount's daemon is killed and the disk below loses power: all acknowledged
//! commits are there afterwards. Any value of `BARMANFS_TEST_SECONDS` makes the tests long.

use crate::common::committer::{Committer, assert_none_lost};
use crate::common::disk::SmallDisk;
use crate::common::forgetful::ForgetfulDisk;
use crate::common::load::{assert_sums_agree, fill, transact};
use crate::common::postgres::end_servers_of;
use crate::common::process::until;
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::{Install, Load, Mount, PgServer, Site};
use rustix::process::{Pid, Signal, kill_process};
use std::time::Duration;

topic! {
    edges acknowledged_commits_survive_a_killed_daemon(as_root),
    once acknowledged_commits_survive_a_loss_of_power(as_root),
    once acknowledged_commits_survive_a_loss_of_power_after_the_daemon(as_root),
    edges acknowledged_commits_survive_a_loss_of_power_after_a_backend(as_root),
    once acknowledged_commits_survive_a_full_disk(as_root),
}

/// Clients that count their commits, in addition to pgbench.
const COMMITTERS: u32 = 2;

/// Checkpoints all the time, and recycled WAL, so that there is always some activity.
const RESTLESS: &str = "fsync = on
max_wal_size = 4MB
min_wal_size = 2MB
checkpoint_timeout = 30s
autovacuum = on
autovacuum_naptime = 1s
";

/// The path of the clone in a mount.
const CLONE: &str = "main/live/torture";

/// All methods to sync WAL.
const SYNC_METHODS: &[&str] = &["fdatasync", "fsync", "open_datasync", "open_sync"];

fn rounds(usual: u32, long: u32) -> u32 {
    match std::env::var_os("BARMANFS_TEST_SECONDS") {
        Some(_) => long,
        None => usual,
    }
}

fn acknowledged_commits_survive_a_killed_daemon(install: &'static Install) {
    let mut random = Random::new("acknowledged_commits_survive_a_killed_daemon");
    let site = backed_up(install);
    make_clone(&site, &mut random, |_| ());
    let mut stage = Stage::new(&site, install, &mut random);
    let (mut kills, rounds) = (0, rounds(5, 30));
    while kills < rounds {
        stage.work(&mut random);
        std::thread::sleep(random.duration_below(Duration::from_millis(2500)));
        stage.kill_daemon();
        kills += 1;
        while random.below(3) == 0 {
            stage.kill_daemon_while_starting(&mut random);
            kills += 1;
        }
        stage.check();
    }
    stage.finish(&format!("{kills} daemons were killed"));
}

fn acknowledged_commits_survive_a_loss_of_power(install: &'static Install) {
    lose_power_after("acknowledged_commits_survive_a_loss_of_power", install, |_| ());
}

/// Data that the killed daemon did not sync is in the page cache, and recovery finds it there.
fn acknowledged_commits_survive_a_loss_of_power_after_the_daemon(install: &'static Install) {
    let name = "acknowledged_commits_survive_a_loss_of_power_after_the_daemon";
    lose_power_after(name, install, |stage| {
        stage.kill_daemon();
        stage.start();
    });
}

/// PostgreSQL restarts by itself when one of its processes was killed.
fn acknowledged_commits_survive_a_loss_of_power_after_a_backend(install: &'static Install) {
    let name = "acknowledged_commits_survive_a_loss_of_power_after_a_backend";
    lose_power_after(name, install, |stage| {
        stage.kill_backend();
        stage.clone.wait_until_promoted();
    });
}

/// Power is lost after a server has worked, and right after whatever `happens` to it.
fn lose_power_after(name: &str, install: &'static Install, mut happens: impl FnMut(&mut Stage<'_>)) {
    if !ForgetfulDisk::is_possible() {
        return;
    }
    let mut random = Random::new(name);
    let site = backed_up(install);
    let live = site.repository().join("live");
    std::fs::create_dir_all(&live).expect("Cannot make a directory");
    let disk = ForgetfulDisk::mount(&site.make_directory("disk"), &live);
    let mut lost = 0;
    make_clone(&site, &mut random, |random| {
        lost += disk.lose_power(random);
        disk.restore_power();
    });
    let mut stage = Stage::new(&site, install, &mut random);
    let rounds = rounds(3, 20);
    for _ in 0..rounds {
        stage.work(&mut random);
        std::thread::sleep(random.duration_below(Duration::from_millis(4000)));
        happens(&mut stage);
        lost += disk.lose_power(&mut random);
        stage.kill_daemon();
        disk.restore_power();
        stage.check();
    }
    stage.finish(&format!(
        "power was lost {} times, and {lost} blocks of the disk's own cache",
        rounds + 1
    ));
}

fn acknowledged_commits_survive_a_full_disk(install: &'static Install) {
    let mut random = Random::new("acknowledged_commits_survive_a_full_disk");
    let site = backed_up(install);
    let live = site.make_directory("repository/live");
    let disk = SmallDisk::mount(&live, 80);
    make_clone(&site, &mut random, |_| ());
    let mut stage = Stage::new(&site, install, &mut random);
    stage.clone.query("CREATE TABLE filler (t text)");
    for megabytes in [160, 320, 640] {
        stage.work(&mut random);
        let fill = "INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 5000)";
        until("the disk is full", || {
            stage.clone.try_query(fill).code() != Some(0)
        });
        assert!(
            stage.clone.log().contains("No space left on device"),
            "{}",
            stage.clone.log()
        );
        stage.kill_server();
        disk.grow(megabytes);
        stage.check();
    }
    // If there was only room for half a block, PostgreSQL leaves that half at a file's end; pg_checksums reports it.
    stage.clone.query("DROP TABLE filler");
    stage.clone.query("VACUUM FULL");
    stage.finish("the disk was full three times");
}

/// A backup of a filled database, whose server is gone.
fn backed_up(install: &'static Install) -> Site {
    let (site, primary) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    fill(&primary, 2);
    transact(&primary, 100);
    Committer::make_table(&primary);
    site.backup();
    site
}

/// Makes the clone. As soon as `mkdir` has returned, kills the daemon and calls `then`.
fn make_clone(site: &Site, random: &mut Random, then: impl FnOnce(&mut Random)) {
    let mount = Mount::for_all(site);
    site.sh(&format!("mkdir '{}'", mount.path(CLONE).display())).ok();
    drop(mount);
    then(random);
    if random.below(2) == 0 {
        have_the_daemon_serve_all(site);
    }
}

/// The kernel is not given the files of a clone with a limit, whatever the limit: nobody would count the bytes it writes.
fn have_the_daemon_serve_all(site: &Site) {
    let text = std::fs::read_to_string(site.config()).expect("Cannot read the configuration");
    site.write_file("barmanfs.conf", (text + "clone_max_size = 1000G\n").as_bytes());
    let mount = Mount::for_all(site);
    let clones = site.json(&["clone", "list", "main"]);
    assert_eq!(clones["clones"][0]["max_bytes"], 1_000_u64 << 30, "{clones}");
    drop(mount);
}

/// A clone, its server, and its clients.
struct Stage<'a> {
    site: &'a Site,
    mount: Option<Mount<'a>>,
    clone: PgServer,
    committers: Vec<Committer>,
    load: Option<Load>,
    sync_method: &'static str,
}

impl<'a> Stage<'a> {
    fn new(site: &'a Site, install: &'static Install, random: &mut Random) -> Self {
        let mount = Mount::for_all(site);
        let data = mount.path(CLONE);
        let mut clone = PgServer::on_mount(install, &data, &site.path("torture"));
        clone.configure(RESTLESS);
        if install.major >= 16 {
            let direct = random.one(&["", "data", "wal"]);
            clone.configure(&format!("debug_io_direct = '{direct}'"));
        }
        let configuration = data.join("postgresql.conf");
        site.sh(&format!("sync '{}'", configuration.display())).ok();
        clone.start();
        clone.wait_until_promoted();
        Self {
            site,
            mount: Some(mount),
            clone,
            committers: Committer::several(site, COMMITTERS),
            load: None,
            sync_method: "",
        }
    }

    fn work(&mut self, random: &mut Random) {
        self.sync_method = random.one(SYNC_METHODS);
        self.clone.query(&format!(
            "ALTER SYSTEM SET wal_sync_method = {}",
            self.sync_method
        ));
        self.clone.query("SELECT pg_reload_conf()");
        self.load = Some(Load::start(&self.clone));
        for committer in &mut self.committers {
            committer.start(&self.clone);
        }
    }

    /// Kills the mount's daemon, the server and the clients.
    fn kill_daemon(&mut self) {
        let mut mount = self.mount.take().expect("mounted");
        mount.kill();
        self.kill_server();
    }

    /// Kills the server and the clients.
    fn kill_server(&mut self) {
        end_servers_of(&self.clone.data);
        drop(self.load.take());
        self.committers.iter_mut().for_each(Committer::collect);
        self.clone.is_gone();
    }

    /// Kills one backend: the server continues, its clients end.
    fn kill_backend(&mut self) {
        let backends = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgbench' LIMIT 1";
        let backend = self.clone.query(backends).parse().ok().and_then(Pid::from_raw);
        kill_process(backend.expect("pgbench works"), Signal::KILL).expect("Cannot kill a backend");
        drop(self.load.take());
        self.committers.iter_mut().for_each(Committer::collect);
    }

    /// Kills the mount's daemon, the server and the clients, while the server recovers or has just done so.
    fn kill_daemon_while_starting(&mut self, random: &mut Random) {
        let mut mount = Mount::for_all(self.site);
        self.clone.wait_for_predecessor();
        let delay = random.duration_below(Duration::from_millis(800));
        std::thread::scope(|scope| {
            let data = self.clone.data.clone();
            let clone = &mut self.clone;
            let starting = scope.spawn(move || clone.try_start());
            std::thread::sleep(delay);
            mount.kill();
            while !starting.is_finished() {
                end_servers_of(&data);
                std::thread::sleep(Duration::from_millis(50));
            }
            end_servers_of(&data);
        });
        self.clone.is_gone();
    }

    /// Starts the server again; mounts again if necessary.
    fn start(&mut self) {
        if self.mount.is_none() {
            self.mount = Some(Mount::for_all(self.site));
        }
        self.clone.wait_for_predecessor();
        self.clone.start();
    }

    /// Starts the server again, which must have all acknowledged commits.
    fn check(&mut self) {
        self.start();
        assert_none_lost(&self.clone, &self.committers);
        assert_sums_agree(&self.clone);
        assert_eq!(self.clone.query("SHOW wal_sync_method"), self.sync_method);
    }

    fn finish(mut self, what_happened: &str) {
        let commits: usize = self.committers.iter().map(Committer::returned).sum();
        println!("{what_happened}; {commits} commits had returned");
        assert!(
            commits > 100,
            "Only {commits} commits returned: nothing was tested"
        );
        self.clone.assert_sound();
        self.clone.stop_and_assert_checksums();
        self.site.ok(&["verify", "main"]);
    }
}
