//! What every storage of packs must do, as one test that each of them runs.

#![allow(
    clippy::unwrap_used,
    reason = "it is a test, in a file that test programs of other crates share"
)]

use std::collections::BTreeSet;
use std::thread;

use crate::{Error, Listed, PackId, PackStorage, PackWriter, Part, Record, RecordId, read_footer};

/// Writers of one pack at the same moment.
const RACERS: u8 = 8;

/// Panics where `packs`, which is empty, does not do what [`PackStorage`] says.
pub fn conforms(packs: &dyn PackStorage) {
    appears_when_finished(packs);
    ends_and_absences_are_told_apart(packs);
    is_listed_once_and_in_its_part(packs);
    is_removed(packs);
    is_copied_under_its_id(packs);
    has_one_content_after_a_race(packs);
    gives_back_real_packs(packs);
}

fn put(packs: &dyn PackStorage, bytes: &[u8]) -> PackId {
    let mut upload = packs.begin().unwrap();
    let id = upload.id();
    upload.write(bytes).unwrap();
    upload.finish().unwrap();
    id
}

fn copy(packs: &dyn PackStorage, id: PackId, bytes: &[u8]) -> crate::Result<()> {
    let mut upload = packs.begin_copy(id)?;
    assert_eq!(upload.id(), id);
    upload.write(bytes)?;
    upload.finish()
}

fn content(packs: &dyn PackStorage, id: PackId) -> Vec<u8> {
    let mut bytes = vec![0; packs.bytes(id).unwrap() as usize];
    packs.read_at(id, 0, &mut bytes).unwrap();
    bytes
}

fn listed(packs: &dyn PackStorage) -> BTreeSet<PackId> {
    let mut ids = BTreeSet::new();
    let mut add = |id| {
        assert!(ids.insert(id), "{id} is listed twice");
        Ok(())
    };
    packs.list(&mut add).unwrap();
    ids
}

fn is_missing<T>(read: &crate::Result<T>) -> bool {
    matches!(read, Err(Error::MissingPack(_)))
}

fn appears_when_finished(packs: &dyn PackStorage) {
    let before = listed(packs);
    let mut upload = packs.begin().unwrap();
    let id = upload.id();
    upload.write(b"01234").unwrap();
    upload.write(b"56789").unwrap();
    assert_eq!(listed(packs), before, "it is seen before it is finished");
    assert!(is_missing(&packs.bytes(id)));
    upload.finish().unwrap();
    assert!(listed(packs).contains(&id));
    assert_eq!(content(packs, id), b"0123456789");
    let mut middle = [0; 4];
    packs.read_at(id, 3, &mut middle).unwrap();
    assert_eq!(&middle, b"3456");

    let mut dropped = packs.begin().unwrap();
    let id = dropped.id();
    dropped.write(&[1; 3 << 20]).unwrap();
    drop(dropped);
    assert!(is_missing(&packs.bytes(id)) && !listed(packs).contains(&id));
}

/// Nothing but a proven absence may look like one, and nothing but lost bytes like damage.
fn ends_and_absences_are_told_apart(packs: &dyn PackStorage) {
    let never = PackId::random().unwrap();
    assert!(is_missing(&packs.bytes(never)));
    assert!(is_missing(&packs.read_at(never, 0, &mut [0; 4])));
    packs.will_read(never, 0, 10);
    let large: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    for bytes in [&b"0123456789"[..], &large] {
        let id = put(packs, bytes);
        let size = bytes.len() as u64;
        for (offset, wanted) in [(size - 2, 4), (size, 1), (size + 100, 8), (0, bytes.len() + 1)] {
            // Once before anything else was read of the pack, and once after.
            for _ in 0..2 {
                let error = packs.read_at(id, offset, &mut vec![0; wanted]).unwrap_err();
                assert!(
                    error.is_damage() && !matches!(error, Error::MissingPack(_)),
                    "{error}"
                );
                assert_eq!(packs.bytes(id).unwrap(), size);
            }
        }
        assert_eq!(content(packs, id), bytes);
    }
}

