//! Verification: every chunk in use is read, decoded and checked against its id, once.
//!
//! 1. The trees and maps in question are walked and their chunk ids collected. Listings and map pieces are checked on
//!    the way, because nothing below a damaged one can be found.
//! 2. All chunks are checked on all cores, in the order of their places in packs: for each the place that a sweep
//!    keeps, and for the bases of deltas as well.
//! 3. If a chunk cannot be read there, all its places are checked ([`places`]).
//! 4. Only if something was damaged, the trees are walked again, to name the files and pages ([`naming`]). If nothing
//!    needs a chunk by then, what needed it was deleted meanwhile, and the chunk was swept away: that is no damage.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, HashSet};

use barmanfs_store::tree::ChunkRole;
use barmanfs_store::{ChunkId, DirectoryRef, FileMap, PackId, read_footer};
use serde::{Deserialize, Serialize};

use crate::archive::backup::{Backup, BackupSelector};
use crate::archive::clones::CloneDescription;
use crate::archive::damage::Places;
use crate::archive::wal::WalFile;
use crate::error::{Error, Result};
use crate::index::chunk_set::{ChunkSet, Met, Role};
use crate::index::repository::Repository;
use crate::index::unread::{PackProblem, UnreadPack};
use crate::monitor::{Monitor, Silent, Unit};
use crate::names::{BackupId, CloneName, ServerName};

mod checking;
pub(crate) mod lost;
mod naming;
mod needed;
mod places;
pub(crate) mod round;

/// Number of damaged chunks that are remembered. With so many the disk is broken, and the report is long enough.
const BAD_CHUNKS_MAX: usize = 100_000;

/// Number of damages that are reported individually.
const DAMAGES_MAX: usize = 10_000;

/// Number of archived files whose maps are held at a time.
const WAL_PAGE: usize = 500;

/// What to verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyScope {
    /// Everything in use, and the footers of all packs, on which a rebuild would depend.
    All,
    /// Everything of a server: backups, WAL, quarantined files, and what its clones are based on.
    Server(ServerName),
    /// One backup and the WAL it needs, unless that came with it.
    Backup(ServerName, BackupId),
    /// The archive of a server.
    Wal(ServerName),
}

impl VerifyScope {
    /// The server; `None` if it is all of them.
    fn server(&self) -> Option<&ServerName> {
        match self {
            Self::All => None,
            Self::Server(server) | Self::Backup(server, _) | Self::Wal(server) => Some(server),
        }
    }
}

/// A file that cannot be restored as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Whose it is.
    pub server: ServerName,
    /// The backup it belongs to; none for an archived file and for a clone's.
    pub backup: Option<BackupId>,
    /// The clone that is based on it.
    pub clone: Option<CloneName>,
    /// Its path in the backup or clone, or its name in the archive. A path that ends with a slash is a directory that
    /// cannot be listed.
    pub file: String,
    /// The first damaged 8 KiB page, counted from 0; none if the whole directory cannot be listed.
    pub first_page: Option<u64>,
    /// How many pages are damaged.
    pub pages: u64,
    /// What is wrong, and in which pack.
    pub reason: String,
}

/// Result of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Backups that were checked.
    pub backups: u64,
    /// Backups whose files are a snapshot in the site's storage: nothing of them can be checked.
    pub snapshots: u64,
    /// Clones whose base was checked.
    pub clones: u64,
    /// Archived and quarantined files that were checked.
    pub wal_files: u64,
    /// Chunks that were checked.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks that are damaged or missing.
    pub bad_chunks: u64,
    /// Chunks with both a damaged and a good copy; the good one is used once the damage is
    /// [noted](Repository::note_damage).
    pub mended_chunks: u64,
    /// The affected files, the first ten thousand.
    pub damages: Vec<Damage>,
    /// Whether there are more.
    pub damages_cut: bool,
    /// Packs whose footers are damaged or that are missing.
    pub pack_problems: Vec<PackProblem>,
    /// Faults of catalog.sqlite itself. If there are any, nothing else was checked.
    pub catalog_faults: Vec<String>,
    /// Packs that are not in the catalog and cannot be entered: what they hold was not checked.
    pub unread_packs: Vec<UnreadPack>,
    /// Places that are damaged themselves: the one or two of each chunk that was bad or mended.
    #[serde(skip)]
    pub(crate) damaged_places: Places,
    /// Whether a chunk that may be needed is in no pack.
    #[serde(skip)]
    pub(crate) is_something_lost: bool,
    /// Packs in the catalog that are not there, and in which something was looked for.
    #[serde(skip)]
    pub(crate) missing_packs: BTreeSet<PackId>,
    /// Whether the footers of all packs were checked.
    #[serde(skip)]
    pub(crate) footers_checked: bool,
}

