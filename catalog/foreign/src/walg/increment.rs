//! An increment: the pages of a file that changed since the backup before.
//!
//! ```text
//! "wi1" 0x55                 magic, with the version
//! u64  size                  of the whole file, when the backup began to read it
//! u32  count                 of pages
//! u32  number      × count   of each page, ascending
//! 8192 bytes       × count   the pages, in this order
//! ```
//!
//! Numbers are little-endian. Where a page is in no increment, the file has what it had before, or zeros behind its former end. A
//! page behind `size` was added while the file was read, and is a part of the file.

use std::io::{self, Read};

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 8192;

/// Magic, size and count.
const FIXED_BYTES: usize = 16;

const MAGIC: [u8; 4] = [b'w', b'i', b'1', 0x55];

/// The most pages of one file: those of 32 GiB. A file of a server has 1 GiB, unless it was compiled with another size.
const PAGES_MAX: u32 = 4 << 20;

/// Bytes of page numbers that are read at a time.
const NUMBERS_BYTES: u64 = 64 << 10;

/// Why an increment is not taken.
#[derive(Debug, thiserror::Error)]
pub enum IncrementError {
    /// It cannot be read, or ends too early.
    #[error("its increment cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It says what cannot be.
    #[error("its increment is damaged: {0}")]
    Wrong(String),
}

/// The beginning of an increment. Its pages follow in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Increment {
    size_bytes: u64,
    pages: Vec<u32>,
}

impl Increment {
    /// Reads it from the beginning of what is stored, of `stored_bytes`.
    ///
    /// # Errors
    /// When it cannot be read, is no increment, or has another size than it says.
    pub fn read(source: &mut dyn Read, stored_bytes: u64) -> Result<Self, IncrementError> {
        let wrong = |why: &str| Err(IncrementError::Wrong(why.to_owned()));
        let mut fixed = [0; FIXED_BYTES];
        source.read_exact(&mut fixed)?;
        let [magic @ .., s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3] = fixed;
        if magic != MAGIC {
            return wrong("it does not begin like one of version 1");
        }
        let size_bytes = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        if count > PAGES_MAX {
            return wrong("it has too many pages");
        }
        let expected = FIXED_BYTES as u64 + u64::from(count) * (4 + PAGE_BYTES);
        if expected != stored_bytes {
            return Err(IncrementError::Wrong(format!(
                "{count} pages of {PAGE_BYTES} bytes need {expected} bytes, it has {stored_bytes}"
            )));
        }
        let pages = read_numbers(source, count)?;
        if !pages.is_sorted_by(|one, next| one < next) {
            return wrong("its pages are not in ascending order");
        }
        Ok(Self { size_bytes, pages })
    }

    /// The numbers of the pages, ascending.
    #[must_use]
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.size_bytes.max(self.pages_end())
    }

    /// Where its last page ends.
    #[must_use]
    pub fn pages_end(&self) -> u64 {
        self.pages
            .last()
            .map_or(0, |last| (u64::from(*last) + 1) * PAGE_BYTES)
    }
}

/// Memory grows with what is read.
fn read_numbers(source: &mut dyn Read, count: u32) -> Result<Vec<u32>, IncrementError> {
    let mut pages = Vec::new();
    let mut left = u64::from(count) * 4;
    let mut bytes = Vec::new();
    while left > 0 {
        bytes.clear();
        let now = left.min(NUMBERS_BYTES);
        let read = source.take(now).read_to_end(&mut bytes)? as u64;
        if read < now {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let numbers = bytes.as_chunks::<4>().0;
        pages.extend(numbers.iter().map(|number| u32::from_le_bytes(*number)));
        left -= now;
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(size: u64, pages: &[u32]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(size.to_le_bytes());
        bytes.extend((pages.len() as u32).to_le_bytes());
        pages.iter().for_each(|page| bytes.extend(page.to_le_bytes()));
        bytes.resize(bytes.len() + pages.len() * 8192, 7);
        bytes
    }

    #[test]
    fn pages_behind_the_size_belong_to_the_file() {
        let stored = bytes(3 * 8192, &[0, 2]);
        let mut source = stored.as_slice();
        let increment = Increment::read(&mut source, stored.len() as u64).unwrap();
        assert_eq!(
            (increment.pages(), increment.file_bytes()),
            (&[0, 2][..], 3 * 8192)
        );
        assert_eq!(source.len(), 2 * 8192);
        let stored = bytes(3 * 8192, &[0, 4]);
        let increment = Increment::read(&mut stored.as_slice(), stored.len() as u64).unwrap();
        assert_eq!(increment.file_bytes(), 5 * 8192);
        let stored = bytes(8192, &[]);
        let increment = Increment::read(&mut stored.as_slice(), stored.len() as u64).unwrap();
        assert_eq!((increment.file_bytes(), increment.pages_end()), (8192, 0));
    }

    #[test]
    fn what_is_no_increment_is_refused() {
        for pages in [&[2, 1][..], &[1, 1]] {
            let stored = bytes(8192, pages);
            assert!(Increment::read(&mut stored.as_slice(), stored.len() as u64).is_err());
        }
        let stored = bytes(8192, &[0]);
        assert!(Increment::read(&mut stored.as_slice(), stored.len() as u64 - 1).is_err());
        for at in 0..4 {
            let mut other = stored.clone();
            other[at] ^= 1;
            assert!(Increment::read(&mut other.as_slice(), stored.len() as u64).is_err());
        }
        for end in 0..20 {
            assert!(Increment::read(&mut &stored[..end], stored.len() as u64).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200), count in 0_u32..9, stored in any::<u64>()) {
            let _ = Increment::read(&mut bytes.as_slice(), stored);
            if let Some(begin) = bytes.get_mut(..4) {
                begin.copy_from_slice(&MAGIC);
            }
            if let Some(field) = bytes.get_mut(12..16) {
                field.copy_from_slice(&count.to_le_bytes());
            }
            let _ = Increment::read(&mut bytes.as_slice(), 16 + u64::from(count) * 8196);
        }
    }
}
