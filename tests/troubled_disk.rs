//! Kills, full disks, quotas and a file system that turns read-only, in the middle of everything that changes the
//! repository: no acknowledged data is lost, and afterwards there is always a way to free space.

use crate::common::disk::{QuotaDisk, SmallDisk};
use crate::common::process::{COMMAND_LIMIT, run, until, wait};
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};
use crate::crash::{Segments, assert_segments_read_back, segments};
use crate::full_disk::{backups, fill_up, free, small_site};
use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

topic! {
    once disk_trouble_loses_nothing_acknowledged_and_space_can_be_freed (as_root),
    once under_a_quota_space_can_be_freed (as_root),
}

/// Number of rounds, each with one trouble. Any value of `BARMANFS_TEST_SECONDS` makes it the full test.
const USUAL_ROUNDS: u32 = 12;
const FULL_ROUNDS: u32 = 300;

/// After this many rounds everything is verified, and the catalog rebuilt from the packs.
const ROUNDS_BETWEEN_CHECKS: u32 = 12;

/// Longer than any of the commands takes here.
const USUAL: Duration = Duration::from_millis(400);

/// WAL arrives in both ways: from this test, segment by segment, and as a stream.
const STREAMING: &str = "streaming_archiver = on\nslot_name = barmanfs\ncreate_slot = auto\n";

/// The kinds of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Kill,
    Full,
    ReadOnly,
    CatalogOfBefore,
}

const TROUBLES: [Trouble; 4] = [
    Trouble::Kill,
    Trouble::Full,
    Trouble::ReadOnly,
    Trouble::CatalogOfBefore,
];

