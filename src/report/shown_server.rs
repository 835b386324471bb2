//! `show-servers --json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, SystemId, TimelineId, TimestampMicros};
use serde::Serialize;

use super::ConfiguredSection;
use crate::config::{Misnamed, Secrets, ServerConfig, Setting, Value};
use crate::error::Error;
use crate::health::standing::{ArchiverStats, Live, SETTINGS};
use crate::output::printable;

/// A server: what is configured, and what its hosts say.
#[derive(Debug, Serialize)]
pub(crate) struct ShownServer {
    pub(crate) server: String,
    pub(crate) active: bool,
    /// Its configuration has errors.
    pub(crate) disabled: bool,
    /// Its backups and WAL come from another site, and it is not asked.
    pub(crate) passive: bool,
    pub(crate) active_model: Option<String>,
    /// Why it is disabled.
    pub(crate) errors: Vec<String>,
    /// Every key with the value that counts, and keys that are set without effect.
    pub(crate) configuration: Vec<ShownKey>,
    /// The host that backups come from, and the one that WAL is received from where that is another one.
    pub(crate) hosts: Vec<ShownHost>,
}

/// A key of the configuration.
#[derive(Debug, Serialize)]
pub(crate) struct ShownKey {
    pub(crate) key: String,
    /// The value that counts; for a key without effect, what is written.
    pub(crate) value: Option<String>,
    /// Where it is written; nowhere if it is the built-in default.
    pub(crate) file: Option<PathBuf>,
    pub(crate) line: Option<usize>,
    /// `section`, `default`, `global`, `model`, or `built-in`.
    source: &'static str,
    /// See `config check --json`.
    effect: &'static str,
    message: Option<String>,
    /// The same, typed; `None` for a key without effect.
    #[serde(skip)]
    pub(crate) effective: Option<Value>,
}

/// What a host says.
#[derive(Debug, Serialize)]
pub(crate) struct ShownHost {
    /// `backup` or `wal`.
    pub(crate) host: &'static str,
    pub(crate) answers: bool,
    /// Why it does not answer.
    pub(crate) error: Option<String>,
    /// Why something is missing although it answers.
    pub(crate) problems: Vec<String>,
    #[serde(flatten)]
    pub(crate) facts: Facts,
}

impl ShownHost {
    /// Takes the passwords of the configuration out of what the host says.
    fn hide(&mut self, secrets: &Secrets) {
        let settings = self.facts.settings.values_mut().flatten();
        let texts = self.problems.iter_mut().chain(&mut self.error).chain(settings);
        for text in texts {
            *text = secrets.remove(text);
        }
    }
}

/// Facts of a running server.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Facts {
    pub(crate) server_version: Option<String>,
    pub(crate) system_id: Option<SystemId>,
    pub(crate) is_in_recovery: Option<bool>,
    pub(crate) timeline: Option<TimelineId>,
    pub(crate) current_lsn: Option<Lsn>,
    pub(crate) flush_lsn: Option<Lsn>,
    pub(crate) current_wal: Option<SegmentName>,
    pub(crate) wal_segment_bytes: Option<u64>,
    pub(crate) current_size_bytes: Option<u64>,
    #[serde(rename = "started_at")]
    pub(crate) started: Option<TimestampMicros>,
    pub(crate) is_superuser: Option<bool>,
    pub(crate) has_backup_privileges: Option<bool>,
    pub(crate) has_monitoring_privileges: Option<bool>,
    /// The slot of the configuration; none if there is none.
    pub(crate) replication_slots: Vec<ShownSlot>,
    pub(crate) archived_count: Option<u64>,
    pub(crate) last_archived_wal: Option<String>,
    pub(crate) last_archived_time: Option<TimestampMicros>,
    pub(crate) failed_count: Option<u64>,
    pub(crate) last_failed_wal: Option<String>,
    pub(crate) last_failed_time: Option<TimestampMicros>,
    /// The server's settings, as far as the role may see them.
    pub(crate) settings: BTreeMap<&'static str, Option<String>>,
}

/// A replication slot.
#[derive(Debug, Serialize)]
pub(crate) struct ShownSlot {
    pub(crate) name: String,
    pub(crate) active: bool,
    pub(crate) restart_lsn: Option<Lsn>,
    pub(crate) wal_status: Option<String>,
}

impl ShownServer {
    /// A server with what its hosts have answered.
    pub(crate) fn new(server: &ServerConfig, mut hosts: Vec<ShownHost>) -> Self {
        for host in &mut hosts {
            host.hide(&server.secrets);
        }
        Self {
            server: server.name.to_string(),
            active: server.active,
            disabled: server.is_disabled(),
            passive: server.is_passive(),
            active_model: server.active_model.clone(),
            errors: server.errors.iter().map(ToString::to_string).collect(),
            configuration: keys(server),
            hosts,
        }
    }

