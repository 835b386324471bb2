//! The checks that query the server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use barmanfs_catalog::{BackupId, BackupSelector, ConfigurationFiles, Repository};

use super::finding::{Finding, Findings};
use super::wal_arrival::{self, Asked};
use super::{Stored, Subject, streaming};
use crate::backup;
use crate::cluster::{self, ConfigurationPaths, Purpose, ServerSettings, configuration_files, primary};
use crate::config::{BackupMethod, ServerConfig};
use crate::error::Error;
use crate::lineage::{self, Lineage};
use crate::output;
use crate::postgres::Connection;
use crate::versions;

/// The connections to a server that the checks use.
#[derive(Debug)]
pub(super) struct Connections {
    /// For replication.
    pub(super) streaming: Connection,
    /// For SQL; `None` if `conninfo` is not set, or the connection failed.
    pub(super) sql: Option<Connection>,
}

impl Connections {
    /// Connects both ways; `None` if there is no replication connection.
    pub(super) fn open(server: &ServerConfig, findings: &mut Findings) -> Option<Self> {
        let sql = server
            .conninfo
            .as_ref()
            .map(|_| cluster::connect(server, Purpose::Sql));
        let mut sql = sql.and_then(|connection| findings.result("PostgreSQL", connection, target));
        let streaming = cluster::connect(server, Purpose::Backup);
        let mut streaming = findings.result("PostgreSQL streaming", streaming, target);
        // With 'minimal' there are no replication connections.
        if let Some(connection) = sql.as_mut().or(streaming.as_mut()) {
            wal_level("wal_level", connection, findings);
        }
        Some(Self {
            streaming: streaming?,
            sql,
        })
    }

    /// Whether there is each connection that the configuration describes.
    pub(super) fn are_complete(&self, server: &ServerConfig) -> bool {
        server.conninfo.is_none() || self.sql.is_some()
    }
}

/// A cluster that has answered.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) cluster: ServerSettings,
    /// The stored state is of the same cluster, or there is none.
    pub(super) is_stored_one: bool,
}

/// Checks the server, and compares it with the stored state. `None` if it could not be asked.
pub(super) fn check(
    subject: Subject<'_>,
    stored: Option<&Stored>,
    Connections { streaming, sql }: &mut Connections,
    findings: &mut Findings,
) -> Option<Answered> {
    let server = subject.server;
    let repository = stored.map(|stored| &stored.repository);
    let asked = ServerSettings::ask(streaming);
    let cluster = findings.result("PostgreSQL version", asked, |cluster| {
        Some(cluster.version.to_string())
    })?;
    if let Some(unknown) = versions::unknown(cluster.version) {
        findings.failed("PostgreSQL's version is known", unknown);
    }
    let is_stored_one = system_id(repository, server, &cluster, findings);
    if server.primary_conninfo.is_some() {
        if let Some(sql) = sql.as_mut() {
            is_standby(sql, findings);
        }
        let primary = primary::connect(server, cluster.system_id);
        findings.result("primary", primary, target);
    }
    configuration_files(repository.filter(|_| is_stored_one), server, streaming, findings);
    if server.backup_method == BackupMethod::Files {
        let readable = backup::local::readable(&cluster, streaming, sql.as_mut());
        findings.result("files of the server", readable, |place| Some(place.clone()));
    }
    // PostgreSQL drops a temporary slot when a command fails, so commands that may fail come before the slot
    // is created.
    if let Some(repository) = repository {
        same_history(repository, server, &cluster, streaming, findings);
    }
    let slot = streaming.create_temporary_slot(&slot_name());
    findings.result("temporary replication slot", slot.map_err(Error::from), |()| None);
    Some(Answered {
        cluster,
        is_stored_one,
    })
}

/// Checks whether the WAL of the host with these connections is received and archived.
pub(super) fn check_wal(
    subject: Subject<'_>,
    stored: Option<&Stored>,
    Connections { streaming, sql }: &mut Connections,
    answered: &Answered,
    findings: &mut Findings,
) {
    let repository = stored.map(|stored| &stored.repository);
    streaming::check(subject, repository, sql.as_mut(), findings);
    let mut asked = Asked {
        invocation: subject.invocation,
        // The stored state of another cluster says nothing about this one.
        repository: repository.filter(|_| answered.is_stored_one),
        timelines: stored.and_then(|stored| stored.timelines.as_ref()),
        server: subject.server,
        cluster: &answered.cluster,
        streaming,
        sql: sql.as_mut(),
    };
    wal_arrival::check(&mut asked, findings);
}

/// With `minimal`, WAL lacks what a recovery needs.
pub(super) fn wal_level(name: &'static str, connection: &mut Connection, findings: &mut Findings) {
    match connection.show("wal_level") {
        Ok(level) if level == "minimal" => findings.failed(
            name,
            "it is minimal: set wal_level = replica and restart the server",
        ),
        Ok(level) => findings.ok(name, output::printable(level.as_bytes())),
        Err(error) => findings.failed(name, Error::from(error).to_string()),
    }
}

