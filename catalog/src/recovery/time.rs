//! Parses times as people and programs write them, in the way PostgreSQL reads a `timestamptz`.
//!
//! Everything that PostgreSQL accepts with one meaning is accepted: ISO 8601 with a space or `T`, a month's name,
//! weekdays, AM and PM, the output of `date` and `date -R`, offsets, zones by full name and by the abbreviations it
//! knows. Rejected is what depends on its `DateStyle` (`11/12/2026`) or on when it is read (`now`, `yesterday`), and
//! abbreviations that mean different zones to different people: a recovery to the wrong hour is worse than an error.

use std::fmt;

use barmanfs_pg::TimestampMicros;
use jiff::SignedDuration;
use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};

use crate::archive::backup::Backup;

/// A moment to recover to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeTarget {
    /// A point in time.
    At(TimestampMicros),
    /// A local time without a zone: the server's zone is meant.
    Local(DateTime),
}

impl TimeTarget {
    /// The point in time; a local time is read in `zone`. As in PostgreSQL, a time skipped by a clock change is read
    /// with the offset from before the change, and of two equal times after a clock change the later one is meant.
    #[must_use]
    pub fn resolve(&self, zone: &TimeZone) -> TimestampMicros {
        match *self {
            Self::At(moment) => moment,
            Self::Local(local) => {
                in_zone(local, zone).unwrap_or(TimestampMicros::from_unix_seconds(i64::MAX))
            }
        }
    }
}

impl fmt::Display for TimeTarget {
    /// As PostgreSQL writes it, without zeroes at the end of the fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(moment) => {
                let text = moment.to_string();
                let local = text.strip_suffix("+00").unwrap_or(&text);
                write!(f, "{}+00", without_zeroes(local))
            }
            Self::Local(local) => f.write_str(without_zeroes(
                &local.strftime("%Y-%m-%d %H:%M:%S.%6f").to_string(),
            )),
        }
    }
}

fn without_zeroes(text: &str) -> &str {
    text.trim_end_matches('0').trim_end_matches('.')
}

fn in_zone(local: DateTime, zone: &TimeZone) -> Option<TimestampMicros> {
    let moment = zone.to_ambiguous_zoned(local).later().ok()?.timestamp();
    Some(moment.into())
}

/// Words that PostgreSQL reads as a time but that do not name one moment in the WAL.
const MOVING: [&str; 8] = [
    "now",
    "today",
    "tomorrow",
    "yesterday",
    "infinity",
    "-infinity",
    "epoch",
    "allballs",
];

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

const WEEKDAYS: [&str; 7] = [
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
];

/// Abbreviations of PostgreSQL's default set that have one meaning, with their offset in minutes.
const ABBREVIATIONS: [(&str, i32); 38] = [
    ("z", 0),
    ("zulu", 0),
    ("utc", 0),
    ("uct", 0),
    ("ut", 0),
    ("gmt", 0),
    ("wet", 0),
    ("bst", 60),
    ("cet", 60),
    ("met", 60),
    ("wat", 60),
    ("cest", 120),
    ("mest", 120),
    ("eet", 120),
    ("sast", 120),
    ("eest", 180),
    ("eat", 180),
    ("msk", 180),
    ("pkt", 300),
    ("hkt", 480),
    ("sgt", 480),
    ("awst", 480),
    ("jst", 540),
    ("kst", 540),
    ("acst", 570),
    ("aest", 600),
    ("acdt", 630),
    ("aedt", 660),
    ("nzst", 720),
    ("nzdt", 780),
    ("brt", -180),
    ("edt", -240),
    ("est", -300),
    ("cdt", -300),
    ("mdt", -360),
    ("mst", -420),
    ("pdt", -420),
    ("pst", -480),
];

/// Abbreviations used by several zones.
const AMBIGUOUS_ZONES: [&str; 4] = ["ist", "cst", "ast", "gst"];

/// The largest offset that PostgreSQL accepts, in seconds: 15:59:59.
const MAX_OFFSET_SECONDS: i32 = 16 * 3600 - 1;

/// Reads a time.
///
/// # Errors
/// Why the text is not a time, or not exactly one: the end of a sentence that begins with the text.
pub(super) fn parse(text: &str) -> Result<TimeTarget, String> {
    let mut parts = Parts::default();
    for word in text.split([' ', '\t', ',']).filter(|word| !word.is_empty()) {
        parts.word(word)?;
    }
    parts.finish()
}

