//! Reads configuration files on the server's host: through SQL, or directly where that is this host.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use barmanfs_pg::pg_control::ControlFile;
use barmanfs_pg::{SystemId, hex};
use barmanfs_store::Attributes;
use postgres_protocol::escape::escape_literal;
use rustix::fs::{Mode, OFlags};

use super::FILE_MAX_BYTES;
use crate::cluster::configuration_files::GRANTS;
use crate::cluster::{self, Purpose};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::postgres::{Connection, ResultSet};

/// Whether this is the cluster that is backed up, and whether the role may read files.
const STATE: &str = "SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system_id, \
    (pg_catalog.pg_has_role('pg_read_server_files', 'USAGE') \
     AND pg_catalog.has_function_privilege('pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)', 'EXECUTE') \
     AND pg_catalog.has_function_privilege('pg_catalog.pg_ls_dir(text, boolean, boolean)', 'EXECUTE') \
     AND pg_catalog.has_function_privilege('pg_catalog.pg_stat_file(text, boolean)', 'EXECUTE'))::text AS may_read";

/// A file of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostFile {
    pub(super) attributes: Attributes,
    pub(super) text: Vec<u8>,
}

/// Why a file or directory could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It does not exist.
    Absent,
    /// For this reason.
    Refused(String),
}

/// A way to the host's files.
#[derive(Debug)]
pub(super) enum Host {
    Sql(Box<Connection>),
    /// The server is on this host.
    Here,
    /// There is none, for this reason.
    Closed(String),
}

impl Host {
    /// Looks for a way to the files of this cluster's host.
    pub(super) fn of(server: &ServerConfig, system_id: SystemId, data_directory: &str) -> Self {
        Self::connect(server, system_id, data_directory)
            .unwrap_or_else(|error| Self::Closed(error.to_string()))
    }

    fn connect(server: &ServerConfig, system_id: SystemId, data_directory: &str) -> Result<Self, Error> {
        let mut connection = cluster::look(server, Purpose::Sql)?;
        let state = connection.simple_query(STATE)?;
        let value = |column| state.first().and_then(|rows| rows.text(0, column));
        if value("system_id") != Some(&*system_id.to_string()) {
            return Ok(Self::Closed(format!(
                "the {} of conninfo is another cluster than the one that is backed up",
                connection.target()
            )));
        }
        Ok(match (value("may_read"), connection.is_local()) {
            (Some("true"), _) => Self::Sql(Box::new(connection)),
            (_, true) if is_here(data_directory, system_id) => Self::Here,
            _ => Self::Closed(GRANTS.to_owned()),
        })
    }

    /// Reads a file. `like` has the owner and permissions where they are unknown.
    pub(super) fn read(&mut self, path: &str, like: &Attributes) -> Result<HostFile, Unread> {
        match self {
            Self::Sql(connection) => read_through_sql(connection, path, like),
            Self::Here => read_here(path),
            Self::Closed(why) => Err(Unread::Refused(why.clone())),
        }
    }

    /// The names in a directory.
    pub(super) fn names(&mut self, path: &str) -> Result<Vec<String>, Unread> {
        match self {
            Self::Sql(connection) => {
                let path = escape_literal(path);
                let rows = query(
                    connection,
                    &format!("SELECT name FROM pg_catalog.pg_ls_dir({path}, true, false) AS name"),
                )?;
                let names = (0..rows.len()).filter_map(|row| rows.text(row, "name"));
                Ok(names.map(str::to_owned).collect())
            }
            Self::Here => {
                let entries = fs::read_dir(path).map_err(|error| unread(&error))?;
                let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
                names
                    .collect::<std::io::Result<_>>()
                    .map_err(|error| unread(&error))
            }
            Self::Closed(why) => Err(Unread::Refused(why.clone())),
        }
    }
}

/// Whether this host has the data directory: a socket may lead into a container, whose files are others.
fn is_here(data_directory: &str, system_id: SystemId) -> bool {
    let control = fs::read(Path::new(data_directory).join("global/pg_control"));
    let control = control.ok().and_then(|bytes| ControlFile::parse(&bytes).ok());
    control.is_some_and(|control| control.system_id == system_id)
}

fn query(connection: &mut Connection, text: &str) -> Result<ResultSet, Unread> {
    let results = connection.simple_query(text);
    let results = results.map_err(|error| Unread::Refused(error.to_string()))?;
    results
        .into_iter()
        .next()
        .ok_or_else(|| Unread::Refused("the server gave no answer".to_owned()))
}

fn read_through_sql(connection: &mut Connection, path: &str, like: &Attributes) -> Result<HostFile, Unread> {
    let literal = escape_literal(path);
    // One byte more shows that the file is too long.
    let rows = query(
        connection,
        &format!(
            "SELECT pg_catalog.encode(pg_catalog.pg_read_binary_file({literal}, 0, {}, true), 'hex') AS text, \
             (SELECT extract(epoch FROM modification)::bigint::text FROM pg_catalog.pg_stat_file({literal}, true)) AS mtime",
            FILE_MAX_BYTES + 1
        ),
    )?;
    let digits = rows.text(0, "text").ok_or(Unread::Absent)?;
    let text =
        hex::decode(digits).ok_or_else(|| Unread::Refused("the server's answer is malformed".to_owned()))?;
    let mtime_s = rows.text(0, "mtime").and_then(|seconds| seconds.parse().ok());
    checked(HostFile {
        attributes: Attributes {
            mtime_s: mtime_s.unwrap_or_default(),
            mtime_ns: 0,
            ..*like
        },
        text,
    })
}

fn read_here(path: &str) -> Result<HostFile, Unread> {
    let read = || {
        // A pipe would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(std::io::Error::other("it is not a file"));
        }
        let mut text = Vec::new();
        file.take(FILE_MAX_BYTES + 1).read_to_end(&mut text)?;
        Ok(HostFile {
            attributes: Attributes {
                mode: metadata.mode() & 0o7777,
                uid: metadata.uid(),
                gid: metadata.gid(),
                mtime_s: metadata.mtime(),
                mtime_ns: u32::try_from(metadata.mtime_nsec()).unwrap_or_default(),
            },
            text,
        })
    };
    checked(read().map_err(|error| unread(&error))?)
}

fn unread(error: &std::io::Error) -> Unread {
    match error.kind() {
        std::io::ErrorKind::NotFound => Unread::Absent,
        std::io::ErrorKind::PermissionDenied => Unread::Refused(format!(
            "permission denied here, and the role may not read it: {GRANTS}"
        )),
        _ => Unread::Refused(error.to_string()),
    }
}

fn checked(file: HostFile) -> Result<HostFile, Unread> {
    if file.text.len() as u64 > FILE_MAX_BYTES {
        return Err(Unread::Refused(
            "it is too long for a configuration file".to_owned(),
        ));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_this_host_is_read_with_its_permissions() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.conf");
        fs::write(&path, "port = 1\n").unwrap();
        let file = read_here(path.to_str().unwrap()).unwrap();
        assert_eq!(file.text, b"port = 1\n");
        assert_eq!(file.attributes.mode & 0o600, 0o600);
        assert_eq!(
            read_here(directory.path().join("b").to_str().unwrap()),
            Err(Unread::Absent)
        );
        assert!(matches!(
            read_here(directory.path().to_str().unwrap()),
            Err(Unread::Refused(_))
        ));
        fs::write(&path, vec![b' '; FILE_MAX_BYTES as usize + 1]).unwrap();
        let long = read_here(path.to_str().unwrap());
        assert!(matches!(long, Err(Unread::Refused(why)) if why.contains("too long")));
    }
}
