//! `barmanfs show-backup`.

use std::time::Duration;

use barmanfs_catalog::{Backup, BackupKind, BackupStatus, BootTest, Imported, Repository, StorageSnapshot};
use barmanfs_pg::wal_name::SegmentName;

use super::App;
use super::keep::described;
use super::list_backups::{boot_word, status_style, took};
use crate::barman;
use crate::cli::inspect::ShowBackupArgs;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::output::{self, Output, Style};
use crate::report::{ListedBackup, Surroundings};

/// Maximum number of missing segments to list by name. More of them are a gap, not a wait.
const MISSING_SHOWN: usize = 5;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &ShowBackupArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.which.server)?;
    let backup = app.backup(&repository, &server, &args.which.backup)?;
    if let Some(format) = app.options.format {
        let rules = app.retention_rules(&server);
        let all = barman::backups::Listed::read(&repository, server, &rules)?;
        barman::backups::show(&mut app.out, format, &all, backup.id)?;
        return Ok(Outcome::Done);
    }
    let missing = repository.missing_wal(&backup)?;
    let around = Surroundings::of(&repository, &backup)?;
    let all = ListedBackup::all(&repository, &server, &app.retention_rules(&server))?;
    let listed = all.into_iter().find(|listed| listed.backup.id == backup.id);
    let listed = listed.ok_or_else(|| Error::failed("The backup is gone"))?;
    if args.json.json {
        app.out.json(&listed.with_missing_wal(&missing, &around)?)?;
    } else {
        let configured = app.config.server(listed.backup.server.as_str());
        let is_passive = configured.is_some_and(ServerConfig::is_passive);
        show(
            &mut app.out,
            &repository,
            (&listed, is_passive),
            (&missing, &around),
        )?;
    }
    Ok(Outcome::Done)
}

fn show(
    out: &mut Output,
    repository: &Repository,
    (
        ListedBackup {
            backup,
            boot_test,
            damaged,
            retention,
        },
        is_passive,
    ): (&ListedBackup, bool),
    (missing, around): (&[SegmentName], &Surroundings),
) -> Result<(), Error> {
    let mut facts = Facts::default();
    facts.add(
        "Status",
        out.paint(backup.status.as_str(), status_style(backup.status)),
    );
    if *damaged {
        let (server, id) = (&backup.server, backup.id);
        let (command, whose) = match is_passive {
            true => (format!("sync-backup {server} {id}"), "primary"),
            false => (format!("backup {server} --incremental never"), "server"),
        };
        let known = out.paint("known", Style::Red);
        facts.add(
            "Damage",
            format!(
                "{known}: 'barmanfs verify {server} {id}' names the files; 'barmanfs {command}' stores again what the {whose} \
                 still has of them"
            ),
        );
    }
    if let Some(judged) = retention {
        let why = judged.keep.as_ref().map_or_else(|| judged.why.clone(), described);
        facts.add("Retention", format!("{}, {why}", judged.state.as_str()));
    }
    if let Some(test) = boot_test {
        let (word, style) = boot_word(test.outcome);
        facts.add(
            "Boot test",
            format!("{}, {}", out.paint(word, style), about_the_test(test)),
        );
    }
    about_the_run(&mut facts, backup);
    if let Some(snapshot) = backup.snapshot.as_ref().filter(|_| backup.has_ended_well()) {
        about_the_snapshot(&mut facts, backup, snapshot, missing);
    }
    if backup.is_complete() {
        about_the_content(&mut facts, backup, missing);
    }
    about_the_surroundings(&mut facts, around);
    facts.add("Repository", repository.path().display().to_string());
    out.line(format_args!("Backup {} of server {}", backup.id, backup.server))?;
    out.bytes(facts.render().as_bytes())
}

