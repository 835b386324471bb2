//! `barmanfs get-wal`: one WAL file out of the archive, safe as a `restore_command`.
//!
//! PostgreSQL interprets the exit code: 0 is a file, 1 to 125 "there is none, recovery ends here", above 125
//! a failure that stops recovery. So 1 is reserved for one case: the archive was read and does not have the
//! file.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::str::FromStr;

use barmanfs_pg::wal_name::WalName;

use super::App;
use crate::cli::wal::GetWalArgs;
use crate::error::{Error, Outcome};

/// One window of WAL: the unit that the reader decodes.
const COPY_BYTES: usize = 1 << 20;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &GetWalArgs) -> Result<Outcome, Error> {
    let name = WalName::from_str(&args.name).map_err(|error| Error::usage(error.to_string()))?;
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.server)?;
    let archive = match args.left {
        Some(number) => repository.left_wal(&server, number)?.ok_or_else(|| {
            Error::usage(format!(
                "Server {server} has no history {number} that was left: 'barmanfs history {server} list' numbers them"
            ))
        })?,
        None => repository.wal(&server),
    };
    let mut found = archive.find(&name)?;
    if found.is_none() {
        // A pack that is not in the catalog may have it.
        repository.prove_completeness().map_err(|error| {
            Error::from(error).context(format!("Cannot find out whether {name} is archived"))
        })?;
        found = archive.find(&name)?;
    }
    let Some(file) = found else {
        // An archive without any data of the server proves nothing: it may be the wrong one.
        if repository.system_id(&server)?.is_none() {
            let path = repository.path().display();
            return Err(Error::failed(format!(
                "The repository {path} holds nothing of server {server}"
            )));
        }
        if args.left.is_none() && repository.interrupts_recovery(&server, &name)? {
            return Err(Error::failed(format!(
                "WAL file {name} of server {server} was removed by the retention policy: recovery cannot go on from here"
            )));
        }
        tracing::debug!("WAL file {name} of server {server} is not in the archive");
        return Ok(Outcome::Absent);
    };
    let mut content = repository.trees().reader(file.map);
    match &args.dest {
        Some(dest) => {
            let dest = if dest.is_dir() {
                dest.join(&args.name)
            } else {
                dest.clone()
            };
            write_file(&mut content, &dest).map_err(|error| {
                Error::failed(format!(
                    "Cannot copy WAL file {name} of server {server} to {}: {error}",
                    dest.display()
                ))
            })?;
        }
        None => app
            .out
            .copy(&mut content, &format!("WAL file {name} of server {server}"))?,
    }
    Ok(Outcome::Done)
}

/// Writes the complete file, or removes it: PostgreSQL must never see a short segment.
fn write_file(content: &mut impl Read, dest: &Path) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(COPY_BYTES, File::create(dest)?);
    io::copy(content, &mut file)
        .and_then(|_| file.flush())
        .inspect_err(|_| {
            // The first error is reported.
            let _second = std::fs::remove_file(dest);
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
        assert!(write_file(&mut b"abc".chain(Failing), &dest).is_err());
        assert!(!dest.exists());
        write_file(&mut b"abc".as_slice(), &dest).unwrap();
        assert_eq!(std::fs::read(&dest).unwrap(), b"abc");
    }
}
