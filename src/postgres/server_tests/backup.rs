//! Base backups of real servers, compared with those of `pg_basebackup` and with the server's manifest.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::server::{Server, installations};
use crate::postgres::*;

/// A file or directory, as it was received or as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    is_directory: bool,
    size_bytes: u64,
    crc32c: u32,
    mode: u32,
    mtime_s: i64,
}

/// Collects a backup's members by their names in the data directory.
#[derive(Default)]
struct Collector {
    prefix: String,
    members: BTreeMap<String, Seen>,
    links: BTreeMap<String, String>,
    last: String,
}

impl TarSink for Collector {
    fn entry(&mut self, entry: &TarEntry) -> Result<(), SinkError> {
        self.last = format!("{}{}", self.prefix, String::from_utf8(entry.path.clone())?);
        if entry.kind == TarKind::Symlink {
            self.links
                .insert(self.last.clone(), String::from_utf8(entry.link_target.clone())?);
            return Ok(());
        }
        let seen = Seen {
            is_directory: entry.kind == TarKind::Directory,
            size_bytes: entry.size_bytes,
            crc32c: 0,
            mode: entry.mode,
            mtime_s: entry.mtime_s,
        };
        assert!(
            self.members.insert(self.last.clone(), seen).is_none(),
            "{} comes twice",
            self.last
        );
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let seen = self.members.get_mut(&self.last).unwrap();
        seen.crc32c = crc32c::crc32c_append(seen.crc32c, bytes);
        Ok(())
    }