/// `2026-11-21 03:00:00+00, PostgreSQL 15.18, 12 s: catalogs, sql`, and the reason of a failure.
fn about_the_test(test: &BootTest) -> String {
    let checks: Vec<&str> = test.checks.iter().map(|check| check.as_str()).collect();
    let message = test.message.as_ref();
    let why = message.map(|message| format!(": {}", output::printable(message.as_bytes())));
    format!(
        "{}, PostgreSQL {}, {} ({}){}",
        output::second(test.began_at),
        test.postgresql,
        output::duration(Duration::from_millis(test.took_ms)),
        checks.join(", "),
        why.unwrap_or_default()
    )
}

fn about_the_surroundings(facts: &mut Facts, around: &Surroundings) {
    let wal = &around.wal;
    if wal.segments > 0 {
        let until = around.next_backup.map_or("the end", |_| "the next backup");
        let rate = wal.segments_per_hour.map(|rate| format!(", {rate:.2} per hour"));
        facts.add(
            "WAL until",
            format!(
                "{until}: {}, {}, {} added{}",
                output::count(wal.segments, "segment"),
                output::bytes(wal.logical_bytes),
                output::bytes(wal.new_stored_bytes),
                rate.unwrap_or_default()
            ),
        );
    }
    for path in &around.configuration_files {
        facts.add("Configuration file", output::printable(path.as_bytes()));
    }
    facts.add_some("Last available", wal.last_available.map(|name| name.to_string()));
    facts.add_some("Previous backup", around.previous_backup.map(|id| id.to_string()));
    facts.add_some("Next backup", around.next_backup.map(|id| id.to_string()));
}

/// `from Barman 3.19.1, where it is 20261128T155501, at 2026-11-30 03:00:00+00`.
fn imported(from: &Imported) -> String {
    let text = |text: &String| output::printable(text.as_bytes());
    format!(
        "from {}, where it is {}, at {}",
        text(&from.tool),
        text(&from.name),
        output::second(from.imported_at)
    )
}

fn about_the_run(facts: &mut Facts, backup: &Backup) {
    let text = |text: &String| output::printable(text.as_bytes());
    facts.add_some("Error", backup.error.as_ref().map(text));
    facts.add_some("Imported", backup.imported.as_ref().map(imported));
    facts.add_some("Label", backup.label.as_ref().map(text));
    for (key, value) in &backup.annotations {
        facts.add("Annotation", text(&format!("{key}={value}")));
    }
    facts.add("Began", output::second(backup.begin_time));
    facts.add_some("Ended", backup.end_time.map(output::second));
    facts.add_some("Took", took(backup).map(output::duration));
    facts.add("PostgreSQL", backup.server_version.to_string());
    facts.add("System identifier", backup.system_id.to_string());
    facts.add_some("Timeline", backup.timeline.map(|timeline| timeline.to_string()));
    facts.add_some("Start LSN", backup.start_lsn.map(|lsn| lsn.to_string()));
    facts.add_some("Stop LSN", backup.stop_lsn.map(|lsn| lsn.to_string()));
}

fn about_the_snapshot(
    facts: &mut Facts,
    backup: &Backup,
    snapshot: &StorageSnapshot,
    missing: &[SegmentName],
) {
    let text = |text: &str| output::printable(text.as_bytes());
    facts.add("Came in as", came_in_as(backup));
    facts.add("WAL", wal(backup, missing));
    facts.add("Snapshot", text(&snapshot.name));
    for disk in &snapshot.disks {
        let name = disk.disk.as_deref().map(|name| format!(" of {}", text(name)));
        facts.add(
            "Disk",
            format!(
                "{}{}, was mounted at {} with {}",
                text(&disk.snapshot),
                name.unwrap_or_default(),
                text(&disk.mount_point),
                match disk.mount_options.as_str() {
                    "" => "any options".to_owned(),
                    options => text(options),
                }
            ),
        );
    }
    facts.add_some("Data directory", snapshot.data_directory.as_deref().map(text));
    about_tablespaces(facts, backup);
}

