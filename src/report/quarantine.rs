//! `quarantine --json`.

use barmanfs_catalog::{Comparison, QuarantinedWal, ServerName};
use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::{Lsn, TimestampMicros};
use serde::Serialize;

/// A file in quarantine.
#[derive(Debug, Serialize)]
pub(crate) struct QuarantinedFile<'a> {
    name: WalName,
    id: String,
    put_aside_at: TimestampMicros,
    origin: &'a str,
    size_bytes: u64,
    crc32c: String,
    reason: &'a str,
}

impl<'a> QuarantinedFile<'a> {
    /// The facts about a file that are known without reading it.
    pub(crate) fn new(kept: &'a QuarantinedWal) -> Self {
        Self {
            name: kept.file.name,
            id: kept.id(),
            put_aside_at: kept.file.archived_at,
            origin: &kept.file.origin,
            size_bytes: kept.file.size_bytes,
            crc32c: format!("{:08x}", kept.file.map.crc32c),
            reason: &kept.reason,
        }
    }
}

/// A file in quarantine, compared with the archive.
#[derive(Debug, Serialize)]
pub(crate) struct ComparedFile<'a> {
    #[serde(flatten)]
    pub(crate) file: QuarantinedFile<'a>,
    pub(crate) comparison: ComparisonReport<'a>,
    /// Why it cannot be archived, if it cannot.
    pub(crate) fault: &'a Option<String>,
}

/// A [`Comparison`] with the same keys, whatever it found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ComparisonReport<'a> {
    archived: &'static str,
    offset: Option<u64>,
    lsn: Option<Lsn>,
    reason: Option<&'a str>,
}

impl<'a> From<&'a Comparison> for ComparisonReport<'a> {
    fn from(comparison: &'a Comparison) -> Self {
        let found = |archived| Self {
            archived,
            ..Self::default()
        };
        match comparison {
            Comparison::None => found("none"),
            Comparison::Same => found("same"),
            Comparison::Differs { offset, lsn } => Self {
                offset: Some(*offset),
                lsn: *lsn,
                ..found("differs")
            },
            Comparison::Unreadable { reason } => Self {
                reason: Some(reason),
                ..found("unreadable")
            },
        }
    }
}

/// A file that was released, deleted, or taken out of the archive.
#[derive(Debug, Serialize)]
pub(crate) struct MovedFile<'a> {
    pub(crate) server: &'a ServerName,
    pub(crate) name: WalName,
    pub(crate) done: &'static str,
}
