//! What a command line asks for: the target, in Barman's words, and how the copy gets its WAL.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use barmanfs_catalog::{Action, BackupId, Target, TargetSpec, TimelineChoice};

use crate::cli::restore::{RestoreArgs, TargetArgs};
use crate::error::Error;
use crate::invocation::{Invocation, quoted_text};
use crate::mounts::known_user;
use crate::output::printable;

/// PostgreSQL 13 cuts a command at MAXPGPATH after it has replaced `%f` and `%p`.
const MAX_COMMAND_BYTES: usize = 1023 - 6 * 32;

/// Segments that a copy on another host fetches ahead.
const FETCHED_AHEAD: u8 = 4;

/// Barman's word for the newest backup that leads to the target.
pub(crate) const AUTO: &str = "auto";

impl TargetArgs {
    /// The target with its options, and without a backup. Without a target, all WAL there is is replayed.
    pub(crate) fn spec(&self, self_contained: bool) -> Result<TargetSpec, Error> {
        let targets = [
            self.target_time.as_deref().map(|text| written("time", text)),
            self.target_xid.as_deref().map(|text| written("xid", text)),
            self.target_lsn.as_deref().map(|text| written("lsn", text)),
            self.target_name.as_deref().map(|text| written("name", text)),
            self.target_immediate.then(|| "immediate".to_owned()),
        ];
        let mut targets = targets.into_iter().flatten();
        let target = targets.next();
        if targets.next().is_some() {
            return Err(Error::usage(
                "You cannot specify multiple targets for the recovery operation",
            ));
        }
        if target.is_none() && self.target_tli.is_none() && self.target_action.is_some() {
            return Err(Error::usage(
                "Can't enable recovery target action when PITR is not required",
            ));
        }
        let mut text = target.unwrap_or_else(|| "now".to_owned());
        if self.exclusive {
            text.push_str(",exclusive");
        }
        let mut spec: TargetSpec = text
            .parse()
            .map_err(|error: barmanfs_catalog::TargetError| Error::usage(error.to_string()))?;
        spec.timeline = self.target_tli.unwrap_or_default();
        spec.action = self.target_action;
        spec.self_contained = self_contained;
        Ok(spec)
    }
}

/// A target as `explain` takes it. In its text, commas and percent signs have a meaning.
fn written(word: &str, text: &str) -> String {
    let mut written = format!("{word}:");
    for c in text.chars() {
        match c {
            '%' | ',' if word == "name" => {
                let _never_fails = write!(written, "%{:02X}", u32::from(c));
            }
            c => written.push(c),
        }
    }
    written
}

/// The action at the target: Barman's users expect a pause, in which they look before they promote.
pub(crate) fn usual_action(configured: Option<Action>, is_barmans: bool) -> Action {
    configured.unwrap_or(match is_barmans {
        true => Action::Pause,
        false => Action::Promote,
    })
}

/// The command that fetches WAL from the repository, as a copy may replay it. A standby waits for complete segments.
pub(crate) fn restore_command(
    invocation: &Invocation,
    args: &RestoreArgs,
    spec: &TargetSpec,
) -> Result<String, Error> {
    if let Some(command) = &args.restore_command {
        return Ok(command.clone());
    }
    let partial = match spec.target == Target::Now && !args.standby_mode {
        true => "--partial ",
        false => "",
    };
    let line = invocation.with(&format!("get-wal --replay {partial}{} ", args.server));
    bounded(format!("{}%f %p", line.replace('%', "%%")))
}

fn bounded(command: String) -> Result<String, Error> {
    match command.len() <= MAX_COMMAND_BYTES {
        true => Ok(command),
        false => Err(Error::failed(
            "The paths of this program and its configuration are too long for a restore_command",
        )
        .hint("Add --no-get-wal: then all WAL is in the copy")),
    }
}

/// Where a copy on another host finds the archive.
#[derive(Debug)]
pub(crate) struct Archive<'a> {
    /// The name of this host in the configuration.
    pub(crate) configured: Option<&'a str>,
    /// The user here, if the configuration names one.
    pub(crate) user: Option<&'a str>,
    /// The configuration of the command line.
    pub(crate) config: Option<&'a Path>,
}

