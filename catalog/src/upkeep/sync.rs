//! Passive nodes: this repository takes over what another one has of a server.
//!
//! The other one, the primary, is only read: its packs, listed and read through [`PackStorage`]. Nothing is changed there
//! and no lock is taken, so its sweep may remove a pack while a sync reads it; then the sync looks where the chunks are now.
//!
//! 1. The footers of new packs are read into a cache ([`footers`]). They say which records and chunks there are.
//! 2. Of the records, those of the server are chosen that are not here ([`offer`]), without backups that the policy here
//!    would delete at once and without those that were deleted here before.
//! 3. The chunks that they refer to and that are not here are copied ([`copier`]), each checked against its id, into packs of
//!    this repository. Then the record follows, with the id it has there. So a backup is here when all of it is here, a
//!    kill leaves nothing that looks whole, and the next run goes on where this one ended.
//! 4. A backup that cannot be taken counts for nothing: the policy judges the others as if it were not there ([`backups`]).
//!
//! What is known to be damaged here is read again ([`repair`]).
//!
//! Whole packs are not copied: they hold records and chunks of other servers, deletions, and damage notes, which would mean
//! something here. So a primary can add backups and WAL of the one server, and nothing else.
//!
//! What does not come along: deletions (unless they are asked for), decisions to keep a backup, boot tests, known damage,
//! files in quarantine that no decision has taken, and clones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use barmanfs_pg::TimestampMicros;
use barmanfs_store::{Keys, PackStorage, RecordId, TreeReader};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::home::locks::Lock;
use crate::home::now;
use crate::index::chunk_set::ChunkSet;
use crate::index::repository::Repository;
use crate::index::writer::Writer;
use crate::monitor::Monitor;
use crate::names::{BackupId, ServerName};
use crate::retention::RetentionRules;

mod backups;
mod copier;
mod deletions;
mod footers;
mod histories;
mod joined;
mod memory;
mod offer;
mod repair;
mod wal;

use copier::Copier;
use footers::Footers;
pub use memory::SyncMemory;
use memory::directory;
use offer::Offer;
use wal::Wanted;

/// While a backup is copied, new WAL is fetched this often.
const WAL_EVERY: Duration = Duration::from_secs(60);

/// Chunks between two progress reports.
const TELL_EVERY: u64 = 1024;

/// A repository that is synced from.
#[derive(Debug)]
pub struct SyncSource<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its packs. They are only read.
    pub packs: Arc<dyn PackStorage>,
}

/// What to sync.
#[derive(Debug, Clone)]
pub struct SyncOptions {
    /// The retention rules of the server here.
    pub rules: RetentionRules,
    /// Whether what was deleted on the primary is deleted here, too. Only a sync of all backups and WAL does that.
    pub deletions: bool,
    /// Which backups.
    pub backups: SyncedBackups,
    /// Whether WAL is synced.
    pub wal: bool,
}

/// Which backups to sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncedBackups {
    /// All that the policy here keeps and that were not deleted here.
    All,
    /// This one, whatever the policy says.
    Only(BackupId),
    /// None.
    Nothing,
}

/// What a sync has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SyncReport {
    /// Packs of the primary whose footers were read.
    pub new_packs: u64,
    /// Packs that the primary no longer has.
    pub gone_packs: u64,
    /// Backups that are here now and were not before, in the order in which they came.
    pub backups: Vec<BackupId>,
    /// WAL files that came.
    pub wal_files: u64,
    /// Backups that the policy here would delete at once, and that were not fetched.
    pub obsolete: Vec<BackupId>,
    /// Backups that were deleted here before, and were not fetched again.
    pub deleted_here: Vec<BackupId>,
    /// Backups that were deleted because the primary has deleted them.
    pub deleted: Vec<BackupId>,
    /// Ranges of WAL that were removed because the primary has removed them.
    pub removed_wal_ranges: u64,
    /// Chunks that were copied.
    pub copied_chunks: u64,
    /// Bytes of them, as they are stored.
    pub copied_bytes: u64,
    /// What was noticed and is no problem.
    pub notes: Vec<String>,
    /// What could not be taken.
    pub problems: Vec<String>,
}

/// Keeps another sync of the server out while it lives.
#[derive(Debug)]
pub struct SyncLock {
    _lock: Lock,
}

