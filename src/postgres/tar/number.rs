//! Numbers in tar headers.
//!
//! They are octal digits or, if the first bit is set, base 256: a two's complement number in the whole field, as GNU
//! writes it. PostgreSQL passes times as unsigned 64-bit numbers, so a time before 1970 is a number just below 2^64.

/// All fields fit: the longest one has 12 bytes.
type Wide = i128;

/// The number in a field; `None` if there is none.
pub(super) fn read(field: &[u8]) -> Option<Wide> {
    match field {
        [first @ 0x80..=0xFF, rest @ ..] => {
            // The first bit marks the form, and the second one is the sign. The number starts with an extension of the
            // sign.
            let start = if first & 0x40 == 0 {
                Wide::from(first & 0x7F)
            } else {
                Wide::from(*first) - 0x100
            };
            Some(
                rest.iter()
                    .fold(start, |value, &byte| value << 8 | Wide::from(byte)),
            )
        }
        _ => octal(field),
    }
}

/// Digits with blanks before and blanks or NULs after them.
fn octal(field: &[u8]) -> Option<Wide> {
    let digits = field.trim_ascii_start();
    let end = digits
        .iter()
        .position(|&byte| byte == b' ' || byte == 0)
        .unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    let ends_clean = rest.iter().all(|&byte| byte == b' ' || byte == 0);
    if digits.is_empty() || !ends_clean {
        return None;
    }
    digits.iter().try_fold(0, |value, &digit| {
        matches!(digit, b'0'..=b'7').then(|| value << 3 | Wide::from(digit - b'0'))
    })
}

/// The number as a time in seconds; `None` if it is out of range.
pub(super) fn seconds(number: Wide) -> Option<i64> {
    i64::try_from(number)
        .ok()
        // PostgreSQL's negative times have the same 64 bits.
        .or_else(|| u64::try_from(number).ok().map(u64::cast_signed))
}

/// A time of a pax record, `SECONDS[.FRACTION]`, rounded down to nanoseconds.
pub(super) fn pax_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = whole.strip_prefix('-').unwrap_or(whole);
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if digits.is_empty() || !all_digits(digits) || !all_digits(fraction) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanoseconds = (0..9).fold(0, |value: u32, at| {
        value * 10
            + fraction
                .as_bytes()
                .get(at)
                .map_or(0, |digit| u32::from(digit - b'0'))
    });
    if !whole.starts_with('-') {
        return Some((seconds, nanoseconds));
    }
    // -1.25 is 0.75 after -2. Fractions below a nanosecond round down as well.
    let more = fraction.bytes().skip(9).any(|digit| digit != b'0');
    let nanoseconds = nanoseconds + u32::from(more);
    match nanoseconds {
        0 => Some((seconds, 0)),
        _ => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of 12 bytes with what follows the first byte right-aligned.
    fn base_256(first: u8, fill: u8, last: &[u8]) -> [u8; 12] {
        let mut field = [fill; 12];
        field[0] = first;
        field[12 - last.len()..].copy_from_slice(last);
        field
    }

    #[test]
    fn numbers_of_both_forms() {
        assert_eq!(read(b"00000000017 "), Some(15));
        assert_eq!(read(b"  17\0\0\0\0\0\0\0\0"), Some(15));
        assert_eq!(read(b"777777777777"), Some((1 << 36) - 1));
        for wrong in [
            &b"            "[..],
            b"",
            b"\0\0",
            b"-1          ",
            b"8           ",
            b"1 2         ",
        ] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
        assert_eq!(read(&base_256(0x80, 0, &[1, 0])), Some(256));
        assert_eq!(read(&base_256(0xFF, 0xFF, &[0xFF])), Some(-1));
        assert_eq!(read(&base_256(0xFF, 0xFF, &[0xFE, 0])), Some(-512));
        assert_eq!(read(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE]), Some(-2));
    }

    #[test]
    fn times_before_1970_in_both_spellings() {
        let postgresql =
            |time: i64| seconds(read(&base_256(0x80, 0, &time.cast_unsigned().to_be_bytes())).unwrap());
        let gnu = |time: i64| seconds(read(&base_256(0xFF, 0xFF, &time.to_be_bytes())).unwrap());
        for time in [-1, -304_905_600, i64::MIN] {
            assert_eq!(postgresql(time), Some(time));
            assert_eq!(gnu(time), Some(time));
        }
        for time in [1 << 33, 16_725_225_600, i64::MAX] {
            assert_eq!(postgresql(time), Some(time));
        }
        assert_eq!(seconds(1 << 64), None);
        assert_eq!(seconds(-1 - (1 << 63)), None);
    }

    #[test]
    fn pax_times() {
        let cases = [
            ("0", Some((0, 0))),
            ("1795183387.123456789", Some((1_795_183_387, 123_456_789))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.0000000001", Some((-1, 999_999_999))),
            ("5.", Some((5, 0))),
            ("", None),
            (".5", None),
            ("-", None),
            ("1e3", None),
            ("+1", None),
            ("9999999999999999999999", None),
        ];
        for (text, expected) in cases {
            assert_eq!(pax_time(text), expected, "{text}");
        }
    }
}
