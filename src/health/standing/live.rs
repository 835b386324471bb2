//! What a running server says of itself. A role without the right to see something gets `None` for it.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::str::FromStr;
use std::thread;

use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, SegmentSize, ServerVersion, SystemId, TimelineId, TimestampMicros};
use barmanfs_store::threads;

use super::clients::{self, OwnStream, StreamClient};
use crate::cluster::{self, Host, ServerSettings};
use crate::config::ServerConfig;
use crate::config::secrets::without_patterns;
use crate::error::Error;
use crate::output::printable;
use crate::postgres::{Connection, ResultSet};

/// No fact is worth more of the server's time.
const STATEMENT_TIMEOUT: &str = "SET statement_timeout = '5s'";

/// SQL for the microseconds since 1970 of an expression.
macro_rules! micros {
    ($time:literal) => {
        concat!("(extract(epoch from ", $time, ") * 1000000)::bigint")
    };
}

const STATE: &str = concat!(
    "SELECT ",
    micros!("pg_catalog.clock_timestamp()"),
    " AS now, ",
    micros!("pg_catalog.pg_postmaster_start_time()"),
    " AS started, pg_catalog.pg_is_in_recovery()::text AS in_recovery, CASE WHEN pg_catalog.pg_is_in_recovery() ",
    "THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END::text AS current_lsn, ",
    "CASE WHEN pg_catalog.pg_is_in_recovery() THEN greatest(pg_catalog.pg_last_wal_receive_lsn(), ",
    "pg_catalog.pg_last_wal_replay_lsn()) ELSE pg_catalog.pg_current_wal_flush_lsn() END::text AS flush_lsn, ",
    "(SELECT timeline_id::text FROM pg_catalog.pg_control_checkpoint()) AS timeline, ",
    "(SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system_id, ",
    "(SELECT rolsuper::text FROM pg_catalog.pg_roles WHERE rolname = current_user) AS is_superuser, ",
    "(SELECT (rolsuper OR rolreplication)::text FROM pg_catalog.pg_roles WHERE rolname = current_user) ",
    "AS may_replicate, pg_catalog.pg_has_role(current_user, 'pg_monitor', 'USAGE')::text AS may_monitor, ",
    "archived_count::text AS archived, last_archived_wal, ",
    micros!("last_archived_time"),
    " AS last_archived, failed_count::text AS failed, last_failed_wal, ",
    micros!("last_failed_time"),
    " AS last_failed, ",
    micros!("stats_reset"),
    " AS stats_reset FROM pg_catalog.pg_stat_archiver"
);

const SIZE: &str =
    "SELECT sum(pg_catalog.pg_tablespace_size(oid))::text AS bytes FROM pg_catalog.pg_tablespace";

/// The settings that tell how a server is backed up.
pub(crate) const SETTINGS: [&str; 22] = [
    "archive_command",
    "archive_library",
    "archive_mode",
    "archive_timeout",
    "checkpoint_timeout",
    "config_file",
    "data_checksums",
    "data_directory",
    "hba_file",
    "hot_standby",
    "ident_file",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "summarize_wal",
    "synchronous_commit",
    "synchronous_standby_names",
    "TimeZone",
    "wal_compression",
    "wal_keep_size",
    "wal_level",
    "wal_segment_size",
];

/// A replication slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Its name.
    pub(crate) name: String,
    /// Whether a process uses it.
    pub(crate) is_active: bool,
    /// The oldest WAL that it keeps.
    pub(crate) restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub(crate) wal_status: Option<String>,
}

/// `pg_stat_archiver`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ArchiverStats {
    /// Files that were archived.
    pub(crate) archived_count: u64,
    /// The last of them.
    pub(crate) last_archived_wal: Option<String>,
    /// When.
    pub(crate) last_archived_time: Option<TimestampMicros>,
    /// Failures.
    pub(crate) failed_count: u64,
    /// The last file that failed.
    pub(crate) last_failed_wal: Option<String>,
    /// When.
    pub(crate) last_failed_time: Option<TimestampMicros>,
    /// Since when this is counted.
    pub(crate) since: Option<TimestampMicros>,
}

