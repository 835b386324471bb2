//! Whether clones have been forgotten: a clone keeps what it is based on, also after the backup is deleted.

use std::time::SystemTime;

use barmanfs_catalog::{CloneDescription, Repository};
use barmanfs_pg::TimestampMicros;

use super::Subject;
use super::finding::{Finding, Findings};
use crate::config::Age;
use crate::error::Error;
use crate::output;

const NAME: &str = "clone maximum age";

/// Checks a server's clones.
pub(super) fn check(repository: &Repository, subject: Subject<'_>, findings: &mut Findings) {
    let server = subject.server;
    let clones = match repository.clones(&server.name) {
        Ok(clones) => clones,
        Err(error) => return findings.failed(NAME, Error::from(error).to_string()),
    };
    let oldest = clones.iter().min_by_key(|clone| clone.created_at);
    findings.note(|figures| {
        figures.clones = Some(clones.len());
        figures.oldest_clone = oldest.map(|clone| clone.created_at);
    });
    let Some(oldest) = oldest else { return };
    let destroy = subject
        .invocation
        .with(&format!("clone destroy {} {}", server.name, oldest.name));
    findings.push(judge(
        oldest,
        clones.len(),
        server.limits.clone_age.as_ref(),
        SystemTime::now().into(),
        &destroy,
    ));
}

fn judge(
    oldest: &CloneDescription,
    count: usize,
    limit: Option<&Age>,
    now: TimestampMicros,
    destroy: &str,
) -> Finding {
    let age = now.saturating_duration_since(oldest.created_at);
    let text = format!(
        "{}, the oldest is {}, made {} ago",
        output::count(count, "clone"),
        oldest.name,
        output::duration(age)
    );
    match limit {
        Some(limit) if age.as_secs() > limit.seconds => Finding::warning(
            NAME,
            format!("interval provided: {limit}, {text}: '{destroy}' frees its space"),
        ),
        Some(limit) => Finding::ok(NAME, format!("interval provided: {limit}, {text}")),
        None => Finding::ok(NAME, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::limits;
    use crate::health::State;
    use serde_json::json;

    #[test]
    fn a_forgotten_clone_is_found() {
        let clone: CloneDescription = serde_json::from_value(json!({
            "id": "00112233445566778899aabbccddeeff", "server": "main", "name": "test1",
            "origin": {"backup": "20261120T101500"}, "created_at": "2026-11-20T10:15:00Z",
            "root": {
                "directory": {"pages": [], "entries": 0},
                "attributes": {"mode": 448, "uid": 0, "gid": 0, "mtime_s": 0, "mtime_ns": 0},
            },
        }))
        .unwrap();
        let state_after = |hours: i64, settings: &str| {
            let micros = clone.created_at.unix_micros() + hours * 3_600_000_000;
            let now = TimestampMicros::from_unix_micros(micros);
            judge(
                &clone,
                1,
                limits(settings).0.clone_age.as_ref(),
                now,
                "clone destroy",
            )
            .state
        };
        assert_eq!(state_after(47, "clone_maximum_age = 2 DAYS"), State::Ok);
        assert_eq!(state_after(49, "clone_maximum_age = 2 DAYS"), State::Warning);
        assert_eq!(state_after(9000, ""), State::Ok);
        assert_eq!(state_after(-1, "clone_maximum_age = 2 DAYS"), State::Ok);
    }
}
