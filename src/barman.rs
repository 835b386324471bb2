//! Barman's command line and output, so that what was written for Barman keeps working: cron, monitoring, scripts.
//!
//! [`grammar`] translates a command line of Barman into one of ours. Everything else here prints what a command of ours
//! has found, as Barman does; [`Format`](crate::output::Format) asks for it. No command is done here. The keys of the
//! JSON are those that Barman 3.19.1 prints: `tests/barman_keys.json`.

pub(crate) mod backups;
pub(crate) mod diagnosis;
pub(crate) mod grammar;
pub(crate) mod servers;
pub(crate) mod shown;
mod units;
