//! barmanfs: PostgreSQL backups and WAL, deduplicated, and shown as directories.
//!
//! This crate is the program around the libraries: the command line, the configuration, the replication
//! client, the progress and the exit codes. Only this crate prints, ends the process or reads the
//! environment.

mod background;
mod backup;
mod boot;
mod cli;
mod clone;
mod cluster;
mod commands;
mod config;
mod error;
mod forks;
mod fstab;
mod health;
mod instance;
mod invocation;
mod lineage;
mod locale;
mod logging;
mod mount_helper;
mod mounts;
mod output;
mod ownership;
mod postgres;
mod progress;
mod receive;
mod report;
mod signals;
mod size;
#[cfg(test)]
mod testing;
mod versions;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::FromArgMatches;

use crate::cli::Cli;
use crate::error::{Error, Kind, Outcome, exit};
use crate::output::{Style, colours, paint, printable_lines};

fn main() -> ExitCode {
    // Backups contain all data of the database, so all files written here are only for their owner.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let for_recovery = arguments.iter().skip(1).any(|argument| argument == "get-wal");
    // At this point the panic's message has been printed.
    let ended = std::panic::catch_unwind(|| run(arguments)).unwrap_or(Err(exit::PANICKED));
    ExitCode::from(match ended {
        Ok(outcome) => outcome.code(),
        Err(code) if for_recovery => exit::TROUBLE.saturating_add(code),
        Err(code) => code,
    })
}

/// Parses and runs a command, and prints its error. Returns the exit code of an error.
fn run(arguments: Vec<OsString>) -> Result<Outcome, u8> {
    let arguments = mount_helper::translate(arguments).map_err(|message| {
        report(&Error::usage(message));
        exit::USAGE
    })?;
    let parsed = cli::command()
        .try_get_matches_from(arguments)
        .and_then(|m| Cli::from_arg_matches(&m));
    let done = match parsed {
        Ok(cli) => commands::run(cli),
        // Help and version are such errors, too.
        Err(error) if error.use_stderr() => {
            // If printing fails, there is no place to report it.
            let _unheard = error.print();
            return Err(exit::USAGE);
        }
        Err(text) => printed(&text),
    };
    done.map_err(|error| {
        report(&error);
        error.code()
    })
}

/// Prints help or the version.
fn printed(text: &clap::Error) -> Result<Outcome, Error> {
    let printed = text.print().and_then(|()| io::stdout().flush());
    printed.map_err(|error| Error::output(&error))?;
    Ok(Outcome::Done)
}

/// Prints two lines on standard error: what is wrong, and what to do.
fn report(error: &Error) {
    if error.kind() == Kind::ClosedPipe {
        return;
    }
    let colour = colours(&io::stderr());
    // The message may contain text from a server, or a file name.
    let message = printable_lines(&error.to_string());
    let mut text = format!("{} {message}\n", paint("Error:", Style::Red, colour));
    if let Some(hint) = error.hint_text().map(printable_lines) {
        text.push_str(&format!("{} {hint}\n", paint("Hint:", Style::Bold, colour)));
    }
    let _unheard = progress::write_stderr(text.as_bytes());
}