/// A sync that runs.
struct Sync<'a> {
    node: &'a Repository,
    writer: &'a Writer,
    server: &'a ServerName,
    footers: &'a Footers,
    options: &'a SyncOptions,
    memory: SyncMemory,
    offer: Offer,
    wanted: Wanted,
    copier: Copier<'a>,
    trees: TreeReader,
    /// The chunks that were met in this run and are here, or are about to be.
    seen: ChunkSet,
    met: u64,
    took_wal: Instant,
    /// The backups that were copied in this run, or could not be.
    tried: BTreeSet<RecordId>,
    /// When the primary was last looked at.
    looked_at: TimestampMicros,
    /// Whether all its packs could be read then.
    is_all_read: bool,
    report: SyncReport,
}

impl Repository {
    /// Begins a sync of a server.
    ///
    /// # Errors
    /// [`Error::Occupied`] while another one runs.
    pub fn begin_sync(&self, server: &ServerName) -> Result<SyncLock> {
        let name = format!("sync-{server}");
        match self.locks.try_exclusive(&name, &format!("sync of {server}"))? {
            Some(lock) => Ok(SyncLock { _lock: lock }),
            None => Err(Error::Occupied {
                what: "A sync of this server",
                holder: self.locks.holder(&name),
                advice: "wait for its end",
            }),
        }
    }

    /// Takes over what a primary has of a server and this repository does not have.
    ///
    /// # Errors
    /// [`Error::Occupied`] while another sync of the server runs, [`Error::OtherSystem`]; when the primary cannot be read or
    /// this repository cannot be written. What came before stays.
    pub fn sync_from(
        &self,
        server: &ServerName,
        source: &SyncSource<'_>,
        options: &SyncOptions,
        monitor: &mut dyn Monitor,
    ) -> Result<SyncReport> {
        refuse_itself(self, source.id)?;
        refuse_other_names(self, source.packs.keys())?;
        let writer = self.writer(&format!("sync of {server}"))?;
        let _acting = self.as_owner()?;
        let _lock = self.begin_sync(server)?;
        let footers = Footers::open(self, source.id, Arc::clone(&source.packs))?;
        let mut memory = self.sync_memory(server)?;
        memory.begin(source.id, footers.made()?);
        self.write_sync_memory(server, &mut memory)?;
        let reader = Arc::new(joined::reader(self, &footers.db, &footers.storage));
        let mut sync = Sync {
            node: self,
            writer: &writer,
            server,
            footers: &footers,
            options,
            memory,
            offer: Offer::default(),
            wanted: Wanted::default(),
            copier: Copier::new(self, &writer, &footers, Arc::clone(&reader)),
            trees: TreeReader::new(reader),
            seen: ChunkSet::new()?,
            met: 0,
            took_wal: Instant::now(),
            tried: BTreeSet::new(),
            looked_at: now(),
            is_all_read: false,
            report: SyncReport::default(),
        };
        sync.run(monitor)?;
        Ok(sync.report)
    }
}

