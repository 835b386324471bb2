//! Random operations on one repository, each of them killed now and then, and a model of what must be there.
//!
//! Two servers are made up: another process stores small files with the library, and the program archives their WAL. The
//! third is real, and the program backs it up by both methods. By default 120 operations; `BARMANFS_TEST_STEPS=10000`
//! makes it ten thousand, which take about half an hour. A failure names its seed and the operation.
//!
//! What must hold after each hundred: all that was acknowledged is there with its bytes, what was deleted stays away, and
//! `verify` is clean. At the end, what nobody needs is gone, and its bytes with it.

use crate::common::clock::Clock;
use crate::common::process::{COMMAND_LIMIT, Run, run, wait};
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::site::bytes_under;
use crate::common::{Install, PgServer, Site};
use act::{Act, NewFiles, Seen, order};
use barmanfs_pg::SystemId;
use made::Tree;
use model::{Backup, Here, Model, Wal};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) mod act;
mod made;
mod model;
mod real;
mod upkeep;

topic! {
    once ten_thousand_random_operations_agree_with_a_model,
}

/// The real server.
const REAL: &str = "main";
const MADE_UP: [&str; 2] = ["one", "two"];
const SERVERS: [&str; 3] = [REAL, "one", "two"];

/// After so many operations everything is compared.
const COMPARED_EVERY: u32 = 100;

/// So many operations are named when one fails.
const NAMED: usize = 12;

/// One in so many is killed.
const KILLED: u64 = 5;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// How an operation has ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Acknowledged(String),
    /// With exit code 1 or 3, and what it said.
    Refused(String),
    Killed,
}

struct World {
    site: Site,
    server: PgServer,
    clock: Clock,
    random: Random,
    model: Model,
    /// The last segment of each made-up server, and whether it is acknowledged.
    segments: BTreeMap<String, (u32, bool)>,
    /// How long the kinds of operations take.
    typical: BTreeMap<&'static str, Duration>,
    /// The real server's WAL, copied before it is archived.
    truth: PathBuf,
    operation: u32,
    last: VecDeque<String>,
    counts: BTreeMap<&'static str, (u32, u32)>,
    clones: u32,
}

fn operations() -> u32 {
    std::env::var("BARMANFS_TEST_STEPS").map_or(120, |text| text.parse().expect("a number of operations"))
}

fn ten_thousand_random_operations_agree_with_a_model(install: &'static Install) {
    let began = Instant::now();
    let mut world = World::begin(install);
    for operation in 1..=operations() {
        world.operation = operation;
        world.step();
        if operation % COMPARED_EVERY == 0 {
            world.compare();
        }
        if operation % 1000 == 0 {
            println!(
                "{operation} operations, {} s: {}",
                began.elapsed().as_secs(),
                world.figures()
            );
        }
    }
    world.finish();
    println!("{} s: {}", began.elapsed().as_secs(), world.figures());
}

impl World {
    fn begin(install: &'static Install) -> Self {
        let random = Random::new("ten_thousand");
        let site = Site::with_repository();
        let clock = Clock::new(&site);
        let truth = site.make_directory("truth");
        let server = real::server(install, &site, &clock, &truth);
        let mut config = format!("[barmanfs]\nrepository = {}\n", site.repository().display());
        for name in SERVERS {
            let conninfo = if name == REAL {
                server.conninfo()
            } else {
                "host=/nowhere".to_owned()
            };
            config += &format!(
                "[{name}]\nconninfo = {conninfo}\nstreaming_conninfo = {conninfo}\nretention_policy = REDUNDANCY {}\n",
                model::KEPT
            );
        }
        site.write_file("barmanfs.conf", config.as_bytes());
        let mut world = Self {
            site,
            server,
            clock,
            random,
            model: Model::default(),
            segments: BTreeMap::new(),
            typical: BTreeMap::new(),
            truth,
            operation: 0,
            last: VecDeque::new(),
            counts: BTreeMap::new(),
            clones: 0,
        };
        for name in SERVERS {
            world.model.0.insert(name.to_owned(), model::Server::default());
        }
        for name in MADE_UP {
            world.segments.insert(name.to_owned(), (0, true));
            world.archive(name, false);
        }
        world.real_work();
        world
    }

