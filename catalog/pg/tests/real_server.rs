//! Tests what this crate reads with real servers: every PostgreSQL that is found runs for a few seconds
//! with 1 MiB segments, so that records cross segments often. The output of `pg_waldump` and
//! `pg_controldata` is the reference.

// The lint exempts test functions, but not their helpers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use barmanfs_pg::backup_label::BackupLabel;
use barmanfs_pg::backup_manifest::{self, Checksum, ManifestWriter};
use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::pg_control::{ClusterState, ControlFile};
use barmanfs_pg::wal_check::check_segment;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::wal_scan::{Fragment, RecordFacts, SegmentIndex, WalScanner, join};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};

/// The program directories of the servers to compare with: those `scripts/test.sh` names, as
/// `MAJOR=DIRECTORY:…`, or else those Debian has installed.
fn installed_servers() -> Vec<PathBuf> {
    if let Ok(list) = std::env::var("BARMANFS_TEST_PG_BINDIRS") {
        return list
            .split(':')
            .filter_map(|entry| Some(entry.split_once('=')?.1.into()))
            .collect();
    }
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    versions
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("postgres").exists())
        .collect()
}

/// A private server in a temporary directory. PostgreSQL refuses to run as root, so root runs it
/// as the user `postgres`.
struct Server {
    bin: PathBuf,
    directory: tempfile::TempDir,
    as_postgres: bool,
}

impl Server {
    fn start(bin: PathBuf) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let as_postgres = fs::metadata(directory.path()).unwrap().uid() == 0;
        if as_postgres {
            let id = |flag| {
                let output = Command::new("id").args([flag, "postgres"]).output().unwrap();
                String::from_utf8(output.stdout)
                    .unwrap()
                    .trim()
                    .parse::<u32>()
                    .ok()
            };
            chown(directory.path(), id("-u"), id("-g")).unwrap();
        }
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let server = Self {
            bin,
            directory,
            as_postgres,
        };
        server.run(
            "initdb",
            &[
                "-D",
                "data",
                "--wal-segsize=1",
                "--data-checksums",
                "-A",
                "trust",
                "-N",
                "-U",
                "me",
            ],
        );
        let settings = "listen_addresses = ''\nunix_socket_directories = '.'\nwal_keep_size = '1GB'\n\
            fsync = off\nlog_timezone = 'UTC'\nmax_prepared_transactions = 2\nrestart_after_crash = off\n";
        fs::write(server.data().join("postgresql.auto.conf"), settings).unwrap();
        server.control("start");
        server
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    fn control(&self, action: &str) {
        self.run("pg_ctl", &["-D", "data", "-l", "log", "-w", "-m", "fast", action]);
    }

    fn sql(&self, commands: &str) -> String {
        let socket = self.data();
        self.run(
            "psql",
            &[
                "-h",
                socket.to_str().unwrap(),
                "-U",
                "me",
                "-d",
                "postgres",
                "-XAtqc",
                commands,
            ],
        )
    }

    /// Runs one of PostgreSQL's programs in the server's directory.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let program = self.bin.join(program);
        let mut command = if self.as_postgres {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        command
            .current_dir(self.path())
            .args(arguments)
            .env("LC_ALL", "C")
            .env("TZ", "UTC");
        // A server that pg_ctl starts keeps its output open, so it goes to a file, not a pipe.
        let output_path = self.path().join("output");
        let output = fs::File::create(&output_path).unwrap();
        let status = command
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .status()
            .unwrap();
        let output = String::from_utf8_lossy(&fs::read(&output_path).unwrap()).into_owned();
        assert!(status.success(), "{program:?} {arguments:?}: {output}");
        output
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.data().join("postmaster.pid").exists() {
            self.control("stop");
        }
    }
}

/// The facts of each WAL record, by position, in the notation of `pg_waldump`.
type Records = BTreeMap<Lsn, String>;

fn describe(facts: &RecordFacts) -> String {
    match facts {
        RecordFacts::Commit { time, xid } => format!("commit {time} of {xid}"),
        RecordFacts::Abort { time, xid } => format!("abort {time} of {xid}"),
        RecordFacts::RestorePoint { name, .. } => format!("restore point {name}"),
        RecordFacts::BackupEnd { start_lsn } => format!("backup end {start_lsn}"),
        other => format!("{other:?}"),
    }
}

