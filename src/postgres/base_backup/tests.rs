//! The two dialects against scripted servers: the commands, and the handling of the answers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::*;
use crate::postgres::stream::{Socket, Stream};
use crate::postgres::{Conninfo, Environment, Mode};

#[test]
fn commands_are_spelled_for_each_version() {
    let plain = BaseBackupOptions::default();
    let full = BaseBackupOptions {
        label: "it's".to_owned(),
        fast_checkpoint: true,
        max_rate_kib: Some(32),
        include_wal: true,
        wait_for_archive: true,
        verify_checksums: false,
        ..plain.clone()
    };
    let text = |version, options: &BaseBackupOptions| command(ServerVersion(version), options).unwrap();
    for version in [130_016, 140_000] {
        assert_eq!(
            text(version, &plain),
            "BASE_BACKUP LABEL 'barmanfs' PROGRESS NOWAIT TABLESPACE_MAP MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
        );
        assert_eq!(
            text(version, &full),
            "BASE_BACKUP LABEL 'it''s' PROGRESS FAST WAL MAX_RATE 32 TABLESPACE_MAP NOVERIFY_CHECKSUMS \
             MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
        );
    }
    for version in [150_018, 160_014, 180_004, 190_000] {
        assert_eq!(
            text(version, &plain),
            "BASE_BACKUP (LABEL 'barmanfs', PROGRESS 1, CHECKPOINT 'spread', WAL 0, WAIT 0, TABLESPACE_MAP 1, \
             VERIFY_CHECKSUMS 1, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')"
        );
        assert_eq!(
            text(version, &full),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS 1, CHECKPOINT 'fast', WAL 1, WAIT 1, TABLESPACE_MAP 1, \
             VERIFY_CHECKSUMS 0, MAX_RATE 32, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')"
        );
    }
}

#[test]
fn only_a_server_that_supports_it_is_asked_for_changes() {
    let options = BaseBackupOptions {
        incremental: true,
        ..BaseBackupOptions::default()
    };
    let text = command(ServerVersion(170_000), &options).unwrap();
    assert!(text.contains(", INCREMENTAL 1, MANIFEST 'yes'"), "{text}");
    let error = command(ServerVersion(160_014), &options).unwrap_err();
    assert_eq!(error.to_string(), "PostgreSQL 16.14 has no incremental backups");
}

#[test]
fn options_that_the_server_would_refuse_are_refused_first() {
    let refused = |version, options: BaseBackupOptions| {
        command(ServerVersion(version), &options)
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    let plain = BaseBackupOptions::default;
    assert!(refused(120_000, plain()).contains("12.0 is not supported"));
    for rate in [0, 31, 1_048_577] {
        let options = BaseBackupOptions {
            max_rate_kib: Some(rate),
            ..plain()
        };
        assert!(refused(150_000, options).contains("out of range"), "{rate}");
    }
    for label in ["a\nb".to_owned(), "a\0b".to_owned(), "x".repeat(1024)] {
        assert!(refused(150_000, BaseBackupOptions { label, ..plain() }).starts_with("Invalid backup label"));
    }
}

/// Messages of a server.
#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn message(mut self, tag: u8, body: &[u8]) -> Self {
        self.0.push(tag);
        self.0
            .extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        self.0.extend(body);
        self
    }

    fn rows(mut self, columns: &[&str], rows: &[&[Option<&str>]]) -> Self {
        let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for column in columns {
            body.extend(column.as_bytes());
            body.extend([0; 19]);
        }
        self = self.message(b'T', &body);
        for row in rows {
            let mut body = u16::try_from(row.len()).unwrap().to_be_bytes().to_vec();
            for value in *row {
                match value {
                    Some(text) => {
                        body.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                        body.extend(text.as_bytes());
                    }
                    None => body.extend((-1_i32).to_be_bytes()),
                }
            }
            self = self.message(b'D', &body);
        }
        self.message(b'C', b"SELECT\0")
    }

    fn position(self, lsn: &str) -> Self {
        self.rows(&["recptr", "tli"], &[&[Some(lsn), Some("3")]])
    }

    /// One tablespace and the main one.
    fn tablespaces(self) -> Self {
        self.rows(
            &["spcoid", "spclocation", "size"],
            &[
                &[Some("16384"), Some("/srv/fast"), Some("10")],
                &[None, None, Some("32")],
            ],
        )
    }

    fn start(self) -> Self {
        self.position("0/2000028").tablespaces()
    }

    fn copy(self) -> Self {
        self.message(b'H', &[0, 0, 0])
    }

    fn piece(self, kind: u8, rest: &[u8]) -> Self {
        let mut body = vec![kind];
        body.extend(rest);
        self.message(b'd', &body)
    }

    fn error(self, tag: u8, severity: &str, code: &str, text: &str) -> Self {
        let body = format!("S{severity}\0V{severity}\0C{code}\0M{text}\0\0");
        self.message(tag, body.as_bytes())
    }

    fn end(self) -> Self {
        self.message(b'C', b"BASE_BACKUP\0").message(b'Z', b"I")
    }
}

