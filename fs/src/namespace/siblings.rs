//! Programs that read whole directories open one file after the other: `cp -a` in the order of inode numbers, `tar`
//! and `rsync` in that of the listing. For a reader that follows one of these orders, the beginnings of the next files
//! are decoded while it reads this one.

use std::collections::VecDeque;
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex};

use super::ino::Ino;
use crate::entry::Child;

use barmanfs_store::sync::lock;

/// Files whose beginnings are decoded ahead at least, and at most.
const FILES_AHEAD: RangeInclusive<usize> = 8..=64;

/// Bytes that are decoded ahead, if the files are more than the fewest. Small files come in batches, so that the thread that
/// decodes them is not woken for each.
const BYTES_AHEAD: u64 = 2 << 20;

/// Bytes per file: all of a small file, the first read of a large one.
pub(super) const FIRST_BYTES: u64 = 256 * 1024;

/// The order of a larger directory is not kept. About 3 MB at most.
const MAX_FILES: usize = 50_000;

/// Number of directories whose order is kept: those listed last.
const DIRECTORIES: usize = 8;

/// A file of a directory.
#[derive(Debug)]
pub(super) struct Sibling {
    pub(super) ino: Ino,
    pub(super) name: Box<[u8]>,
    /// What would be decoded ahead of it.
    bytes: u32,
}

/// The files of a directory, and how far a reader has come.
#[derive(Debug)]
pub(super) struct Siblings {
    /// In the order of the listing.
    files: Vec<Sibling>,
    /// Indexes into `files`, in the order of inode numbers.
    by_number: Vec<usize>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Number,
    Listing,
}

#[derive(Debug, Default)]
struct Progress {
    /// The index of the last opened file in each order.
    last: Option<(usize, usize)>,
    /// The order that is followed, and the index up to which files have been decoded ahead.
    ahead: Option<(Order, usize)>,
}

impl Siblings {
    fn new(files: Vec<Sibling>) -> Self {
        let mut by_number: Vec<usize> = (0..files.len()).collect();
        by_number.sort_by_key(|&place| files.get(place).map(|file| file.ino));
        Self {
            files,
            by_number,
            progress: Mutex::default(),
        }
    }

    /// Records that a file was opened. Returns the files to decode ahead.
    pub(super) fn opened(&self, ino: Ino) -> Vec<&Sibling> {
        let number = |place: &usize| self.files.get(*place).map(|file| file.ino);
        let Ok(in_numbers) = self.by_number.binary_search_by_key(&Some(ino), number) else {
            return Vec::new();
        };
        let Some(&in_listing) = self.by_number.get(in_numbers) else {
            return Vec::new();
        };
        let file = |order: Order, at: usize| {
            let place = match order {
                Order::Number => *self.by_number.get(at)?,
                Order::Listing => at,
            };
            self.files.get(place)
        };
        let bytes = |order, at| file(order, at).map(|file| u64::from(file.bytes));
        let Some((order, places)) = lock(&self.progress).step(in_numbers, in_listing, bytes) else {
            return Vec::new();
        };
        places.filter_map(|at| file(order, at)).collect()
    }
}

impl Progress {
    /// Records an opened file. Returns the indexes to decode, and their order. `bytes` of an index is `None` behind the last
    /// file.
    fn step(
        &mut self,
        in_numbers: usize,
        in_listing: usize,
        bytes: impl Fn(Order, usize) -> Option<u64>,
    ) -> Option<(Order, Range<usize>)> {
        let last = self.last.replace((in_numbers, in_listing));
        let (order, at) = match last {
            Some((number, _)) if number + 1 == in_numbers => (Order::Number, in_numbers),
            Some((_, listing)) if listing + 1 == in_listing => (Order::Listing, in_listing),
            _ => {
                self.ahead = None;
                return None;
            }
        };
        let next = at + 1;
        let (fewest, most) = (next + FILES_AHEAD.start(), next + FILES_AHEAD.end());
        let from = match self.ahead {
            Some((followed, to)) if followed == order => to.max(next),
            _ => next,
        };
        if from >= fewest {
            return None;
        }
        let mut to = from;
        let mut sum: u64 = (next..from).filter_map(|at| bytes(order, at)).sum();
        while to < most
            && (to < fewest || sum < BYTES_AHEAD)
            && let Some(bytes) = bytes(order, to)
        {
            sum += bytes;
            to += 1;
        }
        self.ahead = Some((order, to));
        Some((order, from..to))
    }
}