/// The same from a line of `pg_waldump`; `None` for records that are of no interest.
fn describe_line(line: &str) -> Option<(Lsn, String)> {
    let lsn: Lsn = line.split_once("lsn: ")?.1.split_once(',')?.0.parse().unwrap();
    let (kind, rest) = line.split_once("desc: ")?.1.split_once(' ')?;
    // "2026-11-21 03:04:05.678901 UTC; …", after "735: " where the transaction was prepared.
    let time = |rest: &str| {
        let at = rest.find("20").unwrap();
        format!("{}+00", &rest[at..rest.find(" UTC").unwrap()])
    };
    let xid = line.split_once("tx:")?.1.split_once(',')?.0.trim();
    let prepared = || rest.split_once(": ");
    let said = match kind {
        "COMMIT" => format!("commit {} of {xid}", time(rest)),
        "COMMIT_PREPARED" => format!("commit {} of {}", time(prepared()?.1), prepared()?.0),
        "ABORT" => format!("abort {} of {xid}", time(rest)),
        "ABORT_PREPARED" => format!("abort {} of {}", time(prepared()?.1), prepared()?.0),
        "RESTORE_POINT" => format!("restore point {rest}"),
        "BACKUP_END" => format!("backup end {}", rest.trim().parse::<Lsn>().unwrap()),
        _ => return None,
    };
    Some((lsn, said))
}

/// Every full segment of `timeline` in `pg_wal`, in order, as the scanner indexes it.
fn scan_all(server: &Server, timeline: TimelineId) -> Vec<(SegmentName, SegmentIndex)> {
    let control = ControlFile::parse(&fs::read(server.data().join("global/pg_control")).unwrap()).unwrap();
    let mut names: Vec<SegmentName> = fs::read_dir(server.data().join("pg_wal"))
        .unwrap()
        .filter_map(|entry| match entry.unwrap().file_name().to_str()?.parse() {
            Ok(WalName::Segment(name)) if name.timeline == timeline => Some(name),
            _ => None,
        })
        .collect();
    names.sort();
    let scan = |name: SegmentName| {
        let bytes = fs::read(server.data().join("pg_wal").join(name.to_string())).unwrap();
        let facts = check_segment(&bytes, &name, bytes.len() as u64).ok()?;
        assert!(facts.is_known_version(), "{facts:?}");
        assert_eq!(facts.system_id, control.system_id);
        assert_eq!(facts.segment_size, SegmentSize::MIN);
        let mut scanner = WalScanner::new(&name, &facts);
        bytes.chunks(10_007).for_each(|slice| scanner.push(slice));
        Some((name, scanner.finish()))
    };
    // Segments kept for reuse already have their next name, but still an old one's content.
    names.into_iter().map_while(scan).collect()
}

/// The positions of interest that the indexes list, and how many commits they count in all.
fn listed(indexes: &[(SegmentName, SegmentIndex)]) -> (Records, u64) {
    let (mut records, mut commits) = (Records::new(), 0);
    let mut joined = SegmentIndex::default();
    for (at, (_, index)) in indexes.iter().enumerate() {
        let heads: Vec<&Fragment> = indexes[at + 1..]
            .iter()
            .map_while(|(_, index)| index.head.as_ref())
            .collect();
        if let Some(record) = index
            .tail
            .as_ref()
            .and_then(|tail| join(tail, &heads[..heads.len().min(1)]))
        {
            records.insert(record.lsn, describe(&record.facts));
            joined.add(record.lsn, record.facts);
        }
    }
    for index in indexes.iter().map(|(_, index)| index).chain([&joined]) {
        commits += index.commits;
        for point in &index.restore_points {
            records.insert(point.lsn, format!("restore point {}", point.name));
        }
        for end in &index.backup_ends {
            records.insert(end.lsn, format!("backup end {}", end.start_lsn));
        }
    }
    (records, commits)
}

fn make_wal(server: &Server) {
    server.sql("CREATE TABLE t (id int PRIMARY KEY, filler text)");
    server.sql("CREATE TABLE small (id int)");
    // Long and short records in turn, each transaction with subtransactions now and then, so that
    // commits of many lengths fall across segment ends.
    server.sql(
        "DO $$ BEGIN FOR i IN 1..6000 LOOP
            INSERT INTO t VALUES (i, repeat(md5(i::text), i % 60));
            IF i % 97 = 0 THEN PERFORM pg_create_restore_point('point ' || i); END IF;
            IF i % 53 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
         END LOOP; END $$",
    );
    server.sql("BEGIN; INSERT INTO small VALUES (1); PREPARE TRANSACTION 'a'");
    server.sql("COMMIT PREPARED 'a'");
    server.sql("BEGIN; INSERT INTO small VALUES (2); PREPARE TRANSACTION 'b'");
    server.sql("ROLLBACK PREPARED 'b'");
    server.sql("SELECT pg_switch_wal()");
    server.sql("INSERT INTO small VALUES (3)");
}

