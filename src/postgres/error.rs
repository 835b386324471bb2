//! Errors between barmanfs and a PostgreSQL server.
//!
//! No message ever contains a password, a private key or the text of a connection string.

use std::fmt;
use std::io;
use std::time::Duration;

use postgres_protocol::message::backend::ErrorFields;

use fallible_iterator::FallibleIterator;

use super::tar::TarError;

/// The error of a base backup's sink. The sink defines its type.
pub(crate) type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// An error of the PostgreSQL client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The connection settings are wrong; nothing was tried.
    #[error("{message}")]
    Settings {
        /// What is wrong, and where.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// One server could not be reached, or rejected the login.
    #[error("Connection to {target} failed: {source}")]
    Connect {
        /// The server in the user's terms.
        target: String,
        /// Why.
        source: Box<Error>,
    },
    /// Every server of the connection string was tried.
    #[error("{}", attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    AllHosts {
        /// One [`Error::Connect`] for each server, in the order of the attempts; at least one.
        attempts: Vec<Error>,
    },
    /// TLS could not be set up as the settings require.
    #[error("{message}")]
    Tls {
        /// What failed.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Authentication is impossible with these settings, or the server violates its rules.
    #[error("{message}")]
    Authentication {
        /// What failed.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The server reported an error.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// The server reported an error in the middle of a base backup.
    #[error("{error}, while {during}")]
    Interrupted {
        /// What was being received.
        during: String,
        /// The error that interrupted it.
        error: Box<Error>,
    },
    /// The server closed the connection.
    #[error("The server closed the connection unexpectedly")]
    Closed,
    /// The server accepted the login, but is not of the kind that `target_session_attrs` requires.
    #[error("{0}, which target_session_attrs does not accept")]
    Unsuitable(String),
    /// The server has been silent for too long.
    #[error("{}", silent_text(silent, probe.as_deref()))]
    Silent {
        /// Time since the last data.
        silent: Duration,
        /// The reason why another connection failed; `None` if it succeeded.
        probe: Option<Box<Error>>,
    },
    /// The server did not answer in time.
    #[error("The server did not answer within {:.0} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// Reading from or writing to the connection failed.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// The server sent something that the protocol does not allow at this point.
    #[error("Unexpected data from the server: {0}")]
    Protocol(String),
    /// The server is no longer in the state of the operation's start: it is on another timeline.
    #[error("{0}")]
    ServerMoved(String),
    /// The archive in a base backup is not in PostgreSQL's form.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The receiver of a base backup failed.
    #[error(transparent)]
    Sink(SinkError),
}

impl Error {
    pub(super) fn settings(message: impl Into<String>) -> Self {
        Self::Settings {
            message: message.into(),
            hint: None,
        }
    }

    pub(super) fn protocol(message: impl Into<String>) -> Self {
        Self::Protocol(message.into())
    }

    pub(super) fn tls(message: impl Into<String>) -> Self {
        Self::Tls {
            message: message.into(),
            hint: None,
        }
    }

    pub(super) fn authentication(message: impl Into<String>) -> Self {
        Self::Authentication {
            message: message.into(),
            hint: None,
        }
    }

    /// Adds a hint, if this kind of error has one.
    pub(super) fn with_hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Settings { hint, .. } | Self::Tls { hint, .. } | Self::Authentication { hint, .. } =
            &mut self
        {
            *hint = Some(text.into());
        }
        self
    }

    /// Whether the other addresses of the same host would fail in the same way.
    pub(super) fn is_of_the_host(&self) -> bool {
        match self {
            Self::Connect { source, .. } => source.is_of_the_host(),
            Self::Unsuitable(_) => true,
            _ => false,
        }
    }

    /// The error of a base backup's receiver, if it is a `T`.
    pub(crate) fn sink<T: std::error::Error + 'static>(&self) -> Option<&T> {
        let Self::Sink(error) = self else { return None };
        // A receiver of archives passes on the errors of the receiver of the members.
        error
            .downcast_ref()
            .or_else(|| error.downcast_ref::<Self>().and_then(Self::sink))
    }

    /// The server's answer, if the error came from the server. Of several hosts, the last one that answered.
    pub(crate) fn server(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            Self::Connect { source: error, .. } | Self::Interrupted { error, .. } => error.server(),
            Self::AllHosts { attempts } => attempts.iter().rev().find_map(Self::server),
            _ => None,
        }
    }

    /// The five characters of the server's SQLSTATE, if this error came from the server.
    pub(crate) fn sqlstate(&self) -> Option<&str> {
        self.server().map(|error| error.code.as_str())
    }

    /// The hint about what to do.
    pub(crate) fn hint(&self) -> Option<&str> {
        match self {
            Self::Settings { hint, .. } | Self::Tls { hint, .. } | Self::Authentication { hint, .. } => {
                hint.as_deref()
            }
            Self::Server(error) => error.hint.as_deref().or_else(|| hint_for(&error.code)),
            Self::Connect { source: error, .. } | Self::Interrupted { error, .. } => error.hint(),
            Self::AllHosts { attempts } => attempts.iter().rev().find_map(Self::hint),
            Self::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Some(
                    "Is the server running there, and does it accept connections on that port or socket?",
                ),
                io::ErrorKind::TimedOut
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable => {
                    Some("Is that host up, and can it be reached from here: route, firewall?")
                }
                // The standard library's words for an answer of getaddrinfo, which has no kind of its own.
                _ if error.to_string().starts_with("failed to lookup address") => {
                    Some("Is the host's name right? 'getent hosts NAME' asks as barmanfs does")
                }
                _ => None,
            },
            Self::ServerMoved(_) => Some("Take the backup again"),
            Self::Closed => Some("The server's log says why"),
            _ => None,
        }
    }
}

