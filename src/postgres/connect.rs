//! From connection settings to a session on a server: hosts, addresses, TLS, start-up.
//!
//! The rules are libpq's. Hosts are tried in their order, each with all its addresses, until one accepts the login and
//! is of the requested kind.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::auth;
use super::connection::{Connection, Mode};
use super::conninfo::{Conninfo, Host, HostSpec, Keepalives, SslMode, TargetSession};
use super::stream::{Deadline, Socket, Stream};
use super::{Error, tls};

/// The server's SQLSTATE for "no line in `pg_hba.conf`". The answer may differ with and without TLS.
const INVALID_AUTHORIZATION: &str = "28000";

/// The server's SQLSTATE when it starts or stops, or is a standby that does not accept connections.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// Time limit of a login at one address, if the settings have none. Servers themselves end a login after a minute
/// (`authentication_timeout`).
const CONNECT_WITHIN: Duration = Duration::from_secs(60);

/// When the kernel checks whether the other host still answers, if the settings do not specify it. A dead host is
/// noticed after two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 6;

/// Tries the hosts one after the other.
///
/// As with libpq, a host that answers but rejects the login ends the search: the next one would reject the same role.
pub(super) fn connect(conninfo: &Conninfo, mode: Mode) -> Result<Connection, Error> {
    let mut hosts: Vec<&HostSpec> = conninfo.hosts.iter().collect();
    if conninfo.load_balance {
        fastrand::shuffle(&mut hosts);
    }
    let passes: &[TargetSession] = match &conninfo.target_session {
        TargetSession::PreferStandby => &[TargetSession::Standby, TargetSession::Any],
        one => std::slice::from_ref(one),
    };
    let mut attempts = Vec::new();
    for &wanted in passes {
        attempts.clear();
        for host in &hosts {
            let plan = Plan {
                conninfo,
                mode,
                wanted,
            };
            if let Some(connection) = plan.try_host(host, &mut attempts) {
                return Ok(connection);
            }
            if attempts.last().is_some_and(ends_the_search) {
                return Err(all(attempts));
            }
        }
    }
    Err(all(attempts))
}

fn all(mut attempts: Vec<Error>) -> Error {
    match (attempts.pop(), attempts.is_empty()) {
        (Some(only), true) => only,
        (Some(last), false) => {
            attempts.push(last);
            Error::AllHosts { attempts }
        }
        (None, _) => Error::settings("No host to connect to"),
    }
}

/// Whether the server has answered and rejected the login.
fn ends_the_search(error: &Error) -> bool {
    match error {
        Error::Connect { source, .. } => ends_the_search(source),
        Error::Server(answer) => answer.code != CANNOT_CONNECT_NOW,
        Error::Authentication { .. } => true,
        _ => false,
    }
}

/// Whether one attempt uses TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Off,
    /// Continue without TLS if the server has none.
    IfOffered,
    Required,
}

/// The part of an attempt that is the same for every host.
struct Plan<'a> {
    conninfo: &'a Conninfo,
    mode: Mode,
    wanted: TargetSession,
}