fn check_wal(server: &Server, indexes: &[(SegmentName, SegmentIndex)]) {
    let (first, last) = (indexes.first().unwrap(), indexes.last().unwrap());
    let start = first.0.start_lsn(SegmentSize::MIN).to_string();
    let end = last.1.end_lsn.to_string();
    let wal = server.data().join("pg_wal");
    let dump = server.run(
        "pg_waldump",
        &["-p", wal.to_str().unwrap(), "-s", &start, "-e", &end],
    );
    let expected: Records = dump.lines().filter_map(describe_line).collect();
    let count = |words: &str| expected.values().filter(|said| said.starts_with(words)).count();
    assert!(count("commit") > 5000 && count("abort") > 100 && count("restore point") > 50);

    let (records, commits) = listed(indexes);
    assert_eq!(commits, count("commit") as u64);
    let listed: Records = records
        .iter()
        .filter(|(_, said)| !said.starts_with("commit"))
        .map(own)
        .collect();
    let named = |said: &str| said.starts_with("restore point") || said.starts_with("backup end");
    assert_eq!(
        listed,
        expected.iter().filter(|(_, said)| named(said)).map(own).collect()
    );
    for (lsn, said) in &records {
        assert_eq!(expected.get(lsn), Some(said), "{lsn}");
    }
    for (name, index) in indexes {
        let end = name.next(SegmentSize::MIN).start_lsn(SegmentSize::MIN);
        let inside = expected
            .range(name.start_lsn(SegmentSize::MIN)..end)
            .map(|(_, said)| said);
        let crossing = index.tail.as_ref().and_then(|tail| expected.get(&tail.lsn));
        let (times, xids): (Vec<&str>, Vec<u32>) = inside
            .filter(|said| Some(*said) != crossing)
            .filter_map(|said| said.strip_prefix("commit ").or(said.strip_prefix("abort ")))
            .filter_map(|said| said.split_once(" of "))
            .map(|(time, xid)| (time, xid.parse::<u32>().unwrap()))
            .unzip();
        assert_eq!(index.xid_min, xids.iter().min().copied());
        assert_eq!(index.xid_max, xids.iter().max().copied());
        assert_eq!(
            index.commit_time_min.map(|time| time.to_string()).as_deref(),
            times.iter().min().copied()
        );
        assert_eq!(
            index.commit_time_max.map(|time| time.to_string()).as_deref(),
            times.iter().max().copied()
        );
    }
    assert!(indexes.iter().any(|(_, index)| index.switched));
    assert!(
        indexes
            .iter()
            .any(|(_, index)| index.checkpoint_time_last.is_some())
    );
}

fn own((lsn, said): (&Lsn, &String)) -> (Lsn, String) {
    (*lsn, said.clone())
}

