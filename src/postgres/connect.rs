//! From connection settings to a socket a server has let us in on: hosts, addresses, TLS, start-up.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustix::net::sockopt;

use super::auth;
use super::connection::{Connection, Mode};
use super::conninfo::{Conninfo, Host, HostSpec, Keepalives, SslMode};
use super::wire::Stream;
use super::{Error, tls};

/// The server's SQLSTATE for "no line in `pg_hba.conf`", which may differ with and without TLS.
const INVALID_AUTHORIZATION: &str = "28000";

/// Tries the hosts one after the other.
///
/// As with libpq, one that answers and does not let us in ends the search: the next would ask the same role.
pub(super) fn connect(conninfo: &Conninfo, mode: Mode) -> Result<Connection, Error> {
    let mut attempts = Vec::new();
    for host in &conninfo.hosts {
        match connect_to_host(conninfo, host, mode) {
            Ok(connection) => return Ok(connection),
            Err(error) => {
                let refused_by_server = matches!(error, Error::Server(_) | Error::Authentication { .. });
                attempts.push(Error::Connect {
                    target: host.to_string(),
                    source: Box::new(error),
                });
                if refused_by_server {
                    break;
                }
            }
        }
    }
    match (attempts.pop(), attempts.is_empty()) {
        (Some(only), true) => Err(only),
        (Some(last), false) => {
            attempts.push(last);
            Err(Error::AllHosts { attempts })
        }
        (None, _) => Err(Error::settings("No host to connect to")),
    }
}

/// Whether one attempt uses TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Off,
    /// Go on without where the server has none.
    IfOffered,
    Required,
}

fn connect_to_host(conninfo: &Conninfo, host: &HostSpec, mode: Mode) -> Result<Connection, Error> {
    let limit = Limit::new(conninfo.connect_timeout);
    let attempt = |encryption| connect_once(conninfo, host, mode, encryption, &limit);
    if !matches!(host.host, Host::Tcp { .. }) {
        return attempt(Encryption::Off);
    }
    match conninfo.tls.mode {
        SslMode::Disable => attempt(Encryption::Off),
        SslMode::Allow => attempt(Encryption::Off).or_else(|error| match is_worth_the_other_way(&error) {
            true => attempt(Encryption::Required),
            false => Err(error),
        }),
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

/// Whether the same server may say something else to the other choice of TLS.
fn is_worth_the_other_way(error: &Error) -> bool {
    matches!(error, Error::Tls { .. }) || error.sqlstate() == Some(INVALID_AUTHORIZATION)
}

fn connect_once(
    conninfo: &Conninfo,
    host: &HostSpec,
    mode: Mode,
    encryption: Encryption,
    limit: &Limit,
) -> Result<Connection, Error> {
    let mut used = host.clone();
    let stream = match &host.host {
        Host::Tcp { name, address } => {
            let socket = connect_tcp(name.as_deref(), *address, host.port, limit)?;
            used.host = Host::Tcp {
                name: name.clone(),
                address: socket.peer_addr().ok().map(|peer| peer.ip()).or(*address),
            };
            set_socket_options(&socket, &conninfo.keepalives)?;
            encrypt(socket, conninfo, host, encryption, limit)?
        }
        Host::Directory(path) => {
            Stream::Unix(UnixStream::connect(path.join(host.socket_name())).map_err(Error::Io)?)
        }
        Host::Abstract(name) => {
            let name = format!("{name}/{}", host.socket_name());
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name).map_err(Error::Io)?;
            Stream::Unix(UnixStream::connect_addr(&address).map_err(Error::Io)?)
        }
    };
    if let (Stream::Unix(socket), Some(user)) = (&stream, &conninfo.require_peer) {
        check_peer(socket, user)?;
    }
    let mut connection = Connection::begin(stream, used, conninfo, mode)?;
    connection.set_deadline(limit.deadline);
    auth::authenticate(&mut connection, conninfo, host, mode == Mode::Replication)?;
    connection.await_ready()?;
    connection.set_deadline(None);
    connection.set_read_timeout(None)?;
    Ok(connection)
}

/// The time one host may take until it lets us in.
#[derive(Debug)]
struct Limit {
    deadline: Option<(Instant, Duration)>,
}

impl Limit {
    fn new(timeout: Option<Duration>) -> Self {
        let deadline = timeout.and_then(|timeout| Some((Instant::now().checked_add(timeout)?, timeout)));
        Self { deadline }
    }

    /// What is left of it; an error if nothing is.
    fn left(&self) -> Result<Option<Duration>, Error> {
        time_left(self.deadline)
    }
}

/// What is left until a deadline that was set this long before; an error if nothing is.
pub(super) fn time_left(deadline: Option<(Instant, Duration)>) -> Result<Option<Duration>, Error> {
    let Some((deadline, whole)) = deadline else {
        return Ok(None);
    };
    match deadline
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        Some(left) => Ok(Some(left)),
        None => Err(Error::Timeout(whole)),
    }
}

