//! What can go wrong between barmanfs and a PostgreSQL server.
//!
//! No message ever holds a password, a private key or the text of a connection string.

use std::fmt;
use std::io;
use std::time::Duration;

use postgres_protocol::message::backend::ErrorFields;

use fallible_iterator::FallibleIterator;

use super::tar::TarError;

/// What a sink of a base backup may fail with; its type is the sink's own.
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
    /// One server could not be reached, or did not let us in.
    #[error("Connection to {target} failed: {source}")]
    Connect {
        /// The server as the user knows it.
        target: String,
        /// Why.
        source: Box<Error>,
    },
    /// Every server of the connection string was tried.
    #[error("{}", attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    AllHosts {
        /// One [`Error::Connect`] for each, in the order they were tried; at least one.
        attempts: Vec<Error>,
    },
    /// TLS could not be set up as the settings ask.
    #[error("{message}")]
    Tls {
        /// What failed.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Authentication is impossible with the settings at hand, or the server does not keep to its rules.
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
        /// What stopped it.
        error: Box<Error>,
    },
    /// The server closed the connection.
    #[error("The server closed the connection unexpectedly")]
    Closed,
    /// The server let us in, and is not of the kind that `target_session_attrs` asks for.
    #[error("{0}, which target_session_attrs does not accept")]
    Unsuitable(String),
    /// The server has fallen silent.
    #[error("{}", silent_text(silent, probe.as_deref()))]
    Silent {
        /// How long nothing has come.
        silent: Duration,
        /// Why another connection cannot be made; `None` if it can.
        probe: Option<Box<Error>>,
    },
    /// The server said nothing for too long.
    #[error("The server did not answer within {:.0} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// Reading from or writing to the connection failed.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// The server sent something that the protocol does not allow at this point.
    #[error("Unexpected data from the server: {0}")]
    Protocol(String),
    /// The server is not where it was when the operation began.
    #[error("{0}")]
    ServerMoved(String),
    /// The archive inside a base backup is not what PostgreSQL makes.
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

    /// Adds what to do about it, where the kind of error has room for that.
    pub(super) fn with_hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Settings { hint, .. } | Self::Tls { hint, .. } | Self::Authentication { hint, .. } =
            &mut self
        {
            *hint = Some(text.into());
        }
        self
    }

    /// Whether the other addresses of the same host will say the same.
    pub(super) fn is_of_the_host(&self) -> bool {
        match self {
            Self::Connect { source, .. } => source.is_of_the_host(),
            Self::Unsuitable(_) => true,
            _ => false,
        }
    }

    /// What the receiver of a base backup failed with, where that is a `T`.
    pub(crate) fn sink<T: std::error::Error + 'static>(&self) -> Option<&T> {
        let Self::Sink(error) = self else { return None };
        // A receiver that parses archives hands on the errors of what receives their members.
        error
            .downcast_ref()
            .or_else(|| error.downcast_ref::<Self>().and_then(Self::sink))
    }

    /// What the server said, if this error came from the server. Of several hosts: the last that answered.
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

    /// What to do about it.
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

/// What helps where the server itself gives no hint.
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

/// The most that is kept of one field of a message of the server.
const MAX_FIELD_BYTES: usize = 8 << 10;

/// An ErrorResponse or a NoticeResponse of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerError {
    /// `ERROR`, `FATAL`, `WARNING`, … never translated.
    pub(crate) severity: String,
    /// The SQLSTATE.
    pub(crate) code: String,
    /// The first line.
    pub(crate) message: String,
    /// More about the problem.
    pub(crate) detail: Option<String>,
    /// What the server proposes to do.
    pub(crate) hint: Option<String>,
}

impl ServerError {
    /// Reads the fields of a message. The text is in the server's language and may be cut: it is only shown.
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

/// A server may send line breaks; a log line must stay one.
fn one_line(text: &str) -> String {
    text.split(['\n', '\r'])
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}
