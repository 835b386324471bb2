use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::*;
use crate::codec::{Encoding, decode, encode_delta, encode_whole};
use crate::layout::{PACK_TRAILER_BYTES, SEALED_HEADER_BYTES};
use crate::testing::MemoryPacks;
use crate::{
    ChunkId, ClosedPack, Error, PackId, PackStorage, PackWriter, Record, RecordId, SealedPacks, key_of_pack,
    read_footer, read_frame,
};

/// Packs in memory, sealed by keys.
struct Site {
    packs: Arc<MemoryPacks>,
    storage: SealedPacks,
}

fn site(keys: &[SealedKey], plain: PlainPacks) -> Site {
    let packs = Arc::new(MemoryPacks::default());
    on(&packs, keys, plain)
}

fn on(packs: &Arc<MemoryPacks>, keys: &[SealedKey], plain: PlainPacks) -> Site {
    Site {
        packs: Arc::clone(packs),
        storage: SealedPacks::new(packs.clone(), Arc::new(Keys::of(keys, plain).unwrap())),
    }
}

fn key() -> SealedKey {
    SealedKey::first(IdHash::Blake3Keyed).unwrap()
}

fn windows() -> [Vec<u8>; 3] {
    let noise = crate::testing::noise(7, 50_000);
    let mut next = noise.clone();
    next[9000] ^= 1;
    [b"name_of_a_table".repeat(500), noise, next]
}

/// A whole chunk, a stored one and a delta, and a record.
fn write(storage: &dyn PackStorage) -> ClosedPack {
    let mut pack = PackWriter::begin(storage).unwrap();
    let keys = storage.keys();
    let [text, noise, next] = windows();
    for bytes in [&text, &noise] {
        pack.append(keys.id_of(bytes), bytes.len(), None, &encode_whole(bytes, 1))
            .unwrap();
    }
    let delta = encode_delta(&next, &noise, 1).unwrap();
    pack.append(keys.id_of(&next), next.len(), Some(keys.id_of(&noise)), &delta)
        .unwrap();
    let record = Record {
        id: RecordId([5; 16]),
        kind: 1,
        payload: b"name_of_a_server".to_vec(),
    };
    pack.record(record).unwrap();
    pack.close().unwrap()
}

fn change(site: &Site, pack: PackId, at: usize, flip: u8) {
    site.packs.files.lock().unwrap().get_mut(&pack).unwrap()[at] ^= flip;
}

fn read_all(storage: &dyn PackStorage, pack: PackId) -> crate::Result<Vec<Vec<u8>>> {
    let mut read: Vec<Vec<u8>> = Vec::new();
    for chunk in read_footer(storage, pack)?.chunks {
        let frame = read_frame(storage, &chunk.id, &chunk.location(pack))?;
        let base = chunk
            .base
            .and_then(|base| read.iter().find(|bytes| storage.keys().id_of(bytes) == base));
        let bytes = decode(
            &frame.bytes,
            frame.encoding,
            chunk.raw_bytes as usize,
            base.map(Vec::as_slice),
        );
        read.push(bytes.map_err(|error| Error::damaged("A chunk", error.to_string()))?);
    }
    Ok(read)
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Key, nonce, associated data, plain text, cipher text and tag of the examples for keys of 256 bits (13 to 16) in the
/// specification of GCM that was submitted to NIST.
const GCM: [[&str; 5]; 4] = [
    [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "000000000000000000000000",
        "",
        "",
        "530f8afbc74536b9a963b4f1c4cb738b",
    ],
    [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "000000000000000000000000",
        "",
        "00000000000000000000000000000000",
        "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
    ],
    [
        "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        "cafebabefacedbaddecaf888",
        "",
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525\
         b16aedf5aa0de657ba637b391aafd255",
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838\
         c5f61e6393ba7a0abcc9f662898015adb094dac5d93471bdec1a502270e3cc6c",
    ],
    [
        "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        "cafebabefacedbaddecaf888",
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525\
         b16aedf5aa0de657ba637b39",
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838\
         c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
    ],
];

#[test]
fn the_cipher_is_aes_256_gcm() {
    for [key, nonce, associated, plain, sealed] in GCM {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &hex(key)).unwrap());
        let nonce = || Nonce::try_assume_unique_for_key(&hex(nonce)).unwrap();
        let mut bytes = hex(plain);
        key.seal_in_place_append_tag(nonce(), Aad::from(hex(associated)), &mut bytes)
            .unwrap();
        assert_eq!(bytes, hex(sealed));
        assert_eq!(
            key.open_in_place(nonce(), Aad::from(hex(associated)), &mut bytes)
                .unwrap(),
            hex(plain)
        );
    }
}

