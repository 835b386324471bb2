//! Gives space in the catalog's file that is free back to the file system.

use barmanfs_store::sync::lock;
use rusqlite::Connection;

use crate::error::Result;
use crate::index::db::Db;

/// With this value of `auto_vacuum`, free pages can be given back to the file system a few at a time.
const INCREMENTAL: i64 = 2;

/// The file is made smaller when one in so many of its pages is free. Fewer are soon used again.
const FREE_PAGES_SHARE: i64 = 10;

/// Number of pages that one transaction gives back: it moves as many others, a MiB, and no writer waits longer for that
/// than for a large pack.
const PAGES_GIVEN_BACK: i64 = 256;

/// The largest catalog of an earlier release that is copied as a whole to make it smaller. Writers wait meanwhile: far less
/// than [`BUSY_TIMEOUT`].
const COPIED_BYTES_MAX: i64 = 128 << 20;

/// Lets [`Db::shrink`] work in parts, if the file has nothing in it yet.
pub(crate) fn allow_shrinking(connection: &Connection) -> Result<()> {
    Ok(connection.pragma_update(None, "auto_vacuum", INCREMENTAL)?)
}

impl Db {
    /// Gives the pages that are free back to the file system, if they are many. Others may read and write meanwhile.
    ///
    /// # Errors
    /// When there is no space for the pages that have to be moved. Nothing is lost then.
    pub(crate) fn shrink(&self) -> Result<()> {
        let (pages, free, page_bytes, mode) = self.read(|db| {
            let number = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
            Ok((
                number("page_count")?,
                number("freelist_count")?,
                number("page_size")?,
                number("auto_vacuum")?,
            ))
        })?;
        if free.saturating_mul(FREE_PAGES_SHARE) <= pages {
            return Ok(());
        }
        if mode != INCREMENTAL {
            let copied_bytes = pages.saturating_sub(free).saturating_mul(page_bytes);
            return match pages.saturating_mul(page_bytes) <= COPIED_BYTES_MAX
                && self.has_room_for(copied_bytes)
            {
                true => self.copy_smaller(),
                false => Ok(()),
            };
        }
        for _ in 0..free / PAGES_GIVEN_BACK + 1 {
            let some = format!("PRAGMA incremental_vacuum({PAGES_GIVEN_BACK})");
            self.write(|transaction| {
                // Each step gives one page back.
                let mut statement = transaction.prepare(&some)?;
                let mut steps = statement.query([])?;
                while steps.next()?.is_some() {}
                Ok(())
            })?;
        }
        if let Some((_, link)) = lock(&self.writer).as_ref() {
            Self::empty_wal(&link.connection);
        }
        Ok(())
    }

    /// Whether the file system has room for a copy of so many bytes in SQLite's WAL, and another one beside it.
    fn has_room_for(&self, bytes: i64) -> bool {
        let free = rustix::fs::statvfs(self.path.as_path());
        let free = free.map(|system| system.f_bavail.saturating_mul(system.f_frsize));
        let needed = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(4);
        free.is_ok_and(|free| free >= needed)
    }

    /// The same for a catalog that an earlier release made: from then on, it is made smaller in parts.
    fn copy_smaller(&self) -> Result<()> {
        let copy = || -> Result<()> {
            let link = self.connect()?;
            link.connection.pragma_update(None, "auto_vacuum", INCREMENTAL)?;
            let copied = link.connection.execute_batch("VACUUM");
            if !link.alone {
                Self::empty_wal(&link.connection);
            }
            Ok(copied?)
        };
        copy().map_err(|error| error.in_catalog(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::index::repository::temporary;

    /// Rows that take a few hundred pages, of which most go again.
    fn grow_and_empty(db: &Db) {
        db.write(|transaction| {
            Ok(transaction.execute_batch(
                "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 20000)
                 INSERT INTO records (id, kind, payload) SELECT randomblob(16), 1, zeroblob(200) FROM n;
                 DELETE FROM records WHERE seq % 100 <> 0",
            )?)
        })
        .unwrap();
    }

    fn pages(db: &Db) -> (i64, i64) {
        let number =
            |name| move |db: &Connection| Ok(db.pragma_query_value(None, name, |row| row.get::<_, i64>(0))?);
        (
            db.read(number("page_count")).unwrap(),
            db.read(number("freelist_count")).unwrap(),
        )
    }

    fn assert_is_smaller(db: &Db) {
        let (before, free) = pages(db);
        assert!(
            before > 1000 && free > before / 2,
            "{free} of {before} pages are free"
        );
        db.shrink().unwrap();
        let (after, free) = pages(db);
        assert!(
            after * 2 < before && free == 0,
            "{after} of {before} pages, {free} free"
        );
        let bytes = fs::metadata(&db.path).unwrap().len();
        assert_eq!(bytes, u64::try_from(after).unwrap() * 4096);
        assert_eq!(db.faults().unwrap(), Vec::<String>::new());
        let rows: i64 = db
            .read(|db| Ok(db.query_row("SELECT count(*) FROM records", [], |row| row.get(0))?))
            .unwrap();
        assert_eq!(rows, 200);
    }

    #[test]
    fn free_pages_are_given_back() {
        let (_directory, repository) = temporary();
        grow_and_empty(&repository.db);
        assert_is_smaller(&repository.db);
    }

    #[test]
    fn a_catalog_of_an_earlier_release_becomes_smaller_and_then_gives_back_in_parts() {
        let (_directory, repository) = temporary();
        let db = &repository.db;
        // As it was before they were made to give pages back.
        let link = db.connect().unwrap();
        link.connection
            .execute_batch("PRAGMA auto_vacuum = NONE; VACUUM")
            .unwrap();
        drop(link);
        grow_and_empty(db);
        assert_is_smaller(db);
        db.write(|transaction| Ok(transaction.execute_batch("DELETE FROM records")?))
            .unwrap();
        grow_and_empty(db);
        assert_is_smaller(db);
    }

    #[test]
    fn few_free_pages_stay() {
        let (_directory, repository) = temporary();
        let before = pages(&repository.db);
        repository.db.shrink().unwrap();
        assert_eq!(pages(&repository.db), before);
    }
}
