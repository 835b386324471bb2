//! One session with a server: queries, their results, notices, and the messages of a stream.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::backend::{
    Message, NOTICE_RESPONSE_TAG, NOTIFICATION_RESPONSE_TAG, PARAMETER_STATUS_TAG,
};
use postgres_protocol::message::frontend;

use barmanfs_pg::ServerVersion;

use super::Error;
use super::auth::Exchange;
use super::connect;
use super::conninfo::{Conninfo, HostSpec};
use super::error::ServerError;
use super::refusal;
use super::result_set::{self, ResultSet};
use super::silence::{self, Silence};
use super::stream::{Deadline, Interrupter, Stream};
use super::wire::{Frame, FrameBuffer};

/// The purpose of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Replication commands; no SQL.
    Replication,
    /// SQL in the database of the settings.
    Sql,
}

/// Maximum size of a result set. All requested ones have a few rows.
const MAX_RESULT_BYTES: usize = 64 << 20;

/// Maximum number of warnings kept for one operation. All are logged.
const MAX_KEPT_WARNINGS: usize = 1000;

/// Time limit for a query and its complete answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Maximum number of settings that a server reports by itself; usually a dozen, and a few from extensions. More or
/// longer ones are ignored.
const MAX_PARAMETERS: usize = 100;
const MAX_PARAMETER_BYTES: usize = 1000;

/// Maximum number of unrequested messages to skip while waiting for one. A server that sends nothing else is broken.
const MAX_ASIDES: usize = 100_000;

/// Memory for a value in addition to its bytes.
const VALUE_BYTES: usize = size_of::<Option<Vec<u8>>>();

/// NegotiateProtocolVersion, which `postgres-protocol` does not support. It means that the server is older than the
/// client. This client uses the oldest version and requests nothing optional, so there is nothing to negotiate.
const NEGOTIATE_PROTOCOL_VERSION_TAG: u8 = b'v';

/// A session with a server. When it is dropped, it sends a message that ends the session.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    incoming: FrameBuffer,
    /// The server, for messages.
    target: String,
    mode: Mode,
    /// Settings that lead to this server and to no other.
    settings: Conninfo,
    parameters: BTreeMap<String, String>,
    /// Whether the server is waiting for a query.
    ready: bool,
    silence: Silence,
    /// The current or last query, for messages.
    query: String,
    warnings: Vec<ServerError>,
    temporary_slot: Option<String>,
}

impl Connection {
    /// Connects to the first server of the settings that accepts the login.
    ///
    /// # Errors
    /// Names the reason for each server.
    pub(crate) fn connect(conninfo: &Conninfo, mode: Mode) -> Result<Self, Error> {
        connect::connect(conninfo, mode)
    }

    /// Sends the start-up message on a fresh stream.
    pub(super) fn begin(
        stream: Stream,
        host: HostSpec,
        conninfo: &Conninfo,
        mode: Mode,
    ) -> Result<Self, Error> {
        let mut parameters = vec![("user", conninfo.user.as_str())];
        match (mode, conninfo.dbname.as_deref()) {
            (Mode::Replication, _) => parameters.push(("replication", "true")),
            (Mode::Sql, Some(name)) => parameters.push(("database", name)),
            (Mode::Sql, None) => parameters.push(("database", &conninfo.user)),
        }
        parameters.push(("application_name", &conninfo.application_name));
        parameters.push(("client_encoding", "UTF8"));
        parameters.extend(conninfo.options.as_deref().map(|options| ("options", options)));
        let mut message = BytesMut::new();
        frontend::startup_message(parameters, &mut message)
            .map_err(|_| Error::settings("A connection setting has a NUL in it"))?;
        let mut connection = Self {
            stream,
            incoming: FrameBuffer::new(),
            target: host.to_string(),
            mode,
            settings: conninfo.only(host),
            parameters: BTreeMap::new(),
            ready: false,
            silence: Silence::default(),
            query: String::new(),
            warnings: Vec::new(),
            temporary_slot: None,
        };
        connection.send(&message)?;
        Ok(connection)
    }

