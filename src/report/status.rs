//! `status --json`, and the same facts as Barman's lines.

use std::time::Duration;

use barmanfs_catalog::{BackupId, Reach, ServerName, SyncMemory};
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, TimestampMicros};
use serde::Serialize;

use crate::config::ServerConfig;
use crate::health::standing::{Answer, ArchiverStats, Exposure, LastWal, Live, Standing, Verdict};
use crate::output;
use crate::sync;

/// What nothing is shown as.
const NONE: &str = "None";

/// The state in which all commits would be lost.
const EVERYTHING: &str = "everything";

/// How a server stands.
#[derive(Debug, Serialize)]
pub(crate) struct ServerStatus {
    server: ServerName,
    description: Option<String>,
    active: bool,
    /// Whether its configuration has errors.
    disabled: bool,
    /// The model whose keys are over its own.
    active_model: Option<String>,
    /// Its backups and WAL come from another site; then the server is not asked.
    passive: bool,
    /// That site.
    primary: Option<String>,
    /// When a sync last had everything.
    last_sync_time: Option<TimestampMicros>,
    /// All WAL that the primary had archived at this time is here.
    last_sync_wal_time: Option<TimestampMicros>,
    /// What is kept, in Barman's words.
    retention_policies: String,
    /// Whether the server answered; null if it is inactive and was not asked.
    answers: Option<bool>,
    /// Why it did not answer.
    error: Option<String>,
    /// Why something is missing although it answered.
    problems: Vec<String>,
    pg_version: Option<String>,
    is_in_recovery: Option<bool>,
    current_size_bytes: Option<u64>,
    data_directory: Option<String>,
    /// The segment that the server writes now.
    current_xlog: Option<SegmentName>,
    current_lsn: Option<Lsn>,
    archive_command: Option<String>,
    #[serde(flatten)]
    archiver: ArchiverFigures,
    backups_number: usize,
    first_backup: Option<BackupId>,
    last_backup: Option<BackupId>,
    minimum_redundancy: usize,
    last_wal_received: Option<LastWal>,
    receive_wal: Receiving,
    recoverable_from: Option<Reach>,
    recoverable_to: Option<Reach>,
    repository_size_bytes: Option<u64>,
    rpo: Rpo,
}

/// The policies of a server, as Barman says it.
fn policies(server: &ServerConfig) -> String {
    match server.retention_rules().backups {
        Some(policy) => format!(
            "enforced (mode: auto, retention: {policy}, WAL retention: {})",
            server.wal_retention_policy
        ),
        None => match &server.retention_policy {
            Some(policy) => format!("not enforced while the server is disabled (retention: {policy})"),
            None => "not enforced".to_owned(),
        },
    }
}

/// `pg_stat_archiver`.
#[derive(Debug, Default, Serialize)]
struct ArchiverFigures {
    last_archived_wal: Option<String>,
    last_archived_time: Option<TimestampMicros>,
    failed_count: Option<u64>,
    last_failed_wal: Option<String>,
    last_failed_time: Option<TimestampMicros>,
    server_archived_wals_per_hour: Option<f64>,
}

/// The process that receives WAL.
#[derive(Debug, Default, Serialize)]
struct Receiving {
    running: bool,
    /// Its process number, if it runs on this host as this user.
    process: Option<u32>,
    /// What it says of itself.
    holder: Option<String>,
    /// How much of the server's durable WAL it has not reported as durable here.
    lag_bytes: Option<u64>,
    /// How long the server waited for its last report, in seconds.
    lag_seconds: Option<f64>,
}

/// The commits that are not safe here.
#[derive(Debug, Serialize)]
struct Rpo {
    /// What is known of them.
    state: &'static str,
    /// Seconds since the oldest of them; 0 if there is none, null if all are lost or nothing is known.
    seconds: Option<f64>,
    /// Bytes of the server's WAL that is not safe; 0 if no commit is among them.
    bytes: Option<u64>,
    /// Whether `seconds` is an upper limit.
    at_most: bool,
    /// Why it is an upper limit, or not known.
    why: Option<String>,
    /// The oldest commit that is not safe.
    oldest_commit_time: Option<TimestampMicros>,
    safe_lsn: Option<Lsn>,
    server_lsn: Option<Lsn>,
}

