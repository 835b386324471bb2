//! The time between `pg_backup_start` and `pg_backup_stop`, in which a snapshot is taken or the server's files are read. The
//! server ends it by itself when the session ends.

use std::time::Duration;

use barmanfs_pg::Lsn;
use barmanfs_pg::backup_label::BackupLabel;

use crate::backup::Stop;
use crate::backup::checkpoint::Checkpoint;
use crate::cluster::{self, Purpose, ServerSettings};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::postgres::{Connection, ResultSet};

/// The first version with these names of the functions.
const FIRST_WITH_PRESENT_NAMES: u32 = 15;

/// The first version that can end a session because it is idle.
const FIRST_WITH_IDLE_TIMEOUT: u32 = 14;

/// How long the server may take for the end.
const STOP_WITHIN: Duration = Duration::from_secs(600);

/// SQLSTATE `insufficient_privilege`.
const NOT_PERMITTED: &str = "42501";

/// A server in backup mode.
#[derive(Debug)]
pub(crate) struct Window {
    connection: Connection,
    major: u32,
    /// Where the backup begins.
    start: Lsn,
    /// The places of tablespaces on the server, one a line.
    tablespaces: String,
}

/// What the server returned at the end.
#[derive(Debug, Clone)]
pub(crate) struct Stopped {
    pub(crate) stop_lsn: Lsn,
    /// The `backup_label`, as it is to be placed.
    pub(crate) label_text: String,
    pub(crate) label: BackupLabel,
    /// The `tablespace_map`; empty if there are no tablespaces.
    pub(crate) map: String,
}

impl Stopped {
    /// # Errors
    /// When the label is none.
    pub(crate) fn new(stop_lsn: Lsn, label_text: String, map: String) -> Result<Self, Error> {
        let label = BackupLabel::parse(label_text.as_bytes())
            .map_err(|error| Error::failed(format!("The backup_label is not understood: {error}")))?;
        if stop_lsn < label.start_lsn {
            return Err(Error::failed(format!(
                "The backup stops at {stop_lsn}, which is before its start at {}",
                label.start_lsn
            )));
        }
        Ok(Self {
            stop_lsn,
            label_text,
            label,
            map,
        })
    }
}

impl Window {
    /// Begins: the server makes a checkpoint.
    ///
    /// # Errors
    /// When the server does not permit it, or does not answer.
    pub(crate) fn open(
        server: &ServerConfig,
        cluster: &ServerSettings,
        (label, is_fast): (&str, bool),
        (checkpoint, stop): (&Checkpoint, &Stop),
    ) -> Result<Self, Error> {
        let major = cluster.version.major();
        let mut connection = cluster::connect(server, Purpose::Sql)
            .map_err(|error| error.context("This backup needs pg_backup_start, in SQL"))?;
        stop.guard(&connection)?;
        let mut settings = "SET statement_timeout = 0; SET standard_conforming_strings = on".to_owned();
        if major >= FIRST_WITH_IDLE_TIMEOUT {
            settings.push_str("; SET idle_session_timeout = 0");
        }
        connection.simple_query(&settings)?;
        let system_id = "SELECT system_identifier::text AS id FROM pg_catalog.pg_control_system()";
        let found = connection.simple_query(system_id)?;
        let found = first(&found).and_then(|rows| rows.text(0, "id"));
        if found != Some(cluster.system_id.to_string().as_str()) {
            return Err(Error::failed(format!(
                "conninfo of server {} leads to another cluster than streaming_conninfo",
                server.name
            )));
        }
        let label = label.replace('\'', "''");
        let start = match major >= FIRST_WITH_PRESENT_NAMES {
            true => format!("SELECT pg_catalog.pg_backup_start('{label}', {is_fast})::text AS lsn"),
            false => format!("SELECT pg_catalog.pg_start_backup('{label}', {is_fast}, false)::text AS lsn"),
        };
        let started = connection
            .query_within(checkpoint.patience(), &start)
            .map_err(|error| {
                let is_refused = error.sqlstate() == Some(NOT_PERMITTED);
                let error = Error::from(error).context("The server did not begin the backup");
                match is_refused {
                    true => error.hint(grants(major)),
                    false => error,
                }
            })?;
        let start = first(&started).and_then(|rows| rows.text(0, "lsn")?.parse().ok());
        let start = start.ok_or_else(|| Error::failed("The server did not tell where the backup begins"))?;
        let places = "SELECT string_agg(pg_catalog.pg_tablespace_location(oid), E'\\n') AS places FROM \
                      pg_catalog.pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')";
        let places = connection.simple_query(places)?;
        let places = first(&places).and_then(|rows| rows.text(0, "places"));
        Ok(Self {
            tablespaces: places.unwrap_or_default().to_owned(),
            connection,
            major,
            start,
        })
    }

