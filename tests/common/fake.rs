//! A fake server: it implements as much of the protocol as a test needs, and then misbehaves.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

/// AuthenticationOk.
pub(crate) const LET_IN: &[u8] = b"R\0\0\0\x08\0\0\0\0";

/// ReadyForQuery.
pub(crate) const READY: &[u8] = b"Z\0\0\0\x05I";

/// Listens on a TCP port of this host; ends with the test process.
pub(crate) struct FakeServer {
    port: u16,
}

impl FakeServer {
    /// Calls `serve` with each connection.
    pub(crate) fn start(serve: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("Cannot listen");
        let port = listener.local_addr().expect("Cannot tell the port").port();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let serve = serve.clone();
                thread::spawn(move || serve(client));
            }
        });
        Self { port }
    }

    pub(crate) fn conninfo(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=disable",
            self.port
        )
    }
}

/// Reads one message of the client: its start-up message, or any other one if `tagged`.
pub(crate) fn message(client: &mut TcpStream, tagged: bool) -> io::Result<Vec<u8>> {
    let mut header = [0; 5];
    let header = if tagged { &mut header[..] } else { &mut header[..4] };
    client.read_exact(header)?;
    let length = header[header.len() - 4..]
        .try_into()
        .map(u32::from_be_bytes)
        .expect("4 bytes");
    let mut body = vec![0; (length as usize).saturating_sub(4)];
    client.read_exact(&mut body)?;
    Ok(body)
}

/// One message of a server.
pub(crate) fn reply(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a short message");
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// ParameterStatus.
pub(crate) fn parameter(name: &str, value: &str) -> Vec<u8> {
    reply(b'S', format!("{name}\0{value}\0").as_bytes())
}

/// An error (`E`) or a notice (`N`).
pub(crate) fn problem(tag: u8, severity: &str, text: &str) -> Vec<u8> {
    reply(
        tag,
        format!("S{severity}\0V{severity}\0C28000\0M{text}\0D{text}\0H{text}\0\0").as_bytes(),
    )
}

/// Lets the client in.
pub(crate) fn let_in(client: &mut TcpStream) -> io::Result<()> {
    message(client, false)?;
    let version = parameter("server_version", "18.1");
    client.write_all(&[LET_IN, &version, READY].concat())
}
