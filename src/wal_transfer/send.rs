//! The client of `put-wal`: `wal-archive --remote`, `barman-wal-archive`.
//!
//! A file counts as archived when the command on the other host ended with 0: then it is durable there. Where further
//! segments wait, a few of them go through the same connection, so that a server that is behind does not connect for each.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;

use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::open_regular;

use super::bundle::{Bundler, Hash};
use super::compression::Compression;
use super::remote::{self, Remote, SSH_FAILED};
use super::sent;
use crate::error::Error;

/// The most files that go through one connection.
const MOST_FILES: usize = 16;

/// The most bytes that go through one connection, unless one file alone is larger.
const MOST_BYTES: u64 = 256 << 20;

/// The exit codes of Barman's client. One of the program there is passed on.
mod exit {
    /// Its own failure.
    pub(super) const OWN: u8 = 2;
    /// ssh has failed.
    pub(super) const CONNECTION: u8 = 3;
    /// PostgreSQL takes a larger code of an `archive_command` for its own end.
    pub(super) const MOST: u8 = 125;
    /// What the program there ended with is above that.
    pub(super) const REMOTE: u8 = 1;
}

/// What to send, and how.
#[derive(Debug)]
pub(crate) struct Sending {
    /// To where.
    pub(crate) remote: Remote,
    /// The checksums.
    pub(crate) hash: Hash,
    /// The form in which files travel.
    pub(crate) compression: Option<Compression>,
    /// Its level.
    pub(crate) level: Option<i32>,
}

#[derive(Debug)]
struct Outgoing {
    name: WalName,
    path: PathBuf,
}

/// Refuses WAL of a copy or clone that runs on a mount: it would mix with that of `server`.
///
/// # Errors
/// When it is such a file, or cannot be looked at.
pub(crate) fn refuse_shown(file: &File, path: &Path, server: &dyn Display) -> Result<(), Error> {
    if !barmanfs_fs::is_shown(file, path)? {
        return Ok(());
    }
    Err(Error::failed(format!(
        "{} is a file on a mount of barmanfs, and no copy or clone there archives: its WAL would mix with that of {server}",
        std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display()
    ))
    .hint("Set archive_mode = off for the server that runs there, and restart it"))
}

impl Sending {
    /// Sends a file, and a few of those that wait behind it. Returns when it is durable on the other host.
    ///
    /// # Errors
    /// With the exit code that Barman's client has.
    pub(crate) fn run(&self, path: &Path) -> Result<(), Error> {
        let own = |error: Error| error.with_code(exit::OWN);
        if path.is_dir() {
            return Err(own(Error::usage(format!("{} is a directory", path.display()))));
        }
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = WalName::from_str(&file_name).map_err(|error| own(Error::usage(error.to_string())))?;
        let file = open_regular(path)
            .map_err(|error| own(Error::failed(format!("Cannot read {}: {error}", path.display()))))?;
        refuse_shown(&file, path, &self.remote.server).map_err(own)?;
        if sent::is_acknowledged(&self.remote, path, &name) {
            return Ok(());
        }
        let mut files = vec![Outgoing {
            name,
            path: path.to_owned(),
        }];
        files.extend(waiting(&name, path));
        if files.len() > 1 {
            // If one of the others is refused, this one must not suffer from it.
            if self.send(&files).is_ok() {
                self.note(path, &files);
                return Ok(());
            }
            files.truncate(1);
        }
        self.send(&files)
    }

    /// Asks the other host whether it would take WAL. What it says goes to standard output.
    ///
    /// # Errors
    /// When ssh cannot be started.
    pub(crate) fn test(&self) -> Result<u8, Error> {
        let mut command = self.remote.command(&["put-wal", &self.remote.server, "--test"]);
        let status = command.status().map_err(|error| cannot_start(&error))?;
        let code = remote::code(status);
        Ok(u8::try_from(code).unwrap_or(u8::MAX))
    }

