//! Sizes in the notation of people: `134217728`, `128M`, `1G`.

/// Bytes, with binary units.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    scaled(text)
        .and_then(|(number, unit)| number.checked_mul(unit.unwrap_or(1)))
        .ok_or_else(|| "allowed is a size like 134217728, 128M or 1G".to_owned())
}

/// A number and, if it has a unit, the bytes of that unit.
pub(crate) fn scaled(text: &str) -> Option<(u64, Option<u64>)> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" => None,
        "k" | "kb" | "kib" => Some(1 << 10),
        "m" | "mb" | "mib" => Some(1 << 20),
        "g" | "gb" | "gib" => Some(1 << 30),
        "t" | "tb" | "tib" => Some(1 << 40),
        _ => return None,
    };
    Some((digits.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary() {
        assert_eq!(bytes("128M"), Ok(128 << 20));
        assert_eq!(bytes("17"), Ok(17));
        assert!(bytes("").is_err() && bytes("12 parsecs").is_err() && bytes("99999999999G").is_err());
    }
}
