//! A repository that keeps itself, over a long time: a backup each day, WAL all day, one policy after the other, and kills.
//!
//! By default three weeks; `BARMANFS_TEST_DAYS=365` makes it a year, which takes about ten minutes. Server and program
//! have a clock of their own ([`Clock`]). What must hold at the end: everything that is kept can be recovered, and takes
//! no more space than it needs.

use crate::common::clock::Clock;
use crate::common::process::{COMMAND_LIMIT, Run, run, state_of, until, wait};
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::site::bytes_under;
use crate::common::{Install, Mount, PgServer, Site};
use barmanfs_catalog::{Repository, Silent, SweepOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

topic! {
    once a_long_time_leaves_what_is_kept_and_nothing_else,
}

const DAY: u64 = 24 * 3600;

/// When cron looks first on a day: after `backup_schedule` in Berlin, in summer and in winter.
const MORNING: u64 = 3 * 3600 + 600;

/// Between two runs of cron on the same morning.
const NEXT_RUN: u64 = 20 * 60;

/// With so many runs, each killed task has been started again, and all of it is done.
const RUNS_A_DAY: u64 = 12;

/// When the server works on a day.
const HOURS: [u64; 4] = [6, 11, 16, 21];

/// What may be killed, one of it on every fourth day.
const VICTIMS: [&str; 5] = ["cron", "backup", "retention", "sweep", "verify"];

/// The longest time until a victim is killed: as long as the longest of them takes.
const KILLED_WITHIN: Duration = Duration::from_millis(600);

/// A moment after a transaction and before the next one.
struct Moment {
    /// As a recovery target.
    time: String,
    /// In seconds since 1970.
    seconds: u64,
    step: u32,
}

/// A part of the time with one policy.
struct Phase {
    lines: String,
    /// Targets that are younger than the so many newest backups can be recovered, and those of so many days.
    reaches: Reaches,
}

#[derive(Clone, Copy)]
enum Reaches {
    Backups(usize),
    Days(u64),
}

struct Year {
    site: Site,
    server: PgServer,
    clock: Clock,
    random: Random,
    first_midnight: u64,
    days: u64,
    phase: usize,
    /// No earlier step could be recovered when this phase began.
    first_step: u32,
    step: u32,
    moments: Vec<Moment>,
    /// The complete backups, with the last step before each.
    taken: BTreeMap<String, u32>,
    kills: BTreeMap<&'static str, u32>,
    began: Instant,
}

fn days() -> u64 {
    std::env::var("BARMANFS_TEST_DAYS").map_or(21, |days| days.parse().expect("a number of days"))
}

/// The policies, by how long it all takes.
fn phases(days: u64) -> [Phase; 3] {
    let week = (days / 50).max(3);
    let [redundancy, window, wal] = [week, 2 * week, week];
    [
        Phase {
            lines: format!("retention_policy = REDUNDANCY {redundancy}\n"),
            reaches: Reaches::Backups(redundancy as usize),
        },
        Phase {
            lines: format!(
                "retention_policy = RECOVERY WINDOW OF {window} DAYS\n\
                 wal_retention_policy = RECOVERY WINDOW OF {wal} DAYS\n"
            ),
            reaches: Reaches::Days(wal),
        },
        Phase {
            lines: format!("retention_policy = KEEP {week} DAILY 4 WEEKLY 12 MONTHLY\n"),
            reaches: Reaches::Backups(week as usize),
        },
    ]
}

fn a_long_time_leaves_what_is_kept_and_nothing_else(install: &'static Install) {
    let mut year = Year::begin(install, days());
    for day in 0..year.days {
        year.spend(day);
    }
    year.settle();
    year.assert_all_is_well();
    year.assert_no_space_is_lost();
    year.assert_kept_backups_start();
}

impl Year {
    fn begin(install: &'static Install, days: u64) -> Self {
        let random = Random::new("a_long_time");
        let site = Site::with_repository();
        let clock = Clock::new(&site);
        let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
        server.configure(&format!(
            "archive_mode = on\narchive_command = '{}'\nsummarize_wal = {}\ntimezone = 'Europe/Berlin'\n",
            site.archive_command(),
            if install.major >= 17 { "on" } else { "off" }
        ));
        server.environment = clock.environment();
        let midnight = clock.now() / DAY * DAY + DAY;
        let mut year = Self {
            site,
            server,
            clock,
            random,
            first_midnight: midnight,
            days,
            phase: 0,
            first_step: 0,
            step: 0,
            moments: Vec::new(),
            taken: BTreeMap::new(),
            kills: BTreeMap::new(),
            began: Instant::now(),
        };
        year.follow(0);
        year.clock.move_to(midnight);
        year.server.start();
        year.server.query(
            "CREATE TABLE steps (step int PRIMARY KEY);
             CREATE TABLE work AS SELECT n AS id, 0 AS changes, repeat(md5(n::text), 3) AS filler
                 FROM generate_series(1, 20000) n;
             ALTER TABLE work ADD PRIMARY KEY (id)",
        );
        year
    }

    fn follow(&mut self, phase: usize) {
        self.phase = phase;
        let lines = &phases(self.days)[phase].lines;
        let all = format!("immediate_checkpoint = on\nbackup_schedule = 0 2 * * *\n{lines}");
        self.site.write_config_of(&self.server, &all);
        let config = fs::read_to_string(self.site.config()).unwrap();
        let global = format!("[barmanfs]\nlog_file = {}\n", self.log().display());
        let config = config.replacen("[barmanfs]\n", &global, 1);
        self.site.write_file("barmanfs.conf", config.as_bytes());
    }

    fn log(&self) -> std::path::PathBuf {
        self.site.path("barmanfs.log")
    }

    fn ok(&self, arguments: &[&str]) -> Run {
        let run = self.clock.run(&self.site, arguments);
        if run.code() != Some(0) {
            let seen = |words: &[&str]| self.clock.run(&self.site, words).to_string();
            panic!(
                "BARMANFS_TEST_SEED={}: {run}\n{}{}{}",
                self.random.seed(),
                seen(&["retention", "main"]),
                seen(&["timeline", "main"]),
                self.end_of_log()
            );
        }
        run
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let run = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_slice(&run.stdout).unwrap()
    }

    fn end_of_log(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn spend(&mut self, day: u64) {
        let midnight = self.first_midnight + day * DAY;
        self.clock.move_to(midnight + MORNING);
        self.morning(midnight + MORNING);
        for hour in HOURS {
            self.clock.move_to(midnight + hour * 3600);
            self.work();
        }
        self.keep_or_release(day);
        if day % 7 == 6 {
            self.server.query("VACUUM work");
        }
        if day % (self.days / 12).max(3) == 1 {
            self.assert_targets_are_offered();
        }
        let next_phase = (day + 1) as usize * 3 / self.days as usize;
        if next_phase != self.phase {
            self.assert_a_target_is_reached();
            self.ok(&["verify"]);
            println!("{}", self.figures(day));
            if next_phase < 3 {
                self.first_step = self.window()[0].step;
                self.follow(next_phase);
            }
        } else if day % 30 == 29 {
            println!("{}", self.figures(day));
        }
    }

    fn figures(&self, day: u64) -> String {
        let repository = self.site.repository();
        format!(
            "day {}: {} s, {} backups, {} KiB in packs, {} KiB of catalog, {} packs, kills {:?}",
            day + 1,
            self.began.elapsed().as_secs(),
            self.backups().len(),
            bytes_under(&repository.join("packs")) >> 10,
            fs::metadata(repository.join("catalog.sqlite")).unwrap().len() >> 10,
            self.site.packs().len(),
            self.kills
        )
    }

    /// Runs cron until nothing is left to do. On some days something is killed once.
    fn morning(&mut self, morning: u64) {
        let mut victim = (self.random.below(4) == 0).then(|| self.random.one(&VICTIMS));
        for run in 0..RUNS_A_DAY {
            self.clock.move_to(morning + run * NEXT_RUN);
            let started = self.cron(&mut victim);
            if started == 0 && run > 0 {
                break;
            }
        }
        let newest = self.backups().pop().expect("a backup");
        assert!(
            newest["status"] == "DONE" && newest["begin_time_epoch"].as_f64().unwrap() >= morning as f64,
            "BARMANFS_TEST_SEED={}: there is no backup of this day: {newest}\n{}",
            self.random.seed(),
            self.end_of_log()
        );
        self.taken
            .insert(newest["id"].as_str().unwrap().to_owned(), self.step);
    }

    /// Runs cron and waits for what it starts; returns how much that was, or 1 if it was killed.
    fn cron(&mut self, victim: &mut Option<&'static str>) -> usize {
        let mut command = self.clock.command(&self.site, &["cron"]);
        let delay = self.random.duration_below(KILLED_WITHIN);
        let mut started = Vec::new();
        if *victim == Some("cron") {
            let mut cron = command.stdout(Stdio::null()).spawn().unwrap();
            std::thread::sleep(delay / 8);
            let _ended = cron.kill();
            wait(&mut cron, COMMAND_LIMIT).unwrap();
            started = tasks(&self.site);
            *self.kills.entry("cron").or_default() += 1;
        } else {
            let said = run(&mut command).ok().text();
            started.extend(said.lines().filter_map(Task::started));
        }
        let doomed = victim.and_then(|name| started.iter().find(|task| task.name == name));
        if let Some(task) = doomed {
            std::thread::sleep(delay);
            let _ended = kill_process(task.process, Signal::KILL);
            *self.kills.entry(task.name).or_default() += 1;
        }
        if doomed.is_some() || *victim == Some("cron") {
            *victim = None;
            started.iter().for_each(Task::wait);
            return started.len().max(1);
        }
        started.iter().for_each(Task::wait);
        started.len()
    }

    /// The complete and other backups in `list-backups`, oldest first.
    fn backups(&self) -> Vec<Value> {
        let mut backups = self.json(&["list-backups", "main"])["backups"]
            .as_array()
            .unwrap()
            .clone();
        backups.sort_by_key(|backup| backup["id"].as_str().unwrap().to_owned());
        backups
    }

    fn done(&self) -> Vec<String> {
        let backups = self.backups();
        let done = backups.iter().filter(|backup| backup["status"] == "DONE");
        done.map(|backup| backup["id"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Some transactions, and the end of their last segment.
    fn work(&mut self) {
        self.step += 1;
        let (step, seed) = (self.step, self.random.below(1_000_000));
        self.server.query(&format!(
            "SELECT setseed({seed} / 1000000.0);
             UPDATE work SET changes = changes + 1, filler = repeat(md5(random()::text), 3)
                 WHERE id IN (SELECT (random() * 20000)::int FROM generate_series(1, 200));
             INSERT INTO steps VALUES ({step})"
        ));
        let time = self.server.query(
            "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00',
                    pg_switch_wal()",
        );
        self.moments.push(Moment {
            time: time.split('|').next().unwrap().to_owned(),
            seconds: self.clock.now(),
            step,
        });
        let status = self.server.data.join("pg_wal/archive_status");
        until("all segments are archived", || {
            let files = fs::read_dir(&status).unwrap().flatten();
            files
                .map(|file| file.path())
                .all(|path| path.extension().is_none_or(|kind| kind != "ready"))
        });
    }

    fn keep_or_release(&mut self, day: u64) {
        let every = (self.days / 16).max(3);
        if day % every != every - 1 {
            return;
        }
        let done = self.done();
        let one = done[self.random.below(done.len() as u64) as usize].clone();
        let until = format!("{}", timestamp(self.clock.now() + self.days / 12 * DAY));
        match self.random.below(5) {
            0 | 1 => self.ok(&["keep", "main", &one, "--target", "standalone"]),
            2 | 3 => self.ok(&["keep", "main", &one, "--target", "full", "--until", &until]),
            _ => self.clock.run(&self.site, &["keep", "main", &one, "--release"]),
        };
    }

    /// The moments that the policy still needs, but the last, behind which nothing is archived.
    fn window(&self) -> Vec<&Moment> {
        let done = self.done();
        let first = match phases(self.days)[self.phase].reaches {
            Reaches::Days(days) => self.clock.now() - days * DAY,
            Reaches::Backups(count) => {
                let oldest = &done[done.len().saturating_sub(count)];
                let step = self.taken[oldest];
                self.moments
                    .iter()
                    .find(|moment| moment.step > step)
                    .map_or(0, |moment| moment.seconds)
            }
        };
        // Before the first backup there is nothing.
        let behind = *self.taken.values().next().unwrap();
        let all = &self.moments[..self.moments.len() - 1];
        all.iter()
            .filter(|moment| {
                moment.seconds >= first && moment.step > behind && moment.step >= self.first_step
            })
            .collect()
    }

    fn assert_targets_are_offered(&self) {
        for moment in self.window() {
            self.ok(&["explain", "main", &moment.time]);
        }
    }

    /// PostgreSQL gets to one of the moments of the window.
    fn assert_a_target_is_reached(&mut self) {
        let window = self.window();
        let one = window.len() as u64;
        let at = self.random.below(one) as usize;
        let (time, step) = {
            let moment = self.window()[at];
            (moment.time.clone(), moment.step)
        };
        self.assert_starts(&format!("main/pitr/{time}"), step);
    }

    /// A copy of this directory of the mount starts with all steps up to this one, and no other.
    fn assert_starts(&self, view: &str, step: u32) {
        let mount = Mount::new(&self.site);
        let copy = self.site.copy(&mount.path(view), "copy");
        let mut copied = PgServer::on(self.server.install, &copy);
        copied.start();
        copied.wait_until_promoted();
        assert_eq!(
            copied.query("SELECT coalesce(max(step), 0), count(*) FROM steps"),
            format!("{step}|{step}"),
            "BARMANFS_TEST_SEED={}: {view}",
            self.random.seed()
        );
        copied.stop("fast");
        mount.unmount();
        self.site
            .sh(&format!("rm -rf '{0}' '{0}.s'", copy.display()))
            .ok();
    }

    /// Until nothing is left to do. Deletions are remembered for a day.
    fn settle(&mut self) {
        for day in 0..3 {
            let morning = self.first_midnight + (self.days + day) * DAY + MORNING;
            self.clock.move_to(morning);
            self.morning(morning);
            for hours in [5, 10] {
                self.clock.move_to(morning + hours * 3600);
                self.work();
            }
        }
        self.server.stop("fast");
    }

    fn assert_all_is_well(&self) {
        self.ok(&["verify"]);
        self.assert_targets_are_offered();
        println!("{}", self.figures(self.days + 2));
        let log = fs::read_to_string(self.log()).unwrap();
        assert!(!log.contains("panicked"), "{log}");
        // Each backup has a lock.
        let most = self.backups().len() + 40;
        for directory in ["locks", "running", "cron"] {
            let left = self.site.list(&self.site.repository().join(directory));
            assert!(left.len() < most, "{directory}: {left:?}");
        }
    }

    /// The yardstick: the same packs without anything that is not needed, and a catalog that is made of them.
    fn assert_no_space_is_lost(&self) {
        self.ok(&["sweep"]);
        let (taken, packs, catalog) = sizes(&self.site.repository());
        let yardstick = self.site.path("yardstick");
        self.site
            .sh(&format!(
                "cp -a '{}' '{}'",
                self.site.repository().display(),
                yardstick.display()
            ))
            .ok();
        let repository = Repository::open(&yardstick).unwrap();
        let all = SweepOptions {
            dead_percent: 0,
            ..SweepOptions::default()
        };
        for _ in 0..3 {
            repository.sweep(&all, &mut Silent).unwrap();
        }
        let stats = repository.stats().unwrap();
        drop(repository);
        Repository::rebuild(&yardstick, &mut Silent).unwrap();
        let (needed, needed_packs, needed_catalog) = sizes(&yardstick);
        println!(
            "taken: {taken} bytes ({packs} in packs, {catalog} of catalog); needed: {needed} bytes ({needed_packs}, \
             {needed_catalog}); chunks in use: {} bytes; {:.1} % more than needed",
            stats.total.stored_bytes,
            (taken as f64 / needed as f64 - 1.0) * 100.0
        );
        assert!(
            taken * 10 <= needed * 11,
            "BARMANFS_TEST_SEED={}: more than a tenth is lost",
            self.random.seed()
        );
        // Its pages are never quite full, and at most a tenth of them is free.
        assert!(
            catalog * 4 <= needed_catalog * 5 + (64 << 10),
            "BARMANFS_TEST_SEED={}: the catalog is larger than it need be",
            self.random.seed()
        );
    }

    fn assert_kept_backups_start(&self) {
        let kept = self.done();
        for id in &kept {
            self.assert_starts(&format!("main/{id}"), self.taken[id]);
        }
        println!(
            "{} backups start, {} s",
            kept.len(),
            self.began.elapsed().as_secs()
        );
    }
}

/// Bytes of a repository, of its packs, and of its catalog. What is always there whatever is stored does not count: the
/// reserve, and the log of SQLite, which has a bound.
fn sizes(repository: &Path) -> (u64, u64, u64) {
    let packs = bytes_under(&repository.join("packs"));
    let catalog = fs::metadata(repository.join("catalog.sqlite")).unwrap().len();
    let others = ["cron", "locks", "running", "spool", "live"];
    let others: u64 = others
        .iter()
        .map(|name| bytes_under(&repository.join(name)))
        .sum();
    (packs + catalog + others, packs, catalog)
}

/// RFC 3339.
fn timestamp(seconds: u64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(i64::try_from(seconds).unwrap()).unwrap()
}

/// A process that cron has started.
struct Task {
    name: &'static str,
    process: Pid,
}

impl Task {
    /// From the line `Starting backup for server main (process 17)`.
    fn started(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.strip_prefix("Starting ")?.split([' ', ')']).collect();
        let at = words.iter().position(|word| *word == "(process")?;
        Self::of(words[0], words[at + 1])
    }

    fn of(name: &str, process: &str) -> Option<Self> {
        Some(Self {
            name: VICTIMS.iter().find(|known| **known == name)?,
            process: Pid::from_raw(process.parse().ok()?)?,
        })
    }

    /// Until it has no locks any more. While a process ends, it has locks for longer than a command line.
    fn wait(&self) {
        let process = self.process.as_raw_nonzero().to_string();
        until("a task has ended", || {
            state_of(&process).is_none_or(|state| state == 'Z')
        });
    }
}

/// The processes that cron has started for this site and that have not ended.
fn tasks(site: &Site) -> Vec<Task> {
    let program = site.program().to_string_lossy().into_owned();
    let task_of = |process: String| {
        let line = fs::read(format!("/proc/{process}/cmdline")).ok()?;
        let words: Vec<&str> = line
            .split(|byte| *byte == 0)
            .map(|word| std::str::from_utf8(word).unwrap_or_default())
            .collect();
        let at = words.iter().position(|word| *word == "--task")?;
        (words[0] == program).then(|| Task::of(words[at + 1], &process))?
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let names = processes.filter_map(|process| process.file_name().into_string().ok());
    names.filter_map(task_of).collect()
}
