//! Operations on a real server.

use super::act::{Act, order};
use super::model::{Here, Wal};
use super::{Ended, REAL, World};
use crate::common::clock::Clock;
use crate::common::process::{run, until};
use crate::common::{Install, PgServer, Site};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A running server with a table. It keeps a copy of each WAL file whose archiving is acknowledged.
pub(super) fn server(install: &'static Install, site: &Site, clock: &Clock, truth: &Path) -> PgServer {
    let mut server = PgServer::init(install, &site.path(REAL), &["--wal-segsize=1"]);
    let truth = truth.display();
    server.configure(&format!(
        "archive_mode = on\narchive_command = 'cp %p {truth}/%f.new && {} && mv {truth}/%f.new {truth}/%f'\n\
         summarize_wal = {}\nbgwriter_lru_maxpages = 0\n",
        site.archive_command(),
        if install.major >= 17 { "on" } else { "off" }
    ));
    server.environment = clock.environment();
    server.start();
    server.query(
        "CREATE TABLE work AS SELECT n AS id, repeat(md5(n::text), 3) AS filler FROM generate_series(1, 5000) n",
    );
    server
}

impl World {
    /// Until everything is archived; then the model knows it.
    pub(super) fn await_archiver(&mut self) {
        let status = self.server.data.join("pg_wal/archive_status");
        until("all WAL is archived", || {
            let files = fs::read_dir(&status).unwrap().flatten();
            files
                .map(|file| file.path())
                .all(|path| path.extension().is_none_or(|kind| kind != "ready"))
        });
        for file in fs::read_dir(&self.truth).unwrap().flatten() {
            let name = file.file_name().into_string().unwrap();
            if !name.ends_with(".new") {
                let hash = blake3::hash(&fs::read(file.path()).unwrap()).to_hex().to_string();
                fs::remove_file(file.path()).unwrap();
                self.of(REAL).wal.insert(
                    name,
                    Wal {
                        hash,
                        here: Here::Yes,
                    },
                );
            }
        }
    }

    pub(super) fn real_work(&mut self) {
        let seed = self.random.below(1_000_000);
        self.server.query(&format!(
            "SELECT setseed({seed} / 1000000.0);
             UPDATE work SET filler = repeat(md5(random()::text), 3)
                 WHERE id IN (SELECT (random() * 5000)::int FROM generate_series(1, 100))"
        ));
        self.server.query("SELECT pg_switch_wal()");
        if self.random.below(8) == 0 {
            self.server.query("VACUUM work");
        }
        *self.counts.entry("work").or_default() = (self.counts.get("work").map_or(1, |count| count.0 + 1), 0);
        self.note("the server works");
        self.await_archiver();
    }

    pub(super) fn real_backup(&mut self, kills: bool) {
        let method = self.random.one(&["files", "postgres"]);
        let incremental = self.random.one(&["auto", "never"]);
        let words = [
            "-q",
            "backup",
            REAL,
            "--fast-checkpoint",
            "--method",
            method,
            "--incremental",
            incremental,
            "--json",
        ];
        self.server.query("CHECKPOINT");
        let before = hashes(&self.server.data);
        let kind = if method == "files" {
            "backup by files"
        } else {
            "backup by protocol"
        };
        let ended = self.program(kind, &words, kills);
        let after = hashes(&self.server.data);
        self.await_archiver();
        let id = match &ended {
            Ended::Acknowledged(said) => Some(id_in(said).unwrap_or_else(|| self.fail("no id"))),
            Ended::Killed => None,
            Ended::Refused(why) => self.fail(why),
        };
        self.add_backup(REAL, id, None, "");
        self.look(false);
        // What did not change meanwhile must be in the backup as it is.
        let newest = self.of(REAL).backups.last().and_then(|backup| backup.id.clone());
        let Some(id) = newest else { return };
        let act = Act::Files {
            server: REAL.to_owned(),
            backup: id.clone(),
        };
        let stored: BTreeMap<String, String> =
            serde_json::from_slice(&run(&mut order(&self.site, &self.clock, &act)).ok().stdout).unwrap();
        let mut compared = 0;
        for (path, hash) in before
            .iter()
            .filter(|(path, hash)| after.get(*path) == Some(*hash))
        {
            match stored.get(path) {
                Some(stored) if stored == hash => compared += 1,
                stored => self.fail(&format!(
                    "{path} is {hash} on the server, and {stored:?} in backup {id}"
                )),
            }
        }
        if compared < 500 {
            self.fail(&format!("only {compared} files of backup {id} could be compared"));
        }
    }
}

fn id_in(said: &str) -> Option<String> {
    let said: serde_json::Value = serde_json::from_str(said).ok()?;
    Some(said["backups"][0]["id"].as_str()?.to_owned())
}

/// The hash of each file of a relation.
fn hashes(data: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![data.join("base"), data.join("global")];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            } else if name.starts_with(|first: char| first.is_ascii_digit())
                && let Ok(bytes) = fs::read(entry.path())
            {
                let path = entry
                    .path()
                    .strip_prefix(data)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.insert(path, blake3::hash(&bytes).to_hex().to_string());
            }
        }
    }
    found
}