/// A line of the text, and an element of Barman's JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StatusLine {
    /// Barman's key.
    pub(crate) key: &'static str,
    /// Barman's words for it.
    pub(crate) description: &'static str,
    /// The fact.
    pub(crate) message: String,
}

impl ServerStatus {
    /// The facts about `server`.
    pub(crate) fn new(server: &ServerConfig, standing: Standing) -> Self {
        let receive_wal = receiving(server, &standing);
        let Standing {
            answer,
            stored,
            exposure,
            ..
        } = standing;
        let (answers, error, live) = match answer {
            Answer::NotAsked => (None, None, Live::default()),
            Answer::Failed(error) => (Some(false), Some(error.to_string()), Live::default()),
            Answer::Live(live) => (Some(true), None, *live),
        };
        let setting = |name| live.setting(name).map(str::to_owned);
        let backups = stored.as_ref().map(|stored| stored.backups.as_slice());
        let backups = backups.unwrap_or_default();
        let window = stored.as_ref().map(|stored| &stored.window);
        Self {
            server: server.name.clone(),
            description: server.description.clone(),
            active: server.active,
            disabled: server.is_disabled(),
            active_model: server.active_model.clone(),
            passive: server.is_passive(),
            primary: server.is_passive().then(|| sync::described(server)),
            last_sync_time: None,
            last_sync_wal_time: None,
            retention_policies: policies(server),
            answers,
            error,
            pg_version: live.version.map(|version| version.to_string()),
            is_in_recovery: live.in_recovery,
            current_size_bytes: live.size_bytes,
            data_directory: setting("data_directory"),
            current_xlog: live.current_wal(),
            current_lsn: live.current_lsn,
            archive_command: setting("archive_command"),
            archiver: figures(&live),
            backups_number: backups.len(),
            first_backup: backups.first().copied(),
            last_backup: backups.last().copied(),
            minimum_redundancy: server.minimum_redundancy,
            receive_wal,
            recoverable_from: window.and_then(|window| window.earliest.clone()),
            recoverable_to: window.and_then(|window| window.newest.clone()),
            repository_size_bytes: stored.as_ref().map(|stored| stored.repository_bytes),
            last_wal_received: stored.and_then(|stored| stored.last_wal),
            rpo: rpo(&exposure),
            problems: live.problems,
        }
    }

    /// Adds what is remembered of the last sync.
    pub(crate) fn with_sync(mut self, memory: &SyncMemory) -> Self {
        self.last_sync_time = memory.synced_at;
        self.last_sync_wal_time = memory.current_at;
        self
    }

    /// Whether its backups and WAL come from another site.
    pub(crate) fn is_passive(&self) -> bool {
        self.passive
    }

    /// The server.
    pub(crate) fn server(&self) -> &ServerName {
        &self.server
    }

    /// The same as lines, in Barman's order.
    pub(crate) fn lines(&self) -> Vec<StatusLine> {
        let mut lines = Lines::default();
        if let Some(description) = &self.description {
            lines.add(
                "description",
                "Description",
                output::printable(description.as_bytes()),
            );
        }
        lines.add("active", "Active", python_bool(self.active));
        lines.add("disabled", "Disabled", python_bool(self.disabled));
        let model = self.active_model.as_deref().unwrap_or(NONE);
        lines.add("active_model", "Active configuration model", model.to_owned());
        lines.add(
            "retention_policies",
            "Retention policies",
            self.retention_policies.clone(),
        );
        self.passive_lines(&mut lines);
        self.live_lines(&mut lines);
        self.backup_lines(&mut lines);
        self.own_lines(&mut lines);
        lines.0
    }

    fn passive_lines(&self, lines: &mut Lines) {
        let Some(primary) = &self.primary else { return };
        lines.add("passive_node", "Passive node", python_bool(true));
        lines.add("primary", "Primary", output::printable(primary.as_bytes()));
        let second = |time: Option<TimestampMicros>| time.map_or_else(|| NONE.to_owned(), output::second);
        lines.add("last_sync", "Last complete sync", second(self.last_sync_time));
        lines.add(
            "last_sync_wal",
            "All WAL of the primary up to",
            second(self.last_sync_wal_time),
        );
    }

