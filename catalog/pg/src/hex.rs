//! Bytes as lower-case hexadecimal digits, in text and in JSON.

use std::fmt::Write;

use serde::{Deserialize, Deserializer, Serializer, de};

/// Two digits for each byte.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// The bytes that `digits`, of either case, encode; `None` if that is not what they are.
#[must_use]
pub fn decode(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    let nibble = |digit: u8| {
        (digit as char)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    let (pairs, []) = digits.as_chunks::<2>() else {
        return None;
    };
    pairs
        .iter()
        .map(|&[high, low]| Some(nibble(high)? << 4 | nibble(low)?))
        .collect()
}

pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode(bytes))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    decode(&text).ok_or_else(|| de::Error::custom("an odd number of digits, or one that is not hexadecimal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses() {
        assert_eq!(encode(&[0, 0x8a, 0xff]), "008aff");
        assert_eq!(decode("008aFF"), Some(vec![0, 0x8a, 0xff]));
        assert_eq!(decode("00ffA7"), Some(vec![0, 255, 0xa7]));
        for wrong in ["0", "0g", "+1", "é", "zz"] {
            assert_eq!(decode(wrong), None, "{wrong:?}");
        }
    }
}
