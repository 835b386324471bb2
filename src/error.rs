//! The error that ends a command: what is wrong, what to do about it, and the exit code.

use std::fmt;

use barmanfs_catalog::InvalidName;
use barmanfs_store::threads::NoThread;

/// Exit codes. `get-wal` and `wal-restore` add [`TROUBLE`](exit::TROUBLE) to that of every failure.
pub(crate) mod exit {
    /// Done.
    pub(crate) const OK: u8 = 0;
    /// Failed.
    pub(crate) const FAILED: u8 = 1;
    /// `get-wal`: the file is proven to be absent. No other result of that command has this code.
    pub(crate) const ABSENT: u8 = 1;
    /// Wrong usage or configuration.
    pub(crate) const USAGE: u8 = 2;
    /// Done, and problems were found: damage, or a failed check.
    pub(crate) const PROBLEMS: u8 = 3;
    /// `check --nagios`: something is critical.
    pub(crate) const NAGIOS_CRITICAL: u8 = 2;
    /// PostgreSQL interprets exit codes 1 to 125 of a `restore_command` as "the archive does not have the file" and
    /// ends recovery there. So every failure must have a code above that.
    pub(crate) const TROUBLE: u8 = 200;
    /// A bug. The panic's message is on standard error.
    pub(crate) const PANICKED: u8 = 101;
    /// The code that a shell reports for a program that wrote into a closed pipe.
    pub(crate) const CLOSED_PIPE: u8 = 141;
}

/// The result of a command that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is well.
    Done,
    /// The command did its work, and found problems.
    Problems,
    /// The archive was read and does not have the file.
    Absent,
    /// The requested target cannot be reached. The reason has been printed.
    Unreachable,
    /// The result has been printed already. This is the exit code.
    Told(u8),
}

impl Outcome {
    /// The exit code of the process.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => exit::OK,
            Self::Problems => exit::PROBLEMS,
            Self::Absent => exit::ABSENT,
            Self::Unreachable => exit::FAILED,
            Self::Told(code) => code,
        }
    }
}

/// The kind of a failure. It determines the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The work could not be done.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// Nobody reads the output any more: nothing is printed.
    ClosedPipe,
}

/// Why a command failed.
#[derive(Debug, Clone)]
pub(crate) struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    /// Where the kind does not determine the exit code.
    code: Option<u8>,
}

impl Error {
    /// The work could not be done.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Failed,
            message: message.into(),
            hint: None,
            code: None,
        }
    }

    /// The command line or the configuration is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Usage,
            message: message.into(),
            hint: None,
            code: None,
        }
    }

    /// The same for one of several servers: the command line was right, and the work for the others is done.
    pub(crate) fn into_failure(self) -> Self {
        let kind = match self.kind {
            Kind::Usage => Kind::Failed,
            other => other,
        };
        Self { kind, ..self }
    }

    /// Adds a hint about what to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Gives it an exit code of its own: that of a program on another host, or one that Barman's clients have.
    pub(crate) fn with_code(self, code: u8) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }

    /// Puts the action that failed before the message.
    pub(crate) fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// Names the server, unless the message does.
    pub(crate) fn of_server(self, server: &str) -> Self {
        match self.message.contains(server) {
            true => self,
            false => self.context(format_args!("Server {server}")),
        }
    }

    /// Replaces a path that only this process understands by the one that a person knows.
    pub(crate) fn with_name(mut self, path: &str, name: &str) -> Self {
        self.message = self.message.replace(path, name);
        self.hint = self.hint.map(|hint| hint.replace(path, name));
        self
    }

    /// See [`Kind`].
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The hint about what to do. Where a limit of this process is reached, that is the cause, whatever failed by it.
    pub(crate) fn hint_text(&self) -> Option<&str> {
        reached_limit(&self.message).or(self.hint.as_deref())
    }

    /// The exit code of the process.
    pub(crate) fn code(&self) -> u8 {
        self.code.unwrap_or(match self.kind {
            Kind::Failed => exit::FAILED,
            Kind::Usage => exit::USAGE,
            Kind::ClosedPipe => exit::CLOSED_PIPE,
        })
    }

    /// A failure to write to standard output.
    pub(crate) fn output(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self {
                kind: Kind::ClosedPipe,
                message: String::new(),
                hint: None,
                code: None,
            },
            _ => Self::failed(format!("Cannot write to standard output: {error}")),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The limits that the numbers of errors stand for: EMFILE, ENFILE, ENOMEM.
fn reached_limit(message: &str) -> Option<&'static str> {
    const LIMITS: [(&str, &str); 3] = [
        (
            "(os error 24)",
            "The limit of open files of this process is reached: raise it (ulimit -n; LimitNOFILE= of a service)",
        ),
        (
            "(os error 23)",
            "The limit of open files of this host is reached: raise fs.file-max, or see what has them open (lsof)",
        ),
        (
            "(os error 12)",
            "Memory is short: see the limits of this process (ulimit -v; MemoryMax= of a service) and of this host",
        ),
    ];
    let reached = LIMITS.iter().find(|(number, _)| message.contains(number));
    reached.map(|(_, hint)| *hint)
}

