//! Looks at the pages of relations while they are read.
//!
//! A page that was changed after `pg_backup_stop` proves that a snapshot was taken too late. It proves it only if it is what a
//! server has written: with the right checksum, and at a position that the server can have reached. Anything else is damage. A
//! page that was last changed before `pg_backup_start` must have the right checksum, as a server verifies it when it sends a
//! backup; one that was changed since may be torn, and is replaced when WAL is replayed.

use std::io::{self, Read};
use std::path::Path;

use barmanfs_pg::Lsn;
use barmanfs_pg::page::{PAGE_BYTES, PageHeader, checksum};
use barmanfs_pg::relation_name::RelationFile;

/// Pages of one file of a relation.
pub(crate) const SEGMENT_PAGES: u32 = 131_072;

/// No server writes as much WAL between a backup and the snapshot that somebody takes for it.
const NEVER_WRITTEN_BYTES: u64 = 1 << 50;

/// The most places that are named.
const NAMED_MAX: usize = 100;

/// The most of them in a record.
const RECORDED_MAX: usize = 20;

/// What a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is wrong, or there is nothing to say: it was never used, has no checksum, or was changed since the start.
    Nothing,
    /// Its checksum is right.
    Right,
    /// Its checksum is wrong.
    Wrong { calculated: u16, found: u16 },
    /// It is not empty, and has no header.
    Headless,
    /// It is at a position that no server reaches.
    Unreachable(Lsn),
    /// It is newer than any may be.
    Newer(Lsn),
}

/// What must hold for pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) start: Lsn,
    /// No page is newer.
    pub(crate) newest: Lsn,
    pub(crate) has_checksums: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Places with wrong checksums, in words.
    pub(crate) wrong: Vec<String>,
    /// How many there are.
    pub(crate) wrong_count: u64,
    /// Pages whose checksums were right.
    pub(crate) right_count: u64,
    /// The first page that is newer than any may be, in words.
    pub(crate) newer: Option<String>,
}

/// Passes the bytes of a file on, and looks at its pages.
pub(crate) struct Pages<'a, R> {
    source: R,
    name: String,
    rules: Rules,
    findings: &'a mut Findings,
    page: Box<[u8; PAGE_BYTES]>,
    filled: usize,
    block: u32,
}

impl<'a, R: Read> Pages<'a, R> {
    pub(crate) fn new(
        source: R,
        (name, file): (String, &RelationFile),
        rules: Rules,
        findings: &'a mut Findings,
    ) -> Self {
        Self {
            source,
            name,
            block: file.segment.saturating_mul(SEGMENT_PAGES),
            rules,
            findings,
            page: Box::new([0; PAGE_BYTES]),
            filled: 0,
        }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.page.get_mut(self.filled..).unwrap_or_default();
            let length = room.len().min(bytes.len());
            let (now, rest) = bytes.split_at(length);
            if let Some(room) = room.get_mut(..length) {
                room.copy_from_slice(now);
            }
            self.filled += length;
            bytes = rest;
            if self.filled == PAGE_BYTES {
                self.look();
                self.filled = 0;
                self.block = self.block.wrapping_add(1);
            }
        }
    }

    fn look(&mut self) {
        let verdict = self.rules.judge(&self.page, self.block);
        self.findings.note(verdict, &self.name, self.block);
    }
}

impl Rules {
    /// Looks at one page.
    pub(crate) fn judge(&self, page: &[u8; PAGE_BYTES], block: u32) -> Verdict {
        let Some(header) = PageHeader::read(page) else {
            // A page that was never used is all zero.
            return match self.has_checksums && page.iter().any(|byte| *byte != 0) {
                true => Verdict::Headless,
                false => Verdict::Nothing,
            };
        };
        if header.lsn.0.saturating_sub(self.newest.0) >= NEVER_WRITTEN_BYTES {
            return Verdict::Unreachable(header.lsn);
        }
        let (is_newer, is_old) = (header.lsn > self.newest, header.lsn < self.start);
        if self.has_checksums && (is_newer || is_old) {
            let (calculated, found) = (checksum(page, block), header.checksum);
            if calculated != found {
                return Verdict::Wrong { calculated, found };
            }
        }
        match (is_newer, is_old && self.has_checksums) {
            (true, _) => Verdict::Newer(header.lsn),
            (false, true) => Verdict::Right,
            (false, false) => Verdict::Nothing,
        }
    }
}

