//! Operations that change nothing of what is kept, clones, and the end.

use super::act::{Act, order};
use super::model::{Clone, Here};
use super::{DAY, Ended, SERVERS, World};
use crate::common::process::{COMMAND_LIMIT, run, wait};
use crate::common::site::bytes_under;
use std::fs;
use std::process::Stdio;

/// A clone has a name of its own; so many exist at most.
const CLONES: usize = 6;

/// What packs may take at the end, in percent of all content that is left, compressed without deltas: a pack may have a fifth of dead
/// bytes, and copies of one server's files are smaller than that as deltas.
const MOST_PERCENT: u64 = 125;

/// Listings, maps, records and footers of a few dozen backups and hundreds of WAL files.
const AROUND_BYTES: u64 = 2 << 20;

impl World {
    pub(super) fn sweep(&mut self, kills: bool) {
        if let Ended::Refused(why) = self.program("sweep", &["-q", "sweep"], kills) {
            self.fail(&why);
        }
    }

    /// A sweep and a backup at the same time.
    pub(super) fn sweep_beside(&mut self, name: &str) {
        let mut sweep = self.clock.command(&self.site, &["-q", "sweep"]);
        let mut sweep = sweep.stdin(Stdio::null()).spawn().unwrap();
        self.back_up(name, false);
        let ended = wait(&mut sweep, COMMAND_LIMIT);
        self.note(&format!("sweep beside it: {ended:?}"));
        if !ended.is_some_and(|status| status.success()) {
            self.fail("a sweep fails beside a backup");
        }
    }

    pub(super) fn rebuild(&mut self, kills: bool) {
        self.await_archiver();
        if self.random.below(3) == 0 {
            for file in ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"] {
                let _ = fs::remove_file(self.site.repository().join(file));
            }
            self.note("the catalog is lost");
        }
        match self.program("rebuild-catalog", &["-q", "rebuild-catalog"], kills) {
            Ended::Acknowledged(_) => {}
            Ended::Refused(why) => self.fail(&why),
            // Where the catalog is lost, nothing else helps; otherwise nothing else is needed.
            Ended::Killed if self.site.repository().join("catalog.sqlite").exists() => {
                self.look(false);
                return;
            }
            Ended::Killed => {
                self.must("rebuild-catalog", &["-q", "rebuild-catalog"]);
            }
        }
        self.look(false);
        self.model.settle();
    }

    pub(super) fn verify(&mut self, kills: bool) {
        if let Ended::Refused(why) = self.program("verify", &["-q", "verify"], kills) {
            self.fail(&why);
        }
    }

    pub(super) fn clone(&mut self, name: &'static str, kills: bool) {
        let here: Vec<(String, String)> = (self.of(name).backups.iter())
            .filter(|backup| backup.is_here())
            .filter_map(|backup| backup.id.clone().zip(backup.digest.clone()))
            .collect();
        if here.is_empty() || self.of(name).clones.len() >= CLONES {
            return;
        }
        let (backup, digest) = here[self.random.below(here.len() as u64) as usize].clone();
        self.clones += 1;
        let clone = format!("c{}", self.clones);
        let act = Act::Clone {
            server: name.to_owned(),
            name: clone.clone(),
            backup: backup.clone(),
        };
        let here = match self.act("clone", &act, kills) {
            Ended::Acknowledged(_) => Here::Yes,
            Ended::Killed => Here::MayCome,
            Ended::Refused(why) => self.fail(&why),
        };
        self.of(name).clones.insert(clone, Clone { backup, digest, here });
        self.look(false);
    }

    pub(super) fn destroy(&mut self, kills: bool) {
        let name = self.random.one(&SERVERS);
        let clones: Vec<String> = self.of(name).clones.keys().cloned().collect();
        if clones.is_empty() {
            return;
        }
        let clone = clones[self.random.below(clones.len() as u64) as usize].clone();
        match self.program("clone destroy", &["clone", "destroy", name, &clone], kills) {
            Ended::Acknowledged(_) => {
                self.of(name).clones.remove(&clone);
            }
            Ended::Killed => {
                if let Some(found) = self.of(name).clones.get_mut(&clone) {
                    found.here = Here::MayGo;
                }
            }
            Ended::Refused(why) => self.fail(&why),
        }
        self.look(false);
    }

    /// Everything is decided, and what nobody needs goes.
    pub(super) fn finish(&mut self) {
        self.compare();
        for name in SERVERS {
            let clones: Vec<String> = self.of(name).clones.keys().cloned().collect();
            for clone in clones {
                self.must("clone destroy", &["clone", "destroy", name, &clone]);
                self.of(name).clones.remove(&clone);
            }
        }
        self.must("rebuild-catalog", &["-q", "rebuild-catalog"]);
        self.look(false);
        self.model.settle();
        self.must("verify", &["-q", "verify"]);
        for name in SERVERS {
            self.must("retention", &["retention", name, "--enforce"]);
            self.of(name).enforce();
            self.look(false);
            let left = self.of(name).left_behind();
            if !left.is_empty() {
                self.fail(&format!("retention has left behind {left:?} of {name}"));
            }
        }
        for _ in 0..3 {
            self.clock.move_to(self.clock.now() + 2 * DAY);
            self.must("sweep", &["-q", "sweep"]);
        }
        self.compare();
        self.assert_no_space_is_lost();
        self.server.stop("fast");
    }

    fn assert_no_space_is_lost(&self) {
        let repository = self.site.repository();
        let measured = run(&mut order(&self.site, &self.clock, &Act::Measure))
            .ok()
            .text();
        let needed: u64 = measured.parse().unwrap();
        let taken = bytes_under(&repository.join("packs"));
        println!(
            "{taken} bytes in {} packs; {needed} bytes of content without deltas",
            self.site.packs().len()
        );
        if taken > needed * MOST_PERCENT / 100 + AROUND_BYTES {
            self.fail(&format!("{taken} bytes are taken, and {needed} needed"));
        }
        for directory in ["locks", "running", "live"] {
            let left = self.site.list(&repository.join(directory));
            if left.len() > 100 {
                self.fail(&format!("{directory}: {left:?}"));
            }
        }
        let whole = |path: &&std::path::PathBuf| path.file_name().is_some_and(|name| name.len() == 32);
        let packs = self.site.packs();
        if packs.iter().filter(whole).count() != packs.len() {
            self.fail(&format!("unfinished packs are left: {packs:?}"));
        }
    }
}
