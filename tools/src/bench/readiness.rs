//! The time until some data of the newest backup can be read at all, and the bytes written to disk
//! for that.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::dataset;
use crate::measure::{self, Sample};
use crate::peers::Peer;
use crate::results::Measure;
use crate::rounds::{Mounted, Rounds, mount_name};
use crate::site;

const PAGE_BYTES: usize = 8192;

/// The number of files whose first page is read.
const FILES: usize = 200;

impl Rounds<'_> {
    /// Measures the time from only the backup to the first page of the largest table: by a mount,
    /// or by a restore of everything.
    pub(crate) fn make_readable(&mut self, peer: &mut dyn Peer) -> Result<()> {
        let file = self
            .server
            .sql(&format!("SELECT pg_relation_filepath('{}')", dataset::ACCOUNTS))?;
        let target = self.site.path("restored");
        site::remove(&target)?;
        let before = measure::directory_bytes(&peer.repository())?;
        if let Some(mounted) = self.mount(peer)? {
            first_page(&mounted.data.join(&file))?;
            let seconds = mounted.started.elapsed().as_secs_f64();
            mounted.unmount()?;
            let written = measure::directory_bytes(&peer.repository())?.saturating_sub(before);
            self.add_ready(&mount_name(peer), seconds, written);
        } else if let Some(command) = peer.restore(&self.server, "restored")? {
            measure::drop_page_cache(self.site)?;
            let sample = measure::run(self.site, command)?;
            let read = first_page(&target.join(&file))?;
            let written = measure::directory_bytes(&target)?;
            self.add_ready(peer.restore_name(), sample.seconds + read, written);
        }
        site::remove(&target)
    }

    fn add_ready(&mut self, tool: &str, seconds: f64, written_bytes: u64) {
        let sample = Sample {
            seconds,
            stored_bytes: Some(written_bytes),
            peak_memory_bytes: None,
        };
        self.record(Measure::Ready, tool, sample);
    }

    /// Opens files all over the newest backup, each for the first time, and reads their first page.
    pub(crate) fn open_files(&mut self, peer: &mut dyn Peer) -> Result<()> {
        let (tool, mounted, data) = if peer.name() == "cp" {
            measure::drop_page_cache(self.site)?;
            ("cp".to_owned(), None, peer.repository().join("data"))
        } else {
            let Some(mounted) = self.mount(peer)? else {
                return Ok(());
            };
            let data = mounted.data.clone();
            (mount_name(peer), Some(mounted), data)
        };
        for file in some_files(&data.join("base"))? {
            let seconds = first_page(&file)?;
            let sample = Sample {
                seconds,
                ..Sample::default()
            };
            self.record(Measure::FirstByte, &tool, sample);
        }
        mounted.map_or(Ok(()), Mounted::unmount)
    }
}

/// Opens a file and reads its first page. Returns the seconds this took.
fn first_page(path: &Path) -> Result<f64> {
    let began = Instant::now();
    let mut page = [0; PAGE_BYTES];
    let read = File::open(path).and_then(|file| file.read_at(&mut page, 0));
    read.with_context(|| format!("Cannot read {}", path.display()))?;
    Ok(began.elapsed().as_secs_f64())
}

/// Files of some size, from all over the databases, in the order of their paths.
fn some_files(base: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let list = |directory: &Path| {
        fs::read_dir(directory).with_context(|| format!("Cannot read {}", directory.display()))
    };
    for database in list(base)? {
        for file in list(&database?.path())? {
            let file = file?;
            if file.metadata()?.len() >= PAGE_BYTES as u64 {
                files.push(file.path());
            }
        }
    }
    files.sort();
    let step = files.len().div_ceil(FILES).max(1);
    Ok(files.into_iter().step_by(step).collect())
}
