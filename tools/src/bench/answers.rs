//! A server on data from a backup: the time until it answers, and its speed after that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::dataset;
use crate::measure::{self, Sample};
use crate::peers::Peer;
use crate::results::Measure;
use crate::rounds::{Mounted, Rounds, mount_name};
use crate::server::USER;
use crate::site::{self, Site};

/// How long pgbench only reads.
const READ_SECONDS: u32 = 15;

/// How long pgbench also writes: more than one checkpoint.
const WRITE_SECONDS: u32 = 60;

/// Overrides the settings of the backed-up server. A commit waits for the disk, as in production.
const SETTINGS: &[&str] = &[
    "archive_mode=off",
    "synchronous_commit=on",
    "checkpoint_timeout=30s",
];

/// How long a server may recover until it answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The name of the restored data directory.
const STARTED: &str = "started";

impl Rounds<'_> {
    /// Measures the time from only the newest backup, with an empty page cache, to the first row
    /// from a server on it.
    pub(crate) fn answer_first(&mut self, peer: &mut dyn Peer) -> Result<()> {
        let target = self.site.path(STARTED);
        site::remove(&target)?;
        if let Some(mounted) = self.mount(peer)? {
            if let Some(clone) = mounted.clone.clone() {
                self.answer_on_clone(peer, &mounted, &clone)?;
            }
            mounted.unmount()?;
            if let Some(mounted) = self.mount(peer)? {
                let mut copy = Command::new("cp");
                copy.arg("-a").arg(&mounted.data).arg(&target);
                let began = mounted.started;
                self.answer_on_copy(&mount_name(peer), copy, began)?;
                mounted.unmount()?;
            }
        }
        site::remove(&target)?;
        if let Some(command) = peer.restore_to_start(&self.server, STARTED)? {
            measure::drop_page_cache(self.site)?;
            self.answer_on_copy(peer.restore_name(), command, Instant::now())?;
        }
        site::remove(&target)
    }

    fn answer_on_copy(&mut self, tool: &str, mut copy: Command, began: Instant) -> Result<()> {
        self.site.run(&mut copy)?;
        let target = self.site.path(STARTED);
        let started = Started::start(self, &target)?;
        started.first_row()?;
        let seconds = began.elapsed().as_secs_f64();
        started.stop()?;
        let written = measure::directory_bytes(&target)?;
        self.add_answer(tool, seconds, written);
        Ok(())
    }

    fn answer_on_clone(&mut self, peer: &dyn Peer, mounted: &Mounted, clone: &Path) -> Result<()> {
        let before = allocated_bytes(self.site, &peer.repository())?;
        make_directory(clone)?;
        let started = Started::start(self, clone)?;
        started.first_row()?;
        let seconds = mounted.started.elapsed().as_secs_f64();
        started.stop()?;
        let written = allocated_bytes(self.site, &peer.repository())?.saturating_sub(before);
        self.add_answer(&clone_name(peer), seconds, written);
        remove_directory(clone)
    }

    fn add_answer(&mut self, tool: &str, seconds: f64, written_bytes: u64) {
        let sample = Sample {
            seconds,
            stored_bytes: Some(written_bytes),
            peak_memory_bytes: None,
        };
        self.record(Measure::FirstAnswer, tool, sample);
    }

    /// Runs pgbench on a clone, and for comparison on plain files, under the name of `cp`.
    pub(crate) fn serve_queries(&mut self, peer: &mut dyn Peer) -> Result<()> {
        let target = self.site.path(STARTED);
        site::remove(&target)?;
        if let Some(mounted) = self.mount(peer)? {
            if let Some(clone) = mounted.clone.clone() {
                make_directory(&clone)?;
                self.run_pgbench(&clone_name(peer), &clone)?;
                remove_directory(&clone)?;
            }
            mounted.unmount()?;
        } else if peer.name() == "cp"
            && let Some(mut copy) = peer.restore(&self.server, STARTED)?
        {
            self.site.run(&mut copy)?;
            measure::drop_page_cache(self.site)?;
            self.run_pgbench(peer.name(), &target)?;
        }
        site::remove(&target)
    }

    fn run_pgbench(&mut self, tool: &str, data: &Path) -> Result<()> {
        let started = Started::start(self, data)?;
        let cold = started.pgbench(READ_SECONDS, &["-S"])?;
        self.record(Measure::SelectCold, tool, cold);
        measure::warm(self.site, data)?;
        let warm = started.pgbench(READ_SECONDS, &["-S"])?;
        self.record(Measure::SelectWarm, tool, warm);
        measure::settle(self.site)?;
        let writing = started.pgbench(WRITE_SECONDS, &[])?;
        self.record(Measure::ReadWrite, tool, writing);
        started.stop()
    }
}

/// The name of a tool's clone in the report.
fn clone_name(peer: &dyn Peer) -> String {
    format!("{} clone", peer.name())
}