struct World {
    site: Site,
    server: PgServer,
    _disk: SmallDisk,
    segments: Segments,
    /// The streamed WAL is compared with that of the server up to this segment.
    compared: String,
    random: Random,
    /// How often each command met each trouble.
    counts: BTreeMap<(Trouble, &'static str), u32>,
}

fn disk_trouble_loses_nothing_acknowledged_and_space_can_be_freed(install: &'static Install) {
    let (site, server, disk) = small_site(install);
    let rounds = match std::env::var_os("BARMANFS_TEST_SECONDS") {
        Some(_) => FULL_ROUNDS,
        None => USUAL_ROUNDS,
    };
    let mut world = World::make(site, server, disk, rounds);
    for round in 1..=rounds {
        world.round(round);
    }
}

/// A file system that never writes in place also needs room for operations that free some.
fn under_a_quota_space_can_be_freed(install: &'static Install) {
    let site = Site::new();
    let Some(disk) = QuotaDisk::mount(&site, "repository", 512) else {
        eprintln!("There is no mkfs.btrfs here: left out");
        return;
    };
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    site.write_config(&[("main", &server)]);
    server.configure(&format!(
        "archive_mode = on\narchive_command = '{}'",
        site.archive_command()
    ));
    server.start();
    let ids = backups(&site, &server, 3);
    for id in &ids[..2] {
        disk.allow_no_more();
        site.barmanfs(&["backup", "main", "--wait-timeout", "1"])
            .refused(1)
            .says(&["space"]);
        site.ok(&["delete", "main", id]);
        site.ok(&["sweep"]);
        disk.allow_all();
        // The next writer restores the reserve. Segments that the archiver could not archive arrive late: PostgreSQL
        // waits a minute after three failures, and while they are missing, the newest backup is needed.
        let last = backups(&site, &server, 1).remove(0);
        server.archive_current_segment();
        site.ok(&["delete", "main", &last]);
    }
    assert_eq!(site.backup_ids(), [ids[2].clone()]);
    site.ok(&["verify"]);
}

impl World {
    fn make(site: Site, server: PgServer, disk: SmallDisk, rounds: u32) -> Self {
        let written = site.make_directory("written");
        site.write_config_of(&server, STREAMING);
        let archive = |command: &str| {
            server.query(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
            server.query("SELECT pg_reload_conf()");
        };
        archive(&site.archive_command());
        backups(&site, &server, 1);
        let segments = segments(&site, &server, rounds as usize);
        archive(&format!("cp %p {}/%f", written.display()));
        let mut world = Self {
            site,
            server,
            _disk: disk,
            segments,
            compared: String::new(),
            random: Random::new("troubled_disk"),
            counts: BTreeMap::new(),
        };
        world.compared = world.streamed();
        world
    }

    fn round(&mut self, round: u32) {
        let trouble = self.random.one(&TROUBLES);
        let seed = self.random.seed();
        let repository = self.site.repository();
        let repository = repository.display();
        if trouble == Trouble::CatalogOfBefore {
            self.sh(&format!(
                "rm -rf before && mkdir before && cp -p '{repository}'/catalog.sqlite* before/"
            ));
        }
        if trouble == Trouble::Full {
            fill_up(&self.site);
        }
        for _ in 0..3 {
            self.act(trouble);
        }
        match trouble {
            Trouble::Kill => {}
            Trouble::Full => {
                self.free_some();
                self.sh(&format!("rm '{repository}/filler'"));
            }
            Trouble::ReadOnly => self.remount("rw"),
            Trouble::CatalogOfBefore => {
                self.sh(&format!(
                    "rm -f '{repository}'/catalog.sqlite* before/*-shm && cp -p before/* '{repository}'/"
                ));
                assert_segments_read_back(&self.site, &self.segments);
                // It may list packs that a sweep has removed since; it reports them once and then forgets them.
                let rebuilt = self.site.barmanfs(&["rebuild-catalog"]);
                assert!(matches!(rebuilt.code(), Some(0 | 3)), "{rebuilt}");
            }
        }
        self.keep_what_is_archived();
        // Everything works again.
        self.archive_one(true);
        if round.is_multiple_of(ROUNDS_BETWEEN_CHECKS) {
            self.check_stream();
            self.check_clones();
            assert_segments_read_back(&self.site, &self.segments);
            self.site.ok(&["sweep"]);
            let verified = self.site.barmanfs(&["verify"]);
            assert_eq!(
                verified.code(),
                Some(0),
                "Round {round}, BARMANFS_TEST_SEED={seed}, {trouble:?}: {verified}"
            );
            self.sh(&format!("rm -f '{repository}'/catalog.sqlite*"));
            self.site.ok(&["rebuild-catalog"]);
            assert_segments_read_back(&self.site, &self.segments);
            eprintln!("{round} rounds: {:?}", self.counts);
            if free(&self.site) < 30 << 20 {
                self.make_room();
            }
        }
    }

    /// Runs a random command, in trouble.
    fn act(&mut self, trouble: Trouble) {
        let acts = [
            "backup",
            "delete",
            "sweep",
            "rebuild-catalog",
            "wal-archive",
            "quarantine",
            "verify",
            "receive-wal",
            "clone",
        ];
        let act = self.random.one(&acts);
        *self.counts.entry((trouble, act)).or_default() += 1;
        match act {
            "receive-wal" => self.receive(trouble),
            "clone" => self.clone(trouble),
            _ => self.run(trouble, act),
        }
        if trouble == Trouble::ReadOnly {
            self.archive_one(false);
        }
    }

    fn run(&mut self, trouble: Trouble, act: &str) {
        let last = self.site.backup_ids().pop().unwrap_or_default();
        let acknowledged: Vec<String> = self.segments.acknowledged.keys().cloned().collect();
        let other = self.other_bytes(&acknowledged);
        let other_name = other.rsplit('/').next().unwrap_or_default();
        let command: &[&str] = match act {
            "backup" => &["backup", "main", "--fast-checkpoint", "--wait-timeout", "1"],
            "delete" => &["delete", "main", &last, "--force"],
            "wal-archive" => &["wal-archive", "main", &other],
            "quarantine" => &["quarantine", "main", "delete", other_name],
            act => &[act],
        };
        match trouble {
            Trouble::ReadOnly | Trouble::Kill => {
                let child = self.site.spawn(command);
                befall(&self.site, &mut self.random, trouble, child, true);
            }
            // Deleting must work on a full file system; the other commands may fail, with a message.
            Trouble::Full | Trouble::CatalogOfBefore => {
                let ended = self.site.barmanfs(command);
                assert!(
                    ended.code().is_some_and(|code| code < 100),
                    "{trouble:?}: {ended}"
                );
                if act == "delete" && !last.is_empty() {
                    assert_eq!(ended.code(), Some(0), "{trouble:?}: {ended}");
                }
            }
        }
    }

    /// Runs `receive-wal`. The server removes WAL that is reported to it as durable.
    fn receive(&mut self, trouble: Trouble) {
        let child = self.site.spawn(&["receive-wal", "main"]);
        self.fill_segment();
        befall(&self.site, &mut self.random, trouble, child, false);
        self.server.query("CHECKPOINT");
    }

    fn fill_segment(&self) -> String {
        self.server
            .query("INSERT INTO filler SELECT generate_series(1, 500)");
        self.server.query("SELECT pg_walfile_name(pg_switch_wal())")
    }

    /// Makes a clone, or writes to it and destroys it, with a mount of its own that is killed as well.
    fn clone(&mut self, trouble: Trouble) {
        let is_there = self.has_clone();
        let Self { site, random, .. } = self;
        let mut mount = Mount::foreground(site, &[]);
        if is_there {
            let file = mount.path("main/live/c/written");
            let dd = format!(
                "dd if=/dev/urandom of='{}' bs=8k count=8 conv=fsync",
                file.display()
            );
            site.sh(&dd);
        }
        let command = if is_there { "destroy" } else { "create" };
        let child = site.spawn(&["clone", command, "main", "c"]);
        befall(site, random, trouble, child, true);
        if trouble == Trouble::Kill {
            mount.kill();
        }
    }

    fn has_clone(&self) -> bool {
        let listed = self.site.json(&["clone", "list", "main"]);
        listed["clones"]
            .as_array()
            .is_some_and(|clones| !clones.is_empty())
    }

    /// A file that is refused: it has the name of an acknowledged segment, and other bytes.
    fn other_bytes(&mut self, acknowledged: &[String]) -> String {
        let Some(path) = acknowledged.last() else {
            return String::from("/nothing/000000090000000000000001");
        };
        let name = path.rsplit('/').next().unwrap_or_default();
        let mut bytes = self.segments.acknowledged[path].clone();
        let place = 30_000 + self.random.below(900_000) as usize;
        bytes[place] ^= 1;
        self.site.make_directory("other");
        self.site
            .write_file(&format!("other/{name}"), &bytes)
            .to_string_lossy()
            .into_owned()
    }

    /// Other bytes under an archived name are a fork: the WAL behind it is refused until a decision.
    fn keep_what_is_archived(&self) {
        let histories = self.site.json(&["history", "main", "list"]);
        for fork in histories["forks"].as_array().expect("forks") {
            if fork["decided"].is_null() {
                let lsn = fork["lsn"].as_str().expect("an LSN");
                self.site
                    .ok(&["history", "main", "keep", "--at", lsn, "--timeline", "9"]);
            }
        }
    }

    /// Archives a segment. If that succeeds, the segment is acknowledged, no matter whether it had to succeed.
    fn archive_one(&mut self, must: bool) {
        let Some((path, bytes)) = self.segments.waiting.pop() else {
            return;
        };
        let archived = self.site.barmanfs(&["wal-archive", "main", &path]);
        assert!(!must || archived.code() == Some(0), "{archived}");
        match archived.code() {
            Some(0) => drop(self.segments.acknowledged.insert(path, bytes)),
            _ => self.segments.waiting.push((path, bytes)),
        }
    }

    /// Frees space on a file system without a free byte.
    fn free_some(&mut self) {
        fill_up(&self.site);
        self.destroy_clone();
        for id in self.site.backup_ids() {
            self.site.ok(&["delete", "main", &id, "--force"]);
        }
        let swept = self.site.barmanfs(&["sweep"]);
        // There may not be enough room for the data that has to be copied.
        assert!(matches!(swept.code(), Some(0 | 3)), "{swept}");
    }

    fn destroy_clone(&self) {
        if self.has_clone() {
            self.site.ok(&["clone", "destroy", "main", "c"]);
        }
    }

    /// A clone's leftovers do not block anything.
    fn check_clones(&self) {
        self.destroy_clone();
        let is_done = |backup: &serde_json::Value| backup["status"] == "DONE";
        if !self.site.backups().iter().any(is_done) {
            self.site.backup();
        }
        let mount = Mount::new(&self.site);
        self.site.ok(&["clone", "create", "main", "c"]);
        self.site.ok(&["clone", "destroy", "main", "c"]);
        mount.unmount();
    }

    /// Receives all WAL, and compares the segments received since the last time with those that the server wrote.
    fn check_stream(&mut self) {
        let last = self.streamed();
        let written = self.site.path("written");
        for name in self.site.list(&written) {
            if name.len() == 24 && name > self.compared && name <= last {
                let there = self.site.barmanfs(&["get-wal", "main", &name]).ok();
                assert!(
                    there.stdout == fs::read(written.join(&name)).unwrap(),
                    "{name} reads back otherwise"
                );
            }
        }
        self.compared = last;
    }

    /// Receives until the current segment is archived. Returns its name.
    fn streamed(&self) -> String {
        let mut receiver = self.site.spawn(&["receive-wal", "main"]);
        self.fill_segment();
        let name = self.fill_segment();
        until(&format!("{name} is archived"), || {
            let received = self
                .site
                .barmanfs(&["get-wal", "main", &name, "/dev/null"])
                .code()
                == Some(0);
            received && self.site.path("written").join(&name).exists()
        });
        let _ = receiver.kill();
        wait(&mut receiver, COMMAND_LIMIT).expect("a killed process ends");
        name
    }

    fn make_room(&mut self) {
        for id in self.site.backup_ids() {
            self.site.ok(&["delete", "main", &id, "--force"]);
        }
        self.site.ok(&["sweep"]);
        self.server.query("SELECT 1");
    }

    fn remount(&self, how: &str) {
        run(Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(self.site.repository()))
        .ok();
    }

    fn sh(&self, script: &str) {
        self.site.sh(script).ok();
    }
}

/// The trouble occurs while a process is at work; `ends` says whether it ends by itself.
fn befall(site: &Site, random: &mut Random, trouble: Trouble, mut child: Child, ends: bool) {
    std::thread::sleep(random.duration_below(USUAL));
    if trouble == Trouble::ReadOnly {
        // A remount is refused while a process has a file open for writing.
        let refused = Command::new("mount")
            .args(["-o", "remount,ro"])
            .arg(site.repository())
            .status();
        drop(refused);
    }
    if trouble == Trouble::Kill || !ends {
        let _ = child.kill();
    }
    wait(&mut child, COMMAND_LIMIT).expect("it ends");
}