fn silent_text(silent: &Duration, probe: Option<&Error>) -> String {
    let text = format!("The server has sent nothing for {} s", silent.as_secs());
    match probe {
        Some(error) => format!("{text}, and cannot be reached by another connection: {error}"),
        None => format!("{text}, though it answers other connections"),
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// A hint for errors for which the server itself gives none.
fn hint_for(sqlstate: &str) -> Option<&'static str> {
    match sqlstate {
        "28000" => Some(
            "Look at pg_hba.conf of the server, where a replication connection needs a line with the database \
             \"replication\", and at the role: it must exist and have the attribute LOGIN",
        ),
        "28P01" => Some("Look at the password in the connection string, PGPASSWORD or the password file"),
        "53300" => Some("Raise max_connections or max_wal_senders on the server"),
        _ => None,
    }
}

/// Maximum length of one field of a server's message.
const MAX_FIELD_BYTES: usize = 8 << 10;

/// An ErrorResponse or a NoticeResponse of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerError {
    /// `ERROR`, `FATAL`, `WARNING`, …; never translated.
    pub(crate) severity: String,
    /// The SQLSTATE.
    pub(crate) code: String,
    /// The first line.
    pub(crate) message: String,
    /// More about the problem.
    pub(crate) detail: Option<String>,
    /// The server's hint.
    pub(crate) hint: Option<String>,
}

impl ServerError {
    /// Reads the fields of a message. The text is in the server's language and may be truncated: it is only
    /// shown.
    pub(super) fn read(mut fields: ErrorFields<'_>) -> io::Result<Self> {
        let mut error = Self {
            severity: String::new(),
            code: String::new(),
            message: String::new(),
            detail: None,
            hint: None,
        };
        let mut translated_severity = String::new();
        while let Some(field) = fields.next()? {
            let bytes = field.value_bytes();
            let text = String::from_utf8_lossy(bytes.get(..MAX_FIELD_BYTES).unwrap_or(bytes)).into_owned();
            match field.type_() {
                b'S' => translated_severity = text,
                b'V' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(one_line(&text)),
                _ => {}
            }
        }
        if error.severity.is_empty() {
            error.severity = translated_severity;
        }
        Ok(error)
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} (SQLSTATE {})",
            self.severity,
            one_line(&self.message),
            self.code
        )?;
        match &self.detail {
            Some(detail) => write!(f, ": {}", one_line(detail)),
            None => Ok(()),
        }
    }
}

/// A server may send line breaks, but a log line must stay one line.
fn one_line(text: &str) -> String {
    text.split(['\n', '\r'])
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}