impl Plan<'_> {
    /// Tries the addresses of a host. Adds failures to the attempts.
    fn try_host(&self, host: &HostSpec, attempts: &mut Vec<Error>) -> Option<Connection> {
        let failed = |place: &HostSpec, error: Error| Error::Connect {
            target: place.to_string(),
            source: Box::new(error),
        };
        let places = match places(host, self.conninfo.load_balance) {
            Ok(places) => places,
            Err(error) => {
                attempts.push(failed(host, error));
                return None;
            }
        };
        for (place, address) in places {
            let error = match self.try_place(&place, address) {
                Ok(connection) => return Some(connection),
                Err(error) => failed(&place, error),
            };
            let is_enough = ends_the_search(&error) || error.is_of_the_host();
            attempts.push(error);
            if is_enough {
                break;
            }
        }
        None
    }

    fn try_place(&self, place: &HostSpec, address: Option<SocketAddr>) -> Result<Connection, Error> {
        let whole = self.conninfo.connect_timeout.unwrap_or(CONNECT_WITHIN);
        let deadline = Deadline::after(whole);
        let attempt = |encryption| self.connect_once(place, address, encryption, deadline);
        if !matches!(place.host, Host::Tcp { .. }) {
            return attempt(Encryption::Off);
        }
        match self.conninfo.tls.mode {
            SslMode::Disable => attempt(Encryption::Off),
            SslMode::Allow => {
                attempt(Encryption::Off).or_else(|error| match is_worth_the_other_way(&error) {
                    true => attempt(Encryption::Required),
                    false => Err(error),
                })
            }
            SslMode::Prefer => {
                attempt(Encryption::IfOffered).or_else(|error| match is_worth_the_other_way(&error) {
                    true => {
                        tracing::debug!("Trying again without TLS: {error}");
                        attempt(Encryption::Off)
                    }
                    false => Err(error),
                })
            }
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => attempt(Encryption::Required),
        }
    }

    fn connect_once(
        &self,
        place: &HostSpec,
        address: Option<SocketAddr>,
        encryption: Encryption,
        deadline: Deadline,
    ) -> Result<Connection, Error> {
        let conninfo = self.conninfo;
        let socket = match &place.host {
            Host::Tcp { .. } => {
                let socket = connect_tcp(address.ok_or_else(no_address)?, deadline)?;
                set_socket_options(&socket, &conninfo.keepalives)?;
                Socket::tcp(socket)
            }
            Host::Directory(path) => {
                let address = SocketAddrUnix::new(path.join(place.socket_name()));
                Socket::unix(connect_unix(address, deadline)?)
            }
            Host::Abstract(name) => {
                let name = format!("{name}/{}", place.socket_name());
                Socket::unix(connect_unix(
                    SocketAddrUnix::new_abstract_name(name.as_bytes()),
                    deadline,
                )?)
            }
        };
        let mut socket = socket.map_err(Error::Io)?;
        socket.set_deadline(Some(deadline)).map_err(Error::Io)?;
        let timed = |error| timed_out(error, deadline);
        let stream = encrypt(socket, conninfo, place, encryption).map_err(timed)?;
        if let (Some(user), Some(wanted)) = (stream.peer_user(), &conninfo.require_peer) {
            check_peer(user, wanted)?;
        }
        let mut connection = Connection::begin(stream, place.clone(), conninfo, self.mode).map_err(timed)?;
        auth::authenticate(&mut connection, conninfo, place, self.mode == Mode::Replication)?;
        connection.await_ready()?;
        check_session(&mut connection, self.wanted)?;
        connection.set_deadline(None)?;
        connection.set_read_timeout(None)?;
        Ok(connection)
    }
}

/// The host once for each of its addresses, if it has addresses.
fn places(host: &HostSpec, shuffled: bool) -> Result<Vec<(HostSpec, Option<SocketAddr>)>, Error> {
    let name = match &host.host {
        Host::Tcp {
            address: Some(address),
            ..
        } => return Ok(vec![(host.clone(), Some(SocketAddr::new(*address, host.port)))]),
        Host::Tcp { name, address: None } => name.clone().unwrap_or_default(),
        Host::Directory(_) | Host::Abstract(_) => return Ok(vec![(host.clone(), None)]),
    };
    let found = (name.as_str(), host.port).to_socket_addrs().map_err(Error::Io)?;
    let mut addresses: Vec<SocketAddr> = found.collect();
    addresses.dedup();
    if shuffled {
        fastrand::shuffle(&mut addresses);
    }
    let place = |address: SocketAddr| {
        let place = HostSpec {
            host: Host::Tcp {
                name: Some(name.clone()),
                address: Some(address.ip()),
            },
            port: host.port,
        };
        (place, Some(address))
    };
    match addresses.is_empty() {
        true => Err(no_address()),
        false => Ok(addresses.into_iter().map(place).collect()),
    }
}

fn no_address() -> Error {
    Error::Io(std::io::Error::new(
        std::io::ErrorKind::AddrNotAvailable,
        "the host name has no address",
    ))
}

/// Whether the same server may answer differently with the other choice of TLS.
fn is_worth_the_other_way(error: &Error) -> bool {
    matches!(error, Error::Tls { .. }) || error.sqlstate() == Some(INVALID_AUTHORIZATION)
}

/// Checks whether the server is of the requested kind.
fn check_session(connection: &mut Connection, wanted: TargetSession) -> Result<(), Error> {
    let refuse = |what: &str| Err(Error::Unsuitable(what.to_owned()));
    match wanted {
        TargetSession::Any | TargetSession::PreferStandby => Ok(()),
        TargetSession::ReadWrite if connection.is_read_only()? => refuse("session is read-only"),
        TargetSession::ReadOnly if !connection.is_read_only()? => refuse("session is not read-only"),
        TargetSession::Primary if connection.is_in_recovery()? => refuse("server is in hot standby mode"),
        TargetSession::Standby if !connection.is_in_recovery()? => {
            refuse("server is not in hot standby mode")
        }
        _ => Ok(()),
    }
}