    /// What the server says. Barman's text has these lines only if the server was asked.
    fn live_lines(&self, lines: &mut Lines) {
        let Some(answers) = self.answers else { return };
        let error = || self.error.as_deref().unwrap_or_default();
        let version = match &self.pg_version {
            Some(version) if answers => version.clone(),
            _ => format!("FAILED trying to get PostgreSQL version: {}", error()),
        };
        lines.add("pg_version", "PostgreSQL version", version);
        let state = self.is_in_recovery.map(|standby| match standby {
            true => "in archive recovery",
            false => "in production",
        });
        lines.add_some("is_in_recovery", "Cluster state", state);
        lines.add_some(
            "current_size",
            "Current data size",
            self.current_size_bytes.map(output::bytes),
        );
        lines.add_some(
            "data_directory",
            "PostgreSQL Data directory",
            self.data_directory.as_ref(),
        );
        lines.add_some("current_xlog", "Current WAL segment", self.current_xlog);
        lines.add_some(
            "archive_command",
            "PostgreSQL 'archive_command' setting",
            self.archive_command.as_ref(),
        );
        if answers {
            self.archiver_lines(lines);
        }
    }

    fn archiver_lines(&self, lines: &mut Lines) {
        let at = |wal: &Option<String>, time: Option<TimestampMicros>| {
            let time = time.map(|time| format!(", at {}", output::second(time)));
            wal.as_ref()
                .map(|wal| format!("{wal}{}", time.unwrap_or_default()))
        };
        let figures = &self.archiver;
        let last = at(&figures.last_archived_wal, figures.last_archived_time);
        lines.add(
            "last_archived_wal",
            "Last archived WAL",
            last.unwrap_or_else(|| "No WAL segment shipped yet".to_owned()),
        );
        let failed = at(&figures.last_failed_wal, figures.last_failed_time);
        let failed = failed.map(|failed| format!(" ({failed})")).unwrap_or_default();
        let count = figures.failed_count.map(|count| format!("{count}{failed}"));
        lines.add_some("failed_count", "Failures of WAL archiver", count);
        lines.add_some(
            "server_archived_wals_per_hour",
            "Server WAL archiving rate",
            figures
                .server_archived_wals_per_hour
                .map(|rate| format!("{rate:.2}/hour")),
        );
    }

    fn backup_lines(&self, lines: &mut Lines) {
        lines.add(
            "backups_number",
            "No. of available backups",
            self.backups_number.to_string(),
        );
        let id = |id: Option<BackupId>| id.map_or_else(|| NONE.to_owned(), |id| id.to_string());
        lines.add("first_backup", "First available backup", id(self.first_backup));
        lines.add("last_backup", "Last available backup", id(self.last_backup));
        let word = match self.backups_number >= self.minimum_redundancy {
            true => "satisfied",
            false => "FAILED",
        };
        lines.add(
            "minimum_redundancy",
            "Minimum redundancy requirements",
            format!("{word} ({}/{})", self.backups_number, self.minimum_redundancy),
        );
    }

    /// What Barman does not have.
    fn own_lines(&self, lines: &mut Lines) {
        let received = self.last_wal_received.as_ref().map(|last| {
            let part = if last.is_partial { ", not complete yet" } else { "" };
            format!("{}, at {}{part}", last.name, output::second(last.time))
        });
        lines.add(
            "last_wal_received",
            "Last WAL received",
            received.unwrap_or_else(|| NONE.to_owned()),
        );
        lines.add("receive_wal", "receive-wal", self.receive_wal.text());
        let reach = |reach: Option<&Reach>| {
            reach.map_or_else(
                || NONE.to_owned(),
                |reach| {
                    let time = reach.time.map(output::second);
                    format!(
                        "{} (LSN {}, timeline {}, backup {})",
                        time.unwrap_or_else(|| "no commit".to_owned()),
                        reach.lsn,
                        reach.timeline,
                        reach.backup
                    )
                },
            )
        };
        lines.add(
            "recoverable_from",
            "Recoverable from",
            reach(self.recoverable_from.as_ref()),
        );
        lines.add(
            "recoverable_to",
            "Recoverable to",
            reach(self.recoverable_to.as_ref()),
        );
        lines.add_some(
            "repository_size",
            "Size of the repository",
            self.repository_size_bytes.map(output::bytes),
        );
        lines.add("rpo", "Commits not safe here (RPO)", self.rpo.text());
        for problem in &self.problems {
            lines.add("problem", "Not known", output::printable(problem.as_bytes()));
        }
    }
}

