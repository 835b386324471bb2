//! A week in which a site moves from Barman to barmanfs: Barman backs up and archives, barmanfs imports beside it, then streams
//! and backs up beside it, then Barman is gone. The kind: a second of the week that neither of them covers; a backup that is
//! lost because the other tool expired it; a rule of retention that imported backups follow and own ones do not.
//!
//! All of them have one clock of their own ([`Clock`]). `BARMANFS_TEST_TARGETS` is the number of recoveries.

use crate::common::barman::{Barman, archive_command};
use crate::common::clock::Clock;
use crate::common::process::{Run, run, until};
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};
use crate::receive_wal::Receiver;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

topic! {
    once nothing_is_missing_at_any_second_of_the_week,
}

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// The first day on which barmanfs receives and backs up itself, and that on which Barman ends.
const OWN_FROM: u64 = 3;
const BARMAN_UNTIL: u64 = 5;
const DAYS: u64 = 7;

/// When the server works on a day.
const HOURS: [u64; 4] = [6, 11, 16, 21];

/// Transactions each time.
const STEPS: u64 = 4;

/// All backups of the week are within it; what goes afterwards is computed from it.
const WINDOW_DAYS: u64 = 7;

struct Week {
    clock: Clock,
    random: Random,
    midnight: u64,
    steps: u64,
    /// The ids of Barman's backups.
    barmans: Vec<String>,
    receiver: Option<Receiver>,
}

/// A moment, in microseconds since 1970.
type Micros = u64;

fn nothing_is_missing_at_any_second_of_the_week(install: &'static Install) {
    let site = Site::with_repository();
    let mut week = Week::new(&site);
    let mut server = week.server(install, &site);
    server.start();
    let Some(mut barman) = Barman::new(&site, &server) else {
        return;
    };
    barman.follow(&week.clock);
    server.query(
        "CREATE TABLE steps (step int PRIMARY KEY);
         CREATE TABLE work AS SELECT n AS id, repeat(md5(n::text), 3) AS filler FROM generate_series(1, 5000) n",
    );
    for day in 0..DAYS {
        week.spend(day, &site, &server, &mut barman);
    }
    week.end(&site, &server);
    drop(barman);
    let commits = commits(&server);
    assert_eq!(commits.len() as u64, week.steps);
    all_wal_is_there(&site);
    server.stop("fast");
    let last = last_target(&commits);
    let targets = std::env::var("BARMANFS_TEST_TARGETS").map_or(50, |count| count.parse().expect("a number"));
    // The first backup is complete.
    let first = (week.midnight + 4 * HOUR) * 1_000_000;
    week.recover(install, &site, &commits, (first, last), targets);
    week.what_is_outside_the_window_goes(install, &site, &commits);
}

/// The last moment that PostgreSQL can stop at: it needs a later commit to know that a moment is over.
fn last_target(commits: &[Micros]) -> Micros {
    commits[commits.len() - 1] - 1
}

/// When each step was committed.
fn commits(server: &PgServer) -> Vec<Micros> {
    let times = server.query(
        "SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM steps ORDER BY step",
    );
    times.lines().map(|line| line.parse().expect("a time")).collect()
}

/// Byte for byte what the server has archived since the first backup began.
fn all_wal_is_there(site: &Site) {
    let gaps = site.json(&["timeline", "main"])["gaps"].clone();
    assert_eq!(gaps.as_array().map(Vec::len), Some(0), "{gaps}");
    let first = segment_of(site.backups()[0]["start_lsn"].as_str().expect("an LSN"));
    let mount = Mount::new(site);
    let plain = site.path("plain_wal");
    let names = site.list(&plain);
    let segments: Vec<&String> = names
        .iter()
        .filter(|name| name.len() == 24 && **name >= first)
        .collect();
    assert!(segments.len() > 40, "{names:?}");
    for name in segments {
        let same = format!(
            "cmp {0}/{name} {1}/{name}",
            plain.display(),
            mount.path("main/wal").display()
        );
        site.sh(&same).ok();
    }
    mount.unmount();
}

/// On the first timeline, with segments of 1 MiB.
fn segment_of(lsn: &str) -> String {
    let (high, low) = lsn.split_once('/').expect("an LSN");
    let number = |text| u32::from_str_radix(text, 16).expect("an LSN");
    format!("00000001{:08X}{:08X}", number(high), number(low) >> 20)
}

impl Week {
    fn new(site: &Site) -> Self {
        let mut clock = Clock::new(site);
        let midnight = clock.now() / DAY * DAY + DAY;
        clock.move_to(midnight);
        Self {
            clock,
            random: Random::new("handover"),
            midnight,
            steps: 0,
            barmans: Vec::new(),
            receiver: None,
        }
    }