    fn send(&self, files: &[Outgoing]) -> Result<(), Error> {
        let mut command = self.remote.command(&["put-wal", &self.remote.server]);
        let mut ssh = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| cannot_start(&error))?;
        let written = match ssh.stdin.take() {
            Some(stdin) => self.write(files, stdin),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        if written
            .as_ref()
            .is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe)
        {
            // The other side must not see an end where there is none. What it has read by now is no whole archive.
            let _gone = ssh.kill();
        }
        let status = ssh
            .wait()
            .map_err(|error| Error::failed(format!("Cannot wait for ssh: {error}")).with_code(exit::OWN))?;
        match (written, remote::code(status)) {
            (Ok(()), 0) => Ok(()),
            (Err(error), 0) => {
                Err(Error::failed(format!("Cannot send to {}: {error}", self.remote)).with_code(exit::OWN))
            }
            (Err(error), _) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::failed(format!("Cannot send to {}: {error}", self.remote)).with_code(exit::OWN))
            }
            (_, SSH_FAILED) => Err(Error::failed(format!(
                "Connection problem with ssh to {}",
                self.remote.host
            ))
            .with_code(exit::CONNECTION)),
            (_, code) => Err(Error::failed(format!(
                "{} put-wal for {} has failed with code {code}",
                self.remote.program, self.remote
            ))
            .with_code(match u8::try_from(code) {
                Ok(code) if code <= exit::MOST => code,
                _ => exit::REMOTE,
            })),
        }
    }

    fn write(&self, files: &[Outgoing], target: impl Write) -> io::Result<()> {
        let mut bundler = Bundler::new(BufWriter::with_capacity(1 << 17, target), self.hash);
        for outgoing in files {
            let mut file = open_regular(&outgoing.path)?;
            let Some(compression) = self.compression else {
                bundler.add(&outgoing.name, file.metadata()?.len(), &mut file)?;
                continue;
            };
            // The size comes before the content.
            let mut compressed = tempfile::tempfile()?;
            compression.encode(self.level, &mut file, &mut compressed)?;
            let size_bytes = compressed.metadata()?.len();
            io::Seek::rewind(&mut compressed)?;
            bundler.add(&outgoing.name, size_bytes, &mut compressed)?;
        }
        bundler.end()
    }

    fn note(&self, path: &Path, files: &[Outgoing]) {
        let hashed = |outgoing: &Outgoing| Some((outgoing.name, sent::hash(&outgoing.path).ok()?));
        let acknowledged: Vec<_> = files.iter().skip(1).filter_map(hashed).collect();
        // Without the note, they are sent again.
        let _unknown = sent::note(&self.remote, path, &acknowledged);
    }
}

fn cannot_start(error: &io::Error) -> Error {
    Error::failed(format!("Cannot run ssh: {error}")).with_code(exit::OWN)
}

/// The segments after this one that PostgreSQL has completed and will ask for next. A file has its final content before it
/// is marked as ready.
fn waiting(name: &WalName, path: &Path) -> Vec<Outgoing> {
    let WalName::Segment(first) = name else {
        return Vec::new();
    };
    let size = |path: &Path| fs::metadata(path).map_or(u64::MAX, |found| found.len());
    let mut bytes = size(path);
    let marks = path.with_file_name("archive_status");
    let mut ready: Vec<_> = fs::read_dir(marks)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let mark = entry.file_name().into_string().ok()?;
            mark.strip_suffix(".ready")?.parse().ok()
        })
        .filter(|segment: &SegmentName| segment > first && segment.timeline == first.timeline)
        .collect();
    ready.sort_unstable();
    let outgoing = ready.into_iter().map(|segment| Outgoing {
        path: path.with_file_name(segment.to_string()),
        name: WalName::Segment(segment),
    });
    outgoing
        .take(MOST_FILES - 1)
        .take_while(|outgoing| {
            bytes = bytes.saturating_add(size(&outgoing.path));
            bytes <= MOST_BYTES
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segments_that_wait_go_along_in_their_order() {
        let directory = tempfile::tempdir().unwrap();
        let marks = directory.path().join("archive_status");
        fs::create_dir(&marks).unwrap();
        let segment = |number: u32| format!("0000000100000000{number:08X}");
        for number in 1..=40 {
            fs::write(directory.path().join(segment(number)), "content").unwrap();
            fs::write(marks.join(segment(number) + ".ready"), "").unwrap();
        }
        for other in ["00000002.history.ready", "000000020000000000000005.ready"] {
            fs::write(marks.join(other), "").unwrap();
        }
        fs::write(marks.join(segment(7) + ".done"), "").unwrap();
        let path = directory.path().join(segment(5));
        let found = waiting(&segment(5).parse().unwrap(), &path);
        let names: Vec<_> = found.iter().map(|outgoing| outgoing.name.to_string()).collect();
        let expected: Vec<_> = (6..21).map(segment).collect();
        assert_eq!(names, expected);
    }
}
