//! `BASE_BACKUP`: the whole cluster as tar archives, in the two dialects of the command.
//!
//! Up to PostgreSQL 14, each archive is a COPY of its own, and the options are keywords. From 15 on, one COPY carries
//! everything, with a kind byte before each piece. Both produce the same events ([`BaseBackupSink`]).

use postgres_protocol::message::backend::{COPY_DATA_TAG, COPY_DONE_TAG, ERROR_RESPONSE_TAG, Message};

use barmanfs_pg::{Lsn, ServerVersion, TimelineId};

use super::base_backup_command::{BaseBackupOptions, FIRST_MODERN_MAJOR, command};
use super::connection::{Answer, Connection};
use super::error::{Error, ServerError, SinkError};
use super::result_set::ResultSet;

/// The SQLSTATE of "checksum verification failure during base backup", sent after everything else.
const DATA_CORRUPTED: &str = "XX001";

/// Interval of progress reports for the older dialect, in which the server sends none.
const PROGRESS_EVERY_BYTES: u64 = 4 << 20;

/// One tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tablespace {
    /// Its object id, the name of its link in `pg_tblspc`.
    pub(crate) oid: u32,
    /// Its directory on the server; relative for one inside the data directory (PostgreSQL 16 and later).
    pub(crate) location: Vec<u8>,
}

/// The facts at the start of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackupStart {
    /// The position where recovery has to begin.
    pub(crate) lsn: Lsn,
    /// The timeline of that position.
    pub(crate) timeline: TimelineId,
    /// The tablespaces other than the main one.
    pub(crate) tablespaces: Vec<Tablespace>,
    /// The approximate size of all archives; `None` unless `progress` was requested.
    pub(crate) total_kib: Option<u64>,
}

/// One tar archive of a base backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Archive {
    /// The data directory; always the last.
    Main,
    /// The tablespace with this object id.
    Tablespace(u32),
}

impl Archive {
    /// PostgreSQL's name for it.
    pub(crate) fn file_name(self) -> String {
        match self {
            Self::Main => "base.tar".to_owned(),
            Self::Tablespace(oid) => format!("{oid}.tar"),
        }
    }
}

/// Receives a base backup. An error ends the backup, and the connection cannot be used any more.
pub(crate) trait BaseBackupSink {
    /// The server is ready to send.
    fn begin(&mut self, start: &BackupStart) -> Result<(), SinkError>;
    /// An archive begins.
    fn archive(&mut self, archive: Archive) -> Result<(), SinkError>;
    /// The next bytes of the archive.
    fn data(&mut self, bytes: &[u8]) -> Result<(), SinkError>;
    /// The archive is complete as far as the protocol can tell.
    fn end_archive(&mut self) -> Result<(), SinkError>;
    /// The next bytes of the manifest; all archives are complete.
    fn manifest(&mut self, bytes: &[u8]) -> Result<(), SinkError>;
    /// Number of bytes of archives sent so far.
    fn progress(&mut self, bytes_done: u64) -> Result<(), SinkError>;
}

/// The facts at the end of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseBackupResult {
    /// The facts at its start.
    pub(crate) start: BackupStart,
    /// WAL up to this position is needed, on the timeline of the start.
    pub(crate) stop_lsn: Lsn,
    /// Set if the server found pages with wrong checksums. It sent all data nevertheless; `warnings` name the pages.
    pub(crate) checksum_failure: Option<ServerError>,
    /// The server's warnings during the backup.
    pub(crate) warnings: Vec<ServerError>,
    /// Bytes of all archives, the manifest not counted.
    pub(crate) received_bytes: u64,
}

/// Takes a base backup.
///
/// # Errors
/// For everything except wrong page checksums, which are part of the result. It is an error, too, if a standby followed
/// its primary to another timeline meanwhile: the WAL of such a backup is on two timelines.
pub(crate) fn base_backup(
    connection: &mut Connection,
    version: ServerVersion,
    options: &BaseBackupOptions,
    sink: &mut dyn BaseBackupSink,
) -> Result<BaseBackupResult, Error> {
    let command = command(version, options)?;
    connection.start_query(&command)?;
    let start = read_start(connection)?;
    sink.begin(&start).map_err(Error::Sink)?;
    let mut receiver = Receiver::new(connection, sink, &start.tablespaces);
    if version.major() >= FIRST_MODERN_MAJOR {
        receiver.receive_modern(options.manifest)?;
    } else {
        receiver.receive_traditional(options.manifest)?;
    }
    let received_bytes = receiver.parts.received_bytes;
    let (stop_lsn, stop_timeline) = read_position(&expect_rows(connection)?)?;
    let checksum_failure = read_end(connection)?;
    if stop_timeline != start.timeline {
        let timelines = format!("from timeline {} to {stop_timeline}", start.timeline);
        return Err(Error::ServerMoved(format!(
            "The server went {timelines} during the backup"
        )));
    }
    Ok(BaseBackupResult {
        start,
        stop_lsn,
        checksum_failure,
        warnings: connection.take_warnings(),
        received_bytes,
    })
}

