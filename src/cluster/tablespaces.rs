//! The names of a server's tablespaces, which a base backup does not have.

use std::collections::HashMap;

use super::Purpose;
use crate::config::ServerConfig;
use crate::error::Error;

const QUERY: &str = "SELECT oid, spcname FROM pg_catalog.pg_tablespace";

/// The names by OID. Empty where the server cannot be queried in SQL: names are for people, and no backup fails for them.
pub(crate) fn tablespace_names(server: &ServerConfig) -> HashMap<u32, String> {
    ask(server).unwrap_or_else(|error| {
        tracing::debug!(
            "Server {}: the names of its tablespaces are unknown: {error}",
            server.name
        );
        HashMap::new()
    })
}

fn ask(server: &ServerConfig) -> Result<HashMap<u32, String>, Error> {
    let mut connection = super::look(server, Purpose::Sql)?;
    let results = connection.simple_query(QUERY)?;
    let mut names = HashMap::new();
    for rows in &results {
        for row in 0..rows.len() {
            let oid = rows.text(row, "oid").and_then(|oid| oid.parse().ok());
            if let (Some(oid), Some(name)) = (oid, rows.text(row, "spcname")) {
                names.insert(oid, name.to_owned());
            }
        }
    }
    Ok(names)
}