    fn figures(&self) -> String {
        format!(
            "{} KiB in {} packs, {} KiB of catalog; operations and kills: {:?}",
            bytes_under(&self.site.repository().join("packs")) >> 10,
            self.site.packs().len(),
            fs::metadata(self.site.repository().join("catalog.sqlite")).map_or(0, |found| found.len()) >> 10,
            self.counts
        )
    }

    fn fail(&self, what: &str) -> ! {
        let last: Vec<&String> = self.last.iter().collect();
        panic!(
            "BARMANFS_TEST_SEED={} BARMANFS_TEST_STEPS={}, operation {}: {what}\nthe last ones:\n{}",
            self.random.seed(),
            operations(),
            self.operation,
            last.iter().map(|line| format!("  {line}\n")).collect::<String>()
        )
    }

    fn step(&mut self) {
        let passes = match self.random.below(25) {
            0 => DAY + self.random.below(DAY),
            1..=4 => self.random.below(3 * HOUR),
            _ => 1 + self.random.below(60),
        };
        self.clock.move_to(self.clock.now() + passes);
        let kills = self.random.below(KILLED) == 0;
        let name = self.random.one(&MADE_UP);
        match self.random.below(1000) {
            0..=249 => self.archive(name, kills),
            250..=279 => self.archive_again(name, kills),
            280..=519 => self.back_up(name, kills),
            520..=599 => self.delete(kills),
            600..=679 => self.keep(kills),
            680..=759 => self.enforce(kills),
            760..=829 => self.sweep(kills),
            830..=849 => self.sweep_beside(name),
            850..=869 => self.rebuild(kills),
            870..=879 => self.verify(kills),
            880..=929 => self.clone(name, kills),
            930..=964 => self.destroy(kills),
            965..=984 => self.real_work(),
            _ => self.real_backup(kills),
        }
    }

    fn note(&mut self, what: &str) {
        self.last
            .push_back(format!("{} at {}: {what}", self.operation, self.clock.now()));
        if self.last.len() > NAMED {
            self.last.pop_front();
        }
    }

    /// The program with these words.
    fn program(&mut self, kind: &'static str, words: &[&str], kills: bool) -> Ended {
        let command = self.clock.command(&self.site, words);
        self.run(kind, command, &words.join(" "), kills)
    }

    fn act(&mut self, kind: &'static str, act: &Act, kills: bool) -> Ended {
        let command = order(&self.site, &self.clock, act);
        self.run(kind, command, kind, kills)
    }

    /// To its end, or it is killed before that.
    fn run(&mut self, kind: &'static str, mut command: Command, said: &str, kills: bool) -> Ended {
        let began = Instant::now();
        let ended = match kills {
            false => self.ended(&run(&mut command)),
            true => {
                let typical = self
                    .typical
                    .get(kind)
                    .copied()
                    .unwrap_or(Duration::from_millis(300));
                let delay = self.random.duration_below(typical * 11 / 10);
                let mut child = command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                std::thread::sleep(delay);
                let _ended = child.kill();
                wait(&mut child, COMMAND_LIMIT).unwrap();
                // What it said is lost.
                Ended::Killed
            }
        };
        let count = self.counts.entry(kind).or_default();
        count.0 += 1;
        count.1 += u32::from(kills);
        if !kills {
            self.typical.insert(kind, began.elapsed());
        }
        self.note(&format!(
            "{said}: {}",
            format!("{ended:?}").chars().take(300).collect::<String>()
        ));
        ended
    }

    fn ended(&self, run: &Run) -> Ended {
        match run.code() {
            Some(0) => Ended::Acknowledged(run.text()),
            Some(1 | 3) if !run.all().contains("panicked") => Ended::Refused(run.all()),
            _ => self.fail(&run.to_string()),
        }
    }

