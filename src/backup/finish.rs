//! The end of a backup whose files are all stored: evaluates its label and the server's result.

use std::collections::HashMap;

use barmanfs_catalog::{BackupEnd, ServerName, Tablespace};
use barmanfs_pg::backup_label::BackupLabel;
use barmanfs_pg::pg_control::{ControlError, ControlFile};
use barmanfs_store::{DirectoryRef, TreeReader};

use super::files;
use crate::cluster::{ServerSettings, tablespace_names};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::output;
use crate::postgres::BaseBackupResult;

/// Reads the stored label back, and returns the data that completes the backup.
///
/// # Errors
/// When there is no label, or it does not agree with the server's result.
pub(super) fn end(
    server: &ServerConfig,
    cluster: &ServerSettings,
    (trees, root): (&TreeReader, &DirectoryRef),
    result: BaseBackupResult,
) -> Result<BackupEnd, Error> {
    let label = read_label(trees, root)?;
    check_label(&label, &result)?;
    warn_of_control(&server.name, trees, root)?;
    Ok(described(server, cluster, &label, result))
}

/// Logs a warning when the layout of `pg_control` is unknown.
fn warn_of_control(server: &ServerName, trees: &TreeReader, root: &DirectoryRef) -> Result<(), Error> {
    const BYTES_MAX: usize = 8192;
    let Some(map) = trees.find(root, b"global/pg_control")?.and_then(files::file_map) else {
        return Ok(());
    };
    let mut bytes = vec![0; BYTES_MAX];
    let length = trees.read_at(&map, 0, &mut bytes)?;
    let read = ControlFile::parse(bytes.get(..length).unwrap_or_default());
    if let Err(ControlError::UnknownVersion { version, .. }) = read {
        tracing::warn!(
            "Server {server}: pg_control has version {version}, which this release of barmanfs does not know: the backup is \
             kept byte for byte, and the settings that a server on a copy needs cannot be read from it"
        );
    }
    Ok(())
}

pub(crate) fn read_label(trees: &TreeReader, root: &DirectoryRef) -> Result<BackupLabel, Error> {
    use std::io::Read;
    let Some(map) = trees.find(root, files::LABEL)?.and_then(files::file_map) else {
        return Err(Error::failed(
            "The server sent no backup_label: this cannot be recovered",
        ));
    };
    let mut bytes = Vec::new();
    trees
        .reader(map)
        .take(files::LABEL_FILE_MAX_BYTES as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::failed(format!("Cannot read backup_label back: {error}")))?;
    BackupLabel::parse(&bytes).map_err(|error| Error::failed(error.to_string()))
}

/// Recovery relies on the label, so it must agree with the protocol's messages.
fn check_label(label: &BackupLabel, result: &BaseBackupResult) -> Result<(), Error> {
    if label.start_lsn == result.start.lsn {
        return Ok(());
    }
    Err(Error::failed(format!(
        "The server said that the backup begins at {}, its backup_label says {}",
        result.start.lsn, label.start_lsn
    )))
}

fn described(
    server: &ServerConfig,
    cluster: &ServerSettings,
    label: &BackupLabel,
    result: BaseBackupResult,
) -> BackupEnd {
    // The connection has logged the warnings. If checksums failed, the warnings name the places.
    let checksum_failures = match &result.checksum_failure {
        Some(failure) => {
            let errors = result.warnings.iter().chain([failure]);
            errors
                .map(|error| output::printable(error.message.as_bytes()))
                .collect()
        }
        None => Vec::new(),
    };
    let mut names = match result.start.tablespaces.is_empty() {
        true => HashMap::new(),
        false => tablespace_names(server),
    };
    let tablespaces = result.start.tablespaces.into_iter().map(|space| Tablespace {
        oid: space.oid,
        name: names.remove(&space.oid),
        location: String::from_utf8_lossy(&space.location).into_owned(),
    });
    BackupEnd {
        start_lsn: result.start.lsn,
        stop_lsn: result.stop_lsn,
        timeline: result.start.timeline,
        data_checksums: cluster.data_checksums,
        tablespaces: tablespaces.collect(),
        sent_bytes: result.received_bytes,
        checksum_failures,
        from_standby: label.from.as_deref() == Some("standby"),
    }
}
