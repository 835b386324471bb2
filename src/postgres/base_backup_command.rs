//! The text of `BASE_BACKUP`, in the two dialects of the command.

use std::ops::RangeInclusive;

use barmanfs_pg::ServerVersion;

use super::error::Error;

/// The first version with backup manifests.
const OLDEST_MAJOR: u32 = 13;

/// The first version with the list of options and the single COPY.
pub(super) const FIRST_MODERN_MAJOR: u32 = 15;

/// The first version that sends only what has changed.
pub(crate) const FIRST_INCREMENTAL_MAJOR: u32 = 17;

/// The values that `MAX_RATE` accepts, in KiB per second.
pub(crate) const MAX_RATE_KIB: RangeInclusive<u32> = 32..=1_048_576;

/// Maximum length of a label: PostgreSQL's `MAXPGPATH` without its terminator.
const MAX_LABEL_BYTES: usize = 1023;

/// The options of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseBackupOptions {
    /// The label in `backup_label`.
    pub(crate) label: String,
    /// Begin with an immediate checkpoint, not with one spread over minutes.
    pub(crate) fast_checkpoint: bool,
    /// The server's maximum rate, in KiB per second; a value of [`MAX_RATE_KIB`].
    pub(crate) max_rate_kib: Option<u32>,
    /// Append the required WAL to the main archive.
    pub(crate) include_wal: bool,
    /// Do not end before the server has archived the last segment.
    pub(crate) wait_for_archive: bool,
    /// Let the server determine in advance how much it will send.
    pub(crate) progress: bool,
    /// Send a manifest with CRC-32C checksums.
    pub(crate) manifest: bool,
    /// Let the server check its page checksums.
    pub(crate) verify_checksums: bool,
    /// Send `tablespace_map` instead of symbolic links. Then tablespaces inside the data directory of PostgreSQL 15 and
    /// earlier (`allow_in_place_tablespaces`) are not sent at all.
    pub(crate) tablespace_map: bool,
    /// For relations, send only the blocks that changed since the backup whose manifest was uploaded in this session.
    pub(crate) incremental: bool,
}

impl Default for BaseBackupOptions {
    fn default() -> Self {
        Self {
            label: "barmanfs".to_owned(),
            fast_checkpoint: false,
            max_rate_kib: None,
            include_wal: false,
            wait_for_archive: false,
            progress: true,
            manifest: true,
            verify_checksums: true,
            tablespace_map: true,
            incremental: false,
        }
    }
}

/// The command in the dialect of the version.
pub(super) fn command(version: ServerVersion, options: &BaseBackupOptions) -> Result<String, Error> {
    if version.major() < OLDEST_MAJOR {
        return Err(Error::settings(format!("PostgreSQL {version} is not supported"))
            .with_hint("Backups can be taken from PostgreSQL 13 and later"));
    }
    if options.incremental && version.major() < FIRST_INCREMENTAL_MAJOR {
        return Err(Error::settings(format!(
            "PostgreSQL {version} has no incremental backups"
        )));
    }
    let label = &options.label;
    if label.len() > MAX_LABEL_BYTES || label.chars().any(char::is_control) {
        return Err(
            Error::settings(format!("Invalid backup label \"{}\"", label.escape_debug()))
                .with_hint("It may have up to 1023 bytes, without control characters"),
        );
    }
    let label = format!("'{}'", label.replace('\'', "''"));
    if let Some(rate) = options.max_rate_kib.filter(|rate| !MAX_RATE_KIB.contains(rate)) {
        let (low, high) = MAX_RATE_KIB.into_inner();
        return Err(
            Error::settings(format!("The maximum rate of {rate} kB/s is out of range"))
                .with_hint(format!("It may be from {low} to {high} kB/s")),
        );
    }
    Ok(match version.major() {
        FIRST_MODERN_MAJOR.. => modern_command(&label, options),
        _ => traditional_command(&label, options),
    })
}

fn traditional_command(quoted_label: &str, options: &BaseBackupOptions) -> String {
    let rate = options.max_rate_kib.map(|rate| format!("MAX_RATE {rate}"));
    let words = [
        Some("PROGRESS").filter(|_| options.progress),
        Some("FAST").filter(|_| options.fast_checkpoint),
        Some("WAL").filter(|_| options.include_wal),
        Some("NOWAIT").filter(|_| !options.wait_for_archive),
        rate.as_deref(),
        Some("TABLESPACE_MAP").filter(|_| options.tablespace_map),
        Some("NOVERIFY_CHECKSUMS").filter(|_| !options.verify_checksums),
        Some("MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'").filter(|_| options.manifest),
    ];
    let words: Vec<&str> = words.into_iter().flatten().collect();
    format!("BASE_BACKUP LABEL {quoted_label} {}", words.join(" "))
        .trim_end()
        .to_owned()
}

fn modern_command(quoted_label: &str, options: &BaseBackupOptions) -> String {
    let flag = |value: bool| u8::from(value);
    let checkpoint = if options.fast_checkpoint { "fast" } else { "spread" };
    let mut words = vec![
        format!("LABEL {quoted_label}"),
        format!("PROGRESS {}", flag(options.progress)),
        format!("CHECKPOINT '{checkpoint}'"),
        format!("WAL {}", flag(options.include_wal)),
        format!("WAIT {}", flag(options.wait_for_archive)),
        format!("TABLESPACE_MAP {}", flag(options.tablespace_map)),
        format!("VERIFY_CHECKSUMS {}", flag(options.verify_checksums)),
    ];
    words.extend(options.max_rate_kib.map(|rate| format!("MAX_RATE {rate}")));
    if options.incremental {
        words.push("INCREMENTAL 1".to_owned());
    }
    if options.manifest {
        words.push("MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'".to_owned());
    }
    format!("BASE_BACKUP ({})", words.join(", "))
}
