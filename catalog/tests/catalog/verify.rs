//! Verification names what is damaged; statistics add up.

use std::fs;
use std::path::PathBuf;

use crate::clones::make;
use crate::common::{Files, Fixture, SYSTEM, archive, back_up, fixture, noise, restore, segment};
use barmanfs_catalog::{Monitor, Repository, Silent, SweepOptions, VerifyRound, VerifyScope};
use barmanfs_store::{Node, Windows};

const MIB: usize = 1024 * 1024;

fn files() -> Files {
    let mut files = Files::new();
    files.insert("base/5/1259".to_owned(), noise(1, MIB));
    files.insert("base/5/16384".to_owned(), noise(2, 6 * MIB));
    files.insert("global/pg_control".to_owned(), noise(3, 8192));
    files
}

/// Flips a byte of the chunk that holds this window of the file.
fn damage(f: &Fixture, path: &str, window: u64) {
    let backup = f.repository.backups(&f.server).unwrap().remove(0);
    let trees = f.repository.trees();
    let entry = trees
        .find(&backup.root.unwrap().directory, path.as_bytes())
        .unwrap()
        .unwrap();
    let Node::File(map) = entry.node else { panic!() };
    let chunk = trees.window(&map, window).unwrap().chunk.unwrap();
    damage_chunk(&f.repository, &f.repository.chunks().get(&chunk).unwrap());
}

/// Noise is stored as it is: the chunk's bytes can be found in a pack.
fn damage_chunk(repository: &Repository, bytes: &[u8]) {
    for pack in packs(repository) {
        let mut content = fs::read(&pack).unwrap();
        let needle = &bytes[100..150];
        if let Some(at) = content.windows(needle.len()).position(|window| window == needle) {
            content[at] ^= 1;
            fs::write(&pack, content).unwrap();
            return;
        }
    }
    panic!("no pack has the chunk");
}

fn packs(repository: &Repository) -> Vec<PathBuf> {
    let directories = fs::read_dir(repository.path().join("packs")).unwrap();
    directories
        .flat_map(|directory| fs::read_dir(directory.unwrap().path()).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect()
}

fn verify(f: &Fixture, scope: &VerifyScope) -> barmanfs_catalog::VerifyReport {
    Repository::open(f.repository.path())
        .unwrap()
        .verify(scope, &mut Silent)
        .unwrap()
}

#[test]
fn a_flipped_byte_is_named_by_backup_file_and_page() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files());
    let second = back_up(&f.repository, &f.server, &files());
    let clean = verify(&f, &VerifyScope::All);
    assert!(clean.is_clean(), "{clean:?}");
    assert_eq!(clean.backups, 2);
    assert!(clean.bytes > 7 * MIB as u64);
    damage(&f, "base/5/16384", 3);
    let report = verify(&f, &VerifyScope::All);
    assert_eq!(report.bad_chunks, 1);
    let named: Vec<_> = report
        .damages
        .iter()
        .map(|damage| {
            (
                damage.backup,
                damage.file.as_str(),
                damage.first_page,
                damage.pages,
            )
        })
        .collect();
    assert_eq!(
        named,
        [
            (Some(first.id), "base/5/16384", Some(48), 16),
            (Some(second.id), "base/5/16384", Some(48), 16),
        ]
    );
    assert!(
        report.damages[0].reason.contains("in pack"),
        "{}",
        report.damages[0].reason
    );
    let report = verify(&f, &VerifyScope::Backup(f.server.clone(), second.id));
    assert_eq!(report.damages.len(), 1);
    assert!(verify(&f, &VerifyScope::Wal(f.server.clone())).is_clean());
}

/// Does something once the chunks have been collected, or when they have been checked.
struct At<F: FnMut()> {
    stage: &'static str,
    work: F,
}

impl<F: FnMut()> Monitor for At<F> {
    fn stage(&mut self, what: &str) {
        if what == self.stage {
            (self.work)();
        }
    }
}

#[test]
fn a_backup_deleted_meanwhile_is_not_damaged() {
    for stage in ["Checking chunks", "Checking the footers of packs"] {
        let f = fixture();
        let backup = back_up(&f.repository, &f.server, &files());
        damage(&f, "base/5/16384", 3);
        let other = Repository::open(f.repository.path()).unwrap();
        let mut delete = At {
            stage,
            work: || {
                other.delete_backup(&backup, false).unwrap();
                other.sweep(&SweepOptions::default(), &mut Silent).unwrap();
            },
        };
        let report = Repository::open(f.repository.path())
            .unwrap()
            .verify(&VerifyScope::All, &mut delete)
            .unwrap();
        assert!(report.is_clean(), "{stage}: {report:?}");
    }
}

