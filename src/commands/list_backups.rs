//! `barmanfs list-backups`.

use std::time::Duration;

use barmanfs_catalog::{Backup, BackupKind, BackupStatus, Gap, ServerName};
use serde_json::{Value, json};

use super::{App, timeline};
use crate::cli::ListBackupsArgs;
use crate::error::{Error, Outcome};
use crate::output::{self, Align, Cell, Style, Table};

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &ListBackupsArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let (mut backups, mut gaps) = (Vec::new(), Vec::new());
    for server in app.known_servers(&repository, &args.server)? {
        backups.extend(repository.backups(&server)?);
        let found = timeline::gaps_that_matter(&repository, &server)?;
        gaps.extend(found.into_iter().map(|gap| (server.clone(), gap)));
    }
    if args.json.json {
        let shown: Result<Vec<_>, _> = backups.iter().map(|backup| with_gaps(backup, &gaps)).collect();
        app.out.json(&shown?)?;
    } else if args.minimal {
        for backup in &backups {
            app.out.line(backup.id)?;
        }
    } else if backups.is_empty() {
        app.out.line("No backup yet")?;
    } else {
        app.out.table(&table(&backups))?;
        for (server, gap) in &gaps {
            let text = format!(
                "Server {server}: nothing can be recovered {}",
                timeline::lost(gap)
            );
            let text = app.out.paint(&text, Style::Red);
            app.out.line(text)?;
        }
    }
    Ok(Outcome::Done)
}

/// A backup with the gaps before the next one: what lies behind them cannot be recovered from it.
fn with_gaps(backup: &Backup, gaps: &[(ServerName, Gap)]) -> Result<Value, Error> {
    let mut value = as_json(backup)?;
    let after: Vec<&Gap> = gaps
        .iter()
        .filter(|(server, gap)| *server == backup.server && gap.backup_before == Some(backup.id))
        .map(|(_, gap)| gap)
        .collect();
    if let Some(fields) = value.as_object_mut().filter(|_| !after.is_empty()) {
        fields.insert("gaps".to_owned(), json!(after));
    }
    Ok(value)
}

/// All of a backup but the listing of its root, which means nothing outside the repository.
pub(crate) fn as_json(backup: &Backup) -> Result<Value, Error> {
    let mut value = serde_json::to_value(backup).map_err(|error| Error::failed(error.to_string()))?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("root");
    }
    Ok(value)
}

/// A status in its colour.
pub(crate) fn status_style(status: BackupStatus) -> Style {
    match status {
        BackupStatus::Done => Style::Green,
        BackupStatus::Started | BackupStatus::WaitingForWals => Style::Yellow,
        BackupStatus::Failed => Style::Red,
    }
}

/// How long it took, once it has ended.
pub(crate) fn took(backup: &Backup) -> Option<Duration> {
    let end = backup.end_time?.unix_micros();
    u64::try_from(end - backup.begin_time.unix_micros())
        .ok()
        .map(Duration::from_micros)
}

fn table(backups: &[Backup]) -> Table {
    let mut table = Table::new(&[
        ("Server", Align::Left),
        ("Backup", Align::Left),
        ("Status", Align::Left),
        ("Type", Align::Left),
        ("Began", Align::Left),
        ("Took", Align::Right),
        ("Size", Align::Right),
        ("Sent", Align::Right),
        ("Added", Align::Right),
        ("PostgreSQL", Align::Left),
        ("Label", Align::Left),
    ]);
    for backup in backups {
        let mut label = backup.label.clone().unwrap_or_default();
        if !backup.checksum_failures.is_empty() {
            label.push_str(" (page checksum failures)");
        }
        let size = |bytes: u64| {
            if backup.is_complete() {
                output::bytes(bytes)
            } else {
                "-".to_owned()
            }
        };
        table.row([
            backup.server.as_str().into(),
            backup.id.to_string().into(),
            Cell::styled(backup.status.as_str(), status_style(backup.status)),
            kind(backup.kind).into(),
            output::second(backup.begin_time).into(),
            took(backup)
                .map_or_else(|| "-".to_owned(), output::duration)
                .into(),
            size(backup.logical_bytes).into(),
            size(backup.sent_bytes).into(),
            size(backup.new_stored_bytes).into(),
            backup.server_version.to_string().into(),
            output::printable(label.trim().as_bytes()).into(),
        ]);
    }
    table
}

/// What the server sent; stored is a full backup either way.
fn kind(kind: BackupKind) -> &'static str {
    match kind {
        BackupKind::Full => "full",
        BackupKind::Incremental => "incremental",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use insta::assert_snapshot;

    /// A backup such as the catalog gives it.
    pub(crate) fn backup(status: BackupStatus) -> Backup {
        let value = json!({
            "server": "main", "id": "20261120T101500", "status": status, "kind": "full", "label": "before the upgrade",
            "begin_time": "2026-11-20T10:15:00.25Z", "end_time": "2026-11-20T10:18:20.25Z",
            "start_lsn": "0/5000028", "stop_lsn": "0/6000100", "timeline": 1,
            "system_id": "7710414268036822209", "server_version": 150_018, "segment_size": 16_777_216,
            "data_checksums": true, "tablespaces": [{"oid": 16_435, "name": "fast", "location": "/srv/fast"}],
            "wal_included": false, "from_standby": true, "logical_bytes": 3_221_225_472_u64,
            "sent_bytes": 3_221_300_000_u64, "new_stored_bytes": 32_212_254, "files": 1234,
            "checksum_failures": ["checksum verification failed in file \"base/5/16384\", block 3"],
            "root": {
                "directory": {"pages": [], "entries": 0},
                "attributes": {"mode": 448, "uid": 0, "gid": 0, "mtime_s": 0, "mtime_ns": 0},
            },
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn every_status_has_its_line() {
        let mut good = backup(BackupStatus::Done);
        good.checksum_failures.clear();
        good.kind = BackupKind::Incremental;
        let mut running = backup(BackupStatus::Started);
        (running.end_time, running.label) = (None, None);
        let all = [
            good,
            backup(BackupStatus::WaitingForWals),
            backup(BackupStatus::Failed),
            running,
        ];
        assert_snapshot!(table(&all).render(false), @"
        Server  Backup           Status            Type         Began                         Took      Size      Sent      Added  PostgreSQL  Label
        main    20261120T101500  DONE              incremental  2026-11-20 10:15:00+00  3 min 20 s  3.00 GiB  3.00 GiB  30.72 MiB  15.18       before the upgrade
        main    20261120T101500  WAITING_FOR_WALS  full         2026-11-20 10:15:00+00  3 min 20 s  3.00 GiB  3.00 GiB  30.72 MiB  15.18       before the upgrade (page checksum failures)
        main    20261120T101500  FAILED            full         2026-11-20 10:15:00+00  3 min 20 s         -         -          -  15.18       before the upgrade (page checksum failures)
        main    20261120T101500  STARTED           full         2026-11-20 10:15:00+00           -         -         -          -  15.18       (page checksum failures)
        ");
    }

    #[test]
    fn json_leaves_out_what_means_nothing_outside_the_repository() {
        let value = as_json(&backup(BackupStatus::Done)).unwrap();
        assert_eq!(value["status"], "DONE");
        assert_eq!(value["start_lsn"], "0/5000028");
        assert!(value.get("root").is_none());
    }
}
