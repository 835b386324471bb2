//! Runs tests again as an unprivileged user. Needs root.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The user id of `nobody`, who is in no other group.
pub const NOBODY: u32 = 65534;

/// A directory for programs that every user can reach, unlike the build directory.
pub struct Ordinary(tempfile::TempDir);

impl Ordinary {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self(directory)
    }

    /// Copies a program here, under its own name.
    pub fn bring(&self, program: &Path) -> PathBuf {
        let here = self.0.path().join(program.file_name().unwrap());
        std::fs::copy(program, &here).unwrap();
        std::fs::set_permissions(&here, std::fs::Permissions::from_mode(0o755)).unwrap();
        here
    }

    /// A command that runs one test of this test program as an ordinary user.
    pub fn run_test(&self, name: &str) -> Command {
        let mut command = Command::new(self.bring(&std::env::current_exe().unwrap()));
        command
            .args(["--exact", name, "--nocapture"])
            .current_dir(self.0.path());
        command.uid(NOBODY).gid(NOBODY);
        command
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
