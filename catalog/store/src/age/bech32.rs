//! Bech32 (BIP 173) of keys of 32 bytes: text with a prefix, and a checksum that finds typing errors.

use zeroize::Zeroizing;

const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
const CHECKSUM_DIGITS: usize = 6;

/// Digits of five bits for 32 bytes.
const DATA_DIGITS: usize = 52;

pub(super) fn encode(prefix: &str, key: &[u8; 32]) -> String {
    let mut digits = Zeroizing::new(Vec::with_capacity(DATA_DIGITS + CHECKSUM_DIGITS));
    digits.extend(
        (0..DATA_DIGITS).map(|digit| (0..5).fold(0, |value, bit| value << 1 | bit_at(key, digit * 5 + bit))),
    );
    let zeros = [0; CHECKSUM_DIGITS];
    let checksum = polymod(prefix, digits.iter().chain(&zeros)) ^ 1;
    digits.extend(
        (0..CHECKSUM_DIGITS).map(|digit| (checksum >> (5 * (CHECKSUM_DIGITS - 1 - digit)) & 31) as u8),
    );
    // No larger copy may leave this one behind in memory.
    let mut text = String::with_capacity(prefix.len() + 1 + DATA_DIGITS + CHECKSUM_DIGITS);
    text.push_str(prefix);
    text.push('1');
    text.extend(
        digits
            .iter()
            .map(|digit| char::from(ALPHABET.get(usize::from(*digit)).copied().unwrap_or(b'q'))),
    );
    text
}

/// The key of a text with this prefix, in lower-case or upper-case letters.
pub(super) fn decode(text: &str, prefix: &str) -> Option<Zeroizing<[u8; 32]>> {
    let has = |test: fn(&u8) -> bool| text.as_bytes().iter().any(test);
    if has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) {
        return None;
    }
    let text = Zeroizing::new(text.to_ascii_lowercase());
    let data = text.strip_prefix(prefix)?.strip_prefix('1')?;
    if data.len() != DATA_DIGITS + CHECKSUM_DIGITS {
        return None;
    }
    let mut digits = Zeroizing::new(Vec::with_capacity(data.len()));
    for letter in data.bytes() {
        digits.push(u8::try_from(ALPHABET.iter().position(|of| *of == letter)?).ok()?);
    }
    if polymod(prefix, digits.iter()) != 1 {
        return None;
    }
    let bit = |n: usize| digits.get(n / 5).map_or(0, |digit| digit >> (4 - n % 5) & 1);
    if (256..DATA_DIGITS * 5).any(|n| bit(n) != 0) {
        return None;
    }
    let mut key = Zeroizing::new([0; 32]);
    for (n, byte) in key.iter_mut().enumerate() {
        *byte = (0..8).fold(0, |value, place| value << 1 | bit(n * 8 + place));
    }
    Some(key)
}

fn bit_at(bytes: &[u8], n: usize) -> u8 {
    bytes.get(n / 8).map_or(0, |byte| byte >> (7 - n % 8) & 1)
}

fn polymod<'a>(prefix: &str, digits: impl Iterator<Item = &'a u8>) -> u32 {
    let high = prefix.bytes().map(|letter| letter >> 5);
    let low = prefix.bytes().map(|letter| letter & 31);
    let all = high.chain([0]).chain(low).chain(digits.copied());
    all.fold(1, |checksum, digit| {
        let top = checksum >> 25;
        let shifted = (checksum & 0x01ff_ffff) << 5 ^ u32::from(digit);
        let used = GENERATOR
            .iter()
            .enumerate()
            .filter(|(bit, _)| top >> bit & 1 == 1);
        used.fold(shifted, |checksum, (_, generator)| checksum ^ generator)
    })
}
