//! Reads one file after the other, while the server may write them.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use barmanfs_pg::page::PAGE_BYTES;
use barmanfs_pg::relation_name::{self, RelationFile};
use barmanfs_store::layout::DATA_WINDOW_BYTES;
use barmanfs_store::{Attributes, open_unlinked};

use super::changes::Known;
use super::choice::Job;
use super::place::in_seconds;
use super::readers::{Readers, State};
use crate::backup::incremental::NoIncrement;
use crate::backup::pages::{Findings, Rules, SEGMENT_PAGES, Verdict};
use crate::output::printable;
use crate::walk::{attributes, cannot_read};

/// Bytes to read at a time.
const READ_BYTES: usize = 2 * DATA_WINDOW_BYTES as usize;

/// One thread's part.
pub(super) struct Reader<'r, 'a> {
    readers: &'r Readers<'a>,
    state: &'r State,
    buffer: Vec<u8>,
    pub(super) findings: Findings,
}

/// A file that is open.
struct Open<'j> {
    job: &'j Job,
    file: File,
    attributes: Attributes,
    size_bytes: u64,
    relation: Option<RelationFile>,
    /// Whether its end was met before its size: from there on it is zero.
    has_shrunk: bool,
}

impl<'r, 'a> Reader<'r, 'a> {
    pub(super) fn new(readers: &'r Readers<'a>, state: &'r State) -> Self {
        Self {
            readers,
            state,
            buffer: vec![0; READ_BYTES],
            findings: Findings::default(),
        }
    }

    /// Stores a file, unless it is gone.
    ///
    /// # Errors
    /// When it cannot be read or stored.
    pub(super) fn file(&mut self, job: &Job) -> Result<(), NoIncrement> {
        let unreadable = |error: io::Error| cannot_read(&job.place, &error);
        let file = match open_unlinked(&job.place) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            file => file.map_err(unreadable)?,
        };
        let found = file.metadata().map_err(unreadable)?;
        let mut open = Open {
            job,
            file,
            attributes: in_seconds(attributes(&found)),
            size_bytes: found.len(),
            relation: relation_name::parse(&job.path),
            has_shrunk: false,
        };
        let known = match (self.readers.base, &open.relation) {
            (Some(base), Some(relation)) => base.known((&job.path, relation), open.size_bytes)?,
            _ => None,
        };
        match known {
            Some(known) => self.changes(&mut open, &known),
            None => self.whole(&mut open),
        }
    }

    /// Reads all of a file. What it has grown by meanwhile is in the WAL.
    fn whole(&mut self, open: &mut Open<'_>) -> Result<(), NoIncrement> {
        let tree = self.readers.tree;
        let mut sink = tree.file(
            &open.job.path,
            open.attributes,
            open.size_bytes,
            DATA_WINDOW_BYTES,
        )?;
        let mut at = 0;
        while at < open.size_bytes {
            let length = self.read(open, at, READ_BYTES)?;
            sink.write(self.buffer.get(..length).unwrap_or_default())?;
            at += length as u64;
        }
        Ok(sink.finish()?)
    }

    /// Reads the windows of a file that have changed, and takes the others from the parent.
    fn changes(&mut self, open: &mut Open<'_>, known: &Known<'_>) -> Result<(), NoIncrement> {
        let tree = self.readers.tree;
        self.readers.go_on(self.state)?;
        let mut sink = tree.composed_file(
            &open.job.path,
            open.attributes,
            open.size_bytes,
            DATA_WINDOW_BYTES,
            Some(known.base()),
            open.size_bytes,
        )?;
        let window = u64::from(DATA_WINDOW_BYTES);
        for n in 0..open.size_bytes.div_ceil(window) {
            if !known.has_changed(n) {
                continue;
            }
            let length = self.read(open, n * window, DATA_WINDOW_BYTES as usize)?;
            let bytes = self.buffer.get(..length).unwrap_or_default();
            let mut at = n * window;
            for block in bytes.chunks(PAGE_BYTES) {
                sink.block(at, block)?;
                at += PAGE_BYTES as u64;
            }
        }
        Ok(sink.finish()?)
    }

    /// Reads the next bytes into the buffer, at most `length_max` and not beyond the size that the file had. What is gone is zero.
    fn read(&mut self, open: &mut Open<'_>, at: u64, length_max: usize) -> Result<usize, NoIncrement> {
        self.readers.go_on(self.state)?;
        let left = open.size_bytes.saturating_sub(at);
        let length = usize::try_from(left).map_or(length_max, |left| left.min(length_max));
        let Some(buffer) = self.buffer.get_mut(..length) else {
            return Ok(0);
        };
        let mut filled = 0;
        if !open.has_shrunk {
            filled = read_at(&open.file, buffer, at).map_err(|error| cannot_read(&open.job.place, &error))?;
            open.has_shrunk = filled < length;
        }
        if let Some(rest) = buffer.get_mut(filled..) {
            rest.fill(0);
        }
        if let (Some(relation), true) = (&open.relation, self.readers.rules.has_checksums)
            && let Some(bytes) = buffer.get_mut(..filled)
        {
            let pages = Pages {
                file: &open.file,
                path: &open.job.path,
                rules: self.readers.rules,
                at,
                first: relation.segment.saturating_mul(SEGMENT_PAGES),
            };
            let looked = pages.look(bytes, &mut self.findings);
            looked.map_err(|error| cannot_read(&open.job.place, &error))?;
        }
        self.readers.was_read(self.state, filled as u64);
        Ok(length)
    }
}

