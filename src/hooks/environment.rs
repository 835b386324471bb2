//! The variables of hook scripts: Barman's, and a few of ours.
//!
//! Where Barman has a path in its own directories, these have one in the mount, or nothing if nothing is mounted.

use std::ffi::OsString;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use barmanfs_catalog::Backup;
use barmanfs_pg::wal_name::WalName;
use tempfile::NamedTempFile;

use crate::config::ServerConfig;
use crate::versions;

/// A WAL file that is archived or removed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wal<'a> {
    /// Its name.
    pub(crate) name: WalName,
    /// Where it can be read, uncompressed.
    pub(crate) path: Option<&'a Path>,
    /// Its size.
    pub(crate) size_bytes: u64,
    /// When it was written.
    pub(crate) time: SystemTime,
    /// What went wrong.
    pub(crate) error: Option<&'a str>,
}

/// A recovery of a backup.
#[derive(Debug, Clone)]
pub(crate) struct Recovery<'a> {
    /// The directory that is restored to.
    pub(crate) destination: &'a Path,
    /// The new places of tablespaces, by their names.
    pub(crate) tablespaces: &'a [(String, String)],
    /// The command that reaches the other host.
    pub(crate) remote_command: Option<&'a str>,
    /// The options for target and mode that were given, with Barman's names.
    pub(crate) options: &'a serde_json::Map<String, serde_json::Value>,
}

/// Variables with their values.
pub(super) type Environment = Vec<(OsString, OsString)>;

/// The variables of one operation.
#[derive(Debug)]
pub(super) struct Variables {
    values: Vec<(&'static str, OsString)>,
    error: Option<String>,
    /// The backup as Barman describes it; the file is there as long as this.
    _info: Option<NamedTempFile>,
}

impl Variables {
    pub(super) fn of_backup(
        backup: &Backup,
        status: &str,
        (previous, next): (Option<String>, Option<String>),
        directory: Option<&Path>,
        info: NamedTempFile,
    ) -> Self {
        let values = vec![
            ("BARMAN_BACKUP_DIR", path(directory)),
            ("BARMAN_BACKUP_INFO_PATH", info.path().into()),
            ("BARMAN_BACKUP_ID", backup.id.to_string().into()),
            ("BARMAN_PREVIOUS_ID", previous.unwrap_or_default().into()),
            ("BARMAN_NEXT_ID", next.unwrap_or_default().into()),
            ("BARMAN_STATUS", status.into()),
        ];
        Self {
            values,
            error: backup.error.clone(),
            _info: Some(info),
        }
    }

    pub(super) fn of_wal(wal: &Wal<'_>) -> Self {
        let values = vec![
            ("BARMAN_SEGMENT", wal.name.to_string().into()),
            ("BARMAN_FILE", path(wal.path)),
            ("BARMAN_SIZE", wal.size_bytes.to_string().into()),
            ("BARMAN_TIMESTAMP", seconds(wal.time).into()),
            // Where it can be read, it is not compressed.
            ("BARMAN_COMPRESSION", "".into()),
        ];
        Self {
            values,
            error: wal.error.map(str::to_owned),
            _info: None,
        }
    }

    pub(super) fn add_recovery(&mut self, recovery: &Recovery<'_>) {
        let tablespaces = match recovery.tablespaces {
            [] => String::new(),
            moved => {
                let moved = moved
                    .iter()
                    .map(|(name, place)| (name.clone(), place.clone().into()));
                as_python(&serde_json::Value::Object(moved.collect()))
            }
        };
        let options = match recovery.options.is_empty() {
            true => String::new(),
            false => as_python(&serde_json::Value::Object(recovery.options.clone())),
        };
        self.values.extend([
            ("BARMAN_DESTINATION_DIRECTORY", path(Some(recovery.destination))),
            ("BARMAN_TABLESPACES", tablespaces.into()),
            (
                "BARMAN_REMOTE_COMMAND",
                recovery.remote_command.unwrap_or_default().into(),
            ),
            ("BARMAN_RECOVER_OPTIONS", options.into()),
        ]);
        self.error = None;
    }

