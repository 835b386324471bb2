//! `list-servers --json`.

use barmanfs_catalog::ServerName;
use barmanfs_pg::{SystemId, TimestampMicros};
use serde::Serialize;

/// One server, of the configuration or left in the repository.
#[derive(Debug, Serialize)]
pub(crate) struct ListedServer {
    pub(crate) name: ServerName,
    pub(crate) description: Option<String>,
    pub(crate) configured: bool,
    pub(crate) active: bool,
    /// Its configuration has errors.
    pub(crate) disabled: bool,
    /// Its backups and WAL come from another site.
    pub(crate) passive: bool,
    pub(crate) system_id: Option<SystemId>,
    pub(crate) backups: usize,
    pub(crate) last_backup_time: Option<TimestampMicros>,
}
