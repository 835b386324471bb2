//! `UPLOAD_MANIFEST`: sends the server the manifest of the backup on which an incremental one is based.

use std::io::{self, Read};

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend::{self, CopyData};

use super::Error;
use super::auth::Exchange;
use super::connection::{Answer, Connection};

/// Size of one message, as in `pg_basebackup`.
const PIECE_BYTES: usize = 64 << 10;

/// Why a manifest was not uploaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// It could not be read here. The connection can still be used.
    #[error("{0}")]
    Read(io::Error),
    /// The connection failed, or the server refused the manifest ([`Error::Server`]: the connection can still be used).
    #[error(transparent)]
    Server(#[from] Error),
}

/// Uploads a manifest for the next incremental backup of this session. The server checks its checksum.
///
/// # Errors
/// See [`UploadError`].
pub(crate) fn upload_manifest(
    connection: &mut Connection,
    manifest: &mut dyn Read,
) -> Result<(), UploadError> {
    connection.start_query("UPLOAD_MANIFEST")?;
    match connection.receive_in_query()? {
        Message::CopyInResponse(_) => {}
        _ => return Err(Error::protocol("something else than a request for a manifest").into()),
    }
    // If the server refuses the manifest meanwhile, it discards the rest. Its error is read after the end.
    let sent = send_pieces(connection, manifest);
    let mut end = BytesMut::new();
    match &sent {
        Ok(()) => frontend::copy_done(&mut end),
        Err(UploadError::Read(_)) => {
            frontend::copy_fail("The manifest cannot be read", &mut end).map_err(Error::from)?;
        }
        Err(UploadError::Server(_)) => return sent,
    }
    connection.send(&end)?;
    let answered = read_end(connection);
    match sent {
        Ok(()) => Ok(answered?),
        Err(unreadable) => Err(unreadable),
    }
}

fn send_pieces(connection: &mut Connection, manifest: &mut dyn Read) -> Result<(), UploadError> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut message = BytesMut::with_capacity(PIECE_BYTES + 16);
    loop {
        let length = match manifest.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(UploadError::Read(error)),
        };
        message.clear();
        CopyData::new(piece.get(..length).unwrap_or_default())
            .map_err(Error::from)?
            .write(&mut message);
        connection.send(&message)?;
    }
}

fn read_end(connection: &mut Connection) -> Result<(), Error> {
    loop {
        match connection.read_result()? {
            Answer::Done => {}
            Answer::Ready => return Ok(()),
            Answer::Rows(_) => return Err(Error::protocol("a result instead of the end of an upload")),
        }
    }
}

#[cfg(test)]
mod tests;