    /// Those that every script has.
    pub(super) fn common(&self, server: &ServerConfig, kind: &str, phase: &str, retry: bool) -> Environment {
        let mut values: Vec<(&str, OsString)> = vec![
            ("BARMAN_VERSION", versions::BARMAN.into()),
            ("BARMANFS_VERSION", env!("CARGO_PKG_VERSION").into()),
            ("BARMAN_SERVER", server.name.as_str().into()),
            ("BARMAN_CONFIGURATION", server.hooks.configuration.clone().into()),
            ("BARMAN_HOOK", kind.into()),
            ("BARMAN_PHASE", phase.into()),
            ("BARMAN_RETRY", if retry { "1" } else { "0" }.into()),
            ("BARMAN_ERROR", self.error.clone().unwrap_or_default().into()),
        ];
        values.extend(search_path(server).map(|path| ("PATH", path)));
        values
            .into_iter()
            .map(|(name, value)| (name.into(), value))
            .collect()
    }

    pub(super) fn own(&self) -> Environment {
        let values = self.values.iter().cloned();
        values.map(|(name, value)| (name.into(), value)).collect()
    }
}

/// Where programs are searched, if the configuration puts a directory before that.
fn search_path(server: &ServerConfig) -> Option<OsString> {
    let first = server.path_prefix.as_ref()?;
    let rest = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(first.clone()).chain(std::env::split_paths(&rest))).ok()
}

fn path(path: Option<&Path>) -> OsString {
    path.map(Into::into).unwrap_or_default()
}

/// Seconds since 1970 as Python prints them.
fn seconds(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    format!("{seconds:?}")
}

/// JSON with a blank behind each comma and colon, as Python writes it. A script may compare it as text.
fn as_python(value: &serde_json::Value) -> String {
    use serde_json::Value;
    let text = |value: &Value| value.to_string();
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| key.as_str());
            let pair = |(key, value): (&String, &Value)| {
                format!("{}: {}", text(&Value::String(key.clone())), as_python(value))
            };
            format!(
                "{{{}}}",
                pairs.into_iter().map(pair).collect::<Vec<_>>().join(", ")
            )
        }
        Value::Array(values) => {
            format!(
                "[{}]",
                values.iter().map(as_python).collect::<Vec<_>>().join(", ")
            )
        }
        other => text(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_pythons_form() {
        let value = serde_json::json!({"target_time": "2026-11-20", "exclusive": true, "a": [1, "x"]});
        assert_eq!(
            as_python(&value),
            r#"{"a": [1, "x"], "exclusive": true, "target_time": "2026-11-20"}"#
        );
        let time = UNIX_EPOCH + std::time::Duration::from_millis(1_795_880_709_366);
        assert_eq!(seconds(time), "1795880709.366");
        assert_eq!(seconds(UNIX_EPOCH + std::time::Duration::from_secs(5)), "5.0");
    }

    #[test]
    fn a_recovery_has_its_tablespaces_and_options() {
        let wal = Wal {
            name: "000000010000000000000001".parse().unwrap(),
            path: None,
            size_bytes: 1,
            time: UNIX_EPOCH,
            error: Some("no"),
        };
        let mut variables = Variables::of_wal(&wal);
        let tablespaces = [("ts1".to_owned(), "/x/ts1".to_owned())];
        variables.add_recovery(&Recovery {
            destination: Path::new("/x"),
            tablespaces: &tablespaces,
            remote_command: None,
            options: &serde_json::Map::new(),
        });
        let own = variables.own();
        let value = |name: &str| {
            let found = own.iter().find(|(own, _)| own == name);
            found.unwrap().1.to_str().unwrap().to_owned()
        };
        assert_eq!(value("BARMAN_TABLESPACES"), r#"{"ts1": "/x/ts1"}"#);
        assert_eq!(value("BARMAN_RECOVER_OPTIONS"), "");
        assert_eq!(value("BARMAN_DESTINATION_DIRECTORY"), "/x");
    }
}
