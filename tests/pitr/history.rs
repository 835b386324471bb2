//! A server's history that is known in every detail: which marks were committed when, where and by which transaction, on
//! three timelines, one of them abandoned halfway.
//!
//! ```text
//! timeline 1  --A------B------f1.......      (work after f1 is on timeline 1 alone)
//! timeline 2                   `--C------f2....
//! timeline 3                             `--D-------
//! ```
//! A to D are backups. At f1 and f2 a copy out of `pitr/` is promoted, as by a DBA who makes it the production server,
//! and it archives into the same archive.

use crate::common::process::run;
use crate::common::random::Random;
use crate::common::{Install, Mount, PgServer, Site};
use std::fmt::Write as _;

/// All marks, as one line.
pub(crate) const MARKS: &str = "SELECT coalesce(string_agg(n::text, ' ' ORDER BY n), '') FROM marks";

/// The server's time zone.
pub(crate) const ZONE: &str = "America/New_York";

/// An event, in the order of the log.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) what: What,
    /// A position behind the event in the log, and before the next one.
    pub(crate) lsn: u64,
    /// When it was committed, in microseconds; the time of the event before if nothing was committed.
    pub(crate) time: i64,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    Mark {
        n: u32,
        xid: u64,
    },
    /// A transaction that was rolled back.
    Nothing {
        xid: u64,
    },
    Point(String),
    /// No earlier event is reachable without an earlier backup.
    BackupEnd,
}

impl Event {
    /// The transaction that ended with this event.
    pub(crate) fn xid(&self) -> Option<u64> {
        match self.what {
            What::Mark { xid, .. } | What::Nothing { xid } => Some(xid),
            What::Point(_) | What::BackupEnd => None,
        }
    }
}

/// The events of one timeline, from the first one on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Course {
    pub(crate) events: Vec<Event>,
}

impl Course {
    /// The marks after the first `count` events, in the form of [`MARKS`].
    pub(crate) fn marks_after(&self, count: usize) -> String {
        let mut marks: Vec<u32> = self.events[..count]
            .iter()
            .filter_map(|event| match event.what {
                What::Mark { n, .. } => Some(n),
                _ => None,
            })
            .collect();
        marks.sort_unstable();
        let texts: Vec<String> = marks.iter().map(u32::to_string).collect();
        texts.join(" ")
    }

    /// When the last transaction was committed, in microseconds.
    pub(crate) fn last_time(&self) -> i64 {
        let times = self.events.iter().map(|event| event.time);
        times.max().expect("an event")
    }

    /// Indexes of the events behind the first backup.
    pub(crate) fn reachable(&self) -> std::ops::Range<usize> {
        let first = self
            .events
            .iter()
            .position(|event| matches!(event.what, What::BackupEnd))
            .expect("a backup");
        first + 1..self.events.len()
    }
}

/// The history, and the site with its archive.
pub(crate) struct History {
    pub(crate) site: Site,
    /// The last production server.
    pub(crate) server: PgServer,
    /// The courses by timeline, from 1.
    pub(crate) courses: Vec<Course>,
}

/// The size of the cluster's segments.
const SEGMENT_BYTES: u64 = 1 << 20;
/// More than a server writes between the end of recovery and its shutdown.
const MARGIN_BYTES: u64 = 128 << 10;

