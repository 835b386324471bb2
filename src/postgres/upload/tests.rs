//! Uploads to scripted servers: the messages, and the handling of the answers.

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::*;
use crate::postgres::stream::{Socket, Stream};
use crate::postgres::{Conninfo, Environment, Mode};

const COPY_IN: &[u8] = b"G\0\0\0\x07\0\0\0";
const READY: &[u8] = b"Z\0\0\0\x05I";
const COMPLETE: &[u8] = b"C\0\0\0\x14UPLOAD_MANIFEST\0";

fn refusal() -> Vec<u8> {
    let fields = b"SERROR\0VERROR\0CXX000\0Mmanifest checksum mismatch\0\0";
    let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
    [b"E".as_slice(), &length, fields].concat()
}

/// Uploads `manifest` to a server that sends this script and closes the connection. Returns what the client sent after
/// the start-up message, too.
fn run(script: &[&[u8]], manifest: &mut dyn Read) -> (Result<(), UploadError>, Connection, Vec<u8>) {
    use std::io::Write;
    let (client, mut server) = UnixStream::pair().unwrap();
    let conninfo =
        Conninfo::parse("user=u", &Environment::fixed("u", Path::new("/nonexistent"), &[])).unwrap();
    let script = [READY, &script.concat()].concat();
    let server = std::thread::spawn(move || {
        server.write_all(&script).unwrap();
        server.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        received
    });
    let (target, mode) = (conninfo.hosts[0].clone(), Mode::Replication);
    let mut connection = Connection::begin(
        Stream::Plain(Socket::unix(client).unwrap()),
        target,
        &conninfo,
        mode,
    )
    .unwrap();
    connection.await_ready().unwrap();
    let result = upload_manifest(&mut connection, manifest);
    connection.interrupter().unwrap().interrupt();
    let received = server.join().unwrap();
    let query = b"Q\0\0\0\x14UPLOAD_MANIFEST\0";
    let at = received
        .windows(query.len())
        .position(|bytes| bytes == query)
        .unwrap();
    (result, connection, received[at + query.len()..].to_vec())
}

/// The bodies of the CopyData messages together, and the tag of the next message.
fn copied(mut received: &[u8]) -> (Vec<u8>, u8) {
    let mut bytes = Vec::new();
    loop {
        let length = u32::from_be_bytes(received[1..5].try_into().unwrap()) as usize;
        let (message, rest) = received.split_at(length + 1);
        if message[0] != b'd' {
            return (bytes, message[0]);
        }
        assert!(message.len() <= PIECE_BYTES + 5);
        bytes.extend(&message[5..]);
        received = rest;
    }
}

#[test]
fn all_bytes_are_sent_in_pieces() {
    let manifest: Vec<u8> = (0..PIECE_BYTES * 2 + 7).map(|n| n as u8).collect();
    let (result, mut connection, received) = run(&[COPY_IN, COMPLETE, READY], &mut manifest.as_slice());
    result.unwrap();
    assert_eq!(copied(&received), (manifest, b'c'));
    assert!(
        connection
            .start_query("x")
            .is_err_and(|error| !error.to_string().contains("in the middle"))
    );
}

#[test]
fn a_refused_upload_leaves_the_connection_usable() {
    let (result, _, received) = run(&[COPY_IN, &refusal(), READY], &mut b"{}".as_slice());
    assert_eq!(copied(&received), (b"{}".to_vec(), b'c'));
    let error = result.unwrap_err();
    assert!(matches!(&error, UploadError::Server(error) if error.sqlstate() == Some("XX000")));
    assert_eq!(
        error.to_string(),
        "ERROR: manifest checksum mismatch (SQLSTATE XX000)"
    );
    // A server that does not support the command: PostgreSQL 16.
    let (result, _, _) = run(&[&refusal(), READY], &mut b"{}".as_slice());
    assert!(matches!(result, Err(UploadError::Server(error)) if error.sqlstate() == Some("XX000")));
}

#[test]
fn an_unreadable_manifest_ends_the_upload() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("chunk ab is damaged"))
        }
    }
    let (result, _, received) = run(&[COPY_IN, &refusal(), READY], &mut Broken);
    assert_eq!(copied(&received), (Vec::new(), b'f'));
    let error = result.unwrap_err();
    assert!(matches!(error, UploadError::Read(_)));
    assert_eq!(error.to_string(), "chunk ab is damaged");
}

#[test]
fn protocol_violations_are_refused() {
    for script in [&[COMPLETE, READY][..], &[COPY_IN, COPY_IN], &[COPY_IN]] {
        let (result, _, _) = run(script, &mut b"{}".as_slice());
        assert!(matches!(result, Err(UploadError::Server(error)) if error.sqlstate().is_none()));
    }
}