    fn end_entry(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

#[derive(Default)]
struct Sink {
    start: Option<BackupStart>,
    reader: Option<TarReader>,
    collector: Collector,
    manifest: Vec<u8>,
    progress: Vec<u64>,
    archives: Vec<Archive>,
}

impl BaseBackupSink for Sink {
    fn begin(&mut self, start: &BackupStart) -> Result<(), SinkError> {
        self.start = Some(start.clone());
        Ok(())
    }

    fn archive(&mut self, archive: Archive) -> Result<(), SinkError> {
        self.archives.push(archive);
        self.collector.prefix = match archive {
            Archive::Main => String::new(),
            Archive::Tablespace(oid) => format!("pg_tblspc/{oid}/"),
        };
        self.reader = Some(TarReader::new(archive.file_name(), EndBlocks::Required));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        Ok(self.reader.as_mut().unwrap().feed(bytes, &mut self.collector)?)
    }

    fn end_archive(&mut self) -> Result<(), SinkError> {
        Ok(self.reader.take().unwrap().finish()?)
    }

    fn manifest(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.manifest.extend(bytes);
        Ok(())
    }

    fn progress(&mut self, bytes_done: u64) -> Result<(), SinkError> {
        self.progress.push(bytes_done);
        Ok(())
    }
}

fn back_up(server: &Server, text: &str, options: &BaseBackupOptions) -> (BaseBackupResult, Sink) {
    let mut connection = server.connect(text, Mode::Replication).unwrap();
    let version = connection.server_version().unwrap();
    let mut sink = Sink::default();
    let result = base_backup(&mut connection, version, options, &mut sink).unwrap();
    assert!(
        connection.identify_system().is_ok(),
        "the connection is usable afterwards"
    );
    (result, sink)
}

/// A server with a tablespace and a table of some MB in each, all of it on disk.
fn filled_server(bin: &Path) -> Server {
    let server = Server::start(bin);
    let place = server.directory.path().join("fast");
    std::fs::create_dir(&place).unwrap();
    server.give(&place);
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", place.display()));
    server.sql("CREATE TABLE plain AS SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 20000) i");
    server.sql("CREATE TABLE moved TABLESPACE fast AS TABLE plain");
    server.sql("CREATE UNLOGGED TABLE passing AS TABLE plain");
    server.sql("VACUUM");
    server.sql("CHECKPOINT");
    server
}

fn fast() -> BaseBackupOptions {
    BaseBackupOptions {
        fast_checkpoint: true,
        label: "it's a label".to_owned(),
        ..BaseBackupOptions::default()
    }
}

#[test]
fn a_backup_is_what_the_manifest_says_and_what_pg_basebackup_gets() {
    for bin in installations() {
        let server = filled_server(&bin);
        let (result, sink) = back_up(&server, &server.local(), &fast());
        let tablespace = &result.start.tablespaces[0];
        assert_eq!(
            Path::new(std::str::from_utf8(&tablespace.location).unwrap()),
            server.directory.path().join("fast")
        );
        assert_eq!(
            sink.archives,
            [Archive::Tablespace(tablespace.oid), Archive::Main]
        );
        assert!(result.stop_lsn > result.start.lsn);
        assert_eq!((result.checksum_failure, result.warnings), (None, Vec::new()));
        let announced_kib = sink.start.unwrap().total_kib.unwrap();
        assert!(
            result.received_bytes / 1024 >= announced_kib
                && result.received_bytes / 1024 < announced_kib + 4096
        );
        assert_eq!(sink.progress.last(), Some(&result.received_bytes));
        assert!(sink.collector.members.contains_key("tablespace_map"));
        agrees_with_manifest(&sink.collector.members, &sink.manifest);
        agrees_with_pg_basebackup(&server, &sink.collector.members);
        if server.has_tls {
            let text = format!(
                "host=127.0.0.1 port={} user=tls_user password='se cr\\'et' sslmode=require",
                server.port
            );
            let (_, encrypted) = back_up(&server, &text, &fast());
            agrees_with_manifest(&encrypted.collector.members, &encrypted.manifest);
        }
    }
}

/// Checks that every file of the manifest was received with its size and checksum, and no other file.
fn agrees_with_manifest(members: &BTreeMap<String, Seen>, manifest: &[u8]) {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
    let files = manifest["Files"].as_array().unwrap();
    assert!(files.len() > 500, "{} files", files.len());
    for file in files {
        let path = file["Path"].as_str().unwrap();
        let seen = members
            .get(path)
            .unwrap_or_else(|| panic!("{path} did not arrive"));
        let checksum: String = seen
            .crc32c
            .to_le_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            (seen.size_bytes, checksum.as_str()),
            (file["Size"].as_u64().unwrap(), file["Checksum"].as_str().unwrap()),
            "{path}"
        );
    }
    let arrived = members
        .iter()
        .filter(|(path, seen)| !seen.is_directory && !path.starts_with("pg_wal/"))
        .count();
    assert_eq!(arrived, files.len());
}

/// Checks that the files have the same bytes, modes and times, except for those that describe the backup
/// itself.
fn agrees_with_pg_basebackup(server: &Server, ours: &BTreeMap<String, Seen>) {
    let (target, moved) = (server.path("copy"), server.path("moved"));
    let mapping = format!("{}={moved}", server.path("fast"));
    let directory = server.directory.path().display().to_string();
    let port = server.port.to_string();
    server.run(
        "pg_basebackup",
        &[
            "-h", &directory, "-p", &port, "-U", "postgres", "-D", &target, "-X", "none", "-c", "fast", "-T",
            &mapping,
        ],
    );
    let mut theirs = BTreeMap::new();
    walk(Path::new(&target), "", &mut theirs);
    let about_itself = [
        "backup_label",
        "backup_manifest",
        "global/pg_control",
        "tablespace_map",
    ];
    let comparable = |members: &BTreeMap<String, Seen>| -> BTreeMap<String, Seen> {
        let mut members = members.clone();
        members.retain(|path, seen| {
            // The copy sets a directory's time and mode again.
            if seen.is_directory {
                (seen.mode, seen.mtime_s) = (0, 0);
            }
            // pg_basebackup does not keep times.
            seen.mtime_s = 0;
            !about_itself.contains(&path.as_str())
        });
        members
    };
    let (ours, theirs) = (comparable(ours), comparable(&theirs));
    let names = |members: &BTreeMap<String, Seen>| members.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for (path, seen) in &ours {
        assert_eq!(Some(seen), theirs.get(path), "{path}");
    }
}

/// All entries below a directory. Links of tablespaces are followed.
fn walk(directory: &Path, prefix: &str, members: &mut BTreeMap<String, Seen>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let metadata = std::fs::metadata(entry.path()).unwrap();
        let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        let is_directory = metadata.is_dir();
        let bytes = if is_directory {
            Vec::new()
        } else {
            std::fs::read(entry.path()).unwrap()
        };
        let seen = Seen {
            is_directory,
            size_bytes: bytes.len() as u64,
            crc32c: crc32c::crc32c(&bytes),
            mode: metadata.mode() & 0o7777,
            mtime_s: metadata.mtime(),
        };
        if is_directory {
            walk(&entry.path(), &format!("{path}/"), members);
        }
        // A tablespace is a link there, but nothing here: its archive has its content.
        if !entry.file_type().unwrap().is_symlink() {
            members.insert(path, seen);
        }
    }
}

#[test]
fn wal_is_appended_and_links_are_sent_when_asked_for() {
    for bin in installations() {
        let server = filled_server(&bin);
        let options = BaseBackupOptions {
            include_wal: true,
            tablespace_map: false,
            manifest: false,
            progress: false,
            max_rate_kib: Some(*MAX_RATE_KIB.end()),
            ..fast()
        };
        let (result, sink) = back_up(&server, &server.local(), &options);
        let members = &sink.collector.members;
        let segments: Vec<_> = members
            .keys()
            .filter(|path| path.starts_with("pg_wal/0000"))
            .collect();
        assert!(!segments.is_empty() && members.keys().any(|path| path.ends_with(".done")));
        assert!(segments.iter().all(|path| members[*path].size_bytes == 16 << 20));
        assert!(!members.contains_key("tablespace_map") && sink.manifest.is_empty());
        let link = format!("pg_tblspc/{}", result.start.tablespaces[0].oid);
        assert_eq!(sink.collector.links[&link], server.path("fast"));
        assert_eq!(result.start.total_kib, None);
    }
}

