//! `barmanfs list-backups`.

use std::time::Duration;

use barmanfs_catalog::retention::RetentionState;
use barmanfs_catalog::{Backup, BackupKind, BackupStatus, BootOutcome, BootTest};

use super::App;
use crate::barman;
use crate::cli::inspect::ListBackupsArgs;
use crate::error::{Error, Outcome};
use crate::forks;
use crate::health::losses;
use crate::output::{self, Align, Cell, Style, Table};
use crate::report::ListedBackup;

/// The column of the status in the table.
const STATUS_COLUMN: usize = 2;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &ListBackupsArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let mut servers = Vec::new();
    for name in &args.servers {
        servers.extend(app.known_servers(&repository, name)?);
    }
    if let Some(format) = app.options.format {
        let listed: Result<Vec<_>, _> = servers
            .into_iter()
            .map(|server| {
                let rules = app.retention_rules(&server);
                barman::backups::Listed::read(&repository, server, &rules)
            })
            .collect();
        barman::backups::list(&mut app.out, format, &listed?, args.minimal)?;
        return Ok(Outcome::Done);
    }
    let (mut backups, mut gaps) = (Vec::<ListedBackup>::new(), Vec::new());
    for server in servers {
        let rules = app.retention_rules(&server);
        let all = repository.backups(&server)?;
        let found = losses::gaps_that_matter(&repository, &server, &all)?;
        backups.extend(ListedBackup::of(&repository, all, &rules)?);
        forks::log_open(&repository, &server)?;
        gaps.extend(found.into_iter().map(|gap| (server.clone(), gap)));
    }
    backups.retain(|listed| {
        let mut asked = args.annotation.iter();
        asked.all(|annotation| annotation.is_in(&listed.backup.annotations))
    });
    if args.json.json {
        let shown: Result<Vec<_>, _> = backups.iter().map(|listed| listed.with_gaps(&gaps)).collect();
        app.out.json_list("backups", &shown?)?;
    } else if args.minimal {
        // Newest first as in Barman: scripts expect the newest backup in the first line.
        let mut ids: Vec<&Backup> = backups.iter().map(|listed| &listed.backup).collect();
        ids.sort_by_key(|backup| std::cmp::Reverse(backup.id));
        for backup in ids {
            app.out.line(backup.id)?;
        }
    } else if backups.is_empty() {
        app.out.line(match args.annotation.is_empty() {
            true => "No backup yet",
            false => "No such backup",
        })?;
    } else {
        app.out.table(&table(&backups))?;
        for (server, gap) in &gaps {
            let text = format!("Server {server}: nothing can be recovered {}", losses::lost(gap));
            let text = app.out.paint(&text, Style::Red);
            app.out.line(text)?;
        }
    }
    Ok(Outcome::Done)
}

/// The result of a boot test, with its day: `OK 2026-11-21`.
fn boot_cell(test: Option<&BootTest>) -> Cell {
    let Some(test) = test else { return "-".into() };
    let moment = output::second(test.began_at);
    let day = moment.split(' ').next().unwrap_or_default();
    let (word, style) = boot_word(test.outcome);
    Cell::styled(format!("{word} {day}"), style)
}

/// The result of a boot test in one word, with its colour.
pub(crate) fn boot_word(outcome: BootOutcome) -> (&'static str, Style) {
    match outcome {
        BootOutcome::Ok => ("OK", Style::Green),
        BootOutcome::Failed => ("FAILED", Style::Red),
    }
}

/// `DONE`, or `DONE, damaged`.
fn status_cell(status: BackupStatus, damaged: bool) -> Cell {
    match damaged {
        true => Cell::styled(format!("{}, damaged", status.as_str()), Style::Red),
        false => Cell::styled(status.as_str(), status_style(status)),
    }
}

/// The colour of a status.
pub(crate) fn status_style(status: BackupStatus) -> Style {
    match status {
        BackupStatus::Done => Style::Green,
        BackupStatus::Started | BackupStatus::WaitingForWals => Style::Yellow,
        BackupStatus::Failed => Style::Red,
    }
}

