//! barmanfs: PostgreSQL backups and WAL, deduplicated, and shown as directories.
//!
//! This crate is the program around the libraries: the command line, the configuration, the replication
//! client, the progress and the exit codes. Only this crate prints, ends the process or reads the
//! environment.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod arrival;
mod background;
mod backup;
mod barman;
mod boot;
mod cli;
mod clients;
mod clone;
mod cluster;
mod commands;
mod config;
mod copy;
mod error;
mod export;
mod forks;
mod fstab;
mod health;
mod hooks;
mod import;
mod incoming;
mod instance;
mod invocation;
mod keys;
mod lineage;
mod locale;
mod logging;
mod made_manifest;
mod moment;
mod mount_helper;
mod mounts;
mod output;
mod ownership;
mod place;
mod postgres;
mod processes;
mod progress;
mod readiness;
mod receive;
mod report;
mod restore;
mod schedule;
mod signals;
mod size;
mod snapshot;
mod sync;
#[cfg(test)]
mod testing;
mod throttle;
mod unfinished;
mod versions;
mod wal_transfer;
mod walk;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::FromArgMatches;

use crate::barman::grammar::{self, Call, Program};
use crate::cli::Cli;
use crate::error::{Error, Kind, Outcome, exit};
use crate::output::{Style, colours, paint, printable_lines};

fn main() -> ExitCode {
    // Backups contain all data of the database, so all files written here are only for their owner.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let program = Program::called(&arguments);
    let is_asked = |word: &str| arguments.iter().skip(1).any(|argument| argument == word);
    let for_recovery = program == Program::WalRestore || is_asked("get-wal") || is_asked("wal-restore");
    let for_nagios = is_asked("--nagios");
    // At this point the panic's message has been printed.
    let ended = std::panic::catch_unwind(|| run(program, arguments)).unwrap_or(Err(exit::PANICKED));
    ExitCode::from(match (ended, program) {
        (Err(code), _) if for_recovery => exit::TROUBLE.saturating_add(code),
        (Ok(Outcome::Problems), Program::Barman) => exit::FAILED,
        (Err(_), Program::Barman) if for_nagios => {
            barman_is_critical();
            exit::NAGIOS_CRITICAL
        }
        (Ok(outcome), _) => outcome.code(),
        (Err(code), _) => code,
    })
}

/// Runs a command line, and prints its error. Returns the exit code of an error.
fn run(program: Program, arguments: Vec<OsString>) -> Result<Outcome, u8> {
    let arguments = mount_helper::translate(arguments).map_err(|message| {
        report(&Error::usage(message));
        exit::USAGE
    })?;
    if let Program::WalArchive | Program::WalRestore = program {
        return client(program, arguments);
    }
    let words = match grammar::translate(program, arguments) {
        Call::Words(words) => words,
        Call::Version => return ended(print_version(), program),
    };
    let form = grammar::form(&words);
    let parsed = cli::command()
        .try_get_matches_from(words)
        .and_then(|m| Cli::from_arg_matches(&m));
    match parsed {
        Ok(mut cli) => {
            cli.global.format = cli.global.format.or(program.format());
            ended(commands::run(cli, form), program)
        }
        // Help and version are such errors, too.
        Err(error) if error.use_stderr() => {
            // If printing fails, there is no place to report it.
            let _unheard = error.print();
            output::report_error(&wrong_usage(&error), form);
            Err(exit::USAGE)
        }
        Err(text) => ended(printed(&text), program),
    }
}

/// Runs one of Barman's clients.
fn client(program: Program, arguments: Vec<OsString>) -> Result<Outcome, u8> {
    match clients::run(program, arguments) {
        Ok(done) => ended(done, program),
        Err(error) if error.use_stderr() => {
            // If printing fails, there is no place to report it.
            let _unheard = error.print();
            Err(exit::USAGE)
        }
        Err(text) => ended(printed(&text), program),
    }
}

/// Reports an error, and returns its exit code. Barman has 2 only for words that it cannot parse.
fn ended(done: Result<Outcome, Error>, program: Program) -> Result<Outcome, u8> {
    done.map_err(|error| {
        report(&error);
        match (program, error.kind()) {
            (Program::Barman, Kind::Usage) => exit::FAILED,
            _ => error.code(),
        }
    })
}

/// An error of the command line's parser.
fn wrong_usage(error: &clap::Error) -> Error {
    let text = error.render().to_string();
    let text = text.trim_end();
    let (message, rest) = text.split_once('\n').unwrap_or((text, ""));
    let usage = Error::usage(message.trim_start_matches("error: "));
    match rest.trim() {
        "" => usage,
        rest => usage.hint(rest),
    }
}

/// Prints help or the version.
fn printed(text: &clap::Error) -> Result<Outcome, Error> {
    let printed = text.print().and_then(|()| io::stdout().flush());
    printed.map_err(|error| Error::output(&error))?;
    Ok(Outcome::Done)
}

fn print_version() -> Result<Outcome, Error> {
    let printed = writeln!(io::stdout(), "{}", grammar::version());
    printed.map_err(|error| Error::output(&error))?;
    Ok(Outcome::Done)
}

/// Nagios shows the first line of standard output. The reason is on standard error.
fn barman_is_critical() {
    let _unheard = writeln!(io::stdout(), "BARMAN CRITICAL - the check could not be run");
}

/// Prints two lines on standard error: what is wrong, and what to do.
fn report(error: &Error) {
    if error.kind() == Kind::ClosedPipe {
        return;
    }
    let colour = colours(&io::stderr());
    // The message may contain text from a server, or a file name.
    let message = printable_lines(&error.to_string());
    logging::ended(&message);
    let mut text = format!("{} {message}\n", paint("Error:", Style::Red, colour));
    if let Some(hint) = error.hint_text().map(printable_lines) {
        text.push_str(&format!("{} {hint}\n", paint("Hint:", Style::Bold, colour)));
    }
    let _unheard = progress::write_stderr(text.as_bytes());
}
