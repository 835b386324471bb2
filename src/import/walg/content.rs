//! Makes plain what WAL-G has compressed and then encrypted.
//!
//! The name shows how a file is compressed, and its first bytes whether it is encrypted with OpenPGP. Other encryption shows
//! only by content that is not in the form that its name promises.

use std::io::{self, Cursor, Read};
use std::path::Path;

use barmanfs_foreign::walg::Compression as Named;
use barmanfs_store::open_unlinked;

use crate::import::gpg::{self, Passphrase};
use crate::wal_transfer::compression::Compression;

/// As many bytes as decide about a file.
const BEGINNING_BYTES: u64 = 32;

/// The most memory that a file of lzma may ask for. WAL-G's dictionary has 8 MiB.
const LZMA_MEMORY_BYTES: u64 = 128 << 20;

/// The properties that WAL-G's files of lzma begin with.
const LZMA_BEGINS: u8 = 0x5d;

/// The size of buffers.
const BUFFER_BYTES: usize = 128 << 10;

/// What a file holds.
///
/// # Errors
/// When it cannot be read, is encrypted and cannot be opened, or is not in the form that its name promises.
pub(super) fn open(place: &Path, form: Named, passphrase: Option<&Passphrase>) -> io::Result<Box<dyn Read>> {
    decoded(open_unlinked(place)?, form, passphrase)
}

fn decoded<R: Read + Send + 'static>(
    source: R,
    form: Named,
    passphrase: Option<&Passphrase>,
) -> io::Result<Box<dyn Read>> {
    let (beginning, whole) = look(source)?;
    if !gpg::is_encrypted(&beginning) {
        return decompressed(&beginning, whole, form);
    }
    let passphrase = passphrase.ok_or_else(|| {
        io::Error::other("it is encrypted with OpenPGP, and there is no --passphrase-command")
    })?;
    let (beginning, whole) = look(gpg::decrypted(whole, passphrase)?)?;
    decompressed(&beginning, whole, form)
}

/// A source from its beginning on, of which some bytes were looked at.
type Whole<R> = io::Chain<Cursor<Vec<u8>>, R>;

fn look<R: Read>(mut source: R) -> io::Result<(Vec<u8>, Whole<R>)> {
    let mut beginning = Vec::new();
    source
        .by_ref()
        .take(BEGINNING_BYTES)
        .read_to_end(&mut beginning)?;
    Ok((beginning.clone(), Cursor::new(beginning).chain(source)))
}

fn decompressed(beginning: &[u8], whole: impl Read + 'static, form: Named) -> io::Result<Box<dyn Read>> {
    let by_magic = match form {
        Named::None => return Ok(Box::new(whole)),
        Named::Lzo => {
            return Err(io::Error::other(
                "it is compressed with lzo, which is not read here",
            ));
        }
        Named::Brotli => {
            return Ok(Box::new(brotli_decompressor::Decompressor::new(
                whole,
                BUFFER_BYTES,
            )));
        }
        Named::Lzma if beginning.first() == Some(&LZMA_BEGINS) => return lzma(whole),
        Named::Lzma => None,
        Named::Lz4 => Some(Compression::Lz4),
        Named::Zstd => Some(Compression::Zstd),
        Named::Gzip => Some(Compression::Gzip),
    };
    match by_magic {
        Some(expected) if Compression::of(beginning) == Some(expected) => expected.reader(whole),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, unknown(beginning))),
    }
}

fn lzma(whole: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let stream = liblzma::stream::Stream::new_lzma_decoder(LZMA_MEMORY_BYTES).map_err(io::Error::other)?;
    let source = io::BufReader::with_capacity(BUFFER_BYTES, whole);
    Ok(Box::new(liblzma::bufread::XzDecoder::new_stream(source, stream)))
}

/// Why content is not in its form.
fn unknown(beginning: &[u8]) -> &'static str {
    match beginning.windows(5).any(|bytes| bytes == b"yckms") || beginning.starts_with(b"envelope-yc-kms") {
        true => "it is encrypted by a key service, whose keys only WAL-G gets",
        false => {
            "its content is not compressed as its name says: it is damaged, or encrypted with libsodium or by a key service, which \
             only WAL-G can decrypt"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `abc` 1000 times, by the program brotli.
    const BROTLI: &[u8] = b"\x1b\xb7\x0b\x00\x20\xc3\xc4\xc6\xe2\xb3\x20\xde\x06\x00\x34";

    fn read(bytes: &[u8], form: Named) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        decoded(Cursor::new(bytes.to_vec()), form, None)?.read_to_end(&mut content)?;
        Ok(content)
    }

    fn lzma_bytes(content: &[u8]) -> Vec<u8> {
        let options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
        let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
        let mut bytes = Vec::new();
        liblzma::read::XzEncoder::new_stream(content, stream)
            .read_to_end(&mut bytes)
            .unwrap();
        bytes
    }

    fn forms(content: &[u8]) -> Vec<(Named, Vec<u8>)> {
        let encoded = |form: Compression| {
            let mut bytes = Vec::new();
            form.encode(None, &mut &*content, &mut bytes).unwrap();
            bytes
        };
        vec![
            (Named::None, content.to_vec()),
            (Named::Lz4, encoded(Compression::Lz4)),
            (Named::Zstd, encoded(Compression::Zstd)),
            (Named::Gzip, encoded(Compression::Gzip)),
            (Named::Lzma, lzma_bytes(content)),
        ]
    }

    #[test]
    fn each_form_is_read() {
        let content = b"abc".repeat(1000);
        for (form, bytes) in forms(&content) {
            assert!(read(&bytes, form).unwrap() == content, "{form:?}");
        }
        assert!(read(BROTLI, Named::Brotli).unwrap() == content);
    }

    /// The decoder of lz4 takes an end between two blocks for the end. An archive or a segment is too short then.
    #[test]
    fn what_is_cut_is_an_error_or_too_short() {
        let content = b"abc".repeat(1000);
        let mut forms = forms(&content);
        forms.push((Named::Brotli, BROTLI.to_vec()));
        for (form, bytes) in forms {
            if form == Named::None {
                continue;
            }
            let cut = read(&bytes[..bytes.len() - 9], form);
            let is_short = |read: &Vec<u8>| form == Named::Lz4 && read.len() < content.len();
            assert!(cut.is_err() || cut.is_ok_and(|read| is_short(&read)), "{form:?}");
        }
    }

    #[test]
    fn what_is_encrypted_is_named() {
        for (bytes, form, word) in [
            (&b"\xc1\x0c\x03"[..], Named::Lz4, "--passphrase-command"),
            (b"\x85\x0c\x03", Named::Brotli, "--passphrase-command"),
            (b"\x01yckms\x01", Named::Zstd, "key service"),
            (b"some random bytes", Named::Lz4, "libsodium"),
            (b"some random bytes", Named::Lzma, "libsodium"),
            (b"\x89LZO", Named::Lzo, "lzo"),
        ] {
            let refused = read(bytes, form).unwrap_err().to_string();
            assert!(refused.contains(word), "{refused}");
        }
    }
}