    /// Its WAL goes to Barman, and to a directory to compare with.
    fn server(&self, install: &'static Install, site: &Site) -> PgServer {
        let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
        // The clock moves by hours, and a receiver must not seem to be silent for so long.
        server.configure(&format!(
            "track_commit_timestamp = on\nwal_sender_timeout = 0\nshared_buffers = 16MB\narchive_mode = on\n\
             archive_command = '{}'",
            archive_command(site)
        ));
        server.environment = self.clock.environment();
        site.write_config_of(
            &server,
            &format!(
                "archiver = off\nstreaming_archiver = on\nslot_name = barmanfs\ncreate_slot = auto\n\
                 immediate_checkpoint = on\nretention_policy = RECOVERY WINDOW OF {WINDOW_DAYS} DAYS\n"
            ),
        );
        server
    }

    fn at(&mut self, day: u64, hour: u64) {
        let second = self.random.below(HOUR / 2);
        self.clock
            .move_to(self.midnight + day * DAY + hour * HOUR + second);
    }

    fn spend(&mut self, day: u64, site: &Site, server: &PgServer, barman: &mut Barman<'_>) {
        if day < BARMAN_UNTIL {
            self.at(day, 1);
            self.barmans_night(day, site, barman);
        }
        if day == OWN_FROM {
            self.at(day, 2);
            self.receiver = Some(Receiver::of(
                &mut self.clock.command(site, &["receive-wal", "main", "-v"]),
                site,
            ));
            self.receiver.as_ref().expect("it runs").says("Receiving WAL");
            // The server may have removed what it has archived before that, and only Barman has it.
            self.import(site, "all");
        }
        if day >= OWN_FROM {
            self.at(day, 3);
            self.ok(site, &["backup", "main"]);
        }
        for hour in HOURS {
            self.at(day, hour);
            self.work(server);
            if hour == 11 && day < BARMAN_UNTIL {
                self.import(site, "all");
            }
            if hour == 11 && day == BARMAN_UNTIL {
                self.barman_ends(site, server);
            }
        }
        self.at(day, 23);
        let before = site.backup_ids();
        self.ok(site, &["retention", "main", "--enforce"]);
        assert_eq!(site.backup_ids(), before, "All of it is in the window");
    }

    /// Barman's own retention removes what is here already.
    fn barmans_night(&mut self, day: u64, site: &Site, barman: &mut Barman<'_>) {
        let method = match day {
            2 => "backup_method = postgres\nbackup_compression = gzip",
            4 => "backup_method = postgres",
            _ => "backup_method = local-rsync\nreuse_backup = link",
        };
        barman.set(&format!(
            "{method}\ncompression = gzip\nretention_policy = REDUNDANCY 2"
        ));
        self.barmans.push(barman.backup(""));
        barman.sh("barman cron --keep-descriptors").ok();
        let left = barman.sh("barman list-backups main --minimal").ok().text();
        let newest: Vec<&str> = self.barmans.iter().rev().take(2).map(String::as_str).collect();
        assert_eq!(left.lines().collect::<Vec<_>>(), newest);
        let here = site.backup_ids();
        let taken = &self.barmans[..day as usize];
        assert!(taken.iter().all(|id| here.contains(id)), "{taken:?} {here:?}");
    }

    fn import(&self, site: &Site, wal: &str) {
        let home = site.path("barman").display().to_string();
        let line = ["import", "main", "--barman-home", &home, "--wal", wal, "--json"];
        let taken = self.ok(site, &line);
        let taken: Value = serde_json::from_slice(&taken.stdout).expect("JSON");
        assert_eq!(taken["left_out"].as_array().map(Vec::len), Some(0), "{taken}");
        let here = site.backup_ids();
        assert!(self.barmans.iter().all(|id| here.contains(id)), "{here:?}");
    }

    /// As docs/import.md says; what has come last was not filed by Barman any more.
    fn barman_ends(&mut self, site: &Site, server: &PgServer) {
        let plain = site.path("plain_wal");
        server.query(&format!(
            "ALTER SYSTEM SET archive_command = 'cp %p {}/%f'",
            plain.display()
        ));
        server.query("SELECT pg_reload_conf()");
        self.import(site, "needed");
        fs::remove_dir_all(site.path("barman")).expect("Cannot remove Barman's home");
        self.receiver.as_mut().expect("it runs").kill();
        self.work(server);
        self.receiver = Some(Receiver::of(
            &mut self.clock.command(site, &["receive-wal", "main", "-v"]),
            site,
        ));
    }