    /// Runs what must not fail.
    fn must(&mut self, kind: &'static str, words: &[&str]) -> String {
        match self.program(kind, words, false) {
            Ended::Acknowledged(said) => said,
            ended => self.fail(&format!("{words:?}: {ended:?}")),
        }
    }

    /// What is there now.
    fn look(&mut self, all: bool) {
        let act = Act::Look {
            known: self.model.known(),
            all,
        };
        let run = run(&mut order(&self.site, &self.clock, &act));
        let seen: Seen = match serde_json::from_slice(&run.stdout) {
            Ok(seen) => seen,
            Err(error) => self.fail(&format!("nothing can be seen: {error} {run}")),
        };
        let faults = self.model.see(&seen);
        if !faults.is_empty() {
            self.fail(&faults.join("\n"));
        }
    }

    fn compare(&mut self) {
        self.await_archiver();
        self.must("verify", &["-q", "verify"]);
        self.look(true);
    }

    fn of(&mut self, name: &str) -> &mut model::Server {
        self.model.0.get_mut(name).expect("a known server")
    }

    fn system(name: &str) -> SystemId {
        SystemId(7_710_414_268_036_822_000 + name.len() as u64 + u64::from(name.as_bytes()[0]))
    }

    /// The next segment, or again the one that was killed.
    fn archive(&mut self, name: &str, kills: bool) {
        let (last, is_acknowledged) = self.segments[name];
        let number = last + u32::from(is_acknowledged);
        let ended = self.archive_segment(name, number, kills);
        self.segments.insert(name.to_owned(), (number, ended));
    }

    /// Returns whether it is acknowledged.
    fn archive_segment(&mut self, name: &str, number: u32, kills: bool) -> bool {
        let (segment, bytes) = made::segment(number, Self::system(name));
        let segment = segment.to_string();
        let path = self.site.write_file(&segment, &bytes);
        let ended = self.program(
            "wal-archive",
            &["wal-archive", name, path.to_str().unwrap()],
            kills,
        );
        fs::remove_file(path).unwrap();
        let acknowledged = match &ended {
            Ended::Acknowledged(_) => true,
            Ended::Killed => false,
            Ended::Refused(_) => self.fail("a segment is refused"),
        };
        let hash = blake3::hash(&bytes).to_hex().to_string();
        let server = self.of(name);
        server.gone.remove(&segment);
        let here = if acknowledged { Here::Yes } else { Here::MayCome };
        match server.wal.get_mut(&segment) {
            Some(wal) if acknowledged => wal.here = Here::Yes,
            Some(_) => {}
            None => {
                server.wal.insert(segment, Wal { hash, here });
            }
        }
        acknowledged
    }

    /// One of the older segments, which may have been removed.
    fn archive_again(&mut self, name: &str, kills: bool) {
        let (last, _) = self.segments[name];
        let number = 1 + self.random.below(u64::from(last)) as u32;
        self.look(false);
        if number < last {
            self.archive_segment(name, number, kills);
        }
    }

    fn back_up(&mut self, name: &str, kills: bool) {
        // What a backup needs is archived, and stays.
        while !self.segments[name].1 {
            self.archive(name, false);
        }
        let number = self.segments[name].0;
        let (segment, _) = made::segment(number, Self::system(name));
        let made: Vec<(String, Tree)> = self
            .of(name)
            .backups
            .iter()
            .filter(|backup| backup.is_here())
            .filter_map(|backup| backup.id.clone().zip(backup.tree.clone()))
            .collect();
        // Mostly the newest one.
        let one = match self.random.below(4) {
            0 if !made.is_empty() => made.get(self.random.below(made.len() as u64) as usize).cloned(),
            _ => made.last().cloned(),
        };
        let tree = one
            .as_ref()
            .map_or_else(Tree::default, |(_, tree)| tree.clone())
            .later(&mut self.random);
        let parent = one.filter(|_| self.random.below(2) == 0);
        let act = Act::BackUp(NewFiles {
            server: name.to_owned(),
            system: Self::system(name).0,
            segment: number,
            tree: tree.clone(),
            parent,
        });
        let id = match self.act("back up", &act, kills) {
            Ended::Acknowledged(id) => Some(id),
            Ended::Killed => None,
            Ended::Refused(why) => self.fail(&why),
        };
        self.add_backup(name, id, Some(tree), &segment.to_string());
    }