#[test]
fn clones_and_quarantine_are_in_use_too() {
    let f = fixture();
    let backup = back_up(&f.repository, &f.server, &files());
    let name = make(&f, &backup, "test").name;
    f.repository.delete_backup(&backup, true).unwrap();
    let (segment_name, bytes) = segment(1, SYSTEM, 76);
    archive(&f.repository, &f.server, &segment_name, &bytes).unwrap();
    let (_, other) = segment(1, SYSTEM, 77);
    archive(&f.repository, &f.server, &segment_name, &other).unwrap();
    let clean = verify(&f, &VerifyScope::All);
    assert!(clean.is_clean(), "{clean:?}");
    assert_eq!((clean.backups, clean.clones, clean.wal_files), (0, 1, 2));
    damage_chunk(&f.repository, &noise(2, 6 * MIB)[3 * 128 * 1024..4 * 128 * 1024]);
    damage_chunk(&f.repository, &other);
    for scope in [VerifyScope::All, VerifyScope::Server(f.server.clone())] {
        let report = verify(&f, &scope);
        assert_eq!(report.bad_chunks, 2);
        let named: Vec<_> = report
            .damages
            .into_iter()
            .map(|damage| (damage.clone, damage.file, damage.first_page))
            .collect();
        assert_eq!(
            named,
            [
                (None, format!("{segment_name} (quarantined)"), Some(0)),
                (Some(name.clone()), "base/5/16384".to_owned(), Some(48)),
            ]
        );
    }
}

#[test]
fn damage_below_a_map_piece_is_named_too() {
    let f = fixture();
    back_up(&f.repository, &f.server, &files());
    damage(&f, "base/5/16384", 47);
    let report = verify(&f, &VerifyScope::Server(f.server.clone()));
    assert_eq!(
        (report.damages[0].first_page, report.damages[0].pages),
        (Some(47 * 16), 16)
    );
}

#[test]
fn a_lost_pack_is_named_by_every_file_in_it() {
    let f = fixture();
    back_up(&f.repository, &f.server, &files());
    let (name, bytes) = segment(1, SYSTEM, 1);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    packs(&f.repository)
        .iter()
        .for_each(|pack| fs::remove_file(pack).unwrap());
    let report = verify(&f, &VerifyScope::All);
    assert!(!report.is_clean());
    assert!(!report.pack_problems.is_empty());
    let named: Vec<_> = report.damages.iter().map(|damage| damage.file.clone()).collect();
    assert!(
        named.contains(&"/".to_owned()) && named.contains(&name.to_string()),
        "{named:?}"
    );
}

#[test]
fn a_damaged_segment_is_named() {
    let f = fixture();
    let (name, bytes) = segment(1, SYSTEM, 1);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    damage_chunk(&f.repository, &bytes);
    let report = verify(&f, &VerifyScope::Wal(f.server.clone()));
    let damage = &report.damages[0];
    assert_eq!(
        (damage.backup, damage.file.clone(), damage.first_page),
        (None, name.to_string(), Some(0))
    );
    let map = f.repository.wal(&f.server).find(&name).unwrap().unwrap().map;
    assert!(matches!(map.windows, Windows::Inline(_)));
}

#[test]
fn a_damaged_footer_is_found_before_a_rebuild_needs_it() {
    let f = fixture();
    back_up(&f.repository, &f.server, &files());
    for pack in packs(&f.repository) {
        let mut content = fs::read(&pack).unwrap();
        let last = content.len() - 1;
        content[last] ^= 1;
        fs::write(&pack, content).unwrap();
    }
    let report = verify(&f, &VerifyScope::All);
    assert_eq!(report.bad_chunks, 0);
    assert_eq!(report.pack_problems.len(), packs(&f.repository).len());
}

