//! Which runs a look-up can leave out: filters in memory, with a byte for each entry.
//!
//! A look-up that reads a page of each run takes a few microseconds for each, and there are up to thirty. So a process that looks
//! up many chunks makes filters of runs while it does so, the smallest run first, until they take [`BYTES_MAX`] together. It
//! reads as many pages for them as a part of those that its look-ups had to read for want of a filter, so no look-up waits long, and
//! a process with few look-ups makes none. A filter says of about 3 in 100 keys wrongly that its run may have them, and never of a
//! key that the run has that it has not. SQL asks with the function `may_have(token, key)`, which each connection to the catalog
//! has.
//!
//! Other processes merge runs meanwhile, and a connection may still see an earlier state of the catalog. A filter is right in all
//! of them:
//!
//! - It belongs to a run by the run's *token*, a random number that no other run has, in whatever file the catalog is.
//! - It is made of runs that are complete. From then on, entries only leave a run.
//! - It answers only for a range of heads. Each page in it was read before a merge took entries from it. So whatever the run has
//!   there in any state of the catalog is in the filter.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use barmanfs_store::sync::lock;
use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, params};

use crate::error::Result;
use crate::index::runs::{END, Entry, Key, entries, page_key};

/// The memory of all filters of a process: those of 64 million entries.
const BYTES_MAX: usize = 64 << 20;

/// Pages that look-ups read before the first filter is made: those of a few hundred look-ups.
const PATIENCE: usize = 4096;

/// One page is read for a filter for so many that look-ups read.
const SHARE: usize = 4;

/// Pages that are read for filters at a time.
const STEP_MIN: usize = 16;
const STEP_MAX: usize = 1024;

/// A block is a line of the processor's cache; a key has all its bits in one.
const BLOCK_WORDS: usize = 8;
const BLOCK_BYTES: usize = BLOCK_WORDS * size_of::<u64>();
const BITS_OF_A_KEY: u32 = 5;

/// Spreads the bits of keys that differ in few.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// The filters of one process.
#[derive(Default)]
pub(crate) struct Filters {
    made: Mutex<Arc<Made>>,
    /// What each connection uses: the same. So a filter that is forgotten is in nobody's memory.
    used: Mutex<Vec<Weak<Mutex<Arc<Made>>>>>,
    /// Pages that look-ups have read for want of a filter and that no reading for a filter has answered yet.
    wanted: AtomicUsize,
    making: Mutex<()>,
    /// How often a run was not left out.
    #[cfg(test)]
    passed: AtomicUsize,
}

/// Filters by the tokens of their runs.
type Made = HashMap<i64, Arc<Filter>>;

impl Filters {
    /// Gives a connection the function.
    pub(crate) fn teach(self: &Arc<Self>, connection: &Connection) -> Result<()> {
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
        let (filters, used) = (Arc::clone(self), self.for_a_connection());
        connection.create_scalar_function("may_have", 2, flags, move |arguments| {
            let key: i64 = arguments.get(1)?;
            // No other connection locks it, so nobody waits here but for a change.
            let used = lock(&used);
            let filter = used.get(&arguments.get(0)?);
            let answer = filter.and_then(|filter| filter.answer(Key(key.cast_unsigned())));
            if answer.is_none() {
                filters.wanted.fetch_add(1, Ordering::Relaxed);
            }
            let passes = answer.unwrap_or(true);
            #[cfg(test)]
            filters.passed.fetch_add(usize::from(passes), Ordering::Relaxed);
            Ok(passes)
        })?;
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn passed(&self) -> usize {
        self.passed.load(Ordering::Relaxed)
    }

    fn for_a_connection(&self) -> Arc<Mutex<Arc<Made>>> {
        let mut all = lock(&self.used);
        let used = Arc::new(Mutex::new(Arc::clone(&lock(&self.made))));
        all.push(Arc::downgrade(&used));
        used
    }

    fn set(&self, made: Made) {
        let made = Arc::new(made);
        *lock(&self.made) = Arc::clone(&made);
        lock(&self.used).retain(|used| match used.upgrade() {
            Some(used) => {
                *lock(&used) = Arc::clone(&made);
                true
            }
            None => false,
        });
    }

    /// Goes on with the filters that look-ups have needed. The connection must not be in a transaction.
    pub(crate) fn go_on(&self, db: &Connection) -> Result<()> {
        let due = self.wanted.load(Ordering::Relaxed).saturating_sub(PATIENCE) / SHARE;
        if due < STEP_MIN {
            return Ok(());
        }
        // Another thread does it.
        let Ok(_making) = self.making.try_lock() else {
            return Ok(());
        };
        let due = due.min(STEP_MAX);
        let view = db.unchecked_transaction()?;
        match self.make(&view, due, BYTES_MAX)? == due {
            true => self.wanted.fetch_sub(due * SHARE, Ordering::Relaxed),
            // The others have no room, or are being made by a merge.
            false => self.wanted.swap(PATIENCE, Ordering::Relaxed),
        };
        Ok(())
    }

    /// Reads so many pages for filters of the smallest runs, as far as they have room in `bytes_max`, and forgets all others.
    /// Returns how many it has read.
    pub(crate) fn make(&self, db: &Connection, pages: usize, bytes_max: usize) -> Result<usize> {
        let before = Arc::clone(&lock(&self.made));
        let (mut made, mut room, mut left) = (Made::new(), bytes_max, pages);
        for run in Run::complete(db)? {
            let known = before.get(&run.token);
            let bytes = known.map_or_else(|| bytes_for(run.entries), |filter| filter.bytes());
            let Some(rest) = room.checked_sub(bytes) else {
                break;
            };
            let filter = match known {
                Some(filter) => Arc::clone(filter),
                None if left > 0 => Arc::new(Filter::of(&run)),
                None => continue,
            };
            room = rest;
            left -= filter.read(db, &run, left)?;
            made.insert(run.token, filter);
        }
        self.set(made);
        Ok(pages - left)
    }
}

impl fmt::Debug for Filters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filters").finish_non_exhaustive()
    }
}

