//! `kill -9` at any moment of any command that writes: all acknowledged data is there, and the next run succeeds.

use crate::common::load::{fill, transact};
use crate::common::process::{COMMAND_LIMIT, wait};
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::{Install, PgServer, Site};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

topic! {
    once kills_at_random_points_lose_nothing_acknowledged,
}

/// How often each command is killed.
const ROUNDS: u32 = 50;

/// How many rounds between two verifications of everything; the last round is always verified.
const ROUNDS_BETWEEN_CHECKS: u32 = 10;

/// Starts the command and kills it after a random part of `usual`. Returns whether it had succeeded before.
fn killed(site: &Site, random: &mut Random, usual: Duration, arguments: &[&str]) -> bool {
    let mut child = site.spawn(arguments);
    std::thread::sleep(random.duration_below(usual));
    let _ = child.kill();
    wait(&mut child, COMMAND_LIMIT)
        .expect("a killed process ends")
        .success()
}

fn time(run: impl FnOnce()) -> Duration {
    let began = Instant::now();
    run();
    began.elapsed()
}

fn kills_at_random_points_lose_nothing_acknowledged(install: &'static Install) {
    let mut random = Random::new("killed_at_random_points");
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    fill(&server, 1);
    if install.major >= 17 {
        // Then a backup is incremental if there is one to build on.
        server.query("ALTER SYSTEM SET summarize_wal = on");
        server.query("SELECT pg_reload_conf()");
    }
    let mut acknowledged = segments(&site, &server, ROUNDS as usize);
    let usual = UsualTimes::measure(&site, &mut acknowledged);

    let mut incremental = 0;
    for round in 1..=ROUNDS {
        let seed = random.seed();
        transact(&server, 20);
        killed(
            &site,
            &mut random,
            usual.backup,
            &["backup", "main", "--fast-checkpoint"],
        );
        archive_one(&site, &mut random, usual.archive, &mut acknowledged);
        let oldest = site.backup_ids().remove(0);
        killed(&site, &mut random, usual.delete, &["delete", "main", &oldest]);
        killed(&site, &mut random, usual.sweep, &["sweep"]);

        site.backup();
        incremental += u32::from(site.backups().pop().unwrap()["kind"] == "incremental");
        if round % ROUNDS_BETWEEN_CHECKS == 0 || round == ROUNDS {
            site.ok(&["sweep"]);
            let verified = site.barmanfs(&["verify"]);
            assert_eq!(
                verified.code(),
                Some(0),
                "Round {round}, BARMANFS_TEST_SEED={seed}: {verified}"
            );
            assert_segments_read_back(&site, &acknowledged);
            delete_all_but_newest(&site);
        }
    }
    // In some rounds the only backup to build on has been deleted.
    assert_eq!(
        incremental * 2 > ROUNDS,
        install.major >= 17,
        "{incremental} were incremental"
    );
    assert_starts(&site, install);
}

/// How long each command takes without a kill.
struct UsualTimes {
    backup: Duration,
    archive: Duration,
    delete: Duration,
    sweep: Duration,
}

impl UsualTimes {
    fn measure(site: &Site, segments: &mut Segments) -> Self {
        site.backup();
        let backup = time(|| drop(site.backup()));
        let archive = time(|| {
            let path = segments.waiting.pop().expect("segments wait");
            site.ok(&["wal-archive", "main", &path.0]);
            segments.acknowledged.insert(path.0, path.1);
        });
        let oldest = site.backup_ids().remove(0);
        let delete = time(|| drop(site.ok(&["delete", "main", &oldest])));
        let sweep = time(|| drop(site.ok(&["sweep"])));
        Self {
            backup,
            archive,
            delete,
            sweep,
        }
    }
}

/// Segments outside the server's own archiving, by path, with their bytes.
pub(crate) struct Segments {
    pub(crate) waiting: Vec<(String, Vec<u8>)>,
    pub(crate) acknowledged: BTreeMap<String, Vec<u8>>,
}

/// Segments of the server under names of another timeline, which its archiver never uses: only this test archives them.
/// The page headers have that timeline too.
pub(crate) fn segments(site: &Site, server: &PgServer, count: usize) -> Segments {
    let directory = site.make_directory("segments");
    server.query("CREATE TABLE filler (n int)");
    let mut waiting = Vec::new();
    for _ in 0..=count {
        server.query("INSERT INTO filler SELECT generate_series(1, 3000)");
        let name = server.archive_current_segment();
        let mut bytes =
            fs::read(server.data.join("pg_wal").join(&name)).expect("a segment just archived is there");
        for page in bytes.chunks_mut(8192) {
            page[4..8].copy_from_slice(&9_u32.to_le_bytes());
        }
        let path = format!("{}/00000009{}", directory.display(), &name[8..]);
        site.write_file(&format!("segments/00000009{}", &name[8..]), &bytes);
        waiting.push((path, bytes));
    }
    waiting.reverse();
    Segments {
        waiting,
        acknowledged: BTreeMap::new(),
    }
}

/// Kills the command in the middle, then runs it to the end, as the server's archiver does.
fn archive_one(site: &Site, random: &mut Random, usual: Duration, segments: &mut Segments) {
    let Some((path, bytes)) = segments.waiting.pop() else {
        return;
    };
    if !killed(site, random, usual, &["wal-archive", "main", &path]) {
        site.ok(&["wal-archive", "main", &path]);
    }
    segments.acknowledged.insert(path, bytes);
}

pub(crate) fn assert_segments_read_back(site: &Site, segments: &Segments) {
    for (path, bytes) in &segments.acknowledged {
        let name = Path::new(path).file_name().unwrap().to_string_lossy();
        let there = site.barmanfs(&["get-wal", "main", &name]).ok();
        assert!(there.stdout == *bytes, "{name} reads back otherwise");
    }
}

fn delete_all_but_newest(site: &Site) {
    let mut ids = site.backup_ids();
    ids.pop();
    for id in ids {
        site.ok(&["delete", "main", &id]);
    }
}

fn assert_starts(site: &Site, install: &'static Install) {
    let mount = crate::common::Mount::new(site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    crate::common::load::assert_sums_agree(&copy);
    copy.assert_sound();
}