    /// The places of tablespaces on the server, one a line.
    pub(crate) fn tablespaces(&self) -> String {
        self.tablespaces.clone()
    }

    /// Where the backup begins.
    pub(crate) fn start(&self) -> Lsn {
        self.start
    }

    /// The process of the server that this session has.
    ///
    /// # Errors
    /// When the session has ended.
    pub(crate) fn process(&mut self) -> Result<u32, Error> {
        process_of(&mut self.connection)
    }

    /// Whether the server is a standby now.
    ///
    /// # Errors
    /// When the session has ended.
    pub(crate) fn is_in_recovery(&mut self) -> Result<bool, Error> {
        let asked = "SELECT pg_catalog.pg_is_in_recovery()::text AS standby";
        let found = self.connection.simple_query(asked)?;
        Ok(first(&found).and_then(|rows| rows.text(0, "standby")) == Some("true"))
    }

    /// Ends. The WAL is waited for elsewhere.
    ///
    /// # Errors
    /// When the session has ended meanwhile, or the server refuses: then there is no backup.
    pub(crate) fn close(mut self) -> Result<Stopped, Error> {
        let stop = match self.major >= FIRST_WITH_PRESENT_NAMES {
            true => "pg_catalog.pg_backup_stop(false)",
            false => "pg_catalog.pg_stop_backup(false, false)",
        };
        let query = format!("SELECT lsn::text AS lsn, labelfile, spcmapfile FROM {stop}");
        let results = self
            .connection
            .query_within(STOP_WITHIN, &query)
            .map_err(|error| Error::from(error).context("The server did not end the backup"))?;
        let rows = first(&results);
        let text = |column| rows.and_then(|rows| rows.text(0, column));
        let (Some(lsn), Some(label)) = (text("lsn"), text("labelfile")) else {
            return Err(Error::failed("The server did not tell where the backup ends"));
        };
        let lsn = lsn.parse().map_err(|_| {
            Error::failed(format!(
                "The server ended the backup at \"{}\"",
                lsn.escape_debug()
            ))
        })?;
        Stopped::new(
            lsn,
            label.to_owned(),
            text("spcmapfile").unwrap_or_default().to_owned(),
        )
    }
}

/// The process of the server that this session has.
///
/// # Errors
/// When the session has ended.
pub(crate) fn process_of(connection: &mut Connection) -> Result<u32, Error> {
    let found = connection.simple_query("SELECT pg_catalog.pg_backend_pid()::text AS pid")?;
    let pid = first(&found).and_then(|rows| rows.text(0, "pid")?.parse().ok());
    pid.ok_or_else(|| Error::failed("The server did not tell its process"))
}

/// Whether the role of this session may begin and end a backup.
///
/// # Errors
/// When it may not, or the session has ended.
pub(crate) fn refuse_unprivileged(connection: &mut Connection, major: u32) -> Result<(), Error> {
    let (start, stop) = functions(major);
    let may = format!(
        "SELECT (pg_catalog.has_function_privilege('pg_catalog.{start}', 'EXECUTE') AND \
         pg_catalog.has_function_privilege('pg_catalog.{stop}', 'EXECUTE'))::text AS may"
    );
    let found = connection.simple_query(&may)?;
    match first(&found).and_then(|rows| rows.text(0, "may")) {
        Some("true") => Ok(()),
        _ => Err(Error::failed("The role of conninfo may not begin a backup").hint(grants(major))),
    }
}

fn first(results: &[ResultSet]) -> Option<&ResultSet> {
    results.iter().find(|rows| rows.len() > 0)
}

fn functions(major: u32) -> (&'static str, &'static str) {
    match major >= FIRST_WITH_PRESENT_NAMES {
        true => ("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"),
        false => (
            "pg_start_backup(text, boolean, boolean)",
            "pg_stop_backup(boolean, boolean)",
        ),
    }
}

fn grants(major: u32) -> String {
    let (start, stop) = functions(major);
    format!("As a superuser there: GRANT EXECUTE ON FUNCTION {start}, {stop} TO the role of conninfo")
}