#[test]
fn a_sealed_pack_reads_back_and_shows_nothing_without_its_key() {
    let site = site(&[key()], PlainPacks::Refused);
    let closed = write(&site.storage);
    assert_eq!(read_footer(&site.storage, closed.id).unwrap(), closed);
    assert_eq!(read_all(&site.storage, closed.id).unwrap(), windows());
    let file = site.packs.files.lock().unwrap()[&closed.id].clone();
    assert_eq!(closed.bytes, file.len() as u64);
    let [_, noise, next] = windows();
    let ids = [ChunkId::of(&noise), site.storage.keys().id_of(&noise)];
    let secret: [&[u8]; 6] = [
        b"name_of",
        &noise[100..130],
        ids[0].as_bytes(),
        ids[1].as_bytes(),
        &next[8990..9010],
        &[5; 16],
    ];
    for bytes in &secret {
        assert!(
            !file.windows(bytes.len()).any(|window| window == *bytes),
            "{bytes:?}"
        );
    }
}

#[test]
fn any_wrong_byte_of_a_sealed_pack_is_found() {
    let site = site(&[key()], PlainPacks::Refused);
    let closed = write(&site.storage);
    let bytes = closed.bytes as usize;
    let ends = (0..SEALED_HEADER_BYTES).chain(bytes - PACK_TRAILER_BYTES - 200..bytes);
    for at in ends.chain((SEALED_HEADER_BYTES..bytes).step_by(997)) {
        for flip in [1, 0x80] {
            // The four bytes that a reader ignores are covered by the checksum.
            let damaged = Site {
                storage: SealedPacks::new(
                    site.packs.clone(),
                    Arc::new(site.storage.keys().joined(site.storage.keys())),
                ),
                packs: Arc::clone(&site.packs),
            };
            change(&damaged, closed.id, at, flip);
            let error = read_all(&damaged.storage, closed.id).unwrap_err();
            assert!(error.is_damage(), "byte {at}: {error}");
            change(&damaged, closed.id, at, flip);
        }
    }
    assert_eq!(read_all(&site.storage, closed.id).unwrap(), windows());
}

#[test]
fn frames_and_packs_cannot_take_each_others_places() {
    let site = site(&[key()], PlainPacks::Refused);
    let keys = site.storage.keys();
    let mut pack = PackWriter::begin(&site.storage).unwrap();
    let windows = [vec![1; 9000], vec![2; 9000]];
    for bytes in &windows {
        pack.append(keys.id_of(bytes), bytes.len(), None, &encode_whole(bytes, 1))
            .unwrap();
    }
    let closed = pack.close().unwrap();
    let [first, second] = [closed.chunks[0], closed.chunks[1]];
    assert_eq!(first.stored_bytes, second.stored_bytes);
    let swap = || {
        let mut files = site.packs.files.lock().unwrap();
        let file = files.get_mut(&closed.id).unwrap();
        let (left, right) = file.split_at_mut(second.offset as usize);
        let bytes = first.stored_bytes as usize;
        left[first.offset as usize..][..bytes].swap_with_slice(&mut right[..bytes]);
    };
    swap();
    for chunk in [first, second] {
        let error = read_frame(&site.storage, &chunk.id, &chunk.location(closed.id)).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("It is not what was sealed for this place"),
            "{error}"
        );
        assert!(error.is_damage());
    }
    swap();
    // An index that is wrong about a chunk gets no bytes either.
    let mut location = first.location(closed.id);
    for wrong in 0..3 {
        let (id, before) = (if wrong == 0 { second.id } else { first.id }, location);
        match wrong {
            1 => location.encoding = Encoding::Stored,
            2 => location.raw_bytes += 1,
            _ => {}
        }
        assert!(
            read_frame(&site.storage, &id, &location).unwrap_err().is_damage(),
            "{wrong}"
        );
        location = before;
    }
    let other = write(&site.storage);
    let bytes = site.packs.files.lock().unwrap()[&other.id].clone();
    site.packs.files.lock().unwrap().insert(closed.id, bytes);
    let error = read_footer(&site.storage, closed.id).unwrap_err();
    assert!(
        error.is_damage() && error.to_string().contains("header does not go with its name"),
        "{error}"
    );
}

