//! A running Barman as the primary: its home is imported again and again.
//!
//! What is here is not read again. A backup that was deleted here, by a person or by the policy, is not taken again, and
//! neither is one that the policy here would delete at once.

use barmanfs_catalog::{Repository, SyncReport, SyncedBackups};
use jiff::tz::TimeZone;

use super::{Extent, Synced, described};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::import::backups::{Importer, Taken};
use crate::import::barman::{BarmanHome, Options};
use crate::import::plain::Plain;
use crate::import::{ForeignBackup, LeftOut, Listing, Source, wal};
use crate::moment;
use crate::signals::Interruption;

/// Opens the home.
fn open(server: &ServerConfig) -> Result<BarmanHome, Error> {
    let Some(home) = &server.primary.home else {
        return Err(Error::usage(format!(
            "Server '{}' follows a Barman, and it is not known where its home is",
            server.name
        ))
        .hint("Set 'primary_home' to a directory of this host, such as an NFS mount, that is Barman's barman_home"));
    };
    let options = Options {
        plain: Plain {
            passphrase: None,
            custom_decompress: None,
        },
        zone: TimeZone::system(),
        with_partial: false,
        with_waiting: false,
    };
    BarmanHome::open(home, (None, server.name.as_str()), options)
}

/// Whether the home is there.
pub(super) fn reach(server: &ServerConfig) -> Result<String, Error> {
    open(server).map(|_| described(server))
}

/// Takes over what the Barman has and this repository does not.
pub(super) fn sync(repository: &Repository, server: &ServerConfig, extent: Extent) -> Result<Synced, Error> {
    let _lock = repository.begin_sync(&server.name)?;
    let mut source = open(server)?;
    let began = moment::now();
    repository.note_sync(&server.name, |memory| {
        memory.began_at = Some(began);
        memory.primary = source.described();
    })?;
    let signals = Interruption::watch(|| {})?;
    let mut report = SyncReport::default();
    if extent.backups != SyncedBackups::Nothing {
        let Listing { backups, left_out } = source.backups()?;
        report.problems.extend(left_out.iter().filter_map(problem));
        let chosen = choose(repository, server, extent, backups, &mut report)?;
        let importer = Importer {
            repository,
            server: &server.name,
            signals: &signals,
            quiet: true,
        };
        take(&importer, &mut source, &chosen, &mut report)?;
    }
    if extent.wal {
        let (totals, left_out) = wal::take(
            &mut source,
            (repository, &server.name),
            wal::Extent::Needed,
            &signals,
            true,
        )?;
        report.wal_files = totals.archived;
        report.copied_bytes += totals.new_stored_bytes;
        report.problems.extend(left_out.iter().filter_map(problem));
        if totals.left_out_unnamed > 0 {
            let more = format!("{} more WAL files are not taken", totals.left_out_unnamed);
            report.problems.push(more);
        }
    }
    let is_all = extent.wal && extent.backups == SyncedBackups::All && report.problems.is_empty();
    repository.note_sync(&server.name, |memory| {
        if is_all {
            memory.synced_at = Some(moment::now());
            memory.current_at = Some(began);
        }
        memory.problems.clone_from(&report.problems);
    })?;
    Ok(Synced {
        primary: source.described(),
        report,
        partial_segments: 0,
    })
}

fn problem(left_out: &LeftOut) -> Option<String> {
    let LeftOut {
        what,
        why,
        is_problem,
    } = left_out;
    is_problem.then(|| format!("{what} is not taken: {why}"))
}

/// The backups to import, oldest first: a parent comes before its children.
fn choose(
    repository: &Repository,
    server: &ServerConfig,
    extent: Extent,
    mut backups: Vec<ForeignBackup>,
    report: &mut SyncReport,
) -> Result<Vec<ForeignBackup>, Error> {
    if let SyncedBackups::Only(id) = extent.backups {
        backups.retain(|backup| backup.id == id);
        return match backups.is_empty() {
            true => Err(Error::failed(format!(
                "The primary has no backup {id} that can be taken"
            ))),
            false => Ok(backups),
        };
    }
    let memory = repository.sync_memory(&server.name)?;
    let mut chosen = Vec::new();
    for backup in backups {
        let is_here = backup.identity().find(repository, &server.name)?.is_some();
        match memory.fetched_names.contains(&backup.name) {
            true if is_here => {}
            true => report.deleted_here.push(backup.id),
            false => chosen.push(backup),
        }
    }
    let coming: Vec<_> = chosen
        .iter()
        .map(|backup| (backup.id, backup.begin_time, backup.end_time))
        .collect();
    let rules = server.retention_rules();
    let obsolete = repository.obsolete_if_here(&server.name, &coming, &rules, moment::now())?;
    // An incremental backup is put together with its parent, so that one comes, too, and the policy deletes it.
    let needed: Vec<_> = chosen
        .iter()
        .filter(|backup| !obsolete.contains(&backup.id))
        .filter_map(|backup| backup.parent_start)
        .collect();
    chosen.retain(|backup| {
        let is_parent = needed.contains(&(backup.start_lsn, backup.timeline));
        let stays = is_parent || !obsolete.contains(&backup.id);
        if !stays {
            report.obsolete.push(backup.id);
        }
        stays
    });
    Ok(chosen)
}

fn take(
    importer: &Importer<'_>,
    source: &mut BarmanHome,
    chosen: &[ForeignBackup],
    report: &mut SyncReport,
) -> Result<(), Error> {
    let mut previous = None;
    for backup in chosen {
        let here = match importer.take(source, backup, previous.as_ref())? {
            Taken::Imported { backup, .. } => {
                report.copied_bytes += backup.new_stored_bytes;
                report.backups.push(backup.id);
                backup
            }
            Taken::Present(here) => here,
            Taken::LeftOut(left_out) => {
                report.problems.extend(problem(&left_out));
                continue;
            }
        };
        importer.repository.note_sync(importer.server, |memory| {
            memory.fetched_names.insert(backup.name.clone());
        })?;
        previous = Some(*here);
    }
    Ok(())
}