impl History {
    pub(crate) fn make(install: &'static Install, random: &mut Random) -> Self {
        let (site, mut server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
        server.stop("fast");
        server.configure(&format!(
            "track_commit_timestamp = on\nmax_prepared_transactions = 20\ntimezone = '{ZONE}'"
        ));
        server.start();
        server.query("CREATE TABLE marks (n int); CREATE TABLE noise (t text)");
        let mut maker = Maker {
            site,
            server,
            marks: 0,
            course: Course::default(),
            timeline: 1,
        };
        let mut courses = Vec::new();
        maker.work(8, Prepared::Some, random);
        maker.backup();
        maker.work(14, Prepared::Some, random);
        maker.backup();
        maker.work(22, Prepared::None, random);
        courses.push(maker.course.clone());
        for _ in 0..2 {
            maker.go_on_from_the_past(install, 8 + random.below(6) as usize);
            maker.work(10, Prepared::Some, random);
            maker.backup();
            maker.work(20, Prepared::None, random);
            courses.push(maker.course.clone());
        }
        Self {
            site: maker.site,
            server: maker.server,
            courses,
        }
    }
}

/// Whether some transactions are prepared first. This must not be so where a timeline will begin: PostgreSQL looks for
/// the prepared data under the segment's name on the timeline of the record, and from there on the archive has it only
/// under the new timeline's name ("requested WAL segment has already been removed").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prepared {
    Some,
    None,
}

struct Maker {
    site: Site,
    server: PgServer,
    marks: u32,
    course: Course,
    timeline: u32,
}

impl Maker {
    /// Adds this many marks, with other activity of a database between them; then archives all of it.
    fn work(&mut self, marks: u32, prepare: Prepared, random: &mut Random) {
        let mut script = String::new();
        let mut prepared = Vec::new();
        for n in self.marks..self.marks + marks {
            noise(&mut script, n, random);
            if prepare == Prepared::Some && random.below(6) == 0 {
                // It is committed a while after it began: transactions do not end in the order of their numbers.
                begin(&mut script, n);
                let _ = writeln!(script, "PREPARE TRANSACTION 'p{n}';");
                prepared.push(n);
            } else {
                begin(&mut script, n);
                script.push_str("COMMIT;\n");
                print_event(&mut script, "mark", n);
            }
            if !prepared.is_empty() && random.below(3) == 0 {
                end_prepared(&mut script, prepared.remove(0));
            }
        }
        for n in prepared {
            end_prepared(&mut script, n);
        }
        self.marks += marks;
        point(&mut script, &end_of_work(self.marks));
        self.run(&script);
        self.server.archive_current_segment();
    }

    fn run(&mut self, script: &str) {
        let path = self.site.write_file("work.sql", script.as_bytes());
        let printed = run(self
            .server
            .client("psql")
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f"])
            .arg(path))
        .ok();
        for line in printed.text().lines() {
            let event = self.event(line);
            self.course.events.push(event);
        }
    }

    /// Parses `kind|what|xid|microseconds|lsn`, as the script prints it.
    fn event(&self, line: &str) -> Event {
        let fields: Vec<&str> = line.split('|').collect();
        let [kind, what, xid, time, lsn] = fields[..] else {
            panic!("Not an event: {line:?}");
        };
        let before = self.course.events.last().map_or(0, |event| event.time);
        let xid = || xid.parse().expect("a transaction id");
        let what = match kind {
            "mark" => What::Mark {
                n: what.parse().expect("a mark"),
                xid: xid(),
            },
            "nothing" => What::Nothing { xid: xid() },
            "point" => What::Point(what.to_owned()),
            _ => panic!("Not an event: {line:?}"),
        };
        Event {
            what,
            lsn: lsn_number(lsn),
            time: time.parse().unwrap_or(before),
        }
    }

    fn backup(&mut self) {
        self.site.backup();
        let newest = self.site.backups().pop().expect("a backup");
        let time = self.course.events.last().map_or(0, |event| event.time);
        self.course.events.push(Event {
            what: What::BackupEnd,
            lsn: lsn_number(newest["stop_lsn"].as_str().expect("a stop LSN")),
            time,
        });
    }