/// The parts of the time found so far.
#[derive(Debug, Default)]
struct Parts {
    year: Option<i16>,
    month: Option<i8>,
    day: Option<i8>,
    /// Microseconds from midnight.
    time: Option<i64>,
    afternoon: Option<bool>,
    zone: Option<TimeZone>,
}

/// Sets a part that may occur only once.
fn once<T>(slot: &mut Option<T>, value: T, what: &str) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("says {what} twice")),
    }
}

impl Parts {
    fn word(&mut self, word: &str) -> Result<(), String> {
        let lower = word.to_ascii_lowercase();
        if MOVING.contains(&lower.as_str()) {
            return Err(format!(
                "has '{word}' in it, which is another moment each time it is read"
            ));
        }
        let starts_with_digit = lower.starts_with(|c: char| c.is_ascii_digit());
        if starts_with_digit && let Some((date, time)) = split_at_t(&lower) {
            self.date(date)?;
            return self.time_of_day(time);
        }
        if lower.contains(':') && starts_with_digit {
            return self.time_of_day(&lower);
        }
        if lower.starts_with(['+', '-']) {
            return self.zone(word);
        }
        if starts_with_digit {
            return self.date(&lower);
        }
        if let Some(month) = named(&lower, &MONTHS) {
            return once(&mut self.month, month, "the month");
        }
        match lower.as_str() {
            "am" | "pm" => once(&mut self.afternoon, lower == "pm", "AM or PM"),
            _ if named(&lower, &WEEKDAYS).is_some() => Ok(()),
            _ if lower.contains('-') && lower.split('-').count() == 3 => self.date(&lower),
            _ => self.zone(word),
        }
    }

    /// `2026-11-20`, `20261120`, `20-nov-2026`; or, next to a month's name, a day or a year.
    fn date(&mut self, text: &str) -> Result<(), String> {
        let separated: Vec<&str> = text.split(['-', '/', '.']).collect();
        let wrong = || format!("has no date in '{text}'");
        match separated.as_slice() {
            [digits] if digits.len() == 8 => {
                let (year, rest) = digits.split_at_checked(4).ok_or_else(wrong)?;
                let (month, day) = rest.split_at_checked(2).ok_or_else(wrong)?;
                self.calendar(year, month, day)
            }
            [year] if year.len() == 4 => once(&mut self.year, number(year)?, "the year"),
            [day] if day.len() <= 2 => once(&mut self.day, number(day)?, "the day"),
            [year, month, day] if year.len() >= 4 && is_number(year) => self.calendar(year, month, day),
            [day, month, year] if year.len() >= 4 && is_number(year) => {
                if is_number(day) && is_number(month) {
                    return Err(format!(
                        "has the date '{text}', where day and month are a matter of taste: write it as {year}-MM-DD"
                    ));
                }
                // PostgreSQL also writes the month first: Nov-20-2026.
                let (day, month) = if is_number(day) {
                    (day, month)
                } else {
                    (month, day)
                };
                self.calendar(year, month, day)
            }
            _ => Err(format!("{}: write a date as 2026-11-20", wrong())),
        }
    }

    fn calendar(&mut self, year: &str, month: &str, day: &str) -> Result<(), String> {
        let month = match named(month, &MONTHS) {
            Some(month) => month,
            None => number(month)?,
        };
        once(&mut self.year, number(year)?, "the date")?;
        once(&mut self.month, month, "the month")?;
        once(&mut self.day, number(day)?, "the day")
    }

    /// `14:03`, `14:03:07.123456`, `140307`, followed by `pm` or a zone.
    fn time_of_day(&mut self, text: &str) -> Result<(), String> {
        let is_clock = |c: char| c.is_ascii_digit() || matches!(c, ':' | '.');
        let end = text.find(|c| !is_clock(c)).unwrap_or(text.len());
        let (clock, rest) = text.split_at(end);
        once(&mut self.time, clock_micros(clock)?, "the time")?;
        match rest {
            "" => Ok(()),
            "am" | "pm" => once(&mut self.afternoon, rest == "pm", "AM or PM"),
            zone => self.zone(zone),
        }
    }