fn expect_rows(connection: &mut Connection) -> Result<ResultSet, Error> {
    match connection.read_result()? {
        Answer::Rows(rows) => Ok(rows),
        Answer::Done | Answer::Ready => Err(Error::protocol("a base backup without all its results")),
    }
}

fn read_position(rows: &ResultSet) -> Result<(Lsn, TimelineId), Error> {
    Ok((rows.parse(0, "recptr")?, rows.parse(0, "tli")?))
}

fn read_start(connection: &mut Connection) -> Result<BackupStart, Error> {
    let (lsn, timeline) = read_position(&expect_rows(connection)?)?;
    let rows = expect_rows(connection)?;
    let mut tablespaces = Vec::new();
    let mut total_kib = Some(0_u64);
    for row in 0..rows.len() {
        let size_kib = rows
            .bytes(row, "size")
            .is_some()
            .then(|| rows.parse::<u64>(row, "size"))
            .transpose()?;
        total_kib = total_kib
            .zip(size_kib)
            .and_then(|(total, size)| total.checked_add(size));
        let is_last = row + 1 == rows.len();
        match (rows.bytes(row, "spcoid").is_none(), is_last) {
            (true, true) => {}
            (false, false) => {
                let location = rows.bytes(row, "spclocation").unwrap_or_default().to_vec();
                tablespaces.push(Tablespace {
                    oid: rows.parse(row, "spcoid")?,
                    location,
                });
            }
            _ => {
                return Err(Error::protocol(
                    "a list of tablespaces that does not end with the main one",
                ));
            }
        }
    }
    match rows.len() {
        0 => Err(Error::protocol("an empty list of tablespaces")),
        _ => Ok(BackupStart {
            lsn,
            timeline,
            tablespaces,
            total_kib,
        }),
    }
}

/// Reads to the end of the command. Wrong page checksums are reported only here, after everything was sent.
fn read_end(connection: &mut Connection) -> Result<Option<ServerError>, Error> {
    loop {
        match connection.read_result() {
            Ok(Answer::Done) => {}
            Ok(Answer::Ready) => return Ok(None),
            Ok(Answer::Rows(_)) => return Err(Error::protocol("another result at the end of a base backup")),
            Err(Error::Server(error)) if error.code == DATA_CORRUPTED => return Ok(Some(*error)),
            Err(error) => return Err(error),
        }
    }
}

/// The part of the backup to which received data belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Nothing,
    Archive(Archive),
    Manifest,
}

/// Reads the messages, and leaves their meaning to [`Parts`].
struct Receiver<'a> {
    connection: &'a mut Connection,
    sink: &'a mut dyn BaseBackupSink,
    parts: Parts,
}

/// Handles the data of one COPY.
type Take = fn(&mut Parts, &[u8], &mut dyn BaseBackupSink) -> Result<(), Error>;

impl<'a> Receiver<'a> {
    fn new(
        connection: &'a mut Connection,
        sink: &'a mut dyn BaseBackupSink,
        tablespaces: &[Tablespace],
    ) -> Self {
        Self {
            connection,
            sink,
            parts: Parts::new(tablespaces),
        }
    }

    /// PostgreSQL 15 and later: one COPY of pieces with a kind byte.
    fn receive_modern(&mut self, manifest: bool) -> Result<(), Error> {
        self.receive_copy(Parts::take_piece)?;
        let complete = self.parts.expected.is_empty() && (self.parts.part == Part::Manifest) == manifest;
        match (complete, self.parts.part) {
            (true, Part::Manifest) => Ok(()),
            (true, _) => self.parts.end_part(self.sink),
            (false, _) => Err(Error::protocol("a base backup that ends before its last part")),
        }
    }

    /// PostgreSQL 14 and earlier: a COPY for each archive, and one for the manifest.
    fn receive_traditional(&mut self, manifest: bool) -> Result<(), Error> {
        while let Some(&archive) = self.parts.expected.last() {
            self.parts.begin_archive(archive, self.sink)?;
            self.receive_copy(Parts::take_data)?;
            self.parts.end_part(self.sink)?;
        }
        if manifest {
            self.parts.part = Part::Manifest;
            self.receive_copy(Parts::take_data)?;
        }
        self.sink.progress(self.parts.received_bytes).map_err(Error::Sink)
    }

