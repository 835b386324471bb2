//! A mark is what the plain walk through everything gives, whatever the catalog.

use std::collections::{BTreeMap, BTreeSet};

use barmanfs_pg::SegmentSize;
use barmanfs_store::testing::{ATTRIBUTES, noise};

use super::*;
use crate::archive::backup::Backup;
use crate::archive::derive::derive;
use crate::index::repository::on_test_packs;
use crate::monitor::Silent;
use crate::names::ServerName;
use crate::testing::{SYSTEM, backup_end, new_backup_with_wal};
use crate::upkeep::sweep::SweepOptions;

const WINDOW: usize = 8192;

/// Pack, position and chunk of each copy that stays.
type Kept = BTreeSet<(i64, u32, ChunkId)>;

/// Files by path, each as the seeds of its windows.
type Files = BTreeMap<String, Vec<u32>>;

fn back_up(repository: &Repository, server: &ServerName, files: &Files) -> Backup {
    let writer = repository.writer("test").unwrap();
    let mut run = writer.begin_backup(server, new_backup_with_wal(SYSTEM)).unwrap();
    for (path, windows) in files {
        let bytes = (windows.len() * WINDOW) as u64;
        let tree = run.tree().unwrap();
        let mut file = tree
            .file(path.as_bytes(), ATTRIBUTES, bytes, WINDOW as u32)
            .unwrap();
        for seed in windows {
            file.write(&noise(u64::from(*seed), 200).repeat(41)[..WINDOW])
                .unwrap();
        }
        file.finish().unwrap();
    }
    run.end_tree(ATTRIBUTES).unwrap();
    run.finish(backup_end(1, 1)).unwrap()
}

fn archive(repository: &Repository, server: &ServerName, number: u32) {
    let size = usize::try_from(SegmentSize::MIN.bytes()).unwrap();
    let (name, bytes) = barmanfs_pg::testing::segment(
        number,
        SYSTEM,
        noise(u64::from(number), 3000).repeat(350)[..size].to_vec(),
    );
    let writer = repository.writer("test").unwrap();
    let name = barmanfs_pg::wal_name::WalName::Segment(name);
    writer
        .archive_wal(server, &name, &mut &*bytes, bytes.len() as u64, "test")
        .unwrap();
}

/// All ids, and the copies to keep, as a walk through every tree from its root to its last row finds them.
fn plain(repository: &Repository, without: Option<&Without>) -> Result<(BTreeSet<ChunkId>, Kept)> {
    let trees = repository.trees();
    let mut met = BTreeSet::new();
    each_root(repository, without, &mut |_, root| {
        let mut each = |id, _| {
            met.insert(id);
            Ok(true)
        };
        match root {
            Root::Tree { directory, .. } => trees.chunks_of(directory, &mut each)?,
            Root::File(map) => trees.chunks_of_file(map, &mut each)?,
        }
        Ok(())
    })?;
    let mut kept = BTreeSet::new();
    let mut bases = BTreeSet::new();
    repository.db.read(|db| {
        for id in &met {
            if let Some(place) = kept_place(db, id)? {
                kept.insert((place.pack, place.location.offset, *id));
                bases.extend(place.location.base);
            }
        }
        for id in &bases {
            if let Some(place) = whole_place(db, id)? {
                kept.insert((place.pack, place.location.offset, *id));
            }
        }
        Ok(())
    })?;
    Ok((met, kept))
}

fn assert_is_plain(repository: &Repository, without: Option<&Without>) {
    let mark = Mark::make_without(repository, without, &mut Silent).unwrap();
    let (met, kept) = plain(repository, without).unwrap();
    let mut ids = mark.met.all().unwrap();
    let marked: BTreeSet<_> = std::iter::from_fn(|| ids.next().unwrap()).map(ChunkId).collect();
    assert_eq!(marked, met);
    assert!(met.iter().all(|id| mark.uses(id).unwrap()));
    let mut sums: BTreeMap<i64, u64> = BTreeMap::new();
    let mut found = BTreeSet::new();
    let packs: BTreeSet<i64> = kept.iter().map(|(pack, ..)| *pack).collect();
    for pack in 0..=mark.newest_pack {
        assert_eq!(packs.contains(&pack), mark.in_use(pack).chunks > 0);
        let chunks = mark.chunks_in(pack).unwrap();
        assert_eq!(chunks.len() as u64, mark.in_use(pack).chunks);
        found.extend(chunks.into_iter().map(|id| (pack, id)));
        sums.insert(pack, mark.in_use(pack).stored_bytes);
    }
    assert_eq!(found, kept.iter().map(|(pack, _, id)| (*pack, *id)).collect());
    assert_eq!(sums.values().sum::<u64>() > 0, !kept.is_empty());
}