/// The events that a sink received, one line each.
#[derive(Default)]
struct Log(Vec<String>);

impl BaseBackupSink for Log {
    fn begin(&mut self, start: &BackupStart) -> Result<(), SinkError> {
        let tablespaces: Vec<_> = start.tablespaces.iter().map(|it| it.oid).collect();
        self.0.push(format!(
            "begin {} {} {tablespaces:?} {:?}",
            start.lsn, start.timeline, start.total_kib
        ));
        Ok(())
    }
    fn archive(&mut self, archive: Archive) -> Result<(), SinkError> {
        self.0.push(archive.file_name());
        Ok(())
    }
    fn data(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.0.push(format!("data {}", String::from_utf8_lossy(bytes)));
        if bytes == b"full" {
            Err("disk full".into())
        } else {
            Ok(())
        }
    }
    fn end_archive(&mut self) -> Result<(), SinkError> {
        self.0.push("end".to_owned());
        Ok(())
    }
    fn manifest(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.0
            .push(format!("manifest {}", String::from_utf8_lossy(bytes)));
        Ok(())
    }
    fn progress(&mut self, bytes_done: u64) -> Result<(), SinkError> {
        self.0.push(format!("progress {bytes_done}"));
        Ok(())
    }
}

const MODERN: u32 = 150_018;
const TRADITIONAL: u32 = 130_016;

/// Runs a backup against a server that sends this script and closes the connection.
fn run(version: u32, script: Script) -> (Result<BaseBackupResult, Error>, Vec<String>, Connection) {
    let (client, mut server) = UnixStream::pair().unwrap();
    let conninfo =
        Conninfo::parse("user=u", &Environment::fixed("u", Path::new("/nonexistent"), &[])).unwrap();
    let script = Script::default()
        .message(b'Z', b"I")
        .0
        .into_iter()
        .chain(script.0)
        .collect::<Vec<_>>();
    let server = std::thread::spawn(move || {
        server.write_all(&script).unwrap();
        server.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = Vec::new();
        server.read_to_end(&mut received).map(drop)
    });
    let mut connection = Connection::begin(
        Stream::Plain(Socket::unix(client).unwrap()),
        conninfo.hosts[0].clone(),
        &conninfo,
        Mode::Replication,
    )
    .unwrap();
    connection.await_ready().unwrap();
    let mut log = Log::default();
    let result = base_backup(
        &mut connection,
        ServerVersion(version),
        &BaseBackupOptions::default(),
        &mut log,
    );
    connection.interrupter().unwrap().interrupt();
    drop(server.join());
    (result, log.0, connection)
}

#[test]
fn the_older_dialect_has_a_copy_for_each_archive() {
    let script = Script::default()
        .start()
        .copy()
        .message(b'd', b"one")
        .error(b'N', "WARNING", "01000", "checksum verification failed")
        .message(b'c', b"")
        .copy()
        .message(b'd', b"two")
        .message(b'd', b"three")
        .message(b'c', b"")
        .copy()
        .message(b'd', b"{}")
        .message(b'c', b"")
        .position("0/2000100")
        .end();
    let (result, log, _) = run(TRADITIONAL, script);
    let result = result.unwrap();
    let expected = [
        "begin 0/2000028 3 [16384] Some(42)",
        "16384.tar",
        "data one",
        "end",
        "base.tar",
        "data two",
        "data three",
        "end",
        "manifest {}",
        "progress 11",
    ];
    assert_eq!(log, expected);
    assert_eq!(
        (result.stop_lsn, result.start.timeline),
        (Lsn(0x0200_0100), TimelineId(3))
    );
    assert_eq!((result.received_bytes, result.checksum_failure), (11, None));
    assert_eq!(result.warnings[0].message, "checksum verification failed");
    assert_eq!(result.start.tablespaces[0].location, b"/srv/fast");
}

fn modern_data() -> Script {
    Script::default()
        .start()
        .copy()
        .piece(b'n', b"16384.tar\0/srv/fast\0")
        .piece(b'd', b"one")
        .piece(b'p', &3_i64.to_be_bytes())
        .piece(b'n', b"base.tar\0\0")
        .piece(b'd', b"two")
        .piece(b'm', b"")
        .piece(b'd', b"{}")
        .message(b'c', b"")
}

#[test]
fn the_newer_dialect_has_pieces_of_several_kinds() {
    let (result, log, connection) = run(MODERN, modern_data().position("0/2000100").end());
    let expected = [
        "begin 0/2000028 3 [16384] Some(42)",
        "16384.tar",
        "data one",
        "progress 3",
        "end",
        "base.tar",
        "data two",
        "end",
        "manifest {}",
    ];
    assert_eq!(log, expected);
    assert_eq!(result.unwrap().received_bytes, 6);
    drop(connection);
}

