use std::collections::BTreeSet;
use std::sync::Arc;

use barmanfs_store::testing::noise;

use super::*;
use crate::index::runs::filters::Filters;
use crate::index::schema;

fn catalog() -> Connection {
    catalog_with(&Arc::default())
}

fn catalog_with(filters: &Arc<Filters>) -> Connection {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(&[schema::CREATE, schema::CREATE_PLACES].concat())
        .unwrap();
    filters.teach(&db).unwrap();
    db
}

fn enter(db: &Connection, keys: &[Key]) -> i64 {
    db.execute(
        "INSERT INTO packs (id, bytes, chunks, stored_bytes, raw_bytes) VALUES (randomblob(16), 1, ?1, 1, 1)",
        [keys.len()],
    )
    .unwrap();
    let pack = db.last_insert_rowid();
    add(db, pack, keys.iter().copied()).unwrap();
    pack
}

fn leave(db: &Connection, pack: i64) {
    db.execute("DELETE FROM packs WHERE seq = ?1", [pack]).unwrap();
}

/// Keys of which many are equal, or have the same head.
fn keys(seed: u64, count: usize) -> Vec<Key> {
    let bytes = noise(seed, count * 3);
    let key = |of: &[u8]| {
        Key(u64::from_be_bytes([
            of[0],
            of[1] % 8,
            7,
            7,
            7,
            of[2] % 4,
            0,
            of[2] % 2,
        ]))
    };
    bytes.chunks_exact(3).map(key).collect()
}

fn random_keys(seed: u64, count: usize) -> Vec<Key> {
    let bytes = noise(seed, count * 8);
    let key = |of: &[u8]| Key(u64::from_be_bytes(of.try_into().unwrap()));
    bytes.chunks_exact(8).map(key).collect()
}