/// The duration of a backup that has ended.
pub(crate) fn took(backup: &Backup) -> Option<Duration> {
    let end = backup.end_time?.unix_micros();
    u64::try_from(end - backup.begin_time.unix_micros())
        .ok()
        .map(Duration::from_micros)
}

/// What the policy says, if there is one or somebody keeps the backup.
fn retention(listed: &ListedBackup) -> Option<&'static str> {
    let state = listed.retention.as_ref()?.state;
    (state != RetentionState::None).then(|| state.as_str())
}

/// The columns. There is one for boot tests if there has been one, and one for retention if there is a policy.
fn columns(tested: bool, judged: bool) -> Vec<(&'static str, Align)> {
    let mut columns = vec![
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
    ];
    if judged {
        columns.insert(STATUS_COLUMN + 1, ("Retention", Align::Left));
    }
    if tested {
        columns.insert(STATUS_COLUMN + 1, ("Boot test", Align::Left));
    }
    columns
}

fn table(backups: &[ListedBackup]) -> Table {
    let tested = backups.iter().any(|listed| listed.boot_test.is_some());
    let judged = backups.iter().any(|listed| retention(listed).is_some());
    let columns = columns(tested, judged);
    let mut table = Table::new(&columns);
    for listed in backups {
        let ListedBackup {
            backup,
            boot_test,
            damaged,
            ..
        } = listed;
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
        let mut row: Vec<Cell> = vec![
            backup.server.as_str().into(),
            backup.id.to_string().into(),
            status_cell(backup.status, *damaged),
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
        ];
        if judged {
            row.insert(STATUS_COLUMN + 1, retention(listed).unwrap_or("-").into());
        }
        if tested {
            row.insert(STATUS_COLUMN + 1, boot_cell(boot_test.as_ref()));
        }
        table.row(row);
    }
    table
}

/// How the backup was received. It is stored as a full backup in any case.
fn kind(kind: BackupKind) -> &'static str {
    match kind {
        BackupKind::Full => "full",
        BackupKind::Incremental => "incremental",
        BackupKind::Clone => "clone",
        BackupKind::Snapshot => "snapshot",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{backup, boot_test};
    use insta::assert_snapshot;

    #[test]
    fn boot_tests_have_a_column_if_there_was_one() {
        let mut good = boot_test();
        good.outcome = BootOutcome::Ok;
        let all = [Some(good), Some(boot_test()), None].map(|boot_test| ListedBackup {
            backup: backup(BackupStatus::Done),
            boot_test,
            damaged: false,
            retention: None,
        });
        let table = table(&all).render(false);
        let words: Vec<&str> = table
            .lines()
            .map(|line| line.get(33..52).unwrap().trim())
            .collect();
        assert_eq!(words, ["Boot test", "OK 2026-11-21", "FAILED 2026-11-21", "-"]);
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
        let listed = |backup| ListedBackup {
            backup,
            boot_test: None,
            damaged: false,
            retention: None,
        };
        let all = all.map(listed);
        assert_snapshot!(table(&all).render(false), @"
        Server  Backup           Status            Type         Began                         Took      Size      Sent      Added  PostgreSQL  Label
        main    20261120T101500  DONE              incremental  2026-11-20 10:15:00+00  3 min 20 s  3.00 GiB  3.00 GiB  30.72 MiB  15.18       before the upgrade
        main    20261120T101500  WAITING_FOR_WALS  full         2026-11-20 10:15:00+00  3 min 20 s  3.00 GiB  3.00 GiB  30.72 MiB  15.18       before the upgrade (page checksum failures)
        main    20261120T101500  FAILED            full         2026-11-20 10:15:00+00  3 min 20 s         -         -          -  15.18       before the upgrade (page checksum failures)
        main    20261120T101500  STARTED           full         2026-11-20 10:15:00+00           -         -         -          -  15.18       (page checksum failures)
        ");
    }
}
