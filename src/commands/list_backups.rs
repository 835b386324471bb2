//! `barmanfs list-backups`.

use std::time::Duration;

use barmanfs_catalog::{Backup, BackupStatus};
use serde_json::Value;

use super::App;
use crate::cli::ListBackupsArgs;
use crate::error::{Error, Outcome};
use crate::output::{self, Align, Cell, Style, Table};

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &ListBackupsArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let mut backups = Vec::new();
    for server in app.known_servers(&repository, &args.server)? {
        backups.extend(repository.backups(&server)?);
    }
    if args.json.json {
        let shown = backups.iter().map(as_json).collect::<Result<Vec<_>, _>>()?;
        app.out.json(&shown)?;
    } else if args.minimal {
        for backup in &backups {
            app.out.line(backup.id)?;
        }
    } else if backups.is_empty() {
        app.out.line("No backup yet")?;
    } else {
        app.out.table(&table(&backups))?;
    }
    Ok(Outcome::Done)
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
        ("Began", Align::Left),
        ("Took", Align::Right),
        ("Size", Align::Right),
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
            output::second(backup.begin_time).into(),
            took(backup)
                .map_or_else(|| "-".to_owned(), output::duration)
                .into(),
            size(backup.logical_bytes).into(),
            size(backup.new_stored_bytes).into(),
            backup.server_version.to_string().into(),
            output::printable(label.trim().as_bytes()).into(),
        ]);
    }
    table
}