/// The command by which a copy on another host fetches WAL from here.
pub(crate) fn remote_restore_command(
    archive: &Archive<'_>,
    args: &RestoreArgs,
    spec: &TargetSpec,
) -> Result<String, Error> {
    if let Some(command) = &args.restore_command {
        return Ok(command.clone());
    }
    if args.is_self_contained() {
        // It replays what it has.
        return Ok(String::new());
    }
    let host = match archive.configured {
        Some(host) => host.to_owned(),
        None => own_host()?,
    };
    let mut line = "barmanfs".to_owned();
    if let Some(config) = archive.config {
        let config = std::path::absolute(config)
            .map_err(|error| Error::failed(format!("Cannot find {}: {error}", config.display())))?;
        line += &format!(" -c {}", quoted_text(&config.to_string_lossy()));
    }
    line += " wal-restore --replay";
    if spec.target == Target::Now && !args.standby_mode {
        line += " --partial";
    }
    let user = archive.user.map(str::to_owned);
    if let Some(user) = user.or_else(|| known_user(rustix::process::geteuid().as_raw())) {
        line += &format!(" -U {}", quoted_text(&user));
    }
    if let Some(port) = args.recovery_option_port {
        line += &format!(" --port {port}");
    }
    line += &format!(" -p {FETCHED_AHEAD} {host} {} ", args.server);
    bounded(format!("{}%f %p", line.replace('%', "%%")))
}

/// The name of this host for others.
fn own_host() -> Result<String, Error> {
    let asked = Command::new("hostname").arg("-f").stderr(Stdio::null()).output();
    let full = asked
        .ok()
        .filter(|answer| answer.status.success())
        .and_then(|answer| String::from_utf8(answer.stdout).ok());
    let name =
        full.unwrap_or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default());
    let name = name.trim();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    match is_loopback(name) || !name.chars().all(is_plain) {
        false => Ok(name.to_owned()),
        true => Err(Error::failed(format!(
            "This host is called '{}', and a copy on another host would not find it to fetch WAL",
            printable(name.as_bytes())
        ))
        .hint("Set recovery_host in the configuration, or add --no-get-wal: then all WAL is in the copy")),
    }
}

/// Whether every host has this name.
fn is_loopback(name: &str) -> bool {
    let first = name.split('.').next().unwrap_or_default();
    let is_address = name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    name.is_empty() || is_address || first.starts_with("localhost") || first == "ip6-localhost"
}

/// The backup that is asked for; `None` for `auto`.
pub(crate) fn refuse_current(spec: &TargetSpec, backup: Option<BackupId>) -> Result<(), Error> {
    match (spec.timeline, backup) {
        (TimelineChoice::Current, None) => Err(Error::usage(
            "--target-tli current is the timeline of a backup, and 'auto' names none",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn spec(options: &str) -> Result<String, String> {
        let words = format!("barmanfs restore main auto /dest {options}");
        let cli = Cli::try_parse_from(words.split_whitespace().map(|word| word.replace('_', " ")));
        let crate::cli::Command::Restore(args) = cli.map_err(|error| error.to_string())?.command else {
            return Err("no restore".to_owned());
        };
        let spec = args.target.spec(args.is_self_contained());
        spec.map(|spec| spec.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn barmans_options_are_targets() {
        for (options, expected) in [
            ("", "now"),
            ("--no-get-wal", "now,self-contained"),
            ("--target-immediate", "immediate"),
            ("--target-tli 2", "now,timeline=2"),
            (
                "--target-tli current --target-immediate",
                "immediate,timeline=current",
            ),
            ("--target-xid 1234 --exclusive", "xid:1234,exclusive"),
            (
                "--target-lsn 0/5A3F10C8 --target-action shutdown",
                "lsn:0-5A3F10C8,action=shutdown",
            ),
            ("--target-name a,b%c", "name:a%2Cb%25c"),
            ("--target-time 2026-11-20_14:03:07+00", "2026-11-20 14:03:07+00"),
            (
                "--target-time 2026-11-20T14:03:07Z --exclusive",
                "2026-11-20 14:03:07+00,exclusive",
            ),
        ] {
            assert_eq!(spec(options).as_deref(), Ok(expected), "{options}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (options, reason) in [
            ("--target-xid 1234 --target-immediate", "multiple targets"),
            ("--target-action pause", "PITR is not required"),
            ("--target-name a --exclusive", "exclusive"),
            ("--exclusive", "exclusive"),
            ("--target-time yesterday", "no time"),
            ("--target-tli 0", "timeline"),
            ("--get-wal --no-get-wal", "cannot be used"),
        ] {
            let refused = spec(options).unwrap_err();
            assert!(refused.contains(reason), "{options}: {refused}");
        }
    }

    #[test]
    fn a_name_that_every_host_has_finds_nobody() {
        for name in [
            "",
            "localhost",
            "localhost.localdomain",
            "127.0.0.1",
            "::1",
            "localhost6",
        ] {
            assert!(is_loopback(name), "{name}");
        }
        for name in ["backup", "backup.example.com", "10.0.0.1", "local.host"] {
            assert!(!is_loopback(name), "{name}");
        }
    }

    #[test]
    fn the_action_of_a_barman_site_is_pause() {
        assert_eq!(usual_action(None, true), Action::Pause);
        assert_eq!(usual_action(None, false), Action::Promote);
        assert_eq!(usual_action(Some(Action::Shutdown), true), Action::Shutdown);
    }
}