/// The installed versions that can send incremental backups.
fn summarizing_installations() -> Vec<std::path::PathBuf> {
    let can = |bin: &std::path::PathBuf| bin.join("pg_combinebackup").exists();
    let found: Vec<_> = installations().into_iter().filter(can).collect();
    if found.is_empty() {
        eprintln!("No PostgreSQL 17 or later: incremental backups are left out");
    }
    found
}

fn summarizing_server(bin: &Path) -> Server {
    let server = filled_server(bin);
    server.sql("ALTER SYSTEM SET summarize_wal = on");
    server.sql("SELECT pg_reload_conf()");
    while server.sql("SHOW summarize_wal").as_deref() != Some("on") {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    server
}

#[test]
fn a_server_sends_changes_since_the_manifest_it_is_shown() {
    for bin in summarizing_installations() {
        let server = summarizing_server(&bin);
        let (full, sink) = back_up(&server, &server.local(), &fast());
        server.sql("UPDATE plain SET i = -i WHERE i % 1000 = 0");
        let mut connection = server.connect(&server.local(), Mode::Replication).unwrap();
        let version = connection.server_version().unwrap();
        upload_manifest(&mut connection, &mut sink.manifest.as_slice()).unwrap();
        let changes = BaseBackupOptions {
            incremental: true,
            ..fast()
        };
        let mut sent = Sink::default();
        let result = base_backup(&mut connection, version, &changes, &mut sent).unwrap();
        agrees_with_manifest(&sent.collector.members, &sent.manifest);
        assert!(result.received_bytes * 2 < full.received_bytes);
        let relation = server.sql("SELECT pg_relation_filepath('plain')").unwrap();
        let changed = relation.replacen("/5/", "/5/INCREMENTAL.", 1);
        assert!(sent.collector.members.contains_key(&changed), "{changed}");
    }
}

#[test]
fn a_refused_incremental_leaves_the_connection_usable() {
    for bin in summarizing_installations() {
        let server = summarizing_server(&bin);
        let (_, sink) = back_up(&server, &server.local(), &fast());
        let mut connection = server.connect(&server.local(), Mode::Replication).unwrap();
        let version = connection.server_version().unwrap();
        let changes = BaseBackupOptions {
            incremental: true,
            ..fast()
        };
        let refused = base_backup(&mut connection, version, &changes, &mut Sink::default()).unwrap_err();
        assert_eq!(refused.sqlstate(), Some("55000"), "{refused}");
        let mut damaged = sink.manifest;
        damaged
            .iter_mut()
            .filter(|byte| **byte == b'G')
            .for_each(|byte| *byte = b'U');
        for manifest in [&damaged[..], &damaged[..1000], b"not a manifest"] {
            let refused = upload_manifest(&mut connection, &mut &*manifest).unwrap_err();
            assert!(
                matches!(&refused, UploadError::Server(Error::Server(_))) && connection.is_ready(),
                "{refused}"
            );
        }
        base_backup(&mut connection, version, &fast(), &mut Sink::default()).unwrap();
    }
}

#[test]
fn a_damaged_page_does_not_fail_the_backup() {
    for bin in installations() {
        let server = filled_server(&bin);
        let relation = server.sql("SELECT pg_relation_filepath('plain')").unwrap();
        let path = server.directory.path().join("data").join(&relation);
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"damage", 3 * 8192 + 4000).unwrap();
        let (result, sink) = back_up(&server, &server.local(), &fast());
        assert_eq!(result.checksum_failure.unwrap().code, "XX001");
        assert!(
            result
                .warnings
                .iter()
                .any(|warning| warning.message.contains(&relation)),
            "{:?}",
            result.warnings
        );
        agrees_with_manifest(&sink.collector.members, &sink.manifest);
        let unchecked = BaseBackupOptions {
            verify_checksums: false,
            ..fast()
        };
        assert_eq!(
            back_up(&server, &server.local(), &unchecked).0.checksum_failure,
            None
        );
    }
}

#[test]
fn a_server_that_disappears_is_reported_as_such() {
    /// Ends the connection as soon as data arrives.
    struct Cutter(Option<Interrupter>);
    impl BaseBackupSink for Cutter {
        fn begin(&mut self, _: &BackupStart) -> Result<(), SinkError> {
            Ok(())
        }
        fn archive(&mut self, _: Archive) -> Result<(), SinkError> {
            Ok(())
        }
        fn data(&mut self, _: &[u8]) -> Result<(), SinkError> {
            self.0.take().iter().for_each(Interrupter::interrupt);
            Ok(())
        }
        fn end_archive(&mut self) -> Result<(), SinkError> {
            Ok(())
        }
        fn manifest(&mut self, _: &[u8]) -> Result<(), SinkError> {
            Ok(())
        }
        fn progress(&mut self, _: u64) -> Result<(), SinkError> {
            Ok(())
        }
    }
    for bin in installations() {
        let server = filled_server(&bin);
        let mut connection = server.connect(&server.local(), Mode::Replication).unwrap();
        let version = connection.server_version().unwrap();
        let mut sink = Cutter(Some(connection.interrupter().unwrap()));
        let error = base_backup(&mut connection, version, &fast(), &mut sink).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("closed the connection unexpectedly, while receiving"),
            "{error}"
        );
    }
}