fn make_directory(clone: &Path) -> Result<()> {
    fs::create_dir(clone).with_context(|| format!("Cannot make {}", clone.display()))
}

fn remove_directory(clone: &Path) -> Result<()> {
    fs::remove_dir(clone).with_context(|| format!("Cannot remove {}", clone.display()))
}

/// Bytes of a directory on disk: files of a clone are sparse.
fn allocated_bytes(site: &Site, directory: &Path) -> Result<u64> {
    measure::settle(site)?;
    let text = site::output(Command::new("du").args(["-s", "-B1"]).arg(directory))?;
    let number = text.split_whitespace().next().unwrap_or_default();
    number.parse().with_context(|| format!("du says {text:?}"))
}

/// A server on a restored data directory.
struct Started<'a> {
    site: &'a Site,
    bindir: PathBuf,
    data: PathBuf,
    sockets: PathBuf,
    running: bool,
}

impl<'a> Started<'a> {
    /// Starts it and waits until it accepts connections.
    fn start(rounds: &Rounds<'a>, data: &Path) -> Result<Self> {
        let site = rounds.site;
        let sockets = site.empty_postgres_directory("sockets")?;
        let mut started = Self {
            site,
            bindir: rounds.server.bindir().to_owned(),
            data: data.to_owned(),
            sockets,
            running: false,
        };
        let settings: String = SETTINGS.iter().map(|setting| format!(" -c {setting}")).collect();
        let options = format!("-k {}{settings}", started.sockets.display());
        let mut control = started.control("start");
        // Its log must not be on the mount.
        control
            .arg("-l")
            .arg(started.sockets.join("log"))
            .args(["-o", &options]);
        site.run(&mut control)?;
        started.running = true;
        Ok(started)
    }

    fn control(&self, action: &str) -> Command {
        let mut control = self.site.as_postgres(self.bindir.join("pg_ctl"));
        control.args([action, "-w", "-t", "600", "-D"]).arg(&self.data);
        control
    }

    fn client(&self, program: &str) -> Command {
        let mut client = self.site.as_postgres(self.bindir.join(program));
        client.arg("-h").arg(&self.sockets).args(["-U", USER]);
        client.env("PGDATABASE", "postgres");
        client
    }

    /// Asks until the server answers: without `hot_standby` it takes no connections before its recovery has ended.
    fn first_row(&self) -> Result<()> {
        let query = format!("SELECT abalance FROM {} WHERE aid = 4711", dataset::ACCOUNTS);
        let began = Instant::now();
        loop {
            match site::output(self.client("psql").args(["-XAtq", "-c", &query])) {
                Ok(answer) => {
                    ensure!(!answer.trim().is_empty(), "The server has no row to show");
                    return Ok(());
                }
                Err(error) if began.elapsed() > ANSWER_TIMEOUT => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Runs two clients for this many seconds; the sample's time is that of a transaction, over all
    /// clients.
    fn pgbench(&self, seconds: u32, options: &[&str]) -> Result<Sample> {
        self.wait_until_promoted()?;
        let mut pgbench = self.client("pgbench");
        let seconds = seconds.to_string();
        pgbench
            .args(["-n", "-c", "2", "-j", "2", "--random-seed=42", "-T", &seconds])
            .args(options);
        let text = site::output(&mut pgbench)?;
        let rate = transactions_per_second(&text)
            .with_context(|| format!("pgbench does not say how fast it was: {text}"))?;
        Ok(Sample {
            seconds: 1.0 / rate,
            ..Sample::default()
        })
    }

    fn wait_until_promoted(&self) -> Result<()> {
        let promoted = "SELECT 1 WHERE NOT pg_is_in_recovery()";
        let mut psql = self.client("psql");
        psql.args(["-XAtq", "-c", promoted, "-c", "SELECT 1"]);
        let began = Instant::now();
        while site::output(&mut psql)?.lines().count() < 2 {
            ensure!(
                began.elapsed().as_secs() < 600,
                "The server in {} is still in recovery",
                self.data.display()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        self.running = false;
        self.site.run(self.control("stop").args(["-m", "fast"]))
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        if self.running {
            // The error that led here must be reported, not that of the clean-up.
            let _ = self.site.run(self.control("stop").args(["-m", "immediate"]));
        }
    }
}

/// Parses the line "tps = 1234.5 (without initial connection time)".
fn transactions_per_second(text: &str) -> Option<f64> {
    let line = text
        .lines()
        .filter_map(|line| line.strip_prefix("tps = "))
        .next_back()?;
    let rate: f64 = line.split(' ').next()?.parse().ok()?;
    (rate > 0.0).then_some(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_from_pgbenchs_output() {
        let text = "transaction type: x\ninitial connection time = 1 ms\ntps = 250.5 (without initial connection time)\n";
        assert_eq!(transactions_per_second(text), Some(250.5));
        assert_eq!(transactions_per_second("tps = 0.0 (x)\n"), None);
        assert_eq!(transactions_per_second("pgbench: error"), None);
    }
}
