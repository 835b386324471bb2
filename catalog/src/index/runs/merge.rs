//! Merges of runs, in steps that a kill may end anywhere.
//!
//! A merge moves entries from some runs, the *inputs*, into a new run, in the order of their keys. Each step is a part of a
//! transaction: it moves the entries of one range of heads, and says up to where in the new run's row. Nothing else has to be
//! remembered, since a look-up reads all runs. What was moved stays in an input only where its page has other entries, so
//! a merge takes no space of its own. Entries of packs that are gone are left out.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};

use crate::error::Result;
use crate::index::db::Db;
use crate::index::runs::{
    END, Entry, FAN, Key, PAGE_ENTRIES, entries, free_number, level_of, page_key, write_pages,
};

/// Entries that are moved for each one that comes: more than there are levels, so that merges keep up.
const MOVED_FOR_ONE: usize = 16;

/// A pack of fewer chunks moves nothing, except one of [`SMALL_TURN`]: a step rewrites pages at its borders, whatever its
/// size.
const SMALL: usize = 256;
const SMALL_TURN: u64 = 8;
const SMALL_STEP: usize = SMALL_TURN as usize * SMALL;

/// Entries that one transaction moves when nothing else is to be done in it: a MiB.
const STEP: usize = 1 << 16;

/// Dead entries that are not worth a merge of all runs: one part in so many of all, or a megabyte.
const DEAD_SHARE: i64 = 5;
const DEAD_MIN: i64 = 1 << 16;

/// Continues merges after a pack with so many chunks was entered, `one` among them.
pub(super) fn go_on(db: &Connection, one: Key, added: usize) -> Result<()> {
    let mut left = match added {
        // Keys are random.
        0..SMALL if !one.0.is_multiple_of(SMALL_TURN) => return Ok(()),
        0..SMALL => SMALL_STEP,
        _ => added.saturating_mul(MOVED_FOR_ONE),
    };
    while left > 0 {
        let Some(moved) = step(db, left)? else { break };
        left = left.saturating_sub(moved);
    }
    Ok(())
}

/// Merges all runs, if many of their entries are of packs that are gone. Others may read and write meanwhile.
pub(crate) fn compact(db: &Db) -> Result<()> {
    let is_worthwhile = db.read(|db| {
        let count = |query| db.query_row(query, [], |row| row.get::<_, i64>(0));
        let all = count("SELECT coalesce(sum(entries), 0) FROM runs")?;
        let alive = count("SELECT coalesce(sum(chunks), 0) FROM packs")?;
        let dead = all.saturating_sub(alive);
        Ok(dead > DEAD_MIN.min(alive) && dead > all / DEAD_SHARE)
    })?;
    if !is_worthwhile {
        return Ok(());
    }
    // One that was begun may already be past the entries that are dead now.
    while db.write(|transaction| step(transaction, STEP))?.is_some() {}
    db.write(|transaction| begin_all(transaction))?;
    while db.write(|transaction| step(transaction, STEP))?.is_some() {}
    Ok(())
}

