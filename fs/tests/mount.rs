//! A real mount: what programs see through the kernel, and how mounts come and go. Needs /dev/fuse and root.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use barmanfs_fs::{
    RequestCounters, RequestKind, Unmounter, Unmounting, mount, recover_stale, restore_command, unmount,
};
use support::daemon::{Daemon, is_mounted, options, until};
use support::{Fixture, Thing, WINDOW, content, data_directory};

struct Mounted {
    point: PathBuf,
    unmounter: Unmounter,
    counters: Arc<RequestCounters>,
    serving: Option<JoinHandle<barmanfs_fs::Result<()>>>,
}

impl Mounted {
    fn new(fixture: &Fixture) -> Self {
        Self::at(fixture, mount_point(fixture))
    }

    fn at(fixture: &Fixture, point: PathBuf) -> Self {
        let mounted = mount(fixture.repository.clone(), options(&point)).unwrap();
        let unmounter = mounted.unmounter();
        let counters = Arc::clone(mounted.counters());
        let serving = Some(std::thread::spawn(move || mounted.serve()));
        Self {
            point,
            unmounter,
            counters,
            serving,
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.point.join(path)
    }

    /// The result of serving. Fails if it does not end.
    fn ended(&mut self) -> barmanfs_fs::Result<()> {
        let serving = self.serving.take().unwrap();
        until("serving ends", || serving.is_finished());
        serving.join().unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.unmounter.unmount();
    }
}

fn mount_point(fixture: &Fixture) -> PathBuf {
    let point = fixture.directory.path().join("mnt");
    fs::create_dir_all(&point).unwrap();
    point.canonicalize().unwrap()
}

/// A mount whose daemon can be killed.
fn killable(fixture: &Fixture) -> Daemon {
    Daemon::start(fixture.repository.path(), &mount_point(fixture))
}

fn archived() -> Fixture {
    let fixture = Fixture::new();
    fixture.archive(2, 2);
    fixture.archive(3, 3);
    fixture
}

fn sh(script: &str) -> Output {
    Command::new("sh").args(["-c", script]).output().unwrap()
}

#[track_caller]
fn ok(script: &str) -> String {
    let output = sh(script);
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn cp_copies_a_backup_exactly() {
    let fixture = archived();
    let things = data_directory(1);
    let id = fixture.backup(&things).id;
    let mounted = Mounted::new(&fixture);
    let copy = fixture.directory.path().join("copy");
    ok(&format!(
        "cp -a '{}' '{}'",
        mounted.path(&format!("main/raw/{id}")).display(),
        copy.display()
    ));
    for (path, thing) in &things {
        let shown = mounted.path(&format!("main/raw/{id}/{path}")).metadata().unwrap();
        let copied = copy.join(path).metadata().unwrap();
        for metadata in [&shown, &copied] {
            assert_eq!((metadata.uid(), metadata.gid()), (4711, 4712), "{path}");
            assert_eq!(
                (metadata.mtime(), metadata.mtime_nsec()),
                (1_700_000_000, 123_456_789),
                "{path}"
            );
        }
        assert_eq!(shown.nlink(), 1, "{path}");
        match thing {
            Thing::File(bytes) => {
                assert_eq!(&fs::read(copy.join(path)).unwrap(), bytes, "{path}");
                assert_eq!(copied.mode(), 0o100_600, "{path}");
            }
            _ => assert_eq!(copied.mode(), 0o40_700, "{path}"),
        }
    }
    let table = copy.join("base/5/1259").metadata().unwrap();
    assert!(
        table.blocks() * 512 <= table.size() - WINDOW as u64,
        "the hole was filled"
    );
    ok(&format!(
        "diff -r '{}' '{}'",
        mounted.path(&format!("main/raw/{id}")).display(),
        copy.display()
    ));
}

#[test]
fn pages_are_read_at_random() {
    let fixture = archived();
    let things = data_directory(1);
    fixture.backup(&things);
    let mounted = Mounted::new(&fixture);
    let file = fs::File::open(mounted.path("main/latest/base/5/1259")).unwrap();
    let expected = content(&things, "base/5/1259");
    for page in [40, 0, 17, 42, 15, 16, 31, 3] {
        let mut bytes = [0; 8192];
        file.read_exact_at(&mut bytes, page * 8192).unwrap();
        assert_eq!(bytes, expected[page as usize * 8192..][..8192], "page {page}");
    }
    let mut past = [0; 10];
    assert_eq!(file.read_at(&mut past, expected.len() as u64).unwrap(), 0);
}

#[test]
fn new_and_removed_entries_are_seen_without_a_remount() {
    let fixture = archived();
    let first = fixture.backup(&data_directory(1));
    let mounted = Mounted::new(&fixture);
    let list = |path: &str| -> Vec<String> {
        let entries = fs::read_dir(mounted.path(path)).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    assert_eq!(list("main/raw"), [first.id.to_string()]);
    assert_eq!(
        ok(&format!(
            "cat '{}'",
            mounted.path("main/latest/backup_label").display()
        )),
        "START WAL LOCATION: 1\n"
    );
    assert!(!mounted.path("main/wal/000000010000000000000004").exists());
    let bytes = fixture.archive(4, 4);
    assert_eq!(
        fs::read(mounted.path("main/wal/000000010000000000000004")).unwrap(),
        bytes,
        "at once"
    );
    let second = fixture.backup(&data_directory(2));
    until("the backup appears", || {
        list("main").contains(&second.id.to_string())
    });
    until("latest moves on", || {
        ok(&format!(
            "cat '{}'",
            mounted.path("main/latest/backup_label").display()
        )) == "START WAL LOCATION: 2\n"
    });
    fixture.repository.delete_backup(&first, true).unwrap();
    until("the deleted backup goes", || {
        !mounted.path(&format!("main/{}", first.id)).exists()
    });
    assert_eq!(list("main/raw"), [second.id.to_string()]);
}

#[test]
fn a_copy_of_latest_is_of_one_backup() {
    let fixture = archived();
    let many = |seed: u64| {
        let names: Vec<&'static str> = (0..300).map(|n| &*format!("base/5/{n:05}").leak()).collect();
        let mut things = data_directory(seed);
        things.extend(
            names
                .into_iter()
                .map(|name| (name, Thing::File(seed.to_le_bytes().repeat(1024)))),
        );
        things
    };
    let first = fixture.backup(&many(1));
    let mounted = Mounted::new(&fixture);
    let copy = fixture.directory.path().join("copy");
    let mut copying = Command::new("cp")
        .arg("-a")
        .arg(mounted.path("main/latest"))
        .arg(&copy)
        .spawn()
        .unwrap();
    // Another backup becomes the latest in the middle of the copy.
    until("it copies", || {
        copy.join("base/5")
            .read_dir()
            .is_ok_and(|mut names| names.next().is_some())
    });
    rustix::process::kill_process(pid(&copying), rustix::process::Signal::STOP).unwrap();
    let second = fixture.backup(&many(2));
    until("the backup appears", || {
        mounted.path(&format!("main/{}", second.id)).exists()
    });
    std::thread::sleep(Duration::from_secs(2));
    rustix::process::kill_process(pid(&copying), rustix::process::Signal::CONT).unwrap();
    assert!(copying.wait().unwrap().success());
    let label = fs::read_to_string(copy.join("backup_label")).unwrap();
    assert_eq!(
        label, "START WAL LOCATION: 1\n",
        "the copy began with {}",
        first.id
    );
    for n in 0..300 {
        let bytes = fs::read(copy.join(format!("base/5/{n:05}"))).unwrap();
        assert_eq!(bytes[0], 1, "file {n} is of another backup");
    }
}

fn pid(child: &Child) -> rustix::process::Pid {
    rustix::process::Pid::from_child(child)
}

#[test]
fn inode_numbers_survive_a_remount() {
    let fixture = archived();
    fixture.backup(&data_directory(1));
    let numbers = || {
        let mut mounted = Mounted::new(&fixture);
        let found = ok(&format!(
            "cd '{}' && find . -printf '%i %P\\n' | sort",
            mounted.point.display()
        ));
        mounted.unmounter.unmount().unwrap();
        mounted.ended().unwrap();
        found
    };
    let first = numbers();
    assert!(first.lines().count() > 60, "{first}");
    assert_eq!(first, numbers());
}

#[test]
fn unmounting_from_outside_ends_serving() {
    let fixture = archived();
    let mut mounted = Mounted::new(&fixture);
    assert!(mounted.path("README").exists());
    ok(&format!("umount '{}'", mounted.point.display()));
    mounted.ended().unwrap();
    let mut mounted = Mounted::new(&fixture);
    unmount(&mounted.point, Unmounting::Unused).unwrap();
    mounted.ended().unwrap();
    assert!(matches!(
        unmount(&mounted.point, Unmounting::Unused),
        Err(barmanfs_fs::Error::NotMounted { .. })
    ));
}

#[test]
fn unmounting_does_not_wait_for_processes_inside() {
    let fixture = archived();
    let mut mounted = Mounted::new(&fixture);
    let mut inside = Command::new("sleep")
        .arg("60")
        .current_dir(mounted.path("main"))
        .spawn()
        .unwrap();
    mounted.unmounter.unmount().unwrap();
    assert!(!is_mounted(&mounted.point));
    mounted.ended().unwrap();
    inside.kill().unwrap();
    inside.wait().unwrap();
}

#[test]
fn a_later_mount_by_another_program_stays() {
    let fixture = archived();
    let mut mounted = Mounted::new(&fixture);
    let point = mounted.point.clone();
    ok(&format!(
        "umount '{0}' && mount -t tmpfs tmpfs '{0}'",
        point.display()
    ));
    mounted.unmounter.unmount().unwrap();
    mounted.ended().unwrap();
    assert!(is_mounted(&point), "the tmpfs was unmounted");
    assert!(matches!(
        unmount(&point, Unmounting::Unused),
        Err(barmanfs_fs::Error::NotMounted { .. })
    ));
    assert!(is_mounted(&point), "the tmpfs was unmounted");
    ok(&format!("umount '{}'", point.display()));
    // Another mount of barmanfs is not unmounted either.
    let mut first = Mounted::new(&fixture);
    ok(&format!("umount '{}'", first.point.display()));
    first.ended().unwrap();
    let second = Mounted::at(&fixture, first.point.clone());
    first.unmounter.unmount().unwrap();
    assert!(second.path("README").exists());
}

#[test]
fn mount_points_that_would_do_harm_are_refused() {
    let fixture = archived();
    let repository = fixture.repository.path().to_path_buf();
    let directory = fixture.directory.path();
    let inside = repository.join("mnt");
    let full = directory.join("full");
    let file = directory.join("file");
    fs::create_dir_all(&inside).unwrap();
    fs::create_dir_all(full.join("x")).unwrap();
    fs::write(&file, "").unwrap();
    let refused = |point: &Path, word: &str| {
        let error = mount(fixture.repository.clone(), options(point))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(word) && error.contains(point.to_str().unwrap()),
            "{error}"
        );
    };
    refused(&inside, "inside the repository");
    refused(directory, "the repository is inside it");
    refused(&full, "not empty");
    refused(&file, "not a directory");
    refused(&directory.join("missing"), "no such directory");
    let mounted = Mounted::new(&fixture);
    refused(&mounted.point, "already");
}

#[test]
fn nothing_can_be_written() {
    let fixture = archived();
    fixture.backup(&data_directory(1));
    let mounted = Mounted::new(&fixture);
    let file = mounted.path("main/latest/PG_VERSION");
    let file = file.display();
    for script in [
        "echo x > '{}'",
        "rm '{}'",
        "touch '{}'",
        "chmod 777 '{}'",
        "mv '{}' '{}2'",
        "mkdir '{}2'",
    ] {
        let output = sh(&script.replace("{}", &file.to_string()));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains("Read-only"),
            "{script}: {said}"
        );
    }
}

/// Bytes of a file that are in the page cache; `None` if `fincore` cannot determine that.
fn cached_bytes(path: &Path) -> Option<u64> {
    let output = sh(&format!("fincore -nb -o RES '{}'", path.display()));
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

#[test]
fn the_next_segment_is_in_the_page_cache_before_it_is_read() {
    let fixture = Fixture::new();
    for number in 2..=6 {
        fixture.archive(number, number.into());
    }
    let mounted = Mounted::new(&fixture);
    let path = |number: u32| mounted.path(&format!("main/wal/{}", support::segment(number, 0).0));
    for number in 2..=4 {
        fs::read(path(number)).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    if cached_bytes(&path(4)).is_none() {
        eprintln!("There is no fincore here: left out");
        return;
    }
    until("segment 5 is in the page cache", || {
        cached_bytes(&path(5)) == Some(support::SEGMENT.bytes())
    });
}

/// How many names a copy of so many small files looks up.
fn look_ups_of_a_copy(files: usize) -> u64 {
    let fixture = archived();
    let names: Vec<String> = (0..files).map(|n| format!("base/{n:05}")).collect();
    let noise = |n| Thing::File(support::noise(n, 600));
    let things: Vec<_> = names.iter().map(String::as_str).zip((1..).map(noise)).collect();
    fixture.backup(&things);
    let mounted = Mounted::new(&fixture);
    let copied = mounted.path("main/latest/base");
    let to = fixture.directory.path().join("copy");
    ok(&format!("cp -a {} {}", copied.display(), to.display()));
    for (name, thing) in &things {
        let Thing::File(bytes) = thing else { continue };
        let name = name.trim_start_matches("base/");
        assert_eq!(&fs::read(to.join(name)).unwrap(), bytes, "{name}");
    }
    let counts = mounted.counters.snapshot();
    assert!(counts.of(RequestKind::Open).count >= files as u64);
    counts.of(RequestKind::Lookup).count
}

#[test]
fn a_copy_of_many_small_files_looks_none_of_them_up() {
    // Names like `latest` are looked up again after a while, so that a slow copy has some more.
    let (few, many) = (look_ups_of_a_copy(40), look_ups_of_a_copy(1000));
    assert!(many < few + 300, "{few} and {many}");
}

#[test]
fn extended_attributes_are_requested_once() {
    let fixture = archived();
    fixture.backup(&data_directory(1));
    let mounted = Mounted::new(&fixture);
    for _ in 0..2 {
        let path = mounted.path("main/latest/PG_VERSION");
        let mut value = [0_u8; 16];
        let answer = rustix::fs::getxattr(&path, "user.any", &mut value);
        assert_eq!(answer, Err(rustix::io::Errno::OPNOTSUPP));
        let answer = rustix::fs::listxattr(&path, &mut value);
        assert_eq!(answer, Err(rustix::io::Errno::OPNOTSUPP));
    }
}

#[test]
fn requests_and_their_errors_are_counted() {
    let fixture = archived();
    let id = fixture.backup(&data_directory(1)).id;
    let mut mounted = Mounted::new(&fixture);
    let table = mounted.path(&format!("main/raw/{id}/base/5/1259"));
    let counters = Arc::clone(&mounted.counters);
    let count = |kind| counters.snapshot().of(kind).count;
    let stored = || fixture.repository.counters().snapshot();

    let before = stored();
    fs::read(&table).unwrap();
    // A request counts after its answer, which the program may see first.
    until("reading counts", || {
        count(RequestKind::Lookup) >= 6 && count(RequestKind::Open) == 1 && count(RequestKind::Read) > 0
    });
    let (decoded, bytes) = (
        stored().chunks_decoded - before.chunks_decoded,
        stored().chunk_bytes_decoded - before.chunk_bytes_decoded,
    );
    assert!(
        decoded >= 4 && bytes >= 3 * WINDOW as u64,
        "{decoded} chunks with {bytes} bytes"
    );

    let errors = |errno| counters.snapshot().errors_with(errno);
    assert_eq!((errors(2), errors(30)), (0, 0));
    assert!(!mounted.path("nobody").exists());
    until("ENOENT counts", || errors(2) == 1);
    fs::remove_file(&table).unwrap_err();
    until("EROFS counts", || {
        errors(30) == 1 && count(RequestKind::Unlink) == 1
    });

    mounted.unmounter.unmount().unwrap();
    mounted.ended().unwrap();
    assert_eq!((errors(2), errors(30)), (1, 1));
}

/// Not a test by itself: the daemon of the tests below.
#[test]
fn daemon() {
    support::daemon::serve();
}

/// The daemon reads segments ahead through its own mount. When it is killed during such a request, it must end all the
/// same; otherwise every process that accesses the mount waits for ever.
#[test]
fn a_daemon_that_is_killed_during_recovery_is_gone() {
    const SEGMENTS: u32 = 12;
    const TIMES: u64 = 40;
    let fixture = Fixture::new();
    for number in 2..2 + SEGMENTS {
        fixture.archive(number, number.into());
    }
    for time in 0..TIMES {
        let mut daemon = killable(&fixture);
        let wal = daemon.point.join("main/wal");
        let recovery = std::thread::spawn(move || {
            for number in (2..2 + SEGMENTS).cycle() {
                let path = wal.join(support::segment(number, 0).0.to_string());
                if fs::read(path).is_err() {
                    return;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(20) + Duration::from_micros(time * 777));
        daemon.kill();
        recovery.join().unwrap();
        let asked = rustix::fs::statvfs(&daemon.point).map(|_| ());
        assert_eq!(asked, Err(rustix::io::Errno::NOTCONN));
    }
}

#[test]
fn a_mount_whose_daemon_was_killed_is_replaced() {
    let fixture = archived();
    for _ in 0..2 {
        let mut daemon = killable(&fixture);
        daemon.kill();
        assert!(is_mounted(&daemon.point));
        assert_eq!(
            rustix::fs::statvfs(&daemon.point).map(|_| ()).unwrap_err(),
            rustix::io::Errno::NOTCONN
        );
        let mut mounted = Mounted::at(&fixture, daemon.point.clone());
        assert!(mounted.path("README").exists());
        mounted.unmounter.unmount().unwrap();
        mounted.ended().unwrap();
        assert!(!is_mounted(&daemon.point), "the dead mount is still below");
    }
    let mut daemon = killable(&fixture);
    daemon.kill();
    assert!(recover_stale(&daemon.point).unwrap());
    assert!(!is_mounted(&daemon.point));
    assert!(!recover_stale(&daemon.point).unwrap());
}

#[test]
fn restore_command_ends_recovery_only_on_proof() {
    let fixture = archived();
    fixture.backup(&data_directory(1));
    let mut daemon = killable(&fixture);
    let command = restore_command(&daemon.point, &fixture.server).unwrap();
    let target = fixture.directory.path().join("target");
    let run = |name: &str| {
        let script = command
            .replace("%f", name)
            .replace("%p", target.to_str().unwrap());
        sh(&script).status.code()
    };
    let (there, missing) = ("000000010000000000000002", "000000010000000000000009");
    assert_eq!(run(there), Some(0));
    assert_eq!(fs::read(&target).unwrap(), support::segment(2, 2).1);
    assert_eq!(run(missing), Some(1));
    assert_eq!(run("00000002.history"), Some(1));
    // The segment is archived in between.
    fixture.archive(9, 9);
    assert_eq!(run(missing), Some(0));
    // The target cannot be written.
    let readable = command.replace("%f", there).replace("%p", "/nowhere/target");
    assert_eq!(sh(&readable).status.code(), Some(255));
    // The kernel has cached all of these names; now the daemon is gone.
    daemon.kill();
    assert_eq!(run(there), Some(255));
    assert_eq!(run("000000010000000000000008"), Some(255));
    unmount(&daemon.point, Unmounting::Unused).unwrap();
    assert_eq!(run(there), Some(255));
    assert_eq!(run("000000010000000000000008"), Some(255));
}
