//! What a run of the program takes.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What a run of the program took.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    pub(crate) took: Duration,
    /// On all cores together.
    pub(crate) of_cores: Duration,
    memory_kib: u64,
}

/// Runs the program, which must succeed. `check` may find problems: there is no server.
pub(crate) fn run_once(program: &Path, config: &Path, words: &[&str]) -> Result<Spent> {
    let began = Instant::now();
    let before = of_children()?;
    let mut child = Command::new(program)
        .arg("-c")
        .arg(config)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("Cannot run {}", program.display()))?;
    let mut spent = Spent::default();
    let status = loop {
        spent.look_at(&child);
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    spent.took = began.elapsed();
    spent.of_cores = of_children()?.saturating_sub(before);
    match status.code() {
        Some(0 | 3) => Ok(spent),
        _ => bail!("{} ended with {status}", words.join(" ")),
    }
}

/// What all children that have ended took of the cores: fields 16 and 17, in hundredths of a second. The name before them may
/// have spaces.
fn of_children() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let behind_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let fields = behind_name.split(' ').skip(13).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

impl Spent {
    pub(crate) fn memory_mb(&self) -> f64 {
        self.memory_kib as f64 / 1024.0
    }

    /// What the kernel says about a process; it says nothing about one that has ended.
    fn look_at(&mut self, child: &Child) {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        self.memory_kib = self.memory_kib.max(kib_of(&status, "VmHWM:"));
    }
}

/// A line of `/proc/PROCESS/status`.
pub(crate) fn kib_of(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}