    /// Recovers to before the last `back` events, and makes the copy the production server.
    fn go_on_from_the_past(&mut self, install: &'static Install, back: usize) {
        self.server.stop("fast");
        let mut count = self.course.events.len() - back;
        // The copy archives only after its restart: until then it must not come to the end of a segment.
        while self.course.events[count - 1].lsn % SEGMENT_BYTES > SEGMENT_BYTES - MARGIN_BYTES {
            count -= 1;
        }
        self.course.events.truncate(count);
        let lsn = self.course.events[count - 1].lsn;
        let mount = Mount::new(&self.site);
        let target = format!("main/pitr/{}", lsn_text(lsn, "-"));
        self.timeline += 1;
        let name = format!("main{}", self.timeline);
        let mut copy = PgServer::on(install, &self.site.copy(&mount.path(&target), &name));
        copy.start();
        copy.wait_until_promoted();
        assert_eq!(
            copy.query(MARKS),
            self.course.marks_after(count),
            "{}",
            copy.log()
        );
        copy.stop("fast");
        remove_block(&copy);
        mount.unmount();
        self.site.write_config(&[("main", &copy)]);
        copy.start();
        assert_eq!(copy.query("SHOW archive_mode"), "on");
        assert_eq!(copy.timeline(), self.timeline);
        self.server = copy;
    }
}

/// Removes the block as the block itself says.
fn remove_block(copy: &PgServer) {
    let path = copy.data.join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&path).expect("Cannot read postgresql.auto.conf");
    let (before, block) = text.split_once("# ---- barmanfs: begin").expect("a block");
    let (_, after) = block
        .split_once("barmanfs: end ----\n")
        .expect("the end of the block");
    std::fs::write(&path, format!("{before}{after}")).expect("Cannot write postgresql.auto.conf");
}

/// Other activity in the log.
fn noise(script: &mut String, n: u32, random: &mut Random) {
    match random.below(8) {
        0 => script.push_str("SELECT pg_switch_wal() \\gset\n"),
        1 | 2 => {
            let bytes = 1000 + random.below(300_000);
            let _ = writeln!(
                script,
                "INSERT INTO noise SELECT repeat(md5(g::text), 8) FROM generate_series(1, {}) g;",
                bytes / 256
            );
        }
        3 => {
            point(script, &format!("before mark {n}, 50% done/{n}"));
        }
        4 => {
            begin(script, 1_000_000 + n);
            script.push_str("ROLLBACK;\n");
            print_event(script, "nothing", n);
        }
        5 => script.push_str("CHECKPOINT;\n"),
        _ => {
            let _ = writeln!(
                script,
                "SELECT pg_sleep({}) \\gset",
                random.below(20) as f64 / 1000.0
            );
        }
    }
}

fn point(script: &mut String, name: &str) {
    let _ = writeln!(
        script,
        "SELECT 'point', '{name}', '', '', pg_create_restore_point('{name}');"
    );
}

/// The restore point at the end of this work, by the number of marks until then.
pub(crate) fn end_of_work(marks: u32) -> String {
    format!("end of {marks}")
}

fn begin(script: &mut String, n: u32) {
    let _ = writeln!(
        script,
        "BEGIN; INSERT INTO marks VALUES ({n}); SELECT txid_current() AS xid{n} \\gset"
    );
}

/// Its commit is a single record. Another record before it separates it from the previous event.
fn end_prepared(script: &mut String, n: u32) {
    let _ = writeln!(
        script,
        "SELECT pg_logical_emit_message(false, '', '') \\gset\nCOMMIT PREPARED 'p{n}';"
    );
    print_event(script, "mark", n);
}

fn print_event(script: &mut String, kind: &str, n: u32) {
    let of = if kind == "mark" { n } else { 1_000_000 + n };
    let _ = writeln!(
        script,
        "SELECT '{kind}', {n}, :xid{of}, \
         (extract(epoch FROM pg_xact_commit_timestamp(:'xid{of}'::text::xid)) * 1000000)::bigint, \
         pg_current_wal_insert_lsn();"
    );
}

fn lsn_number(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("an LSN");
    let number = |text| u64::from_str_radix(text, 16).expect("an LSN");
    number(high) << 32 | number(low)
}

/// An LSN as text, with `slash` in place of the slash.
pub(crate) fn lsn_text(lsn: u64, slash: &str) -> String {
    format!("{:X}{slash}{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)
}