#[test]
fn wrong_page_checksums_come_with_the_result() {
    for (version, script) in [
        (MODERN, modern_data()),
        (
            TRADITIONAL,
            Script::default()
                .start()
                .copy()
                .message(b'c', b"")
                .copy()
                .message(b'c', b"")
                .copy()
                .message(b'c', b""),
        ),
    ] {
        let text = "checksum verification failure during base backup";
        let script = script
            .position("0/2000100")
            .error(b'E', "ERROR", "XX001", text)
            .message(b'Z', b"I");
        let failure = run(version, script).0.unwrap().checksum_failure.unwrap();
        assert_eq!((failure.code.as_str(), failure.message.as_str()), ("XX001", text));
    }
}

#[test]
fn a_timeline_change_of_a_standby_fails_the_backup() {
    let moved = modern_data()
        .rows(&["recptr", "tli"], &[&[Some("0/2000100"), Some("4")]])
        .end();
    let error = run(MODERN, moved).0.unwrap_err();
    assert_eq!(
        error.to_string(),
        "The server went from timeline 3 to 4 during the backup"
    );
}

#[test]
fn an_error_in_the_middle_says_where() {
    let begun = || {
        Script::default()
            .start()
            .copy()
            .piece(b'n', b"16384.tar\0/srv\0")
            .piece(b'd', b"x")
    };
    let script = begun()
        .error(b'E', "ERROR", "XX001", "could not read")
        .message(b'Z', b"I");
    let (result, _, _) = run(MODERN, script);
    let error = result.unwrap_err();
    assert_eq!(
        error.to_string(),
        "ERROR: could not read (SQLSTATE XX001), while receiving 16384.tar, 0 MB into the backup"
    );
    assert_eq!(error.sqlstate(), Some("XX001"));
    let error = run(MODERN, begun()).0.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("The server closed the connection unexpectedly, while receiving 16384.tar")
    );
    let refused = Script::default()
        .error(b'E', "ERROR", "42501", "permission denied")
        .message(b'Z', b"I");
    assert_eq!(run(MODERN, refused).0.unwrap_err().sqlstate(), Some("42501"));
}

#[test]
fn the_sinks_error_ends_the_backup() {
    let script = Script::default()
        .start()
        .copy()
        .piece(b'n', b"16384.tar\0/srv\0")
        .piece(b'd', b"full");
    let (result, _, mut connection) = run(MODERN, script);
    assert_eq!(result.unwrap_err().to_string(), "disk full");
    let again = connection.simple_query("SELECT 1").unwrap_err();
    assert!(
        again.to_string().contains("in the middle of something else"),
        "{again}"
    );
}

#[test]
fn protocol_violations_are_refused() {
    let copy = || Script::default().start().copy();
    let cases = [
        ("data first", copy().piece(b'd', b"x"), "before its first archive"),
        (
            "wrong order",
            copy().piece(b'n', b"base.tar\0\0"),
            "\"base.tar\" that was not announced",
        ),
        (
            "path as name",
            copy().piece(b'n', b"../x.tar\0\0"),
            "that was not announced",
        ),
        (
            "early manifest",
            copy().piece(b'm', b""),
            "before the last archive",
        ),
        ("unknown kind", copy().piece(b'z', b""), "unknown kind"),
        ("empty piece", copy().message(b'd', b""), "unknown kind"),
        ("short progress", copy().piece(b'p', b"123"), "malformed progress"),
        (
            "negative progress",
            copy().piece(b'p', &(-1_i64).to_be_bytes()),
            "malformed progress",
        ),
        ("early end", copy().message(b'c', b""), "before its last part"),
        (
            "after the manifest",
            modern_without_end().piece(b'n', b"x.tar\0\0"),
            "after the manifest",
        ),
        ("odd message", copy().message(b'I', b""), "message 'I' within"),
        (
            "no tablespaces",
            Script::default().position("0/1").rows(&["spcoid"], &[]),
            "empty list",
        ),
        (
            "main not last",
            Script::default()
                .position("0/1")
                .rows(&["spcoid"], &[&[None], &[Some("1")]]),
            "does not end with the main one",
        ),
        ("bad LSN", Script::default().position("zero"), "usable \"recptr\""),
        (
            "no copy",
            Script::default().start().message(b'C', b"X\0"),
            "data should begin",
        ),
    ];
    for (case, script, expected) in cases {
        let error = run(MODERN, script).0.unwrap_err().to_string();
        assert!(error.contains(expected), "{case}: {error}");
    }
}

/// All data of [`modern_data`], without the end of the COPY.
fn modern_without_end() -> Script {
    let mut script = modern_data();
    script.0.truncate(script.0.len() - 5);
    script
}
