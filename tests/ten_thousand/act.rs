//! What another process does with the library: this program again, which is killed now and then, and has the clock of the test.

use super::made::{BLOCK_BYTES, Tree, block, content, digest};
use crate::common::Site;
use crate::common::clock::Clock;
use crate::common::process::run;
use crate::common::user::{command, own_command};
use barmanfs_catalog::{
    Backup, BackupId, BackupSelector, BackupStatus, CloneDescription, CloneName, CloneOrigin, NewBackup,
    Repository, ServerName, testing,
};
use barmanfs_live::{Initial, LiveClone};
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, ServerVersion, SystemId, TimelineId};
use barmanfs_store::layout::DATA_WINDOW_BYTES;
use barmanfs_store::{Attributes, DirectoryRef, Node, RecordId, TreeReader};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::SystemTime;

/// A process with this in its environment does it and ends.
const VARIABLE: &str = "BARMANFS_TEST_ACT";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) repository: PathBuf,
    pub(super) act: Act,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Act {
    BackUp(NewFiles),
    Clone {
        server: String,
        name: String,
        backup: String,
    },
    /// Looks at everything, and into all backups and WAL files but the `known` ones, or into all.
    Look {
        known: BTreeSet<String>,
        all: bool,
    },
    /// The hash of each file of a backup.
    Files {
        server: String,
        backup: String,
    },
    /// How many bytes all content takes that is there, each piece of it once, compressed on its own.
    Measure,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct NewFiles {
    pub(super) server: String,
    pub(super) system: u64,
    /// The only segment that it needs.
    pub(super) segment: u32,
    pub(super) tree: Tree,
    /// Of an incremental backup: the parent with its files.
    pub(super) parent: Option<(String, Tree)>,
}

/// What is in a repository.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen(pub(super) BTreeMap<String, SeenServer>);

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct SeenServer {
    /// Oldest first.
    pub(super) backups: Vec<SeenBackup>,
    /// The hash of each file, or why it cannot be read; `None` if it was not looked into.
    pub(super) wal: BTreeMap<String, Option<String>>,
    pub(super) clones: BTreeMap<String, SeenClone>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SeenBackup {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) first: String,
    pub(super) last: String,
    pub(super) keep: Option<String>,
    pub(super) digest: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SeenClone {
    pub(super) backup: String,
    pub(super) digest: Option<String>,
}

/// The command that does this, as the database user.
pub(super) fn order(site: &Site, clock: &Clock, act: &Act) -> Command {
    let program = site.path("actor");
    if !program.exists() {
        // By a process: a file that this one has open for writing cannot be run.
        let own = std::env::current_exe().unwrap();
        run(own_command("cp", &site.path("")).args([&own, &program])).ok();
    }
    let order = Order {
        repository: site.repository(),
        act: act.clone(),
    };
    let mut command = command("env", &site.path(""));
    command.args(clock.environment());
    command.arg(format!("{VARIABLE}={}", serde_json::to_string(&order).unwrap()));
    command.arg(program);
    command
}

/// Does what the environment asks for, if it asks for anything.
pub(crate) fn ordered() -> Option<ExitCode> {
    let order = std::env::var(VARIABLE).ok()?;
    Some(match carry_out(&order) {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    })
}

fn carry_out(order: &str) -> Result<String> {
    let Order { repository, act } = serde_json::from_str(order)?;
    let repository = Repository::open(&repository)?;
    Ok(match act {
        Act::BackUp(new) => back_up(&repository, &new)?,
        Act::Clone { server, name, backup } => {
            clone(&repository, &server.parse()?, name.parse()?, backup.parse()?)?
        }
        Act::Look { known, all } => serde_json::to_string(&look(&repository, &known, all)?)?,
        Act::Files { server, backup } => {
            let backup = repository.backup(&server.parse()?, &BackupSelector::Id(backup.parse()?))?;
            let files = hashes(&repository, &backup)?;
            let shown: BTreeMap<String, String> = files
                .into_iter()
                .map(|(path, hash)| (path, hash.to_hex().to_string()))
                .collect();
            serde_json::to_string(&shown)?
        }
        Act::Measure => measure(&repository)?.to_string(),
    })
}

fn attributes() -> Attributes {
    Attributes {
        mode: 0o600,
        uid: 26,
        gid: 26,
        mtime_s: 1_700_000_000,
        mtime_ns: 0,
    }
}

/// Returns the id.
fn back_up(repository: &Repository, new: &NewFiles) -> Result<String> {
    let server: ServerName = new.server.parse()?;
    let mut run = repository.writer("test backup")?.begin_backup(
        &server,
        NewBackup {
            server_version: ServerVersion(180_001),
            ..testing::new_backup(SystemId(new.system))
        },
    )?;
    let id = run.id().to_string();
    let parent = match &new.parent {
        Some((parent, _)) => {
            let parent = repository.backup(&server, &BackupSelector::Id(parent.parse()?))?;
            Some(run.build_on(&parent)?)
        }
        None => None,
    };
    for (path, blocks) in &new.tree.0 {
        let bytes = (blocks.len() * BLOCK_BYTES) as u64;
        let old = new.parent.as_ref().and_then(|(_, tree)| tree.0.get(path));
        let base = match (&parent, old) {
            (Some((trees, root)), Some(_)) => trees.find(root, path.as_bytes())?,
            _ => None,
        };
        let tree = run.tree()?;
        match (&parent, base.map(|entry| entry.node), old) {
            (Some((trees, _)), Some(Node::File(map)), Some(old)) => {
                let kept = (old.len().min(blocks.len()) * BLOCK_BYTES) as u64;
                let base = Some((trees, &map));
                let mut sink = tree.composed_file(
                    path.as_bytes(),
                    attributes(),
                    bytes,
                    DATA_WINDOW_BYTES,
                    base,
                    kept,
                )?;
                for (at, number) in blocks.iter().enumerate() {
                    if old.get(at) != Some(number) {
                        sink.block((at * BLOCK_BYTES) as u64, &block(*number))?;
                    }
                }
                sink.finish()?;
            }
            _ => {
                let mut sink = tree.file(path.as_bytes(), attributes(), bytes, DATA_WINDOW_BYTES)?;
                sink.write(&content(blocks))?;
                sink.finish()?;
            }
        }
    }
    run.end_tree(attributes())?;
    let segment = u64::from(new.segment);
    run.finish(testing::backup_end(segment, segment))?;
    Ok(id)
}

fn clone(repository: &Repository, server: &ServerName, name: CloneName, backup: BackupId) -> Result<String> {
    let backup = repository.backup(server, &BackupSelector::Id(backup))?;
    let description = CloneDescription {
        id: RecordId::random()?,
        seed: None,
        server: server.clone(),
        name,
        origin: CloneOrigin {
            backup: backup.id,
            target: None,
            copied_from: None,
        },
        created_at: SystemTime::now().into(),
        root: backup.root.clone().ok_or("no root")?,
        grafts: Vec::new(),
        max_bytes: None,
    };
    let draft = repository.begin_clone(description, &backup)?;
    let initial = Initial {
        made: Vec::new(),
        looked_at: &[],
        hide: &|_, _| false,
    };
    drop(LiveClone::create_in(
        draft.directory(),
        draft.description(),
        repository.trees(),
        &initial,
    )?);
    draft.finish()?;
    Ok(String::new())
}

fn look(repository: &Repository, known: &BTreeSet<String>, all: bool) -> Result<Seen> {
    let mut seen = Seen::default();
    for server in repository.servers()? {
        let mut found = SeenServer::default();
        let is_new = |name: &str| all || !known.contains(&format!("{server}/{name}"));
        let backups = repository.backups(&server)?;
        for backup in &backups {
            let segment = |lsn: Option<Lsn>| {
                lsn.map_or(String::new(), |lsn| {
                    let lsn = Lsn(lsn.0.saturating_sub(1));
                    SegmentName::from_lsn(TimelineId(1), lsn, backup.segment_size).to_string()
                })
            };
            let id = backup.id.to_string();
            let digest =
                (backup.is_complete() && is_new(&id)).then(|| shown(tree_digest(repository, backup)));
            found.backups.push(SeenBackup {
                status: backup.status.as_str().to_owned(),
                first: segment(backup.start_lsn.map(|lsn| Lsn(lsn.0 + 1))),
                last: segment(backup.stop_lsn),
                keep: repository
                    .keep_of(backup)?
                    .map(|keep| keep.target.as_str().to_owned()),
                digest,
                id,
            });
        }
        let archive = repository.wal(&server);
        for entry in archive.entries() {
            let entry = entry?;
            let name = entry.name.to_string();
            let hash = is_new(&name).then(|| {
                shown((|| {
                    let mut bytes = Vec::new();
                    archive
                        .open(&entry.name)?
                        .ok_or("it is gone")?
                        .read_to_end(&mut bytes)?;
                    Ok(blake3::hash(&bytes).to_hex().to_string())
                })())
            });
            found.wal.insert(name, hash);
        }
        for clone in repository.clones(&server)? {
            let digest = all.then(|| shown(digest_of(repository, &clone.root.directory)));
            let backup = clone.origin.backup.to_string();
            found
                .clones
                .insert(clone.name.to_string(), SeenClone { backup, digest });
        }
        seen.0.insert(server.to_string(), found);
    }
    Ok(seen)
}

fn shown(result: Result<String>) -> String {
    result.unwrap_or_else(|error| format!("unreadable: {error}"))
}

fn tree_digest(repository: &Repository, backup: &Backup) -> Result<String> {
    digest_of(repository, &backup.root.as_ref().ok_or("no root")?.directory)
}

fn digest_of(repository: &Repository, root: &DirectoryRef) -> Result<String> {
    let mut files = BTreeMap::new();
    each_file(&repository.trees(), root, &mut |path, bytes| {
        files.insert(path, blake3::hash(bytes));
    })?;
    Ok(digest(files.iter().map(|(path, hash)| (path.as_str(), *hash))))
}

fn hashes(repository: &Repository, backup: &Backup) -> Result<BTreeMap<String, blake3::Hash>> {
    let mut files = BTreeMap::new();
    let root = backup.root.as_ref().ok_or("no root")?;
    each_file(&repository.trees(), &root.directory, &mut |path, bytes| {
        files.insert(path, blake3::hash(bytes));
    })?;
    Ok(files)
}

fn each_file(trees: &TreeReader, root: &DirectoryRef, each: &mut dyn FnMut(String, &[u8])) -> Result<()> {
    let mut waiting = vec![(String::new(), root.clone())];
    while let Some((prefix, directory)) = waiting.pop() {
        for entry in trees.entries(&directory) {
            let entry = entry?;
            let path = format!("{prefix}{}", String::from_utf8(entry.name)?);
            match entry.node {
                Node::File(map) => {
                    let mut bytes = Vec::new();
                    trees.reader(map).read_to_end(&mut bytes)?;
                    each(path, &bytes);
                }
                Node::Directory(child) => waiting.push((format!("{path}/"), child)),
                Node::Symlink(_) => {}
            }
        }
    }
    Ok(())
}

/// What all pieces take that backups and WAL files have, each once, compressed alone as a chunk that is no delta.
fn measure(repository: &Repository) -> Result<u64> {
    let mut met = BTreeSet::new();
    let mut total = 0;
    let mut count = |bytes: &[u8]| {
        for piece in bytes.chunks(DATA_WINDOW_BYTES as usize) {
            let is_new = piece.iter().any(|byte| *byte != 0) && met.insert(*blake3::hash(piece).as_bytes());
            if is_new {
                let mut out = vec![0; zstd_safe::compress_bound(piece.len())];
                total += zstd_safe::compress(&mut out, piece, 3)
                    .map_or(piece.len(), |taken| taken.min(piece.len()));
            }
        }
    };
    for server in repository.servers()? {
        for backup in repository.backups(&server)? {
            if backup.status == BackupStatus::Done {
                let root = backup.root.as_ref().ok_or("no root")?;
                each_file(&repository.trees(), &root.directory, &mut |_, bytes| count(bytes))?;
            }
        }
        let archive = repository.wal(&server);
        for entry in archive.entries() {
            let mut bytes = Vec::new();
            archive
                .open(&entry?.name)?
                .ok_or("it is gone")?
                .read_to_end(&mut bytes)?;
            count(&bytes);
        }
    }
    Ok(total as u64)
}
