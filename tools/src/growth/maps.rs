//! Backups of which only the maps are real: how a sweep grows with their number, and a rebuild with the number of chunks.
//!
//! A window has eight bytes of its own and zeros, so a backup of a million windows takes seconds, and the same listings, maps, packs
//! and records as any other. Packs for a rebuild have frames of one byte, which nothing reads.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use barmanfs_catalog::{Backup, CreateOptions, Repository};
use barmanfs_store::{ChunkId, Encoding, Frame, LocalPacks, Node, PackWriter};

use crate::figures::{Figures, Growing};
use crate::made::{self, ATTRIBUTES};
use crate::spent::{Spent, run_once};

/// The most memory, in MB.
const MEMORY_MB: f64 = 500.0;

/// Of each backup.
const WINDOWS: u64 = 200_000;

/// The smallest that there are.
const WINDOW_BYTES: u32 = 8192;

/// Files are as large as PostgreSQL's, in windows.
const FILE_WINDOWS: u64 = 8192;

/// One window in so many is another one in the next backup.
const CHANGED: u64 = 100;

/// Numbers of backups.
const BACKUPS: [u64; 3] = [1, 10, 100];

/// Numbers of packs, each of as many chunks as 200 MiB of a database have: 1, 4 and 16 million.
const PACKS: [u64; 3] = [625, 2500, 10_000];
const PACK_CHUNKS: u64 = 1600;

/// Measures sweeps; sizes are numbers of windows of all backups.
pub(crate) fn measure_sweeps(program: &Path, sizes: usize, figures: &mut Figures) -> Result<()> {
    for backups in BACKUPS.into_iter().take(sizes) {
        let site = Site::new()?;
        site.back_up(backups)?;
        let spent = run_once(program, &site.config(), &["-q", "sweep"])?;
        let rows = u32::try_from(backups * WINDOWS)?;
        add("sweep by windows of all backups", rows, &spent, figures);
    }
    Ok(())
}

/// Measures rebuilds of the catalog; sizes are numbers of chunks.
pub(crate) fn measure_rebuilds(program: &Path, sizes: usize, figures: &mut Figures) -> Result<()> {
    for packs in PACKS.into_iter().take(sizes) {
        let site = Site::new()?;
        site.fill_packs(packs)?;
        let spent = run_once(program, &site.config(), &["-q", "rebuild-catalog"])?;
        let rows = u32::try_from(packs * PACK_CHUNKS)?;
        add("rebuild by chunks", rows, &spent, figures);
        let catalog = fs::metadata(site.repository().join("catalog.sqlite"))?.len();
        figures.bytes("rebuild by chunks, catalog", rows, catalog);
    }
    Ok(())
}

fn add(name: &str, rows: u32, spent: &Spent, figures: &mut Figures) {
    figures.time(name, rows, spent.took, Growing::Linear, None);
    figures.time(
        format!("{name}, CPU"),
        rows,
        spent.of_cores,
        Growing::Linear,
        None,
    );
    figures.memory(format!("{name}, memory"), rows, spent.memory_mb(), MEMORY_MB);
}

/// A directory with a repository and a configuration.
struct Site {
    directory: tempfile::TempDir,
}

impl Site {
    fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("barmanfs-growth-")
            .tempdir_in("/var/tmp")?;
        let site = Self { directory };
        let text = format!(
            "[barmanfs]\nrepository = {}\n[main]\nconninfo = host=/nowhere\n",
            site.repository().display()
        );
        fs::write(site.config(), text)?;
        Repository::create(&site.repository(), CreateOptions::default())?;
        Ok(site)
    }

    fn repository(&self) -> PathBuf {
        self.directory.path().join("repository")
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("barmanfs.conf")
    }

    fn back_up(&self, backups: u64) -> Result<()> {
        let repository = Repository::open(&self.repository())?;
        let mut last = None;
        for number in 0..backups {
            last = Some(back_up(&repository, number, last.as_ref())?);
        }
        Ok(())
    }

    fn fill_packs(&self, packs: u64) -> Result<()> {
        let storage = LocalPacks::open(&self.repository().join("packs"))?;
        let frame = Frame {
            encoding: Encoding::Stored,
            bytes: vec![0],
        };
        for pack in 0..packs {
            let mut writer = PackWriter::begin(&storage)?;
            for chunk in 0..PACK_CHUNKS {
                let id = ChunkId::of(&(pack * PACK_CHUNKS + chunk).to_le_bytes());
                writer.append(id, 1, None, &frame)?;
            }
            writer.close()?;
        }
        Ok(())
    }
}

fn back_up(repository: &Repository, number: u64, last: Option<&Backup>) -> Result<Backup> {
    let run = made::begin(repository)?;
    let trees = repository.trees();
    for file in 0..WINDOWS.div_ceil(FILE_WINDOWS) {
        let path = format!("base/5/{}", 16_384 + file);
        let windows = file * FILE_WINDOWS..WINDOWS.min((file + 1) * FILE_WINDOWS);
        let bytes = (windows.end - windows.start) * u64::from(WINDOW_BYTES);
        let base = match last.and_then(|last| last.root.as_ref()) {
            Some(root) => trees.find(&root.directory, path.as_bytes())?,
            None => None,
        };
        let base = base.and_then(|entry| match entry.node {
            Node::File(map) => Some((&trees, map)),
            _ => None,
        });
        let base = base.as_ref().map(|(trees, map)| (*trees, map));
        let tree = run.tree()?;
        let mut sink = tree.composed_file(path.as_bytes(), ATTRIBUTES, bytes, WINDOW_BYTES, base, bytes)?;
        let begin = windows.start;
        for window in windows {
            if number == 0 || is_changed(window, number) {
                let offset = (window - begin) * u64::from(WINDOW_BYTES);
                sink.block(offset, &content(window, number))?;
            }
        }
        sink.finish()?;
    }
    made::finish(run)
}

/// Spread over all maps, as changes of a database are.
fn is_changed(window: u64, number: u64) -> bool {
    let mixed = (window + number * WINDOWS).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    mixed.is_multiple_of(CHANGED)
}

fn content(window: u64, number: u64) -> Vec<u8> {
    let mut bytes = vec![0; WINDOW_BYTES as usize];
    let own = (number * WINDOWS + window + 1).to_le_bytes();
    bytes.iter_mut().zip(own).for_each(|(byte, own)| *byte = own);
    bytes
}
