//! Runs test tools for file systems on a clone: fsx and pjdfstest. `BARMANFS_TEST_TOOLS` names their directory
//! (`scripts/torture.sh` installs them); without it, they are skipped. Needs /dev/fuse and root.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout
)]

#[path = "../../tests/common/random.rs"]
#[allow(dead_code)]
mod random;
mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use random::Random;
use support::daemon::Daemon;
use support::ordinary::Ordinary;
use support::{Fixture, data_directory};

/// Operations of one run of fsx, unless `BARMANFS_TEST_OPERATIONS` is set.
const USUAL_OPERATIONS: u64 = 5000;

/// Number of runs of fsx on each file. The clone is mounted again in between.
const ROUNDS: u64 = 3;

/// The variable with the directory of the tools.
const TOOLS: &str = "BARMANFS_TEST_TOOLS";

/// All operations of fsx, with sizes that cross blocks.
const FSX_ALL: &str = "
[opsize]
max = 66000
[weights]
close_open = 1
invalidate = 1
mapread = 5
mapwrite = 5
read = 10
write = 10
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 2
punch_hole = 3
sendfile = 2
posix_fadvise = 1
copy_file_range = 3
";

/// For the beginning of a file that stays partly the backup's: the file is not truncated.
const FSX_PARTIAL: &str = "
flen = 151552
blockmode = true
[opsize]
max = 66000
[weights]
mapread = 5
mapwrite = 5
read = 10
write = 10
truncate = 0
fsync = 1
fdatasync = 1
punch_hole = 3
sendfile = 2
posix_fadvise = 1
copy_file_range = 3
";

/// The path of a tool. Without a directory of tools it prints that and returns `None`.
fn tool(name: &str) -> Option<PathBuf> {
    let directory = std::env::var_os(TOOLS);
    if directory.is_none() {
        println!("{TOOLS} names no directory with {name}: left out");
    }
    Some(Path::new(&directory?).join(name))
}

/// A clone on a mount.
struct Stage {
    fixture: Fixture,
    daemon: Option<Daemon>,
    clone: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let fixture = Fixture::new();
        fixture.archive(2, 2);
        fixture.archive(3, 3);
        fixture.backup(&data_directory(1));
        let daemon = Daemon::start(fixture.repository.path(), &fixture.directory.path().join("mnt"));
        let clone = daemon.point.join("main/live/torture");
        std::fs::create_dir(&clone).unwrap();
        Self {
            fixture,
            daemon: Some(daemon),
            clone,
        }
    }

    fn remount(&mut self) {
        let daemon = self.daemon.take().unwrap();
        let point = daemon.point.clone();
        daemon.unmount();
        self.daemon = Some(Daemon::start(self.fixture.repository.path(), &point));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.fixture.directory.path().join(name)
    }
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{command:?}\n{said}");
    said
}

#[test]
fn fsx_passes_for_root() {
    if rustix::process::geteuid().is_root() {
        exercise();
    }
}

#[test]
fn fsx_passes_for_an_ordinary_user() {
    if !rustix::process::geteuid().is_root() {
        return exercise();
    }
    once_more("fsx_passes_for_an_ordinary_user", "fsx");
}

/// Runs a test that uses a tool again as an ordinary user.
fn once_more(test: &str, name: &str) {
    let Some(tool) = tool(name) else { return };
    let ordinary = Ordinary::new();
    ordinary.bring(&tool);
    println!("{}", run(ordinary.run_test(test).env(TOOLS, ordinary.path())));
}

