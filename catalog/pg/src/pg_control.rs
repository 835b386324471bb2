//! `global/pg_control`: the state of a cluster's data directory.
//!
//! Offsets: `ControlFileData` in `src/include/catalog/pg_control.h` as compilers lay it out on
//! 64-bit hosts.

use serde::{Deserialize, Serialize};

use crate::bytes::{u32_at, u64_at};
use crate::{Lsn, SegmentSize, SystemId, TimelineId};

/// Offsets of the fields that are not at the same place in all versions.
#[derive(Debug, Clone, Copy)]
struct Layout {
    version: u32,
    checkpoint_time: usize,
    /// `max_connections`, which the other required settings follow.
    settings: usize,
    segment_bytes: usize,
    data_checksum_version: usize,
    /// The CRC, the last field.
    crc: usize,
}

/// The layout of PostgreSQL 13 to 18; only the end differs.
const fn before_19(version: u32, crc: usize) -> Layout {
    Layout {
        version,
        checkpoint_time: 104,
        settings: 180,
        segment_bytes: 228,
        data_checksum_version: 252,
        crc,
    }
}

/// The known versions.
const LAYOUTS: [Layout; 4] = [
    before_19(1300, 288), // PostgreSQL 13 to 16
    before_19(1700, 288),
    before_19(1800, 292),
    // The copy of the checkpoint grew, and the size of the transaction logs' pages was added.
    Layout {
        version: 1905,
        checkpoint_time: 112,
        settings: 188,
        segment_bytes: 240,
        data_checksum_version: 264,
        crc: 308,
    },
];

/// What a cluster was doing when its control file was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// Made by `initdb` and not yet started.
    StartingUp,
    /// Shut down cleanly.
    ShutDown,
    /// A standby that was shut down cleanly.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// Recovering from a crash.
    InCrashRecovery,
    /// Recovering from an archive, or a running standby.
    InArchiveRecovery,
    /// Running, or crashed while it was.
    InProduction,
}

impl ClusterState {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::StartingUp,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }
}

