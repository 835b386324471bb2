use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::codec::{decode, encode_delta, encode_whole};
use crate::layout::{
    MAX_RECORD_BYTES, PACK_HEADER_BYTES, PACK_MAX_CHUNKS, PACK_TARGET_BYTES, PACK_TRAILER_BYTES,
};
use crate::pack_header::Header;
use crate::testing::MemoryPacks;

fn record(kind: u8, payload: &[u8]) -> Record {
    Record {
        id: RecordId([kind; 16]),
        kind,
        payload: payload.to_vec(),
    }
}

/// A pack of these chunks, each but the first also as a delta on the one before.
fn write(storage: &MemoryPacks, chunks: &[Vec<u8>], records: &[Record]) -> ClosedPack {
    let mut pack = PackWriter::begin(storage).unwrap();
    let mut base: Option<&[u8]> = None;
    for bytes in chunks {
        let id = ChunkId::of(bytes);
        pack.append(id, bytes.len(), None, &encode_whole(bytes, 1))
            .unwrap();
        if let Some(base) = base.filter(|base| ChunkId::of(base) != id)
            && let Some(delta) = encode_delta(bytes, base, 1)
        {
            pack.append(id, bytes.len(), Some(ChunkId::of(base)), &delta)
                .unwrap();
        }
        base = Some(bytes);
    }
    for record in records {
        pack.record(record.clone()).unwrap();
    }
    pack.close().unwrap()
}

fn chunks() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let chunk = (
        any::<u8>(),
        0..20_000_usize,
        prop::collection::vec(any::<u8>(), 0..300),
    );
    let chunk = chunk.prop_map(|(fill, bytes, tail)| [vec![fill; bytes], tail].concat());
    prop::collection::vec(chunk, 0..8)
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let record = (
        any::<[u8; 16]>(),
        any::<u8>(),
        prop::collection::vec(any::<u8>(), 0..200),
    );
    let record = record.prop_map(|(id, kind, payload)| Record {
        id: RecordId(id),
        kind,
        payload,
    });
    prop::collection::vec(record, 0..5)
}

proptest! {
    #[test]
    fn a_footer_lists_the_content_of_its_pack(chunks in chunks(), records in records()) {
        let storage = MemoryPacks::default();
        let closed = write(&storage, &chunks, &records);
        prop_assert_eq!(&closed.records, &records);
        prop_assert_eq!(&read_footer(&storage, closed.id).unwrap(), &closed);
        let known: HashMap<_, _> = chunks.iter().map(|bytes| (ChunkId::of(bytes), bytes)).collect();
        for chunk in &closed.chunks {
            let frame = read_frame(&storage, &chunk.id, &chunk.location(closed.id)).unwrap();
            let base = chunk.base.map(|base| known[&base].as_slice());
            let bytes = decode(&frame.bytes, frame.encoding, chunk.raw_bytes as usize, base).unwrap();
            prop_assert_eq!(&bytes, known[&chunk.id]);
        }
    }

    #[test]
    fn a_wrong_byte_outside_the_frames_is_found(
        chunks in chunks(), records in records(), at in any::<prop::sample::Index>(), flip in 1..=255_u8,
    ) {
        let storage = MemoryPacks::default();
        let closed = write(&storage, &chunks, &records);
        let frames: usize = closed.chunks.iter().map(|chunk| chunk.stored_bytes as usize).sum();
        let at = at.index(closed.bytes as usize - frames);
        let at = if at < PACK_HEADER_BYTES { at } else { at + frames };
        storage.files.lock().unwrap().get_mut(&closed.id).unwrap()[at] ^= flip;
        let error = read_footer(&storage, closed.id).unwrap_err();
        prop_assert!(error.is_damage(), "byte {}: {}", at, error);
        prop_assert!(error.to_string().contains(&closed.id.to_string()));
    }

    #[test]
    fn a_pack_that_was_cut_or_grew_is_found(
        chunks in chunks(),
        cut in any::<prop::sample::Index>(),
        more in 1..100_usize,
    ) {
        let storage = MemoryPacks::default();
        let closed = write(&storage, &chunks, &[]);
        storage.files.lock().unwrap().get_mut(&closed.id).unwrap().truncate(cut.index(closed.bytes as usize));
        prop_assert!(read_footer(&storage, closed.id).unwrap_err().is_damage());
        let closed = write(&storage, &chunks, &[]);
        storage.files.lock().unwrap().get_mut(&closed.id).unwrap().extend(vec![0; more]);
        prop_assert!(read_footer(&storage, closed.id).unwrap_err().is_damage());
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let storage = MemoryPacks::default();
        let id = PackId([1; 16]);
        storage.files.lock().unwrap().insert(id, bytes);
        prop_assert!(read_footer(&storage, id).unwrap_err().is_damage());
    }

    #[test]
    fn a_false_footer_with_a_valid_checksum_is_refused(
        body in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let storage = MemoryPacks::default();
        let id = PackId([1; 16]);
        let header = Header::Plain { id };
        let mut file = header.encode();
        file.extend_from_slice(&footer::encode_tail(&header, None, &body).unwrap());
        storage.files.lock().unwrap().insert(id, file);
        match read_footer(&storage, id) {
            Ok(pack) => prop_assert!(pack.chunks.iter().all(|chunk| chunk.stored_bytes == 0)),
            Err(error) => prop_assert!(error.is_damage()),
        }
    }
}

