//! One server: its hosts, its checks, and what is stored of it.

use std::collections::BTreeMap;
use std::time::Duration;

use barmanfs_catalog::{Backup, ServerName, WalEntry};
use serde_json::{Value, json};

use super::super::show_servers;
use super::{part, to_value};
use crate::config::Config;
use crate::error::Error;
use crate::health;
use crate::invocation::Invocation;
use crate::place::Place;
use crate::processes;
use crate::report::{self, CheckedServer, ListedProcess, ShownServer};

/// How long the checks of a server may take where the configuration sets no limit.
const WITHIN: Duration = Duration::from_secs(30);

/// A server that was looked at.
pub(super) struct Diagnosed {
    pub(super) name: String,
    /// Its configuration and its hosts; none for a server that only the repository knows.
    pub(super) shown: Option<ShownServer>,
    pub(super) backups: Result<Vec<Backup>, Error>,
    pub(super) last_wal: Result<Option<WalEntry>, Error>,
    checks: Option<CheckedServer>,
    timelines: Result<Value, Error>,
    processes: Result<Vec<ListedProcess>, Error>,
}

/// The servers of the configuration, and those that only the repository knows.
pub(super) fn names(config: &Config) -> Vec<ServerName> {
    let mut names: Vec<ServerName> = config.servers.iter().map(|server| server.name.clone()).collect();
    let stored = Place::of(config)
        .open()
        .and_then(|repository| repository.servers());
    for server in stored.unwrap_or_default() {
        if !names.contains(&server) {
            names.push(server);
        }
    }
    names
}

/// Checks the repository once, and each server of the configuration.
pub(super) fn checks(config: &Config, invocation: &Invocation) -> BTreeMap<ServerName, CheckedServer> {
    let request = health::Request {
        place: &Place::of(config),
        servers: &config.servers,
        invocation,
        measured: false,
    };
    let report = health::check(&request, |server| Some(server.check_timeout.unwrap_or(WITHIN)));
    let named = config.servers.iter().zip(report.into_each());
    named
        .map(|(server, checked)| (server.name.clone(), CheckedServer::new(server, checked)))
        .collect()
}

impl Diagnosed {
    /// Looks at a server.
    pub(super) fn of(
        config: &Config,
        name: &ServerName,
        checked: &BTreeMap<ServerName, CheckedServer>,
    ) -> Self {
        let configured = config.server(name.as_str());
        let repository = Place::of(config).open().map_err(Error::from);
        let repository = repository.as_ref();
        let read = |error: &Error| error.clone();
        Self {
            name: name.to_string(),
            shown: configured.map(show_servers::show_one),
            checks: checked.get(name).cloned(),
            backups: repository
                .map_err(read)
                .and_then(|repository| Ok(repository.backups(name)?)),
            last_wal: repository
                .map_err(read)
                .and_then(|repository| Ok(repository.wal(name).newest_segment()?)),
            timelines: repository
                .map_err(read)
                .and_then(|repository| to_value(&repository.timelines(name)?)),
            processes: repository.map_err(read).and_then(|repository| {
                let found = processes::of(repository, name)?;
                Ok(found.iter().map(ListedProcess::new).collect())
            }),
        }
    }

    /// The server in the document.
    pub(super) fn value(&self) -> Value {
        let shown = self.shown.as_ref();
        let hosts = shown.map(|shown| &shown.hosts);
        let checks = self.checks.as_ref().map(|checked| &checked.findings);
        let backups = self.backups.as_ref().map_err(Clone::clone);
        let backups = backups.and_then(|backups| {
            let listed: Result<Vec<Value>, Error> = backups.iter().map(report::backup).collect();
            Ok(Value::Array(listed?))
        });
        let processes = self.processes.as_ref().map_err(Clone::clone);
        json!({
            "server": self.name,
            "configured": shown.is_some(),
            "active": shown.is_some_and(|shown| shown.active),
            "disabled": shown.is_some_and(|shown| shown.disabled),
            "hosts": hosts.map(to_value).and_then(Result::ok).unwrap_or_else(|| json!([])),
            "checks": checks.map(to_value).and_then(Result::ok).unwrap_or_else(|| json!([])),
            "backups": part(backups),
            "timelines": part(self.timelines.clone()),
            "processes": part(processes.and_then(to_value)),
        })
    }
}
