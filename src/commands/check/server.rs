//! The checks that ask the server.

use barmanfs_catalog::Repository;

use super::arrival::{self, Asked};
use super::repository::Stored;
use super::{Context, Line, Lines, streaming};
use crate::backup::{self, Lineage};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::postgres::{Connection, Conninfo, Environment, Mode};
use crate::versions;

/// Connects in both ways and asks.
pub(super) fn check(context: &Context<'_>, stored: Option<&Stored>, lines: &mut Lines) {
    let server = context.server;
    let repository = stored.map(|stored| &stored.repository);
    let sql = server.conninfo.as_ref().map(|conninfo| {
        let conninfo = Conninfo::parse(conninfo.expose(), &Environment::new(std::env::vars_os()))?;
        Connection::connect(&conninfo, Mode::Sql).map_err(Error::from)
    });
    let mut sql = sql.and_then(|connection| lines.result("PostgreSQL", connection, target));
    let streaming = lines.result("PostgreSQL streaming", backup::connect(server), target);
    let Some(mut streaming) = streaming else { return };
    let asked = backup::ServerSettings::ask(&mut streaming);
    let Some(cluster) = lines.result("PostgreSQL version", asked, |cluster| {
        Some(cluster.version.to_string())
    }) else {
        return;
    };
    if let Some(unknown) = versions::unknown(cluster.version) {
        lines.failed("PostgreSQL's version is known", unknown);
    }
    let same_cluster = system_id(repository, server, &cluster, lines);
    if server.primary_conninfo.is_some() {
        lines.result(
            "primary",
            backup::primary::connect(server, cluster.system_id),
            target,
        );
    }
    configuration_files(&mut streaming, lines);
    // Before the slot, which would end with a command that fails.
    if let Some(repository) = repository {
        same_history(repository, server, &cluster, &mut streaming, lines);
    }
    let slot = streaming.create_temporary_slot(&format!("barmanfs_check_{}", std::process::id()));
    lines.result("temporary replication slot", slot.map_err(Error::from), |()| None);
    if server.streaming_archiver {
        streaming::check(context, repository, &mut streaming, sql.as_mut(), lines);
    }
    let mut asked = Asked {
        invocation: &context.invocation,
        // What is stored of another cluster says nothing about this one.
        repository: repository.filter(|_| same_cluster),
        timelines: stored.and_then(|stored| stored.timelines.as_ref()),
        server,
        cluster: &cluster,
        streaming: &mut streaming,
        sql: sql.as_mut(),
    };
    arrival::check(&mut asked, lines);
}

/// Whether the server's WAL is what is archived.
fn same_history(
    repository: &Repository,
    server: &ServerConfig,
    cluster: &backup::ServerSettings,
    streaming: &mut Connection,
    lines: &mut Lines,
) {
    const NAME: &str = "history of the server";
    match backup::of_archive(repository, &server.name, cluster, streaming) {
        Ok(Lineage::Same) => lines.ok(NAME, "that of the archive".to_owned()),
        Ok(Lineage::Unknown) => lines.ok(NAME, "the archive has nothing to compare it with".to_owned()),
        Ok(Lineage::Other(fork)) => lines.failed(
            NAME,
            format!(
                "history changed: {fork}. 'barmanfs history {} list' tells more",
                server.name
            ),
        ),
        Err(error) => lines.failed(NAME, error.to_string()),
    }
}

fn target(connection: &Connection) -> Option<String> {
    let encrypted = if connection.is_encrypted() {
        ", encrypted"
    } else {
        ""
    };
    Some(format!("{}{encrypted}", connection.target()))
}

/// Asked before there is a slot: PostgreSQL drops it when a command fails.
fn configuration_files(streaming: &mut Connection, lines: &mut Lines) {
    const NAME: &str = "configuration files";
    match backup::files_outside(streaming) {
        Ok(Some(outside)) if outside.is_empty() => lines.ok(NAME, "in the data directory".to_owned()),
        Ok(Some(outside)) => lines.extend([Line::warning(
            NAME,
            format!(
                "in no backup, with all they include: {}. Keep copies of them",
                outside.join(", ")
            ),
        )]),
        Ok(None) => lines.ok(
            NAME,
            "where they are cannot be seen: GRANT pg_read_all_settings to the role".to_owned(),
        ),
        Err(error) => lines.failed(NAME, error.to_string()),
    }
}

fn system_id(
    repository: Option<&Repository>,
    server: &ServerConfig,
    cluster: &backup::ServerSettings,
    lines: &mut Lines,
) -> bool {
    const NAME: &str = "system identifier";
    match repository.map(|repository| repository.system_id(&server.name)) {
        None | Some(Ok(None)) => {
            lines.ok(NAME, format!("{}, nothing stored of it yet", cluster.system_id));
            return true;
        }
        Some(Ok(Some(known))) if known == cluster.system_id => {
            lines.ok(NAME, known.to_string());
            return true;
        }
        Some(Ok(Some(known))) => lines.failed(
            NAME,
            format!(
                "the server is {}, the backups are of {known}: use another server name for a new cluster",
                cluster.system_id
            ),
        ),
        Some(Err(error)) => lines.failed(NAME, Error::from(error).to_string()),
    }
    false
}
