use proptest::prelude::*;

use super::*;
use crate::testing::noise;

/// A window like PostgreSQL's: compressible, no block like another.
fn page_like(bytes: usize, seed: u8) -> Vec<u8> {
    let row = |at: usize| format!("{seed:03}-{:08}|", at / 13 * 7);
    (0..bytes)
        .step_by(13)
        .flat_map(|at| row(at).into_bytes())
        .take(bytes)
        .collect()
}

fn round_trip(bytes: &[u8], base: &[u8], level: i32) -> Option<Frame> {
    let whole = encode_whole(bytes, level);
    assert!(
        whole.bytes.len() <= bytes.len(),
        "a whole frame is never larger than its chunk"
    );
    assert_eq!(
        decode(&whole.bytes, whole.encoding, bytes.len(), None).unwrap(),
        bytes
    );
    let delta = encode_delta(bytes, base, level);
    if let Some(delta) = &delta {
        assert_eq!(delta.encoding, Encoding::Delta);
        assert!(delta.bytes.len() < bytes.len());
        assert_eq!(
            decode(&delta.bytes, Encoding::Delta, bytes.len(), Some(base)).unwrap(),
            bytes
        );
    }
    delta
}

#[test]
fn numbers_in_footers_never_change() {
    for (number, encoding) in [(0, Encoding::Stored), (1, Encoding::Zstd), (2, Encoding::Delta)] {
        assert_eq!(Encoding::from_u8(number), Some(encoding));
        assert_eq!(encoding as u8, number);
    }
    assert_eq!(Encoding::from_u8(3), None);
}

#[test]
fn noise_is_stored_as_it_is() {
    let bytes = noise(1, 20_000);
    assert_eq!(
        encode_whole(&bytes, 3),
        Frame {
            encoding: Encoding::Stored,
            bytes
        }
    );
}

#[test]
fn an_unchanged_window_is_little_more_than_a_bitmap() {
    let base = page_like(128 * 1024, 1);
    let delta = round_trip(&base, &base, 3).unwrap();
    assert!(delta.bytes.len() <= 2 + 16, "{} bytes", delta.bytes.len());
    assert_eq!(&delta.bytes[..2], [0, 0]);
}

#[test]
fn one_changed_row_costs_bytes_not_a_block() {
    let base = noise(2, 128 * 1024);
    let mut bytes = base.clone();
    bytes[9 * BLOCK_BYTES + 100..][..8].copy_from_slice(b"new row!");
    let delta = round_trip(&bytes, &base, 3).unwrap();
    assert!(delta.bytes.len() < 100, "{} bytes", delta.bytes.len());
    assert_eq!(
        &delta.bytes[..2],
        [0, 2],
        "bit 9 counted from the lowest of the first byte"
    );
}

#[test]
fn bases_of_other_lengths() {
    let bytes = page_like(10 * BLOCK_BYTES + 77, 3);
    for base_bytes in [
        0,
        1,
        77,
        BLOCK_BYTES,
        5 * BLOCK_BYTES + 1,
        10 * BLOCK_BYTES + 76,
        20 * BLOCK_BYTES,
    ] {
        let mut base = page_like(base_bytes, 3);
        if let Some(byte) = base.get_mut(base_bytes / 2) {
            *byte ^= 1;
        }
        assert!(
            round_trip(&bytes, &base, 1).is_some(),
            "base of {base_bytes} bytes"
        );
    }
}

#[test]
fn an_empty_chunk() {
    assert!(encode_whole(&[], 1).bytes.is_empty());
    assert!(decode(&[], Encoding::Stored, 0, None).unwrap().is_empty());
    assert_eq!(encode_delta(&[], b"base", 1), None);
}

#[test]
fn a_base_that_looks_like_a_trained_dictionary_is_not_used() {
    let mut base = page_like(BLOCK_BYTES, 4);
    base[..4].copy_from_slice(&ZSTD_DICTIONARY_MAGIC);
    let mut bytes = base.clone();
    bytes[5000] ^= 1;
    assert_eq!(encode_delta(&bytes, &base, 3), None);
    // In an unchanged block those bytes do no harm.
    let base = [base, page_like(BLOCK_BYTES, 5)].concat();
    let mut bytes = base.clone();
    bytes[BLOCK_BYTES + 5] ^= 1;
    assert!(round_trip(&bytes, &base, 3).is_some());
}

