use super::*;

const HOUR: i64 = 3600 * 1_000_000;
const DAY: i64 = 24 * HOUR;

/// A backup that began on this day at this hour, and took an hour.
fn backup(day: i64, hour: i64) -> Candidate {
    let begin = TimestampMicros::from_unix_micros(day * DAY + hour * HOUR);
    Candidate {
        id: BackupId::at(begin),
        begin_time: begin,
        end_time: TimestampMicros::from_unix_micros(begin.unix_micros() + HOUR),
        doubtful: false,
        kept: None,
    }
}

fn daily(days: std::ops::Range<i64>) -> Vec<Candidate> {
    days.map(|day| backup(day, 2)).collect()
}

fn states_on(
    day: i64,
    candidates: Vec<Candidate>,
    policy: &str,
    minimum_redundancy: u32,
) -> Vec<RetentionState> {
    let at = Circumstances {
        now: TimestampMicros::from_unix_micros(day * DAY),
        zone: TimeZone::UTC,
        minimum_redundancy,
    };
    let policy: BackupPolicy = policy.parse().unwrap();
    let verdicts = judge(candidates, Some(&policy), &at);
    verdicts.iter().map(|verdict| verdict.state).collect()
}

/// One letter for each backup, the newest first.
fn letters(states: &[RetentionState]) -> String {
    let letter = |state: &RetentionState| match state {
        RetentionState::Valid => 'V',
        RetentionState::ValidForItsEnd => 'e',
        RetentionState::Obsolete => 'O',
        RetentionState::PotentiallyObsolete => '*',
        RetentionState::KeptFull => 'F',
        RetentionState::KeptStandalone => 'S',
        RetentionState::None => '-',
    };
    states.iter().map(letter).collect()
}

#[test]
fn redundancy_keeps_the_newest() {
    assert_eq!(letters(&states_on(9, daily(0..5), "REDUNDANCY 2", 0)), "VVOOO");
    assert_eq!(letters(&states_on(9, daily(0..5), "REDUNDANCY 2", 4)), "VVVVO");
    assert_eq!(letters(&states_on(9, daily(0..1), "REDUNDANCY 2", 0)), "V");
}

#[test]
fn a_window_keeps_the_backup_before_its_beginning() {
    // The window begins on day 6 at midnight.
    assert_eq!(
        letters(&states_on(9, daily(0..9), "RECOVERY WINDOW OF 3 DAYS", 0)),
        "VVVVOOOOO"
    );
    assert_eq!(
        letters(&states_on(9, daily(0..9), "RECOVERY WINDOW OF 3 DAYS", 6)),
        "VVVV**OOO"
    );
    // However old the newest one is.
    assert_eq!(
        letters(&states_on(999, daily(0..3), "RECOVERY WINDOW OF 3 DAYS", 0)),
        "VOO"
    );
}

#[test]
fn a_damaged_backup_takes_no_place_of_a_good_one() {
    let mut backups = daily(0..5);
    backups[4].doubtful = true;
    backups[2].doubtful = true;
    assert_eq!(
        letters(&states_on(9, backups.clone(), "REDUNDANCY 1", 0)),
        "VVOOO"
    );
    assert_eq!(
        letters(&states_on(9, backups.clone(), "REDUNDANCY 2", 0)),
        "VVVVO"
    );
    assert_eq!(
        letters(&states_on(99, backups.clone(), "RECOVERY WINDOW OF 3 DAYS", 0)),
        "VVOOO"
    );
    assert_eq!(letters(&states_on(9, backups, "KEEP 2 DAILY", 0)), "VVOVO");
}

#[test]
fn what_a_person_keeps_is_not_judged() {
    let mut backups = daily(0..5);
    backups[4].kept = Some(KeepTarget::Full);
    backups[0].kept = Some(KeepTarget::Standalone);
    assert_eq!(
        letters(&states_on(9, backups.clone(), "REDUNDANCY 2", 0)),
        "FVOOS"
    );
    // The WAL behind the one that is kept for its own end may be gone: the window needs another.
    backups[4].kept = Some(KeepTarget::Standalone);
    assert_eq!(
        letters(&states_on(99, backups, "RECOVERY WINDOW OF 3 DAYS", 0)),
        "SVOOS"
    );
}

#[test]
fn generations_keep_the_newest_of_each_period() {
    // 1970-01-01 was a Thursday. Two backups a day for three weeks.
    let mut backups = daily(0..21);
    backups.extend((0..21).map(|day| backup(day, 14)));
    let states = states_on(21, backups, "KEEP 2 DAILY 3 WEEKLY", 0);
    let kept: Vec<usize> = (0..states.len())
        .filter(|place| states[*place] != RetentionState::Obsolete)
        .collect();
    // Wednesday the 21st and the 20th; then the Sundays, 18th and 11th.
    assert_eq!(kept, [0, 2, 6, 20]);
    let of = |place: usize| states[place];
    assert_eq!((of(0), of(2)), (RetentionState::Valid, RetentionState::Valid));
    assert_eq!(
        (of(6), of(20)),
        (RetentionState::ValidForItsEnd, RetentionState::ValidForItsEnd)
    );
}

#[test]
fn periods_without_a_backup_do_not_count() {
    let backups = vec![backup(10, 2), backup(100, 2), backup(101, 2)];
    assert_eq!(letters(&states_on(500, backups, "KEEP 3 DAILY", 0)), "VVV");
}

#[test]
fn days_are_those_of_the_server() {
    let candidates = vec![backup(10, 22), backup(11, 1)];
    let at = |zone: &str| Circumstances {
        now: TimestampMicros::from_unix_micros(12 * DAY),
        zone: TimeZone::get(zone).unwrap(),
        minimum_redundancy: 0,
    };
    let policy: BackupPolicy = "KEEP 5 DAILY".parse().unwrap();
    let kept = |zone| {
        let verdicts = judge(candidates.clone(), Some(&policy), &at(zone));
        verdicts
            .iter()
            .filter(|verdict| verdict.state == RetentionState::Valid)
            .count()
    };
    assert_eq!((kept("UTC"), kept("Asia/Tokyo")), (2, 1));
}