/// The facts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Live {
    /// The version of PostgreSQL.
    pub(crate) version: Option<ServerVersion>,
    /// The cluster.
    pub(crate) system_id: Option<SystemId>,
    /// The server's clock.
    pub(crate) now: Option<TimestampMicros>,
    /// When it was started.
    pub(crate) started: Option<TimestampMicros>,
    /// Whether it is a standby.
    pub(crate) in_recovery: Option<bool>,
    /// Whether the role of this connection is a superuser.
    pub(crate) is_superuser: Option<bool>,
    /// Whether it may take backups and receive WAL.
    pub(crate) may_replicate: Option<bool>,
    /// Whether it sees what `pg_monitor` lets see.
    pub(crate) may_monitor: Option<bool>,
    /// Size of its databases in bytes.
    pub(crate) size_bytes: Option<u64>,
    /// Its settings, as far as the role may see them.
    pub(crate) settings: BTreeMap<String, String>,
    /// The timeline that it writes or replays.
    pub(crate) timeline: Option<TimelineId>,
    /// The end of the WAL that it has written; on a standby, replayed.
    pub(crate) current_lsn: Option<Lsn>,
    /// The end of the WAL that is durable there.
    pub(crate) flush_lsn: Option<Lsn>,
    /// Size of its segments.
    pub(crate) segment_size: Option<SegmentSize>,
    /// Its archiver.
    pub(crate) archiver: Option<ArchiverStats>,
    /// The slot of the configuration; `None` if there is none.
    pub(crate) slot: Option<Slot>,
    /// What receives its WAL as a stream.
    pub(crate) clients: Vec<StreamClient>,
    /// Why something is missing here: a connection that failed, or a query.
    pub(crate) problems: Vec<String>,
}

impl Live {
    /// The segment that the server is writing; on a standby, replaying.
    pub(crate) fn current_wal(&self) -> Option<SegmentName> {
        Some(SegmentName::from_lsn(
            self.timeline?,
            self.current_lsn?,
            self.segment_size?,
        ))
    }

    /// A setting.
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    /// How many files the server has archived per hour since its counters were reset.
    pub(crate) fn archived_per_hour(&self) -> Option<f64> {
        let archiver = self.archiver.as_ref()?;
        let micros = self
            .now?
            .unix_micros()
            .checked_sub(archiver.since?.unix_micros())?;
        #[expect(clippy::cast_precision_loss, reason = "a rate is shown with two digits")]
        let rate = archiver.archived_count as f64 * 3.6e9 / micros.max(1) as f64;
        (archiver.archived_count > 0 && micros > 0).then_some(rate)
    }

    /// The stream of this server's `receive-wal`, if it is certain which it is.
    pub(crate) fn own_stream(&self, server: &ServerConfig) -> Option<&StreamClient> {
        match OwnStream::among(&self.clients, server) {
            OwnStream::One(client) => Some(client),
            OwnStream::None | OwnStream::OneOf(_) => None,
        }
    }
}

/// Connects to a host of a server and asks it. The replication connection, if there is one, can be used for more.
///
/// # Errors
/// When neither connection can be made.
pub(super) fn ask(server: &ServerConfig, host: Host) -> Result<(Live, Option<Connection>), Error> {
    let mut live = Live::default();
    // A host that is not there is waited for once.
    let (sql, streaming) = thread::scope(|scope| {
        let stream = || cluster::look(server, host.streaming());
        let streaming = threads::start_in(scope, "streaming", stream);
        let sql = cluster::look(server, host.sql());
        match streaming {
            Ok(streaming) => (sql, streaming.join().unwrap_or_else(|panic| resume_unwind(panic))),
            // One after the other.
            Err(_) => (sql, stream()),
        }
    });
    let sql = sql.map(|mut sql| {
        if let Err(error) = ask_in_sql(server, &mut sql, &mut live) {
            live.problems.push(error.to_string());
        }
    });
    let streaming = streaming.and_then(|mut streaming| {
        ask_for_settings(&mut streaming, &mut live)?;
        Ok(streaming)
    });
    match (sql, streaming) {
        (Err(error), Err(_)) => Err(error),
        (sql, streaming) => {
            let problems = [
                sql.err(),
                streaming
                    .as_ref()
                    .err()
                    .map(|error| Error::failed(error.to_string())),
            ];
            live.problems
                .extend(problems.into_iter().flatten().map(|error| error.to_string()));
            Ok((live, streaming.ok()))
        }
    }
}

