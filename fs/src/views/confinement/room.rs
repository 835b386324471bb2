//! Settings that must be large enough for PostgreSQL to start on the state that its server has left. The values in the
//! configuration files may be too small: the server may have been started with other settings, or its own files are not
//! in the backup.

use barmanfs_pg::pg_control::ControlFile;

use super::includes::Values;
use super::overrides::{Override, text};
use super::source::{Source, Stored};
use crate::error::Result;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The limits of kept WAL: the setting, PostgreSQL's default value, and the number of segments that `initdb` sets.
/// PostgreSQL refuses fewer than two segments (`ReadControlFile`).
const WAL_SIZES: [(&str, u64, u64); 2] = [("min_wal_size", 80 * MIB, 5), ("max_wal_size", 1024 * MIB, 64)];

/// The file with the states of replication origins (`src/backend/replication/logical/origin.c`): a magic number, an
/// entry of 16 bytes for each origin, and a checksum.
const ORIGINS: &[u8] = b"pg_logical/replorigin_checkpoint";

const ORIGIN_BYTES: usize = 16;

/// Default limit of the number of origins.
const DEFAULT_ORIGINS: usize = 10;

/// Room for origins that the backup does not have: the WAL may advance more of them, because each subscription has one,
/// and so has each table that it copies.
const ROOM_FOR_ORIGINS: usize = 100;

/// The first version with a setting of its own for the number of origins.
const OWN_ORIGINS_SINCE: u32 = 18;

/// The first version that has `reserved_connections`.
const RESERVED_SINCE: u32 = 16;

/// Default of `superuser_reserved_connections`. PostgreSQL refuses to start if as many connections are reserved as
/// there are, or more.
const DEFAULT_RESERVED: u32 = 3;

/// The settings that need a larger or smaller value than the one in `values`.
pub(in crate::views) fn room(
    source: &impl Source,
    values: &Values,
    control: Option<&ControlFile>,
    major: u32,
) -> Result<Vec<Override>> {
    let mut all = Vec::new();
    if let Some(control) = control {
        all.extend(wal_sizes(values, control));
        all.extend(reserved_connections(values, control, major));
    }
    all.extend(origins(source, values, major)?);
    Ok(all)
}

/// The setting that limits how many replication origins have a state.
pub(in crate::views) fn origins_setting(major: u32) -> &'static str {
    match major >= OWN_ORIGINS_SINCE {
        true => "max_active_replication_origins",
        false => "max_replication_slots",
    }
}

fn wal_sizes(values: &Values, control: &ControlFile) -> Vec<Override> {
    let segment = control.segment_size.bytes();
    let is_too_small = |name: &str, default: u64| match values.contains_key(name) {
        true => bytes(&text(values, name), MIB).is_some_and(|set| set < 2 * segment),
        false => default < 2 * segment,
    };
    WAL_SIZES
        .into_iter()
        .filter(|(name, default, _)| is_too_small(name, *default))
        .map(|(name, _, segments)| Override {
            name,
            value: format!("{}MB", segments * segment / MIB),
            why: "At least two segments, and as many as initdb sets",
        })
        .collect()
}

fn reserved_connections(values: &Values, control: &ControlFile, major: u32) -> Vec<Override> {
    let number = |name: &str, default: u32| number(values, name).unwrap_or(default);
    let max = number("max_connections", 100).max(control.required_settings.max_connections);
    let others = match major >= RESERVED_SINCE {
        true => number("reserved_connections", 0),
        false => 0,
    };
    let superusers = number("superuser_reserved_connections", DEFAULT_RESERVED);
    if superusers.saturating_add(others) < max {
        return Vec::new();
    }
    let with = |name, value: u32| Override {
        name,
        value: value.to_string(),
        why: "Fewer than max_connections",
    };
    let mut all = vec![with(
        "superuser_reserved_connections",
        DEFAULT_RESERVED.min(max.saturating_sub(1)),
    )];
    if others > 0 {
        all.push(with("reserved_connections", 0));
    }
    all
}

fn origins(source: &impl Source, values: &Values, major: u32) -> Result<Option<Override>> {
    let entries = match source.read(ORIGINS)? {
        Stored::Text(_, bytes) => bytes.len() / ORIGIN_BYTES,
        _ => 0,
    };
    let name = origins_setting(major);
    let set = match values.contains_key(name) {
        true => number(values, name).and_then(|set| usize::try_from(set).ok()),
        false => Some(DEFAULT_ORIGINS),
    };
    let is_too_small = set.is_some_and(|set| set < entries + DEFAULT_ORIGINS);
    Ok(is_too_small.then(|| Override {
        name,
        value: (entries + ROOM_FOR_ORIGINS).to_string(),
        why: "For the replication origins of the original, and those in its WAL",
    }))
}

/// A numeric setting without a unit.
pub(super) fn number(values: &Values, name: &str) -> Option<u32> {
    text(values, name).trim().parse().ok()
}

/// A setting in bytes. A value without a unit is in kilobytes.
pub(super) fn kilobytes(values: &Values, name: &str) -> Option<u64> {
    bytes(&text(values, name), KIB)
}

