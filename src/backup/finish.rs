//! The end of a backup whose files are all stored: evaluates its label and the server's result.

use std::collections::HashMap;

use barmanfs_catalog::{BackupEnd, ServerName, Tablespace};
use barmanfs_pg::backup_label::BackupLabel;
use barmanfs_pg::own_files::is_own;
use barmanfs_pg::pg_control::{ControlError, ControlFile};
use barmanfs_store::{DirectoryRef, TreeReader};

use super::files;
use crate::cluster::{ServerSettings, tablespace_names};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::output;
use crate::postgres::BaseBackupResult;
use crate::walk::LINK_REMEDY;

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
    refuse_left_out(trees, root, &result)?;
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

/// A server leaves links out, and only warns of it: what they lead to would be missing. The text of a warning may be
/// translated, but it has the path in quotation marks.
fn refuse_left_out(trees: &TreeReader, root: &DirectoryRef, result: &BaseBackupResult) -> Result<(), Error> {
    let spaces = result.start.tablespaces.iter();
    let spaces: Vec<(u32, Vec<u8>)> = spaces.map(|space| (space.oid, space.location.clone())).collect();
    for warning in &result.warnings {
        let named = warning.message.split('"').nth(1).unwrap_or_default();
        let Some(path) = path_in_backup(named, &spaces) else {
            continue;
        };
        if is_own(path.as_bytes()) && trees.find(root, path.as_bytes())?.is_none() {
            return Err(Error::failed(format!(
                "The server left {} out, so its data would be missing: {}",
                output::printable(path.as_bytes()),
                output::printable(warning.message.as_bytes())
            ))
            .hint(LINK_REMEDY));
        }
    }
    Ok(())
}

/// The path of a file as a server's warning names it: from the data directory, or in the place of a tablespace.
fn path_in_backup(named: &str, tablespaces: &[(u32, Vec<u8>)]) -> Option<String> {
    let in_tablespace = tablespaces.iter().find_map(|space| {
        let (oid, place) = space;
        let place = std::str::from_utf8(place).ok()?;
        let rest = named.strip_prefix(place)?.strip_prefix('/')?;
        Some(format!("pg_tblspc/{oid}/{rest}"))
    });
    in_tablespace.or_else(|| named.strip_prefix("./").map(str::to_owned))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_names_a_file_in_the_data_directory_or_a_tablespace() {
        let tablespaces = [(16384, b"/srv/fast".to_vec())];
        let of = |named: &str| path_in_backup(named, &tablespaces);
        assert_eq!(of("./base/5/16385").as_deref(), Some("base/5/16385"));
        assert_eq!(
            of("/srv/fast/PG_15_1/5/7").as_deref(),
            Some("pg_tblspc/16384/PG_15_1/5/7")
        );
        assert_eq!(of("/srv/faster/x"), None);
        assert_eq!(of("summarize_wal"), None);
    }
}
