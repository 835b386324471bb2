//! One measurement: how long a program takes, how much memory, how many bytes it leaves.

use std::collections::HashMap;
use std::fs;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::site::{self, Site};

/// How often a program's memory is read. The kernel keeps the maximum, so only growth in its last
/// moments is missed.
const MEMORY_INTERVAL: Duration = Duration::from_millis(50);

/// The cost of one run of a program.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    /// From its start to its end.
    pub(crate) seconds: f64,
    /// Growth of its repository.
    pub(crate) stored_bytes: Option<u64>,
    /// Peak resident memory, including its child processes.
    pub(crate) peak_memory_bytes: Option<u64>,
}

/// Runs a command and measures time and memory.
pub(crate) fn run(site: &Site, mut command: Command) -> Result<Sample> {
    let mut log = site.log()?;
    let log_start = log.seek(SeekFrom::End(0))?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?);
    let start = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("Cannot run {}", site::shown(&command)))?;
    let memory = MemoryWatch::start(&child);
    let status = child.wait()?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!(
            "{} failed ({status}): {}",
            site::shown(&command),
            site::tail_of(&mut log, log_start)?
        );
    }
    Ok(Sample {
        seconds,
        stored_bytes: None,
        peak_memory_bytes: memory.finish(),
    })
}

/// Reads the memory of a process and its children from time to time, on a thread of its own.
struct MemoryWatch {
    stop: mpsc::Sender<()>,
    thread: thread::JoinHandle<Option<u64>>,
}

impl MemoryWatch {
    fn start(child: &Child) -> Self {
        let process = child.id();
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut peaks = HashMap::new();
            while stopped.recv_timeout(MEMORY_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                note_peaks(process, &mut peaks);
            }
            (!peaks.is_empty()).then(|| peaks.values().sum())
        });
        Self { stop, thread }
    }

    fn finish(self) -> Option<u64> {
        drop(self.stop);
        self.thread.join().ok().flatten()
    }
}

/// Records the peaks of a process and all its descendants.
fn note_peaks(process: u32, peaks: &mut HashMap<u32, u64>) {
    if let Some(bytes) = peak_memory_bytes(process) {
        peaks.insert(process, bytes);
    }
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        note_peaks(child, peaks);
    }
}

/// The peak resident memory of a process; `None` when it is gone.
pub(crate) fn peak_memory_bytes(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The length of all files below a directory; each file counts once, however many links it has.
pub(crate) fn directory_bytes(path: &Path) -> Result<u64> {
    let mut seen = std::collections::HashSet::new();
    let mut bytes = 0;
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("Cannot read {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            // A running server removes files while they are listed.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                directories.push(entry.path());
            } else if metadata.is_file() && seen.insert((metadata.dev(), metadata.ino())) {
                bytes += metadata.len();
            }
        }
    }
    Ok(bytes)
}

/// Flushes all pending writes, so that a measurement does not pay for the previous one.
pub(crate) fn settle(site: &Site) -> Result<()> {
    site.run(&mut Command::new("sync"))
}

/// Empties the page cache; only root can. Returns whether it was emptied.
pub(crate) fn drop_page_cache(site: &Site) -> Result<bool> {
    settle(site)?;
    Ok(fs::write("/proc/sys/vm/drop_caches", "3").is_ok())
}

/// Reads everything below a directory once, so that every tool finds it in the page cache.
pub(crate) fn warm(site: &Site, directory: &Path) -> Result<()> {
    site.run(
        Command::new("sh")
            .args(["-c", "tar cf - -C \"$0\" . | cat > /dev/null"])
            .arg(directory),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_this_process_is_measured() {
        assert!(peak_memory_bytes(std::process::id()).is_some_and(|bytes| bytes > 100 << 10));
        assert_eq!(peak_memory_bytes(u32::MAX), None);
    }

    #[test]
    fn a_program_is_timed_and_its_failure_reported() {
        let directory = tempfile::tempdir().unwrap();
        let site = Site::new(directory.path()).unwrap();
        let mut sleep = Command::new("sleep");
        sleep.arg("0.2");
        let sample = run(&site, sleep).unwrap();
        assert!((0.2..5.0).contains(&sample.seconds), "{sample:?}");
        assert!(sample.peak_memory_bytes.is_some());
        let mut failing = Command::new("sh");
        failing.args(["-c", "echo what is wrong; exit 3"]);
        let message = run(&site, failing).unwrap_err().to_string();
        assert!(message.contains("what is wrong"), "{message}");
    }

    #[test]
    fn a_linked_file_counts_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a");
        fs::create_dir(directory.path().join("d")).unwrap();
        fs::write(&file, [0; 1000]).unwrap();
        fs::hard_link(&file, directory.path().join("d/b")).unwrap();
        fs::write(directory.path().join("d/c"), [0; 10]).unwrap();
        assert_eq!(directory_bytes(directory.path()).unwrap(), 1010);
    }
}