/// Runs fsx on a file of the backup that is not truncated, on one that is, and on a new one.
fn exercise() {
    let Some(fsx) = tool("fsx") else { return };
    let operations = std::env::var("BARMANFS_TEST_OPERATIONS").map_or(USUAL_OPERATIONS, |text| {
        text.parse().expect("BARMANFS_TEST_OPERATIONS is a number")
    });
    let mut random = Random::new("fsx");
    let mut stage = Stage::new();
    for (file, configuration) in [
        ("base/5/1259", FSX_PARTIAL),
        ("base/5/1259_fsm", FSX_ALL),
        ("new", FSX_ALL),
    ] {
        let config = stage.path("fsx.toml");
        std::fs::write(&config, configuration).unwrap();
        let file = stage.clone.join(file);
        for _ in 0..ROUNDS {
            let seed = random.next();
            let mut command = Command::new(&fsx);
            command.arg("-q").arg("-f").arg(&config).arg("-P");
            command.arg(stage.fixture.directory.path());
            command.args(["-N", &operations.to_string(), "-S", &seed.to_string()]);
            run(command.arg(&file));
            println!("fsx -N {operations} -S {seed} {}", file.display());
            let before = std::fs::read(&file).unwrap();
            stage.remount();
            assert!(std::fs::read(&file).unwrap() == before, "seed {seed}");
        }
    }
}
/// Tests of pjdfstest that fail because a clone does not support something, by name or end of the name.
const KNOWN: &[&str] = &[
    // A clone has files, directories and symbolic links. A database has no sockets, pipes or devices.
    "::fifo",
    "::socket",
    "::char",
    "::block",
    "open::fifo_nonblock_wronly",
    "open::socket_error",
    "mkfifo::uid_gid_eq_euid_egid",
    "mkfifo::permission_bits_from_mode",
    "mkfifo::changed_time_fields_success",
    "mknod::uid_gid_eq_euid_egid",
    "mknod::permission_bits_from_mode",
    "mknod::changed_time_fields_success",
    // The subdirectories of a directory are not counted: the link count is 1, as on btrfs.
    "rename::updates_link_parent",
    // Access times are not kept: they are the same as modification times.
    "utimensat::subsecond",
    "utimensat::changes_timestamps::regular",
    "utimensat::changes_timestamps::dir",
    "utimensat::follow_symlink",
    "utimensat::utime_omit",
    "utimensat::y2038",
];

/// Users that Debian has under these names; pjdfstest runs as one or the other.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// The clone, bound to a place that everybody can reach, outside the mount's own directories.
struct Bound(PathBuf);

impl Bound {
    fn new(stage: &Stage) -> Self {
        let at = stage.path("bound");
        std::fs::create_dir(&at).unwrap();
        rustix::mount::mount_bind(&stage.clone, &at).unwrap();
        for path in [stage.fixture.directory.path(), &at] {
            std::fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
        }
        Self(at)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn pjdfstest_has_only_known_failures_for_root() {
    if rustix::process::geteuid().is_root() {
        let stage = Stage::new();
        let bound = Bound::new(&stage);
        compare_with_posix(&stage, &bound.0, 150);
    }
}

/// An ordinary user cannot become another user, which most of its tests need.
#[test]
fn pjdfstest_has_only_known_failures_for_an_ordinary_user() {
    if !rustix::process::geteuid().is_root() {
        let stage = Stage::new();
        return compare_with_posix(&stage, &stage.clone, 80);
    }
    once_more(
        "pjdfstest_has_only_known_failures_for_an_ordinary_user",
        "pjdfstest",
    );
}

/// Fails on unknown failures, and when not more than `most` tests pass.
fn compare_with_posix(stage: &Stage, at: &Path, most: usize) {
    let Some(pjdfstest) = tool("pjdfstest") else {
        return;
    };
    let config = stage.path("pjdfstest.toml");
    std::fs::write(&config, PJDFSTEST).unwrap();
    let output = Command::new(pjdfstest)
        .arg("-c")
        .arg(config)
        .arg("-p")
        .arg(at)
        .output();
    let said = String::from_utf8(output.unwrap().stdout).unwrap();
    let ended = |how: &str| -> Vec<&str> {
        let tests = said
            .lines()
            .filter_map(|line| line.split_once(char::is_whitespace));
        let such = tests.filter(|(_, rest)| rest.trim() == how);
        such.map(|(name, _)| name).collect()
    };
    let (passed, failed) = (ended("ok"), ended("FAILED"));
    println!("pjdfstest: {} passed, {} failed", passed.len(), failed.len());
    assert!(passed.len() > most, "{said}");
    let unknown: Vec<_> = failed
        .iter()
        .filter(|name| !KNOWN.iter().any(|known| name.ends_with(known)))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}\n{said}");
}

/// Not a test by itself: the daemon of the tests above.
#[test]
fn daemon() {
    support::daemon::serve();
}