    fn zone(&mut self, text: &str) -> Result<(), String> {
        once(&mut self.zone, zone(text)?, "the zone")
    }

    fn finish(self) -> Result<TimeTarget, String> {
        let (Some(year), Some(month), Some(day)) = (self.year, self.month, self.day) else {
            return Err("has no complete date".to_owned());
        };
        let date = Date::new(year, month, day)
            .map_err(|_| format!("has a date that no calendar has: {year:04}-{month:02}-{day:02}"))?;
        let micros = self.time.unwrap_or(0) + afternoon(self.time, self.afternoon)?;
        let local = date
            .at(0, 0, 0, 0)
            .checked_add(SignedDuration::from_micros(micros))
            .map_err(|_| "is beyond all calendars".to_owned())?;
        match self.zone {
            None => Ok(TimeTarget::Local(local)),
            Some(zone) => in_zone(local, &zone)
                .map(TimeTarget::At)
                .ok_or_else(|| "is beyond all calendars".to_owned()),
        }
    }
}

/// The date and the time around the `T` of ISO 8601.
fn split_at_t(lower: &str) -> Option<(&str, &str)> {
    let (date, time) = lower.split_once('t')?;
    let digits = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    (digits(time) && date.chars().all(|c| c.is_ascii_digit() || c == '-')).then_some((date, time))
}

/// The number, from 1, of a name or of its abbreviation to three letters or more.
fn named(lower: &str, names: &[&str]) -> Option<i8> {
    let lower = lower.trim_end_matches('.');
    let position = names
        .iter()
        .position(|name| lower.len() >= 3 && name.starts_with(lower))?;
    i8::try_from(position + 1).ok()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    is_number(text)
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| format!("has '{text}' where a number should be"))
}

/// Microseconds from midnight.
fn clock_micros(clock: &str) -> Result<i64, String> {
    let wrong = || format!("has the time '{clock}', which no clock shows: write it as 14:03:07");
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let fields: Vec<&str> = if whole.contains(':') {
        whole.split(':').collect()
    } else {
        [0, 2, 4].iter().filter_map(|&at| whole.get(at..at + 2)).collect()
    };
    let digits = if whole.contains(':') {
        whole.len()
    } else {
        fields.len() * 2
    };
    let (hour, minute, second) = match fields.as_slice() {
        [hour, minute] if fraction.is_empty() => (number::<i64>(hour)?, number::<i64>(minute)?, 0),
        [hour, minute, second] => (
            number::<i64>(hour)?,
            number::<i64>(minute)?,
            number::<i64>(second)?,
        ),
        _ => return Err(wrong()),
    };
    // PostgreSQL accepts the end of a day and a leap second, too.
    let in_range = minute < 60 && second <= 60 && (hour < 24 || (hour, minute, second) == (24, 0, 0));
    if !in_range || digits != whole.len() {
        return Err(wrong());
    }
    Ok(((hour * 60 + minute) * 60 + second) * 1_000_000 + fraction_micros(fraction)?)
}

/// Rounded to the microsecond, as PostgreSQL does.
fn fraction_micros(fraction: &str) -> Result<i64, String> {
    if fraction.is_empty() {
        return Ok(0);
    }
    let digits: String = fraction.chars().chain("0000000".chars()).take(7).collect();
    Ok((number::<i64>(&digits)? + 5) / 10)
}

/// The microseconds that AM or PM adds to the time.
fn afternoon(time: Option<i64>, afternoon: Option<bool>) -> Result<i64, String> {
    const HOUR: i64 = 3_600_000_000;
    let Some(afternoon) = afternoon else { return Ok(0) };
    let time = time.ok_or("has AM or PM and no time")?;
    if !(HOUR..13 * HOUR).contains(&time) {
        return Err("has AM or PM with an hour that is not one from 1 to 12".to_owned());
    }
    Ok(match (afternoon, time >= 12 * HOUR) {
        (true, false) => 12 * HOUR,
        (false, true) => -12 * HOUR,
        (true, true) | (false, false) => 0,
    })
}