    /// A section that cannot be a server.
    pub(crate) fn misnamed(section: &Misnamed) -> Self {
        Self {
            server: printable(section.name.as_bytes()),
            active: true,
            disabled: true,
            passive: false,
            active_model: None,
            errors: vec![section.problem.to_string()],
            configuration: Vec::new(),
            hosts: Vec::new(),
        }
    }
}

/// The keys of a server: those that can have an effect in their order, then the others that are set.
fn keys(server: &ServerConfig) -> Vec<ShownKey> {
    let effective = server.effective();
    let known: BTreeSet<&str> = effective.iter().map(|(key, _)| *key).collect();
    let line = |key: &str| server.settings.iter().find(|setting| setting.key == key);
    let counting = effective.iter().map(|(key, value)| {
        let shown = value.as_ref().map(ToString::to_string);
        match line(key) {
            Some(setting) => ShownKey {
                effective: value.clone(),
                ..ShownKey::written(setting, shown)
            },
            None => ShownKey {
                key: (*key).to_owned(),
                value: shown,
                file: None,
                line: None,
                source: "built-in",
                effect: "obeyed",
                message: None,
                effective: value.clone(),
            },
        }
    });
    let others = server
        .settings
        .iter()
        .filter(|setting| !known.contains(setting.key.as_str()));
    let others = others.map(|setting| ShownKey::written(setting, Some(setting.value.clone())));
    counting.chain(others).collect()
}

impl ShownKey {
    fn written(setting: &Setting, value: Option<String>) -> Self {
        let (effect, message) = ConfiguredSection::effect(&setting.effect);
        Self {
            key: setting.key.clone(),
            value,
            file: Some(setting.origin.file().to_owned()),
            line: Some(setting.origin.line()),
            source: ConfiguredSection::source(&setting.source),
            effect,
            message: message.cloned(),
            effective: None,
        }
    }

    /// `FILE:LINE`, and what it is inherited from; `None` for a built-in default.
    pub(crate) fn place(&self) -> Option<String> {
        let from = match self.source {
            "default" => ", from [DEFAULT]",
            "global" => ", from the global section",
            "model" => ", from the active model",
            _ => "",
        };
        Some(format!("{}:{}{from}", self.file.as_ref()?.display(), self.line?))
    }
}

impl ShownHost {
    /// What the host of this name has answered.
    pub(crate) fn new(host: &'static str, answer: Result<Live, Error>) -> Self {
        match answer {
            Ok(live) => Self {
                host,
                answers: true,
                error: None,
                problems: live
                    .problems
                    .iter()
                    .map(|text| printable(text.as_bytes()))
                    .collect(),
                facts: Facts::new(live),
            },
            Err(error) => Self {
                host,
                answers: false,
                error: Some(printable(error.to_string().as_bytes())),
                problems: Vec::new(),
                facts: Facts::new(Live::default()),
            },
        }
    }
}

impl Facts {
    fn new(live: Live) -> Self {
        let settings = SETTINGS
            .iter()
            .map(|name| (*name, live.setting(name).map(str::to_owned)));
        let settings = settings.collect();
        let current_wal = live.current_wal();
        let archived_count = live.archiver.as_ref().map(|archiver| archiver.archived_count);
        let failed_count = live.archiver.as_ref().map(|archiver| archiver.failed_count);
        let ArchiverStats {
            last_archived_wal,
            last_archived_time,
            last_failed_wal,
            last_failed_time,
            ..
        } = live.archiver.unwrap_or_default();
        Self {
            server_version: live.version.map(|version| version.to_string()),
            system_id: live.system_id,
            is_in_recovery: live.in_recovery,
            timeline: live.timeline,
            current_lsn: live.current_lsn,
            flush_lsn: live.flush_lsn,
            current_wal,
            wal_segment_bytes: live.segment_size.map(barmanfs_pg::SegmentSize::bytes),
            current_size_bytes: live.size_bytes,
            started: live.started,
            is_superuser: live.is_superuser,
            has_backup_privileges: live.may_replicate,
            has_monitoring_privileges: live.may_monitor,
            replication_slots: live.slot.into_iter().map(ShownSlot::from).collect(),
            archived_count,
            last_archived_wal,
            last_archived_time,
            failed_count,
            last_failed_wal,
            last_failed_time,
            settings,
        }
    }
}

impl From<crate::health::standing::Slot> for ShownSlot {
    fn from(slot: crate::health::standing::Slot) -> Self {
        Self {
            name: slot.name,
            active: slot.is_active,
            restart_lsn: slot.restart_lsn,
            wal_status: slot.wal_status,
        }
    }
}
