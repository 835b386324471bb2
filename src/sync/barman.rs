//! A running Barman as the primary: its home is imported again and again, from a directory, or from another host over ssh.
//!
//! What is here is not read again. A backup that was deleted here, by a person or by the policy, is not taken again, and
//! neither is one that the policy here would delete at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use barmanfs_catalog::{Backup, Repository, SyncMemory, SyncReport, SyncedBackups};
use barmanfs_pg::TimestampMicros;
use jiff::tz::TimeZone;

use super::{Extent, Synced, described, not_passive};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::import::backups::{Importer, Taken};
use crate::import::barman::far::{FarHome, Position, Reached};
use crate::import::barman::{BarmanHome, Options, Waiting};
use crate::import::plain::Plain;
use crate::import::{ForeignBackup, LeftOut, Listing, Source, has_damaged_files, of_one_cluster, wal};
use crate::moment;
use crate::signals::Interruption;

/// All of the list of WAL on another host is compared after this time, whatever its end says.
const LIST_ALL_EVERY: Duration = Duration::from_secs(3600);

/// Where the home is.
enum Home<'a> {
    Near(BarmanHome),
    Far(Box<FarHome<'a>>),
}

impl Home<'_> {
    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Near(home) => home,
            Self::Far(home) => home.as_mut(),
        }
    }

    /// Fails when the other host cannot be read any more: then nothing that follows says anything.
    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Near(_) => Ok(()),
            Self::Far(home) => home.check().map_err(|error| error.context("The primary")),
        }
    }

    fn watch(&self) -> Result<Interruption, Error> {
        match self {
            Self::Near(_) => Interruption::watch(|| {}),
            Self::Far(home) => {
                let running = home.shell().running().clone();
                Interruption::watch(move || running.stop())
            }
        }
    }

    fn position(&self) -> Option<Position> {
        match self {
            Self::Near(_) => None,
            Self::Far(home) => home.position(),
        }
    }
}

fn options() -> Options {
    Options {
        plain: Plain {
            passphrase: None,
            custom_decompress: None,
        },
        zone: TimeZone::system(),
        with_partial: false,
        waiting: Waiting::Awaited,
    }
}

/// How the Barman of another host is reached.
fn reached(server: &ServerConfig, config: Option<&Path>) -> Result<Reached, Error> {
    let primary = &server.primary;
    let command = primary.ssh_command.clone().ok_or_else(|| not_passive(server))?;
    Ok(Reached {
        command,
        config: config.filter(|_| primary.forward_config_path).map(Path::to_owned),
        server: server.name.to_string(),
    })
}

/// Opens the home.
fn open<'a>(
    repository: &'a Repository,
    server: &'a ServerConfig,
    config: Option<&Path>,
    since: Option<&Position>,
) -> Result<Home<'a>, Error> {
    if let Some(home) = &server.primary.home {
        let home = BarmanHome::open(home, (None, server.name.as_str()), options())?;
        return Ok(Home::Near(home));
    }
    let of = (repository, &server.name);
    let home = FarHome::open(reached(server, config)?, of, options(), since);
    Ok(Home::Far(Box::new(
        home.map_err(|error| error.context("The primary"))?,
    )))
}

/// Whether the home is there.
pub(super) fn reach(server: &ServerConfig, config: Option<&Path>) -> Result<String, Error> {
    match &server.primary.home {
        Some(home) => BarmanHome::open(home, (None, server.name.as_str()), options()).map(drop)?,
        None => reached(server, config)?.check()?,
    }
    Ok(described(server))
}

/// From where on the list of WAL is asked for: from its beginning once in a while.
fn since(memory: &SyncMemory, now: TimestampMicros) -> Option<&Position> {
    let is_recent = memory
        .listed_at
        .is_some_and(|at| at <= now && now.saturating_duration_since(at) < LIST_ALL_EVERY);
    memory.listed_through.as_ref().filter(|_| is_recent)
}

