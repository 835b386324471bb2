//! The command on the other host, and the ssh that runs it.
//!
//! The command line is that of Barman's clients, so either side may be Barman. ssh gives up where nobody answers: a
//! recovery that waits for ever for a host that is gone looks like one that works.

use std::fmt;
use std::process::{Command, ExitStatus, Stdio};

use crate::error::Error;
use crate::invocation::quoted_text;

/// The code with which ssh itself fails. No command on the other side ends with it.
pub(crate) const SSH_FAILED: i32 = 255;

/// ssh asks nobody, and ends when the other host does not answer within these times.
const SSH_OPTIONS: &[&str] = &[
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=30",
    "-o",
    "ServerAliveInterval=20",
];

/// A server in an archive on another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    /// The host, with the user before it unless ssh chooses that.
    pub(crate) host: String,
    /// The port of its ssh.
    pub(crate) port: Option<u16>,
    /// The program there.
    pub(crate) program: String,
    /// The configuration there, unless the program finds it by itself.
    pub(crate) config: Option<String>,
    /// The server.
    pub(crate) server: String,
}

/// `[user@]host[:port]`. A host in brackets may have colons in it.
pub(crate) fn host_and_port(text: &str) -> Result<(String, Option<u16>), Error> {
    let wrong = || Error::usage(format!("'{text}' is not of the form [user@]host[:port]"));
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, Some(port.parse().map_err(|_| wrong())?))
        }
        _ => (text, None),
    };
    let host = host.replace(['[', ']'], "");
    match host.is_empty() || host.starts_with('-') || host.ends_with('@') {
        true => Err(wrong()),
        false => Ok((host, port)),
    }
}

impl Remote {
    /// Refuses what ssh would take for an option.
    ///
    /// # Errors
    /// When the host begins with a dash.
    pub(crate) fn checked(self) -> Result<Self, Error> {
        match self.host.starts_with('-') {
            true => Err(Error::usage(format!("'{}' is no host", self.host))),
            false => Ok(self),
        }
    }

    /// The ssh that runs a command of the program there.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command.args(SSH_OPTIONS).args(["-q", "-T"]);
        if let Some(port) = self.port {
            command.args(["-p", &port.to_string()]);
        }
        command.arg(&self.host).arg(quoted_text(&self.program));
        if let Some(config) = &self.config {
            command.args(["--config", &quoted_text(config)]);
        }
        command.args(words.iter().map(|word| quoted_text(word)));
        command.stdin(Stdio::null());
        command
    }

    /// What distinguishes it from all others.
    pub(crate) fn identity(&self) -> String {
        let port = self.port.map(|port| port.to_string()).unwrap_or_default();
        let config = self.config.as_deref().unwrap_or_default();
        [self.host.as_str(), &port, &self.program, config, &self.server].join("\n")
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server {} on {}", self.server, self.host)
    }
}

/// The exit code of a command; one that was killed has the code of a failed ssh.
pub(crate) fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or(SSH_FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_users_and_ports() {
        let of = |text: &str| host_and_port(text).ok();
        let host = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(of("backup"), host("backup", None));
        assert_eq!(of("barman@backup:2222"), host("barman@backup", Some(2222)));
        assert_eq!(of("barman@::1"), host("barman@::1", None));
        assert_eq!(of("barman@[::1]:22"), host("barman@::1", Some(22)));
        for wrong in ["", "-oProxyCommand=x", "backup:", "backup:x", "barman@", ":22"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_command_is_barmans() {
        let remote = Remote {
            host: "barman@backup".to_owned(),
            port: Some(2222),
            program: "barman".to_owned(),
            config: Some("/etc/a b.conf".to_owned()),
            server: "main".to_owned(),
        };
        let command = remote.command(&["put-wal", "main"]);
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let line = words.join(" ");
        assert!(
            line.ends_with("-q -T -p 2222 barman@backup barman --config '/etc/a b.conf' put-wal main"),
            "{line}"
        );
    }
}
