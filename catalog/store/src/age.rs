//! Small age files (age-encryption.org/v1), in which the keys of a repository are wrapped: the stock tool `age` opens them,
//! so nobody needs barmanfs to get at a key.
//!
//! Written are files with one recipient, an X25519 key or a passphrase. Read are files with any number of recipients, of
//! which some may be of kinds that are not known here. The content is at most one chunk of age's payload, 64 KiB.
//!
//! X25519 comes from `x25519-dalek`, scrypt from `scrypt`, all else from ring.

use std::fmt;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::hmac;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Result};
use crate::seal::Secret;

mod base64;
mod bech32;
mod header;

use header::{Header, Stanza};

const X25519: &str = "X25519";
const SCRYPT: &str = "scrypt";
const X25519_INFO: &str = "age-encryption.org/v1/X25519";
const SCRYPT_LABEL: &[u8] = b"age-encryption.org/v1/scrypt";
const RECIPIENT_PREFIX: &str = "age";
const IDENTITY_PREFIX: &str = "age-secret-key-";

/// Bytes of the key of one file.
const FILE_KEY_BYTES: usize = 16;
const SALT_BYTES: usize = 16;
const PAYLOAD_NONCE_BYTES: usize = 16;
const TAG_BYTES: usize = 16;

/// The content of one chunk of a payload.
const CHUNK_BYTES: usize = 64 * 1024;

/// What a file may have at most; the rest is the header.
const FILE_BYTES_MAX: usize = 2 * CHUNK_BYTES;

/// What age takes: a second and 256 MiB.
const WORK_FACTOR: u8 = 18;

/// More than this is refused: a file must not make its reader use memory without bound.
const WORK_FACTOR_MAX: u8 = 20;

/// Why a text is no key, or a file cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgeError {
    /// Not `age1…`.
    #[error("not a recipient: it does not begin with age1, or has a typing error")]
    NotARecipient,
    /// Not `AGE-SECRET-KEY-1…`.
    #[error("not an age identity: a line that begins with AGE-SECRET-KEY-1, or 32 bytes")]
    NotAnIdentity,
    /// Not a file of age, or a damaged one.
    #[error("not a whole age file")]
    NotAFile,
    /// The file is for others.
    #[error("no identity opens it")]
    NoMatch,
    /// A passphrase that would take too long to try.
    #[error("its passphrase needs more work (2^{0}) than is allowed (2^{WORK_FACTOR_MAX})")]
    TooMuchWork(u8),
}

/// Who can open a file: an X25519 public key, `age1…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipient([u8; 32]);

impl std::str::FromStr for Recipient {
    type Err = AgeError;

    fn from_str(text: &str) -> std::result::Result<Self, AgeError> {
        let bytes = bech32::decode(text.trim(), RECIPIENT_PREFIX).ok_or(AgeError::NotARecipient)?;
        Ok(Self(*bytes))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bech32::encode(RECIPIENT_PREFIX, &self.0))
    }
}

/// What opens a file.
#[derive(Clone)]
pub enum Identity {
    /// The secret key that belongs to a recipient.
    Key(Secret),
    /// A passphrase.
    Passphrase(Zeroizing<String>),
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

impl Identity {
    /// A new secret key.
    ///
    /// # Errors
    /// When there are no random bytes.
    pub fn generate() -> Result<Self> {
        Ok(Self::Key(Secret::random()?))
    }

    /// The identities in the content of a key file or the output of a command: lines with `AGE-SECRET-KEY-1…` among empty
    /// ones and comments, as `age-keygen` writes them, or the 32 bytes of one key.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse_all(content: &[u8]) -> std::result::Result<Vec<Self>, AgeError> {
        let text = std::str::from_utf8(content).map_or("", str::trim);
        if text.to_ascii_lowercase().contains(IDENTITY_PREFIX) {
            let lines = text.lines().map(str::trim);
            let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
            return lines.map(Self::parse).collect();
        }
        let mut bytes = <[u8; Secret::BYTES]>::try_from(content).map_err(|_| AgeError::NotAnIdentity)?;
        Ok(vec![Self::Key(Secret::take(&mut bytes))])
    }

    fn parse(text: &str) -> std::result::Result<Self, AgeError> {
        let mut bytes = bech32::decode(text, IDENTITY_PREFIX).ok_or(AgeError::NotAnIdentity)?;
        Ok(Self::Key(Secret::take(&mut bytes)))
    }

    /// The public key that belongs to it; a passphrase has none.
    pub fn recipient(&self) -> Option<Recipient> {
        match self {
            Self::Key(secret) => Some(Recipient(*PublicKey::from(&static_secret(secret)).as_bytes())),
            Self::Passphrase(_) => None,
        }
    }

