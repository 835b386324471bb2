//! A clock that a test moves on: of a server with all that it starts, and of the program.
//!
//! `libfaketime` reads the distance to the host's clock from a file. Only the wall clock is another one: pauses and time
//! limits are as long as ever.

use super::Site;
use super::process::{Run, run};
use super::user::command;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// The library, as its own command names it: the loader knows the platform's part of the path.
const LIBRARY: &str = "/usr/$LIB/faketime/libfaketime.so.1";

/// A clock; it starts as the host's.
#[derive(Debug)]
pub(crate) struct Clock {
    file: PathBuf,
    home: PathBuf,
    ahead_seconds: u64,
}

impl Clock {
    pub(crate) fn new(site: &Site) -> Self {
        assert!(
            [
                "/usr/lib",
                "/usr/lib64",
                "/usr/lib/x86_64-linux-gnu",
                "/usr/lib/aarch64-linux-gnu"
            ]
            .iter()
            .any(|place| Path::new(place).join("faketime/libfaketime.so.1").exists()),
            "There is no libfaketime: install the package faketime"
        );
        let clock = Self {
            file: site.path("clock"),
            home: site.path(""),
            ahead_seconds: 0,
        };
        clock.write();
        clock
    }

    /// In seconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        host_seconds() + self.ahead_seconds
    }

    /// Moves it on to this moment, if that is not past.
    pub(crate) fn move_to(&mut self, seconds: u64) {
        self.ahead_seconds = self.ahead_seconds.max(seconds.saturating_sub(host_seconds()));
        self.write();
    }

    /// Readers find the old or the new distance, never half of one.
    fn write(&self) {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("+{}\n", self.ahead_seconds)).expect("Cannot write a file");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).expect("Cannot set permissions");
        fs::rename(new, &self.file).expect("Cannot rename a file");
    }

    /// What a process must have in its environment.
    pub(crate) fn environment(&self) -> Vec<String> {
        vec![
            format!("LD_PRELOAD={LIBRARY}"),
            format!("FAKETIME_TIMESTAMP_FILE={}", self.file.display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
            "DONT_FAKE_MONOTONIC=1".to_owned(),
        ]
    }

    /// The program at this time, as the database user.
    pub(crate) fn command(&self, site: &Site, arguments: &[&str]) -> Command {
        let mut program = command("env", &self.home);
        program.args(self.environment());
        program
            .arg(site.program())
            .arg("-c")
            .arg(site.config())
            .args(arguments);
        program
    }

    pub(crate) fn run(&self, site: &Site, arguments: &[&str]) -> Run {
        run(&mut self.command(site, arguments))
    }
}

fn host_seconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("it is after 1970").as_secs()
}

impl Drop for Clock {
    /// A killed process leaves what the library keeps in memory for it.
    fn drop(&mut self) {
        let entries = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let process = name
                .strip_prefix("faketime_shm_")
                .or_else(|| name.strip_prefix("sem.faketime_sem_"));
            if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}