fn about_the_content(facts: &mut Facts, backup: &Backup, missing: &[SegmentName]) {
    let source = match &backup.cloned_from {
        Some(clone) => format!("the clone {}", clone.name),
        None if backup.from_standby => "a standby".to_owned(),
        None if backup.was_shut_down() => "a server that was shut down".to_owned(),
        None => "the primary".to_owned(),
    };
    facts.add("Taken from", source);
    facts.add("Came in as", came_in_as(backup));
    facts.add("WAL", wal(backup, missing));
    facts.add("Files", backup.files.to_string());
    facts.add("Size", output::bytes(backup.logical_bytes));
    let sent = if backup.is_of_server() {
        "Sent by the server"
    } else {
        "Read of the clone"
    };
    facts.add(sent, output::bytes(backup.sent_bytes));
    facts.add("Added to repository", added(backup));
    let checksums = backup.data_checksums.map(|on| if on { "on" } else { "off" });
    facts.add_some("Page checksums", checksums.map(str::to_owned));
    for failure in &backup.checksum_failures {
        facts.add("Checksum failure", output::printable(failure.as_bytes()));
    }
    about_tablespaces(facts, backup);
}

fn about_tablespaces(facts: &mut Facts, backup: &Backup) {
    for space in &backup.tablespaces {
        let name = space.name.as_deref().map(|name| format!(" ({name})"));
        let (oid, name) = (space.oid, name.unwrap_or_default());
        let location = output::printable(space.location.as_bytes());
        facts.add("Tablespace", format!("pg_tblspc/{oid}{name}, was at {location}"));
    }
}

/// How the backup was received. In any case it is stored completely.
pub(crate) fn came_in_as(backup: &Backup) -> String {
    match (backup.kind, backup.parent) {
        (BackupKind::Full, _) => "full".to_owned(),
        (BackupKind::Incremental, Some(parent)) => format!("incremental from {parent}"),
        (BackupKind::Incremental, None) => "incremental".to_owned(),
        (BackupKind::Clone, _) => cloned(backup),
        (BackupKind::Snapshot, _) => "a snapshot of the storage".to_owned(),
    }
}

fn cloned(backup: &Backup) -> String {
    let from = backup.cloned_from.as_ref();
    let name = from.map(|clone| format!(" {}", clone.name)).unwrap_or_default();
    let of = backup.parent.map(|id| format!(" of {id}")).unwrap_or_default();
    let target = from.and_then(|clone| clone.target.as_deref());
    let target = target.map(|target| format!(" at {}", output::printable(target.as_bytes())));
    format!("clone{name}{of}{}", target.unwrap_or_default())
}

fn wal(backup: &Backup, missing: &[SegmentName]) -> String {
    match &backup.cloned_from {
        Some(clone) if clone.shut_down => {
            return "in its own pg_wal, and nothing to replay: it was shut down cleanly".to_owned();
        }
        Some(_) => return "in its own pg_wal, replayed at the start, as after a crash".to_owned(),
        None if backup.wal_included => return "came with the backup".to_owned(),
        None => {}
    }
    let mut needed = backup.needed_wal();
    let first = needed.next();
    let last = needed.last().or(first);
    let range = match (first, last) {
        (Some(first), Some(last)) if first != last => format!("{first} to {last}"),
        (Some(first), _) => first.to_string(),
        (None, _) => return "none needed".to_owned(),
    };
    match (backup.status, missing) {
        (BackupStatus::Done, _) | (_, []) => format!("{range}, all archived"),
        (_, missing) => {
            let names: Vec<String> = missing
                .iter()
                .take(MISSING_SHOWN)
                .map(ToString::to_string)
                .collect();
            let more = if missing.len() > MISSING_SHOWN {
                " and more"
            } else {
                ""
            };
            format!("{range}, not archived yet: {}{more}", names.join(", "))
        }
    }
}

fn added(backup: &Backup) -> String {
    let bytes = output::bytes(backup.new_stored_bytes);
    format!(
        "{bytes} ({} of its size)",
        output::percent(backup.new_stored_bytes, backup.logical_bytes)
    )
}