/// The directories that were listed last.
#[derive(Debug, Default)]
pub(super) struct Orders {
    known: Mutex<VecDeque<(Ino, Arc<Siblings>)>>,
}

impl Orders {
    /// Learns the order of a directory that was listed completely.
    pub(super) fn learn(&self, directory: Ino, files: Vec<Sibling>) {
        if !(2..=MAX_FILES).contains(&files.len()) {
            return;
        }
        let siblings = Arc::new(Siblings::new(files));
        let mut known = lock(&self.known);
        known.retain(|(ino, _)| *ino != directory);
        known.truncate(DIRECTORIES - 1);
        known.push_front((directory, siblings));
    }

    pub(super) fn of(&self, directory: Ino) -> Option<Arc<Siblings>> {
        let known = lock(&self.known);
        known
            .iter()
            .find(|(ino, _)| *ino == directory)
            .map(|(_, siblings)| Arc::clone(siblings))
    }
}

/// Collects the files of a listing, as long as they are few enough.
pub(super) fn note(files: &mut Vec<Sibling>, ino: Ino, file: &Child) {
    // One more than the limit shows that there were too many.
    if files.len() <= MAX_FILES {
        files.push(Sibling {
            ino,
            name: file.name.as_slice().into(),
            // Far below the limit of the type.
            bytes: file.stat.size_bytes.min(FIRST_BYTES) as u32,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(ino: u64, bytes: u64) -> Sibling {
        Sibling {
            ino: Ino(ino),
            name: ino.to_string().into_bytes().into(),
            bytes: u32::try_from(bytes).unwrap(),
        }
    }

    /// In the order of the listing they have the numbers 1000, 999, 998, ...
    fn siblings(count: u64, bytes: u64) -> Siblings {
        Siblings::new((0..count).map(|n| file(1000 - n, bytes)).collect())
    }

    fn opened(siblings: &Siblings, ino: u64) -> Vec<u64> {
        let ahead = siblings.opened(Ino(ino)).into_iter();
        ahead.map(|file| file.ino.0).collect()
    }

    fn down(range: Range<u64>) -> Vec<u64> {
        range.rev().collect()
    }

    #[test]
    fn both_orders_are_followed_and_no_file_is_named_twice() {
        let siblings = siblings(20, FIRST_BYTES);
        let none: [u64; 0] = [];
        // By name. Of large files as few as possible.
        assert_eq!(opened(&siblings, 1000), none);
        assert_eq!(opened(&siblings, 999), down(991..999));
        assert_eq!(opened(&siblings, 998), [990]);
        assert_eq!(opened(&siblings, 997), [989]);
        // Then by number.
        assert_eq!(opened(&siblings, 981), none);
        assert_eq!(opened(&siblings, 982), (983..991).collect::<Vec<_>>());
        assert_eq!(opened(&siblings, 983), [991]);
    }

    #[test]
    fn small_files_come_in_batches() {
        let few = siblings(500, 4096);
        assert!(opened(&few, 1000).is_empty());
        assert_eq!(opened(&few, 999), down(935..999));
        // The next ones when few are left.
        for ino in down(943..999) {
            assert!(opened(&few, ino).is_empty(), "{ino}");
        }
        assert_eq!(opened(&few, 942), down(878..935));
        let larger = siblings(500, BYTES_AHEAD / 16);
        opened(&larger, 1000);
        assert_eq!(opened(&larger, 999), down(983..999));
    }

    #[test]
    fn unordered_and_unknown_files_name_nothing() {
        let siblings = siblings(20, 4096);
        for ino in [990, 985, 999, 981, 5, 995] {
            assert!(opened(&siblings, ino).is_empty(), "{ino}");
        }
    }

    #[test]
    fn nothing_is_named_after_the_last_files() {
        let siblings = siblings(4, 4096);
        opened(&siblings, 1000);
        assert_eq!(opened(&siblings, 999), [998, 997]);
        assert!(opened(&siblings, 998).is_empty());
        assert!(opened(&siblings, 997).is_empty());
    }

    #[test]
    fn only_the_directories_listed_last_are_remembered() {
        let orders = Orders::default();
        for directory in 0..20 {
            orders.learn(Ino(directory), vec![file(1, 1), file(2, 1)]);
        }
        assert!(orders.of(Ino(19)).is_some() && orders.of(Ino(12)).is_some());
        assert!(orders.of(Ino(11)).is_none());
    }
}
