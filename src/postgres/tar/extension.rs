//! Headers that extend the next one: pax records and GNU's long names.

use std::collections::BTreeMap;

use super::number;

/// Maximum size of an extension. Paths have at most 4096 bytes.
pub(super) const MAX_BYTES: u64 = 64 << 10;

/// The kind of an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `x`: pax records for the next member.
    Next,
    /// `g`: pax records for all members that follow.
    Global,
    /// `L`: the next member's name.
    LongName,
    /// `K`: the next member's link target.
    LongLink,
}

/// The extended fields of the next member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
}

/// Records by key. An empty value cancels an earlier one.
type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// The extensions that are in effect.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    global: Records,
    next: Records,
    /// Whether a member must follow.
    open: bool,
}

impl Extensions {
    /// Whether the last member was an extension, so that the archive cannot end here.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Adds the complete data of an extension.
    pub(super) fn take(&mut self, kind: Kind, data: &[u8]) -> Result<(), String> {
        let mut one = |key: &str, data: &[u8]| {
            let text = data.strip_suffix(b"\0").unwrap_or(data);
            self.next.insert(key.as_bytes().to_vec(), text.to_vec());
        };
        match kind {
            Kind::LongName => one("path", data),
            Kind::LongLink => one("linkpath", data),
            Kind::Next => records(data, &mut self.next)?,
            Kind::Global => records(data, &mut self.global)?,
        }
        // Any number of extensions may follow one another.
        let held = self
            .next
            .iter()
            .chain(&self.global)
            .map(|(key, value)| key.len() + value.len());
        if held.sum::<usize>() as u64 > 2 * MAX_BYTES {
            return Err("the extended headers are too long".to_owned());
        }
        self.open = kind != Kind::Global;
        Ok(())
    }

    /// The fields for the member that begins now.
    pub(super) fn of_member(&mut self) -> Result<Extended, String> {
        self.open = false;
        let next = std::mem::take(&mut self.next);
        let value = |key: &str| {
            let key = key.as_bytes();
            let found = next.get(key).or_else(|| self.global.get(key));
            found.filter(|value| !value.is_empty())
        };
        let number = |key: &str| value(key).map(|value| decimal(key, value)).transpose();
        let small = |key: &str| {
            let number = number(key)?;
            let fits = |number: u64| {
                u32::try_from(number).map_err(|_| format!("the pax record {key} is out of range"))
            };
            number.map(fits).transpose()
        };
        Ok(Extended {
            path: value("path").cloned(),
            link: value("linkpath").cloned(),
            size: number("size")?,
            uid: small("uid")?,
            gid: small("gid")?,
            mtime: value("mtime").map(|value| time(value)).transpose()?,
        })
    }
}

fn decimal(key: &str, value: &[u8]) -> Result<u64, String> {
    let digits = std::str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("the pax record {key} is not a number"))
}

fn time(value: &[u8]) -> Result<(i64, u32), String> {
    std::str::from_utf8(value)
        .ok()
        .and_then(number::pax_time)
        .ok_or_else(|| "the pax record mtime is not a time".to_owned())
}

/// Reads records of the form `LENGTH KEY=VALUE\n`. The length includes the whole record.
fn records(mut data: &[u8], into: &mut Records) -> Result<(), String> {
    while !data.is_empty() {
        let (key, value, rest) = record(data).ok_or("a pax header with a malformed record")?;
        if key.starts_with(b"GNU.sparse.") {
            return Err("this is a sparse file, which PostgreSQL never sends".to_owned());
        }
        into.insert(key.to_vec(), value.to_vec());
        data = rest;
    }
    Ok(())
}

/// The first record: key, value, and the rest.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let digits = data.iter().position(|byte| !byte.is_ascii_digit())?;
    let length: usize = std::str::from_utf8(data.get(..digits)?).ok()?.parse().ok()?;
    let (whole, rest) = data.split_at_checked(length)?;
    let pair = whole.get(digits..)?.strip_prefix(b" ")?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|&byte| byte == b'=').filter(|&at| at > 0)?;
    Some((pair.get(..equals)?, pair.get(equals + 1..)?, rest))
}
