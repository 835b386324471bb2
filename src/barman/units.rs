//! Sizes, times and durations as Barman writes them.

use barmanfs_pg::TimestampMicros;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// `53.3 MiB`
pub(super) fn size(bytes: u64) -> String {
    const UNITS: &[&str] = &["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[allow(clippy::cast_precision_loss, reason = "shown with one digit")]
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"");
    while value >= 1024.0
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// `99.47%`
pub(super) fn percent(ratio: f64) -> String {
    format!("{:.2}%", ratio * 100.0)
}

/// A ratio of two numbers of bytes, 0 for nothing.
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "shown with a few digits")]
    let (part, whole) = (part as f64, whole as f64);
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// A time on this host, as C's `ctime` writes it: `Sat Nov 28 15:55:19 2026`.
pub(super) fn moment(time: TimestampMicros) -> String {
    local(time).strftime("%a %b %e %H:%M:%S %Y").to_string()
}

/// A time on this host: `2026-11-28 15:55:19.123456+01:00`.
pub(super) fn iso(time: TimestampMicros) -> String {
    local(time).strftime("%Y-%m-%d %H:%M:%S.%6f%:z").to_string()
}

/// `1 hour, 2 minutes, 3 seconds`; `less than one second`
pub(super) fn duration(seconds: u64) -> String {
    let parts = [
        (seconds / 86_400, "day"),
        (seconds / 3600 % 24, "hour"),
        (seconds / 60 % 60, "minute"),
        (seconds % 60, "second"),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number} {unit}{}", if *number == 1 { "" } else { "s" }))
        .collect();
    match parts.as_slice() {
        [] => "less than one second".to_owned(),
        parts => parts.join(", "),
    }
}

fn local(time: TimestampMicros) -> Zoned {
    let time = Timestamp::from_microsecond(time.unix_micros()).unwrap_or(Timestamp::UNIX_EPOCH);
    time.to_zoned(TimeZone::system())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_barmans() {
        assert_eq!([size(0), size(1023), size(1024)], ["0 B", "1023 B", "1.0 KiB"]);
        assert_eq!([size(55_872_146), size(5 << 40)], ["53.3 MiB", "5.0 TiB"]);
        assert_eq!(percent(ratio(1, 8)), "12.50%");
        assert_eq!(percent(ratio(1, 0)), "0.00%");
        assert_eq!(duration(0), "less than one second");
        assert_eq!(duration(90_061), "1 day, 1 hour, 1 minute, 1 second");
        assert_eq!(duration(7200), "2 hours");
    }
}
