//! Random reads of single pages, as a database does them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

const PAGE_BYTES: u64 = 8192;

/// Pages read from each table. They are so few that most are in parts that were not read before.
const READS: u32 = 300;

/// Reads pages at random places of a relation. Returns the time of each in seconds. `first` is the
/// relation's first file; the other files beside it are `first.1`, `first.2` and so on.
pub(crate) fn random_reads(first: &Path, seed: u64) -> Result<Vec<f64>> {
    let files = open_all(first)?;
    let pages: u64 = files.iter().map(|(_, pages)| pages).sum();
    ensure!(pages > 0, "{} has no pages", first.display());
    let mut random = SplitMix64(seed);
    let mut page = vec![0; usize::try_from(PAGE_BYTES)?];
    let mut times = Vec::new();
    for _ in 0..READS {
        let mut number = random.next() % pages;
        for (file, pages) in &files {
            if number >= *pages {
                number -= pages;
                continue;
            }
            let start = Instant::now();
            file.read_exact_at(&mut page, number * PAGE_BYTES)
                .with_context(|| format!("Cannot read page {number} of {}", first.display()))?;
            times.push(start.elapsed().as_secs_f64());
            break;
        }
    }
    Ok(times)
}

/// A relation's files, with the number of pages in each.
fn open_all(first: &Path) -> Result<Vec<(File, u64)>> {
    let mut files = Vec::new();
    for number in 0_u32.. {
        let path = if number == 0 {
            first.to_owned()
        } else {
            PathBuf::from(format!("{}.{number}", first.display()))
        };
        if number > 0 && !path.exists() {
            break;
        }
        let file = File::open(&path).with_context(|| format!("Cannot open {}", path.display()))?;
        let pages = file.metadata()?.len() / PAGE_BYTES;
        files.push((file, pages));
    }
    Ok(files)
}

/// Steele, Lea and Flood's generator: the same places for every tool.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_from_all_parts_of_a_relation() {
        let directory = tempfile::tempdir().unwrap();
        let first = directory.path().join("16384");
        std::fs::write(&first, vec![0; 5 * 8192]).unwrap();
        std::fs::write(directory.path().join("16384.1"), vec![0; 2 * 8192]).unwrap();
        assert_eq!(open_all(&first).unwrap().len(), 2);
        assert_eq!(random_reads(&first, 1).unwrap().len(), READS as usize);
        assert!(random_reads(&directory.path().join("none"), 1).is_err());
    }
}
