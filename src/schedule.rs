//! When something is due: a calendar of five fields, as in crontab(5), read in a server's time zone.
//!
//! `minute hour day-of-month month day-of-week`, each `*`, a number, a range, a list, or one of these with a step;
//! months and weekdays also by name; or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. As in every cron, a day
//! counts when either of its two fields names it, if both are restricted.
//!
//! A schedule names minutes of the local calendar. When clocks change, none of them is left out and none comes twice: a
//! minute that the clocks skip is due as much later as they were moved, and of a minute that comes twice the first one
//! counts.

use std::fmt;
use std::str::FromStr;

use barmanfs_pg::TimestampMicros;
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// How far ahead the next time is looked for: 29 February comes after eight years at the latest.
const DAYS_AHEAD: usize = 8 * 366 + 2;

/// The clocks of a zone are moved by at most a day. So what is due on a day comes before what is due this many days later.
const DAYS_MIXED: usize = 2;

/// Words for whole schedules.
const WORDS: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];

const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A calendar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    text: String,
    minutes: Numbers,
    hours: Numbers,
    days: Numbers,
    months: Numbers,
    weekdays: Numbers,
}

/// The numbers that a field names, a bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers {
    bits: u64,
    /// It does not begin with `*`.
    restricted: bool,
}

/// What a field may contain.
#[derive(Debug, Clone, Copy)]
struct Field {
    name: &'static str,
    first: u8,
    last: u8,
    /// Names for the numbers from `first` on.
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field::numbers("minute", 0, 59),
    Field::numbers("hour", 0, 23),
    Field::numbers("day of the month", 1, 31),
    Field {
        name: "month",
        first: 1,
        last: 12,
        names: &MONTHS,
    },
    // 7 is Sunday, too.
    Field {
        name: "day of the week",
        first: 0,
        last: 7,
        names: &WEEKDAYS,
    },
];

impl Field {
    const fn numbers(name: &'static str, first: u8, last: u8) -> Self {
        Self {
            name,
            first,
            last,
            names: &[],
        }
    }

    fn parse(&self, text: &str) -> Result<Numbers, String> {
        let mut bits = 0;
        for part in text.split(',') {
            bits |= self.part(part)?;
        }
        Ok(Numbers {
            bits,
            restricted: !text.starts_with('*'),
        })
    }

    /// `*`, `5`, `1-5`, and each with `/2` behind it.
    fn part(&self, part: &str) -> Result<u64, String> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(self.step(step)?)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (self.first, self.last),
            Some((first, last)) => (self.number(first)?, self.number(last)?),
            // `5/10` goes on to the end, as in other crons.
            None => {
                let first = self.number(range)?;
                (first, if step.is_some() { self.last } else { first })
            }
        };
        if first > last {
            return Err(format!("the range {range} of the {} is empty", self.name));
        }
        let numbers = (first..=last).step_by(step.unwrap_or(1));
        Ok(numbers.fold(0, |bits, number| bits | 1 << number))
    }

    fn number(&self, text: &str) -> Result<u8, String> {
        let lower = text.to_ascii_lowercase();
        if let Some(place) = self.names.iter().position(|name| *name == lower) {
            return Ok(self.first.saturating_add(u8::try_from(place).unwrap_or(u8::MAX)));
        }
        digits(text)
            .filter(|number| (self.first..=self.last).contains(number))
            .ok_or_else(|| {
                format!(
                    "'{text}' is no {}: allowed are {} to {}",
                    self.name, self.first, self.last
                )
            })
    }

    fn step(&self, text: &str) -> Result<usize, String> {
        digits(text)
            .filter(|step| *step > 0)
            .map(usize::from)
            .ok_or_else(|| format!("'{text}' is no step of the {}", self.name))
    }
}

fn digits(text: &str) -> Option<u8> {
    let only_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| only_digits)
}

impl Numbers {
    fn has(self, number: i8) -> bool {
        u32::try_from(number).is_ok_and(|number| self.bits >> number & 1 == 1)
    }

    fn each(self, last: i8) -> impl Iterator<Item = i8> {
        (0..=last).filter(move |number| self.has(*number))
    }
}

impl FromStr for Schedule {
    type Err = String;