fn found(db: &Connection, key: Key) -> BTreeSet<Candidate> {
    let mut all = BTreeSet::new();
    candidates(db, key, &mut |candidate| {
        all.insert(candidate);
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    all
}

fn number(db: &Connection, query: &str) -> usize {
    db.query_row(query, [], |row| row.get(0)).unwrap()
}

/// What must hold between all steps.
fn assert_sound(db: &Connection) {
    let mut pages = db
        .prepare("SELECT first, entries FROM run_pages ORDER BY first")
        .unwrap();
    let mut rows = pages.query([]).unwrap();
    let mut before: Option<(i64, Entry)> = None;
    while let Some(row) = rows.next().unwrap() {
        let (first, page): (i64, Vec<u8>) = (row.get(0).unwrap(), row.get(1).unwrap());
        let run = first >> HEAD_BITS;
        let page: Vec<Entry> = entries(&page)
            .unwrap()
            .iter()
            .map(|entry| Entry(*entry))
            .collect();
        assert_eq!(first, page_key(run, page[0].key().head()));
        assert!(page.is_sorted());
        if let Some((last_run, last)) = before {
            assert!(last_run < run || last.key().head() < page[0].key().head());
        }
        before = Some((run, *page.last().unwrap()));
        let known = db
            .prepare_cached("SELECT 1 FROM runs WHERE run = ?1")
            .unwrap()
            .exists([run])
            .unwrap();
        assert!(known, "no run {run}");
    }
}

/// Packs come and go, some in transactions that are rolled back, merges go on in small steps, and filters are made in small steps
/// as well, with room for all of them or for some: each pack that is there has all its entries, and no look-up depends on how far a
/// merge is.
#[test]
fn every_entry_is_found_at_each_step() {
    let filters = Arc::default();
    let db = catalog_with(&filters);
    let mut read = 0;
    let mut packs: Vec<(i64, Vec<Key>)> = Vec::new();
    let choices = noise(1, 4 * 120);
    for (round, choice) in (2_u64..).zip(choices.chunks_exact(4)) {
        db.execute_batch("SAVEPOINT step").unwrap();
        let is_killed = choice[3].is_multiple_of(8);
        let before = packs.clone();
        match choice[0] % 8 {
            0..5 => {
                let keys = keys(round, usize::from(choice[1]) * 4);
                packs.push((enter(&db, &keys), keys));
            }
            5 if !packs.is_empty() => {
                let (pack, _) = packs.swap_remove(usize::from(choice[1]) % packs.len());
                leave(&db, pack);
            }
            6 => merge::begin_all(&db).unwrap(),
            _ => drop(merge::step(&db, 1 + usize::from(choice[1])).unwrap()),
        }
        if is_killed {
            db.execute_batch("ROLLBACK TO step").unwrap();
            packs = before;
        }
        let room = if choice[2].is_multiple_of(16) {
            4000
        } else {
            1 << 20
        };
        read += filters.make(&db, usize::from(choice[2] % 8), room).unwrap();
        db.execute_batch("RELEASE step").unwrap();
        assert_sound(&db);
        for key in keys(round, 20)
            .into_iter()
            .chain(packs.iter().flat_map(|of| of.1.first().copied()))
        {
            let mut expected = BTreeSet::new();
            for (pack, keys) in &packs {
                let numbers = (0_u16..).zip(keys).filter(|(_, of)| **of == key);
                expected.extend(numbers.map(|(number, _)| Candidate { pack: *pack, number }));
            }
            let mut found = found(&db, key);
            found.retain(|candidate| packs.iter().any(|(pack, _)| *pack == candidate.pack));
            assert_eq!(found, expected, "round {round}");
        }
    }
    assert!(packs.len() > 20 && read > 100, "{}, {read}", packs.len());
    while merge::step(&db, 1000).unwrap().is_some() {}
    assert_sound(&db);
    assert!(
        number(
            &db,
            "SELECT count(*) FROM runs WHERE into_run IS NOT NULL OR reached IS NOT NULL"
        ) == 0
    );
    merge::begin_all(&db).unwrap();
    while merge::step(&db, 1000).unwrap().is_some() {}
    assert_sound(&db);
    let alive: usize = packs.iter().map(|(_, keys)| keys.len()).sum();
    assert_eq!(
        number(&db, "SELECT sum(length(entries)) FROM run_pages"),
        alive * ENTRY_BYTES
    );
    assert_eq!(number(&db, "SELECT sum(entries) FROM runs"), alive);
    assert_eq!(number(&db, "SELECT count(*) FROM runs"), 1);
}

#[test]
fn runs_stay_few_and_numbers_small() {
    let db = catalog();
    for pack in 0..600 {
        enter(&db, &random_keys(pack, 256));
        let runs = number(&db, "SELECT count(*) FROM runs");
        // Up to seven on each of three levels, and a merge on each.
        assert!(
            runs <= 3 * (FAN - 1) + 3 * (FAN + 1),
            "{runs} runs after {pack} packs"
        );
    }
    assert!(number(&db, "SELECT max(run) FROM runs") < 100);
    let pages = number(&db, "SELECT count(*) FROM run_pages");
    let full = 600 * 256 / PAGE_ENTRIES;
    assert!(pages < full + full / 10 + 100, "{pages} pages instead of {full}");
}

#[test]
fn small_packs_are_merged_as_well() {
    let db = catalog();
    for pack in 0..1000 {
        enter(&db, &random_keys(pack, 3));
    }
    let runs = number(&db, "SELECT count(*) FROM runs");
    assert!(runs < 100, "{runs}");
}

#[test]
fn nothing_is_left_of_packs_that_are_gone() {
    let db = catalog();
    let packs: Vec<i64> = (0..40).map(|pack| enter(&db, &random_keys(pack, 300))).collect();
    packs.iter().for_each(|pack| leave(&db, *pack));
    merge::begin_all(&db).unwrap();
    while merge::step(&db, 500).unwrap().is_some() {}
    // A merge that had begun may have kept some.
    merge::begin_all(&db).unwrap();
    while merge::step(&db, 500).unwrap().is_some() {}
    assert_eq!(number(&db, "SELECT count(*) FROM run_pages"), 0);
    assert_eq!(number(&db, "SELECT count(*) FROM runs"), 0);
}

#[test]
fn a_page_of_a_wrong_size_is_damage() {
    let db = catalog();
    let keys = random_keys(1, 10);
    enter(&db, &keys);
    db.execute("UPDATE run_pages SET entries = x'010203'", [])
        .unwrap();
    let looked = candidates(&db, keys[0], &mut |_| Ok(ControlFlow::Continue(())));
    assert!(matches!(looked, Err(Error::CatalogDamaged { .. })), "{looked:?}");
}

#[test]
fn what_is_entered_at_once_is_found_like_the_rest() {
    for count in [0, 1, PAGE_ENTRIES, PAGE_ENTRIES + 1, 20_000] {
        let (db, bulk) = (catalog(), Bulk::new());
        let pack = |number: i64| match number % 2 {
            0 => keys(number.cast_unsigned(), count),
            _ => random_keys(number.cast_unsigned(), count),
        };
        for number in 1..=4 {
            db.execute(
                "INSERT INTO packs (id, bytes, chunks, stored_bytes, raw_bytes) VALUES (randomblob(16), 1, ?1, 1, 1)",
                [count],
            )
            .unwrap();
            bulk.add(number, pack(number).into_iter()).unwrap();
        }
        bulk.write(&db).unwrap();
        assert_sound(&db);
        assert_eq!(
            number(&db, "SELECT coalesce(sum(entries), 0) FROM runs"),
            4 * count
        );
        let later = random_keys(9, 300);
        let last = enter(&db, &later);
        for step in 0..3 {
            for (of, keys) in (1..=4).map(|of| (of, pack(of))).chain([(last, later.clone())]) {
                for (at, key) in (0_u16..).zip(&keys).step_by(keys.len() / 50 + 1) {
                    let entry = Candidate { pack: of, number: at };
                    assert!(found(&db, *key).contains(&entry), "{count}, step {step}");
                }
            }
            merge::begin_all(&db).unwrap();
            merge::step(&db, 10_000).unwrap();
            assert_sound(&db);
        }
    }
}

/// A catalog in a file, and a second connection to it.
fn shared(filters: &Arc<Filters>) -> (tempfile::TempDir, [Connection; 2]) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("catalog");
    let connect = || {
        let db = Connection::open(&file).unwrap();
        filters.teach(&db).unwrap();
        db
    };
    let first = connect();
    first.pragma_update(None, "journal_mode", "WAL").unwrap();
    first
        .execute_batch(&[schema::CREATE, schema::CREATE_PLACES].concat())
        .unwrap();
    (directory, [first, connect()])
}

/// One connection stays at an earlier state while the other one merges, and each makes filters that both use.
#[test]
fn filters_are_right_in_earlier_states_of_the_catalog() {
    for seed in 0..20 {
        let filters = Arc::default();
        let (_directory, [writes, reads]) = shared(&filters);
        let packs: Vec<(i64, Vec<Key>)> = (0..4)
            .map(|pack| match pack % 2 {
                0 => random_keys(seed * 10 + pack, 900),
                _ => keys(seed * 10 + pack, 900),
            })
            .map(|keys| (enter(&writes, &keys), keys))
            .collect();
        let mut random = fastrand::Rng::with_seed(seed);
        merge::begin_all(&writes).unwrap();
        let mut view = reads.unchecked_transaction().unwrap();
        for _ in 0..40 {
            match random.u32(0..4) {
                0 => drop(merge::step(&writes, random.usize(1..400)).unwrap()),
                1 => drop(filters.make(&writes, random.usize(0..4), 1 << 20).unwrap()),
                2 => drop(filters.make(&view, random.usize(0..4), 1 << 20).unwrap()),
                _ if random.bool() => {
                    drop(view);
                    view = reads.unchecked_transaction().unwrap();
                }
                _ => merge::begin_all(&writes).unwrap(),
            }
            for (of, keys) in &packs {
                let number = random.u16(0..900);
                let entry = Candidate { pack: *of, number };
                let key = keys[usize::from(number)];
                assert!(
                    found(&view, key).contains(&entry),
                    "seed {seed}, an earlier state"
                );
                assert!(found(&writes, key).contains(&entry), "seed {seed}");
            }
        }
    }
}

/// How many pages a look-up reads.
fn pages_read(db: &Connection, filters: &Filters, key: Key) -> usize {
    let before = filters.passed();
    found(db, key);
    filters.passed() - before
}

#[test]
fn look_ups_read_few_pages_where_there_are_filters() {
    let filters = Arc::<Filters>::default();
    let db = catalog_with(&filters);
    let known: Vec<Vec<Key>> = (0..15).map(|pack| random_keys(pack, 2000)).collect();
    for keys in &known {
        enter(&db, keys);
    }
    let runs = number(&db, "SELECT count(*) FROM runs WHERE reached IS NULL");
    assert!(runs > 5, "{runs}");
    let unknown = random_keys(77, 1000);
    let read = |keys: &[Key]| -> usize { keys.iter().map(|key| pages_read(&db, &filters, *key)).sum() };
    assert!(read(&unknown) >= unknown.len() * runs / 2);
    while filters.make(&db, 7, 1 << 20).unwrap() > 0 {}
    // A merge that goes on has a run without a filter.
    let merging = number(&db, "SELECT count(*) FROM runs WHERE reached IS NOT NULL");
    let of_unknown = read(&unknown);
    assert!(
        of_unknown <= unknown.len() * (merging * 10 + runs) / 10,
        "{of_unknown}"
    );
    let of_known = read(&known[3][..1000]);
    assert!(
        (1000..=1000 * (20 + merging * 10 + runs) / 10).contains(&of_known),
        "{of_known}"
    );
    // Without room there are none.
    filters.make(&db, 7, 0).unwrap();
    assert!(read(&unknown) >= unknown.len() * runs / 2);
}