    /// The text of a secret key, as `age-keygen` writes it.
    pub fn to_text(&self) -> Option<Zeroizing<String>> {
        match self {
            Self::Key(secret) => {
                let mut text = bech32::encode(IDENTITY_PREFIX, secret.expose());
                text.make_ascii_uppercase();
                Some(Zeroizing::new(text))
            }
            Self::Passphrase(_) => None,
        }
    }
}

/// Wraps `content` for a recipient.
///
/// # Errors
/// When there are no random bytes, or `content` is too large.
pub fn wrap(content: &[u8], recipient: &Recipient) -> Result<Vec<u8>> {
    let file_key = file_key()?;
    let ephemeral = Secret::random()?;
    let secret = static_secret(&ephemeral);
    let share = *PublicKey::from(&secret).as_bytes();
    let shared = secret.diffie_hellman(&PublicKey::from(recipient.0));
    let key = hkdf(shared.as_bytes(), &[share, recipient.0].concat(), X25519_INFO)?;
    let stanza = Stanza {
        kind: X25519.to_owned(),
        arguments: vec![base64::encode(&share)],
        body: seal(&key, [0; NONCE_LEN], file_key.as_ref())?,
    };
    finish(content, file_key.as_ref(), stanza)
}

/// Wraps `content` under a passphrase.
///
/// # Errors
/// As [`wrap`].
pub fn wrap_with_passphrase(content: &[u8], passphrase: &str) -> Result<Vec<u8>> {
    wrap_with_work(content, passphrase, WORK_FACTOR)
}

pub(crate) fn wrap_with_work(content: &[u8], passphrase: &str, work_factor: u8) -> Result<Vec<u8>> {
    let file_key = file_key()?;
    let mut salt = [0; SALT_BYTES];
    random(&mut salt)?;
    let key = stretch(passphrase, &salt, work_factor)?;
    let stanza = Stanza {
        kind: SCRYPT.to_owned(),
        arguments: vec![base64::encode(&salt), work_factor.to_string()],
        body: seal(&key, [0; NONCE_LEN], file_key.as_ref())?,
    };
    finish(content, file_key.as_ref(), stanza)
}

/// Opens a file with the first identity that fits.
///
/// # Errors
/// [`AgeError`].
pub fn open(file: &[u8], identities: &[Identity]) -> std::result::Result<Zeroizing<Vec<u8>>, AgeError> {
    if file.len() > FILE_BYTES_MAX {
        return Err(AgeError::NotAFile);
    }
    let (header, payload) = Header::parse(file).ok_or(AgeError::NotAFile)?;
    let has_passphrase = header.stanzas.iter().any(|stanza| stanza.kind == SCRYPT);
    if has_passphrase && header.stanzas.len() != 1 {
        return Err(AgeError::NotAFile);
    }
    for identity in identities {
        for stanza in &header.stanzas {
            if let Some(file_key) = unwrap_file_key(identity, stanza)? {
                return open_with(&file_key, &header, payload);
            }
        }
    }
    Err(AgeError::NoMatch)
}

fn unwrap_file_key(
    identity: &Identity,
    stanza: &Stanza,
) -> std::result::Result<Option<Zeroizing<Vec<u8>>>, AgeError> {
    let key = match (identity, stanza.kind.as_str()) {
        (Identity::Key(secret), X25519) => {
            let [share] = stanza.arguments.as_slice() else {
                return Err(AgeError::NotAFile);
            };
            let share: [u8; 32] = base64::decode(share)
                .and_then(|share| share.try_into().ok())
                .ok_or(AgeError::NotAFile)?;
            let secret = static_secret(secret);
            let shared = secret.diffie_hellman(&PublicKey::from(share));
            if !shared.was_contributory() {
                return Err(AgeError::NotAFile);
            }
            let recipient = *PublicKey::from(&secret).as_bytes();
            hkdf(shared.as_bytes(), &[share, recipient].concat(), X25519_INFO)
        }
        (Identity::Passphrase(passphrase), SCRYPT) => {
            let [salt, work_factor] = stanza.arguments.as_slice() else {
                return Err(AgeError::NotAFile);
            };
            let salt: [u8; SALT_BYTES] = base64::decode(salt)
                .and_then(|salt| salt.try_into().ok())
                .ok_or(AgeError::NotAFile)?;
            let is_plain =
                work_factor.bytes().all(|digit| digit.is_ascii_digit()) && !work_factor.starts_with('0');
            let work_factor: u8 = work_factor
                .parse()
                .ok()
                .filter(|_| is_plain)
                .ok_or(AgeError::NotAFile)?;
            if work_factor > WORK_FACTOR_MAX {
                return Err(AgeError::TooMuchWork(work_factor));
            }
            stretch(passphrase, &salt, work_factor)
        }
        _ => return Ok(None),
    };
    if stanza.body.len() != FILE_KEY_BYTES + TAG_BYTES {
        return Err(AgeError::NotAFile);
    }
    let key = key.map_err(|_| AgeError::NotAFile)?;
    Ok(unseal(&key, [0; NONCE_LEN], &stanza.body))
}