#[test]
fn mismatched_frames_are_refused() {
    let bytes = page_like(3 * BLOCK_BYTES, 6);
    let base = page_like(3 * BLOCK_BYTES, 7);
    let whole = encode_whole(&bytes, 1).bytes;
    let delta = encode_delta(&bytes, &base, 1).unwrap().bytes;
    let fails = |frame: &[u8], encoding, size, base| decode(frame, encoding, size, base).unwrap_err();
    assert_eq!(
        fails(&whole, Encoding::Zstd, bytes.len(), Some(&base)),
        FrameError::BaseMismatch
    );
    assert_eq!(
        fails(&delta, Encoding::Delta, bytes.len(), None),
        FrameError::BaseMismatch
    );
    assert!(matches!(
        fails(&whole, Encoding::Zstd, bytes.len() - 1, None),
        FrameError::Zstd(_)
    ));
    let expected = bytes.len() + 1;
    assert_eq!(
        fails(&whole, Encoding::Zstd, expected, None),
        FrameError::WrongSize {
            found: bytes.len(),
            expected
        }
    );
    assert_eq!(
        fails(&bytes, Encoding::Stored, 5, None),
        FrameError::WrongSize {
            found: bytes.len(),
            expected: 5
        }
    );
    assert_eq!(
        fails(&whole, Encoding::Zstd, MAX_CHUNK_BYTES + 1, None),
        FrameError::TooLarge(MAX_CHUNK_BYTES + 1)
    );
    assert_eq!(
        fails(&[], Encoding::Delta, bytes.len(), Some(&base)),
        FrameError::Truncated(0)
    );
    let stray = [&[0b1000_u8], &delta[1..]].concat();
    assert_eq!(
        fails(&stray, Encoding::Delta, bytes.len(), Some(&base)),
        FrameError::StrayBits
    );
    let from_base = [&[0b011_u8], &delta[1..]].concat();
    assert_eq!(
        fails(&from_base, Encoding::Delta, bytes.len(), Some(&base[..100])),
        FrameError::BaseTooShort(2)
    );
}

/// Windows and bases of all lengths, alike in some blocks.
fn window_and_base() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20);
    (
        0..5 * BLOCK_BYTES,
        0..5 * BLOCK_BYTES,
        any::<u8>(),
        any::<bool>(),
        edits,
    )
        .prop_map(|(bytes, base, seed, noisy, edits)| {
            let make = |bytes| {
                if noisy {
                    noise(seed.into(), bytes)
                } else {
                    page_like(bytes, seed)
                }
            };
            let (mut bytes, base) = (make(bytes), make(base));
            for (at, value) in edits {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = value;
                }
            }
            (bytes, base)
        })
}

proptest! {
    #[test]
    fn every_window_comes_back((bytes, base) in window_and_base(), level in 1..4) {
        round_trip(&bytes, &base, level);
    }

    #[test]
    fn a_delta_without_its_frame_is_an_error(bytes in prop::collection::vec(any::<u8>(), 1..20_000)) {
        let bitmap = vec![0; bitmap_bytes(bytes.len())];
        prop_assert!(decode(&bitmap, Encoding::Delta, bytes.len(), Some(&bytes)).is_err());
    }

    #[test]
    fn a_truncated_frame_is_an_error(
        (bytes, base) in window_and_base(),
        cut in any::<prop::sample::Index>(),
    ) {
        let whole = encode_whole(&bytes, 1);
        if !whole.bytes.is_empty() {
            let short = &whole.bytes[..cut.index(whole.bytes.len())];
            prop_assert!(decode(short, whole.encoding, bytes.len(), None).is_err());
        }
        if let Some(delta) = encode_delta(&bytes, &base, 1) {
            let short = &delta.bytes[..cut.index(delta.bytes.len())];
            prop_assert!(decode(short, delta.encoding, bytes.len(), Some(&base)).is_err());
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(
        frame in prop::collection::vec(any::<u8>(), 0..300),
        base in prop::collection::vec(any::<u8>(), 0..20_000),
        size in 0..40_000_usize,
    ) {
        for encoding in [Encoding::Stored, Encoding::Zstd, Encoding::Delta] {
            let base = (encoding == Encoding::Delta).then_some(base.as_slice());
            if let Ok(bytes) = decode(&frame, encoding, size, base) {
                prop_assert_eq!(bytes.len(), size);
            }
        }
    }
}