/// Takes over what the Barman has and this repository does not.
pub(super) fn sync(
    repository: &Repository,
    server: &ServerConfig,
    config: Option<&Path>,
    extent: Extent,
) -> Result<Synced, Error> {
    let _lock = repository.begin_sync(&server.name)?;
    let began = moment::now();
    let memory = repository.sync_memory(&server.name)?;
    let mut is_all_listed = since(&memory, began).is_none();
    let mut home = open(repository, server, config, since(&memory, began))?;
    let primary = home.source().described();
    repository.note_sync(&server.name, |memory| {
        memory.began_at = Some(began);
        memory.primary.clone_from(&primary);
    })?;
    let signals = home.watch()?;
    let mut report = SyncReport::default();
    if extent.backups != SyncedBackups::Nothing {
        let importer = Importer {
            repository,
            server: &server.name,
            signals: &signals,
            quiet: true,
        };
        take_backups(&importer, server, &mut home, extent, &mut report)?;
    }
    if extent.wal {
        // What a backup needs that has just come may be earlier.
        if let (false, Home::Far(home), false) = (is_all_listed, &mut home, report.backups.is_empty()) {
            home.list_all_wal()?;
            is_all_listed = true;
        }
        take_wal((repository, server), &mut home, &signals, &mut report)?;
    }
    let is_whole = extent.wal && report.problems.is_empty();
    let position = home.position().filter(|_| is_whole);
    repository.note_sync(&server.name, |memory| {
        if is_whole && extent.backups == SyncedBackups::All {
            memory.synced_at = Some(moment::now());
            memory.current_at = Some(began);
        }
        if extent.wal {
            memory.listed_through = position;
        }
        if is_whole && is_all_listed {
            memory.listed_at = Some(began);
        }
        memory.problems.clone_from(&report.problems);
    })?;
    Ok(Synced {
        primary,
        report,
        partial_segments: 0,
    })
}

fn take_wal(
    (repository, server): (&Repository, &ServerConfig),
    home: &mut Home<'_>,
    signals: &Interruption,
    report: &mut SyncReport,
) -> Result<(), Error> {
    let of = (repository, &server.name);
    let (totals, left_out) = wal::take(home.source(), of, wal::Extent::Needed, signals, true)?;
    home.check()?;
    report.wal_files = totals.archived;
    report.copied_bytes += totals.new_stored_bytes;
    report.problems.extend(left_out.iter().filter_map(problem));
    if totals.left_out_unnamed > 0 {
        let more = format!("{} more WAL files are not taken", totals.left_out_unnamed);
        report.problems.push(more);
    }
    Ok(())
}

/// Takes backups. In the place of one that cannot be taken those come that the policy would have left out for its sake.
fn take_backups(
    importer: &Importer<'_>,
    server: &ServerConfig,
    home: &mut Home<'_>,
    extent: Extent,
    report: &mut SyncReport,
) -> Result<(), Error> {
    let listed = home.source().backups();
    home.check()?;
    let Listing {
        mut backups,
        mut left_out,
    } = listed?;
    left_out.extend(of_one_cluster(
        Some(importer.repository),
        importer.server,
        &mut backups,
    )?);
    // A passive node decides itself what it keeps.
    backups.iter_mut().for_each(|backup| backup.keep = None);
    report.problems.extend(left_out.iter().filter_map(problem));
    let mut untaken = BTreeSet::new();
    loop {
        let before = untaken.len();
        let left = backups
            .iter()
            .filter(|backup| !untaken.contains(&backup.name))
            .cloned();
        let chosen = choose(importer.repository, server, extent, left.collect(), report)?;
        take(importer, home, &chosen, report, &mut untaken)?;
        if untaken.len() == before || extent.backups != SyncedBackups::All {
            return Ok(());
        }
    }
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
    report.deleted_here.clear();
    report.obsolete.clear();
    let mut chosen = Vec::new();
    for backup in backups {
        let here = backup.identity().find(repository, &server.name)?;
        match (memory.fetched_names.contains(&backup.name), here) {
            (true, Some(here)) if !has_damaged_files(repository, &here)? => {}
            (true, None) => report.deleted_here.push(backup.id),
            _ => chosen.push(backup),
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
    home: &mut Home<'_>,
    chosen: &[ForeignBackup],
    report: &mut SyncReport,
    untaken: &mut BTreeSet<String>,
) -> Result<(), Error> {
    let mut previous: Option<Backup> = None;
    for backup in chosen {
        let taken = importer.take(home.source(), backup, previous.as_ref());
        home.check()?;
        let here = match taken? {
            Taken::Imported { backup, .. } => {
                report.copied_bytes += backup.new_stored_bytes;
                report.backups.push(backup.id);
                backup
            }
            Taken::Present(here) => here,
            Taken::Repaired { backup: here, .. } => {
                let note = format!("Backup {} was damaged here and is whole again", here.id);
                report.notes.push(note);
                here
            }
            Taken::LeftOut(left_out) => {
                report.problems.extend(problem(&left_out));
                untaken.insert(backup.name.clone());
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