#[test]
fn the_bytes_are_those_of_format_md() {
    let storage = MemoryPacks::default();
    let chunk = b"stored as it is".to_vec();
    let closed = write(&storage, std::slice::from_ref(&chunk), &[record(7, b"{}")]);
    let file = storage.files.lock().unwrap()[&closed.id].clone();
    let body = [
        &[1, 0, 0, 0, 1, 0, 0, 0][..],
        ChunkId::of(&chunk).as_bytes(),
        &[0, 15, 0, 0, 0, 15, 0, 0, 0],
        &[7; 16],
        &[7, 2, 0, 0, 0],
        b"{}",
    ]
    .concat();
    let header = [&b"bmfspack\x01\0\0\0\0\0\0\0"[..], closed.id.as_bytes()].concat();
    let stored = encode_whole(&body, 3).bytes;
    let fields = [
        &[1, 0, 0, 0, 0, 0, 0, 0][..],
        &[stored.len() as u8, 0, 0, 0, body.len() as u8, 0, 0, 0],
    ]
    .concat();
    let checksum = blake3::hash(&[&header[..], &stored, &fields].concat());
    let expected = [
        &header[..],
        &chunk,
        &stored,
        &fields,
        checksum.as_bytes(),
        b"bmfs-end",
    ]
    .concat();
    assert_eq!(file, expected);
    assert_eq!(closed.bytes, expected.len() as u64);
}

#[test]
fn a_newer_pack_is_distinguished_from_a_damaged_one() {
    let storage = MemoryPacks::default();
    let id = PackId([9; 16]);
    let mut file = Header::Plain { id }.encode();
    file[8] = 3;
    file.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let checksum = blake3::hash(&file);
    file.extend_from_slice(checksum.as_bytes());
    file.extend_from_slice(b"bmfs-end");
    assert_eq!(file.len(), PACK_HEADER_BYTES + PACK_TRAILER_BYTES);
    storage.files.lock().unwrap().insert(id, file);
    let error = read_footer(&storage, id).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NewerFormat {
                found: 3,
                newest: 2,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_pack_under_another_name_is_refused() {
    let storage = MemoryPacks::default();
    let closed = write(&storage, &[b"x".to_vec()], &[]);
    let other = PackId([3; 16]);
    let file = storage.files.lock().unwrap()[&closed.id].clone();
    storage.files.lock().unwrap().insert(other, file);
    assert!(read_footer(&storage, other).unwrap_err().is_damage());
}

#[test]
fn packs_that_readers_refuse_are_not_written() {
    let storage = MemoryPacks::default();
    let mut pack = PackWriter::begin(&storage).unwrap();
    let id = ChunkId::of(b"x");
    let frame = |encoding, bytes| Frame {
        encoding,
        bytes: vec![0; bytes],
    };
    let too_large = pack.append(id, MAX_CHUNK_BYTES + 1, None, &frame(Encoding::Zstd, 10));
    assert!(matches!(too_large, Err(Error::TooLarge { .. })));
    let too_large = pack.append(id, 10, None, &frame(Encoding::Stored, MAX_CHUNK_BYTES + 1));
    assert!(matches!(too_large, Err(Error::TooLarge { .. })));
    for (encoding, base) in [
        (Encoding::Delta, None),
        (Encoding::Delta, Some(id)),
        (Encoding::Zstd, Some(ChunkId::of(b"y"))),
        (Encoding::Stored, Some(ChunkId::of(b"y"))),
    ] {
        assert!(matches!(
            pack.append(id, 10, base, &frame(encoding, 10)),
            Err(Error::Invalid(_))
        ));
    }
    assert!(matches!(
        pack.record(record(1, &vec![0; MAX_RECORD_BYTES + 1])),
        Err(Error::TooLarge { .. })
    ));
    assert!(pack.is_empty());
    let closed = pack.close().unwrap();
    assert_eq!(read_footer(&storage, closed.id).unwrap().chunks, []);
}

#[test]
fn a_full_pack_reads_back() {
    let storage = MemoryPacks::default();
    let mut by_count = PackWriter::begin(&storage).unwrap();
    let frame = Frame {
        encoding: Encoding::Stored,
        bytes: Vec::new(),
    };
    for _ in 0..PACK_MAX_CHUNKS {
        assert!(!by_count.is_full());
        by_count.append(ChunkId::of(&[]), 0, None, &frame).unwrap();
    }
    assert!(by_count.is_full());
    assert!(by_count.append(ChunkId::of(&[]), 0, None, &frame).is_err());
    // Noise, so that the footer is also large when stored and needs a read of its own.
    let mut payload = vec![0; MAX_RECORD_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut payload);
    by_count.record(record(1, &payload)).unwrap();
    by_count.record(record(2, &[])).unwrap();
    assert!(matches!(
        by_count.record(record(3, &vec![1; MAX_RECORD_BYTES])),
        Err(Error::TooLarge { .. })
    ));
    let closed = by_count.close().unwrap();
    assert_eq!(read_footer(&storage, closed.id).unwrap(), closed);

    let mut by_size = PackWriter::begin(&storage).unwrap();
    let frame = Frame {
        encoding: Encoding::Stored,
        bytes: vec![7; MAX_CHUNK_BYTES],
    };
    while !by_size.is_full() {
        by_size
            .append(ChunkId::of(&frame.bytes), MAX_CHUNK_BYTES, None, &frame)
            .unwrap();
    }
    let closed = by_size.close().unwrap();
    assert!((PACK_TARGET_BYTES..PACK_TARGET_BYTES + 2 * MAX_CHUNK_BYTES as u64).contains(&closed.bytes));
    assert_eq!(read_footer(&storage, closed.id).unwrap(), closed);
}

#[test]
fn a_dropped_pack_is_gone() {
    let storage = MemoryPacks::default();
    let mut pack = PackWriter::begin(&storage).unwrap();
    let id = pack.id();
    pack.append(ChunkId::of(b"x"), 1, None, &encode_whole(b"x", 1))
        .unwrap();
    drop(pack);
    assert!(matches!(read_footer(&storage, id), Err(Error::MissingPack(missing)) if missing == id));
}
