//! `barmanfs get-wal`: one WAL file out of the archive, safe as a `restore_command`.
//!
//! PostgreSQL interprets the exit code: 0 is a file, 1 to 125 "there is none, recovery ends here", above 125
//! a failure that stops recovery. So 1 is reserved for one case: the archive was read and does not have the
//! file. What was received and is not archived yet belongs to the archive, as far as recovery is concerned.

mod peek;
mod replayed;

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::str::FromStr;

use barmanfs_catalog::{Repository, ServerName, WalArchive};
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::open_regular;

use super::App;
use crate::cli::wal::GetWalArgs;
use crate::error::{Error, Outcome};
use crate::output;
use crate::wal_transfer::beside;
use crate::wal_transfer::compression::Compression;
use crate::wal_transfer::feed::serve;

/// One window of WAL: the unit that the reader decodes.
const COPY_BYTES: usize = 1 << 20;

/// The start of a segment without which nothing in it can be replayed.
const FIRST_BYTES: u64 = 512;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &GetWalArgs) -> Result<Outcome, Error> {
    if args.test {
        return test(app, args);
    }
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.server)?;
    let source = Source {
        archive: match args.left {
            Some(number) => repository.left_wal(&server, number)?.ok_or_else(|| {
                Error::usage(format!(
                    "Server {server} has no history {number} that was left: 'barmanfs history {server} list' numbers them"
                ))
            })?,
            None => repository.wal(&server),
        },
        repository: &repository,
        server: &server,
        is_left: args.left.is_some(),
        partial: args.partial,
        replay: args.replay,
    };
    match args.feed {
        true => feed(&source),
        false => one(app, args, &source),
    }
}

/// Gives files whose names come on standard input.
fn feed(source: &Source<'_>) -> Result<Outcome, Error> {
    // Standard output of the library would look for lines in WAL.
    let failed = |error: io::Error| Error::failed(format!("Cannot give WAL: {error}"));
    let mut stdout = output::stdout()?;
    let stdin = rustix::stdio::stdin().try_clone_to_owned().map_err(failed)?;
    let find = |name: &WalName| {
        let found = source.find_surely(name)?;
        if found.is_none() {
            source.refuse_wrong_absence(name)?;
        }
        Ok(found)
    };
    serve(&mut File::from(stdin), &mut stdout, find).map_err(failed)?;
    Ok(Outcome::Done)
}

/// Gives one file, or lists names.
fn one(app: &mut App, args: &GetWalArgs, source: &Source<'_>) -> Result<Outcome, Error> {
    let text = args.name.as_deref().unwrap_or_default();
    let name = WalName::from_str(text).map_err(|error| Error::usage(error.to_string()))?;
    let server = source.server;
    if let Some(most) = args.peek {
        for name in peek::names(source, name, most)? {
            app.out.line(name)?;
        }
        return Ok(Outcome::Done);
    }
    let Some(mut content) = source.find_surely(&name)? else {
        source.refuse_wrong_absence(&name)?;
        tracing::debug!("WAL file {name} of server {server} is not in the archive");
        return Ok(Outcome::Absent);
    };
    let dest = match (&args.output_directory, &args.dest) {
        (Some(directory), _) => Some(directory.join(text)),
        (None, Some(dest)) if dest.is_dir() => Some(dest.join(text)),
        (None, dest) => dest.clone(),
    };
    let encoding = encoding(args);
    match (dest, encoding) {
        (Some(dest), encoding) => {
            write_file(&mut content, encoding, &dest).map_err(|error| {
                Error::failed(format!(
                    "Cannot copy WAL file {name} of server {server} to {}: {error}",
                    dest.display()
                ))
            })?;
        }
        (None, encoding) => {
            let printed = print(&mut content, encoding, &mut app.out.for_data()?);
            printed.map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => Error::output(&error),
                _ => Error::failed(format!(
                    "Cannot print WAL file {name} of server {server}: {error}"
                )),
            })?;
        }
    }
    Ok(Outcome::Done)
}

/// Whether WAL of a server could be retrieved: it is known, and there is a repository.
fn test(app: &mut App, args: &GetWalArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.server)?;
    app.out.line(format_args!(
        "Ready to retrieve WAL files from the server {server}"
    ))?;
    Ok(Outcome::Done)
}

/// The form of the output, and its level.
type Encoding = Option<(Compression, Option<i32>)>;

/// Nothing is stored in a form that others read. `--keep-compression` is to be quick, and gzip is what every client can
/// read: without a module for another form, Barman's ends with 1, and PostgreSQL takes that for the end of WAL.
fn encoding(args: &GetWalArgs) -> Encoding {
    if args.gzip {
        Some((Compression::Gzip, None))
    } else if args.bzip2 {
        Some((Compression::Bzip2, None))
    } else if args.keep_compression {
        Some((Compression::Gzip, Some(1)))
    } else {
        None
    }
}

/// Where the WAL of a server is.
struct Source<'a> {
    repository: &'a Repository,
    server: &'a ServerName,
    archive: WalArchive<'a>,
    is_left: bool,
    partial: bool,
    /// As a copy may replay it.
    replay: bool,
}

