//! `copy --json`.

use barmanfs_catalog::RebuildReport;
use serde::Serialize;

use crate::copy::Copied;

/// What a copy has done, or would do.
#[derive(Debug, Serialize)]
pub(crate) struct Copy {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) dry_run: bool,
    #[serde(flatten)]
    pub(crate) copied: Copied,
    /// The catalog of the directory that became a repository; null where none was made.
    pub(crate) catalog: Option<RebuildReport>,
}