/// A repository is no primary of itself, and the id becomes the name of a directory.
fn refuse_itself(node: &Repository, primary: &str) -> Result<()> {
    let is_id = primary.len() == 32 && primary.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_id {
        return Err(Error::Invalid(format!(
            "The primary's repository.json has no id that a repository has: {primary:?}"
        )));
    }
    if primary == node.settings().id {
        return Err(Error::Invalid(
            "The primary is this repository itself: primary_repository must name another one, and a copy of a repository \
             is no primary of it"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Records and maps name chunks: they mean the same only where chunks have the same names.
fn refuse_other_names(node: &Repository, primary: &Keys) -> Result<()> {
    let here = node.storage.keys();
    if here.chunk_hash().is_same(primary.chunk_hash()) {
        return Ok(());
    }
    let why = match (here.chunk_hash().key(), primary.chunk_hash().key()) {
        (Some(_), None) => {
            "the primary is not encrypted, or was plain once: make this repository with `barmanfs init --encrypt --id-hash blake3`"
        }
        (None, _) => {
            "the primary was made encrypted: make this repository with `barmanfs init --encrypt --keys-of` and the primary's directory"
        }
        (Some(_), Some(_)) => {
            "both were made encrypted, each with keys of its own: make this repository with `barmanfs init --encrypt --keys-of` and \
             the primary's directory"
        }
    };
    Err(Error::Invalid(format!(
        "This repository and its primary do not name chunks in the same way, so nothing can be taken over: {why}"
    )))
}

impl Sync<'_> {
    fn run(&mut self, monitor: &mut dyn Monitor) -> Result<()> {
        monitor.stage("Looking at the packs of the primary");
        self.look(monitor)?;
        self.take_server()?;
        self.take_histories()?;
        self.repair()?;
        let backups = self.wanted_backups()?;
        if self.options.wal {
            monitor.stage(&format!("Copying the WAL of {}", self.server));
            self.take_wal(monitor)?;
        }
        self.take_backups(backups, monitor)?;
        if self.options.wal && !self.report.backups.is_empty() {
            self.look_again(monitor)?;
        }
        if let SyncedBackups::Only(id) = self.options.backups {
            self.tell_damage(id)?;
        }
        let is_all = self.options.wal && self.options.backups == SyncedBackups::All;
        // Of a part, nothing shows whether what follows a deleted backup is here.
        if is_all && self.options.deletions {
            self.apply_deletions()?;
        }
        self.report.copied_bytes = self.copier.copied_bytes;
        self.report.copied_chunks = self.copier.copied_chunks;
        if is_all && self.report.problems.is_empty() {
            self.memory.synced_at = Some(now());
        }
        self.memory.error = None;
        self.memory.problems.clone_from(&self.report.problems);
        self.save()
    }

    fn save(&mut self) -> Result<()> {
        self.node.write_sync_memory(self.server, &mut self.memory)
    }

    /// Reads what the primary has now.
    fn look(&mut self, monitor: &mut dyn Monitor) -> Result<()> {
        self.looked_at = now();
        let found = self.footers.refresh(self.node, monitor)?;
        self.report.new_packs += found.new_packs;
        self.report.gone_packs += found.gone_packs;
        self.is_all_read = found.problems.is_empty();
        for problem in found.problems {
            let text = format!(
                "Pack {} of the primary is not used: {}",
                problem.pack, problem.reason
            );
            if !self.report.problems.contains(&text) {
                self.report.problems.push(text);
            }
        }
        let mut offer = Offer::of(self.footers, self.server)?;
        for problem in std::mem::take(&mut offer.problems) {
            self.problem(problem);
        }
        self.offer = offer;
        let offered = |id: &RecordId| self.offer.backups.iter().any(|backup| backup.record.id == *id);
        self.memory.untaken.retain(offered);
        self.wanted = self.wanted_wal()?;
        Ok(())
    }

    /// The name belongs to the same cluster on both.
    fn take_server(&mut self) -> Result<()> {
        let Some(there) = &self.offer.server else {
            self.problem(format!(
                "The primary has nothing of server {}: its packs may not be mounted, or it knows the server by another name",
                self.server
            ));
            return Ok(());
        };
        match self.node.system_id(self.server)? {
            Some(expected) if expected != there.body.system_id => Err(Error::OtherSystem {
                server: self.server.clone(),
                expected,
                found: there.body.system_id,
            }),
            Some(_) => Ok(()),
            None => {
                let record = there.record.clone();
                self.copier.record(record)?;
                self.copier.publish()
            }
        }
    }

    /// Fetches the WAL that has come on the primary since.
    fn look_again(&mut self, monitor: &mut dyn Monitor) -> Result<()> {
        self.copier.copy_wanted()?;
        self.look(monitor)?;
        self.take_wal(monitor)
    }

    /// Reports what cannot be taken; an error of this repository or of the connection ends the sync.
    fn not_taken(&mut self, what: &str, error: Error) -> Result<()> {
        if !error.is_damage() && !matches!(error, Error::Store(barmanfs_store::Error::NewerFormat { .. })) {
            return Err(error);
        }
        self.forget_attempt()?;
        self.problem(format!("{what} of {} is not taken: {error}", self.server));
        Ok(())
    }

    /// WAL is looked at several times in one run.
    fn problem(&mut self, problem: String) {
        if !self.report.problems.contains(&problem) {
            self.report.problems.push(problem);
        }
    }

    /// What was met is not all here.
    fn forget_attempt(&mut self) -> Result<()> {
        self.copier.forget_wanted();
        self.seen = ChunkSet::new()?;
        Ok(())
    }
}

/// Whether something is not where it was.
fn is_gone(error: &Error) -> bool {
    matches!(
        error,
        Error::Store(barmanfs_store::Error::MissingChunk(_) | barmanfs_store::Error::MissingPack(_))
    )
}