/// Parses like `convert_to_base_unit` in `src/backend/utils/misc/guc.c`. A value in an unusual notation counts as not
/// set.
fn bytes(value: &str, unit: u64) -> Option<u64> {
    let value = value.trim();
    let end = value.find(|c: char| c.is_ascii_alphabetic());
    let (number, suffix) = value.split_at_checked(end.unwrap_or(value.len()))?;
    let unit = match suffix {
        "" => unit,
        "B" => 1,
        "kB" => KIB,
        "MB" => MIB,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.trim().split_once('.').unwrap_or((number.trim(), "0"));
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let fraction = fraction.parse::<u64>().ok()?.checked_mul(unit)? / scale;
    whole.checked_add(fraction)
}

#[cfg(test)]
pub(super) mod testing {
    use barmanfs_pg::pg_control::{ClusterState, RequiredSettings};
    use barmanfs_pg::{Lsn, SegmentSize, SystemId, TimelineId};
    use barmanfs_store::Attributes;

    use super::*;

    /// A data directory with one file.
    pub(in crate::views::confinement) struct File {
        path: Vec<u8>,
        bytes: Vec<u8>,
        mode: u32,
    }

    impl File {
        pub(in crate::views::confinement) fn of(path: &str, bytes: &[u8], mode: u32) -> Self {
            Self {
                path: path.into(),
                bytes: bytes.into(),
                mode,
            }
        }
    }

    impl Source for File {
        fn read(&self, path: &[u8]) -> Result<Stored> {
            let attributes = Attributes {
                mode: self.mode,
                uid: 0,
                gid: 0,
                mtime_s: 0,
                mtime_ns: 0,
            };
            Ok(match path == self.path {
                true => Stored::Text(attributes, self.bytes.clone()),
                false => Stored::Absent,
            })
        }

        fn names(&self, _: &[u8], _: &dyn Fn(&[u8]) -> bool) -> Result<Option<Vec<Vec<u8>>>> {
            Ok(None)
        }

        fn has_file(&self, path: &[u8]) -> Result<bool> {
            Ok(path == self.path)
        }
    }

    /// The control file of a server that ran with 100 connections and segments of this size.
    pub(in crate::views::confinement) fn control(segment_mib: u64) -> ControlFile {
        ControlFile {
            system_id: SystemId(1),
            control_version: 1300,
            catalog_version: 1,
            state: ClusterState::InProduction,
            checkpoint: Lsn(0),
            redo: Lsn(0),
            timeline: TimelineId(1),
            min_recovery: Lsn(0),
            checkpoint_time: 0,
            required_settings: RequiredSettings {
                max_connections: 100,
                ..RequiredSettings::default()
            },
            wal_level: 1,
            data_checksum_version: 0,
            segment_size: SegmentSize::try_from(segment_mib << 20).unwrap(),
        }
    }

    /// `NAME=VALUE NAME=VALUE`
    pub(in crate::views::confinement) fn values(set: &str) -> Values {
        let set = set.split_whitespace().map(|set| set.split_once('=').unwrap());
        set.map(|(name, value)| (name.to_owned(), value.into())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{File, control, values};
    use super::*;

    /// `NAME=VALUE NAME=VALUE`
    fn found(entries: usize, set: &str, control: &ControlFile, major: u32) -> String {
        let origins = vec![0; 4 + entries * ORIGIN_BYTES + 4];
        let source = File::of("pg_logical/replorigin_checkpoint", &origins, 0o600);
        let room = room(&source, &values(set), Some(control), major).unwrap();
        let room: Vec<_> = room
            .iter()
            .map(|Override { name, value, .. }| format!("{name}={value}"))
            .collect();
        room.join(" ")
    }

    #[test]
    fn only_settings_that_are_too_small_are_set() {
        for (segment_mib, set, expected) in [
            (16, "", ""),
            (64, "", "min_wal_size=320MB"),
            (64, "min_wal_size=128", ""),
            (
                64,
                "min_wal_size=80MB max_wal_size=100MB",
                "min_wal_size=320MB max_wal_size=4096MB",
            ),
            (1024, "", "min_wal_size=5120MB max_wal_size=65536MB"),
            (
                16,
                "superuser_reserved_connections=100",
                "superuser_reserved_connections=3",
            ),
            (16, "superuser_reserved_connections=100 max_connections=101", ""),
            (
                16,
                "reserved_connections=97",
                "superuser_reserved_connections=3 reserved_connections=0",
            ),
        ] {
            assert_eq!(
                found(0, set, &control(segment_mib), 19),
                expected,
                "{segment_mib} {set}"
            );
        }
        let mut few = control(16);
        few.required_settings.max_connections = 2;
        assert_eq!(
            found(0, "max_connections=2", &few, 15),
            "superuser_reserved_connections=1"
        );
    }

    #[test]
    fn settings_have_room_for_the_stored_replication_origins() {
        for (entries, set, major, expected) in [
            (0, "", 15, ""),
            (15, "", 15, "max_replication_slots=115"),
            (15, "max_replication_slots=25", 15, ""),
            (
                15,
                "max_replication_slots=25",
                18,
                "max_active_replication_origins=115",
            ),
            (15, "max_active_replication_origins=50", 18, ""),
            (0, "max_replication_slots=0", 15, "max_replication_slots=100"),
        ] {
            assert_eq!(
                found(entries, set, &control(16), major),
                expected,
                "{entries} {set} {major}"
            );
        }
    }

    #[test]
    fn sizes_are_read_as_postgresql_reads_them() {
        for (value, expected) in [
            ("80", Some(80 * MIB)),
            ("80MB", Some(80 * MIB)),
            (" 2 GB ", Some(2048 * MIB)),
            ("1.5GB", Some(1536 * MIB)),
            ("131072kB", Some(128 * MIB)),
            ("80mb", None),
            ("0x10", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(bytes(value, MIB), expected, "{value}");
        }
    }
}
