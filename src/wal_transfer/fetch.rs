//! The client of `get-wal`: one file from the archive on another host.
//!
//! PostgreSQL ends recovery when a file is absent, so absence must be certain. barmanfs on the other side ends with 1 only
//! then. Barman does so for an unknown server or a damaged file, too; so it is asked a second time, whether it has the file.
//! Where its home is not mounted, it knows of nothing; so it must know of a backup.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};

use barmanfs_pg::wal_name::WalName;

use super::compression::{self, Compression};
use super::remote::{self, Remote, SSH_FAILED};
use super::{LARGEST_BYTES, beside, check};
use crate::error::{Error, exit};

/// The code of [`Remote`]'s program for a file that is absent.
const ABSENT: i32 = 1;

/// It is in the version that barmanfs prints, whatever its name is.
const OURS: &str = "barmanfs";

/// How a file travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transit {
    /// As PostgreSQL wants it.
    Plain,
    /// Compressed so.
    Compressed(Compression),
    /// As it is stored, whatever that is.
    Kept,
}

/// Where files come from, and how.
#[derive(Debug, Clone)]
pub(crate) struct Fetching {
    /// From where.
    pub(crate) remote: Remote,
    /// How they travel.
    pub(crate) transit: Transit,
    /// Also segments that are not complete.
    pub(crate) partial: bool,
    /// As a copy may replay them.
    pub(crate) replay: bool,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// The file is there, with this size.
    File(u64),
    /// The archive certainly does not have it.
    Absent,
}

impl Fetching {
    /// Fetches a file. `dest` is there when it is whole and checked, and not before.
    ///
    /// # Errors
    /// Everything but a file and its proven absence. The exit code is that of the other side where it has a meaning.
    pub(crate) fn run(&self, name: &WalName, dest: &Path) -> Result<Fetched, Error> {
        let part = beside(dest, super::PART);
        let fetched = self.fetch_into(name, &part);
        let placed = match fetched {
            Ok(Fetched::File(size_bytes)) => fs::rename(&part, dest)
                .map(|()| Fetched::File(size_bytes))
                .map_err(|error| Error::failed(format!("Cannot create {}: {error}", dest.display()))),
            other => other,
        };
        if !matches!(placed, Ok(Fetched::File(_))) {
            let _gone = fs::remove_file(&part);
        }
        placed
    }

    /// Asks the other host whether it can give WAL. What it says goes to standard output.
    ///
    /// # Errors
    /// When ssh cannot be started.
    pub(crate) fn test(&self) -> Result<i32, Error> {
        let words = [
            "get-wal",
            "--test",
            &self.remote.server,
            "000000010000000000000001",
        ];
        let status = self.remote.command(&words).status();
        status
            .map(remote::code)
            .map_err(|error| Error::failed(format!("Cannot run ssh: {error}")))
    }

    fn fetch_into(&self, name: &WalName, path: &Path) -> Result<Fetched, Error> {
        // A file that is listed after it was said to be absent may have come between the two questions.
        for _ in 0..2 {
            if let Some(fetched) = self.try_to_fetch(name, path)? {
                return Ok(fetched);
            }
        }
        Err(self.trouble(name, ABSENT))
    }

    /// `None` if the other side says that it has no such file, and lists it.
    fn try_to_fetch(&self, name: &WalName, path: &Path) -> Result<Option<Fetched>, Error> {
        let name_text = name.to_string();
        let mut words = vec!["get-wal"];
        match self.transit {
            Transit::Plain => {}
            Transit::Compressed(Compression::Bzip2) => words.push("--bzip2"),
            Transit::Compressed(_) => words.push("--gzip"),
            Transit::Kept => words.push("--keep-compression"),
        }
        if self.partial {
            words.push("--partial");
        }
        if self.replay {
            words.push("--replay");
        }
        words.extend([self.remote.server.as_str(), &name_text]);
        let mut ssh = self
            .remote
            .command(&words)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Error::failed(format!("Cannot run ssh: {error}")))?;
        let copied = copy(&mut ssh, path);
        if copied.is_err() {
            let _gone = ssh.kill();
        }
        let status = ssh
            .wait()
            .map_err(|error| Error::failed(format!("Cannot wait for ssh: {error}")))?;
        match (remote::code(status), copied) {
            (0, Ok(())) => {
                let checked = check(name, path).map(|file| Some(Fetched::File(file)));
                checked.map_err(|reason| {
                    Error::failed(format!("What came of {name} from {}: {reason}", self.remote))
                })
            }
            (0, Err(error)) | (SSH_FAILED, Err(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
                Err(Error::failed(format!(
                    "Cannot receive {name} from {}: {error}",
                    self.remote
                )))
            }
            (ABSENT, _) => Ok(self.is_proven_absent(name)?.then_some(Fetched::Absent)),
            (SSH_FAILED, _) => Err(Error::failed(format!(
                "Connection problem with ssh to {}",
                self.remote.host
            ))
            .with_code(u8::MAX - exit::TROUBLE)),
            (code, _) => Err(self.trouble(name, code)),
        }
    }

    fn trouble(&self, name: &WalName, code: i32) -> Error {
        let message = format!(
            "{} get-wal of {name} from {} has failed with code {code}",
            self.remote.program, self.remote
        );
        // A code that says trouble is passed on as it is.
        let code = u8::try_from(code).unwrap_or(u8::MAX);
        Error::failed(message).with_code(code.checked_sub(exit::TROUBLE).unwrap_or(code).max(1))
    }

    /// An answer of 1 may have other reasons in Barman. It lists what it has of a server that it knows.
    fn is_proven_absent(&self, name: &WalName) -> Result<bool, Error> {
        let (name_text, server) = (name.to_string(), self.remote.server.as_str());
        let is_silent = |words: &[&str]| self.ask(name, words).map(|said| said.trim_ascii().is_empty());
        if !is_silent(&["get-wal", "--peek", "1", server, &name_text])? {
            return Ok(false);
        }
        // barmanfs has proven it before it said so, and may hold WAL without a backup.
        if is_silent(&["list-backups", "--minimal", server])?
            && !String::from_utf8_lossy(&self.ask(name, &["--version"])?).contains(OURS)
        {
            return Err(Error::failed(format!(
                "{} has no file {name}, and no backup either: is its directory mounted?",
                self.remote
            )));
        }
        Ok(true)
    }

    /// What the program on the other side prints.
    fn ask(&self, name: &WalName, words: &[&str]) -> Result<Vec<u8>, Error> {
        let answer = self
            .remote
            .command(words)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| Error::failed(format!("Cannot run ssh: {error}")))?;
        match remote::code(answer.status) {
            0 => Ok(answer.stdout),
            code => Err(self.trouble(name, code)),
        }
    }
}

/// Writes what ssh prints into a file.
fn copy(ssh: &mut Child, path: &Path) -> io::Result<()> {
    let stdout = ssh.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut content = compression::decoded(stdout)?.take(LARGEST_BYTES + 1);
    let mut file = File::create(path)?;
    io::copy(&mut content, &mut file)?;
    file.flush()
}
