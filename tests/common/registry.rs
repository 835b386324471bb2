//! How a topic lists its tests. Those with a PostgreSQL run once for each version, under the name `pg16::topic::test`.

use super::postgres::Install;
use super::user::is_root;
use libtest_mimic::Trial;

/// One test of a topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Test {
    name: &'static str,
    body: Body,
    needs_root: bool,
}

#[derive(Debug, Clone, Copy)]
enum Body {
    Alone(fn()),
    WithPostgres(fn(&'static Install)),
}

/// A test that needs no server.
pub(crate) const fn alone(name: &'static str, body: fn()) -> Test {
    Test {
        name,
        body: Body::Alone(body),
        needs_root: false,
    }
}

/// A test that runs with each PostgreSQL.
pub(crate) const fn with_postgres(name: &'static str, body: fn(&'static Install)) -> Test {
    Test {
        name,
        body: Body::WithPostgres(body),
        needs_root: false,
    }
}

impl Test {
    /// Left out, by name, where the tests do not run as root.
    pub(crate) const fn as_root(self) -> Self {
        Self {
            needs_root: true,
            ..self
        }
    }

    /// This test as the harness wants it, once or once for each version.
    pub(crate) fn trials(self, topic: &'static str, installs: &'static [Install]) -> Vec<Trial> {
        let left_out = self.needs_root && !is_root();
        let named = |group: &str| format!("{group}::{topic}::{}", self.name);
        match self.body {
            Body::Alone(body) => vec![trial(named("any"), left_out, body)],
            Body::WithPostgres(body) => installs
                .iter()
                .map(|install| {
                    trial(named(&format!("pg{}", install.major)), left_out, move || {
                        body(install);
                    })
                })
                .collect(),
        }
    }
}

fn trial(name: String, left_out: bool, body: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        body();
        Ok(())
    })
    .with_ignored_flag(left_out)
}

/// The tests of one topic, each by its function's name.
macro_rules! topic {
    ($($kind:ident $test:ident $(($as_root:ident))?),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::common::Test] =
            &[$($crate::common::$kind(stringify!($test), $test)$(.$as_root())?),*];
    };
}
pub(crate) use topic;
