use std::collections::BTreeSet;

use barmanfs_store::testing::{ATTRIBUTES, noise};

use super::*;
use crate::index::repository::temporary;
use crate::monitor::Silent;
use crate::testing::{SYSTEM, backup_end, new_backup_with_wal};
use crate::upkeep::verify::VerifyScope;

const WINDOW: usize = 8192;

/// So many windows have a map of several pieces.
const WINDOWS: usize = 300;

/// The seeds of the windows of a large file, and of small ones of one window each.
type Seeds = (Vec<u64>, Vec<u64>);

fn back_up(repository: &Repository, (large, small): &Seeds) {
    let new = new_backup_with_wal(SYSTEM);
    let writer = repository.writer("test").unwrap();
    let mut run = writer.begin_backup(&"main".parse().unwrap(), new).unwrap();
    let file = |path: String, seeds: &[u64]| {
        let tree = run.tree().unwrap();
        let bytes = (seeds.len() * WINDOW) as u64;
        let mut sink = tree
            .file(path.as_bytes(), ATTRIBUTES, bytes, WINDOW as u32)
            .unwrap();
        for seed in seeds {
            let content = noise(*seed, 100).repeat(WINDOW / 100 + 1);
            sink.write(&content[..WINDOW]).unwrap();
        }
        sink.finish().unwrap();
    };
    file("base/large".to_owned(), large);
    for (number, seed) in small.iter().enumerate() {
        file(format!("base/5/{number}"), &[*seed]);
    }
    run.end_tree(ATTRIBUTES).unwrap();
    run.finish(backup_end(1, 1)).unwrap();
}

fn needed(repository: &Repository) -> Sorted<{ ChunkId::BYTES }> {
    let mut needed = Needed::new(repository).unwrap();
    for subject in &repository.subjects(&VerifyScope::All).unwrap() {
        needed.add(subject, &mut Silent).unwrap();
    }
    needed.finish()
}

/// What a walk through each tree alone meets that goes around what cannot be read.
fn plain(repository: &Repository) -> BTreeSet<[u8; ChunkId::BYTES]> {
    let (trees, mut met) = (repository.trees(), BTreeSet::new());
    for backup in repository.backups(&"main".parse().unwrap()).unwrap() {
        for tree in repository.trees_of(&backup).unwrap() {
            let mut each = |id: ChunkId, role| {
                met.insert(id.0);
                Ok(role == ChunkRole::Window || repository.chunks().get(&id).is_ok())
            };
            trees.chunks_of(&tree, &mut each).unwrap();
        }
    }
    met
}

fn change(random: &mut fastrand::Rng, (large, small): &mut Seeds) {
    let seed = random.u64(..);
    let at = random.usize(0..WINDOWS);
    large[at] = seed;
    let at = random.usize(0..small.len());
    small[at] = seed;
}

fn assert_is_plain(repository: &Repository, what: &str) {
    let ids = needed(repository);
    let mut ids = ids.all().unwrap();
    let found: BTreeSet<_> = std::iter::from_fn(|| ids.next().unwrap()).collect();
    assert_eq!(found, plain(repository), "{what}");
}

#[test]
fn a_backup_adds_what_has_changed_since_the_one_before() {
    let (_directory, repository) = temporary();
    let mut random = fastrand::Rng::with_seed(1);
    let mut seeds = ((1..).take(WINDOWS).collect(), vec![7; 200]);
    let mut added = Vec::new();
    for _ in 0..8 {
        back_up(&repository, &seeds);
        added.push(needed(&repository).len_at_most());
        change(&mut random, &mut seeds);
    }
    assert_is_plain(&repository, "a series of backups");
    assert!(added[0] > WINDOWS as u64, "{added:?}");
    // Two windows, and the pages and the piece that have them.
    assert!(added[7] - added[0] <= 7 * 12, "{added:?}");
}

/// Wherever a pack is damaged, all that can still be reached is met.
#[test]
fn what_cannot_be_read_hides_nothing_else() {
    for seed in 0..12 {
        let (_directory, repository) = temporary();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut seeds = ((1..).take(WINDOWS).collect(), vec![7; 20]);
        for _ in 0..4 {
            back_up(&repository, &seeds);
            change(&mut random, &mut seeds);
        }
        let packs = repository.pack_ids().unwrap();
        let victim = packs[random.usize(0..packs.len())].to_string();
        let file = repository.path().join("packs").join(&victim[..2]).join(&victim);
        let mut bytes = std::fs::read(&file).unwrap();
        for _ in 0..40 {
            // Behind the header.
            let at = random.usize(32..bytes.len());
            bytes[at] ^= 0x40;
        }
        std::fs::write(&file, bytes).unwrap();
        let repository = Repository::open(repository.path()).unwrap();
        assert_is_plain(&repository, &format!("seed {seed}"));
    }
}