fn open_with(
    file_key: &[u8],
    header: &Header,
    payload: &[u8],
) -> std::result::Result<Zeroizing<Vec<u8>>, AgeError> {
    let mac_key = hkdf(file_key, &[], "header").map_err(|_| AgeError::NotAFile)?;
    let mac_key = hmac::Key::new(hmac::HMAC_SHA256, mac_key.expose());
    hmac::verify(&mac_key, &header.authenticated, &header.mac).map_err(|_| AgeError::NotAFile)?;
    let (nonce, chunk) = payload
        .split_at_checked(PAYLOAD_NONCE_BYTES)
        .ok_or(AgeError::NotAFile)?;
    let key = hkdf(file_key, nonce, "payload").map_err(|_| AgeError::NotAFile)?;
    unseal(&key, last_chunk(), chunk).ok_or(AgeError::NotAFile)
}

fn finish(content: &[u8], file_key: &[u8], stanza: Stanza) -> Result<Vec<u8>> {
    if content.len() > CHUNK_BYTES {
        return Err(Error::TooLarge {
            what: "A wrapped key",
            bytes: content.len() as u64,
            limit: CHUNK_BYTES as u64,
        });
    }
    let mut file = header::encode(&[stanza]);
    let mac_key = hkdf(file_key, &[], "header")?;
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, mac_key.expose()), &file);
    file.extend_from_slice(format!(" {}\n", base64::encode(mac.as_ref())).as_bytes());
    let mut nonce = [0; PAYLOAD_NONCE_BYTES];
    random(&mut nonce)?;
    let key = hkdf(file_key, &nonce, "payload")?;
    file.extend_from_slice(&nonce);
    file.extend_from_slice(&seal(&key, last_chunk(), content)?);
    Ok(file)
}

/// The nonce of the first chunk of a payload, which is also its last.
fn last_chunk() -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    if let Some(last) = nonce.last_mut() {
        *last = 1;
    }
    nonce
}

fn static_secret(secret: &Secret) -> StaticSecret {
    StaticSecret::from(*secret.expose())
}

fn file_key() -> Result<Zeroizing<[u8; FILE_KEY_BYTES]>> {
    let mut key = Zeroizing::new([0; FILE_KEY_BYTES]);
    random(key.as_mut())?;
    Ok(key)
}

fn random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|source| Error::Random(source.to_string()))
}

fn stretch(passphrase: &str, salt: &[u8], work_factor: u8) -> Result<Secret> {
    let failed = || Error::Invalid(format!("A passphrase cannot be stretched by 2^{work_factor}"));
    let parameters = scrypt::Params::new(work_factor, 8, 1).map_err(|_| failed())?;
    let mut key = [0; Secret::BYTES];
    scrypt::scrypt(
        passphrase.as_bytes(),
        &[SCRYPT_LABEL, salt].concat(),
        &parameters,
        &mut key,
    )
    .map_err(|_| failed())?;
    Ok(Secret::take(&mut key))
}

struct Bytes32;

impl KeyType for Bytes32 {
    fn len(&self) -> usize {
        Secret::BYTES
    }
}

fn hkdf(secret: &[u8], salt: &[u8], info: &str) -> Result<Secret> {
    let mut key = [0; Secret::BYTES];
    let extracted = Salt::new(HKDF_SHA256, salt).extract(secret);
    let filled = extracted
        .expand(&[info.as_bytes()], Bytes32)
        .and_then(|expanded| expanded.fill(&mut key));
    filled.map_err(|_| Error::Invalid("A key cannot be derived".to_owned()))?;
    Ok(Secret::take(&mut key))
}

fn cipher(key: &Secret) -> Option<LessSafeKey> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key.expose()).ok()?;
    Some(LessSafeKey::new(key))
}

fn seal(key: &Secret, nonce: [u8; NONCE_LEN], content: &[u8]) -> Result<Vec<u8>> {
    let failed = || Error::Invalid("A key cannot be wrapped".to_owned());
    // With room for the tag: a larger copy elsewhere would leave this one behind in memory.
    let mut sealed = Vec::with_capacity(content.len() + TAG_BYTES);
    sealed.extend_from_slice(content);
    let key = cipher(key).ok_or_else(failed)?;
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.seal_in_place_append_tag(nonce, Aad::empty(), &mut sealed)
        .map_err(|_| failed())?;
    Ok(sealed)
}

fn unseal(key: &Secret, nonce: [u8; NONCE_LEN], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut content = Zeroizing::new(sealed.to_vec());
    let nonce = Nonce::assume_unique_for_key(nonce);
    let bytes = cipher(key)?
        .open_in_place(nonce, Aad::empty(), &mut content)
        .ok()?
        .len();
    content.get_mut(bytes..)?.zeroize();
    content.truncate(bytes);
    Some(content)
}

#[cfg(test)]
mod tests;
