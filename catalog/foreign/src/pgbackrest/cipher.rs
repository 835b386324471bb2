//! Decryption of `aes-256-cbc`, in OpenSSL's salted form.
//!
//! A stream is `Salted__` (left out in bundles and super blocks, [`Header::Salt`]), eight bytes of salt, and blocks of 16 bytes,
//! the last one filled as PKCS #7 says. Key (32 bytes) and initialization vector (16) are the first 48 bytes of
//! `D1 D2 D3` with `Dn = SHA-1(Dn-1 passphrase salt)`, as OpenSSL's `EVP_BytesToKey` makes them with one round.
//!
//! Nothing in it proves that the content is right: that is left to the checksums of what is inside.

use std::fmt;
use std::io::{self, Read};

use aes::Aes256;
use aes::cipher::{Array, BlockModeDecrypt, KeyIvInit};
use sha1::{Digest, Sha1};

const MAGIC: &[u8; 8] = b"Salted__";
const SALT_BYTES: usize = 8;
const BLOCK_BYTES: usize = 16;

/// How much is decrypted at once.
const BUFFER_BYTES: usize = 16 << 10;

/// A passphrase; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(Vec<u8>);

impl From<Vec<u8>> for Passphrase {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

/// What comes before the first block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// `Salted__` and the salt: files of their own.
    Magic,
    /// The salt alone: pieces of a bundle, super blocks and block maps.
    Salt,
}

/// What an encrypted stream holds.
pub struct Decrypted<R> {
    source: R,
    passphrase: Passphrase,
    header: Header,
    cipher: Option<cbc::Decryptor<Aes256>>,
    /// Decrypted bytes are `ready`; the rest is not decrypted.
    buffer: Box<[u8]>,
    ready: std::ops::Range<usize>,
    /// Bytes in the buffer behind `ready.end` that are not decrypted: a last block, which may be the end.
    held: usize,
    is_done: bool,
}

impl<R> fmt::Debug for Decrypted<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decrypted").finish_non_exhaustive()
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl<R: Read> Decrypted<R> {
    /// Decrypts `source` from its beginning to its end.
    pub fn new(source: R, passphrase: &Passphrase, header: Header) -> Self {
        Self {
            source,
            passphrase: passphrase.clone(),
            header,
            cipher: None,
            buffer: vec![0; BUFFER_BYTES + BLOCK_BYTES].into_boxed_slice(),
            ready: 0..0,
            held: 0,
            is_done: false,
        }
    }

    fn begin(&mut self) -> io::Result<cbc::Decryptor<Aes256>> {
        let mut header = [0; MAGIC.len() + SALT_BYTES];
        let unwanted = if self.header == Header::Salt {
            MAGIC.len()
        } else {
            0
        };
        let wanted = header.get_mut(unwanted..).unwrap_or_default();
        self.source
            .read_exact(wanted)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => invalid("it ends within the header of its encryption"),
                _ => error,
            })?;
        let (magic, salt) = header.split_at(MAGIC.len());
        if self.header == Header::Magic && magic != MAGIC {
            return Err(invalid("it is not encrypted, or not by pgBackRest"));
        }
        let (key, vector) = derive(&self.passphrase.0, salt);
        Ok(cbc::Decryptor::new(&Array(key), &Array(vector)))
    }

    /// Reads until the buffer is full or the source ends; decrypts all but the last block, which it decrypts at the end.
    fn fill(&mut self) -> io::Result<()> {
        let mut cipher = match self.cipher.take() {
            Some(cipher) => cipher,
            None => self.begin()?,
        };
        let end = self.ready.end;
        self.buffer.copy_within(end..end + self.held, 0);
        let mut length = self.held;
        while let Some(free) = self.buffer.get_mut(length..).filter(|free| !free.is_empty()) {
            match self.source.read(free) {
                Ok(0) => {
                    self.is_done = true;
                    break;
                }
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if !length.is_multiple_of(BLOCK_BYTES) || length == 0 {
            return Err(invalid("its encrypted content is cut"));
        }
        let last = if self.is_done { 0 } else { BLOCK_BYTES };
        let whole = length - last;
        let (blocks, _) = Array::slice_as_chunks_mut(self.buffer.get_mut(..whole).unwrap_or_default());
        cipher.decrypt_blocks(blocks);
        self.cipher = Some(cipher);
        (self.ready, self.held) = (0..whole, last);
        if self.is_done {
            self.ready.end -= self.padding(whole)?;
        }
        Ok(())
    }

    fn padding(&self, length: usize) -> io::Result<usize> {
        let content = self.buffer.get(..length).unwrap_or_default();
        let count = content.last().copied().unwrap_or_default();
        let filling = usize::from(count);
        let is_right = (1..=BLOCK_BYTES).contains(&filling)
            && filling <= length
            && content.iter().rev().take(filling).all(|byte| *byte == count);
        match is_right {
            true => Ok(filling),
            false => Err(invalid(
                "it cannot be decrypted: the passphrase is another one, or it is damaged",
            )),
        }
    }
}

impl<R: Read> Read for Decrypted<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        while self.ready.is_empty() && !self.is_done && !target.is_empty() {
            self.fill()?;
        }
        let mut ready = self.buffer.get(self.ready.clone()).unwrap_or_default();
        let count = ready.read(target)?;
        self.ready.start += count;
        Ok(count)
    }
}