    #[track_caller]
    fn ok(&self, site: &Site, arguments: &[&str]) -> Run {
        // Times of files are compared with each other here, not with the clock.
        run(self.clock.command(site, arguments).env("NO_FAKE_STAT", "1")).ok()
    }

    fn work(&mut self, server: &PgServer) {
        let mut script = String::new();
        for _ in 0..STEPS {
            self.steps += 1;
            let from = self.random.below(5000);
            script += &format!(
                "UPDATE work SET filler = repeat(md5(random()::text), 3) WHERE id BETWEEN {from} AND {from} + 50;
                 INSERT INTO steps VALUES ({});
                 SELECT pg_sleep({}) \\gset\n",
                self.steps,
                self.random.below(30) as f64 / 1000.0
            );
        }
        let path = beside(server, "work.sql");
        fs::write(&path, script).expect("Cannot write a file");
        run(server
            .client("psql")
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f"])
            .arg(path))
        .ok();
        if self.random.below(4) != 0 {
            server.archive_current_segment();
        }
    }

    /// Until all of it has been received.
    fn end(&mut self, site: &Site, server: &PgServer) {
        let last = server.archive_current_segment();
        until("the last segment has been received", || {
            site.barmanfs(&["get-wal", "main", &last, "/dev/null"]).code() == Some(0)
        });
        self.receiver.take().expect("it runs").stop();
    }

    /// Recovers to random moments, half of them at or beside a commit.
    fn recover(
        &mut self,
        install: &'static Install,
        site: &Site,
        commits: &[Micros],
        (first, last): (Micros, Micros),
        targets: usize,
    ) {
        let mount = Mount::new(site);
        for round in 0..targets {
            let target = match round % 2 {
                0 => first + self.random.below(last - first + 1),
                _ => self.beside_a_commit(commits).clamp(first, last),
            };
            let reached = commits.iter().filter(|commit| **commit <= target).count();
            let at = moment(target);
            let what = format!("BARMANFS_TEST_SEED={}: {at}", self.random.seed());
            println!("{what}: {reached} steps");
            let mut copy = PgServer::on(install, &site.copy(&mount.path("main/pitr").join(&at), "copy"));
            copy.start();
            copy.wait_until_promoted();
            assert_eq!(
                copy.query("SELECT count(*), coalesce(max(step), 0) FROM steps"),
                format!("{reached}|{reached}"),
                "{what}\n{}",
                copy.log()
            );
            copy.stop("immediate");
            drop(copy);
            let copy = site.path("copy");
            site.sh(&format!("rm -rf {0} {0}.s {0}.log", copy.display())).ok();
        }
        mount.unmount();
    }

    fn beside_a_commit(&mut self, commits: &[Micros]) -> Micros {
        let commit = commits[self.random.below(commits.len() as u64) as usize];
        match self.random.below(4) {
            0 => commit,
            1 => commit + 1,
            2 => commit - 1,
            _ => commit - 1_000_000 + self.random.below(2_000_000),
        }
    }

    /// Days later: the newest backup from before the window stays, and what is older goes, whoever has made it.
    fn what_is_outside_the_window_goes(
        &mut self,
        install: &'static Install,
        site: &Site,
        commits: &[Micros],
    ) {
        for day in [DAYS + 1, DAYS + 3, DAYS + 5] {
            self.at(day, 12);
            let begin = (self.clock.now() - WINDOW_DAYS * DAY) as f64;
            let backups = site.backups();
            let ended = |backup: &Value| backup["end_time_epoch"].as_f64().expect("a time");
            let needed = backups
                .iter()
                .rposition(|backup| ended(backup) <= begin)
                .expect("one before");
            self.ok(site, &["retention", "main", "--enforce"]);
            let kept: Vec<&str> = backups[needed..]
                .iter()
                .map(|backup| backup["id"].as_str().expect("an id"))
                .collect();
            assert_eq!(site.backup_ids(), kept, "day {day}");
            let complete = (ended(&backups[needed]) * 1e6) as u64 + 2_000_000;
            self.ok(site, &["sweep"]);
            let begun = backups[needed]["begin_time_epoch"].as_f64().expect("a time");
            let before = self.clock.run(
                site,
                &["explain", "main", &moment((begun * 1e6) as u64 - 1_000_000)],
            );
            before.refused(1).says(&["before the end of every backup"]);
            let last = last_target(commits);
            self.recover(install, site, commits, (complete, last), 2);
        }
        self.ok(site, &["verify"]);
    }
}

/// A file beside the data directory.
fn beside(server: &PgServer, name: &str) -> PathBuf {
    server.data.with_file_name(name)
}

/// As a recovery target.
fn moment(micros: Micros) -> String {
    let time = jiff::Timestamp::from_microsecond(micros as i64).expect("a time");
    time.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string()
}
