//! What all tests take a copy of. Database clusters are created once for each version and set of options, and copied:
//! `initdb` takes seconds.
//!
//! Each copy gets a system identifier of its own, as from PostgreSQL: in `pg_control`, and in the first page of each
//! WAL segment.

use super::postgres::{Install, parent};
use super::process::run;
use super::user::{command, give, own_command};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// A version, and options of initdb.
type Kind = (u32, Vec<String>);

/// Makes a cluster with page checksums in `data`.
pub(crate) fn new_cluster(install: &'static Install, data: &Path, options: &[&str]) {
    // Directories outside the data directory that an option names cannot be copied with it.
    if options.iter().any(|option| option.contains('/')) {
        initdb(install, data, options);
        return;
    }
    copy(&template(install, options), data);
    give_identifier(data);
}

/// The program, where the database user can reach it, in a place that a hard link can be made from. Copied by a
/// process: a file that this process has open for writing would be open in each process that another thread starts
/// meanwhile, and cannot be run until that has ended.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = std::env::var_os("BARMANFS_TEST_PROGRAM")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_barmanfs")), PathBuf::from);
        let program = directory().join("barmanfs");
        run(own_command("cp", directory()).arg(built).arg(&program)).ok();
        program
    })
}

/// Removes the clusters that were copied, and the program.
pub(crate) fn remove() {
    let _ = fs::remove_dir_all(directory());
}

fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let directory = tempfile::Builder::new()
            .prefix("bft")
            .tempdir()
            .expect("Cannot make a temporary directory")
            .keep();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("Cannot set permissions");
        give(&directory);
        directory
    })
}

/// Each kind is created once; tests that need another kind do not wait for it.
fn template(install: &'static Install, options: &[&str]) -> PathBuf {
    static MADE: Mutex<Option<HashMap<Kind, Arc<OnceLock<PathBuf>>>>> = Mutex::new(None);
    let kind = (
        install.major,
        options.iter().map(|&option| option.into()).collect(),
    );
    let (slot, number) = {
        let mut made = MADE.lock().expect("no thread panics with it");
        let made = made.get_or_insert_default();
        let number = made.len();
        (Arc::clone(made.entry(kind).or_default()), number)
    };
    slot.get_or_init(|| {
        let data = directory().join(format!("{}-{number}", install.major));
        initdb(install, &data, options);
        data
    })
    .clone()
}

fn initdb(install: &'static Install, data: &Path, options: &[&str]) {
    let mut initdb = command(install.program("initdb"), parent(data));
    initdb.args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "-k",
        "--no-sync",
    ]);
    run(initdb.arg("-D").arg(data).args(options)).ok();
}

fn copy(template: &Path, data: &Path) {
    run(command("cp", parent(data))
        .args(["-a", "--reflink=auto"])
        .args([template, data]))
    .ok();
}

/// `pg_control` begins with the identifier and ends with a CRC-32C of all before it. The identifier's place in a WAL
/// segment: `XLogLongPageHeaderData`, `src/include/access/xlog_internal.h`.
fn give_identifier(data: &Path) {
    const IN_SEGMENT: u64 = 24;
    static GIVEN: AtomicU64 = AtomicU64::new(1);
    let control = data.join("global/pg_control");
    let mut bytes = fs::read(&control).expect("a cluster has pg_control");
    let old: [u8; 8] = bytes[..8].try_into().expect("eight bytes");
    let new = (u64::from_le_bytes(old) + GIVEN.fetch_add(1, Ordering::Relaxed)).to_le_bytes();
    let is_crc =
        |offset: &usize| crc32c::crc32c(&bytes[..*offset]).to_le_bytes() == bytes[*offset..*offset + 4];
    let crc = (256..512).step_by(4).find(is_crc).expect("pg_control has a CRC");
    bytes[..8].copy_from_slice(&new);
    let sum = crc32c::crc32c(&bytes[..crc]).to_le_bytes();
    bytes[crc..crc + 4].copy_from_slice(&sum);
    fs::write(&control, bytes).expect("Cannot write pg_control");

    for entry in fs::read_dir(data.join("pg_wal"))
        .expect("a cluster has pg_wal")
        .flatten()
    {
        if entry.file_name().len() != 24 {
            continue;
        }
        let segment = fs::File::options()
            .read(true)
            .write(true)
            .open(entry.path())
            .expect("a segment");
        let mut found = [0; 8];
        segment
            .read_exact_at(&mut found, IN_SEGMENT)
            .expect("a segment has a header");
        // A segment that is kept for later has no identifier yet.
        if found == old {
            segment
                .write_all_at(&new, IN_SEGMENT)
                .expect("Cannot write a segment");
        }
    }
}
