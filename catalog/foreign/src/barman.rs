//! What Barman writes: the files that describe its backups, and the names in its directories.
//!
//! - [`backup_info`]: `backup.info`, one `key=value` for each line, some of them Python literals ([`literal`]).
//! - [`identity`]: `identity.json`, which says of which cluster the backups are.
//! - [`snapshots`]: the snapshots of disks that hold a backup's data.
//! - [`xlog_db`]: the list of archived WAL files.
//! - [`names`]: backups, archives of tar, exported backups, WAL files.

pub mod backup_info;
pub mod identity;
pub mod literal;
pub mod names;
pub mod snapshots;
pub mod xlog_db;

/// A file that is not as Barman writes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}, line {line}: {reason}")]
pub struct BadFile {
    /// The kind of file: `backup.info`.
    pub file: &'static str,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub reason: String,
}

/// A text from a source as messages show it: printable, and not long.
fn shown(text: &str) -> String {
    const SHOWN_CHARACTERS: usize = 80;
    text.escape_debug().take(SHOWN_CHARACTERS).collect()
}