    /// A backup that was acknowledged, or may come if there is no id.
    fn add_backup(&mut self, name: &str, id: Option<String>, tree: Option<Tree>, segment: &str) {
        let backup = Backup {
            here: if id.is_some() { Here::Yes } else { Here::MayCome },
            id,
            digest: tree.as_ref().map(Tree::digest),
            tree,
            first: segment.to_owned(),
            last: segment.to_owned(),
            keeps: BTreeSet::from([None]),
        };
        self.of(name).backups.push(backup);
    }

    /// The number and the id of any backup that is there.
    fn any_backup(&mut self) -> Option<(&'static str, usize, String)> {
        let name = self.random.one(&SERVERS);
        let ids: Vec<(usize, String)> = (self.of(name).backups.iter().enumerate())
            .filter(|(_, backup)| backup.is_here())
            .filter_map(|(at, backup)| Some((at, backup.id.clone()?)))
            .collect();
        let (at, id) = ids
            .get(self.random.below(ids.len().max(1) as u64) as usize)?
            .clone();
        Some((name, at, id))
    }

    fn delete(&mut self, kills: bool) {
        let Some((name, at, id)) = self.any_backup() else {
            return;
        };
        let forced: &[&str] = if self.random.below(2) == 0 {
            &["--force"]
        } else {
            &[]
        };
        let ended = self.program("delete", &[&["delete", name, &id][..], forced].concat(), kills);
        let is_surely_kept = self.of(name).backups[at].is_surely_kept();
        let may_be_kept = self.of(name).backups[at].may_be_kept();
        match ended {
            Ended::Acknowledged(_) if is_surely_kept => self.fail("a backup that somebody keeps was deleted"),
            Ended::Acknowledged(_) => {
                let server = self.of(name);
                server.backups.remove(at);
                server.gone.insert(id);
            }
            Ended::Killed if is_surely_kept => {}
            Ended::Killed => self.of(name).backups[at].here = Here::MayGo,
            Ended::Refused(why) if !forced.is_empty() && !may_be_kept => self.fail(&why),
            Ended::Refused(_) => {}
        }
        self.look(false);
    }

    fn keep(&mut self, kills: bool) {
        let Some((name, at, id)) = self.any_backup() else {
            return;
        };
        let target = match self.random.below(5) {
            0 => Some("full"),
            1 => Some("standalone"),
            _ => None,
        };
        let words = target.map_or_else(|| vec!["--release"], |target| vec!["--target", target]);
        let ended = self.program("keep", &[&["keep", name, &id][..], &words].concat(), kills);
        let keeps = &mut self.of(name).backups[at].keeps;
        match ended {
            Ended::Acknowledged(_) => *keeps = BTreeSet::from([target.map(str::to_owned)]),
            Ended::Killed => {
                keeps.insert(target.map(str::to_owned));
            }
            Ended::Refused(why) => self.fail(&why),
        }
    }

    fn enforce(&mut self, kills: bool) {
        let name = self.random.one(&SERVERS);
        if name == REAL {
            self.await_archiver();
        }
        self.look(false);
        let ended = self.program("retention", &["retention", name, "--enforce", "--json"], kills);
        self.of(name).enforce();
        self.look(false);
        if let Ended::Acknowledged(_) = ended {
            let left = self.of(name).left_behind();
            if !left.is_empty() {
                self.fail(&format!("retention has left behind {left:?}"));
            }
        }
    }
}