fn zone(text: &str) -> Result<TimeZone, String> {
    if text.starts_with(['+', '-']) {
        return offset(text);
    }
    let lower = text.to_ascii_lowercase();
    if AMBIGUOUS_ZONES.contains(&lower.as_str()) {
        return Err(format!(
            "has the zone {text}, which several places use for their own: write an offset like +05:30, or a full name like Europe/Paris"
        ));
    }
    if let Some((_, minutes)) = ABBREVIATIONS.iter().find(|(name, _)| *name == lower) {
        return fixed(minutes * 60);
    }
    let is_abbreviation_with_offset = lower.contains(['+', '-']) && !lower.contains('/');
    let found = (!is_abbreviation_with_offset)
        .then(|| TimeZone::get(text).ok())
        .flatten();
    found.ok_or_else(|| {
        format!("has '{text}', which is no zone known here: write an offset like +05:30, or a full name like Europe/Paris")
    })
}

/// `+00`, `-3`, `+0530`, `+05:30`, `+05:30:00`
fn offset(text: &str) -> Result<TimeZone, String> {
    let wrong = || format!("has '{text}', which is no offset from UTC like +00, +0530 or +05:30");
    let (sign, digits) = text.split_at_checked(1).ok_or_else(wrong)?;
    let fields: Vec<&str> = match (digits.contains(':'), digits.len()) {
        (true, _) => digits.split(':').collect(),
        (false, 1 | 2) => vec![digits],
        (false, 3 | 4) => {
            let (hours, minutes) = digits.split_at_checked(digits.len() - 2).ok_or_else(wrong)?;
            vec![hours, minutes]
        }
        _ => return Err(wrong()),
    };
    let mut seconds = 0;
    for (place, field) in fields.iter().enumerate() {
        let value: i32 = number(field).map_err(|_| wrong())?;
        let unit = match place {
            0 => 3600,
            1 if value < 60 => 60,
            2 if value < 60 => 1,
            _ => return Err(wrong()),
        };
        seconds += value.min(100) * unit;
    }
    fixed(if sign == "-" { -seconds } else { seconds })
}

fn fixed(seconds: i32) -> Result<TimeZone, String> {
    (seconds.abs() <= MAX_OFFSET_SECONDS)
        .then(|| Offset::from_seconds(seconds).ok())
        .flatten()
        .map(TimeZone::fixed)
        .ok_or_else(|| "has an offset from UTC of more than 15:59:59".to_owned())
}

/// The zone a server calls `name`; none if it is unknown here.
#[must_use]
pub(super) fn server_zone(name: &str) -> Option<TimeZone> {
    zone(name).ok()
}

/// The time zone of the server whose backups these are, oldest first: that of the newest one that tells it. UTC before the
/// first one, and where the zone is not known here.
pub fn zone_of(backups: &[Backup]) -> TimeZone {
    let name = backups.iter().rev().find_map(|backup| backup.timezone.as_deref());
    name.and_then(server_zone).unwrap_or(TimeZone::UTC)
}

