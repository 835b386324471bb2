//! Sorted entries become the pages of a listing.

use std::sync::{Arc, Mutex};

use super::previous::similar_page;
use crate::depositor::{ContentClass, Deposit, Depositor};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::listing::{DirectoryRef, PageRef, encode_page_header, ends_page};
use crate::sync::lock;

/// Pages being stored: a page's place is known when it is put, its chunk id when the put is answered.
#[derive(Debug, Default)]
pub(super) struct Run(Mutex<Pages>);

#[derive(Debug, Default)]
struct Pages {
    pages: Vec<(Vec<u8>, Option<ChunkId>)>,
    entries: u64,
}

impl Run {
    /// The listing, once the depositor has answered everything.
    pub(super) fn directory(&self) -> Result<DirectoryRef> {
        let run = lock(&self.0);
        let page = |(first, chunk): &(Vec<u8>, Option<ChunkId>)| {
            Some(PageRef {
                first: first.clone(),
                chunk: (*chunk)?,
            })
        };
        let pages = run.pages.iter().map(page).collect::<Option<Vec<_>>>();
        let pages =
            pages.ok_or_else(|| Error::Invalid("A listing was put, but not all of its pages".to_owned()))?;
        Ok(DirectoryRef {
            pages,
            entries: run.entries,
        })
    }

    /// Adds a page's place.
    fn push(&self, first: Vec<u8>, entries: u32) -> usize {
        let mut run = lock(&self.0);
        run.pages.push((first, None));
        run.entries += u64::from(entries);
        run.pages.len() - 1
    }

    fn set(&self, page: usize, chunk: Option<ChunkId>) {
        let mut run = lock(&self.0);
        if let Some(slot) = run.pages.get_mut(page) {
            slot.1 = chunk;
        }
    }
}

/// Cuts sorted entries into pages and puts them, without waiting for the answers.
pub(super) struct RunWriter<'a> {
    depositor: &'a Depositor,
    previous: Option<&'a DirectoryRef>,
    run: Arc<Run>,
    first: Vec<u8>,
    /// The page, whose header is filled in at its end.
    page: Vec<u8>,
    entries: u32,
}

impl<'a> RunWriter<'a> {
    /// Begins to write `run`; `previous` is the directory's listing in the previous tree.
    pub(super) fn new(depositor: &'a Depositor, previous: Option<&'a DirectoryRef>, run: Arc<Run>) -> Self {
        Self {
            depositor,
            previous,
            run,
            first: Vec::new(),
            page: encode_page_header(0).to_vec(),
            entries: 0,
        }
    }

    /// Adds the next entry in the order of names.
    pub(super) fn push(&mut self, name: &[u8], entry: &[u8]) -> Result<()> {
        if ends_page(self.page.len(), name, entry.len()) {
            self.put_page()?;
        }
        if self.entries == 0 {
            self.first = name.to_vec();
        }
        self.page.extend_from_slice(entry);
        self.entries += 1;
        Ok(())
    }

    /// Puts what is left.
    pub(super) fn finish(mut self) -> Result<()> {
        if self.entries > 0 { self.put_page() } else { Ok(()) }
    }

    fn put_page(&mut self) -> Result<()> {
        let header = encode_page_header(self.entries);
        let empty = encode_page_header(0).to_vec();
        let mut page = std::mem::replace(&mut self.page, empty);
        page.iter_mut()
            .zip(header)
            .for_each(|(byte, field)| *byte = field);
        let similar = self
            .previous
            .and_then(|previous| similar_page(previous, &self.first));
        let run = Arc::clone(&self.run);
        let number = run.push(std::mem::take(&mut self.first), std::mem::take(&mut self.entries));
        let done = move |outcome: Result<Deposit>| {
            // An error is kept by the depositor; the page stays without a chunk.
            run.set(number, outcome.ok().and_then(|deposit| deposit.chunk));
        };
        self.depositor
            .put(page, similar, ContentClass::Map, Box::new(done))
    }
}
