//! Sets of short keys that need not fit in memory: what a mark has found in use.
//!
//! Keys are collected in any order, from any number of threads. Each full buffer is sorted and, from the second one on, written
//! to a file without a name, as a *run*. Afterwards all runs are merged as they are read, in the order of the keys and each key
//! once. So a key costs its bytes and no search, however many there are; in memory there is one buffer for each thread, and while
//! they are merged a block of each run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use barmanfs_store::sync::lock;
use barmanfs_store::threads;

use crate::error::{Error, Result};

/// Keys in a buffer: 8 MiB of chunk ids.
const BUFFER_KEYS: usize = 256 * 1024;

/// Keys that are read from a run at a time: 4 KiB of chunk ids.
const BLOCK_KEYS: usize = 128;

/// Threads that work on keys at the same time.
const MAX_THREADS: usize = 16;

/// One thread works on fewer keys than this.
const MANY: u64 = 64 * 1024;

/// Parts that threads take, by the first six bits of the keys.
const PARTS: usize = 64;

/// Collects keys of `N` bytes.
#[derive(Debug)]
pub(crate) struct Collector<const N: usize> {
    buffer: Mutex<Vec<[u8; N]>>,
    written: Mutex<Written>,
    buffer_keys: usize,
}

/// Runs in a file, one after the other.
#[derive(Debug, Default)]
struct Written {
    file: Option<File>,
    /// Where each run ends, in keys; it begins where the one before ends.
    ends: Vec<u64>,
}

/// The collected keys.
#[derive(Debug)]
pub(crate) struct Sorted<const N: usize> {
    written: Written,
    /// The last run: it is in memory.
    last: Vec<[u8; N]>,
}

impl<const N: usize> Collector<N> {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self::with_buffer(BUFFER_KEYS)
    }

    fn with_buffer(buffer_keys: usize) -> Self {
        Self {
            buffer: Mutex::default(),
            written: Mutex::default(),
            buffer_keys,
        }
    }

    /// Adds keys. One that is added twice counts once.
    pub(crate) fn add(&self, keys: impl IntoIterator<Item = [u8; N]>) -> Result<()> {
        let mut buffer = lock(&self.buffer);
        for key in keys {
            buffer.push(key);
            if buffer.len() >= self.buffer_keys {
                let full = std::mem::take(&mut *buffer);
                drop(buffer);
                self.write(full)?;
                buffer = lock(&self.buffer);
            }
        }
        Ok(())
    }

    fn write(&self, mut keys: Vec<[u8; N]>) -> Result<()> {
        keys.sort_unstable();
        keys.dedup();
        let mut written = lock(&self.written);
        written.append(&keys).map_err(unusable)
    }

    /// All that was added.
    pub(crate) fn finish(self) -> Sorted<N> {
        let mut last = self.buffer.into_inner().unwrap_or_else(PoisonError::into_inner);
        last.sort_unstable();
        last.dedup();
        let written = self.written.into_inner().unwrap_or_else(PoisonError::into_inner);
        Sorted { written, last }
    }
}

impl Written {
    fn append<const N: usize>(&mut self, keys: &[[u8; N]]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(directory())?),
        };
        let begin = self.ends.last().copied().unwrap_or(0);
        file.write_all_at(keys.as_flattened(), begin * N as u64)?;
        self.ends.push(begin + keys.len() as u64);
        Ok(())
    }

    fn read<const N: usize>(&self, first: u64, keys: &mut [[u8; N]]) -> io::Result<()> {
        match &self.file {
            Some(file) => file.read_exact_at(keys.as_flattened_mut(), first * N as u64),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl<const N: usize> Sorted<N> {
    /// The keys from `low` on that come before `high`, if there is one.
    pub(crate) fn range(&self, low: &[u8; N], high: Option<&[u8; N]>) -> Result<Merged<'_, N>> {
        let mut merged = Merged {
            keys: self,
            heads: BinaryHeap::new(),
            sources: Vec::new(),
            high: high.copied(),
            last: None,
        };
        let mut begin = 0;
        for &end in &self.written.ends {
            let at = self.written_from(low, begin..end)?;
            merged.sources.push(Source::Written {
                block: Vec::new(),
                taken: 0,
                rest: at..end,
            });
            begin = end;
        }
        let at = self.last.partition_point(|key| key < low);
        merged.sources.push(Source::Memory { at });
        for source in 0..merged.sources.len() {
            merged.pull(source)?;
        }
        Ok(merged)
    }

    /// All keys.
    pub(crate) fn all(&self) -> Result<Merged<'_, N>> {
        self.range(&[0; N], None)
    }

    /// Calls `work` with parts of the keys that are all of them together, on all cores if there are many keys and `may_share`.
    /// Returns what it returned.
    pub(crate) fn in_parts<T: Send>(
        &self,
        may_share: bool,
        work: impl Fn(Merged<'_, N>) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        if self.len_at_most() < MANY || cores == 1 || !may_share {
            return Ok(vec![work(self.all()?)?]);
        }
        let next = AtomicUsize::new(0);
        let work_on_parts = || {
            let mut done = Vec::new();
            while let Some((low, high)) = part(next.fetch_add(1, Ordering::Relaxed)) {
                done.push(work(self.range(&low, high.as_ref())?)?);
            }
            Ok(done)
        };
        thread::scope(|scope| {
            let threads = threads::start_up_to(scope, "part", cores.min(MAX_THREADS), || work_on_parts)
                .map_err(barmanfs_store::Error::from)?;
            let mut done = Vec::new();
            for thread in threads {
                let of_thread: Result<Vec<T>> = match thread.join() {
                    Ok(ended) => ended,
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                done.extend(of_thread?);
            }
            Ok(done)
        })
    }

    /// Whether this is one of them.
    pub(crate) fn contains(&self, key: &[u8; N]) -> Result<bool> {
        Ok(self.range(key, None)?.next()?.as_ref() == Some(key))
    }

    /// How many there are at most: those in several runs count several times.
    pub(crate) fn len_at_most(&self) -> u64 {
        self.written.ends.last().copied().unwrap_or(0) + self.last.len() as u64
    }

    /// The first key in this part of the file, a run, that does not come before `low`.
    fn written_from(&self, low: &[u8; N], run: Range<u64>) -> Result<u64> {
        let (mut low_at, mut high_at) = (run.start, run.end);
        while low_at < high_at {
            let middle = low_at + (high_at - low_at) / 2;
            let mut key = [[0; N]];
            self.written.read(middle, &mut key).map_err(unusable)?;
            if key.first().is_some_and(|key| key < low) {
                low_at = middle + 1;
            } else {
                high_at = middle;
            }
        }
        Ok(low_at)
    }
}

/// One of the [`PARTS`]: where it begins, and the next one.
fn part<const N: usize>(number: usize) -> Option<([u8; N], Option<[u8; N]>)> {
    let begin = |number: usize| {
        let first = u8::try_from(number * (256 / PARTS)).ok()?;
        let mut bound = [0; N];
        *bound.first_mut()? = first;
        Some(bound)
    };
    Some((begin(number)?, begin(number + 1)))
}

/// Keys in their order.
#[derive(Debug)]
pub(crate) struct Merged<'a, const N: usize> {
    keys: &'a Sorted<N>,
    /// The next key of each run that has one, the smallest first.
    heads: BinaryHeap<Reverse<([u8; N], usize)>>,
    sources: Vec<Source<N>>,
    high: Option<[u8; N]>,
    last: Option<[u8; N]>,
}