/// A moment for messages, with a fraction only if it has one.
pub(super) fn shown(moment: TimestampMicros) -> String {
    TimeTarget::At(moment).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use proptest::prelude::*;

    fn read(text: &str) -> String {
        parse(text)
            .unwrap_or_else(|error| panic!("{text}: {error}"))
            .to_string()
    }

    #[test]
    fn every_form_of_one_moment_is_read() {
        for text in [
            "2026-11-20 14:03:07+00",
            "2026-11-20T14:03:07Z",
            "2026-11-20t14:03:07z",
            "2026-11-20 14:03:07.000 UTC",
            "2026-11-20 15:03:07 CET",
            "2026-11-20 19:33:07+0530",
            "2026-11-20 19:33:07+05:30",
            "2026-11-20 19:33:07+05:30:00",
            "2026-11-20 11:03:07-3",
            "2026-11-20 15:03:07 Europe/Paris",
            "2026-11-20 15:03:07 europe/paris",
            "2026/11/20 14:03:07Z",
            "20261120T140307Z",
            "20261120 14:03:07Z",
            "20 Nov 2026 14:03:07 UTC",
            "20-Nov-2026 14:03:07 UTC",
            "Nov-20-2026 14:03:07 UTC",
            "November 20, 2026 2:03:07 PM UTC",
            "Nov 20, 2026 2:03:07PM UTC",
            "Fri Nov 20 14:03:07 UTC 2026",
            "Fri Nov 20 17:03:07 +03 2026",
            "Fri 20 Nov 2026 02:03:07 PM UTC",
            "Fri, 20 Nov 2026 15:03:07 +0100",
            "Friday 20 November 2026 14:03:07 GMT",
            "2:03:07 pm 20 nov 2026 zulu",
        ] {
            assert_eq!(read(text), "2026-11-20 14:03:07+00", "{text}");
        }
    }

    #[test]
    fn parts_of_a_second_and_of_a_day() {
        for (text, expected) in [
            ("2026-11-20 14:03:07.123456+00", "2026-11-20 14:03:07.123456+00"),
            ("2026-11-20 14:03:07.1234564Z", "2026-11-20 14:03:07.123456+00"),
            ("2026-11-20 14:03:07.9999996Z", "2026-11-20 14:03:08+00"),
            ("2026-11-20 14:03:07.5", "2026-11-20 14:03:07.5"),
            ("2026-11-20 14:03", "2026-11-20 14:03:00"),
            ("2026-11-20", "2026-11-20 00:00:00"),
            ("2026-11-20 24:00:00", "2026-11-21 00:00:00"),
            ("2026-11-20 23:59:60", "2026-11-21 00:00:00"),
            ("2026-11-20 12:10 AM", "2026-11-20 00:10:00"),
            ("2026-11-20 12:10 PM", "2026-11-20 12:10:00"),
            ("2026-02-28 23:30-01", "2026-03-01 00:30:00+00"),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn ambiguous_times_are_refused_with_the_reason() {
        for (text, reason) in [
            ("11/12/2026 10:00", "matter of taste"),
            ("11-12-2026", "matter of taste"),
            ("20.11.2026", "matter of taste"),
            ("11/12/26", "no date"),
            ("now", "each time it is read"),
            ("yesterday 10:00", "each time it is read"),
            ("infinity", "each time it is read"),
            ("2026-11-20 25:00", "no clock"),
            ("2026-11-20 14:60", "no clock"),
            ("2026-11-20 14:03:07:08", "no clock"),
            ("2026-11-20 13:00 PM", "1 to 12"),
            ("2026-11-20 PM", "no time"),
            ("2026-02-30", "no calendar"),
            ("2026-11", "no date"),
            ("Nov 2026", "no complete date"),
            ("14:03:07", "no complete date"),
            ("2026-11-20 2026-11-21", "twice"),
            ("2026-11-20 10:00 11:00", "twice"),
            ("2026-11-20 10:00+00 UTC", "twice"),
            ("2026-11-20 10:00 IST", "several places"),
            ("2026-11-20 10:00 UTC+2", "no zone"),
            ("2026-11-20 10:00 Nowhere/City", "no zone"),
            ("2026-11-20 10:00+1:2:3:4", "no offset"),
            ("2026-11-20 10:00+16", "15:59:59"),
            ("2026-11-20 10:00+99999999999", "no offset"),
            ("before_migration", "no zone"),
            ("", "no complete date"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_zone_changes_its_clocks_as_in_postgresql() {
        let paris = server_zone("Europe/Paris").unwrap();
        let moment = |text: &str| shown(parse(text).unwrap().resolve(&paris));
        // The clocks changed from 02:00 to 03:00, then from 03:00 to 02:00.
        assert_eq!(moment("2026-03-29 02:30"), "2026-03-29 01:30:00+00");
        assert_eq!(moment("2026-10-25 02:30"), "2026-10-25 01:30:00+00");
        assert_eq!(moment("2026-07-01 12:00"), "2026-07-01 10:00:00+00");
        assert_eq!(moment("2026-07-01 12:00Z"), "2026-07-01 12:00:00+00");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-zA-Z:+., /-]{0,40}|\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn the_shown_form_is_read_back(micros in -30_000_000_000_000_000_i64..250_000_000_000_000_000) {
            let target = TimeTarget::At(TimestampMicros::from_unix_micros(micros));
            prop_assert_eq!(parse(&target.to_string()), Ok(target));
            let local = Timestamp::from_microsecond(micros).unwrap();
            let local = TimeTarget::Local(TimeZone::UTC.to_datetime(local));
            prop_assert_eq!(parse(&local.to_string()), Ok(local));
        }
    }
}
