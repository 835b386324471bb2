//! What is due: decisions from facts, without I/O.

use std::time::Duration;

use barmanfs_catalog::TaskMemory;
use barmanfs_pg::TimestampMicros;
use jiff::tz::TimeZone;

use crate::schedule::Schedule;

const DAY_MICROS: i64 = 24 * 3600 * 1_000_000;

/// The pause after a first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(60);

/// A task that seems to have taken longer met a leap of the clock.
const LONGEST_TASK: Duration = Duration::from_secs(24 * 3600);

/// The longest pause of what is to run always. An attempt costs little.
const LONGEST_PAUSE_OF_SERVICE: Duration = Duration::from_secs(600);

/// The longest pause, unless the attempt itself took longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Whether something scheduled is to be started now. `done` is when it was last done; without that it is due at once. What
/// was missed is made up for once, however often it was missed.
pub(super) fn is_due(
    schedule: &Schedule,
    done: Option<TimestampMicros>,
    last: Option<&TaskMemory>,
    now: TimestampMicros,
    zone: &TimeZone,
) -> bool {
    // What has succeeded is done, even if nothing is left of it.
    let succeeded = last.filter(|last| last.ended_at.is_some() && last.error.is_none());
    // A clock that was set back must not stop the backups.
    let times = [done, succeeded.map(|last| last.began_at)].into_iter().flatten();
    let done = times.filter(|done| *done <= now).max();
    let is_time = done.is_none_or(|done| schedule.next(done, zone).is_some_and(|due| due <= now));
    is_time && may_try_again(last, now)
}

/// Whether the pause after the last attempt is over, if that failed or was killed. The attempt must not be running.
pub(super) fn may_try_again(last: Option<&TaskMemory>, now: TimestampMicros) -> bool {
    let Some(last) = last else { return true };
    let was_killed = last.ended_at.is_none();
    let failures = last.failures.saturating_add(u32::from(was_killed));
    if failures == 0 {
        return true;
    }
    let ended = last.ended_at.unwrap_or(last.began_at);
    let took = ended.saturating_duration_since(last.began_at).min(LONGEST_TASK);
    !is_within(pause(failures).max(took), Some(ended), now)
}

/// Whether a process that is to run always may be started again. How long the last one ran says nothing about the next one.
pub(super) fn may_run_again(last: Option<&TaskMemory>, now: TimestampMicros) -> bool {
    let Some(last) = last else { return true };
    let ended = last.ended_at.unwrap_or(last.began_at);
    let pause = pause(last.failures.max(1)).min(LONGEST_PAUSE_OF_SERVICE);
    !is_within(pause, Some(ended), now)
}

fn pause(failures: u32) -> Duration {
    let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}

/// Whether `then` is at most `time` ago. A moment in the future is not.
pub(super) fn is_within(time: Duration, then: Option<TimestampMicros>, now: TimestampMicros) -> bool {
    then.is_some_and(|then| then <= now && now.saturating_duration_since(then) < time)
}

/// Whether `then` is on an earlier day than `now`, in UTC.
pub(super) fn is_on_an_earlier_day(then: TimestampMicros, now: TimestampMicros) -> bool {
    let day = |moment: TimestampMicros| moment.unix_micros().div_euclid(DAY_MICROS);
    day(then) < day(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;

    fn at(seconds: i64) -> TimestampMicros {
        TimestampMicros::from_unix_seconds(seconds)
    }

    #[test]
    fn a_day_ends_at_midnight() {
        assert!(!is_on_an_earlier_day(at(DAY), at(2 * DAY - 1)));
        assert!(is_on_an_earlier_day(at(2 * DAY - 1), at(2 * DAY)));
        assert!(!is_on_an_earlier_day(at(2 * DAY), at(DAY)));
        assert!(is_on_an_earlier_day(at(-1), at(0)));
    }

    /// Whether a nightly backup is due at this second.
    fn due(done: Option<i64>, last: Option<&TaskMemory>, now: i64) -> bool {
        let nightly: Schedule = "0 2 * * *".parse().unwrap();
        is_due(&nightly, done.map(at), last, at(now), &TimeZone::UTC)
    }

    fn attempt(began: i64, ended: Option<i64>, failures: u32) -> TaskMemory {
        TaskMemory {
            began_at: at(began),
            ended_at: ended.map(at),
            result: None,
            error: (failures > 0).then(|| "no".to_owned()),
            failures,
        }
    }

    #[test]
    fn a_backup_is_due_from_its_time_on_until_it_is_taken() {
        assert!(due(None, None, 10), "there is none at all");
        assert!(!due(Some(10), None, 2 * HOUR - 1));
        assert!(due(Some(10), None, 2 * HOUR));
        assert!(due(Some(10), None, 9 * DAY), "what was missed is made up for");
        assert!(!due(Some(9 * DAY), None, 9 * DAY + 60), "once");
        assert!(due(Some(20 * DAY), None, 9 * DAY), "the clock was set back");
    }

    #[test]
    fn what_succeeded_is_not_done_again_when_nothing_is_left_of_it() {
        let taken = attempt(2 * HOUR, Some(2 * HOUR + 60), 0);
        assert!(!due(None, Some(&taken), 3 * HOUR));
        assert!(due(None, Some(&taken), 26 * HOUR));
    }

    #[test]
    fn what_was_done_while_it_was_decided_is_not_done_again() {
        let taken = attempt(2 * HOUR, Some(2 * HOUR + 60), 0);
        assert!(!due(Some(2 * HOUR + 5), Some(&taken), 2 * HOUR + 1));
    }

    #[test]
    fn what_is_to_run_always_is_started_again_soon_however_long_it_ran() {
        for (failures, pause) in [(0, 60), (1, 60), (3, 240), (99, 600)] {
            let ran = attempt(0, Some(90 * DAY), failures);
            let may = |after| may_run_again(Some(&ran), at(90 * DAY + after));
            assert!(!may(pause - 1) && may(pause), "{failures}");
        }
        assert!(may_run_again(Some(&attempt(0, None, 0)), at(60)));
        assert!(may_run_again(None, at(0)));
    }

    #[test]
    fn a_failure_is_tried_again_with_a_growing_pause() {
        let failed = |failures| attempt(2 * HOUR, Some(2 * HOUR + 10), failures);
        let tried = |failures, after| due(Some(10), Some(&failed(failures)), 2 * HOUR + 10 + after);
        assert!(!tried(1, 59) && tried(1, 60));
        assert!(!tried(3, 239) && tried(3, 240));
        assert!(!tried(500, HOUR - 1) && tried(500, HOUR), "the pause has a bound");
        let long = attempt(2 * HOUR, Some(12 * HOUR), 1);
        assert!(
            !due(Some(10), Some(&long), 21 * HOUR),
            "no load for more than half of the time"
        );
        assert!(due(Some(10), Some(&long), 22 * HOUR));
        let leapt = attempt(2 * HOUR, Some(3650 * DAY), 1);
        assert!(
            due(Some(10), Some(&leapt), 3651 * DAY),
            "a clock that leapt stops nothing"
        );
        let killed = attempt(2 * HOUR, None, 0);
        assert!(!due(Some(10), Some(&killed), 2 * HOUR + 59));
        assert!(due(Some(10), Some(&killed), 2 * HOUR + 60));
    }
}
