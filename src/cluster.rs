//! PostgreSQL servers of the configuration: how to connect to them, and the settings of their clusters.

pub(crate) mod configuration_files;
pub(crate) mod primary;
mod settings;
pub(crate) mod switch;
mod tablespaces;

use std::time::Duration;

use crate::config::{Secret, ServerConfig};
use crate::error::Error;
use crate::postgres::{Connection, Conninfo, Environment, Mode};
pub(crate) use configuration_files::ConfigurationPaths;
pub(crate) use settings::ServerSettings;
pub(crate) use tablespaces::tablespace_names;

/// How long a server may take to answer a command of a WAL receiver.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// How long a receiver waits for a connection if the connection string has no `connect_timeout`.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);

/// How long a server may take to answer a command that only looks at it. The connection alone may take as long if the
/// connection string has no `connect_timeout`.
const LOOK_WITHIN: Duration = Duration::from_secs(10);

/// The purpose of a connection. It determines the connection string, the mode, the application name and the timeouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To take a backup, over the replication protocol.
    Backup,
    /// To receive WAL, over the replication protocol. The application name is `streaming_archiver_name`, by which
    /// PostgreSQL identifies a synchronous standby, and every wait has a limit.
    ReceiveWal,
    /// To query the server in SQL.
    Sql,
    /// To look at the host that WAL is received from, over the replication protocol.
    WalHost,
    /// To query that host in SQL.
    WalHostSql,
    /// To query the primary of a standby in SQL.
    Primary,
    /// To read WAL from the primary of a standby, over the replication protocol.
    PrimaryWal,
}

/// The hosts of a server. They are the same one, unless the configuration says that WAL is received from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// Backups come from it.
    Backup,
    /// WAL is received from it.
    Wal,
}

impl Host {
    /// To query it in SQL.
    pub(crate) fn sql(self) -> Purpose {
        match self {
            Self::Backup => Purpose::Sql,
            Self::Wal => Purpose::WalHostSql,
        }
    }

    /// To look at it over the replication protocol.
    pub(crate) fn streaming(self) -> Purpose {
        match self {
            Self::Backup => Purpose::Backup,
            Self::Wal => Purpose::WalHost,
        }
    }
}

/// Connects to a server.
///
/// # Errors
/// When there is no connection string for this purpose, or the connection fails.
pub(crate) fn connect(server: &ServerConfig, purpose: Purpose) -> Result<Connection, Error> {
    let mut connection = Connection::connect(&conninfo(server, purpose)?, mode(purpose))?;
    if purpose == Purpose::ReceiveWal {
        connection.set_read_timeout(Some(ANSWER_WITHIN))?;
    }
    Ok(connection)
}

fn mode(purpose: Purpose) -> Mode {
    match purpose {
        Purpose::Backup | Purpose::ReceiveWal | Purpose::WalHost | Purpose::PrimaryWal => Mode::Replication,
        Purpose::Sql | Purpose::WalHostSql | Purpose::Primary => Mode::Sql,
    }
}

/// Connects to a server in order to look at it: a server that does not answer must not keep the caller waiting.
///
/// # Errors
/// As [`connect`].
pub(crate) fn look(server: &ServerConfig, purpose: Purpose) -> Result<Connection, Error> {
    let mut conninfo = conninfo(server, purpose)?;
    conninfo.connect_timeout.get_or_insert(LOOK_WITHIN);
    let mut connection = Connection::connect(&conninfo, mode(purpose))?;
    connection.set_read_timeout(Some(LOOK_WITHIN))?;
    Ok(connection)
}

/// The connection settings for this purpose.
fn conninfo(server: &ServerConfig, purpose: Purpose) -> Result<Conninfo, Error> {
    let text = connection_string(server, purpose)?;
    let mut conninfo = Conninfo::parse(text.expose(), &Environment::new(std::env::vars_os()))?;
    match purpose {
        Purpose::Backup => {
            if let Some(name) = &server.streaming_backup_name {
                conninfo.application_name.clone_from(name);
            }
        }
        Purpose::ReceiveWal => {
            conninfo
                .application_name
                .clone_from(&server.streaming_archiver_name);
            conninfo.connect_timeout.get_or_insert(CONNECT_WITHIN);
        }
        Purpose::Sql | Purpose::WalHost | Purpose::WalHostSql | Purpose::Primary | Purpose::PrimaryWal => {}
    }
    Ok(conninfo)
}

fn connection_string(server: &ServerConfig, purpose: Purpose) -> Result<&Secret, Error> {
    let (found, key) = match purpose {
        Purpose::Backup => {
            return server
                .replication_conninfo()
                .ok_or_else(|| server.without_conninfo());
        }
        Purpose::ReceiveWal | Purpose::WalHost => {
            let found = server.wal_replication_conninfo();
            return found.ok_or_else(|| server.without_conninfo());
        }
        Purpose::Sql => (server.conninfo.as_ref(), "conninfo"),
        Purpose::WalHostSql => (server.wal_sql_conninfo(), "wal_conninfo, and no conninfo"),
        Purpose::Primary | Purpose::PrimaryWal => (server.primary_conninfo.as_ref(), "primary_conninfo"),
    };
    found.ok_or_else(|| Error::usage(format!("Server '{}' has no {key}", server.name)))
}
