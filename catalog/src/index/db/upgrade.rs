//! The tables of the catalog: making them, and making them again from those of an earlier release.
//!
//! An upgrade is one transaction. A kill leaves the catalog as it was, and the next process begins again. It may take minutes
//! where there are many millions of chunks; who needs the catalog meanwhile waits.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::error::{Error, Result};
use crate::index::convert;
use crate::index::records::{self, Derive};
use crate::index::schema;

/// How long an upgrade by another process is waited for: a thousand million chunks.
const WAIT_MAX: Duration = Duration::from_secs(4 * 3600);

/// Creates the tables in an empty file.
pub(crate) fn create_tables(connection: &Connection) -> Result<()> {
    connection.pragma_update(None, "application_id", schema::APPLICATION_ID)?;
    let (create, places, meanings) = (schema::CREATE, schema::CREATE_PLACES, schema::CREATE_MEANINGS);
    connection.execute_batch(&format!("BEGIN; {create} {places} {meanings} COMMIT;"))?;
    connection.pragma_update(None, "user_version", schema::LAYOUT)?;
    Ok(())
}

/// Upgrades a catalog of an earlier layout by making again the places of chunks and what its records mean. Other processes
/// see either the complete upgrade or nothing of it. After an error the connection must be closed, which ends the transaction.
pub(super) fn upgrade(connection: &Connection, derive: Derive) -> Result<()> {
    begin(connection, WAIT_MAX)?;
    // Another process may have been faster.
    if layout(connection)? != schema::LAYOUT {
        tracing::info!("Making the catalog's index again, because this release keeps more in it");
        make_again(connection, derive)?;
    }
    Ok(connection.execute_batch("COMMIT")?)
}

fn make_again(transaction: &Connection, derive: Derive) -> Result<()> {
    convert::places_of_chunks(transaction)?;
    for table in schema::MEANINGS {
        transaction.execute_batch(&format!("DROP TABLE IF EXISTS {table}"))?;
    }
    transaction.execute_batch(schema::CREATE_MEANINGS)?;
    records::derive_all(transaction, derive, &mut |_, error| {
        tracing::warn!("A record cannot be read: {error}");
        Ok(())
    })?;
    transaction.pragma_update(None, "user_version", schema::LAYOUT)?;
    Ok(())
}

/// Begins to write. Only an upgrade by another process takes longer than a connection waits, so that is waited for.
fn begin(connection: &Connection, wait_max: Duration) -> Result<()> {
    let began = Instant::now();
    loop {
        match connection.execute_batch("BEGIN IMMEDIATE").map_err(Error::from) {
            Err(Error::CatalogBusy { .. }) if began.elapsed() < wait_max => {
                tracing::info!(
                    "Waiting for another process, which converts the catalog to this release's layout"
                );
            }
            begun => return begun,
        }
    }
}

/// The layout of a catalog.
pub(super) fn layout(connection: &Connection) -> Result<i64> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::repository::temporary;

    #[test]
    fn an_upgrade_by_another_process_is_waited_for() {
        let (_directory, repository) = temporary();
        let catalog = repository.path().join(crate::home::CATALOG);
        let [upgrades, waits] = [(); 2].map(|()| Connection::open(&catalog).unwrap());
        waits.busy_timeout(Duration::from_millis(1)).unwrap();
        upgrades.execute_batch("BEGIN IMMEDIATE").unwrap();
        let error = begin(&waits, Duration::ZERO).unwrap_err();
        assert!(matches!(error, Error::CatalogBusy { .. }), "{error}");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || begin(&waits, WAIT_MAX));
            upgrades.execute_batch("COMMIT").unwrap();
            waiting.join().unwrap().unwrap();
        });
    }
}
