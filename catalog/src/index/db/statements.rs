//! For tests: the statements that a thread runs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;
use rusqlite::trace::{TraceEvent, TraceEventCodes};

thread_local! {
    static SEEN: RefCell<Option<BTreeMap<String, usize>>> = const { RefCell::new(None) };
}

/// Lets a connection note its statements in the thread that runs them, while that wants to know.
pub(super) fn note(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.trace_v2(
        TraceEventCodes::SQLITE_TRACE_STMT,
        Some(|event: TraceEvent<'_>| {
            if let TraceEvent::Stmt(_, sql) = event {
                SEEN.with_borrow_mut(|seen| {
                    if let Some(seen) = seen {
                        *seen.entry(sql.to_owned()).or_default() += 1;
                    }
                });
            }
        }),
    )
}

/// The statements that some work runs in this thread.
pub(crate) fn of(work: impl FnOnce()) -> BTreeSet<String> {
    counted(work).into_keys().collect()
}

/// The same, and how often each runs.
pub(crate) fn counted(work: impl FnOnce()) -> BTreeMap<String, usize> {
    SEEN.set(Some(BTreeMap::new()));
    work();
    SEEN.take().unwrap_or_default()
}
