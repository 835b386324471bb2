//! Measures a mount: how long the first look takes, and looks while WAL arrives, and what `find` leaves in memory.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::catalog;
use crate::figures::{Figures, Growing};

/// How long paths are looked at while WAL arrives, once a second.
const ARRIVALS: u32 = 15;

/// Time between two looks.
const BETWEEN: Duration = Duration::from_millis(4);

/// The longest that one in a hundred looks may take while WAL arrives.
const STAT_P99: Duration = Duration::from_millis(20);

/// The most memory of the daemon, in MB.
const MEMORY_MB: f64 = 300.0;

/// A mount that is removed when this is dropped.
struct Mount {
    point: PathBuf,
    process: u32,
}

impl Mount {
    fn new(program: &Path, config: &Path, point: PathBuf) -> Result<Self> {
        fs::create_dir_all(&point)?;
        let status = Command::new(program)
            .arg("-c")
            .arg(config)
            .args(["-q", "mount"])
            .arg(&point)
            .stdin(Stdio::null())
            .status()?;
        if !status.success() {
            bail!("{} cannot mount {}", program.display(), point.display());
        }
        let process = serving(&point)?;
        Ok(Self { point, process })
    }

    /// A number of `/proc/PROCESS/status` in MB.
    fn memory_mb(&self, field: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kb = line.and_then(|line| line.trim_start_matches(':').trim().strip_suffix(" kB"));
        let kb: f64 = kb.with_context(|| format!("no {field}"))?.trim().parse()?;
        Ok(kb / 1024.0)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.point).status();
    }
}

/// The process that serves a mount: the one whose command line has the mount point.
fn serving(point: &Path) -> Result<u32> {
    let wanted = point.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(process) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        if words.any(|word| word == wanted) && process != std::process::id() {
            return Ok(process);
        }
    }
    bail!("no process serves {}", point.display())
}

/// Measures the repository of this configuration; `rows` is its size.
pub(crate) fn measure(
    program: &Path,
    site: &Path,
    config: &Path,
    rows: u32,
    figures: &mut Figures,
) -> Result<()> {
    let began = Instant::now();
    let mount = Mount::new(program, config, site.join("mnt"))?;
    figures.time("mount", rows, began.elapsed(), Growing::Not, None);
    let root = mount.point.clone();
    for (what, path, growing) in [
        ("ls of the root, first", root.clone(), Growing::Not),
        ("ls of the root", root.clone(), Growing::Not),
        ("ls of a server", root.join("s00"), Growing::Linear),
        ("ls of pitr", root.join("s00/pitr"), Growing::Linear),
    ] {
        let began = Instant::now();
        let names = fs::read_dir(&path)?.count();
        figures.time(what, rows, began.elapsed(), growing, None);
        if names == 0 {
            bail!("{} is empty", path.display());
        }
    }
    looks_while_wal_arrives(&mount, &site.join("repository"), rows, figures)?;
    let began = Instant::now();
    let found = Command::new("find")
        .arg(&root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    figures.time("find", rows, began.elapsed(), Growing::Linear, None);
    if !found.success() {
        bail!("find in {} fails", root.display());
    }
    figures.memory(
        "most memory until after find",
        rows,
        mount.memory_mb("VmHWM")?,
        MEMORY_MB,
    );
    figures.memory("memory after find", rows, mount.memory_mb("VmRSS")?, MEMORY_MB);
    // The kernel forgets what is not in use.
    if fs::write("/proc/sys/vm/drop_caches", "2").is_ok() {
        std::thread::sleep(Duration::from_secs(2));
        figures.memory(
            "memory when the kernel has forgotten",
            rows,
            mount.memory_mb("VmRSS")?,
            MEMORY_MB,
        );
    }
    Ok(())
}

/// Looks at a few paths again and again while another process archives a file of WAL each second.
fn looks_while_wal_arrives(mount: &Mount, repository: &Path, rows: u32, figures: &mut Figures) -> Result<()> {
    let backup = fs::read_dir(mount.point.join("s00/raw"))?
        .next()
        .context("no backup")??;
    let paths = [
        mount.point.clone(),
        mount.point.join("s00"),
        mount.point.join("s00/latest"),
        backup.path(),
    ];
    let done = AtomicBool::new(false);
    let mut times = std::thread::scope(|scope| -> Result<Vec<Duration>> {
        let arriving = scope.spawn(|| {
            let result = catalog::arrive(repository, ARRIVALS, Duration::from_secs(1));
            done.store(true, Ordering::Relaxed);
            result
        });
        let mut times = Vec::new();
        while !done.load(Ordering::Relaxed) {
            for path in &paths {
                let began = Instant::now();
                let _links = fs::metadata(path)?.nlink();
                times.push(began.elapsed());
            }
            std::thread::sleep(BETWEEN);
        }
        arriving.join().map_err(|_| anyhow::anyhow!("no WAL arrives"))??;
        Ok(times)
    })?;
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 1000).copied().unwrap_or_default();
    figures.time("stat while WAL arrives, p50", rows, at(500), Growing::Not, None);
    figures.time(
        "stat while WAL arrives, p99",
        rows,
        at(990),
        Growing::Not,
        Some(STAT_P99),
    );
    figures.time(
        "stat while WAL arrives, longest",
        rows,
        at(999),
        Growing::Not,
        None,
    );
    Ok(())
}