impl VerifyReport {
    /// Whether everything is as it should be.
    pub fn is_clean(&self) -> bool {
        self.bad_chunks == 0
            && self.damages.is_empty()
            && self.pack_problems.is_empty()
            && self.unread_packs.is_empty()
            && self.catalog_faults.is_empty()
    }

    /// Whether something that was looked for is in a pack that is not there. It may come back, if a file system was not
    /// mounted.
    pub fn is_a_pack_missing(&self) -> bool {
        !self.missing_packs.is_empty()
    }
}

/// Damaged chunks.
type BadChunks = HashMap<ChunkId, Bad>;

/// What is wrong with a chunk.
#[derive(Debug)]
struct Bad {
    reason: String,
    /// Whether something that still exists needs it.
    needed: Cell<bool>,
}

impl Bad {
    /// Returns the reason, and marks the chunk as needed.
    fn reason(&self) -> &str {
        self.needed.set(true);
        &self.reason
    }
}

/// What a scope covers.
struct Subject {
    server: ServerName,
    backups: Vec<Backup>,
    /// The archived files: all, or the ones a backup needs.
    wal: WalSubject,
    quarantined: Vec<WalFile>,
    clones: Vec<CloneDescription>,
}

enum WalSubject {
    None,
    All,
    NeededBy(Box<Backup>),
}

struct Verification<'a> {
    repository: &'a Repository,
    met: ChunkSet,
    bad: BadChunks,
    /// Chunks whose places have all been checked; at most [`BAD_CHUNKS_MAX`].
    examined: HashSet<ChunkId>,
    report: VerifyReport,
}

impl Repository {
    /// Verifies everything in a scope.
    ///
    /// # Errors
    /// When the catalog or the disk cannot be read. Damage is not an error: it is reported, and may be
    /// [noted](Self::note_damage).
    pub fn verify(&self, scope: &VerifyScope, monitor: &mut dyn Monitor) -> Result<VerifyReport> {
        let _shown = self.show_verification(scope.server());
        // If the index is damaged, it cannot be used to check anything else.
        monitor.stage("Checking the catalog");
        let catalog_faults = self.catalog_faults()?;
        if !catalog_faults.is_empty() {
            return Ok(VerifyReport {
                catalog_faults,
                ..VerifyReport::default()
            });
        }
        let unread_packs = self.unread_packs()?;
        let subjects = self.subjects(scope)?;
        let mut run = Verification::new(self)?;
        run.report.unread_packs = unread_packs;
        for subject in &subjects {
            monitor.stage(&format!("Collecting the chunks of server {}", subject.server));
            run.collect(subject, monitor)?;
        }
        monitor.stage("Checking chunks");
        run.check(monitor)?;
        if *scope == VerifyScope::All {
            monitor.stage("Checking the footers of packs");
            run.check_footers()?;
            run.report.footers_checked = true;
        }
        if !run.bad.is_empty() {
            monitor.stage("Naming what is damaged");
            for subject in &subjects {
                run.name_damages(subject)?;
            }
        }
        // The others belonged to what has been deleted meanwhile.
        run.report.bad_chunks = run.bad.values().filter(|bad| bad.needed.get()).count() as u64;
        Ok(run.report)
    }

    /// Reads one archived file, and records what is damaged in it: the next writer that brings the bytes stores them
    /// again.
    pub(crate) fn note_damage_of(&self, file: &WalFile) -> Result<()> {
        let subject = Subject {
            server: file.server.clone(),
            backups: Vec::new(),
            wal: WalSubject::None,
            quarantined: vec![file.clone()],
            clones: Vec::new(),
        };
        let mut run = Verification::new(self)?;
        run.collect(&subject, &mut Silent)?;
        run.check(&mut Silent)?;
        self.note_damage(&run.report)
    }

    fn subjects(&self, scope: &VerifyScope) -> Result<Vec<Subject>> {
        let server = |server: ServerName| {
            let backups = self.backups(&server)?;
            let quarantined = self.wal(&server).quarantined()?;
            let clones = self.clones(&server)?;
            Ok(Subject {
                server,
                backups,
                wal: WalSubject::All,
                quarantined: quarantined.into_iter().map(|kept| kept.file).collect(),
                clones,
            })
        };
        match scope {
            VerifyScope::All => self.servers()?.into_iter().map(server).collect(),
            VerifyScope::Server(name) => Ok(vec![server(name.clone())?]),
            VerifyScope::Wal(name) => Ok(vec![Subject {
                server: name.clone(),
                backups: Vec::new(),
                wal: WalSubject::All,
                quarantined: Vec::new(),
                clones: Vec::new(),
            }]),
            VerifyScope::Backup(name, id) => {
                let backup = self.backup(name, &BackupSelector::Id(*id))?;
                let wal = WalSubject::NeededBy(Box::new(backup.clone()));
                Ok(vec![Subject {
                    server: name.clone(),
                    backups: vec![backup],
                    wal,
                    quarantined: Vec::new(),
                    clones: Vec::new(),
                }])
            }
        }
    }