/// Settings of the cluster that a standby must have at least as large (`CheckRequiredParameterValues` in
/// `src/backend/access/transam/xlogrecovery.c`). The same holds for a server that replays its prepared
/// transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RequiredSettings {
    /// `max_connections`
    pub max_connections: u32,
    /// `max_worker_processes`
    pub max_worker_processes: u32,
    /// `max_wal_senders`
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`
    pub max_locks_per_transaction: u32,
}

impl RequiredSettings {
    /// The larger value of each setting.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            max_connections: self.max_connections.max(other.max_connections),
            max_worker_processes: self.max_worker_processes.max(other.max_worker_processes),
            max_wal_senders: self.max_wal_senders.max(other.max_wal_senders),
            max_prepared_transactions: self
                .max_prepared_transactions
                .max(other.max_prepared_transactions),
            max_locks_per_transaction: self
                .max_locks_per_transaction
                .max(other.max_locks_per_transaction),
        }
    }
}

/// The fields of a control file that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's identity.
    pub system_id: SystemId,
    /// Version of the control file's layout: 1300 for PostgreSQL 13 to 16, 1700, 1800, 1905 for 19.
    pub control_version: u32,
    /// Version of the system catalogs, which is part of the names of tablespace directories.
    pub catalog_version: u32,
    /// What the cluster was doing.
    pub state: ClusterState,
    /// Where the last checkpoint's record is.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint starts.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub timeline: TimelineId,
    /// Of a standby: what replay must reach for the pages on disk to be consistent. Zero for a primary.
    pub min_recovery: Lsn,
    /// When that checkpoint was made, in whole seconds since 1970.
    pub checkpoint_time: i64,
    /// Settings it ran with.
    pub required_settings: RequiredSettings,
    /// `wal_level` as a number: 0 is `minimal`, 1 `replica`, 2 `logical`.
    pub wal_level: u32,
    /// 0 where data pages have no checksums.
    pub data_checksum_version: u32,
    /// The cluster's WAL segment size.
    pub segment_size: SegmentSize,
}

/// A control file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// It ends too early.
    #[error("pg_control is cut short: it has only {bytes} bytes")]
    TooShort {
        /// Its length.
        bytes: usize,
    },
    /// Its layout is not known: a newer, much older or big-endian PostgreSQL.
    #[error(
        "pg_control has version {version}, and only 1300 (PostgreSQL 13 to 16), 1700, 1800 and 1905 are known"
    )]
    UnknownVersion {
        /// The version it gives.
        version: u32,
        /// The cluster's identity, which is at the same place in all versions.
        system_id: SystemId,
    },
    /// Its checksum is wrong.
    #[error("pg_control is damaged: its CRC is {found:08x} and should be {expected:08x}")]
    WrongCrc {
        /// The checksum of its bytes.
        expected: u32,
        /// The checksum it gives.
        found: u32,
    },
    /// A field has a value PostgreSQL never writes.
    #[error("pg_control gives {value} as {field}, which is impossible")]
    ImpossibleValue {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
}

impl ControlFile {
    /// Reads a control file and checks its CRC.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        let too_short = || ControlError::TooShort { bytes: bytes.len() };
        let u32_field = |offset| u32_at(bytes, offset).ok_or_else(too_short);
        let u64_field = |offset| u64_at(bytes, offset).ok_or_else(too_short);
        let system_id = SystemId(u64_field(0)?);
        let version = u32_field(8)?;
        let layout = LAYOUTS
            .iter()
            .find(|layout| layout.version == version)
            .ok_or(ControlError::UnknownVersion { version, system_id })?;
        let expected = crc32c::crc32c(bytes.get(..layout.crc).ok_or_else(too_short)?);
        let found = u32_field(layout.crc)?;
        if found != expected {
            return Err(ControlError::WrongCrc { expected, found });
        }
        let state = u32_field(16)?;
        let segment_bytes = u32_field(layout.segment_bytes)?;
        Ok(Self {
            system_id,
            control_version: version,
            catalog_version: u32_field(12)?,
            state: ClusterState::from_number(state).ok_or(ControlError::ImpossibleValue {
                field: "cluster state",
                value: state,
            })?,
            checkpoint: Lsn(u64_field(32)?),
            redo: Lsn(u64_field(40)?),
            timeline: TimelineId(u32_field(48)?),
            min_recovery: Lsn(u64_field(layout.settings.saturating_sub(44))?),
            checkpoint_time: u64_field(layout.checkpoint_time)?.cast_signed(),
            required_settings: RequiredSettings {
                max_connections: u32_field(layout.settings)?,
                max_worker_processes: u32_field(layout.settings + 4)?,
                max_wal_senders: u32_field(layout.settings + 8)?,
                max_prepared_transactions: u32_field(layout.settings + 12)?,
                max_locks_per_transaction: u32_field(layout.settings + 16)?,
            },
            wal_level: u32_field(layout.settings.saturating_sub(8))?,
            data_checksum_version: u32_field(layout.data_checksum_version)?,
            segment_size: SegmentSize::try_from(u64::from(segment_bytes)).map_err(|_| {
                ControlError::ImpossibleValue {
                    field: "WAL segment size",
                    value: segment_bytes,
                }
            })?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(layout: Layout) -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        let mut put =
            |offset: usize, field: &[u8]| bytes[offset..offset + field.len()].copy_from_slice(field);
        put(0, &42_u64.to_le_bytes());
        put(8, &layout.version.to_le_bytes());
        put(12, &202_209_061_u32.to_le_bytes());
        put(16, &6_u32.to_le_bytes());
        put(32, &0x90_0060_u64.to_le_bytes());
        put(40, &0x90_0028_u64.to_le_bytes());
        put(48, &2_u32.to_le_bytes());
        put(layout.settings - 44, &0x90_1000_u64.to_le_bytes());
        for (n, offset) in (layout.settings..).step_by(4).take(5).enumerate() {
            put(offset, &(n as u32 + 1).to_le_bytes());
        }
        put(layout.checkpoint_time, &1_795_880_000_u64.to_le_bytes());
        put(layout.segment_bytes, &(16_u32 << 20).to_le_bytes());
        put(layout.data_checksum_version, &1_u32.to_le_bytes());
        seal(&mut bytes, layout.crc);
        bytes
    }

    fn seal(bytes: &mut [u8], crc_offset: usize) {
        let crc = crc32c::crc32c(&bytes[..crc_offset]);
        bytes[crc_offset..crc_offset + 4].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn reads_every_known_layout() {
        for layout in LAYOUTS {
            let control = ControlFile::parse(&sample(layout)).unwrap();
            assert_eq!(control.system_id, SystemId(42));
            assert_eq!(control.state, ClusterState::InProduction);
            assert_eq!(
                (control.checkpoint, control.redo),
                (Lsn(0x90_0060), Lsn(0x90_0028))
            );
            assert_eq!(control.min_recovery, Lsn(0x90_1000));
            assert_eq!(control.timeline, TimelineId(2));
            assert_eq!(control.checkpoint_time, 1_795_880_000);
            assert_eq!(control.segment_size, SegmentSize::DEFAULT);
            assert_eq!(control.data_checksum_version, 1);
            assert_eq!(
                control.required_settings,
                RequiredSettings {
                    max_connections: 1,
                    max_worker_processes: 2,
                    max_wal_senders: 3,
                    max_prepared_transactions: 4,
                    max_locks_per_transaction: 5,
                }
            );
        }
    }

    #[test]
    fn refuses_files_it_cannot_use() {
        let good = sample(before_19(1300, 288));
        assert_eq!(
            ControlFile::parse(&good[..200]),
            Err(ControlError::TooShort { bytes: 200 })
        );
        let newer = sample(before_19(1900, 292));
        let unknown = ControlError::UnknownVersion {
            version: 1900,
            system_id: SystemId(42),
        };
        assert_eq!(ControlFile::parse(&newer), Err(unknown));
        let mut impossible = good.clone();
        impossible[16] = 9;
        seal(&mut impossible, 288);
        assert!(matches!(
            ControlFile::parse(&impossible),
            Err(ControlError::ImpossibleValue { value: 9, .. })
        ));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_noticed(at in 0_usize..292 * 8) {
            let mut bytes = sample(before_19(1300, 288));
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert!(ControlFile::parse(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = ControlFile::parse(&bytes);
        }
    }
}