/// Reads until the buffer is full or the file ends.
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The pages of a piece of a relation.
struct Pages<'p> {
    file: &'p File,
    path: &'p [u8],
    rules: Rules,
    /// Where the piece begins in the file.
    at: u64,
    /// The number of the file's first page in its relation.
    first: u32,
}

impl Pages<'_> {
    /// A page that the server is writing may be read in halves. So a page with a wrong checksum is read once more, as a server does
    /// when it sends a backup: then it is right, or its position shows that it was changed since the start.
    fn look(&self, bytes: &mut [u8], findings: &mut Findings) -> io::Result<()> {
        let before = self.at / PAGE_BYTES as u64;
        for (n, page) in (before..).zip(bytes.chunks_exact_mut(PAGE_BYTES)) {
            let Ok(page) = <&mut [u8; PAGE_BYTES]>::try_from(page) else {
                continue;
            };
            // A file has at most a few pages more than a segment.
            let block = self.first.wrapping_add(u32::try_from(n).unwrap_or(u32::MAX));
            let mut verdict = self.rules.judge(page, block);
            if matches!(verdict, Verdict::Wrong { .. } | Verdict::Headless) {
                match self.file.read_exact_at(page, n * PAGE_BYTES as u64) {
                    Ok(()) => verdict = self.rules.judge(page, block),
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                        page.fill(0);
                        verdict = Verdict::Nothing;
                    }
                    Err(error) => return Err(error),
                }
            }
            if verdict != Verdict::Nothing && verdict != Verdict::Right {
                findings.note(verdict, &printable(self.path), block);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use barmanfs_pg::Lsn;

    #[test]
    fn a_page_that_was_read_in_halves_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("16384");
        let mut whole = vec![0; 2 * PAGE_BYTES];
        for (at, value) in [(12, 24_u16), (14, 8000), (16, 8192), (18, 0x2004)] {
            whole[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        whole[4..8].copy_from_slice(&500_u32.to_le_bytes());
        let page: [u8; PAGE_BYTES] = whole[..PAGE_BYTES].try_into().unwrap();
        let sum = barmanfs_pg::page::checksum(&page, 0);
        whole[8..10].copy_from_slice(&sum.to_le_bytes());
        let file = |bytes: &[u8]| {
            std::fs::write(&place, bytes).unwrap();
            File::open(&place).unwrap()
        };
        let look = |file: &File, bytes: &mut [u8]| {
            let mut findings = Findings::default();
            let rules = Rules {
                start: Lsn(1000),
                newest: Lsn(u64::MAX),
                has_checksums: true,
            };
            let pages = Pages {
                file,
                path: b"base/5/16384",
                rules,
                at: 0,
                first: 0,
            };
            pages.look(bytes, &mut findings).unwrap();
            findings.wrong
        };
        let mut torn = whole.clone();
        torn[6000] = 1;
        let on_disk = file(&whole);
        let mut read = torn.clone();
        assert_eq!(look(&on_disk, &mut read), [""; 0]);
        assert_eq!(read, whole, "what was read again is stored");
        let on_disk = file(&torn);
        let mut read = torn.clone();
        let wrong = look(&on_disk, &mut read);
        assert!(
            wrong.len() == 1 && wrong[0].starts_with("base/5/16384, block 0: calculated"),
            "{wrong:?}"
        );
        let on_disk = file(b"");
        assert_eq!(look(&on_disk, &mut read), [""; 0], "it was cut off");
        assert_eq!(read, vec![0; 2 * PAGE_BYTES]);
    }
}
