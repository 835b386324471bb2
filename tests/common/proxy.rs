//! A proxy between the program and a real server that changes, drops or cuts what the server sends: a broken or hostile
//! server, without writing one.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

/// What happens to a CopyData message.
pub(crate) enum Fate {
    Pass,
    Drop,
    /// The connection ends here, as with a network failure.
    Cut,
}

/// Gets the payload of every CopyData message from the server, and may change it.
type Meddler = Box<dyn FnMut(&mut Vec<u8>) -> Fate + Send>;

/// Listens on a TCP port of this host; ends with the test process.
pub(crate) struct Proxy {
    port: u16,
}

impl Proxy {
    /// In front of the server with this socket directory.
    pub(crate) fn start(sockets: &Path, meddler: impl FnMut(&mut Vec<u8>) -> Fate + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("Cannot listen");
        let port = listener.local_addr().expect("Cannot tell the port").port();
        let server = sockets.join(".s.PGSQL.5432");
        let meddler: Arc<Mutex<Meddler>> = Arc::new(Mutex::new(Box::new(meddler)));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (server, meddler) = (server.clone(), Arc::clone(&meddler));
                thread::spawn(move || serve(&client, server, &meddler));
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

fn serve(client: &TcpStream, server: PathBuf, meddler: &Mutex<Meddler>) {
    let Ok(server) = UnixStream::connect(server) else {
        return;
    };
    let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    });
    let _ = pass_messages(&server, client, meddler);
    let _ = client.shutdown(std::net::Shutdown::Both);
    let _ = server.shutdown(std::net::Shutdown::Both);
}

/// A backend message is a type byte, a length that counts itself, and the payload.
fn pass_messages(server: &UnixStream, client: &TcpStream, meddler: &Mutex<Meddler>) -> io::Result<()> {
    let mut server = io::BufReader::new(server);
    let mut client = io::BufWriter::new(client);
    loop {
        let mut header = [0; 5];
        server.read_exact(&mut header)?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        let mut payload = vec![0; length as usize - 4];
        server.read_exact(&mut payload)?;
        let fate = if header[0] == b'd' {
            (meddler.lock().expect("no meddler panics"))(&mut payload)
        } else {
            Fate::Pass
        };
        match fate {
            Fate::Pass => {
                client.write_all(&[header[0]])?;
                client.write_all(&(payload.len() as u32 + 4).to_be_bytes())?;
                client.write_all(&payload)?;
            }
            Fate::Drop => {}
            Fate::Cut => return client.flush(),
        }
        if server.buffer().is_empty() {
            client.flush()?;
        }
    }
}

/// Whether a CopyData payload of BASE_BACKUP is the tar header of this member. From PostgreSQL 15 on a payload of
/// archive bytes begins with `d`; in earlier versions it is only the bytes.
pub(crate) fn is_header_of(payload: &[u8], name: &str) -> bool {
    header(payload).is_some_and(|header| {
        let end = header[..100].iter().position(|byte| *byte == 0).unwrap_or(100);
        &header[257..262] == b"ustar" && header[..end] == *name.as_bytes()
    })
}

fn header(payload: &[u8]) -> Option<&[u8]> {
    payload
        .len()
        .checked_sub(512)
        .filter(|before| *before <= 1)
        .map(|before| &payload[before..])
}

/// Changes a tar header and corrects its checksum.
pub(crate) fn change_header(payload: &mut [u8], change: impl FnOnce(&mut [u8])) {
    let before = payload.len() - 512;
    let header = &mut payload[before..];
    change(header);
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