/// Lines with a name and a value. The values are aligned.
#[derive(Debug, Default)]
pub(crate) struct Facts(Vec<(&'static str, String)>);

impl Facts {
    /// Adds a line.
    pub(crate) fn add(&mut self, name: &'static str, value: String) {
        self.0.push((name, value));
    }

    /// Adds a line if the value is known.
    pub(crate) fn add_some(&mut self, name: &'static str, value: Option<String>) {
        self.0.extend(value.map(|value| (name, value)));
    }

    /// All lines.
    pub(crate) fn render(&self) -> String {
        let width = self
            .0
            .iter()
            .map(|(name, _)| name.len())
            .max()
            .unwrap_or_default();
        self.0
            .iter()
            .map(|(name, value)| format!("  {name:width$}  {value}\n"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{backup, boot_test};
    use barmanfs_catalog::ClonedFrom;
    use insta::assert_snapshot;

    fn shown(backup: &Backup, missing: &[&str]) -> String {
        let missing: Vec<SegmentName> = missing.iter().map(|name| name.parse().unwrap()).collect();
        let mut facts = Facts::default();
        about_the_run(&mut facts, backup);
        about_the_content(&mut facts, backup, &missing);
        facts.render()
    }

    #[test]
    fn a_boot_test_is_shown_with_its_reason() {
        assert_eq!(
            about_the_test(&boot_test()),
            "2026-11-21 03:00:00+00, PostgreSQL 15.18, 4.20 s (catalogs, sql): \
             check.sql:3: ERROR: relation \"a\" does not exist"
        );
    }

    #[test]
    fn everything_known_is_shown() {
        let mut backup = backup(BackupStatus::WaitingForWals);
        backup.kind = BackupKind::Incremental;
        backup.parent = Some("20261119T101500".parse().unwrap());
        let text = shown(&backup, &["000000010000000000000006"]);
        assert_snapshot!(text, @r#"
        Label                before the upgrade
        Began                2026-11-20 10:15:00+00
        Ended                2026-11-20 10:18:20+00
        Took                 3 min 20 s
        PostgreSQL           15.18
        System identifier    7710414268036822209
        Timeline             1
        Start LSN            0/5000028
        Stop LSN             0/6000100
        Taken from           a standby
        Came in as           incremental from 20261119T101500
        WAL                  000000010000000000000005 to 000000010000000000000006, not archived yet: 000000010000000000000006
        Files                1234
        Size                 3.00 GiB
        Sent by the server   3.00 GiB
        Added to repository  30.72 MiB (1.00 % of its size)
        Page checksums       on
        Checksum failure     checksum verification failed in file "base/5/16384", block 3
        Tablespace           pg_tblspc/16435 (fast), was at /srv/fast
        "#);
    }

    #[test]
    fn a_backup_of_a_clone_shows_its_origin_and_how_it_starts() {
        let mut backup = backup(BackupStatus::Done);
        backup.kind = BackupKind::Clone;
        backup.parent = Some("20261119T101500".parse().unwrap());
        backup.cloned_from = Some(ClonedFrom {
            name: "test1".parse().unwrap(),
            target: Some("name:before migration".to_owned()),
            shut_down: true,
        });
        let lines_of = |backup: &Backup| {
            let lines = shown(backup, &[]);
            let of_it = ["Taken", "Came", "WAL", "Sent", "Read"];
            let lines = lines.lines().map(str::trim);
            lines
                .filter(|line| of_it.iter().any(|start| line.starts_with(start)))
                .map(|line| format!("{line}\n"))
                .collect::<String>()
        };
        assert_snapshot!(lines_of(&backup), @"
        Taken from           the clone test1
        Came in as           clone test1 of 20261119T101500 at name:before migration
        WAL                  in its own pg_wal, and nothing to replay: it was shut down cleanly
        Read of the clone    3.00 GiB
        ");
        backup.cloned_from.as_mut().unwrap().shut_down = false;
        assert!(lines_of(&backup).contains("replayed at the start, as after a crash"));
    }

    #[test]
    fn text_from_a_server_cannot_control_the_terminal() {
        let mut backup = backup(BackupStatus::Failed);
        backup.error = Some("gone\x1b[2J\nDONE".to_owned());
        assert!(shown(&backup, &[]).contains("gone\\u{1b}[2J\\nDONE"));
    }
}