fn connect_tcp(address: SocketAddr, deadline: Deadline) -> Result<TcpStream, Error> {
    TcpStream::connect_timeout(&address, deadline.left()?)
        .map_err(|error| timed_out(Error::Io(error), deadline))
}

/// Connects to a Unix socket, with a deadline: a server that no longer accepts connections would block this, too.
fn connect_unix(
    address: rustix::io::Result<SocketAddrUnix>,
    deadline: Deadline,
) -> Result<UnixStream, Error> {
    let connect = || -> rustix::io::Result<OwnedFd> {
        let address = address?;
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let left = deadline.left().map_err(|_| rustix::io::Errno::TIMEDOUT)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(left))?;
        rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
        Ok(socket)
    };
    match connect() {
        Ok(socket) => Ok(UnixStream::from(socket)),
        Err(errno) => Err(timed_out(Error::Io(errno.into()), deadline)),
    }
}

fn set_socket_options(socket: &TcpStream, keepalives: &Keepalives) -> Result<(), Error> {
    let set = || -> rustix::io::Result<()> {
        sockopt::set_tcp_nodelay(socket, true)?;
        sockopt::set_socket_keepalive(socket, keepalives.enabled)?;
        if let Some(milliseconds) = keepalives.user_timeout_ms {
            sockopt::set_tcp_user_timeout(socket, milliseconds)?;
        }
        if !keepalives.enabled {
            return Ok(());
        }
        sockopt::set_tcp_keepidle(socket, keepalives.idle.unwrap_or(KEEPALIVE_IDLE))?;
        sockopt::set_tcp_keepintvl(socket, keepalives.interval.unwrap_or(KEEPALIVE_INTERVAL))?;
        sockopt::set_tcp_keepcnt(socket, keepalives.count.unwrap_or(KEEPALIVE_COUNT))
    };
    set().map_err(|errno| Error::Io(errno.into()))
}

/// Requests TLS and begins it.
fn encrypt(
    mut socket: Socket,
    conninfo: &Conninfo,
    host: &HostSpec,
    encryption: Encryption,
) -> Result<Stream, Error> {
    if encryption == Encryption::Off {
        return Ok(Stream::Plain(socket));
    }
    if !conninfo.tls.direct {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        socket.write_all(&request)?;
        // Reads only one byte: further bytes would come from someone in between.
        let mut answer = [0; 1];
        socket.read_exact(&mut answer)?;
        match (&answer, encryption) {
            (b"S", _) => {}
            (b"N", Encryption::IfOffered) => return Ok(Stream::Plain(socket)),
            (b"N", _) => {
                return Err(Error::tls("The server does not support TLS, but it was required")
                    .with_hint("Set ssl = on on the server, or use sslmode=prefer"));
            }
            // An unencrypted error may come from anybody, so its text is not shown.
            (b"E", _) => return Err(Error::tls("The server sent an error when asked for TLS")),
            _ => {
                return Err(Error::protocol(
                    "an answer to the request for TLS; is this PostgreSQL?",
                ));
            }
        }
    }
    tls::handshake(socket, &conninfo.tls, host).map(Stream::Tls)
}

/// Converts an I/O error caused by the deadline into a timeout.
fn timed_out(error: Error, deadline: Deadline) -> Error {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    match &error {
        Error::Io(inner) if matches!(inner.kind(), WouldBlock | TimedOut) => Error::Timeout(deadline.whole()),
        _ => error,
    }
}

/// Whether the process behind the socket runs as this user.
fn check_peer(user: rustix::io::Result<u32>, wanted: &str) -> Result<(), Error> {
    let uid = user.map_err(|errno| {
        Error::authentication(format!("Could not get the credentials of the server: {errno}"))
    })?;
    let uid = nix::unistd::Uid::from_raw(uid);
    let name = nix::unistd::User::from_uid(uid)
        .ok()
        .flatten()
        .map(|user| user.name);
    match name {
        Some(name) if name == wanted => Ok(()),
        name => Err(Error::authentication(format!(
            "requirepeer specifies \"{wanted}\", but the server runs as \"{}\"",
            name.unwrap_or_else(|| uid.to_string())
        ))),
    }
}
