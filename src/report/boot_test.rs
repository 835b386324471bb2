//! `verify SERVER BACKUP --boot --json`.

use barmanfs_catalog::{BootTest, ServerName};
use serde::Serialize;

/// A backup on which PostgreSQL was started.
#[derive(Debug, Serialize)]
pub(crate) struct TestedBackup<'a> {
    pub(crate) server: &'a ServerName,
    pub(crate) backup: String,
    #[serde(flatten)]
    pub(crate) test: &'a BootTest,
    pub(crate) details: &'a Option<String>,
}