impl Source<'_> {
    /// The content of a file; `None` only when it is certainly not there.
    fn find_surely(&self, name: &WalName) -> Result<Option<Box<dyn Read>>, Error> {
        if let Some(found) = self.find(name)? {
            return Ok(Some(found));
        }
        // A pack that is not in the catalog may have it.
        self.repository.prove_completeness().map_err(|error| {
            Error::from(error).context(format!("Cannot find out whether {name} is archived"))
        })?;
        self.find(name)
    }

    fn find(&self, name: &WalName) -> Result<Option<Box<dyn Read>>, Error> {
        if self.replay {
            return replayed::open(self, name);
        }
        if let Some(content) = self.archive.open(name)? {
            return Ok(Some(Box::new(content)));
        }
        let WalName::Segment(segment) = name else {
            return Ok(None);
        };
        if self.is_left {
            return Ok(None);
        }
        if let Some(received) = self.received(*segment)? {
            return Ok(Some(received));
        }
        let partial = match self.partial {
            true => self.archive.open(&WalName::Partial(*segment))?,
            false => None,
        };
        // It may have been archived since the first look.
        let found = match partial {
            None => self.archive.open(name)?,
            partial => partial,
        };
        Ok(found.map(|content| Box::new(content) as Box<dyn Read>))
    }

    /// A segment that was received and is not archived yet. It has its full length from its start on, with zeros where
    /// nothing was received.
    fn received(&self, name: SegmentName) -> Result<Option<Box<dyn Read>>, Error> {
        let spool = self.repository.receiving(self.server)?;
        let wanted = |complete: bool| complete || self.partial;
        let Some(found) = spool
            .into_iter()
            .find(|found| found.name == name && wanted(found.complete))
        else {
            return Ok(None);
        };
        let unreadable =
            |error: &io::Error| Error::failed(format!("Cannot read {}: {error}", found.path.display()));
        let file = match open_regular(&found.path) {
            // It was archived or completed since the spool was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| unreadable(&error))?,
        };
        let mut beginning = Vec::new();
        (&file)
            .take(FIRST_BYTES)
            .read_to_end(&mut beginning)
            .and_then(|_| io::Seek::rewind(&mut &file))
            .map_err(|error| unreadable(&error))?;
        let is_begun = beginning.iter().any(|byte| *byte != 0);
        Ok(is_begun.then(|| Box::new(file.take(found.size_bytes)) as Box<dyn Read>))
    }

    /// Fails where an absent file is no end of WAL.
    fn refuse_wrong_absence(&self, name: &WalName) -> Result<(), Error> {
        let server = self.server;
        // An archive without any data of the server proves nothing: it may be the wrong one.
        if self.repository.system_id(server)?.is_none() {
            let path = self.repository.path().display();
            return Err(Error::failed(format!(
                "The repository {path} holds nothing of server {server}"
            )));
        }
        if !self.is_left && self.repository.interrupts_recovery(server, name)? {
            return Err(Error::failed(format!(
                "WAL file {name} of server {server} was removed by the retention policy: recovery cannot go on from here"
            )));
        }
        Ok(())
    }
}

/// Writes all of the file.
fn print(content: &mut impl Read, encoding: Encoding, to: &mut File) -> io::Result<()> {
    let mut to = BufWriter::with_capacity(COPY_BYTES, to);
    match encoding {
        None => io::copy(content, &mut to).map(drop)?,
        Some((form, level)) => form.encode(level, content, &mut to)?,
    }
    to.flush()
}

/// Writes the complete file, or none: PostgreSQL must never see a short segment. A device or a pipe is written to: it is
/// not replaced.
fn write_file(content: &mut impl Read, encoding: Encoding, dest: &Path) -> io::Result<()> {
    let mut write_to = |path: &Path| {
        let mut file = BufWriter::with_capacity(COPY_BYTES, File::create(path)?);
        match encoding {
            None => io::copy(content, &mut file).map(drop)?,
            Some((form, level)) => form.encode(level, content, &mut file)?,
        }
        file.flush()
    };
    if std::fs::metadata(dest).is_ok_and(|found| !found.is_file()) {
        return write_to(dest);
    }
    let part = beside(dest, "part");
    let written = write_to(&part).and_then(|()| std::fs::rename(&part, dest));
    written.inspect_err(|_| {
        // The first error is reported.
        let _second = std::fs::remove_file(&part);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_fails_leaves_nothing() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("damage"))
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let dest = directory.path().join("000000010000000000000001");
        assert!(write_file(&mut b"abc".chain(Failing), None, &dest).is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        write_file(&mut b"abc".as_slice(), None, &dest).unwrap();
        assert_eq!(std::fs::read(&dest).unwrap(), b"abc");
        write_file(&mut b"abc".as_slice(), Some((Compression::Gzip, None)), &dest).unwrap();
        assert!(std::fs::read(&dest).unwrap().starts_with(b"\x1f\x8b"));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