fn check_backup(backup: &Path) {
    let bytes = fs::read(backup.join("backup_manifest")).unwrap();
    let mut files = Vec::new();
    let summary = backup_manifest::read(bytes.as_slice(), &mut |file| {
        let path = backup.join(std::str::from_utf8(&file.path).unwrap());
        let content = fs::read(path).unwrap();
        assert_eq!(file.size_bytes, content.len() as u64);
        assert_eq!(file.checksum, Some(Checksum::Crc32c(crc32c::crc32c(&content))));
        files.push(file);
        Ok::<(), Infallible>(())
    })
    .unwrap();
    assert!(summary.checksum_ok && files.len() > 900);
    let control = ControlFile::parse(&fs::read(backup.join("global/pg_control")).unwrap()).unwrap();
    let system_id = summary.system_id;
    assert!(system_id.is_none() || system_id == Some(control.system_id));

    let mut writer = ManifestWriter::begin(Vec::new(), system_id).unwrap();
    files.iter().for_each(|file| writer.file(file).unwrap());
    let written = writer.finish(&summary.wal_ranges).unwrap();
    // PostgreSQL 19 writes LSNs with leading zeros, so the text after the files differs but means the
    // same.
    let of_files = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        text.split_once("\"WAL-Ranges\"").unwrap().0.to_owned()
    };
    assert_eq!(
        of_files(&written),
        of_files(&bytes),
        "written again, it is the same"
    );
    if control.control_version < 1900 {
        assert_eq!(written, bytes, "written again, it is the same to its end");
    }
    let again = backup_manifest::read(written.as_slice(), &mut |_| Ok::<(), Infallible>(())).unwrap();
    assert_eq!(again.wal_ranges, summary.wal_ranges);
    assert!(again.checksum_ok);

    let label = BackupLabel::parse(&fs::read(backup.join("backup_label")).unwrap()).unwrap();
    assert_eq!(label.start_lsn, summary.wal_ranges[0].start_lsn);
    assert_eq!(
        label.start_segment,
        SegmentName::from_lsn(TimelineId(1), label.start_lsn, SegmentSize::MIN)
    );
    assert_eq!(label.checkpoint_lsn, control.checkpoint);
    assert_eq!(
        (label.method.as_deref(), label.label.as_deref()),
        (Some("streamed"), Some("a label"))
    );
    assert_eq!(label.from.as_deref(), Some("primary"));
}

fn check_control(server: &Server) {
    let control = ControlFile::parse(&fs::read(server.data().join("global/pg_control")).unwrap()).unwrap();
    let text = server.run("pg_controldata", &["data"]);
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    assert_eq!(field("Database system identifier"), control.system_id.to_string());
    assert_eq!(
        field("Catalog version number"),
        control.catalog_version.to_string()
    );
    assert_eq!(
        field("Latest checkpoint location").parse(),
        Ok(control.checkpoint)
    );
    assert_eq!(
        field("Latest checkpoint's REDO location").parse(),
        Ok(control.redo)
    );
    assert_eq!(
        field("Minimum recovery ending location").parse(),
        Ok(control.min_recovery)
    );
    assert_eq!(
        field("Latest checkpoint's TimeLineID").parse(),
        Ok(control.timeline)
    );
    assert_eq!(
        field("Data page checksum version"),
        control.data_checksum_version.to_string()
    );
    let required = control.required_settings;
    for (name, value) in [
        ("max_connections", required.max_connections),
        ("max_worker_processes", required.max_worker_processes),
        ("max_wal_senders", required.max_wal_senders),
        ("max_prepared_xacts", required.max_prepared_transactions),
        ("max_locks_per_xact", required.max_locks_per_transaction),
    ] {
        assert_eq!(field(&format!("{name} setting")), value.to_string(), "{name}");
    }
    assert_eq!(field("Database cluster state"), "shut down");
    assert_eq!(control.state, ClusterState::ShutDown);
}

/// Starts the server as a standby without a primary and promotes it, which begins timeline 2.
fn check_promotion(server: &Server) {
    fs::write(server.data().join("standby.signal"), "").unwrap();
    server.control("start");
    server.control("promote");
    server.sql("CHECKPOINT");
    server.control("stop");
    let bytes = fs::read(server.data().join("pg_wal/00000002.history")).unwrap();
    let history = TimelineHistory::parse(&bytes, TimelineId(2)).unwrap();
    let switch = history.switch_point(TimelineId(1)).unwrap();
    let indexes = scan_all(server, TimelineId(2));
    let found: Vec<_> = indexes
        .iter()
        .flat_map(|(_, index)| &index.timeline_switches)
        .collect();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].timeline, found[0].previous),
        (TimelineId(2), TimelineId(1))
    );
    assert!(found[0].lsn >= switch);
}

#[test]
fn agrees_with_postgresql() {
    let servers = installed_servers();
    if servers.is_empty() {
        eprintln!("There is no PostgreSQL, so nothing was compared");
    }
    for bin in servers {
        eprintln!("{}", bin.display());
        let server = Server::start(bin);
        make_wal(&server);
        let socket = server.data();
        let socket = socket.to_str().unwrap();
        server.run(
            "pg_basebackup",
            &[
                "-h", socket, "-U", "me", "-D", "backup", "-c", "fast", "-l", "a label",
            ],
        );
        server.sql("CHECKPOINT");
        server.control("stop");
        check_wal(&server, &scan_all(&server, TimelineId(1)));
        check_backup(&server.path().join("backup"));
        check_control(&server);
        check_promotion(&server);
    }
}
