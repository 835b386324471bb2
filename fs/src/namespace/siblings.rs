//! Programs that read whole directories open one file after the other: `cp -a` in the order of inode numbers, `tar`
//! and `rsync` in that of the listing. For a reader that follows one of these orders, the beginnings of the next files
//! are decoded while it reads this one.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::ino::Ino;

use barmanfs_store::sync::lock;

/// Files whose beginnings are decoded ahead: small ones are opened faster than one core decodes them.
const FILES_AHEAD: usize = 8;

/// Bytes per file: all of a small file, the first read of a large one.
pub(super) const FIRST_BYTES: u64 = 256 * 1024;

/// The order of a larger directory is not kept. About 3 MB at most.
const MAX_FILES: usize = 50_000;

/// Number of directories whose order is kept: those listed last.
const DIRECTORIES: usize = 8;

/// The files of a directory, and how far a reader has come.
#[derive(Debug)]
pub(super) struct Siblings {
    /// In the order of the listing.
    files: Vec<(Ino, Box<[u8]>)>,
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
    fn new(files: Vec<(Ino, Box<[u8]>)>) -> Self {
        let mut by_number: Vec<usize> = (0..files.len()).collect();
        by_number.sort_by_key(|&place| files.get(place).map(|(ino, _)| *ino));
        Self {
            files,
            by_number,
            progress: Mutex::default(),
        }
    }

    /// Records that a file was opened. Returns the names of the files to decode ahead.
    pub(super) fn opened(&self, ino: Ino) -> Vec<&[u8]> {
        let number = |place: &usize| self.files.get(*place).map(|(ino, _)| *ino);
        let Ok(in_numbers) = self.by_number.binary_search_by_key(&Some(ino), number) else {
            return Vec::new();
        };
        let Some(&in_listing) = self.by_number.get(in_numbers) else {
            return Vec::new();
        };
        let Some((order, places)) = lock(&self.progress).step(in_numbers, in_listing) else {
            return Vec::new();
        };
        let place = |at: usize| match order {
            Order::Number => self.by_number.get(at).copied(),
            Order::Listing => Some(at),
        };
        let name = |at| self.files.get(place(at)?).map(|(_, name)| &**name);
        places.filter_map(name).collect()
    }
}

impl Progress {
    /// Records an opened file. Returns the indexes to decode, and their order.
    fn step(&mut self, in_numbers: usize, in_listing: usize) -> Option<(Order, Range<usize>)> {
        let last = self.last.replace((in_numbers, in_listing));
        let (order, at) = match last {
            Some((number, _)) if number + 1 == in_numbers => (Order::Number, in_numbers),
            Some((_, listing)) if listing + 1 == in_listing => (Order::Listing, in_listing),
            _ => {
                self.ahead = None;
                return None;
            }
        };
        let from = match self.ahead {
            Some((followed, to)) if followed == order => to.max(at + 1),
            _ => at + 1,
        };
        let to = at + 1 + FILES_AHEAD;
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
    pub(super) fn learn(&self, directory: Ino, files: Vec<(Ino, Box<[u8]>)>) {
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
pub(super) fn note(files: &mut Vec<(Ino, Box<[u8]>)>, ino: Ino, name: &[u8]) {
    // One more than the limit shows that there were too many.
    if files.len() <= MAX_FILES {
        files.push((ino, name.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Named a, b, c, … with numbers that fall while the names rise.
    fn siblings(count: u8) -> Siblings {
        let file = |n: u8| (Ino(1000 - u64::from(n)), vec![b'a' + n].into_boxed_slice());
        Siblings::new((0..count).map(file).collect())
    }

    fn names(found: &[&[u8]]) -> String {
        found.concat().iter().map(|&byte| char::from(byte)).collect()
    }

    #[test]
    fn both_orders_are_followed_and_no_file_is_named_twice() {
        let siblings = siblings(20);
        // By name.
        assert_eq!(names(&siblings.opened(Ino(1000))), "");
        assert_eq!(names(&siblings.opened(Ino(999))), "cdefghij");
        assert_eq!(names(&siblings.opened(Ino(998))), "k");
        assert_eq!(names(&siblings.opened(Ino(997))), "l");
        // Then by number.
        assert_eq!(names(&siblings.opened(Ino(981))), "");
        assert_eq!(names(&siblings.opened(Ino(982))), "rqponmlk");
        assert_eq!(names(&siblings.opened(Ino(983))), "j");
    }

    #[test]
    fn unordered_and_unknown_files_name_nothing() {
        let siblings = siblings(20);
        for ino in [990, 985, 999, 981, 5, 995] {
            assert_eq!(names(&siblings.opened(Ino(ino))), "", "{ino}");
        }
    }

    #[test]
    fn nothing_is_named_after_the_last_files() {
        let siblings = siblings(4);
        siblings.opened(Ino(1000));
        assert_eq!(names(&siblings.opened(Ino(999))), "cd");
        assert_eq!(names(&siblings.opened(Ino(998))), "");
        assert_eq!(names(&siblings.opened(Ino(997))), "");
    }

    #[test]
    fn only_the_directories_listed_last_are_remembered() {
        let orders = Orders::default();
        let files = || vec![(Ino(1), vec![b'a'].into()), (Ino(2), vec![b'b'].into())];
        for directory in 0..20 {
            orders.learn(Ino(directory), files());
        }
        assert!(orders.of(Ino(19)).is_some() && orders.of(Ino(12)).is_some());
        assert!(orders.of(Ino(11)).is_none());
    }
}
