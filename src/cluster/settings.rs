//! The settings of a server that a backup or a WAL receiver needs in advance.

use barmanfs_pg::{Lsn, SegmentSize, ServerVersion, SystemId, TimelineId};

use crate::error::Error;
use crate::postgres::Connection;

/// The first version with backup manifests, without which a backup cannot be checked.
pub(crate) const OLDEST_MAJOR: u32 = 13;

/// The state of a cluster at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerSettings {
    /// The cluster.
    pub(crate) system_id: SystemId,
    /// The server's version.
    pub(crate) version: ServerVersion,
    /// Its present timeline.
    pub(crate) timeline: TimelineId,
    /// The end of its flushed WAL.
    pub(crate) flush_lsn: Lsn,
    /// Size of its segments.
    pub(crate) segment_size: SegmentSize,
    /// Whether its pages have checksums.
    pub(crate) data_checksums: Option<bool>,
    /// Permissions of its data directory.
    pub(crate) data_directory_mode: u32,
    /// Its setting `TimeZone`.
    pub(crate) timezone: String,
    /// Whether it runs an `archive_command` at all.
    pub(crate) archives: bool,
}

impl ServerSettings {
    /// Reads them over a replication connection.
    pub(crate) fn ask(connection: &mut Connection) -> Result<Self, Error> {
        let version = connection.server_version()?;
        if version.major() < OLDEST_MAJOR {
            return Err(Error::failed(format!(
                "The server is PostgreSQL {version}: backups need {OLDEST_MAJOR} or later"
            )));
        }
        let identity = connection.identify_system()?;
        let mut ask = |name: &'static str| Ok::<_, Error>((name, connection.show(name)?));
        let (segment, checksums) = (ask("wal_segment_size")?, ask("data_checksums")?);
        let (mode, archive_mode) = (ask("data_directory_mode")?, ask("archive_mode")?);
        let timezone = ask("TimeZone")?;
        Ok(Self {
            system_id: identity.system_id,
            version,
            timeline: identity.timeline,
            flush_lsn: identity.flush_lsn,
            segment_size: segment_size(&segment.1).ok_or_else(|| strange(&segment))?,
            data_checksums: Some(checksums.1 == "on"),
            data_directory_mode: u32::from_str_radix(&mode.1, 8).map_err(|_| strange(&mode))?,
            timezone: timezone.1,
            archives: archive_mode.1 != "off",
        })
    }
}

fn strange((name, value): &(&str, String)) -> Error {
    Error::failed(format!(
        "The server's {name} is \"{}\", which barmanfs does not understand",
        value.escape_debug()
    ))
}

/// Parses PostgreSQL's form: `16MB`, `1GB`.
fn segment_size(text: &str) -> Option<SegmentSize> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text.get(digits.len()..)? {
        "B" | "" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    SegmentSize::try_from(digits.parse::<u64>().ok()?.checked_mul(unit)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_sizes_are_read_as_they_are_shown() {
        assert_eq!(segment_size("16MB"), Some(SegmentSize::DEFAULT));
        assert_eq!(segment_size("1GB"), Some(SegmentSize::MAX));
        assert_eq!(segment_size("1024kB"), Some(SegmentSize::MIN));
        for wrong in ["", "MB", "16", "3MB", "16 MB", "2GB", "99999999999999999999MB"] {
            assert_eq!(segment_size(wrong), None, "{wrong}");
        }
    }
}
