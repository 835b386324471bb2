//! The socket of a connection. Every wait on it has a limit.
//!
//! There is a limit for one read, and an optional deadline for all reads together: a server that sends a byte now and
//! then does not gain time. A write waits until the server accepts data, but only for a limited time.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt;
use rustls::{ClientConnection, StreamOwned};

use super::Error;

/// How long the server may refuse to accept data.
const WRITE_WITHIN: Duration = Duration::from_secs(60);

/// A moment at which a wait ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    whole: Duration,
}

impl Deadline {
    /// A deadline after this time.
    pub(super) fn after(whole: Duration) -> Self {
        let now = Instant::now();
        Self {
            at: now.checked_add(whole).unwrap_or(now),
            whole,
        }
    }

    /// The remaining time; an error if there is none.
    pub(super) fn left(&self) -> Result<Duration, Error> {
        self.at
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
            .ok_or(Error::Timeout(self.whole))
    }

    /// The total time.
    pub(super) fn whole(&self) -> Duration {
        self.whole
    }
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket with its limits.
#[derive(Debug)]
pub(super) struct Socket {
    kind: Kind,
    deadline: Option<Deadline>,
    read_timeout: Option<Duration>,
}

impl Socket {
    /// The socket of a TCP connection.
    pub(super) fn tcp(socket: TcpStream) -> io::Result<Self> {
        socket.set_write_timeout(Some(WRITE_WITHIN))?;
        Ok(Self::new(Kind::Tcp(socket)))
    }

    /// The socket of a Unix connection.
    pub(super) fn unix(socket: UnixStream) -> io::Result<Self> {
        socket.set_write_timeout(Some(WRITE_WITHIN))?;
        Ok(Self::new(Kind::Unix(socket)))
    }

    fn new(kind: Kind) -> Self {
        Self {
            kind,
            deadline: None,
            read_timeout: None,
        }
    }

    /// Sets a deadline for all further reads together.
    pub(super) fn set_deadline(&mut self, deadline: Option<Deadline>) -> io::Result<()> {
        self.deadline = deadline;
        match deadline {
            Some(_) => Ok(()),
            None => self.apply(self.read_timeout),
        }
    }

    fn apply(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.kind {
            Kind::Tcp(socket) => socket.set_read_timeout(timeout),
            Kind::Unix(socket) => socket.set_read_timeout(timeout),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Tcp(socket) => socket.as_fd(),
            Kind::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline
                .left()
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            self.apply(Some(left))?;
        }
        match &mut self.kind {
            Kind::Tcp(socket) => socket.read(buffer),
            Kind::Unix(socket) => socket.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.kind {
            Kind::Tcp(socket) => socket.write(bytes),
            Kind::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The connection's socket, encrypted or not.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(Socket),
    Tls(Box<StreamOwned<ClientConnection, Socket>>),
}

impl Stream {
    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Whether others on the network can read the data.
    pub(super) fn is_open_to_the_network(&self) -> bool {
        matches!(
            self,
            Self::Plain(Socket {
                kind: Kind::Tcp(_),
                ..
            })
        )
    }

    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }

    fn socket_mut(&mut self) -> &mut Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &mut stream.sock,
        }
    }

    /// Limits the wait of one read; `None` removes the limit.
    pub(super) fn set_read_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let socket = self.socket_mut();
        socket.read_timeout = timeout;
        socket.apply(timeout)
    }

    pub(super) fn read_timeout(&self) -> Option<Duration> {
        self.socket().read_timeout
    }

    /// Sets a deadline for all further reads together.
    pub(super) fn set_deadline(&mut self, deadline: Option<Deadline>) -> io::Result<()> {
        self.socket_mut().set_deadline(deadline)
    }

    pub(super) fn deadline(&self) -> Option<Deadline> {
        self.socket().deadline
    }

    /// The user of the process at the other end of a Unix socket; `None` for TCP.
    pub(super) fn peer_user(&self) -> Option<rustix::io::Result<u32>> {
        match &self.socket().kind {
            Kind::Tcp(_) => None,
            Kind::Unix(socket) => Some(sockopt::socket_peercred(socket).map(|peer| peer.uid.as_raw())),
        }
    }

    /// Whether the other end is on this host for certain: a Unix socket.
    pub(super) fn is_local(&self) -> bool {
        matches!(self.socket().kind, Kind::Unix(_))
    }

    /// Whether a read would return at once: data, or the end of the stream.
    pub(super) fn is_readable(&mut self) -> io::Result<bool> {
        if let Self::Tls(stream) = self {
            let state = stream.conn.process_new_packets().map_err(io::Error::other)?;
            if state.plaintext_bytes_to_read() > 0 {
                return Ok(true);
            }
        }
        let mut wanted = [PollFd::from_borrowed_fd(self.socket().fd(), PollFlags::IN)];
        match rustix::event::poll(&mut wanted, Some(&Timespec::default())) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(errno) => Err(io::Error::from(errno)),
        }
    }

    pub(super) fn interrupter(&self) -> io::Result<Interrupter> {
        self.socket().fd().try_clone_to_owned().map(Interrupter)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// Ends a connection from another thread, even while the connection's owner is waiting for the server.
#[derive(Debug)]
pub(crate) struct Interrupter(OwnedFd);

impl Interrupter {
    /// Closes the connection. Its owner gets [`Error::Closed`].
    pub(crate) fn interrupt(&self) {
        // If the socket is no longer connected, there is nothing to close.
        let _already_gone = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}
