//! A PostgreSQL client for backups: one blocking connection, replication commands, base backups.
//!
//! Connection strings, variables and files have the same meaning as in libpq ([`Conninfo`]). Everything blocks. A
//! backup has a thread of its own anyway, and [`Interrupter`] ends a wait from outside.
//!
//! Invariants:
//! - No password or key is ever shown: not in errors, not in `Debug`, not in logs.
//! - Every wait ends: connecting, logging in, and a query with its answer have a deadline. If a stream falls silent, a
//!   second connection checks the server.
//! - Data from a server is checked before use, and never determines how much memory is allocated: messages, results and
//!   headers have limits, and backup data is lent out of one buffer.

mod auth;
mod base_backup;
mod base_backup_command;
mod connect;
mod connection;
mod conninfo;
mod environment;
mod error;
mod refusal;
mod replication;
mod result_set;
mod silence;
mod stream;
mod tar;
mod tls;
mod upload;
mod wal_read;
mod wal_stream;
mod wire;

#[cfg(test)]
mod server_tests;

pub(crate) use base_backup::{Archive, BackupStart, BaseBackupResult, BaseBackupSink, base_backup};
pub(crate) use base_backup_command::{BaseBackupOptions, FIRST_INCREMENTAL_MAJOR, MAX_RATE_KIB};
pub(crate) use connection::{Connection, Mode};
pub(crate) use conninfo::Conninfo;
pub(crate) use environment::Environment;
pub(crate) use error::{Error, SinkError};
pub(crate) use replication::{SlotPosition, is_slot_name};
pub(crate) use result_set::ResultSet;
pub(crate) use stream::Interrupter;
pub(crate) use tar::{EndBlocks, TarEntry, TarKind, TarReader, TarSink};
pub(crate) use upload::{UploadError, upload_manifest};
pub(crate) use wal_read::WalPiece;
pub(crate) use wal_stream::{NextTimeline, Replication, StreamEvent, StreamPosition, WalStream};
