//! One key of a repository, and the text in which it is wrapped for those who may have it.

use zeroize::Zeroizing;

use crate::error::Result;
use crate::id::KeyId;

use super::{IdHash, Secret};

const KEY_ID: &str = "barmanfs 2026-11-30 id of a key";
pub(super) const DATA: &str = "barmanfs 2026-11-30 data";
pub(super) const FOOTERS: &str = "barmanfs 2026-11-30 footers";

/// First line of the text.
const TITLE: &str = "barmanfs repository key";

/// A text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not have the text of a barmanfs repository key")]
pub struct BadKeyText;

/// A key of a repository: the secret of its packs, and that of its chunk ids. A later one of the same repository has
/// another secret for packs and the same for ids, so that ids stay what they are.
#[derive(Debug, Clone)]
pub struct SealedKey {
    pub(super) generation: u32,
    pub(super) packs: Secret,
    pub(super) ids: Option<Secret>,
}

impl SealedKey {
    /// The first key of a repository.
    ///
    /// # Errors
    /// When there are no random bytes.
    pub fn first(hash: IdHash) -> Result<Self> {
        let ids = match hash {
            IdHash::Blake3 => None,
            IdHash::Blake3Keyed => Some(Secret::random()?),
        };
        Ok(Self {
            generation: 1,
            packs: Secret::random()?,
            ids,
        })
    }

    /// The key that new packs get after this one.
    ///
    /// # Errors
    /// When there are no random bytes.
    pub fn next(&self) -> Result<Self> {
        Ok(Self {
            generation: self.generation.saturating_add(1),
            packs: Secret::random()?,
            ids: self.ids.clone(),
        })
    }

    /// Its name, which follows from the secret: nobody can give another key the same name.
    pub fn id(&self) -> KeyId {
        let derived = self.packs.derive(KEY_ID, &[]);
        let mut id = KeyId([0; KeyId::BYTES]);
        id.0.copy_from_slice(derived.expose().first_chunk().unwrap_or(&[0; KeyId::BYTES]));
        id
    }

    /// Of several keys of a repository, the one with the highest number is for new packs.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// How chunk ids are made in its repository.
    pub fn id_hash(&self) -> IdHash {
        match self.ids {
            None => IdHash::Blake3,
            Some(_) => IdHash::Blake3Keyed,
        }
    }

    /// The text to be wrapped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(512));
        let mut line = |name: &str, value: &str| {
            for part in [name, ": ", value, "\n"] {
                text.push_str(part);
            }
        };
        line(TITLE, "1");
        line("generation", &self.generation.to_string());
        line("packs", &hex(&self.packs));
        line("id_hash", self.id_hash().name());
        if let Some(ids) = &self.ids {
            line("ids", &hex(ids));
        }
        text
    }

    /// The key of a text.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> std::result::Result<Self, BadKeyText> {
        let field = |name: &str| {
            let mut values = text
                .lines()
                .filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            values.next().ok_or(BadKeyText)
        };
        if field(TITLE)? != "1" {
            return Err(BadKeyText);
        }
        let ids = match IdHash::named(field("id_hash")?).ok_or(BadKeyText)? {
            IdHash::Blake3 => None,
            IdHash::Blake3Keyed => Some(secret(field("ids")?)?),
        };
        Ok(Self {
            generation: field("generation")?.parse().map_err(|_| BadKeyText)?,
            packs: secret(field("packs")?)?,
            ids,
        })
    }
}

fn hex(secret: &Secret) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(2 * Secret::BYTES));
    for byte in secret.expose() {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or_default());
        }
    }
    text
}

fn secret(text: &str) -> std::result::Result<Secret, BadKeyText> {
    let mut bytes = crate::id::parse_hex::<{ Secret::BYTES }>(text).ok_or(BadKeyText)?;
    Ok(Secret::take(&mut bytes))
}
