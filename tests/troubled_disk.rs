//! Kills, full disks and a file system that turns read-only, in the midst of whatever changes the repository: nothing that
//! was acknowledged is lost, and afterwards there is always a way to free space.

use crate::common::disk::SmallDisk;
use crate::common::process::{COMMAND_LIMIT, run, wait};
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::{Install, PgServer, Site};
use crate::crash::{Segments, assert_segments_read_back, segments};
use crate::full_disk::{backups, fill_up, free, small_site};
use std::process::Command;
use std::time::Duration;

topic! {
    once in_whatever_trouble_nothing_acknowledged_is_lost_and_space_can_be_freed (as_root),
}

/// How many times something goes wrong; `BARMANFS_TEST_SECONDS`, whatever it says, makes it the full test.
const USUAL_ROUNDS: u32 = 24;
const FULL_ROUNDS: u32 = 300;

/// Every so many rounds everything is verified and made again from the packs.
const ROUNDS_BETWEEN_CHECKS: u32 = 12;

/// Longer than any of the commands takes here.
const USUAL: Duration = Duration::from_millis(400);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    random: Random,
}

fn in_whatever_trouble_nothing_acknowledged_is_lost_and_space_can_be_freed(install: &'static Install) {
    let rounds = match std::env::var_os("BARMANFS_TEST_SECONDS") {
        Some(_) => FULL_ROUNDS,
        None => USUAL_ROUNDS,
    };
    let (site, server, disk) = small_site(install);
    backups(&site, &server, 1);
    let segments = segments(&site, &server, rounds as usize);
    server.query("ALTER SYSTEM SET archive_command = '/bin/true'");
    server.query("SELECT pg_reload_conf()");
    let random = Random::new("troubled_disk");
    let mut world = World {
        site,
        server,
        _disk: disk,
        segments,
        random,
    };
    for round in 1..=rounds {
        world.round(round);
    }
}

impl World {
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
                // It may know packs that a sweep has removed since; told once, they are forgotten.
                let rebuilt = self.site.barmanfs(&["rebuild-catalog"]);
                assert!(matches!(rebuilt.code(), Some(0 | 3)), "{rebuilt}");
            }
        }
        // Everything works again.
        self.archive_one(true);
        if round.is_multiple_of(ROUNDS_BETWEEN_CHECKS) {
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
            if free(&self.site) < 30 << 20 {
                self.make_room();
            }
        }
    }

    /// Runs a command, in trouble.
    fn act(&mut self, trouble: Trouble) {
        let last = self.site.backup_ids().pop().unwrap_or_default();
        let acknowledged: Vec<String> = self.segments.acknowledged.keys().cloned().collect();
        let other = self.other_bytes(&acknowledged);
        let commands: [&[&str]; 7] = [
            &["backup", "main", "--fast-checkpoint", "--wait-timeout", "1"],
            &["delete", "main", &last, "--force"],
            &["sweep"],
            &["rebuild-catalog"],
            &["wal-archive", "main", &other],
            &[
                "quarantine",
                "main",
                "delete",
                other.rsplit('/').next().unwrap_or_default(),
            ],
            &["verify"],
        ];
        let command = self.random.one(&commands);
        if trouble == Trouble::ReadOnly {
            let mut child = self.site.spawn(command);
            std::thread::sleep(self.random.duration_below(USUAL));
            // While somebody has a file open for writing it is refused.
            let refused = Command::new("mount")
                .args(["-o", "remount,ro"])
                .arg(self.site.repository())
                .status();
            drop(refused);
            wait(&mut child, COMMAND_LIMIT).expect("it ends");
            self.archive_one(false);
        } else if trouble == Trouble::Kill {
            let mut child = self.site.spawn(command);
            std::thread::sleep(self.random.duration_below(USUAL));
            let _ = child.kill();
            wait(&mut child, COMMAND_LIMIT).expect("a killed process ends");
        } else {
            // Deleting in a full file system is what must work; the others may fail, with a word.
            let ended = self.site.barmanfs(command);
            assert!(
                ended.code().is_some_and(|code| code < 100),
                "{trouble:?}: {ended}"
            );
            if command[0] == "delete" && !last.is_empty() {
                assert_eq!(ended.code(), Some(0), "{trouble:?}: {ended}");
            }
        }
    }

    /// A file that is refused: the name of an acknowledged segment, with other bytes.
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

    /// Archives a segment. Whether or not it has to work: what succeeds is acknowledged.
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

    /// With not a byte left.
    fn free_some(&mut self) {
        fill_up(&self.site);
        for id in self.site.backup_ids() {
            self.site.ok(&["delete", "main", &id, "--force"]);
        }
        let swept = self.site.barmanfs(&["sweep"]);
        // What is left to be copied may need more room than there is.
        assert!(matches!(swept.code(), Some(0 | 3)), "{swept}");
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