#[test]
fn statistics_add_up() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files());
    let second = back_up(&f.repository, &f.server, &files());
    back_up(&f.repository, &"other".parse().unwrap(), &files());
    let (name, bytes) = segment(1, SYSTEM, 1);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    let stats = f.repository.stats().unwrap();
    let logical = 7 * MIB as u64 + 8192;
    let main = &stats.servers[0];
    assert_eq!(
        main.backups.iter().map(|backup| backup.id).collect::<Vec<_>>(),
        [first.id, second.id]
    );
    assert_eq!(main.backups[0].sizes.logical_bytes, logical);
    assert!(main.backups[0].sizes.unique_bytes >= logical);
    assert_eq!(main.backups[1].sizes.unique_bytes, 0, "the second adds nothing");
    assert_eq!(
        (main.wal_files, main.wal.logical_bytes, main.wal.unique_bytes),
        (1, MIB as u64, MIB as u64)
    );
    assert_eq!(main.total.logical_bytes, 2 * logical + MIB as u64);
    assert_eq!(stats.total.logical_bytes, 3 * logical + MIB as u64);
    assert_eq!(
        stats.total.unique_bytes, main.total.unique_bytes,
        "both servers have the same chunks"
    );
    assert!(stats.total.dedup_ratio().unwrap() > 2.5);
    assert!(stats.total.stored_bytes <= stats.pack_bytes);
    let chunks_and_records = stats.pack_bytes - stats.total.stored_bytes;
    assert!(
        chunks_and_records < 20_000,
        "{chunks_and_records} bytes are in use by nothing"
    );
}

/// Reads all packs in parts, as cron does.
fn verify_parts(repository: &Repository) -> (VerifyRound, u64) {
    let mut round = repository.repository_memory().unwrap().verification;
    let part = repository
        .verify_part(&mut round, u64::MAX, &|| false, &mut |round| {
            repository.remember_of_repository(|memory| memory.verification = round.clone())
        })
        .unwrap();
    (round, part.bad_chunks)
}

fn flip(file: &std::path::Path, at: impl Fn(usize) -> usize) {
    let mut content = fs::read(file).unwrap();
    let place = at(content.len());
    content[place] ^= 1;
    fs::write(file, content).unwrap();
}

fn largest(repository: &Repository) -> PathBuf {
    let size = |pack: &PathBuf| fs::metadata(pack).unwrap().len();
    packs(repository).into_iter().max_by_key(size).unwrap()
}

#[test]
fn a_pack_without_its_footer_is_read_in_parts_all_the_same() {
    let f = fixture();
    back_up(&f.repository, &f.server, &files());
    let pack = largest(&f.repository);
    flip(&pack, |length| length - 1);
    let (round, bad) = verify_parts(&f.repository);
    assert_eq!(
        (round.problems.len(), bad, round.damages.len()),
        (1, 0, 0),
        "{round:?}"
    );
    // What is damaged in it as well is found and named, and stored again by the next backup.
    let g = fixture();
    back_up(&g.repository, &g.server, &files());
    let pack = largest(&g.repository);
    flip(&pack, |length| length - 1);
    flip(&pack, |length| length / 2);
    let (round, bad) = verify_parts(&g.repository);
    assert_eq!(
        (round.problems.len(), bad, round.damages.len()),
        (1, 1, 1),
        "{round:?}"
    );
    let again = back_up(&g.repository, &g.server, &files());
    assert_eq!(restore(&g.repository, &again), files());
}

#[test]
fn a_sweep_makes_a_pack_whole_again_that_has_lost_its_footer() {
    for in_parts in [true, false] {
        let f = fixture();
        let repository = &f.repository;
        let backup = back_up(repository, &f.server, &files());
        flip(&largest(repository), |length| length - 1);
        if in_parts {
            assert_eq!(verify_parts(repository).0.problems.len(), 1);
        } else {
            let report = repository.verify(&VerifyScope::All, &mut Silent).unwrap();
            assert_eq!(report.pack_problems.len(), 1);
            repository.note_damage(&report).unwrap();
        }
        assert_eq!(repository.pack_problems().unwrap().len(), 1);
        let swept = repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
        assert_eq!((swept.repacked_packs, swept.problems.len()), (1, 0), "{swept:?}");
        // The pack of the problem is gone.
        assert_eq!(repository.pack_problems().unwrap(), []);
        assert_eq!(verify_parts(repository).0.problems, []);
        let rebuilt = Repository::rebuild(repository.path(), &mut Silent).unwrap();
        assert!(rebuilt.is_complete(), "{rebuilt:?}");
        assert_eq!(restore(repository, &backup), files());
    }
}
