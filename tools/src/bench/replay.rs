//! Recovery from an archive: how fast PostgreSQL replays a fixed run of segments from each source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::dataset;
use crate::measure::{self, Sample};
use crate::peers::Peer;
use crate::results::Measure;
use crate::rounds::{Rounds, mount_name};
use crate::site;

/// The number of replayed segments.
const SEGMENTS: usize = 200;

/// Settings for a recovery along the WAL of a server that was stopped meanwhile.
const SETTINGS: &str = "archive_mode = off\nhot_standby = off\nrecovery_target_action = 'shutdown'\n";

impl Rounds<'_> {
    /// Makes the WAL that follows the kept state; its segments are in `segments` afterwards.
    /// Returns the position to recover to.
    pub(crate) fn make_wal_to_replay(&mut self) -> Result<String> {
        self.server.bring_state_back()?;
        self.server.collect_segments(true)?;
        while segments(&self.site.path("segments"))?.len() <= SEGMENTS {
            dataset::change_everywhere(&self.server)?;
        }
        let target = self.server.sql("SELECT pg_current_wal_insert_lsn()")?;
        dataset::change_everywhere(&self.server)?;
        self.server.checkpoint()?;
        self.server.collect_segments(false)?;
        self.server.stop()?;
        Ok(target)
    }

    /// Recovers the kept state to `target`. Only tools whose archive `cp` can read take part.
    pub(crate) fn replay(&mut self, peer: &mut dyn Peer, target: &str) -> Result<()> {
        let directory = self.site.path("segments");
        if peer.name() == "cp" {
            measure::drop_page_cache(self.site)?;
            let command = format!("cp \"{}/%f\" \"%p\"", directory.display());
            return self.recover("cp", &command, target);
        }
        if peer.archive(&directory).is_none() || peer.mount(&self.server, &directory).is_none() {
            return Ok(());
        }
        self.server.bring_state_back_keeping_segments()?;
        peer.prepare(&self.server)?;
        let backup = peer.backup(&self.server)?;
        measure::run(self.site, backup)?;
        self.server.stop()?;
        for segment in segments(&directory)? {
            if let Some(mut archive) = peer.archive(&segment) {
                self.site.run(&mut archive)?;
            }
        }
        let Some(mounted) = self.mount(peer)? else {
            return Ok(());
        };
        let Some(wal) = mounted.wal.clone() else {
            return mounted.unmount();
        };
        let command = format!("cp \"{}/%f\" \"%p\"", wal.display());
        let outcome = self.recover(&mount_name(peer), &command, target);
        mounted.unmount()?;
        outcome
    }

    fn recover(&mut self, tool: &str, restore_command: &str, target: &str) -> Result<()> {
        let data = self.site.path("replayed");
        site::remove(&data)?;
        let pristine = self.site.path("pristine");
        self.site.run(
            Command::new("cp")
                .args(["-a", "--reflink=auto"])
                .arg(pristine)
                .arg(&data),
        )?;
        let command = restore_command.replace('\'', "''");
        let settings =
            format!("\n{SETTINGS}restore_command = '{command}'\nrecovery_target_lsn = '{target}'\n");
        append(&data.join("postgresql.auto.conf"), &settings)?;
        self.site
            .run(self.site.as_postgres("touch").arg(data.join("recovery.signal")))?;
        measure::settle(self.site)?;
        let mut postgres = self.site.as_postgres(self.server.program("postgres"));
        postgres.arg("-D").arg(&data);
        let sample = measure::run(self.site, postgres)?;
        ensure!(
            !data.join("postmaster.pid").exists(),
            "The server did not shut itself down at {target}"
        );
        self.record(
            Measure::Replay,
            tool,
            Sample {
                peak_memory_bytes: None,
                ..sample
            },
        );
        site::remove(&data)
    }
}

fn append(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let file = fs::OpenOptions::new().append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("Cannot write {}", path.display()))
}

/// The segments in a directory, in order.
fn segments(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("Cannot read {}", directory.display()))?;
    let mut segments = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none() {
            segments.push(path);
        }
    }
    segments.sort();
    Ok(segments)
}