    /// Calls `each` with the archived files of a subject.
    fn each_wal(&self, subject: &Subject, each: &mut dyn FnMut(WalFile) -> Result<()>) -> Result<()> {
        match &subject.wal {
            WalSubject::None => Ok(()),
            WalSubject::All => {
                // Abandoned histories are verified as well.
                for archive in self.archives(&subject.server)? {
                    let archive = self.wal(&archive);
                    let mut last = None;
                    loop {
                        let page = archive.files(last.as_ref(), WAL_PAGE)?;
                        let Some(file) = page.last() else { break };
                        last = Some(file.name);
                        page.into_iter().try_for_each(&mut *each)?;
                    }
                }
                Ok(())
            }
            WalSubject::NeededBy(backup) => {
                let archive = self.wal(backup.archive());
                for segment in backup.needed_wal() {
                    let name = barmanfs_pg::wal_name::WalName::Segment(segment);
                    archive.find(&name)?.map_or(Ok(()), &mut *each)?;
                }
                Ok(())
            }
        }
    }
}

impl<'a> Verification<'a> {
    /// One that has met nothing yet.
    fn new(repository: &'a Repository) -> Result<Self> {
        Ok(Self {
            repository,
            met: ChunkSet::new()?,
            bad: BadChunks::new(),
            examined: HashSet::new(),
            report: VerifyReport::default(),
        })
    }
}

impl Verification<'_> {
    /// Collects the ids of all chunks of a subject.
    fn collect(&mut self, subject: &Subject, monitor: &mut dyn Monitor) -> Result<()> {
        let repository = self.repository;
        for backup in &subject.backups {
            if backup.root.is_none() {
                self.report.snapshots += u64::from(backup.is_snapshot());
                continue;
            }
            let Some(_guard) = repository.verifying(backup)? else {
                continue;
            };
            self.report.backups += 1;
            for tree in repository.trees_of(backup)? {
                self.collect_tree(&tree)?;
            }
            monitor.progress(self.report.backups, None, Unit::Chunks);
        }
        for clone in &subject.clones {
            self.report.clones += 1;
            self.collect_tree(&clone.root.directory)?;
            clone
                .grafts
                .iter()
                .try_for_each(|graft| self.collect_file(&graft.map))?;
        }
        for file in &subject.quarantined {
            self.report.wal_files += 1;
            self.collect_file(&file.map)?;
        }
        repository.each_wal(subject, &mut |file| {
            self.report.wal_files += 1;
            self.collect_file(&file.map)
        })
    }

    fn collect_tree(&mut self, directory: &DirectoryRef) -> Result<()> {
        let trees = self.repository.trees();
        Ok(trees.chunks_of(directory, &mut |id, role| Ok(self.collect_one(id, role)?))?)
    }

    fn collect_file(&mut self, map: &FileMap) -> Result<()> {
        let trees = self.repository.trees();
        Ok(trees.chunks_of_file(map, &mut |id, role| Ok(self.collect_one(id, role)?))?)
    }

    /// Records a chunk, and returns whether to continue with what it refers to: not if that has been done, or if the
    /// chunk cannot be read.
    fn collect_one(&mut self, id: ChunkId, role: ChunkRole) -> Result<bool> {
        if self.met.meet(&id, Role::Tree(role))? == Met::Before {
            return Ok(false);
        }
        if role == ChunkRole::Window {
            return Ok(true);
        }
        match self.repository.chunks().get(&id) {
            Ok(_) => Ok(true),
            Err(error) if error.is_damage() => {
                note_bad(&mut self.bad, id, error.to_string());
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Checks the footer of each pack in the catalog.
    fn check_footers(&mut self) -> Result<()> {
        for pack in self.repository.pack_ids()? {
            match read_footer(self.repository.storage.as_ref(), pack) {
                Ok(_) => {}
                // A sweep has removed it meanwhile.
                Err(barmanfs_store::Error::MissingPack(_)) if !self.repository.knows_pack(pack)? => {}
                Err(error) if error.is_damage() => {
                    let problem = PackProblem {
                        pack,
                        reason: error.to_string(),
                    };
                    self.report.pack_problems.push(problem);
                }
                Err(error) => return Err(Error::from(error)),
            }
        }
        Ok(())
    }
}

fn note_bad(bad: &mut BadChunks, id: ChunkId, reason: String) {
    if bad.len() < BAD_CHUNKS_MAX {
        let needed = Cell::new(false);
        bad.insert(id, Bad { reason, needed });
    }
}