/// Tries the addresses of a host one after the other.
fn connect_tcp(
    name: Option<&str>,
    address: Option<std::net::IpAddr>,
    port: u16,
    limit: &Limit,
) -> Result<TcpStream, Error> {
    let addresses: Vec<SocketAddr> = match (address, name) {
        (Some(address), _) => vec![SocketAddr::new(address, port)],
        (None, Some(name)) => (name, port).to_socket_addrs().map_err(Error::Io)?.collect(),
        (None, None) => Vec::new(),
    };
    let mut last_error = Error::Io(io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        "the host name has no address",
    ));
    for address in addresses {
        let connected = match limit.left()? {
            Some(left) => TcpStream::connect_timeout(&address, left),
            None => TcpStream::connect(address),
        };
        match connected {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                last_error = limit.left().err().unwrap_or(Error::Io(error));
            }
            Err(error) => last_error = Error::Io(error),
        }
    }
    Err(last_error)
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
        keepalives
            .idle
            .map_or(Ok(()), |idle| sockopt::set_tcp_keepidle(socket, idle))?;
        keepalives
            .interval
            .map_or(Ok(()), |interval| sockopt::set_tcp_keepintvl(socket, interval))?;
        keepalives
            .count
            .map_or(Ok(()), |count| sockopt::set_tcp_keepcnt(socket, count))
    };
    set().map_err(|errno| Error::Io(errno.into()))
}

/// Asks for TLS and begins it.
fn encrypt(
    mut socket: TcpStream,
    conninfo: &Conninfo,
    host: &HostSpec,
    encryption: Encryption,
    limit: &Limit,
) -> Result<Stream, Error> {
    if encryption == Encryption::Off {
        return Ok(Stream::Tcp(socket));
    }
    socket.set_read_timeout(limit.left()?)?;
    if !conninfo.tls.direct {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        socket.write_all(&request)?;
        // One byte alone: whatever followed it would be from somebody in between.
        let mut answer = [0; 1];
        socket
            .read_exact(&mut answer)
            .map_err(|error| timed_out(error, limit))?;
        match (&answer, encryption) {
            (b"S", _) => {}
            (b"N", Encryption::IfOffered) => return Ok(Stream::Tcp(socket)),
            (b"N", _) => {
                return Err(Error::tls("The server does not support TLS, but it was required")
                    .with_hint("Set ssl = on on the server, or use sslmode=prefer"));
            }
            // An error that is not encrypted may be from anybody: its text is not shown.
            (b"E", _) => return Err(Error::tls("The server sent an error when asked for TLS")),
            _ => {
                return Err(Error::protocol(
                    "an answer to the request for TLS; is this PostgreSQL?",
                ));
            }
        }
    }
    socket.set_read_timeout(limit.left()?)?;
    tls::handshake(socket, &conninfo.tls, host)
        .map(Stream::Tls)
        .map_err(|error| match error {
            Error::Io(error) => timed_out(error, limit),
            other => other,
        })
}

/// A read that waited up to the limit.
fn timed_out(error: io::Error, limit: &Limit) -> Error {
    match (error.kind(), limit.deadline) {
        (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some((_, whole))) => Error::Timeout(whole),
        _ => error.into(),
    }
}

/// Whether the process behind the socket runs as this user.
fn check_peer(socket: &UnixStream, wanted: &str) -> Result<(), Error> {
    let credentials = sockopt::socket_peercred(socket).map_err(|errno| {
        Error::authentication(format!("Could not get the credentials of the server: {errno}"))
    })?;
    let uid = nix::unistd::Uid::from_raw(credentials.uid.as_raw());
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
