//! Frames that are about to be read, in the order of the disk.

use crate::id::PackId;
use crate::location::ChunkLocation;

/// Frames that lie closer together are read as one run, with what is between them: a disk reads that in less time than
/// it needs to move its heads.
const GAP_BYTES: u64 = 256 * 1024;

/// A part of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) pack: PackId,
    pub(super) offset: u64,
    pub(super) bytes: u32,
}

/// The parts of packs that have these frames, by pack and position.
pub(super) fn runs(frames: &[ChunkLocation]) -> Vec<Run> {
    let mut sorted: Vec<(PackId, u64, u64)> = frames
        .iter()
        .map(|frame| {
            let start = u64::from(frame.offset);
            (frame.pack, start, start + u64::from(frame.stored_bytes))
        })
        .collect();
    sorted.sort_unstable();
    let mut runs: Vec<Run> = Vec::new();
    for (pack, start, end) in sorted {
        if let Some(last) = runs.last_mut().filter(|last| last.pack == pack)
            && start <= last.offset + u64::from(last.bytes) + GAP_BYTES
            && let Ok(bytes) = u32::try_from(end.saturating_sub(last.offset))
        {
            last.bytes = bytes.max(last.bytes);
        } else {
            runs.push(Run {
                pack,
                offset: start,
                bytes: u32::try_from(end - start).unwrap_or(u32::MAX),
            });
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Encoding;

    fn frame(pack: u8, offset: u32, stored_bytes: u32) -> ChunkLocation {
        ChunkLocation {
            pack: PackId([pack; PackId::BYTES]),
            offset,
            stored_bytes,
            raw_bytes: 131_072,
            encoding: Encoding::Zstd,
            base: None,
        }
    }

    #[test]
    fn neighbours_become_one_run_and_others_their_own() {
        let gap = u32::try_from(GAP_BYTES).unwrap();
        let frames = [
            frame(2, 32, 10),
            frame(1, 5_000, 100),
            frame(1, 32, 4_000),
            frame(1, 5_000, 100),
            frame(1, 5_100 + gap, 7),
            frame(1, 5_108 + 2 * gap, 7),
        ];
        let run = |pack, offset, bytes| Run {
            pack: PackId([pack; PackId::BYTES]),
            offset,
            bytes,
        };
        let found = runs(&frames);
        let expected = [
            run(1, 32, 5_107 + gap - 32),
            run(1, 5_108 + 2 * u64::from(gap), 7),
            run(2, 32, 10),
        ];
        assert_eq!(found, expected);
        assert_eq!(runs(&[]), []);
    }
}
