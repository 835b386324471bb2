//! The sequence of a benchmark. In every round each tool does everything once, in turn, from the
//! same state of the database. Each round begins with the next tool.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::dataset;
use crate::measure::{self, Sample};
use crate::peers::{Mount, Peer};
use crate::reads;
use crate::results::{Measure, Results};
use crate::server::Server;
use crate::site::{self, Site};

/// Segments archived and fetched in each round.
const SEGMENTS: usize = 20;
/// How long a mount may take to answer.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a mount's daemon may take to end after it was unmounted.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(20);

/// A running benchmark.
pub(crate) struct Rounds<'a> {
    pub(crate) site: &'a Site,
    pub(crate) server: Server<'a>,
    pub(crate) peers: Vec<Box<dyn Peer + 'a>>,
    /// The wanted measures; other steps run only as far as these need them.
    pub(crate) measures: BTreeSet<Measure>,
    pub(crate) results: Results,
    /// Prints the current step.
    pub(crate) say: fn(&str),
}

impl Rounds<'_> {
    /// Runs round `number`, from 0.
    pub(crate) fn run(&mut self, number: u32) -> Result<()> {
        let turns = usize::try_from(number)? % self.peers.len().max(1);
        self.peers.rotate_left(turns);
        let outcome = self.run_in_this_order();
        self.peers.rotate_right(turns);
        outcome
    }

    fn run_in_this_order(&mut self) -> Result<()> {
        self.server.bring_state_back()?;
        self.each("Making repositories", |rounds, peer| peer.prepare(&rounds.server));
        self.back_up(Measure::Full)?;
        self.server.start()?;
        self.server.collect_segments(true)?;
        dataset::change_little(self.site, &self.server)?;
        self.server.collect_segments(false)?;
        self.back_up(Measure::SecondSmall)?;
        self.server.start()?;
        if self.wants_any(&[Measure::SecondHalf]) {
            dataset::change_half_of_all_pages(&self.server)?;
            self.back_up(Measure::SecondHalf)?;
            self.server.start()?;
        }
        if self.wants_any(&[Measure::Restore, Measure::Delta]) {
            self.each("Restoring", Self::restore);
        }
        if self.wants_any(&[Measure::Restore]) {
            self.each("Copying from mounts", Self::copy_from_mount);
        }
        if self.wants_any(&[Measure::Ready]) {
            self.each("Reading a first page", Self::make_readable);
        }
        if self.wants_any(&[Measure::FirstByte]) {
            self.each("Opening files", Self::open_files);
        }
        if self.wants_any(&[Measure::ReadAccounts, Measure::ReadNoise]) {
            self.each("Reading at random places", Self::read_at_random);
        }
        if self.wants_any(&[Measure::WalArchive, Measure::WalFetch]) {
            let segments = self.collected_segments()?;
            self.each("Archiving segments", |rounds, peer| {
                rounds.archive(peer, &segments)
            });
            self.each("Fetching segments", |rounds, peer| rounds.fetch(peer, &segments));
        }
        self.start_servers()?;
        if self.wants_any(&[Measure::Replay]) {
            (self.say)("Making WAL to replay");
            let target = self.make_wal_to_replay()?;
            self.each("Replaying", |rounds, peer| rounds.replay(peer, &target));
        }
        Ok(())
    }

    /// Starts servers on the newest backup, while the backed-up server is stopped.
    fn start_servers(&mut self) -> Result<()> {
        let speeds = [Measure::SelectCold, Measure::SelectWarm, Measure::ReadWrite];
        let wants_answers = self.wants_any(&[Measure::FirstAnswer]);
        if !wants_answers && !self.wants_any(&speeds) {
            return Ok(());
        }
        if wants_answers {
            self.each("Completing backups", |rounds, peer| peer.complete(&rounds.server));
        }
        self.server.stop()?;
        if wants_answers {
            self.each("Waiting for first answers", Self::answer_first);
        }
        if self.wants_any(&speeds) {
            self.each("Running pgbench", Self::serve_queries);
        }
        self.server.start()
    }

    fn wants_any(&self, measures: &[Measure]) -> bool {
        measures.iter().any(|measure| self.measures.contains(measure))
    }

    /// Does something with each tool. A tool that fails is left out from there on, and named in the
    /// report; the others continue.
    fn each(&mut self, step: &str, mut action: impl FnMut(&mut Self, &mut dyn Peer) -> Result<()>) {
        (self.say)(step);
        for mut peer in std::mem::take(&mut self.peers) {
            match action(self, &mut *peer) {
                Ok(()) => self.peers.push(peer),
                Err(error) => {
                    let reason = format!("{step}: {error:#}");
                    (self.say)(&format!("{} is left out from here. {reason}", peer.name()));
                    self.results.skipped.insert(peer.name().into(), reason);
                }
            }
        }
    }

    /// Adds a sample, if its measure is wanted.
    pub(crate) fn record(&mut self, measure: Measure, tool: &str, sample: Sample) {
        if self.measures.contains(&measure) {
            self.results.add(measure, tool, sample);
        }
    }

    fn back_up(&mut self, measure: Measure) -> Result<()> {
        measure::warm(self.site, &self.server.data())?;
        self.each(measure.title(), |rounds, peer| {
            if peer.needs_stopped_server() {
                rounds.server.stop()?;
            } else {
                rounds.server.start()?;
            }
            let command = peer.backup(&rounds.server)?;
            measure::settle(rounds.site)?;
            let before = measure::directory_bytes(&peer.repository())?;
            let mut sample = measure::run(rounds.site, command)?;
            let after = measure::directory_bytes(&peer.repository())?;
            sample.stored_bytes = Some(after.saturating_sub(before));
            rounds.record(measure, peer.name(), sample);
            Ok(())
        });
        Ok(())
    }

    fn restore(&mut self, peer: &mut dyn Peer) -> Result<()> {
        site::remove(&self.site.path("restored"))?;
        if let Some(command) = peer.restore(&self.server, "restored")? {
            self.results.page_cache_dropped = measure::drop_page_cache(self.site)?;
            let sample = measure::run(self.site, command)?;
            self.record(Measure::Restore, peer.restore_name(), sample);
        }
        if self.wants_any(&[Measure::Delta])
            && let Some(command) = peer.restore_delta("restored")?
        {
            dataset::change_pages(&self.site.path("restored/base"))?;
            measure::drop_page_cache(self.site)?;
            let sample = measure::run(self.site, command)?;
            self.record(Measure::Delta, peer.restore_name(), sample);
        }
        site::remove(&self.site.path("restored"))
    }

    fn copy_from_mount(&mut self, peer: &mut dyn Peer) -> Result<()> {
        let target = self.site.path("restored");
        let Some(mounted) = self.mount(peer)? else {
            return Ok(());
        };
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(&mounted.data).arg(&target);
        let mut sample = measure::run(self.site, copy)?;
        // The daemon's memory counts.
        sample.peak_memory_bytes = measure::peak_memory_bytes(mounted.daemon.id());
        mounted.unmount()?;
        self.record(Measure::Restore, &mount_name(peer), sample);
        site::remove(&target)
    }

    fn read_at_random(&mut self, peer: &mut dyn Peer) -> Result<()> {
        for (table, measure) in [
            (dataset::ACCOUNTS, Measure::ReadAccounts),
            (dataset::NOISE, Measure::ReadNoise),
        ] {
            let file = self
                .server
                .sql(&format!("SELECT pg_relation_filepath('{table}')"))?;
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
            let times = reads::random_reads(&data.join(file), 42)?;
            mounted.map_or(Ok(()), Mounted::unmount)?;
            for seconds in times {
                self.record(
                    measure,
                    &tool,
                    Sample {
                        seconds,
                        ..Sample::default()
                    },
                );
            }
        }
        Ok(())
    }

    /// The segments that were archived during the small change, except the last one, which is not
    /// full.
    fn collected_segments(&self) -> Result<Vec<PathBuf>> {
        let directory = self.site.path("segments");
        let entries =
            fs::read_dir(&directory).with_context(|| format!("Cannot read {}", directory.display()))?;
        let mut segments = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_none() {
                segments.push(path);
            }
        }
        segments.sort();
        segments.truncate(segments.len().saturating_sub(1).min(SEGMENTS));
        if segments.is_empty() {
            bail!("The change filled no WAL segment, so there is none to archive: use a larger --scale");
        }
        Ok(segments)
    }

    fn archive(&mut self, peer: &dyn Peer, segments: &[PathBuf]) -> Result<()> {
        for segment in segments {
            let Some(command) = peer.archive(segment) else {
                break;
            };
            measure::settle(self.site)?;
            let before = measure::directory_bytes(&peer.repository())?;
            let mut sample = measure::run(self.site, command)?;
            let after = measure::directory_bytes(&peer.repository())?;
            sample.stored_bytes = Some(after.saturating_sub(before));
            self.record(Measure::WalArchive, peer.name(), sample);
        }
        Ok(())
    }

    /// Fetches the segments in order, as recovery does.
    fn fetch(&mut self, peer: &mut dyn Peer, segments: &[PathBuf]) -> Result<()> {
        let directory = self.site.empty_postgres_directory("fetched")?;
        let names = segments
            .iter()
            .filter_map(|segment| segment.file_name()?.to_str());
        let mounted = self.mount(peer)?;
        if mounted.is_none() {
            measure::drop_page_cache(self.site)?;
        }
        let wal = mounted.as_ref().and_then(|mounted| mounted.wal.clone());
        for name in names {
            let to = directory.join(name);
            let (tool, command) = match &wal {
                Some(wal) => {
                    let mut copy = Command::new("cp");
                    copy.arg(wal.join(name)).arg(&to);
                    (mount_name(peer), Some(copy))
                }
                None => (peer.name().to_owned(), peer.fetch(name, &to)),
            };
            let Some(command) = command else { break };
            let sample = measure::run(self.site, command)?;
            self.record(
                Measure::WalFetch,
                &tool,
                Sample {
                    peak_memory_bytes: None,
                    ..sample
                },
            );
        }
        mounted.map_or(Ok(()), Mounted::unmount)
    }

    /// Mounts a tool's repository, with nothing of it in any cache; `None` if the tool has no
    /// mount.
    pub(crate) fn mount(&mut self, peer: &dyn Peer) -> Result<Option<Mounted>> {
        let at = self.site.path("mount");
        fs::create_dir_all(&at)?;
        let Some(mount) = peer.mount(&self.server, &at) else {
            return Ok(None);
        };
        self.results.page_cache_dropped = measure::drop_page_cache(self.site)?;
        Mounted::start(self.site, mount).map(Some)
    }
}

