//! The checks of a passive node: whether its primary can be reached, and how long ago it had everything.

use std::time::SystemTime;

use barmanfs_catalog::SyncMemory;
use barmanfs_pg::TimestampMicros;

use super::finding::{Finding, Findings};
use super::{Stored, Subject};
use crate::config::PrimaryKind;
use crate::output;
use crate::sync;

/// Barman's check of a passive node, and its text.
const SSH: &str = "ssh";
const BARMANS_TEXT: &str = "Barman primary node";

const REPOSITORY: &str = "primary repository";
const HOME: &str = "primary Barman home";
const AGE: &str = "sync with the primary";

/// cron syncs once a minute. Without a limit in the configuration, this is no accident any more.
const SYNCED_WITHIN_SECONDS: u64 = 3600;

/// Checks the primary, and what is remembered of the last sync.
pub(super) fn check(subject: Subject<'_>, stored: Option<&Stored>, findings: &mut Findings) {
    let Subject { server, invocation } = subject;
    let reached = sync::reach(server, invocation.config());
    findings.note(|figures| figures.is_up = Some(reached.is_ok()));
    let name = match (&server.primary.repository, server.primary.kind()) {
        (Some(_), PrimaryKind::Barmanfs) => REPOSITORY,
        (_, PrimaryKind::Barman) if server.primary.home.is_some() => HOME,
        (_, PrimaryKind::Barman) | (None, PrimaryKind::Barmanfs) => SSH,
    };
    findings.result(name, reached, |described| match name {
        SSH => Some(BARMANS_TEXT.to_owned()),
        _ => Some(described.clone()),
    });
    let Some(stored) = stored else { return };
    match stored.repository.sync_memory(&server.name) {
        Ok(memory) => {
            findings.note(|figures| figures.synced = memory.current_at);
            let limit = server.limits.sync_age.as_ref();
            let seconds = limit.map_or(SYNCED_WITHIN_SECONDS, |age| age.seconds);
            let advice = invocation.with(&format!("sync {}", server.name));
            findings.push(age(seconds, &advice, &memory, SystemTime::now().into()));
        }
        Err(error) => findings.failed(AGE, error.to_string()),
    }
}

/// Whether the last sync was well and is not too old.
fn age(limit_seconds: u64, advice: &str, memory: &SyncMemory, now: TimestampMicros) -> Finding {
    let Some(current) = memory.current_at else {
        let why = memory
            .error
            .as_ref()
            .map_or_else(String::new, |error| format!(" ({error})"));
        return Finding::failed(AGE, format!("nothing has come yet{why}: run '{advice}', or cron"));
    };
    let passed = now.saturating_duration_since(current);
    let ago = format!(
        "all WAL that the primary had {} ago is here",
        output::duration(passed)
    );
    if let Some(error) = &memory.error {
        let text = format!("the last one failed: {error}; {ago}");
        return match passed.as_secs() > limit_seconds {
            true => Finding::failed(AGE, text),
            false => Finding::warning(AGE, text),
        };
    }
    if let Some(problem) = memory.problems.first() {
        return Finding::failed(AGE, format!("{problem}; {ago}"));
    }
    match passed.as_secs() > limit_seconds {
        true => Finding::failed(AGE, format!("{ago}: run '{advice}', or cron")),
        false => Finding::ok(AGE, ago),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::State;

    #[test]
    fn an_old_or_failed_sync_is_told() {
        let now = TimestampMicros::from_unix_seconds(1_000_000);
        let ago = |seconds: i64| Some(TimestampMicros::from_unix_seconds(1_000_000 - seconds));
        let state = |memory: SyncMemory| age(3600, "barmanfs sync main", &memory, now).state;
        let at = |current_at| {
            let mut memory = SyncMemory::default();
            memory.current_at = current_at;
            memory
        };
        assert_eq!(state(at(None)), State::Failed);
        assert_eq!(state(at(ago(60))), State::Ok);
        assert_eq!(state(at(ago(7200))), State::Failed);
        let failed = |current_at| {
            let mut memory = at(current_at);
            memory.error = Some("the primary is down".to_owned());
            memory
        };
        assert_eq!(state(failed(ago(60))), State::Warning);
        assert_eq!(state(failed(ago(7200))), State::Failed);
        let mut with_problem = at(ago(60));
        with_problem.problems = vec!["Backup 1 is not taken".to_owned()];
        assert_eq!(state(with_problem), State::Failed);
    }
}
