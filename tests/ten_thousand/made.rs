//! Made-up files and WAL: small, and determined by numbers, so that the test knows every byte without keeping it.

use crate::common::random::Random;
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{SegmentSize, SystemId, testing};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(super) const BLOCK_BYTES: usize = 8192;

/// The most files of a tree, and the most blocks of each.
const FILES: usize = 10;
const BLOCKS: u64 = 40;

/// How many blocks of a segment are not zero, at most.
const WAL_BLOCKS: u64 = 6;

/// A directory: by path, a number for each block of a file. Number 0 is a block of zeros.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tree(pub(super) BTreeMap<String, Vec<u32>>);

/// The content of a block. One number in three gives a block that does not compress.
pub(super) fn block(number: u32) -> Vec<u8> {
    if number == 0 {
        return vec![0; BLOCK_BYTES];
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes());
    let mut bytes = vec![0; BLOCK_BYTES];
    let noise = if number.is_multiple_of(3) {
        BLOCK_BYTES
    } else {
        1024
    };
    hasher.finalize_xof().fill(&mut bytes[..noise]);
    bytes
}

pub(super) fn content(blocks: &[u32]) -> Vec<u8> {
    blocks.iter().flat_map(|number| block(*number)).collect()
}

/// One value for all paths and contents of a tree, given with the hash of each file.
pub(super) fn digest<'a>(files: impl Iterator<Item = (&'a str, blake3::Hash)>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (path, hash) in files {
        hasher
            .update(path.as_bytes())
            .update(&[0])
            .update(hash.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

impl Tree {
    pub(super) fn digest(&self) -> String {
        let files = self.0.iter();
        digest(files.map(|(path, blocks)| (path.as_str(), blake3::hash(&content(blocks)))))
    }

    /// What this tree may be some time later.
    pub(super) fn later(&self, random: &mut Random) -> Self {
        let mut later = self.clone();
        for _ in 0..=random.below(4) {
            later.change(random);
        }
        later
    }

    fn change(&mut self, random: &mut Random) {
        let paths: Vec<String> = self.0.keys().cloned().collect();
        let new = |random: &mut Random| format!("base/{}/{}", random.below(3), random.below(1000));
        if paths.is_empty() || (paths.len() < FILES && random.below(4) == 0) {
            let blocks = (0..random.below(BLOCKS)).map(|_| number(random)).collect();
            self.0.insert(new(random), blocks);
            return;
        }
        let path = &paths[random.below(paths.len() as u64) as usize];
        match random.below(8) {
            0 if paths.len() > 1 => {
                self.0.remove(path);
            }
            // The same content in another place.
            1 if paths.len() < FILES => {
                let blocks = self.0[path].clone();
                self.0.insert(new(random), blocks);
            }
            2 => {
                let shorter = random.below(1 + self.0[path].len() as u64) as usize;
                self.0.entry(path.clone()).or_default().truncate(shorter);
            }
            3 => {
                let more = random.below(1 + BLOCKS.saturating_sub(self.0[path].len() as u64));
                let blocks = self.0.entry(path.clone()).or_default();
                blocks.extend((0..more).map(|_| number(random)));
            }
            _ => {
                for one in self.0.entry(path.clone()).or_default() {
                    if random.below(12) == 0 {
                        *one = number(random);
                    }
                }
            }
        }
    }
}

/// One in eight is a block of zeros, and some come again and again.
fn number(random: &mut Random) -> u32 {
    match random.below(8) {
        0 => 0,
        1 => 1 + random.below(20) as u32,
        _ => random.next() as u32,
    }
}

/// Segment `number` of a cluster: its name and its content.
pub(super) fn segment(number: u32, system: SystemId) -> (SegmentName, Vec<u8>) {
    let bytes = usize::try_from(SegmentSize::MIN.bytes()).unwrap();
    let of = number.wrapping_mul(2_654_435_761).wrapping_add(system.0 as u32);
    let used = 1 + of % WAL_BLOCKS as u32;
    let mut content: Vec<u8> = (0..used).flat_map(|at| block(of.wrapping_add(at) | 1)).collect();
    content.resize(bytes, 0);
    testing::segment(number, system, content)
}
