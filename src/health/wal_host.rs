//! The checks of the host that WAL is received from, where that is another one than that of backups. They run also while the
//! other one is down.

use barmanfs_catalog::Repository;
use barmanfs_pg::SystemId;

use super::finding::{Finding, Findings};
use super::server::{self, Answered, Connections};
use super::{Stored, Subject};
use crate::cluster::{self, Purpose, ServerSettings};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::postgres::{Connection, ResultSet};

const STREAMING: &str = "PostgreSQL streaming (WAL streaming)";
const WAL_LEVEL: &str = "wal_level (WAL streaming)";
const MONITORING: &str = "has monitoring privileges (WAL streaming)";
const COHERENCE: &str = "systemid coherence (WAL streaming)";

/// What the role has without further rights is not enough: see `pg_stat_replication` and `pg_settings`.
const PRIVILEGES: &str = "SELECT (pg_catalog.pg_has_role(current_user, 'pg_monitor', 'USAGE') OR \
     pg_catalog.pg_has_role(current_user, 'pg_read_all_settings', 'USAGE') AND \
     pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'))::text AS may, current_user AS role, \
     (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system_id";

/// Checks the host, and whether its WAL is received. `answered` is the host of backups, if it could be asked.
pub(super) fn check(
    subject: Subject<'_>,
    stored: Option<&Stored>,
    answered: Option<&Answered>,
    findings: &mut Findings,
) {
    let server = subject.server;
    let sql = cluster::connect(server, Purpose::WalHostSql);
    let (sql, id_in_sql) = match sql.and_then(|mut sql| Ok((privileges(&mut sql)?, sql))) {
        Ok(((finding, system_id), sql)) => {
            findings.push(finding);
            (Some(sql), system_id)
        }
        Err(error) => {
            findings.failed(MONITORING, error.to_string());
            (None, None)
        }
    };
    let (mut sql, streaming) = (sql, cluster::connect(server, Purpose::WalHost));
    let mut streaming = findings.result(STREAMING, streaming, server::target);
    // With 'minimal' there are no replication connections.
    if let Some(connection) = sql.as_mut().or(streaming.as_mut()) {
        server::wal_level(WAL_LEVEL, connection, findings);
    }
    let Some(streaming) = streaming else { return };
    let mut connections = Connections { streaming, sql };
    let cluster = match ServerSettings::ask(&mut connections.streaming) {
        Ok(cluster) => cluster,
        Err(error) => return findings.failed(COHERENCE, error.to_string()),
    };
    let known = known(server, stored.map(|stored| &stored.repository), answered);
    let here = [
        Some((
            cluster.system_id,
            "the host of WAL, over the replication protocol",
        )),
        id_in_sql.map(|id| (id, "the host of WAL, in SQL")),
    ];
    let coherence = match known {
        Ok(known) => coherence(here.into_iter().chain(known).flatten()),
        Err(error) => Finding::failed(COHERENCE, error.to_string()),
    };
    let is_stored_one = coherence.state != super::State::Failed;
    findings.push(coherence);
    let answered = Answered {
        cluster,
        is_stored_one,
    };
    server::check_wal(subject, stored, &mut connections, &answered, findings);
}

type Identity = (SystemId, &'static str);

/// The cluster that is stored, and that of the backups' host.
fn known(
    server: &ServerConfig,
    repository: Option<&Repository>,
    answered: Option<&Answered>,
) -> Result<[Option<Identity>; 2], Error> {
    let stored = match repository {
        Some(repository) => repository.system_id(&server.name)?,
        None => None,
    };
    Ok([
        stored.map(|id| (id, "what is stored")),
        answered.map(|answered| (answered.cluster.system_id, "the host of backups")),
    ])
}

/// All of them must be one cluster.
fn coherence(found: impl Iterator<Item = Identity>) -> Finding {
    let found: Vec<Identity> = found.collect();
    let Some((first, _)) = found.first() else {
        return Finding::failed(COHERENCE, "no system identifier is known");
    };
    if found.iter().all(|(id, _)| id == first) {
        return Finding::ok(COHERENCE, first.to_string());
    }
    let all: Vec<String> = found
        .iter()
        .map(|(id, who)| format!("{who} is of {id}"))
        .collect();
    Finding::failed(COHERENCE, all.join(", ")).hint(
        "Correct wal_streaming_conninfo and wal_conninfo: both must lead to the cluster that is backed up",
    )
}

fn privileges(sql: &mut Connection) -> Result<(Finding, Option<SystemId>), Error> {
    let results = sql.simple_query(PRIVILEGES)?;
    let text = |column| results.first().and_then(|rows: &ResultSet| rows.text(0, column));
    let finding = match text("may") {
        Some("true") => Finding::ok(MONITORING, server::target(sql).unwrap_or_default()),
        _ => Finding::failed(
            MONITORING,
            format!(
                "user \"{role}\" of wal_conninfo sees neither all settings nor all connections",
                role = text("role").unwrap_or_default()
            ),
        )
        .hint(format!(
            "As a superuser there: GRANT pg_monitor TO \"{}\"",
            text("role").unwrap_or_default()
        )),
    };
    Ok((finding, text("system_id").and_then(|id| id.parse().ok())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::State;

    #[test]
    fn all_that_is_known_must_be_one_cluster() {
        let state = |ids: &[u64]| coherence(ids.iter().map(|id| (SystemId(*id), "it"))).state;
        assert_eq!(state(&[7, 7, 7]), State::Ok);
        assert_eq!(state(&[7]), State::Ok, "nothing is stored yet");
        assert_eq!(state(&[7, 7, 8]), State::Failed);
        assert_eq!(state(&[]), State::Failed);
    }
}