impl Receiving {
    fn text(&self) -> String {
        let Some(holder) = self.holder.as_ref().filter(|_| self.running) else {
            return "not running".to_owned();
        };
        let lag = self
            .lag_bytes
            .map(|bytes| format!(", {} behind", output::bytes(bytes)));
        format!("{holder}{}", lag.unwrap_or_default())
    }
}

impl Rpo {
    fn text(&self) -> String {
        let why = self.why.as_deref().unwrap_or_default();
        if self.state == EVERYTHING {
            return format!("all: {why}");
        }
        let Some(seconds) = self.seconds else {
            return format!("not known: {why}");
        };
        let shown = output::duration(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        let bytes = match self.bytes {
            Some(bytes) => output::bytes(bytes),
            None => "it is not known how many bytes".to_owned(),
        };
        let text = match self.oldest_commit_time {
            _ if self.at_most => {
                return format!("at most {shown}, {bytes}: the rest of the server's WAL was not read, {why}");
            }
            None => format!("{shown}, {bytes}"),
            Some(oldest) => format!("{shown}, {bytes}: the oldest is of {}", output::second(oldest)),
        };
        match why {
            "" => text,
            why => format!("{text}; {why}"),
        }
    }
}

fn receiving(server: &ServerConfig, standing: &Standing) -> Receiving {
    let receiver = standing
        .stored
        .as_ref()
        .and_then(|stored| stored.receiver.as_ref());
    let Some(receiver) = receiver else {
        return Receiving::default();
    };
    let stream = standing.wal_live(server).and_then(|live| live.own_stream(server));
    Receiving {
        running: true,
        process: receiver.process,
        holder: Some(output::printable(receiver.description.as_bytes())),
        lag_bytes: standing.stream_lag_bytes(server),
        lag_seconds: stream.and_then(|stream| stream.flush_lag_seconds),
    }
}

fn figures(live: &Live) -> ArchiverFigures {
    let Some(archiver) = live.archiver.clone() else {
        return ArchiverFigures::default();
    };
    let ArchiverStats {
        last_archived_wal,
        last_archived_time,
        failed_count,
        last_failed_wal,
        last_failed_time,
        ..
    } = archiver;
    ArchiverFigures {
        last_archived_wal,
        last_archived_time,
        failed_count: Some(failed_count),
        last_failed_wal,
        last_failed_time,
        server_archived_wals_per_hour: live.archived_per_hour(),
    }
}

fn rpo(exposure: &Exposure) -> Rpo {
    Rpo {
        state: state(&exposure.verdict),
        // JSON has no infinity.
        seconds: exposure.seconds().filter(|seconds| seconds.is_finite()),
        bytes: exposure.bytes(),
        at_most: exposure.seconds().is_some() && !exposure.is_exact(),
        why: exposure.why().map(|why| output::printable(why.as_bytes())),
        oldest_commit_time: match exposure.verdict {
            Verdict::Commits { oldest } => Some(oldest),
            _ => None,
        },
        safe_lsn: exposure.safe_lsn,
        server_lsn: exposure.server_lsn,
    }
}

fn state(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Nothing => "safe",
        Verdict::Commits { .. } => "commits",
        Verdict::AtMost { .. } => "at_most",
        Verdict::Everything { .. } => EVERYTHING,
        Verdict::Unknown { .. } => "unknown",
    }
}

fn python_bool(value: bool) -> String {
    if value { "True" } else { "False" }.to_owned()
}

/// Collects lines.
#[derive(Debug, Default)]
struct Lines(Vec<StatusLine>);

impl Lines {
    fn add(&mut self, key: &'static str, description: &'static str, message: String) {
        self.0.push(StatusLine {
            key,
            description,
            message,
        });
    }

    fn add_some(
        &mut self,
        key: &'static str,
        description: &'static str,
        message: Option<impl std::fmt::Display>,
    ) {
        if let Some(message) = message {
            self.add(key, description, message.to_string());
        }
    }
}
