//! The lists of tests in each topic. Tests with a PostgreSQL run once for each version, under the name
//! `pg16::topic::test`.

use super::postgres::Install;
use super::random::Random;
use super::user::is_root;
use libtest_mimic::Trial;
use std::io::Write;
use std::panic::{RefUnwindSafe, UnwindSafe, catch_unwind};
use std::time::Instant;

/// The size of databases, in pgbench's unit of 15 MB.
pub(crate) fn scale() -> u32 {
    std::env::var("BARMANFS_TEST_SCALE")
        .map_or(8, |text| text.parse().expect("BARMANFS_TEST_SCALE is a number"))
}

/// One test of a topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Test {
    name: &'static str,
    body: Body,
    /// The versions it runs with; the last one is excluded.
    majors: (u32, u32),
    needs_root: bool,
    needs_scale: bool,
}

/// Tests that need space and time run from this `BARMANFS_TEST_SCALE` on.
const LARGE_SCALE: u32 = 100;

#[derive(Debug, Clone, Copy)]
enum Body {
    Alone(fn()),
    WithPostgres(fn(&'static Install)),
    Once(fn(&'static Install)),
    Edges(fn(&'static Install)),
}

/// A test that needs no server.
pub(crate) const fn alone(name: &'static str, body: fn()) -> Test {
    Test {
        name,
        body: Body::Alone(body),
        majors: (0, u32::MAX),
        needs_root: false,
        needs_scale: false,
    }
}

/// A test that runs with each PostgreSQL.
pub(crate) const fn with_postgres(name: &'static str, body: fn(&'static Install)) -> Test {
    Test {
        name,
        body: Body::WithPostgres(body),
        majors: (0, u32::MAX),
        needs_root: false,
        needs_scale: false,
    }
}

/// A test that needs a server of any version: it runs with the newest one that is found.
pub(crate) const fn once(name: &'static str, body: fn(&'static Install)) -> Test {
    Test {
        body: Body::Once(body),
        ..with_postgres(name, body)
    }
}

/// A test of behaviour that differs at most between old and new servers: it runs with the oldest and the newest one
/// that are found.
pub(crate) const fn edges(name: &'static str, body: fn(&'static Install)) -> Test {
    Test {
        body: Body::Edges(body),
        ..with_postgres(name, body)
    }
}

/// A test that runs with the oldest and the newest PostgreSQL of those from 17 on.
pub(crate) const fn since_17(name: &'static str, body: fn(&'static Install)) -> Test {
    Test {
        majors: (17, u32::MAX),
        ..edges(name, body)
    }
}

/// A test that runs with each PostgreSQL before 17.
pub(crate) const fn before_17(name: &'static str, body: fn(&'static Install)) -> Test {
    Test {
        majors: (0, 17),
        ..with_postgres(name, body)
    }
}

impl Test {
    /// Skipped if the tests do not run as root.
    pub(crate) const fn as_root(self) -> Self {
        Self {
            needs_root: true,
            ..self
        }
    }

    /// Skipped unless `BARMANFS_TEST_SCALE` is at least 100.
    pub(crate) const fn at_scale(self) -> Self {
        Self {
            needs_scale: true,
            ..self
        }
    }

    /// The trials of this test for the harness: one, or one for each version.
    pub(crate) fn trials(self, topic: &'static str, installs: &'static [Install]) -> Vec<Trial> {
        let left_out = self.needs_root && !is_root() || self.needs_scale && scale() < LARGE_SCALE;
        let named = |group: &str| format!("{group}::{topic}::{}", self.name);
        let with = |body: fn(&'static Install), install: &'static Install| {
            trial(named(&format!("pg{}", install.major)), left_out, move || {
                body(install);
            })
        };
        let body = match self.body {
            Body::Alone(body) => return vec![trial(named("any"), left_out, body)],
            Body::WithPostgres(body) | Body::Once(body) | Body::Edges(body) => body,
        };
        let runs_with = |install: &&Install| self.runs_with(install.major, installs);
        installs
            .iter()
            .filter(runs_with)
            .map(|install| with(body, install))
            .collect()
    }

    /// Whether this test runs with this major version, given the versions that are found.
    fn runs_with(self, major: u32, installs: &[Install]) -> bool {
        let fits = |major: u32| (self.majors.0..self.majors.1).contains(&major);
        let mut others = installs.iter().filter(|install| fits(install.major));
        let is_newest = others.clone().all(|other| other.major <= major);
        let is_oldest = others.all(|other| other.major >= major);
        match self.body {
            Body::Alone(_) => false,
            _ if !fits(major) => false,
            Body::Once(_) => is_newest,
            Body::Edges(_) => is_newest || is_oldest,
            Body::WithPostgres(_) => true,
        }
    }
}

fn trial(
    name: String,
    left_out: bool,
    body: impl Fn() + Send + UnwindSafe + RefUnwindSafe + 'static,
) -> Trial {
    let shown = name.clone();
    Trial::test(name, move || {
        let began = Instant::now();
        if std::env::var_os("BARMANFS_TEST_TWICE").is_some() {
            at_most_twice(&shown, body);
        } else {
            body();
        }
        note_time(&shown, began);
        Ok(())
    })
    .with_ignored_flag(left_out)
}

/// Runs a test a second time if it fails, and says so: a machine that is too busy for a moment must not hide what the
/// other tests say. A test that chose at random makes the same choices again.
fn at_most_twice(name: &str, body: impl Fn() + UnwindSafe + RefUnwindSafe) {
    Random::begin_test();
    if catch_unwind(&body).is_ok() {
        return;
    }
    Random::repeat_test();
    body();
    println!("\nunsteady {name}: failed, then passed");
}

/// Adds a line "seconds name" to the file in `BARMANFS_TEST_TIMES`, which shows where the suite spends its time.
fn note_time(name: &str, began: Instant) {
    let Some(path) = std::env::var_os("BARMANFS_TEST_TIMES") else {
        return;
    };
    let line = format!("{:.1} {name}\n", began.elapsed().as_secs_f32());
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .expect("Cannot write to BARMANFS_TEST_TIMES");
}

/// The tests of one topic, each by its function's name.
macro_rules! topic {
    ($($kind:ident $test:ident $(($mark:ident))?),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::common::Test] =
            &[$($crate::common::$kind(stringify!($test), $test)$(.$mark())?),*];
    };
}
pub(crate) use topic;
