//! `list-processes --json` and `terminate-process --json`.

use serde::Serialize;

use crate::processes::Process;

/// A process that is at work.
#[derive(Debug, Serialize)]
pub(crate) struct ListedProcess {
    pub(crate) task: &'static str,
    /// Its process number; null if it runs on another host or as another user.
    pub(crate) process: Option<u32>,
    /// What it says of itself.
    pub(crate) holder: String,
}

impl ListedProcess {
    pub(crate) fn new(process: &Process) -> Self {
        Self {
            task: process.task,
            process: process.process,
            holder: process.description.clone(),
        }
    }
}