impl Findings {
    /// Counts what a page is, and names it if something is wrong.
    pub(crate) fn note(&mut self, verdict: Verdict, name: &str, block: u32) {
        let wrong = match verdict {
            Verdict::Nothing => return,
            Verdict::Right => {
                self.right_count += 1;
                return;
            }
            Verdict::Newer(lsn) => {
                let newer = || format!("{name}, block {block} was changed at {lsn}");
                self.newer.get_or_insert_with(newer);
                return;
            }
            Verdict::Wrong { calculated, found } => {
                format!("{name}, block {block}: calculated {calculated:X}, found {found:X}")
            }
            Verdict::Headless => format!("{name}, block {block}: it has no header of a page"),
            Verdict::Unreachable(lsn) => {
                format!("{name}, block {block}: changed at {lsn}, which no server reaches")
            }
        };
        self.wrong_count += 1;
        if self.wrong.len() < NAMED_MAX {
            self.wrong.push(wrong);
        }
    }

    /// Adds what was found elsewhere.
    pub(crate) fn add(&mut self, other: Self) {
        self.wrong_count += other.wrong_count;
        self.right_count += other.right_count;
        let room = NAMED_MAX.saturating_sub(self.wrong.len());
        self.wrong.extend(other.wrong.into_iter().take(room));
        self.newer = self.newer.take().or(other.newer);
    }

    /// The wrong pages, as the record of a backup has them.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self.wrong.iter().take(RECORDED_MAX).cloned().collect();
        let more = self.wrong_count.saturating_sub(failures.len() as u64);
        if more > 0 {
            failures.push(format!("and {more} more pages"));
        }
        failures
    }
}

/// A server resets an unlogged relation when it recovers, so only its init fork is of use.
pub(crate) fn is_unlogged(place: &Path, filenode: u32) -> bool {
    place
        .parent()
        .is_some_and(|parent| parent.join(format!("{filenode}_init")).exists())
}

impl<R: Read> Read for Pages<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.take(buffer.get(..length).unwrap_or_default());
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(lsn: u64, block: u32) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        let (high, low) = ((lsn >> 32) as u32, lsn as u32);
        page[..4].copy_from_slice(&high.to_le_bytes());
        page[4..8].copy_from_slice(&low.to_le_bytes());
        for (at, value) in [(12, 24_u16), (14, 8000), (16, 8192), (18, 0x2004)] {
            page[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    fn looked_at(bytes: &[u8]) -> Findings {
        looked_at_by(bytes, true)
    }

    fn looked_at_by(bytes: &[u8], has_checksums: bool) -> Findings {
        let rules = Rules {
            start: Lsn(1000),
            newest: Lsn(2000),
            has_checksums,
        };
        let file = barmanfs_pg::relation_name::parse(b"base/5/16384.1").unwrap();
        let mut findings = Findings::default();
        let named = ("base/5/16384.1".to_owned(), &file);
        // Pieces of every length: a page may come in several reads.
        let mut pages = Pages::new(bytes, named, rules, &mut findings);
        let mut buffer = [0; 1000];
        while pages.read(&mut buffer).unwrap() > 0 {}
        findings
    }

    #[test]
    fn pages_are_judged_by_where_they_were_changed() {
        let mut damaged = page(999, SEGMENT_PAGES + 3);
        damaged[5000] = 1;
        let mut torn = page(1500, 0);
        torn[5000] = 1;
        let mut headless = [0; PAGE_BYTES];
        headless[7000] = 1;
        let good = page(999, SEGMENT_PAGES);
        let all = [good, torn, [0; PAGE_BYTES], damaged, headless].concat();
        let found = looked_at(&all);
        assert_eq!((found.right_count, found.wrong_count, found.newer), (1, 2, None));
        assert!(found.wrong[0].starts_with("base/5/16384.1, block 131075: calculated"));
        let found = looked_at(&page(2001, SEGMENT_PAGES));
        assert_eq!(
            found.newer.as_deref(),
            Some("base/5/16384.1, block 131072 was changed at 0/7D1")
        );
    }

    /// The kind: what no server has written says nothing about the time of the snapshot.
    #[test]
    fn garbage_does_not_make_a_snapshot_too_new() {
        let mut garbage = page(2001, SEGMENT_PAGES);
        garbage[5000] = 1;
        let found = looked_at(&garbage);
        assert_eq!((found.newer, found.wrong_count), (None, 1));
        // Without checksums the position is all there is.
        let far = page(2000 + NEVER_WRITTEN_BYTES, SEGMENT_PAGES);
        for has_checksums in [true, false] {
            let found = looked_at_by(&far, has_checksums);
            assert_eq!((found.newer, found.wrong_count), (None, 1));
        }
        assert!(looked_at_by(&page(2001, SEGMENT_PAGES), false).newer.is_some());
        assert_eq!(looked_at_by(&page(999, SEGMENT_PAGES), false).right_count, 0);
    }
}