    /// One COPY from its announcement to its end. The data is used in place in the read buffer.
    fn receive_copy(&mut self, take: Take) -> Result<(), Error> {
        let Self {
            connection,
            sink,
            parts,
        } = self;
        match connection.receive_in_query() {
            Ok(Message::CopyOutResponse(_)) => {}
            Ok(_) => {
                return Err(Error::protocol(
                    "something else where a base backup's data should begin",
                ));
            }
            Err(error) => return Err(parts.interrupted(error)),
        }
        loop {
            let frame = connection
                .next_frame()
                .map_err(|error| parts.interrupted(error))?;
            match frame.tag {
                COPY_DATA_TAG => take(parts, frame.body(), *sink)?,
                COPY_DONE_TAG => return Ok(()),
                ERROR_RESPONSE_TAG => {
                    let error = connection.fail_query();
                    return Err(parts.interrupted(error));
                }
                tag => {
                    let tag = tag.escape_ascii();
                    return Err(Error::protocol(format!(
                        "message '{tag}' within a base backup's data"
                    )));
                }
            }
        }
    }
}

/// The progress through the parts of the backup.
#[derive(Debug)]
struct Parts {
    /// The archives that are still expected, the next one last.
    expected: Vec<Archive>,
    part: Part,
    received_bytes: u64,
    reported_bytes: u64,
}

impl Parts {
    fn new(tablespaces: &[Tablespace]) -> Self {
        let tablespaces = tablespaces
            .iter()
            .rev()
            .map(|tablespace| Archive::Tablespace(tablespace.oid));
        Self {
            expected: std::iter::once(Archive::Main).chain(tablespaces).collect(),
            part: Part::Nothing,
            received_bytes: 0,
            reported_bytes: 0,
        }
    }

    /// Data of the current part. (The older dialect has nothing else.)
    fn take_data(&mut self, bytes: &[u8], sink: &mut dyn BaseBackupSink) -> Result<(), Error> {
        self.data(bytes, sink)?;
        if self.received_bytes - self.reported_bytes >= PROGRESS_EVERY_BYTES {
            self.reported_bytes = self.received_bytes;
            sink.progress(self.received_bytes).map_err(Error::Sink)?;
        }
        Ok(())
    }

    /// One piece of the newer dialect.
    fn take_piece(&mut self, piece: &[u8], sink: &mut dyn BaseBackupSink) -> Result<(), Error> {
        match piece.split_first() {
            Some((b'd', bytes)) => self.data(bytes, sink),
            Some((b'n', names)) => {
                self.end_part(sink)?;
                let archive = self.announced_archive(names)?;
                self.begin_archive(archive, sink)
            }
            Some((b'm', [])) => {
                self.end_part(sink)?;
                if !self.expected.is_empty() {
                    return Err(Error::protocol("a manifest before the last archive"));
                }
                self.part = Part::Manifest;
                Ok(())
            }
            Some((b'p', count)) => {
                let count = count
                    .try_into()
                    .map(i64::from_be_bytes)
                    .ok()
                    .and_then(|count| u64::try_from(count).ok());
                let count = count.ok_or_else(|| Error::protocol("a malformed progress report"))?;
                sink.progress(count).map_err(Error::Sink)
            }
            _ => Err(Error::protocol("a piece of a base backup of unknown kind")),
        }
    }

    fn data(&mut self, bytes: &[u8], sink: &mut dyn BaseBackupSink) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        match self.part {
            Part::Archive(_) => {
                self.received_bytes += bytes.len() as u64;
                sink.data(bytes).map_err(Error::Sink)
            }
            Part::Manifest => sink.manifest(bytes).map_err(Error::Sink),
            Part::Nothing => Err(Error::protocol("data of a base backup before its first archive")),
        }
    }

    /// The archive that is announced by name and location. It must be the next one in the server's own list.
    fn announced_archive(&self, names: &[u8]) -> Result<Archive, Error> {
        let name = names.split(|&byte| byte == 0).next().unwrap_or_default();
        self.expected
            .last()
            .copied()
            .filter(|archive| archive.file_name().as_bytes() == name)
            .ok_or_else(|| {
                let name = String::from_utf8_lossy(name).escape_debug().to_string();
                Error::protocol(format!("an archive \"{name}\" that was not announced"))
            })
    }

    fn begin_archive(&mut self, archive: Archive, sink: &mut dyn BaseBackupSink) -> Result<(), Error> {
        self.expected.pop();
        self.part = Part::Archive(archive);
        sink.archive(archive).map_err(Error::Sink)
    }

    fn end_part(&mut self, sink: &mut dyn BaseBackupSink) -> Result<(), Error> {
        match self.part {
            Part::Archive(_) => {
                self.part = Part::Nothing;
                sink.end_archive().map_err(Error::Sink)
            }
            Part::Manifest => Err(Error::protocol("another part after the manifest")),
            Part::Nothing => Ok(()),
        }
    }

    /// Adds to an error what was being received.
    fn interrupted(&self, error: Error) -> Error {
        let part = match self.part {
            Part::Archive(archive) => archive.file_name(),
            Part::Manifest => "the manifest".to_owned(),
            Part::Nothing => "a base backup".to_owned(),
        };
        let during = format!(
            "receiving {part}, {} MB into the backup",
            self.received_bytes / 1_000_000
        );
        Error::Interrupted {
            during,
            error: Box::new(error),
        }
    }
}

#[cfg(test)]
mod tests;