/// A run that is complete. A merge may be taking entries from it.
struct Run {
    run: i64,
    token: i64,
    entries: usize,
    /// All entries with a head before this one may be gone.
    taken: i64,
}

impl Run {
    /// All of them, the smallest first.
    fn complete(db: &Connection) -> Result<Vec<Self>> {
        let mut all = db.prepare_cached(
            "SELECT r.run, r.token, r.entries,
                 coalesce((SELECT o.reached FROM runs o WHERE o.run = r.into_run), 0)
             FROM runs r WHERE r.reached IS NULL ORDER BY r.entries",
        )?;
        let rows = all.query_map([], |row| {
            Ok(Self {
                run: row.get(0)?,
                token: row.get(1)?,
                entries: row.get(2)?,
                taken: row.get(3)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

/// A filter of one run.
struct Filter {
    words: Box<[AtomicU64]>,
    /// The heads for which it answers: from this one to the one before `to`, which moves on.
    from: i64,
    to: AtomicI64,
}

fn bytes_for(entries: usize) -> usize {
    entries.div_ceil(BLOCK_BYTES).max(1) * BLOCK_BYTES
}

impl Filter {
    /// One that does not answer yet.
    fn of(run: &Run) -> Self {
        let words = bytes_for(run.entries) / size_of::<u64>();
        Self {
            words: std::iter::repeat_with(AtomicU64::default).take(words).collect(),
            from: run.taken,
            to: AtomicI64::new(run.taken),
        }
    }

    fn bytes(&self) -> usize {
        self.words.len() * size_of::<u64>()
    }

    /// Whether the run may have this key; `None` for one outside its range.
    fn answer(&self, key: Key) -> Option<bool> {
        // A thread that sees `to` there also sees what was added before it moved.
        let is_known = (self.from..self.to.load(Ordering::Acquire)).contains(&key.head());
        is_known.then(|| {
            self.bits(key)
                .all(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
        })
    }

    /// The bits of a key, all of one block.
    fn bits(&self, key: Key) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let blocks = (self.words.len() / BLOCK_WORDS) as u64;
        // The upper half of the product, as a part of all blocks.
        let block = ((key.0.wrapping_mul(MIX) >> 32) * blocks) >> 32;
        let block = self.words.get(block as usize * BLOCK_WORDS..).unwrap_or_default();
        let mut rest = key.0.rotate_left(32).wrapping_mul(MIX);
        (0..BITS_OF_A_KEY).filter_map(move |_| {
            let (word, bit) = (rest >> 61, (rest >> 55) & 63);
            rest <<= 9;
            block.get(word as usize).map(|word| (word, 1 << bit))
        })
    }

    /// Adds at most so many of the run's pages; returns how many.
    fn read(&self, db: &Connection, run: &Run, pages_max: usize) -> Result<usize> {
        let at = self.to.load(Ordering::Relaxed);
        if pages_max == 0 || at == END || at < run.taken {
            return Ok(0);
        }
        let mut pages = db.prepare_cached(
            "SELECT first, entries FROM run_pages WHERE first >= coalesce(
                 (SELECT max(q.first) FROM run_pages q WHERE q.first BETWEEN ?1 AND ?2), ?1)
             AND first < ?3 ORDER BY first LIMIT ?4",
        )?;
        let (begin, end) = (page_key(run.run, 0), page_key(run.run + 1, 0));
        let mut rows = pages.query(params![begin, page_key(run.run, at), end, pages_max + 1])?;
        let (mut to, mut read) = (END, 0);
        while let Some(row) = rows.next()? {
            if read == pages_max {
                to = row.get::<_, i64>(0)? - begin;
                break;
            }
            for entry in entries(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?)? {
                self.add(Entry(*entry).key());
            }
            read += 1;
        }
        self.to.store(to, Ordering::Release);
        Ok(read)
    }

    fn add(&self, key: Key) {
        for (word, bit) in self.bits(key) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }
}