/// The name of a tool's mount in the report.
pub(crate) fn mount_name(peer: &dyn Peer) -> String {
    format!("{} mount", peer.name())
}

/// A served mount.
pub(crate) struct Mounted {
    daemon: Child,
    unmount: Command,
    /// The newest backup's data directory.
    pub(crate) data: PathBuf,
    /// The directory of archived segments.
    pub(crate) wal: Option<PathBuf>,
    /// The directory to create for a writable data directory.
    pub(crate) clone: Option<PathBuf>,
    /// When its daemon was started.
    pub(crate) started: Instant,
    is_down: bool,
}

impl Mounted {
    fn start(site: &Site, mount: Mount) -> Result<Self> {
        let Mount {
            mut serve,
            unmount,
            data,
            wal,
            clone,
        } = mount;
        serve.stdin(Stdio::null()).stdout(site.log()?).stderr(site.log()?);
        let started = Instant::now();
        let daemon = serve
            .spawn()
            .with_context(|| format!("Cannot run {}", site::shown(&serve)))?;
        let mut mounted = Self {
            daemon,
            unmount,
            data,
            wal,
            clone,
            started,
            is_down: false,
        };
        while !is_there(&mounted.data) {
            if let Some(status) = mounted.daemon.try_wait()? {
                mounted.is_down = true;
                bail!(
                    "{} ended ({status}); {} says why",
                    site::shown(&serve),
                    site.path("log").display()
                );
            }
            if started.elapsed() > MOUNT_TIMEOUT {
                bail!(
                    "{} did not appear within {} s",
                    mounted.data.display(),
                    MOUNT_TIMEOUT.as_secs()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(mounted)
    }

    pub(crate) fn unmount(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_down, true) {
            return Ok(());
        }
        site::output(&mut self.unmount)?;
        let start = Instant::now();
        while self.daemon.try_wait()?.is_none() {
            if start.elapsed() > UNMOUNT_TIMEOUT {
                self.daemon.kill()?;
                self.daemon.wait()?;
                bail!(
                    "The mount's daemon did not end within {} s",
                    UNMOUNT_TIMEOUT.as_secs()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The error that led here must be reported, not that of the clean-up.
        let _ = self.take_down();
    }
}

/// Whether the mounted data directory answers.
fn is_there(data: &Path) -> bool {
    data.join("PG_VERSION").exists()
}