/// Begins to merge all runs, those of one level as well.
pub(crate) fn begin_all(db: &Connection) -> Result<()> {
    let (runs, all): (i64, usize) = db.query_row(
        "SELECT count(*), coalesce(sum(entries), 0) FROM runs WHERE into_run IS NULL AND reached IS NULL",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    match runs {
        0 => Ok(()),
        _ => begin(db, None, level_of(all)),
    }
}

/// Does some of a merge that was begun, or begins one. Returns the number of entries that were moved or left out, about
/// `limit`; `None` if there is nothing to merge.
pub(crate) fn step(db: &Connection, limit: usize) -> Result<Option<usize>> {
    let unfinished = Merge::unfinished(db)?;
    let full: Option<u32> = db
        .prepare_cached(
            "SELECT level FROM runs WHERE into_run IS NULL AND reached IS NULL
             GROUP BY level HAVING count(*) >= ?1 ORDER BY level LIMIT 1",
        )?
        .query_row([FAN], |row| row.get(0))
        .optional()?;
    let merge = match (unfinished, full) {
        // A long merge does not let small runs become many.
        (unfinished, Some(level)) if unfinished.as_ref().is_none_or(|merge| level + 1 < merge.level) => {
            begin(db, Some(level), level + 1)?;
            Merge::unfinished(db)?
        }
        (unfinished, _) => unfinished,
    };
    merge.map(|merge| merge.step(db, limit)).transpose()
}

/// Begins to merge the runs of a level, or of all.
fn begin(db: &Connection, level: Option<u32>, to: u32) -> Result<()> {
    let output = free_number(db)?;
    db.prepare_cached(
        "UPDATE runs SET into_run = ?1 WHERE into_run IS NULL AND reached IS NULL AND coalesce(level = ?2, 1)",
    )?
    .execute(params![output, level])?;
    db.prepare_cached(
        "INSERT INTO runs (run, level, entries, reached, token) VALUES (?1, ?2, 0, 0, random())",
    )?
    .execute(params![output, to])?;
    Ok(())
}

/// A merge that has begun.
struct Merge {
    output: i64,
    level: u32,
    /// All entries with a head before this one are moved.
    reached: i64,
}

impl Merge {
    /// The one of the lowest level: it is done soonest, and the most look-ups gain from it.
    fn unfinished(db: &Connection) -> Result<Option<Self>> {
        let mut query = db.prepare_cached(
            "SELECT run, level, reached FROM runs WHERE reached IS NOT NULL ORDER BY level, run LIMIT 1",
        )?;
        let merge = query.query_row([], |row| {
            Ok(Self {
                output: row.get(0)?,
                level: row.get(1)?,
                reached: row.get(2)?,
            })
        });
        Ok(merge.optional()?)
    }

    fn step(&self, db: &Connection, limit: usize) -> Result<usize> {
        let mut inputs = self.inputs(db)?;
        let mut alive = HashMap::new();
        let mut kept = self.last_page(db)?;
        let before = kept.len();
        let (mut taken, mut last) = (0, None);
        let reached = loop {
            let next = inputs
                .iter_mut()
                .filter_map(|input| input.next.map(|entry| (entry, input)))
                .min_by_key(|(entry, _)| *entry);
            let Some((entry, input)) = next else { break END };
            let head = entry.key().head();
            if taken >= limit && last != Some(head) {
                break head;
            }
            (taken, last) = (taken + 1, Some(head));
            if is_alive(db, &mut alive, &entry)? {
                kept.push(entry);
            }
            input.advance(db)?;
        };
        for input in &inputs {
            input.forget_what_was_taken(db)?;
        }
        write_pages(db, self.output, &kept)?;
        self.note(db, reached, kept.len() - before)?;
        Ok(taken)
    }

    fn inputs(&self, db: &Connection) -> Result<Vec<Input>> {
        let mut runs = db.prepare_cached("SELECT run FROM runs WHERE into_run = ?1 ORDER BY run")?;
        let runs: Vec<i64> = runs
            .query_map([self.output], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        runs.into_iter()
            .map(|run| Input::open(db, run, self.reached))
            .collect()
    }

    /// The entries of the new run's last page, if there is room in it: they are written again with those that follow.
    fn last_page(&self, db: &Connection) -> Result<Vec<Entry>> {
        let page = page_before(db, self.output, END)?.map(|(_, page)| page);
        Ok(page.filter(|page| page.len() < PAGE_ENTRIES).unwrap_or_default())
    }

    fn note(&self, db: &Connection, reached: i64, added: usize) -> Result<()> {
        let is_done = reached == END;
        db.prepare_cached("UPDATE runs SET entries = entries + ?2, reached = ?3 WHERE run = ?1")?
            .execute(params![self.output, added, (!is_done).then_some(reached)])?;
        if is_done {
            db.prepare_cached("DELETE FROM runs WHERE into_run = ?1")?
                .execute([self.output])?;
            db.prepare_cached("DELETE FROM runs WHERE run = ?1 AND entries = 0")?
                .execute([self.output])?;
        }
        Ok(())
    }
}

/// Whether the pack of an entry is in the catalog.
fn is_alive(db: &Connection, known: &mut HashMap<i64, bool>, entry: &Entry) -> Result<bool> {
    let pack = entry.candidate().pack;
    if let Some(is_alive) = known.get(&pack) {
        return Ok(*is_alive);
    }
    let is_alive = db
        .prepare_cached("SELECT 1 FROM packs WHERE seq = ?1")?
        .exists([pack])?;
    known.insert(pack, is_alive);
    Ok(is_alive)
}

/// The run's last page that begins before a head.
fn page_before(db: &Connection, run: i64, head: i64) -> Result<Option<(i64, Vec<Entry>)>> {
    read_page(
        db,
        "SELECT first, entries FROM run_pages WHERE first >= ?1 AND first < ?2 ORDER BY first DESC LIMIT 1",
        page_key(run, 0),
        page_key(run, 0) + head,
    )
}

/// The run's first page behind the one with this key.
fn page_after(db: &Connection, run: i64, first: i64) -> Result<Option<(i64, Vec<Entry>)>> {
    read_page(
        db,
        "SELECT first, entries FROM run_pages WHERE first > ?1 AND first < ?2 ORDER BY first LIMIT 1",
        first,
        page_key(run + 1, 0),
    )
}

fn read_page(
    db: &Connection,
    query: &'static str,
    from: i64,
    before: i64,
) -> Result<Option<(i64, Vec<Entry>)>> {
    let mut query = db.prepare_cached(query)?;
    let mut rows = query.query([from, before])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let page = entries(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?)?;
    Ok(Some((
        row.get(0)?,
        page.iter().map(|entry| Entry(*entry)).collect(),
    )))
}

/// A run whose entries are moved, at one of them.
struct Input {
    run: i64,
    /// The key of the page it is at, and its entries.
    first: i64,
    page: Vec<Entry>,
    at: usize,
    next: Option<Entry>,
    /// The pages of which all was taken.
    done: Vec<i64>,
    taken: usize,
}

impl Input {
    fn open(db: &Connection, run: i64, reached: i64) -> Result<Self> {
        let mut input = Self {
            run,
            first: page_key(run, 0) - 1,
            page: Vec::new(),
            at: 0,
            next: None,
            done: Vec::new(),
            taken: 0,
        };
        // A page that begins before may reach beyond.
        if let Some((first, page)) = page_before(db, run, reached)? {
            input.at = page.partition_point(|entry| entry.key().head() < reached);
            (input.first, input.page) = (first, page);
        }
        input.find(db)?;
        Ok(input)
    }

    fn find(&mut self, db: &Connection) -> Result<()> {
        self.next = self.page.get(self.at).copied();
        while self.next.is_none() {
            if !self.page.is_empty() {
                self.done.push(self.first);
            }
            let Some((first, page)) = page_after(db, self.run, self.first)? else {
                self.page.clear();
                break;
            };
            (self.first, self.page, self.at) = (first, page, 0);
            self.next = self.page.first().copied();
        }
        Ok(())
    }

    fn advance(&mut self, db: &Connection) -> Result<()> {
        self.at += 1;
        self.taken += 1;
        self.find(db)
    }

    fn forget_what_was_taken(&self, db: &Connection) -> Result<()> {
        let mut delete = db.prepare_cached("DELETE FROM run_pages WHERE first = ?1")?;
        for page in &self.done {
            delete.execute([page])?;
        }
        db.prepare_cached("UPDATE runs SET entries = max(entries - ?2, 0) WHERE run = ?1")?
            .execute(params![self.run, self.taken])?;
        Ok(())
    }
}
