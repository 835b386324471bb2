//! Maintenance of a repository: frees space, checks what is stored, rebuilds the catalog, computes
//! statistics and growth, and remembers what runs by itself.

pub(crate) mod cached;
pub(crate) mod copy;
pub(crate) mod cron;
pub(crate) mod growth;
pub(crate) mod keys;
pub(crate) mod processes;
pub(crate) mod rebuild;
pub(crate) mod stats;
pub(crate) mod surveyed;
pub(crate) mod sweep;
pub(crate) mod sync;
pub(crate) mod verify;

#[cfg(test)]
mod growing;
#[cfg(test)]
mod short_commands;
#[cfg(test)]
mod tests;
