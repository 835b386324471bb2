//! Backups that another tool has taken, and that were copied into the repository.

use barmanfs_pg::TimestampMicros;
use serde::{Deserialize, Serialize};

use crate::names::BackupId;

/// Where an imported backup comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The tool that took it, with its version if that is known: `Barman 3.19.1`.
    pub tool: String,
    /// What the tool calls it.
    pub name: String,
    /// When it was imported.
    pub imported_at: TimestampMicros,
    /// Whether its server was shut down: then it has no label, and its recovery begins at the shutdown checkpoint.
    #[serde(default)]
    pub shut_down: bool,
}

/// What is known of a backup that is about to be imported, beyond what is known of any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The id it should have; if that is taken, it gets the next free second.
    pub id: BackupId,
    /// The tool that took it.
    pub tool: String,
    /// What the tool calls it.
    pub name: String,
    /// When it began.
    pub begin_time: TimestampMicros,
    /// When it ended.
    pub end_time: TimestampMicros,
    /// Whether its server was shut down.
    pub shut_down: bool,
}