fn change(random: &mut fastrand::Rng, files: &mut Files) {
    for _ in 0..random.usize(0..6) {
        let name = format!("{}/{}", ["a", "b", "a/c"][random.usize(0..3)], random.u32(0..8));
        match random.u32(0..5) {
            0 => drop(files.remove(&name)),
            1 => {
                let count = [1, 3, 16, 17, 40][random.usize(0..5)];
                files.insert(name, (0..count).map(|_| random.u32(1..300)).collect());
            }
            _ => {
                if let Some(windows) = files.get_mut(&name) {
                    let at = random.usize(0..windows.len());
                    windows[at] = random.u32(1..300);
                }
            }
        }
    }
}

#[test]
fn a_mark_is_what_the_plain_walk_finds() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (_directory, _storage, repository) = on_test_packs(derive);
        let servers: [ServerName; 2] = ["main".parse().unwrap(), "other".parse().unwrap()];
        let mut files = [Files::new(), Files::new()];
        let mut backups: Vec<Backup> = Vec::new();
        let mut segments = 0;
        for _ in 0..14 {
            let which = random.usize(0..2);
            match random.u32(0..8) {
                0 if !backups.is_empty() => {
                    let backup = backups.swap_remove(random.usize(0..backups.len()));
                    repository.delete_backup(&backup, true).unwrap();
                }
                1 => {
                    segments += 1;
                    archive(&repository, &servers[which], segments);
                }
                2 => drop(repository.sweep(&SweepOptions::default(), &mut Silent).unwrap()),
                // Both servers have the same for a while.
                3 => files[1] = files[0].clone(),
                _ => {
                    change(&mut random, &mut files[which]);
                    backups.push(back_up(&repository, &servers[which], &files[which]));
                }
            }
            assert_is_plain(&repository, None);
        }
        if let Some(backup) = backups.first() {
            let without = Without {
                server: backup.server.clone(),
                backups: vec![backup.id],
                wal: Vec::new(),
            };
            assert_is_plain(&repository, Some(&without));
        }
    }
}

/// Where the plain walk cannot tell what is in use, the mark cannot either; elsewhere damage changes nothing.
#[test]
fn damage_stops_a_mark_where_it_stops_the_plain_walk() {
    for seed in 0..8 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (_directory, _storage, repository) = on_test_packs(derive);
        let server: ServerName = "main".parse().unwrap();
        let mut files = Files::from([
            ("base/1".to_owned(), (1..60).collect()),
            ("base/2".to_owned(), vec![7]),
        ]);
        for _ in 0..4 {
            change(&mut random, &mut files);
            back_up(&repository, &server, &files);
        }
        let mut packs = repository.pack_ids().unwrap();
        random.shuffle(&mut packs);
        let path = repository.path().join("packs");
        let victim = packs[0].to_string();
        let file = path.join(&victim[..2]).join(&victim);
        let mut bytes = std::fs::read(&file).unwrap();
        for _ in 0..3 {
            // Behind the header; a footer is read by neither.
            let at = random.usize(32..bytes.len());
            bytes[at] ^= 0x40;
        }
        std::fs::write(&file, bytes).unwrap();
        let repository = Repository::open(repository.path()).unwrap();
        let expected = plain(&repository, None);
        let marked = Mark::make(&repository, &mut Silent);
        match (expected, marked) {
            (Ok((met, _)), Ok(mark)) => assert!(met.iter().all(|id| mark.uses(id).unwrap())),
            (Err(_), Err(error)) => assert!(error.to_string().contains("nothing is freed"), "{error}"),
            (expected, marked) => panic!("seed {seed}: {:?} but {marked:?}", expected.err()),
        }
    }
}