    /// Waits until the server is ready for the first query.
    pub(super) fn await_ready(&mut self) -> Result<(), Error> {
        loop {
            match self.receive()? {
                Message::ReadyForQuery(_) => break,
                Message::BackendKeyData(_) => {}
                _ => return Err(Error::protocol("a message that is no part of start-up")),
            }
        }
        self.ready = true;
        Ok(())
    }

    /// Another connection of the same kind to the same server: only to the host and address that this connection uses.
    /// The server process gets `options` in addition to its usual ones.
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub(crate) fn another(&self, options: Option<&str>) -> Result<Self, Error> {
        let mut settings = self.settings.clone();
        if let Some(options) = options {
            let usual = settings.options.take().unwrap_or_default();
            settings.options = Some(format!("{usual} {options}").trim_start().to_owned());
        }
        Self::connect(&settings, self.mode)
    }

    /// The server of this connection, for messages.
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// Whether the server is on this host: the connection is a Unix socket.
    pub(crate) fn is_local(&self) -> bool {
        self.stream.is_local()
    }

    /// Whether the connection is encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.stream.is_encrypted()
    }

    /// The slot that was created for the life of this connection. `None` if a command has failed since, because the
    /// server then drops the slot.
    pub(crate) fn temporary_slot(&self) -> Option<&str> {
        self.temporary_slot.as_deref()
    }

    pub(super) fn keep_temporary_slot(&mut self, name: &str) {
        self.temporary_slot = Some(name.to_owned());
    }

    /// A setting that the server has reported, such as `server_encoding` or `TimeZone`.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Whether the server is waiting for a command. False after an error in the middle of something.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// The server's version.
    ///
    /// # Errors
    /// If the server reported no version that can be parsed.
    pub(crate) fn server_version(&self) -> Result<ServerVersion, Error> {
        let text = self.parameter("server_version").unwrap_or_default();
        parse_version(text)
            .ok_or_else(|| Error::protocol(format!("the server version \"{}\"", text.escape_debug())))
    }

    /// Whether the server is a standby.
    pub(crate) fn is_in_recovery(&mut self) -> Result<bool, Error> {
        // The server reports this from PostgreSQL 14 on.
        if let Some(standby) = self.parameter("in_hot_standby") {
            return Ok(standby == "on");
        }
        match self.mode {
            Mode::Sql => {
                let result = self.one_result("SELECT pg_catalog.pg_is_in_recovery()::text AS standby")?;
                Ok(result.text(0, "standby") == Some("true"))
            }
            // In recovery every transaction is read-only, regardless of the configuration.
            Mode::Replication => Ok(self.show("transaction_read_only")? == "on"
                && self.show("default_transaction_read_only")? != "on"),
        }
    }

    /// Whether this session cannot change anything.
    pub(super) fn is_read_only(&mut self) -> Result<bool, Error> {
        match self.parameter("default_transaction_read_only") {
            Some("on") => Ok(true),
            Some(_) => self.is_in_recovery(),
            None => Ok(self.show("transaction_read_only")? == "on"),
        }
    }

    /// Limits how long the server may be silent. By default there is no such limit: then a wait lasts as long as the
    /// server answers other connections, up to the limit of [`Connection::set_patience`].
    pub(crate) fn set_read_timeout(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.silence.is_watched = timeout.is_none();
        self.stream
            .set_read_timeout(Some(timeout.unwrap_or(silence::LOOK_EVERY)))
            .map_err(Error::Io)
    }

    /// How long the server may be silent without another limit, even if it answers other connections; `None` is half an
    /// hour.
    pub(crate) fn set_patience(&mut self, patience: Option<Duration>) {
        self.silence.patience = patience.unwrap_or(silence::PATIENCE);
    }

    /// A handle that ends this connection from another thread.
    pub(crate) fn interrupter(&self) -> Result<Interrupter, Error> {
        self.stream.interrupter().map_err(Error::Io)
    }

    /// Runs statements and collects their results: one result set for each that returns rows.
    ///
    /// # Errors
    /// [`Error::Server`] if a statement fails; the connection can be used again after that.
    pub(crate) fn simple_query(&mut self, text: &str) -> Result<Vec<ResultSet>, Error> {
        // A limit for a single read is shorter than the limit for a whole answer.
        let set = self.stream.read_timeout().filter(|_| !self.silence.is_watched);
        let limit = set.map_or(ANSWER_WITHIN, |set| set.min(ANSWER_WITHIN));
        self.within(limit, |connection| connection.run(text))
    }

    /// The same with another limit, for a statement that takes long.
    ///
    /// # Errors
    /// As [`simple_query`](Self::simple_query).
    pub(crate) fn query_within(&mut self, limit: Duration, text: &str) -> Result<Vec<ResultSet>, Error> {
        let usual = self.stream.read_timeout().filter(|_| !self.silence.is_watched);
        self.set_read_timeout(Some(limit))?;
        let results = self.within(limit, |connection| connection.run(text));
        self.set_read_timeout(usual)?;
        results
    }

    /// Does something within a time limit, unless there is a deadline already.
    pub(super) fn within<T>(
        &mut self,
        limit: Duration,
        work: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.stream.deadline().is_some() {
            return work(self);
        }
        self.set_deadline(Some(Deadline::after(limit)))?;
        let done = work(self);
        self.set_deadline(None)?;
        done
    }

    fn run(&mut self, text: &str) -> Result<Vec<ResultSet>, Error> {
        self.start_query(text)?;
        let mut results = Vec::new();
        loop {
            match self.read_result()? {
                Answer::Rows(rows) => results.push(rows),
                Answer::Done => {}
                Answer::Ready => return Ok(results),
            }
        }
    }

    /// Runs a statement that returns exactly one result set.
    pub(super) fn one_result(&mut self, text: &str) -> Result<ResultSet, Error> {
        let mut results = self.simple_query(text)?;
        match (results.pop(), results.is_empty()) {
            (Some(only), true) => Ok(only),
            _ => Err(Error::protocol("not exactly one result for a command")),
        }
    }

    /// Sends a query. The caller has to read the answer.
    pub(super) fn start_query(&mut self, text: &str) -> Result<(), Error> {
        if !self.ready {
            return Err(Error::protocol(
                "the connection is in the middle of something else",
            ));
        }
        self.warnings.clear();
        refusal::excerpt(text).clone_into(&mut self.query);
        let mut message = BytesMut::new();
        frontend::query(text, &mut message).map_err(|_| Error::settings("A query has a NUL in it"))?;
        self.ready = false;
        self.send(&message)
    }

    /// Reads one part of the answer to a query. After an error of the server, it reads the rest, too.
    pub(super) fn read_result(&mut self) -> Result<Answer, Error> {
        let first = self.receive_in_query()?;
        self.read_result_from(first)
    }

    /// The same, beginning with the last received message.
    pub(super) fn read_current_result(&mut self) -> Result<Answer, Error> {
        let first = self.decode_current()?;
        self.read_result_from(first)
    }

    fn read_result_from(&mut self, mut message: Message) -> Result<Answer, Error> {
        let mut result: Option<ResultSet> = None;
        let mut held_bytes = 0_usize;
        loop {
            match message {
                Message::RowDescription(body) => result = Some(ResultSet::begin(&body)?),
                Message::DataRow(body) => {
                    let row = result_set::row(&body)?;
                    let values = (row.len() + 1).saturating_mul(VALUE_BYTES);
                    held_bytes = held_bytes
                        .saturating_add(body.buffer().len())
                        .saturating_add(values);
                    let result = result.as_mut().filter(|_| held_bytes <= MAX_RESULT_BYTES);
                    let result =
                        result.ok_or_else(|| Error::protocol("a row out of place, or far too many"))?;
                    result.push(row);
                }
                Message::CommandComplete(_) | Message::EmptyQueryResponse => {
                    return Ok(result.map_or(Answer::Done, Answer::Rows));
                }
                Message::ReadyForQuery(_) => {
                    self.ready = true;
                    return Ok(Answer::Ready);
                }
                _ => return Err(Error::protocol("a message that is no part of a result")),
            }
            message = self.receive_in_query()?;
        }
    }

    /// The next message for the caller. An error of the server ends the query.
    pub(super) fn receive_in_query(&mut self) -> Result<Message, Error> {
        match self.receive() {
            Err(error @ Error::Server(_)) => {
                self.end_failed_query();
                Err(error)
            }
            other => other,
        }
    }

    /// After an error, the server skips to the end of the query, and so does this. If it fails, the connection is over;
    /// the next query will report that, because the present error is more important.
    fn end_failed_query(&mut self) {
        self.temporary_slot = None;
        while let Ok(message) = self.receive() {
            if matches!(message, Message::ReadyForQuery(_)) {
                self.ready = true;
                return;
            }
        }
    }

    /// Like [`Connection::next_frame`], but decoded. Error messages of the server become errors.
    pub(super) fn receive(&mut self) -> Result<Message, Error> {
        self.next_frame()?;
        self.decode_current()
    }

    fn decode_current(&self) -> Result<Message, Error> {
        match self.incoming.current().decode()? {
            Message::ErrorResponse(body) => {
                let mut error =
                    ServerError::read(body.fields()).map_err(|_| Error::protocol("a malformed error"))?;
                if error.hint.is_none() {
                    error.hint = refusal::hint(&error.code, &self.query, self.mode, &self.settings);
                }
                Err(Error::Server(Box::new(error)))
            }
            message => Ok(message),
        }
    }

    /// Converts the current message, an error, into an error, and ends the query.
    pub(super) fn fail_query(&mut self) -> Error {
        let error = self.decode_current().err();
        self.end_failed_query();
        error.unwrap_or_else(|| Error::protocol("an error that is none"))
    }

    /// The next message, lent out of the buffer, except notices, changed parameters and notifications. Error messages
    /// are returned like all others.
    pub(super) fn next_frame(&mut self) -> Result<Frame<'_>, Error> {
        for _ in 0..MAX_ASIDES {
            match self.advance()? {
                NOTICE_RESPONSE_TAG | PARAMETER_STATUS_TAG => self.handle_aside()?,
                NOTIFICATION_RESPONSE_TAG | NEGOTIATE_PROTOCOL_VERSION_TAG => {}
                _ => return Ok(self.incoming.current()),
            }
        }
        Err(Error::protocol("notices without end"))
    }

    /// Goes on to the next message. This may take any time as long as all is well.
    fn advance(&mut self) -> Result<u8, Error> {
        self.silence.begin(self.incoming.received_bytes());
        loop {
            let error = match self.incoming.advance(&mut self.stream) {
                Ok(tag) => return Ok(tag),
                Err(error) => self.explain_timeout(error),
            };
            let waits_on = self.silence.is_watched && self.stream.deadline().is_none();
            if !waits_on || !matches!(error, Error::Timeout(_)) {
                return Err(error);
            }
            self.look_after_server()?;
        }
    }

    /// Checks whether the server still answers, after it has been silent for a while.
    fn look_after_server(&mut self) -> Result<(), Error> {
        if self.silence.has_heard(self.incoming.received_bytes()) {
            return Ok(());
        }
        let mut settings = self.settings.clone();
        settings.connect_timeout = Some(silence::PROBE_WITHIN);
        let probe = connect::connect(&settings, self.mode).map(drop);
        self.silence.judge(&self.target, probe)
    }

    /// The last received message.
    pub(super) fn current_frame(&self) -> Frame<'_> {
        self.incoming.current()
    }

    /// Whether the next message has begun to arrive.
    pub(super) fn has_incoming(&mut self) -> Result<bool, Error> {
        Ok(self.incoming.has_more() || self.stream.is_readable()?)
    }

    fn explain_timeout(&self, error: Error) -> Error {
        match &error {
            Error::Io(inner)
                if matches!(inner.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                let whole = self.stream.deadline().map(|deadline| deadline.whole());
                let whole = whole.or_else(|| self.stream.read_timeout());
                whole.map_or(error, Error::Timeout)
            }
            _ => error,
        }
    }

    /// Handles a message that the server may send at any time.
    fn handle_aside(&mut self) -> Result<(), Error> {
        let malformed = |_| Error::protocol("a malformed notice or parameter");
        match self.incoming.current().decode()? {
            Message::NoticeResponse(body) => {
                let notice = ServerError::read(body.fields()).map_err(malformed)?;
                if notice.severity != "WARNING" {
                    tracing::info!("The {} says: {notice}", self.target);
                    return Ok(());
                }
                tracing::warn!("The {} says: {notice}", self.target);
                if self.warnings.len() < MAX_KEPT_WARNINGS {
                    self.warnings.push(notice);
                }
            }
            Message::ParameterStatus(body) => {
                let (name, value) = (body.name().map_err(malformed)?, body.value().map_err(malformed)?);
                let has_room = self.parameters.len() < MAX_PARAMETERS || self.parameters.contains_key(name);
                if has_room && name.len() + value.len() <= MAX_PARAMETER_BYTES {
                    self.parameters.insert(name.to_owned(), value.to_owned());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The server's warnings since the last query began, at most [`MAX_KEPT_WARNINGS`].
    pub(super) fn take_warnings(&mut self) -> Vec<ServerError> {
        std::mem::take(&mut self.warnings)
    }

    /// Sets a deadline for all further reads together.
    pub(super) fn set_deadline(&mut self, deadline: Option<Deadline>) -> Result<(), Error> {
        self.stream.set_deadline(deadline).map_err(Error::Io)
    }
}

impl Exchange for Connection {
    fn receive(&mut self) -> Result<Message, Error> {
        Self::receive(self)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let sent = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
        sent.map_err(|error| self.explain_timeout(error.into()))
    }

    fn stream(&self) -> &Stream {
        &self.stream
    }
}

impl Drop for Connection {
    /// Avoids a "connection reset" in the server's log. It does not matter whether the message arrives.
    fn drop(&mut self) {
        if self.ready {
            let mut message = BytesMut::new();
            frontend::terminate(&mut message);
            let _may_be_gone = self.send(&message);
        }
    }
}

/// One part of the answer to a query.
#[derive(Debug)]
pub(super) enum Answer {
    /// A statement that returned rows.
    Rows(ResultSet),
    /// A statement that returned none.
    Done,
    /// All statements have ended.
    Ready,
}

/// Parses `server_version` in the server's forms: "15.18 (Debian 15.18-0+deb12u1)", "19beta1", "9.6.24".
fn parse_version(text: &str) -> Option<ServerVersion> {
    let number = text.split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
    let mut parts = number.split('.').map(str::parse::<u32>);
    let major = parts.next()?.ok().filter(|major| (1..1000).contains(major))?;
    let mut next = || {
        parts
            .next()
            .and_then(Result::ok)
            .filter(|&part| part < 100)
            .unwrap_or(0)
    };
    Some(ServerVersion(match major {
        10.. => major * 10_000 + next(),
        _ => major * 10_000 + next() * 100 + next(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_servers_show_them() {
        let cases = [
            ("15.18 (Debian 15.18-0+deb12u1)", Some(150_018)),
            ("18.4", Some(180_004)),
            ("19beta1", Some(190_000)),
            ("9.6.24", Some(90_624)),
            ("", None),
            ("EnterpriseDB", None),
            ("99999999999999", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_version(text).map(|version| version.0), expected, "{text}");
        }
    }
}
