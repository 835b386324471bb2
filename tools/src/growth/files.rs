//! Backups of many small files: what the thread takes that hands them over, for all of them and for each.
//!
//! The second backup has the same files in another order, as a file system lists them: directory after directory, and the files
//! of each mixed. So nothing is stored again, and what is left is the work for each file.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use barmanfs_catalog::{CreateOptions, Repository};
use rustix::time::{ClockId, clock_gettime};

use crate::figures::{Figures, Growing};
use crate::made::{self, ATTRIBUTES};
use crate::spent::kib_of;

/// The content of a file, of which eight bytes are its own.
const FILE_BYTES: usize = 8192;

/// Files of a directory of PostgreSQL.
const IN_A_DIRECTORY: u64 = 1000;

/// The most memory, in MB.
const MEMORY_MB: f64 = 500.0;

/// Measures backups of these numbers of files.
pub(crate) fn measure(sizes: &[u64], figures: &mut Figures) -> Result<()> {
    for files in sizes {
        let directory = tempfile::Builder::new()
            .prefix("barmanfs-growth-")
            .tempdir_in("/var/tmp")?;
        let path = directory.path().join("repository");
        let repository = Repository::create(&path, CreateOptions::default())?;
        let rows = u32::try_from(*files)?;
        let (main, _) = back_up(&repository, *files, Order::ByNumber)?;
        figures.time(
            "full backup by files, main thread",
            rows,
            main,
            Growing::Linear,
            None,
        );
        let (main, took) = back_up(&repository, *files, Order::Mixed)?;
        figures.time(
            "unchanged backup by files, main thread",
            rows,
            main,
            Growing::Linear,
            None,
        );
        figures.time(
            "unchanged backup by files, in all",
            rows,
            took,
            Growing::Linear,
            None,
        );
        let each = main / rows;
        figures.time(
            "unchanged backup, main thread, each file",
            rows,
            each,
            Growing::Not,
            None,
        );
        let catalog = fs::metadata(path.join("catalog.sqlite"))?.len();
        figures.bytes("backup by files, catalog", rows, catalog);
        // The most of all sizes so far, which grow.
        let status = fs::read_to_string("/proc/self/status")?;
        let mb = kib_of(&status, "VmHWM:") as f64 / 1024.0;
        figures.memory("backup by files, memory", rows, mb, MEMORY_MB);
    }
    Ok(())
}

/// The order of files.
#[derive(Debug, Clone, Copy)]
enum Order {
    ByNumber,
    Mixed,
}

impl Order {
    /// The `nth` of so many files.
    fn file(self, nth: u64, files: u64) -> u64 {
        match self {
            Self::ByNumber => nth,
            Self::Mixed => {
                let directories = files.div_ceil(IN_A_DIRECTORY);
                // Coprime to the numbers of directories and files.
                let directory = nth / IN_A_DIRECTORY * 7919 % directories;
                directory * IN_A_DIRECTORY + nth * 389 % IN_A_DIRECTORY
            }
        }
    }
}

/// What this thread takes of a core, and how long all takes.
fn back_up(repository: &Repository, files: u64, order: Order) -> Result<(Duration, Duration)> {
    let (began, used) = (Instant::now(), used());
    let run = made::begin(repository)?;
    let mut content = vec![0; FILE_BYTES];
    for nth in 0..files {
        let file = order.file(nth, files);
        content
            .iter_mut()
            .zip((file + 1).to_le_bytes())
            .for_each(|(byte, own)| *byte = own);
        let path = format!("base/{}/{}", file / IN_A_DIRECTORY, 16_384 + file);
        let mut sink = run
            .tree()?
            .file(path.as_bytes(), ATTRIBUTES, FILE_BYTES as u64, 128 << 10)?;
        sink.write(&content)?;
        sink.finish()?;
    }
    made::finish(run)?;
    Ok((self::used().saturating_sub(used), began.elapsed()))
}

/// What this thread has taken of a core.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}
