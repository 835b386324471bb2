//! Targets of every kind on a known history, in every form that a person may write, and the state that each must lead
//! to.

use super::history::{Course, Event, History, What, ZONE, lsn_text};
use crate::common::random::Random;

/// The forms of a time: `to_char`'s format, the zone, and the suffix.
const TIMES: [(&str, &str, &str); 8] = [
    ("YYYY-MM-DD HH24:MI:SS.US", "UTC", "+00"),
    ("YYYY-MM-DD HH24:MI:SS.US", ZONE, ""),
    ("YYYY-MM-DD\"T\"HH24:MI:SS.US", "UTC", "Z"),
    ("YYYY-MM-DD HH24:MI:SS.US", "Europe/Paris", " Europe%2FParis"),
    ("YYYY-MM-DD HH24:MI:SS.US", "Asia/Kolkata", "+05:30"),
    ("YYYYMMDD\"T\"HH24MISS.US", "UTC", "Z"),
    ("DD Mon YYYY HH24:MI:SS.US", "UTC", " UTC"),
    ("Mon DD, YYYY HH12:MI:SS.US AM", "UTC", " GMT"),
];

/// A target, and the marks in a copy that is recovered to it.
pub(crate) type Target = (String, String);

impl History {
    /// A target of the next kind in turn, on a random timeline.
    pub(crate) fn target(&self, round: usize, random: &mut Random) -> Target {
        let timeline = random.below(self.courses.len() as u64) as usize;
        let course = &self.courses[timeline];
        let (mut target, expected) = match round % 6 {
            0 | 1 => self.time(course, random),
            2 => lsn(course, random),
            3 => xid(course, random),
            4 => name(course, random),
            _ => end(course, random),
        };
        // Without a timeline in the target, the newest one is meant.
        if timeline + 1 < self.courses.len() || random.below(3) == 0 {
            target += &format!(",timeline={}", timeline + 1);
        }
        if random.below(5) == 0 {
            target += ",self-contained";
        }
        (target, expected)
    }

    fn time(&self, course: &Course, random: &mut Random) -> Target {
        let (_, event) = choose(course, random, |event| matches!(event.what, What::Mark { .. }));
        // Exactly at a commit, or a little later. PostgreSQL stops at a commit that is later than the target or, for an
        // exclusive one, not earlier.
        let later = random.below(2) as i64 * random.below(3000) as i64;
        let exclusive = random.below(3) == 0;
        let latest = course.last_time() - i64::from(!exclusive);
        let time = (event.time + later).min(latest);
        let marked = |event: &&Event| event.time < time + i64::from(!exclusive);
        let count = course.events.iter().take_while(marked).count();
        let written = self.written(time, random.below(TIMES.len() as u64) as usize);
        let prefix = if random.below(3) == 0 { "time:" } else { "" };
        let suffix = if exclusive { ",exclusive" } else { "" };
        (format!("{prefix}{written}{suffix}"), course.marks_after(count))
    }

    /// A time in one of the forms.
    pub(crate) fn written(&self, micros: i64, form: usize) -> String {
        let (format, zone, suffix) = TIMES[form];
        let text = self.server.query(&format!(
            "SELECT to_char((timestamptz 'epoch' + {micros} * interval '1 microsecond') AT TIME ZONE '{zone}', '{format}')"
        ));
        text + suffix
    }
}

fn choose<'a>(
    course: &'a Course,
    random: &mut Random,
    wanted: impl Fn(&Event) -> bool,
) -> (usize, &'a Event) {
    let places: Vec<usize> = course
        .reachable()
        .filter(|place| wanted(&course.events[*place]))
        .collect();
    let place = places[random.below(places.len() as u64) as usize];
    (place, &course.events[place])
}

fn lsn(course: &Course, random: &mut Random) -> Target {
    let (place, event) = choose(course, random, |_| true);
    let written = match random.below(4) {
        0 => lsn_text(event.lsn, "-"),
        1 => lsn_text(event.lsn, "%2F"),
        2 => lsn_text(event.lsn, "-").to_lowercase(),
        _ => format!("lsn:{}", lsn_text(event.lsn, "%2f")),
    };
    // Between an event and the next one there is at least one record that changes no mark.
    let suffix = if random.below(2) == 0 { ",exclusive" } else { "" };
    (written + suffix, course.marks_after(place + 1))
}

fn xid(course: &Course, random: &mut Random) -> Target {
    let (place, event) = choose(course, random, |event| event.xid().is_some());
    let xid = event.xid().expect("a transaction");
    match random.below(3) {
        0 => (format!("xid:{xid},exclusive"), course.marks_after(place)),
        _ => (format!("xid:{xid}"), course.marks_after(place + 1)),
    }
}

fn name(course: &Course, random: &mut Random) -> Target {
    let (place, event) = choose(course, random, |event| matches!(event.what, What::Point(_)));
    let What::Point(name) = &event.what else {
        panic!("Not a restore point: {event:?}")
    };
    let written = name.replace('%', "%25").replace('/', "%2F").replace(',', "%2C");
    (format!("name:{written}"), course.marks_after(place + 1))
}

/// The end of the log, or of the newest backup.
fn end(course: &Course, random: &mut Random) -> Target {
    let newest = course
        .events
        .iter()
        .rposition(|event| matches!(event.what, What::BackupEnd))
        .expect("a backup");
    match random.below(3) {
        0 => ("immediate".to_owned(), course.marks_after(newest + 1)),
        _ => ("now".to_owned(), course.marks_after(course.events.len())),
    }
}