/// `primary_conninfo` is for a standby only.
fn is_standby(sql: &mut Connection, findings: &mut Findings) {
    const NAME: &str = "PostgreSQL server is standby";
    match sql.simple_query("SELECT pg_catalog.pg_is_in_recovery()::text AS standby") {
        Ok(rows) if rows.first().and_then(|rows| rows.text(0, "standby")) == Some("true") => {
            findings.ok(NAME, None);
        }
        Ok(_) => findings.failed(
            NAME,
            "it is a primary, as after a promotion: set primary_conninfo only where 'conninfo' leads to a standby",
        ),
        Err(error) => findings.failed(NAME, Error::from(error).to_string()),
    }
}

/// Whether the server's WAL is the archived WAL.
fn same_history(
    repository: &Repository,
    server: &ServerConfig,
    cluster: &ServerSettings,
    streaming: &mut Connection,
    findings: &mut Findings,
) {
    const NAME: &str = "history of the server";
    match lineage::of_archive(repository, &server.name, cluster, streaming) {
        Ok(Lineage::Same) => findings.ok(NAME, "that of the archive".to_owned()),
        Ok(Lineage::Unknown) => findings.ok(NAME, "the archive has nothing to compare it with".to_owned()),
        Ok(Lineage::Other(fork)) => findings.push(
            Finding::failed(NAME, format!("history changed: {fork}"))
                .hint(format!("'barmanfs history {} list' tells more", server.name)),
        ),
        Err(error) => findings.failed(NAME, error.to_string()),
    }
}

/// The server of a connection, for messages.
pub(super) fn target(connection: &Connection) -> Option<String> {
    let encrypted = if connection.is_encrypted() {
        ", encrypted"
    } else {
        ""
    };
    Some(format!("{}{encrypted}", connection.target()))
}

/// Configuration files outside the data directory, as on Debian, must be in the newest backup.
fn configuration_files(
    repository: Option<&Repository>,
    server: &ServerConfig,
    streaming: &mut Connection,
    findings: &mut Findings,
) {
    const NAME: &str = "configuration files";
    let paths = match ConfigurationPaths::ask(streaming) {
        Ok(Some(paths)) => paths,
        Ok(None) => {
            let why = "where they are cannot be seen: GRANT pg_read_all_settings to the role";
            return findings.ok(NAME, why.to_owned());
        }
        Err(error) => return findings.failed(NAME, error.to_string()),
    };
    let outside = paths.outside();
    if outside.is_empty() {
        return findings.ok(NAME, "in the data directory".to_owned());
    }
    match repository.map_or(Ok(None), |repository| newest_configuration(repository, server)) {
        Ok(None) => {
            let files = paths_in_text(&outside);
            findings.ok(
                NAME,
                format!("outside the data directory, no backup yet: {files}"),
            );
        }
        Ok(Some((id, files))) => {
            let kept: Vec<&String> = files
                .iter()
                .flat_map(ConfigurationFiles::named_by_settings)
                .collect();
            let lost: Vec<&str> = outside
                .iter()
                .copied()
                .filter(|path| kept.iter().all(|kept| kept != path))
                .collect();
            if lost.is_empty() {
                return findings.ok(NAME, format!("in backup {id}: {}", paths_in_text(&outside)));
            }
            let message = format!(
                "not in backup {id}, with all they include: {}",
                paths_in_text(&lost)
            );
            let hint = format!("Keep copies of them, or {}", configuration_files::GRANTS);
            findings.push(Finding::warning(NAME, message).hint(hint));
        }
        Err(error) => findings.failed(NAME, error.to_string()),
    }
}

/// The newest backup of the server, and the configuration files that were stored with it.
fn newest_configuration(
    repository: &Repository,
    server: &ServerConfig,
) -> barmanfs_catalog::Result<Option<(BackupId, Option<ConfigurationFiles>)>> {
    let newest = match repository.backup(&server.name, &BackupSelector::Latest) {
        Ok(newest) => newest,
        Err(barmanfs_catalog::Error::NoSuchBackup { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some((newest.id, repository.configuration_files(&newest)?)))
}

fn paths_in_text(paths: &[&str]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.escape_debug().to_string()).collect();
    paths.join(", ")
}

fn system_id(
    repository: Option<&Repository>,
    server: &ServerConfig,
    cluster: &ServerSettings,
    findings: &mut Findings,
) -> bool {
    const NAME: &str = "system identifier";
    match repository.map(|repository| repository.system_id(&server.name)) {
        None | Some(Ok(None)) => {
            findings.ok(NAME, format!("{}, nothing stored of it yet", cluster.system_id));
            return true;
        }
        Some(Ok(Some(known))) if known == cluster.system_id => {
            findings.ok(NAME, known.to_string());
            return true;
        }
        Some(Ok(Some(known))) => findings.failed(
            NAME,
            format!(
                "the server is {}, the backups are of {known}: use another server name for a new cluster",
                cluster.system_id
            ),
        ),
        Some(Err(error)) => findings.failed(NAME, Error::from(error).to_string()),
    }
    false
}

/// A name that no other check has at the same time: several servers are checked at once, and two of them may be one cluster.
fn slot_name() -> String {
    static NTH: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!(
        "barmanfs_check_{}_{}_{:x}",
        std::process::id(),
        NTH.fetch_add(1, Ordering::Relaxed),
        now.as_micros()
    )
}