fn derive(passphrase: &[u8], salt: &[u8]) -> ([u8; 32], [u8; 16]) {
    let mut bytes = Vec::with_capacity(60);
    while bytes.len() < 48 {
        let from = bytes.len().saturating_sub(20);
        let mut sum = Sha1::new();
        sum.update(bytes.get(from..).unwrap_or_default());
        sum.update(passphrase);
        sum.update(salt);
        bytes.extend_from_slice(&sum.finalize());
    }
    let (mut key, mut vector) = ([0; 32], [0; 16]);
    key.iter_mut()
        .chain(&mut vector)
        .zip(bytes)
        .for_each(|(to, from)| *to = from);
    (key, vector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aes::cipher::{BlockModeEncrypt, block_padding::Pkcs7};
    use proptest::prelude::*;

    fn encrypted(content: &[u8], passphrase: &str, header: Header) -> Vec<u8> {
        let salt = [7, 1, 2, 3, 4, 5, 6, 250];
        let (key, vector) = derive(passphrase.as_bytes(), &salt);
        let mut buffer = content.to_vec();
        buffer.resize(content.len() + 16, 0);
        let cipher = cbc::Encryptor::<Aes256>::new(&Array(key), &Array(vector));
        let blocks = cipher
            .encrypt_padded::<Pkcs7>(&mut buffer, content.len())
            .unwrap();
        let magic = if header == Header::Magic {
            MAGIC.as_slice()
        } else {
            b""
        };
        [magic, &salt, blocks].concat()
    }

    fn decrypted(bytes: &[u8], passphrase: &str, header: Header) -> io::Result<Vec<u8>> {
        let mut back = Vec::new();
        Decrypted::new(bytes, &passphrase.as_bytes().to_vec().into(), header).read_to_end(&mut back)?;
        Ok(back)
    }

    /// `printf 'pgBackRest' | openssl enc -aes-256-cbc -md sha1 -S 0001020304050607 -pass pass:word`
    #[test]
    fn it_is_what_openssl_makes() {
        let salt = [0, 1, 2, 3, 4, 5, 6, 7].as_slice();
        let block = barmanfs_pg::hex::decode("102c83ad70a0496cf9576d3c6a496cab").unwrap();
        let bytes = [MAGIC.as_slice(), salt, &block].concat();
        assert_eq!(decrypted(&bytes, "word", Header::Magic).unwrap(), b"pgBackRest");
    }

    #[test]
    fn a_wrong_passphrase_is_seen_nearly_always() {
        let bytes = encrypted(b"content", "right", Header::Magic);
        let wrong = (0..50).filter(|n| decrypted(&bytes, &n.to_string(), Header::Magic).is_err());
        assert!(wrong.count() > 40, "the checksum inside finds the others");
        let error = decrypted(b"[backrest]\nbackrest-format", "x", Header::Magic).unwrap_err();
        assert!(error.to_string().contains("not encrypted"), "{error}");
        assert!(decrypted(b"", "x", Header::Salt).is_err());
        assert!(
            decrypted(b"12345678", "x", Header::Salt).is_err(),
            "nothing behind the salt"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn content_of_each_length_comes_back(length in 0_usize..40_000, cut in 1_usize..30) {
            let content: Vec<u8> = (0..length).map(|n| (n * 7 % 253) as u8).collect();
            for header in [Header::Magic, Header::Salt] {
                let bytes = encrypted(&content, "a b", header);
                prop_assert_eq!(&decrypted(&bytes, "a b", header).unwrap(), &content);
                let back = decrypted(&bytes[..bytes.len().saturating_sub(cut)], "a b", header);
                prop_assert!(back.is_err() || back.unwrap().len() < length);
            }
        }
    }
}
