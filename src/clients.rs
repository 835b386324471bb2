//! Barman's clients, which run where PostgreSQL does: links named `barman-wal-archive` and `barman-wal-restore`.
//!
//! Options are Barman's, and so is what the first one ends with. The second one ends as `get-wal` does: with Barman's codes
//! PostgreSQL takes a broken connection for the end of WAL.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

use crate::barman::grammar::Program;
use crate::cli::wal::{FetchOptions, SendOptions};
use crate::commands::{wal_archive, wal_restore};
use crate::error::{Error, Outcome};
use crate::wal_transfer::remote::Remote;

/// The user on the other host.
const USER: &str = "barman";

/// The program there.
const PROGRAM: &str = "barman";

/// Sends a WAL file to a Barman server; for archive_command
#[derive(Debug, Parser)]
#[command(name = "barman-wal-archive", version)]
struct WalArchive {
    /// User on the Barman host
    #[arg(short = 'U', long, default_value = USER)]
    user: String,
    /// Port of ssh on the Barman host
    #[arg(long)]
    port: Option<u16>,
    /// Configuration on the Barman host
    #[arg(short, long)]
    config: Option<String>,
    /// How to send it.
    #[command(flatten)]
    send: SendOptions,
    /// Host of the Barman server
    barman_host: String,
    /// Name of the server in Barman
    server_name: String,
    /// The file; PostgreSQL's %p
    #[arg(required_unless_present = "test")]
    wal_path: Option<PathBuf>,
}

/// Fetches a WAL file from a Barman server; for restore_command
#[derive(Debug, Parser)]
#[command(name = "barman-wal-restore", version)]
struct WalRestore {
    /// Configuration on the Barman host
    #[arg(short, long)]
    config: Option<String>,
    /// What to fetch, and how.
    #[command(flatten)]
    fetch: FetchOptions,
}

/// Runs a client.
///
/// # Errors
/// For words that it does not understand, and for help and version, which are to be printed.
pub(crate) fn run(program: Program, arguments: Vec<OsString>) -> Result<Result<Outcome, Error>, clap::Error> {
    if program == Program::WalRestore {
        let words = WalRestore::try_parse_from(arguments)?;
        return Ok(wal_restore::run(&words.fetch, Some(USER), PROGRAM, words.config));
    }
    WalArchive::try_parse_from(arguments).map(|words| archive(&words))
}

fn archive(words: &WalArchive) -> Result<Outcome, Error> {
    let remote = Remote {
        host: format!("{}@{}", words.user, words.barman_host),
        port: words.port,
        program: PROGRAM.to_owned(),
        config: words.config.clone(),
        server: words.server_name.clone(),
    }
    .checked()?;
    let sending = wal_archive::sending(remote, &words.send);
    match (words.send.test, &words.wal_path) {
        (true, _) => Ok(Outcome::Told(sending.test()?)),
        (false, Some(path)) => sending.run(path).map(|()| Outcome::Done),
        (false, None) => Err(Error::usage("The path of the WAL file is missing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        WalArchive::command().debug_assert();
        WalRestore::command().debug_assert();
    }

    #[test]
    fn barmans_words_are_understood() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for line in [
            "barman-wal-archive backup main pg_wal/000000010000000000000001",
            "barman-wal-archive -U b --port 22 -c /c --md5 -z --compression-level low backup main p",
            "barman-wal-archive --zstd --compression-level -3 backup main p",
            "barman-wal-archive backup main p --test",
        ] {
            WalArchive::try_parse_from(words(line)).unwrap();
        }
        for line in [
            "barman-wal-restore backup main f p",
            "barman-wal-restore -U b --port 22 -c /c -s 3 -p 4 --spool-dir /s -P -z backup main f p",
            "barman-wal-restore -t -j backup main f p",
            "barman-wal-restore --keep-compression backup main f p",
        ] {
            WalRestore::try_parse_from(words(line)).unwrap();
        }
        assert!(WalArchive::try_parse_from(words("barman-wal-archive -z --xz backup main p")).is_err());
    }
}