#[test]
fn a_key_that_is_not_held_is_not_damage() {
    let (mine, other) = (key(), key());
    let site = site(std::slice::from_ref(&other), PlainPacks::Accepted);
    let closed = write(&site.storage);
    let chunk = closed.chunks[0];
    let stranger = on(&site.packs, &[mine], PlainPacks::Accepted);
    let without: Arc<MemoryPacks> = Arc::clone(&site.packs);
    let readers: [&dyn PackStorage; 2] = [&stranger.storage, without.as_ref()];
    for storage in readers {
        let error = read_footer(storage, closed.id).unwrap_err();
        assert!(
            matches!(error, Error::NoKey { key, .. } if key == other.id()),
            "{error}"
        );
        assert!(!error.is_damage());
        assert!(
            error.to_string().contains(&other.id().to_string()) && error.to_string().contains("key_file")
        );
    }
    let frame = read_frame(&stranger.storage, &chunk.id, &chunk.location(closed.id));
    assert!(matches!(frame, Err(Error::NoKey { .. })), "{frame:?}");
    // Who held no key when the repository was opened reads bytes that mean nothing, and looks why.
    let damage = Error::damaged("A chunk", "It decodes to something else");
    let explained = crate::pack::explain(without.as_ref(), closed.id, damage);
    assert!(matches!(explained, Error::NoKey { .. }), "{explained}");
}

#[test]
fn a_plain_pack_among_sealed_ones_is_accepted_only_while_all_are_being_sealed() {
    let plain = Arc::new(MemoryPacks::default());
    let closed = write(plain.as_ref());
    let sealing = on(
        &plain,
        &[SealedKey::first(IdHash::Blake3).unwrap()],
        PlainPacks::Accepted,
    );
    assert_eq!(read_all(&sealing.storage, closed.id).unwrap(), windows());
    assert_eq!(key_of_pack(&sealing.storage, closed.id).unwrap(), None);
    let sealed = on(&plain, &[key()], PlainPacks::Refused);
    let frame = read_frame(
        &sealed.storage,
        &closed.chunks[0].id,
        &closed.chunks[0].location(closed.id),
    );
    for error in [
        read_footer(&sealed.storage, closed.id).unwrap_err(),
        frame.unwrap_err(),
    ] {
        assert!(
            error.is_damage() && error.to_string().contains("It is not sealed"),
            "{error}"
        );
    }
}

#[test]
fn an_older_key_still_reads_and_chunks_keep_their_names() {
    let first = key();
    let second = first.next().unwrap();
    let old = site(std::slice::from_ref(&first), PlainPacks::Refused);
    let closed = write(&old.storage);
    let both = on(&old.packs, &[second.clone(), first.clone()], PlainPacks::Refused);
    assert_eq!(read_all(&both.storage, closed.id).unwrap(), windows());
    let newer = write(&both.storage);
    assert_eq!(key_of_pack(&both.storage, newer.id).unwrap(), Some(second.id()));
    assert_eq!(newer.chunks[0].id, closed.chunks[0].id);
    assert!(
        Keys::of(&[first, key()], PlainPacks::Refused).is_err(),
        "they are of two repositories"
    );
}

#[test]
fn a_key_is_its_text_and_never_shown() {
    for hash in [IdHash::Blake3, IdHash::Blake3Keyed] {
        let key = SealedKey::first(hash).unwrap().next().unwrap();
        let text = key.to_text();
        let again = SealedKey::parse(&text).unwrap();
        assert_eq!(
            (again.id(), again.generation(), again.id_hash()),
            (key.id(), 2, hash)
        );
        assert_eq!(*again.to_text(), *text);
        let shown = format!("{key:?} {:?}", Keys::of(&[again], PlainPacks::Refused).unwrap());
        for line in text.lines().filter(|line| line.len() > 60) {
            let (_, secret) = line.split_once(": ").unwrap();
            assert!(!shown.contains(secret));
        }
        for cut in 0..text.len() - 1 {
            let parsed = SealedKey::parse(&text[..cut]);
            assert!(parsed.is_err() || parsed.unwrap().id() == key.id());
        }
    }
}