fn is_listed_once_and_in_its_part(packs: &dyn PackStorage) {
    let ids: BTreeSet<PackId> = (0..5_u8).map(|n| put(packs, &[n])).collect();
    assert!(ids.is_subset(&listed(packs)));
    for id in &ids {
        let mut of_part = Vec::new();
        let part = Part::First(id.as_bytes()[0]);
        packs
            .list_part(part, &mut |found| {
                of_part.push(found);
                Ok(())
            })
            .unwrap();
        let of_other =
            |found: &Listed| matches!(found, Listed::Pack(pack) if pack.as_bytes()[0] != id.as_bytes()[0]);
        assert!(of_part.contains(&Listed::Pack(*id)) && !of_part.iter().any(of_other));
        packs.part_mark(part).unwrap();
    }
    let error = packs.list(&mut |_| Err(Error::Invalid("enough".to_owned())));
    assert!(
        matches!(error, Err(Error::Invalid(_))),
        "an error of the caller is lost"
    );
    packs.settle(&ids.into_iter().collect::<Vec<_>>()).unwrap();
}

fn is_removed(packs: &dyn PackStorage) {
    let (kept, gone) = (put(packs, b"kept"), put(packs, b"gone"));
    assert_eq!(content(packs, gone), b"gone");
    packs.remove(gone).unwrap();
    packs.remove(gone).unwrap();
    assert!(is_missing(&packs.bytes(gone)) && is_missing(&packs.read_at(gone, 0, &mut [0])));
    let all = listed(packs);
    assert!(all.contains(&kept) && !all.contains(&gone));
    packs.remove_abandoned(std::time::Duration::ZERO).unwrap();
    assert_eq!(listed(packs), all);
}

fn is_copied_under_its_id(packs: &dyn PackStorage) {
    let id = PackId::random().unwrap();
    copy(packs, id, b"a copy").unwrap();
    copy(packs, id, b"a copy").unwrap();
    for other in [&b"another copy"[..], b"A copy", b""] {
        let refused = copy(packs, id, other);
        assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
        assert_eq!(content(packs, id), b"a copy");
    }
    let own = put(packs, b"its own");
    copy(packs, own, b"its own").unwrap();
    assert!(copy(packs, own, b"not its own").is_err());
    assert_eq!(content(packs, own), b"its own");
}

/// Who is told that it is done finds its bytes; who is told that it is not finds others.
#[allow(clippy::disallowed_methods)]
fn has_one_content_after_a_race(packs: &dyn PackStorage) {
    for size in [10, 100_000] {
        let id = PackId::random().unwrap();
        let bytes = |racer: u8| vec![racer % 2; size];
        let ended: Vec<(u8, crate::Result<()>)> = thread::scope(|scope| {
            let begin = |racer| {
                (
                    racer,
                    scope.spawn(move || copy(packs, id, &vec![racer % 2; size])),
                )
            };
            let racing: Vec<_> = (0..RACERS).map(begin).collect();
            let join =
                |(racer, thread): (u8, thread::ScopedJoinHandle<'_, _>)| (racer, thread.join().unwrap());
            racing.into_iter().map(join).collect()
        });
        let won = content(packs, id);
        for (racer, result) in ended {
            assert_eq!(result.is_ok(), won == bytes(racer), "racer {racer}: {result:?}");
        }
    }
}

fn gives_back_real_packs(packs: &dyn PackStorage) {
    let mut writer = PackWriter::begin(packs).unwrap();
    let record = Record {
        id: RecordId::random().unwrap(),
        kind: 1,
        payload: vec![7; 200_000],
    };
    writer.record(record).unwrap();
    let written = writer.close().unwrap();
    let read = read_footer(packs, written.id).unwrap();
    assert_eq!(read.records, written.records);
}