    /// The error continues a sentence: "… is wrong: 'x' is no hour: allowed are 0 to 23".
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let lower = text.to_ascii_lowercase();
        let word = WORDS.iter().find(|(word, _)| *word == lower);
        let fields: Vec<&str> = word.map_or(&*text, |(_, fields)| fields).split(' ').collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(
                "it must have five fields: minute, hour, day of the month, month, day of the week".to_owned(),
            );
        };
        let [minutes, hours, days, months, weekdays] = FIELDS;
        let mut weekdays = weekdays.parse(weekday)?;
        if weekdays.has(7) {
            weekdays.bits |= 1;
        }
        let schedule = Self {
            minutes: minutes.parse(minute)?,
            hours: hours.parse(hour)?,
            days: days.parse(day)?,
            months: months.parse(month)?,
            weekdays,
            text,
        };
        match schedule.next(TimestampMicros::from_unix_seconds(0), &TimeZone::UTC) {
            Some(_) => Ok(schedule),
            None => Err("no day is ever like that".to_owned()),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Schedule {
    /// The first moment after `after` that is due; `None` at the end of the calendar.
    pub(crate) fn next(&self, after: TimestampMicros, zone: &TimeZone) -> Option<TimestampMicros> {
        let after = Timestamp::from_microsecond(after.unix_micros()).ok()?;
        // What was skipped yesterday may be due today.
        let first = zone.to_datetime(after).date().checked_sub(2.days()).ok()?;
        let mut best: Option<Timestamp> = None;
        let mut left = DAYS_AHEAD;
        for date in first.series(1.day()) {
            if left == 0 {
                break;
            }
            left -= 1;
            if let Some(found) = self.first_on(date, after, zone) {
                if best.is_none() {
                    left = left.min(DAYS_MIXED);
                }
                best = Some(best.map_or(found, |best| best.min(found)));
            }
        }
        best.map(TimestampMicros::from)
    }

    /// The first moment after `after` that is due on this day.
    fn first_on(&self, date: Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if !self.includes(date) {
            return None;
        }
        let times = self.hours.each(23).flat_map(|hour| {
            self.minutes
                .each(59)
                .filter_map(move |minute| Time::new(hour, minute, 0, 0).ok())
        });
        times
            .filter_map(|time| moment(date, time, zone))
            .filter(|moment| *moment > after)
            .min()
    }

    fn includes(&self, date: Date) -> bool {
        let day = self.days.has(date.day());
        let weekday = self.weekdays.has(date.weekday().to_sunday_zero_offset());
        let either = self.days.restricted && self.weekdays.restricted;
        self.months.has(date.month()) && if either { day || weekday } else { day && weekday }
    }
}

/// The moment of a local time: a skipped one is as much later as the clocks were moved; of two, the first counts.
fn moment(date: Date, time: Time, zone: &TimeZone) -> Option<Timestamp> {
    let local = date.to_datetime(time);
    zone.to_ambiguous_zoned(local)
        .compatible()
        .ok()
        .map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn at(text: &str) -> TimestampMicros {
        text.parse::<Timestamp>().unwrap().into()
    }

    fn next(schedule: &str, after: &str, zone_name: &str) -> String {
        let schedule: Schedule = schedule.parse().unwrap();
        let next = schedule.next(at(after), &zone(zone_name)).unwrap();
        Timestamp::from_microsecond(next.unix_micros())
            .unwrap()
            .to_string()
    }

    #[test]
    fn a_day_is_that_of_the_zone() {
        let nightly = "0 2 * * *";
        assert_eq!(
            next(nightly, "2026-11-20T00:30:00Z", "Europe/Paris"),
            "2026-11-20T01:00:00Z"
        );
        assert_eq!(
            next(nightly, "2026-11-20T01:00:00Z", "Europe/Paris"),
            "2026-11-21T01:00:00Z"
        );
        assert_eq!(
            next(nightly, "2026-11-20T00:30:00Z", "America/New_York"),
            "2026-11-20T07:00:00Z"
        );
        assert_eq!(
            next(nightly, "2026-11-20T00:30:00Z", "Asia/Kolkata"),
            "2026-11-20T20:30:00Z"
        );
    }

    #[test]
    fn names_ranges_lists_and_steps_are_read() {
        let after = "2026-11-20T12:00:00Z";
        assert_eq!(next("*/20 6-8,22 * * *", after, "UTC"), "2026-11-20T22:00:00Z");
        assert_eq!(next("30 4 * * SUN", after, "UTC"), "2026-11-22T04:30:00Z");
        assert_eq!(next("30 4 * * 7", after, "UTC"), "2026-11-22T04:30:00Z");
        assert_eq!(next("0 0 29 feb *", after, "UTC"), "2028-02-29T00:00:00Z");
        assert_eq!(next("0 5/6 * * *", after, "UTC"), "2026-11-20T17:00:00Z");
        assert_eq!(next("@monthly", after, "UTC"), "2026-12-01T00:00:00Z");
        // Either field of the day, if both are restricted.
        assert_eq!(next("0 0 13 * fri", after, "UTC"), "2026-11-27T00:00:00Z");
    }

    #[test]
    fn when_clocks_change_each_minute_comes_once() {
        let nightly = "30 2 * * *";
        // The night of 29 March has no 02:30, that of 25 October two.
        assert_eq!(
            next(nightly, "2026-03-28T12:00:00Z", "Europe/Berlin"),
            "2026-03-29T01:30:00Z"
        );
        assert_eq!(
            next(nightly, "2026-03-29T01:30:00Z", "Europe/Berlin"),
            "2026-03-30T00:30:00Z"
        );
        assert_eq!(
            next(nightly, "2026-10-24T12:00:00Z", "Europe/Berlin"),
            "2026-10-25T00:30:00Z"
        );
        assert_eq!(
            next(nightly, "2026-10-25T00:30:00Z", "Europe/Berlin"),
            "2026-10-26T01:30:00Z"
        );
        // Samoa had no 30 December 2011.
        assert_eq!(
            next("0 12 30 12 *", "2011-12-29T00:00:00Z", "Pacific/Apia"),
            "2011-12-30T22:00:00Z"
        );
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for (text, why) in [
            ("0 2 * *", "five fields"),
            ("60 2 * * *", "'60' is no minute: allowed are 0 to 59"),
            ("0 +2 * * *", "'+2' is no hour"),
            ("0 5-3 * * *", "the range 5-3 of the hour is empty"),
            ("*/0 * * * *", "'0' is no step"),
            ("0 0 30 2 *", "no day is ever like that"),
            ("0 0 * jam *", "'jam' is no month"),
            ("", "five fields"),
        ] {
            let refused = text.parse::<Schedule>().unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    /// The same, minute by minute.
    fn model(schedule: &Schedule, after: Timestamp, zone: &TimeZone, days: i64) -> Option<TimestampMicros> {
        let first = zone
            .to_datetime(after)
            .date()
            .saturating_sub(2.days())
            .at(0, 0, 0, 0);
        let named = |numbers: Numbers, number: i8| numbers.bits & (1 << number) != 0;
        let minutes = first
            .series(1.minute())
            .take(usize::try_from((days + 4) * 1440).unwrap());
        let due = minutes.filter(|local| {
            let (day, weekday) = (
                named(schedule.days, local.day()),
                named(schedule.weekdays, local.weekday().to_sunday_zero_offset()),
            );
            let on_day = match (schedule.days.restricted, schedule.weekdays.restricted) {
                (true, true) => day || weekday,
                _ => day && weekday,
            };
            on_day
                && named(schedule.months, local.month())
                && named(schedule.hours, local.hour())
                && named(schedule.minutes, local.minute())
        });
        due.filter_map(|local| {
            let zoned = zone.to_ambiguous_zoned(local).compatible().ok()?;
            Some(zoned.timestamp()).filter(|found| *found > after)
        })
        .min()
        .map(Into::into)
    }

    fn field(first: u8, last: u8) -> impl Strategy<Value = String> {
        let number = first..=last;
        prop_oneof![
            2 => Just("*".to_owned()),
            2 => number.clone().prop_map(|number| number.to_string()),
            1 => (number.clone(), number.clone()).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
            1 => (number.clone(), number).prop_map(|(a, b)| format!("{a},{b}")),
            1 => (2_u8..=20).prop_map(|step| format!("*/{step}")),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_next_time_is_that_of_a_search_minute_by_minute(
            fields in (field(0, 59), field(0, 23), prop_oneof![3 => Just("*".to_owned()), 1 => field(1, 31)], field(0, 7)),
            zone_name in prop::sample::select(&["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana"][..]),
            near in prop::sample::select(&["2026-03-08T04:00:00Z", "2026-03-29T00:00:00Z", "2026-04-04T14:00:00Z", "2026-10-25T00:00:00Z", "2026-11-01T05:00:00Z", "2026-12-31T20:00:00Z"][..]),
            minutes in -3000_i64..3000,
        ) {
            let (minute, hour, day, weekday) = fields;
            let text = format!("{minute} {hour} {day} * {weekday}");
            let Ok(schedule) = text.parse::<Schedule>() else { return Ok(()) };
            let after = near.parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_mins(minutes);
            let zone = zone(zone_name);
            const DAYS: i64 = 70;
            let expected = model(&schedule, after, &zone, DAYS);
            let found = schedule.next(after.into(), &zone);
            if expected.is_some() {
                prop_assert_eq!(found, expected, "{} in {} after {}", text, zone_name, after);
            } else {
                let end = after + jiff::SignedDuration::from_hours(24 * (DAYS - 1));
                prop_assert!(found.is_none_or(|found| found > end.into()), "{} in {} after {}", text, zone_name, after);
            }
        }
    }
}
