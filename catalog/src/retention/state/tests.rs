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

/// A backup taken after the clock had been ahead: its id is behind that of the others.
fn taken_after(others: &[Candidate], day: i64) -> Candidate {
    let newest = others.iter().map(|candidate| candidate.id).max().unwrap();
    Candidate {
        id: newest.next(),
        ..backup(day, 2)
    }
}

#[test]
fn a_new_backup_is_the_newest_whatever_the_clock_has_been() {
    let mut backups = daily(1..4);
    backups.extend([backup(300, 1), backup(300, 2), backup(300, 3)]);
    backups.push(taken_after(&backups, 4));
    let letters_of = |policy| letters(&states_on(5, backups.clone(), policy, 0));
    assert_eq!(letters_of("REDUNDANCY 3"), "VVVOOOO");
    assert_eq!(letters_of("RECOVERY WINDOW OF 7 DAYS"), "VVVVVVV");
    // Those from the future take no place of a day that has passed.
    assert_eq!(letters_of("KEEP 4 DAILY"), "VOOOVVV");
}

#[test]
fn a_backup_of_a_clock_that_was_behind_is_not_too_old() {
    let mut backups = daily(1..9);
    backups.push(taken_after(&backups, -2000));
    let letters_of =
        |policy, day, backups: &[Candidate]| letters(&states_on(day, backups.to_vec(), policy, 0));
    assert_eq!(letters_of("RECOVERY WINDOW OF 3 DAYS", 9, &backups), "VVVVVOOOO");
    assert_eq!(letters_of("KEEP 3 DAILY", 9, &backups), "VVVOOOOOO");
    backups.push(taken_after(&backups, 10));
    assert_eq!(
        letters_of("RECOVERY WINDOW OF 3 DAYS", 11, &backups),
        "VVVVOOOOOO"
    );
    assert_eq!(letters_of("KEEP 3 DAILY", 11, &backups), "VOVVOOOOOO");
    assert_eq!(letters_of("REDUNDANCY 2", 11, &backups), "VVOOOOOOOO");
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

/// Somebody who keeps last night's backup for its own end does not want to lose the day after it.
#[test]
fn a_backup_kept_for_its_own_end_loses_no_wal_that_the_policy_keeps() {
    let at = Circumstances {
        now: TimestampMicros::from_unix_micros(9 * DAY),
        zone: TimeZone::UTC,
        minimum_redundancy: 0,
    };
    let mut backups = daily(0..9);
    for backup in &mut backups {
        backup.kept = Some(KeepTarget::Standalone);
    }
    for (policy, keeping) in [
        ("REDUNDANCY 2", 2),
        ("RECOVERY WINDOW OF 3 DAYS", 9),
        ("KEEP 2 DAILY 2 WEEKLY", 2),
    ] {
        let policy: BackupPolicy = policy.parse().unwrap();
        let verdicts = judge(backups.clone(), Some(&policy), &at);
        let keeps: Vec<bool> = verdicts.iter().map(|verdict| verdict.keeps_wal).collect();
        let expected: Vec<bool> = (0..9).map(|place| place < keeping).collect();
        assert_eq!(keeps, expected, "{policy}");
    }
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

/// A line of Barman's answers: see tools/barman_retention.py.
fn ask(line: &str) -> (String, String, bool) {
    let mut fields = line.split('\t');
    let policy: BackupPolicy = fields.next().unwrap().parse().unwrap();
    let minimum_redundancy = fields.next().unwrap().parse().unwrap();
    let now = fields.next().unwrap().parse::<i64>().unwrap() * HOUR;
    let (mut candidates, mut expected) = (Vec::new(), String::new());
    for backup in fields {
        let [begin, end, status, keep, answer] = backup.split(' ').collect::<Vec<_>>().try_into().unwrap();
        if status == "F" {
            assert_eq!(answer, "-");
            continue;
        }
        let hour = |text: &str| TimestampMicros::from_unix_micros(text.parse::<i64>().unwrap() * HOUR);
        candidates.push(Candidate {
            id: BackupId::at(hour(begin)),
            begin_time: hour(begin),
            end_time: hour(end),
            doubtful: false,
            kept: match keep {
                "f" => Some(KeepTarget::Full),
                "s" => Some(KeepTarget::Standalone),
                _ => None,
            },
        });
        expected.insert_str(0, answer);
    }
    let begin = match policy {
        BackupPolicy::RecoveryWindow(window) => now - window.micros(),
        _ => i64::MIN,
    };
    // Where the search for the backup before the window ends for Barman, and does not end here.
    let found = candidates
        .iter()
        .rev()
        .find(|candidate| candidate.end_time.unix_micros() < begin);
    let differs = found.is_some_and(|found| found.kept == Some(KeepTarget::Standalone));
    let at = Circumstances {
        now: TimestampMicros::from_unix_micros(now),
        zone: TimeZone::UTC,
        minimum_redundancy,
    };
    let verdicts = judge(candidates, Some(&policy), &at);
    let states: Vec<_> = verdicts.iter().map(|verdict| verdict.state).collect();
    (letters(&states), expected, differs)
}

#[test]
fn barman_judges_the_same() {
    let (mut same, mut different) = (0, 0);
    for line in include_str!("barman_3.19.1.txt").lines() {
        let (ours, barmans, differs) = ask(line);
        if differs {
            different += 1;
            let keeps_less = ours
                .chars()
                .zip(barmans.chars())
                .any(|(ours, barmans)| ours == 'O' && barmans != 'O');
            assert!(!keeps_less && ours.len() == barmans.len(), "{line}: {ours}");
        } else {
            same += 1;
            assert_eq!(ours, barmans, "{line}");
        }
    }
    assert!(same > 4500 && different > 100, "{same}, {different}");
}