/// An error's own text, followed by those of its sources that it does not already contain.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

impl From<barmanfs_catalog::Error> for Error {
    fn from(error: barmanfs_catalog::Error) -> Self {
        use barmanfs_catalog::Error as Catalog;
        let hint = match &error {
            Catalog::NoRepository { .. } => {
                "Is its file system mounted? If there never was one, 'barmanfs init' creates it"
            }
            Catalog::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                "Run this as the user the repository belongs to"
            }
            // Refused rather than stored again: its file system may not be mounted.
            Catalog::Store(barmanfs_store::Error::MissingPack(_)) => {
                "Is its file system mounted? Put it back from a copy of the repository, or give up what it holds with \
                 'barmanfs rebuild-catalog'; after that full backups store it again"
            }
            damage if damage.is_damage() => {
                "Run 'barmanfs verify': it reports what is damaged, and full backups store that again from then on"
            }
            Catalog::BadWalFile { .. } => "Is it the file the server wrote, and complete?",
            Catalog::Name(InvalidName::Server(_) | InvalidName::Backup(_) | InvalidName::BackupName(_)) => {
                return Self::usage(chain(&error));
            }
            _ => return Self::failed(chain(&error)),
        };
        Self::failed(chain(&error)).hint(hint)
    }
}

impl From<InvalidName> for Error {
    fn from(error: InvalidName) -> Self {
        barmanfs_catalog::Error::from(error).into()
    }
}

impl From<barmanfs_store::Error> for Error {
    fn from(error: barmanfs_store::Error) -> Self {
        barmanfs_catalog::Error::from(error).into()
    }
}

impl From<NoThread> for Error {
    fn from(error: NoThread) -> Self {
        barmanfs_store::Error::from(error).into()
    }
}

impl From<barmanfs_fs::Error> for Error {
    fn from(error: barmanfs_fs::Error) -> Self {
        match error {
            barmanfs_fs::Error::Catalog(error) => error.into(),
            barmanfs_fs::Error::Store(error) => error.into(),
            other => Self::failed(chain(&other)),
        }
    }
}

impl From<barmanfs_live::Error> for Error {
    fn from(error: barmanfs_live::Error) -> Self {
        match error {
            barmanfs_live::Error::Store(error) => error.into(),
            other => Self::failed(chain(&other)),
        }
    }
}

impl From<crate::postgres::Error> for Error {
    fn from(error: crate::postgres::Error) -> Self {
        // The receiver of a base backup failed, not the client: what helps is known of its error.
        if let Some(error) = error.sink::<barmanfs_catalog::Error>() {
            return error.clone().into();
        }
        if let Some(error) = error.sink::<barmanfs_store::Error>() {
            return error.clone().into();
        }
        let failed = match &error {
            crate::postgres::Error::Settings { .. } => Self::usage(chain(&error)),
            _ => Self::failed(chain(&error)),
        };
        match error.hint() {
            Some(hint) => failed.hint(hint),
            None => failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("Outer trouble")]
    struct Outer(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("Outer trouble: {0}")]
    struct Telling(#[source] std::io::Error);

    /// The kind: a limit of the process is taken for a fault of the server or of a file.
    #[test]
    fn a_limit_that_is_reached_is_the_hint_whatever_failed_by_it() {
        let failed = |number: i32| {
            let error = std::io::Error::from_raw_os_error(number);
            Error::failed(format!("Connection failed: {error}")).hint("Is the server running?")
        };
        for (number, said) in [
            (24, "ulimit -n"),
            (23, "fs.file-max"),
            (12, "MemoryMax="),
            (111, "Is the server running?"),
        ] {
            let error = failed(number);
            assert!(
                error.hint_text().is_some_and(|hint| hint.contains(said)),
                "{number}: {error:?}"
            );
        }
    }

    #[test]
    fn each_source_of_an_error_is_shown_once() {
        assert_eq!(
            chain(&Outer(std::io::Error::other("inner"))),
            "Outer trouble: inner"
        );
        assert_eq!(
            chain(&Telling(std::io::Error::other("inner"))),
            "Outer trouble: inner"
        );
    }

    #[test]
    fn what_helps_is_known_of_the_error_of_a_receiver() {
        let missing = barmanfs_store::Error::MissingPack(barmanfs_store::PackId([1; 16]));
        let catalog = barmanfs_catalog::Error::from(missing.clone());
        for of_the_member in [crate::postgres::SinkError::from(missing), catalog.into()] {
            let member = crate::postgres::Error::Sink(of_the_member);
            let error = Error::from(crate::postgres::Error::Sink(member.into()));
            let hint = error.hint_text().unwrap();
            assert!(hint.starts_with("Is its file system mounted?"), "{hint}");
        }
    }

    #[test]
    fn kinds_have_their_exit_codes() {
        assert_eq!(Error::failed("x").code(), 1);
        assert_eq!(Error::usage("x").code(), 2);
        let closed = Error::output(&std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(closed.code(), 141);
        assert_eq!(Error::failed("b").context("a").to_string(), "a: b");
    }
}