/// Where the keys of a run come from.
#[derive(Debug)]
enum Source<const N: usize> {
    Written {
        block: Vec<[u8; N]>,
        taken: usize,
        rest: Range<u64>,
    },
    Memory {
        at: usize,
    },
}

impl<const N: usize> Merged<'_, N> {
    /// The next key.
    pub(crate) fn next(&mut self) -> Result<Option<[u8; N]>> {
        while let Some(Reverse((key, source))) = self.heads.pop() {
            self.pull(source)?;
            if self.high.is_some_and(|high| key >= high) {
                self.heads.clear();
                return Ok(None);
            }
            if self.last.replace(key) != Some(key) {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// The next keys, as many as this; fewer at the end.
    pub(crate) fn next_batch(&mut self, count: usize) -> Result<Vec<[u8; N]>> {
        let mut batch = Vec::with_capacity(count);
        while batch.len() < count
            && let Some(key) = self.next()?
        {
            batch.push(key);
        }
        Ok(batch)
    }

    /// Takes the next key of a run.
    fn pull(&mut self, source: usize) -> Result<()> {
        let key = match self.sources.get_mut(source) {
            Some(Source::Memory { at }) => {
                *at += 1;
                self.keys.last.get(*at - 1).copied()
            }
            Some(Source::Written { block, taken, rest }) => {
                if *taken == block.len() && rest.start < rest.end {
                    let count = (rest.end - rest.start).min(BLOCK_KEYS as u64);
                    block.resize(count as usize, [0; N]);
                    self.keys.written.read(rest.start, block).map_err(unusable)?;
                    (rest.start, *taken) = (rest.start + count, 0);
                }
                *taken += 1;
                block.get(*taken - 1).copied()
            }
            None => None,
        };
        if let Some(key) = key {
            self.heads.push(Reverse((key, source)));
        }
        Ok(())
    }
}

/// Where SQLite would put its temporary files: `/tmp` may be in memory.
fn directory() -> PathBuf {
    let (named, large) = (std::env::temp_dir(), Path::new("/var/tmp"));
    if named == Path::new("/tmp") && large.is_dir() {
        return large.to_path_buf();
    }
    named
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unusable(error: io::Error) -> Error {
    Error::Invalid(format!(
        "Cannot keep a list of chunks in {}, the directory for temporary files: {error}",
        directory().display()
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn keys(mut merged: Merged<'_, 4>) -> Vec<[u8; 4]> {
        std::iter::from_fn(|| merged.next().unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever the number of runs, the keys come back in order, each once.
        #[test]
        fn keys_come_back_sorted_and_once(
            added in proptest::collection::vec(0..700_u32, 0..2000),
            buffer in 1..400_usize,
            (low, high) in (0..700_u32, 0..700_u32),
        ) {
            let collector = Collector::with_buffer(buffer);
            thread::scope(|scope| {
                for part in added.chunks(added.len().div_ceil(3).max(1)) {
                    let collector = &collector;
                    scope.spawn(move || collector.add(part.iter().map(|key| key.to_be_bytes())).unwrap());
                }
            });
            let sorted = collector.finish();
            let model: BTreeSet<[u8; 4]> = added.iter().map(|key| key.to_be_bytes()).collect();
            prop_assert_eq!(keys(sorted.all().unwrap()), Vec::from_iter(model.iter().copied()));
            prop_assert!(sorted.len_at_most() >= model.len() as u64);
            let (low, high) = (low.to_be_bytes(), high.to_be_bytes());
            let part: Vec<_> = model.iter().copied().filter(|key| (low..high).contains(key)).collect();
            prop_assert_eq!(keys(sorted.range(&low, Some(&high)).unwrap()), part);
            prop_assert_eq!(sorted.contains(&low).unwrap(), model.contains(&low));
        }
    }
}