/// What a replication connection tells is preferred: it has the timeline of this moment.
fn ask_for_settings(streaming: &mut Connection, live: &mut Live) -> Result<(), Error> {
    let settings = ServerSettings::ask(streaming)?;
    live.version = Some(settings.version);
    live.system_id = Some(settings.system_id);
    live.timeline = Some(settings.timeline);
    live.flush_lsn = Some(settings.flush_lsn);
    live.current_lsn.get_or_insert(settings.flush_lsn);
    live.segment_size = Some(settings.segment_size);
    live.in_recovery = Some(streaming.is_in_recovery()?);
    Ok(())
}

fn ask_in_sql(server: &ServerConfig, sql: &mut Connection, live: &mut Live) -> Result<(), Error> {
    live.version = sql.server_version().ok();
    sql.simple_query(STATEMENT_TIMEOUT)?;
    let results = sql.simple_query(STATE)?;
    if let Some(rows) = results.first().filter(|rows| rows.len() > 0) {
        state(rows, live);
    }
    let names: Vec<String> = SETTINGS.iter().map(|name| format!("'{name}'")).collect();
    let results = sql.simple_query(&format!(
        "SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ({})",
        names.join(", ")
    ))?;
    if let Some(rows) = results.first() {
        live.settings = settings(rows);
    }
    let size = live
        .setting("wal_segment_size")
        .and_then(|bytes| bytes.parse::<u64>().ok());
    live.segment_size = size.and_then(|bytes| SegmentSize::try_from(bytes).ok());
    if let Some(name) = &server.slot_name {
        live.slot = slot(sql, name)?;
    }
    live.clients = clients::ask(sql)?;
    match sql.simple_query(SIZE) {
        Ok(results) => live.size_bytes = results.first().and_then(|rows| parsed(rows, 0, "bytes")),
        Err(error) => live.problems.push(format!("The size is not known: {error}")),
    }
    Ok(())
}

fn state(rows: &ResultSet, live: &mut Live) {
    live.now = time(rows, 0, "now");
    live.started = time(rows, 0, "started");
    let is_true = |column| rows.text(0, column).map(|text| text == "true");
    live.in_recovery = is_true("in_recovery");
    live.is_superuser = is_true("is_superuser");
    live.may_replicate = is_true("may_replicate");
    live.may_monitor = is_true("may_monitor");
    live.current_lsn = parsed(rows, 0, "current_lsn");
    live.flush_lsn = parsed(rows, 0, "flush_lsn");
    live.timeline = parsed(rows, 0, "timeline").map(TimelineId);
    live.system_id = parsed(rows, 0, "system_id");
    let text = |column| rows.bytes(0, column).map(printable);
    live.archiver = Some(ArchiverStats {
        archived_count: parsed(rows, 0, "archived").unwrap_or_default(),
        last_archived_wal: text("last_archived_wal"),
        last_archived_time: time(rows, 0, "last_archived"),
        failed_count: parsed(rows, 0, "failed").unwrap_or_default(),
        last_failed_wal: text("last_failed_wal"),
        last_failed_time: time(rows, 0, "last_failed"),
        since: time(rows, 0, "stats_reset"),
    });
}

/// A command in a setting may have a password.
fn settings(rows: &ResultSet) -> BTreeMap<String, String> {
    let text = |row, column| Some(without_patterns(&printable(rows.bytes(row, column)?)));
    (0..rows.len())
        .filter_map(|row| Some((text(row, "name")?, text(row, "setting")?)))
        .collect()
}

/// The slot; `None` if it does not exist.
fn slot(sql: &mut Connection, name: &str) -> Result<Option<Slot>, Error> {
    // The configuration has checked that the name has no quote.
    let results = sql.simple_query(&format!(
        "SELECT active::text AS active, restart_lsn::text AS restart_lsn, wal_status \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = '{name}'"
    ))?;
    let rows = results.first().filter(|rows| rows.len() > 0);
    Ok(rows.map(|rows| Slot {
        name: name.to_owned(),
        is_active: rows.text(0, "active") == Some("true"),
        restart_lsn: parsed(rows, 0, "restart_lsn"),
        wal_status: rows.bytes(0, "wal_status").map(printable),
    }))
}

/// A value of a row that has the right form.
pub(super) fn parsed<T: FromStr>(rows: &ResultSet, row: usize, column: &str) -> Option<T> {
    rows.text(row, column)?.parse().ok()
}

/// A time that is sent as microseconds since 1970.
pub(super) fn time(rows: &ResultSet, row: usize, column: &str) -> Option<TimestampMicros> {
    parsed(rows, row, column).map(TimestampMicros::from_unix_micros)
}
