//! What policies keep, and what is deleted: marks of backups to keep, WAL that nothing needs.

use std::time::{Duration, SystemTime};

use barmanfs_catalog::retention::{Approved, Enforced, Quiet, RetentionRules, RetentionState};
use barmanfs_catalog::{
    Backup, BackupId, BackupStatus, CloneDescription, CloneOrigin, Error, Import, KeepTarget, Repository,
    Silent, SweepOptions, VerifyScope, WalOutcome,
};
use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::WalName;
use barmanfs_store::{LocalPacks, PackStorage, PackWriter, Record, RecordId, read_footer};

use crate::common::{
    Files, Fixture, SYSTEM, archive, begin, clone_of, finish, fixture, new_backup, noise, put_files, segment,
    stored,
};

const KEEP: u8 = 4;
const WAL_REMOVAL: u8 = 10;

fn now() -> TimestampMicros {
    SystemTime::now().into()
}

fn in_days(days: i64) -> TimestampMicros {
    TimestampMicros::from_unix_micros(now().unix_micros() + days * 24 * 3600 * 1_000_000)
}

fn rules(policy: &str) -> RetentionRules {
    RetentionRules {
        backups: Some(policy.parse().unwrap()),
        ..RetentionRules::default()
    }
}

/// A backup that needs segments `first` and the next.
fn back_up_at(f: &Fixture, first: u64) -> Backup {
    let run = begin(&f.repository, &f.server);
    put_files(&run, &Files::from([("base/1".to_owned(), noise(first, 100_000))]));
    finish(run, first, first + 1)
}

/// A server with segments 1 to 12 and backups in 3, 6 and 9.
fn site() -> (Fixture, [Backup; 3]) {
    let f = fixture();
    (1..13).for_each(|number| archive_segment(&f, number));
    let backups = [3, 6, 9].map(|first| back_up_at(&f, first));
    (f, backups)
}

fn archive_segment(f: &Fixture, number: u32) {
    let (name, bytes) = segment(number, SYSTEM, number.into());
    let outcome = archive(&f.repository, &f.server, &name, &bytes).unwrap();
    assert!(matches!(outcome, WalOutcome::Stored(_)), "{outcome:?}");
}

/// The numbers of the archived segments.
fn archived(repository: &Repository, f: &Fixture) -> Vec<u32> {
    let entries = repository.wal(&f.server).entries();
    let number = |name: WalName| name.segment().unwrap().seg;
    entries.map(|entry| number(entry.unwrap().name)).collect()
}

fn enforce(f: &Fixture, rules: &RetentionRules) -> Enforced {
    f.repository.enforce_retention(&f.server, rules, now()).unwrap()
}

fn sweep(f: &Fixture) {
    f.repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    f.repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
}

fn rebuilt(f: &Fixture) -> Repository {
    let report = Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    Repository::open(f.repository.path()).unwrap()
}

#[test]
fn what_retention_shows_is_deleted_and_nothing_else() {
    let (f, backups) = site();
    let plan = f
        .repository
        .retention(&f.server, &rules("REDUNDANCY 2"), now())
        .unwrap();
    let states: Vec<_> = plan
        .backups
        .iter()
        .map(|backup| (backup.id, backup.state))
        .collect();
    let [oldest, middle, newest] = backups.each_ref().map(|backup| backup.id);
    assert_eq!(
        states,
        [
            (newest, RetentionState::Valid),
            (middle, RetentionState::Valid),
            (oldest, RetentionState::Obsolete)
        ]
    );
    let [wal] = plan.wal.as_slice() else {
        panic!("{plan:?}")
    };
    assert_eq!(wal.totals.files, 5);
    assert_eq!(archived(&f.repository, &f), (1..13).collect::<Vec<_>>());

    let done = enforce(&f, &rules("REDUNDANCY 2"));
    assert_eq!((done.deleted, done.wal), (vec![oldest], plan.wal));
    assert_eq!(archived(&f.repository, &f), (6..13).collect::<Vec<_>>());
    let again = enforce(&f, &rules("REDUNDANCY 2"));
    assert!(again.deleted.is_empty() && again.wal.is_empty());
    let backups = f.repository.backups(&f.server).unwrap();
    assert!(f.repository.gaps(&f.server, &backups).unwrap().is_empty());
}

#[test]
fn a_backup_that_is_struck_out_of_the_plan_keeps_its_wal() {
    let (f, [first, second, third]) = site();
    let rules = rules("REDUNDANCY 1");
    let plan = f.repository.retention(&f.server, &rules, now()).unwrap();
    let doomed: Vec<_> = plan.doomed().map(|backup| backup.id).collect();
    assert_eq!(doomed, [second.id, first.id]);
    let approved = Approved {
        backups: [first.id].into(),
        wal: plan.removable_wal().iter().map(|wal| wal.range).collect(),
    };
    let done = f
        .repository
        .enforce_approved(&f.server, &rules, now(), Some(&approved))
        .unwrap();
    assert_eq!(done.deleted, [first.id]);
    assert_eq!(archived(&f.repository, &f), [6, 7, 9, 10, 11, 12]);
    for backup in [second, third] {
        let backups = f.repository.backups(&f.server).unwrap();
        let left = backups.iter().find(|left| left.id == backup.id).unwrap();
        assert_eq!(left.status, BackupStatus::Done);
    }
}

#[test]
fn a_sweep_frees_what_was_removed_and_a_rebuild_does_not_bring_it_back() {
    let (f, backups) = site();
    enforce(&f, &rules("REDUNDANCY 1"));
    sweep(&f);
    let storage = LocalPacks::open(&f.repository.path().join("packs")).unwrap();
    let mut bytes = 0;
    storage
        .list(&mut |pack| {
            bytes += read_footer(&storage, pack)?.bytes;
            Ok(())
        })
        .unwrap();
    // Segments of a MiB of noise: four are left of twelve.
    assert!((4 << 20..5 << 20).contains(&bytes), "{bytes}");
    let repository = rebuilt(&f);
    assert_eq!(archived(&repository, &f), (9..13).collect::<Vec<_>>());
    let left = repository.backups(&f.server).unwrap();
    assert_eq!(
        left.iter().map(|backup| backup.id).collect::<Vec<_>>(),
        [backups[2].id]
    );
    assert!(
        repository
            .verify(&VerifyScope::All, &mut Silent)
            .unwrap()
            .is_clean()
    );
}

#[test]
fn a_removed_segment_that_comes_again_stays() {
    let (f, _) = site();
    enforce(&f, &rules("REDUNDANCY 1"));
    archive_segment(&f, 5);
    assert_eq!(archived(&f.repository, &f), [5, 9, 10, 11, 12]);
    assert_eq!(archived(&rebuilt(&f), &f), [5, 9, 10, 11, 12]);
    enforce(&f, &rules("REDUNDANCY 1"));
    assert_eq!(archived(&rebuilt(&f), &f), [9, 10, 11, 12]);
}

#[test]
fn of_removals_only_the_last_is_kept() {
    let (f, _) = site();
    enforce(&f, &rules("REDUNDANCY 2"));
    back_up_at(&f, 10);
    enforce(&f, &rules("REDUNDANCY 2"));
    enforce(&f, &rules("REDUNDANCY 1"));
    assert_eq!(stored(&f, WAL_REMOVAL), 3);
    sweep(&f);
    assert_eq!(stored(&f, WAL_REMOVAL), 1);
    assert_eq!(archived(&rebuilt(&f), &f), [10, 11, 12]);
}

#[test]
fn a_standalone_backup_keeps_its_own_wal() {
    let (f, [oldest, ..]) = site();
    f.repository
        .keep_backup(&oldest, KeepTarget::Standalone, None, None)
        .unwrap();
    let done = enforce(&f, &rules("REDUNDANCY 1"));
    assert_eq!(done.deleted.len(), 1, "{done:?}");
    for repository in [&f.repository, &rebuilt(&f)] {
        assert_eq!(archived(repository, &f), [3, 4, 9, 10, 11, 12]);
        let kept = repository.backups(&f.server).unwrap().remove(0);
        assert_eq!((kept.id, kept.status), (oldest.id, BackupStatus::Done));
        // What was removed on purpose is no gap.
        let backups = repository.backups(&f.server).unwrap();
        assert!(repository.gaps(&f.server, &backups).unwrap().is_empty());
    }
    // Released, it is obsolete.
    assert!(f.repository.release_backup(&oldest).unwrap());
    enforce(&f, &rules("REDUNDANCY 1"));
    assert_eq!(archived(&f.repository, &f), [9, 10, 11, 12]);
}

#[test]
fn a_full_backup_keeps_all_wal_from_its_start() {
    let (f, [oldest, ..]) = site();
    f.repository
        .keep_backup(&oldest, KeepTarget::Full, None, None)
        .unwrap();
    enforce(&f, &rules("REDUNDANCY 1"));
    assert_eq!(archived(&f.repository, &f), (3..13).collect::<Vec<_>>());
}

#[test]
fn wal_goes_without_a_policy_only_on_request_and_no_backup_with_it() {
    let (f, backups) = site();
    let plan = enforce(&f, &RetentionRules::default()).plan;
    assert_eq!(plan.wal_blocked.as_deref(), Some("There is no policy"));
    assert_eq!(archived(&f.repository, &f), (1..13).collect::<Vec<_>>());
    let rules = RetentionRules {
        unneeded_wal: true,
        ..RetentionRules::default()
    };
    // A person's decision for the end of a backup takes no WAL away, either.
    f.repository
        .keep_backup(&backups[0], KeepTarget::Standalone, None, None)
        .unwrap();
    let held = RetentionRules {
        held: Some("not now".to_owned()),
        ..rules.clone()
    };
    assert!(enforce(&f, &held).wal.is_empty());
    let done = enforce(&f, &rules);
    assert!(done.deleted.is_empty(), "{done:?}");
    assert_eq!(archived(&f.repository, &f), (3..13).collect::<Vec<_>>());
    // Without a backup, nothing is known of what is needed.
    let g = fixture();
    (1..4).for_each(|number| archive_segment(&g, number));
    assert!(enforce(&g, &rules).wal.is_empty());
}

#[test]
fn wal_may_be_kept_for_a_shorter_time_than_backups() {
    let (f, backups) = site();
    let rules = RetentionRules {
        wal: "REDUNDANCY 1".parse().unwrap(),
        ..rules("REDUNDANCY 3")
    };
    let done = enforce(&f, &rules);
    assert!(done.deleted.is_empty());
    let states: Vec<_> = done.plan.backups.iter().map(|backup| backup.state).collect();
    let own_end = RetentionState::ValidForItsEnd;
    assert_eq!(states, [RetentionState::Valid, own_end, own_end]);
    assert_eq!(archived(&f.repository, &f), [3, 4, 6, 7, 9, 10, 11, 12]);
    for backup in f.repository.backups(&f.server).unwrap() {
        assert_eq!(backup.status, BackupStatus::Done);
    }
    // While somebody reads it, the WAL behind its end may be needed.
    let (f, _) = site();
    let _reading = f
        .repository
        .reading(&f.repository.backups(&f.server).unwrap()[1])
        .unwrap();
    enforce(&f, &rules);
    assert_eq!(archived(&f.repository, &f), [3, 4, 6, 7, 8, 9, 10, 11, 12]);
    drop(backups);
}

#[test]
fn the_last_decision_about_a_backup_counts_until_it_ends() {
    let (f, [oldest, ..]) = site();
    let reason = Some("audit".to_owned());
    f.repository
        .keep_backup(&oldest, KeepTarget::Full, None, None)
        .unwrap();
    f.repository
        .keep_backup(&oldest, KeepTarget::Standalone, Some(in_days(2)), reason.clone())
        .unwrap();
    for repository in [&f.repository, &rebuilt(&f)] {
        let keep = repository.keep_of(&oldest).unwrap().unwrap();
        assert_eq!(
            (keep.target, keep.reason.clone()),
            (KeepTarget::Standalone, reason.clone())
        );
        assert!(keep.holds(now()) && !keep.holds(in_days(3)));
    }
    let refused = f.repository.delete_backup(&oldest, true);
    assert!(matches!(refused, Err(Error::BackupKept { .. })), "{refused:?}");
    let states = |at| -> Vec<RetentionState> {
        let plan = f
            .repository
            .retention(&f.server, &rules("REDUNDANCY 1"), at)
            .unwrap();
        plan.backups.iter().map(|backup| backup.state).collect()
    };
    assert_eq!(states(now())[2], RetentionState::KeptStandalone);
    assert_eq!(states(in_days(3))[2], RetentionState::Obsolete);
}

#[test]
fn a_release_ends_all_decisions_and_a_deletion_takes_them_along() {
    let (f, [oldest, middle, _]) = site();
    for backup in [&oldest, &middle] {
        f.repository
            .keep_backup(backup, KeepTarget::Full, None, None)
            .unwrap();
    }
    f.repository
        .keep_backup(&oldest, KeepTarget::Standalone, None, None)
        .unwrap();
    assert!(f.repository.release_backup(&oldest).unwrap());
    assert!(!f.repository.release_backup(&oldest).unwrap());
    assert_eq!(rebuilt(&f).keep_of(&oldest).unwrap(), None);
    f.repository.delete_backup(&oldest, false).unwrap();
    let gone = f.repository.keep_backup(&oldest, KeepTarget::Full, None, None);
    assert!(matches!(gone, Err(Error::NoSuchBackup { .. })), "{gone:?}");
    // One that has expired goes with its backup.
    f.repository.release_backup(&middle).unwrap();
    f.repository
        .keep_backup(&middle, KeepTarget::Full, Some(in_days(-1)), None)
        .unwrap();
    f.repository.delete_backup(&middle, false).unwrap();
    sweep(&f);
    assert_eq!(stored(&f, KEEP), 0);
}

/// Imports a backup that needs segment `first` and is kept where it comes from.
fn import_kept(f: &Fixture, first: u64) -> Backup {
    let taken = in_days(-30);
    let import = Import {
        id: BackupId::at(taken),
        tool: "Barman".to_owned(),
        name: "20261120T101500".to_owned(),
        begin_time: taken,
        end_time: taken,
        shut_down: false,
    };
    let writer = f.repository.writer("import").unwrap();
    let mut run = writer.begin_import(&f.server, new_backup(), import).unwrap();
    run.keep(KeepTarget::Full, Some("kept there".to_owned()));
    finish(run, first, first)
}

/// The kind: what retention deletes between the record of a backup and the decision to keep it.
#[test]
fn an_imported_backup_is_kept_from_its_first_moment_on() {
    let (f, [_, _, newest]) = site();
    let kept = import_kept(&f, 90);
    assert_eq!(kept.status, BackupStatus::WaitingForWals);
    assert!(f.repository.keep_of(&kept).unwrap().is_some());
    archive_segment(&f, 90);
    enforce(&f, &rules("REDUNDANCY 1"));
    let here = f.repository.backups(&f.server).unwrap();
    let ids: Vec<BackupId> = here.iter().map(|backup| backup.id).collect();
    assert_eq!(ids, [kept.id, newest.id]);
}

#[test]
fn what_was_released_here_is_not_kept_by_the_next_import() {
    let (f, _) = site();
    let kept = import_kept(&f, 1);
    let holds = |repository: &Repository| {
        let keep = repository.keep_of(&kept).unwrap();
        keep.is_some_and(|keep| keep.holds(now()))
    };
    let import_again = |repository: &Repository| {
        let again = "kept there".to_owned();
        repository
            .keep_as_imported(&kept, KeepTarget::Full, again)
            .unwrap();
    };
    assert!(holds(&f.repository));
    assert!(f.repository.release_backup(&kept).unwrap());
    assert!(!f.repository.release_backup(&kept).unwrap());
    import_again(&f.repository);
    assert!(!holds(&f.repository));
    sweep(&f);
    let repository = rebuilt(&f);
    import_again(&repository);
    assert!(!holds(&repository));
    repository
        .keep_backup(&kept, KeepTarget::Full, None, None)
        .unwrap();
    assert!(holds(&repository));
    repository.release_backup(&kept).unwrap();
    repository.delete_backup(&kept, false).unwrap();
    let gone = repository.keep_as_imported(&kept, KeepTarget::Full, "kept there".to_owned());
    assert!(matches!(gone, Err(Error::NoSuchBackup { .. })), "{gone:?}");
}

#[test]
fn only_a_complete_backup_can_be_kept() {
    let f = fixture();
    let waiting = back_up_at(&f, 3);
    let refused = f
        .repository
        .keep_backup(&waiting, KeepTarget::Full, None, None)
        .unwrap_err();
    assert!(refused.to_string().contains("WAITING_FOR_WALS"), "{refused}");
}

#[test]
fn failed_backups_are_deleted_after_a_while_if_a_newer_one_is_complete() {
    let f = fixture();
    (1..13).for_each(|number| archive_segment(&f, number));
    begin(&f.repository, &f.server).fail("first");
    back_up_at(&f, 3);
    begin(&f.repository, &f.server).fail("last");
    let rules = RetentionRules {
        failed_backups: Some(Duration::from_secs(7 * 24 * 3600)),
        ..RetentionRules::default()
    };
    let doomed = |days| {
        let plan = f.repository.retention(&f.server, &rules, in_days(days)).unwrap();
        plan.backups
            .iter()
            .map(|backup| backup.deleted)
            .collect::<Vec<_>>()
    };
    assert_eq!(doomed(6), [false, false, false]);
    assert_eq!(doomed(8), [false, false, true]);
    // Without a policy, no WAL is removed.
    let done = f
        .repository
        .enforce_retention(&f.server, &rules, in_days(8))
        .unwrap();
    assert_eq!((done.deleted.len(), done.wal.len()), (1, 0));
    assert_eq!(archived(&f.repository, &f).len(), 12);
}

#[test]
fn what_is_in_use_is_not_deleted_and_keeps_its_wal() {
    let (f, [oldest, ..]) = site();
    let reading = f.repository.reading(&oldest).unwrap();
    let done = enforce(&f, &rules("REDUNDANCY 1"));
    assert_eq!(done.deleted.len(), 1);
    let held = done.plan.backups.last().unwrap();
    assert_eq!(held.held_by.as_deref(), Some("it is being read"));
    assert_eq!(archived(&f.repository, &f), (3..13).collect::<Vec<_>>());
    drop(reading);
    assert_eq!(enforce(&f, &rules("REDUNDANCY 1")).deleted, [oldest.id]);
    assert_eq!(archived(&f.repository, &f), [9, 10, 11, 12]);
}

#[test]
fn while_a_backup_runs_no_wal_is_removed() {
    let (f, _) = site();
    let run = begin(&f.repository, &f.server);
    let done = enforce(&f, &rules("REDUNDANCY 1"));
    assert_eq!((done.deleted.len(), done.wal.len()), (2, 0));
    assert!(done.plan.wal_blocked.unwrap().contains("is running"));
    drop(run);
    assert_eq!(enforce(&f, &rules("REDUNDANCY 1")).wal.len(), 1);
}

#[test]
fn nothing_is_deleted_while_a_record_cannot_be_read() {
    for (kind, payload) in [
        (KEEP, &b"{\"version\":1}"[..]),
        (KEEP, b"{\"version\":9}"),
        (200, b"{}"),
    ] {
        let (f, _) = site();
        // What was read before is not read again, in this process and in those that trust a survey.
        f.repository.survey_packs().unwrap();
        let storage = LocalPacks::open(&f.repository.path().join("packs")).unwrap();
        let id = RecordId::random().unwrap();
        let mut pack = PackWriter::begin(&storage).unwrap();
        let record = Record {
            id,
            kind,
            payload: payload.to_vec(),
        };
        pack.record(record).unwrap();
        pack.close().unwrap();
        let done = enforce(&f, &rules("REDUNDANCY 1"));
        let blocked = done.plan.blocked.clone().unwrap_or_default();
        assert!(done.deleted.is_empty() && done.wal.is_empty(), "{done:?}");
        assert!(blocked.contains(&id.to_string()), "{blocked}");
        let trusting = Repository::open(f.repository.path()).unwrap();
        trusting.trust_last_survey(true).unwrap();
        let plan = trusting
            .retention(&f.server, &rules("REDUNDANCY 1"), now())
            .unwrap();
        assert_eq!(plan.blocked, Some(blocked));
    }
}

#[test]
fn removed_wal_ends_only_the_recovery_that_has_reached_its_end() {
    let (f, [oldest, ..]) = site();
    f.repository
        .keep_backup(&oldest, KeepTarget::Standalone, None, None)
        .unwrap();
    enforce(&f, &rules("REDUNDANCY 1"));
    let interrupts = |number| {
        let (name, _) = segment(number, SYSTEM, 0);
        f.repository.interrupts_recovery(&f.server, &name).unwrap()
    };
    // The kept backup ends in 4: its own recovery ends when 5 is not there. Nobody who asks for 6 or 7 is at an end.
    let missing = [1, 2, 5, 6, 7, 8, 13];
    let found: Vec<u32> = missing.into_iter().filter(|number| interrupts(*number)).collect();
    assert_eq!(found, [1, 2, 6, 7, 8]);
}

#[test]
fn a_clone_that_replays_keeps_the_wal_behind_its_backup() {
    let (f, [oldest, ..]) = site();
    let clone = CloneDescription {
        origin: CloneOrigin {
            backup: oldest.id,
            target: Some("now".to_owned()),
            copied_from: None,
        },
        ..clone_of(&oldest)
    };
    f.repository
        .begin_clone(clone, &oldest)
        .unwrap()
        .finish()
        .unwrap();
    f.repository
        .keep_backup(&oldest, KeepTarget::Standalone, None, None)
        .unwrap();
    enforce(&f, &rules("REDUNDANCY 1"));
    assert_eq!(archived(&f.repository, &f), (3..13).collect::<Vec<_>>());
}

#[test]
fn the_last_decision_counts_though_the_clock_was_set_back() {
    let (f, [oldest, ..]) = site();
    for target in [
        KeepTarget::Standalone,
        KeepTarget::Full,
        KeepTarget::Standalone,
        KeepTarget::Full,
    ] {
        f.repository.keep_backup(&oldest, target, None, None).unwrap();
        assert_eq!(f.repository.keep_of(&oldest).unwrap().unwrap().target, target);
    }
}

/// A server, as `cron` sees it, and what it remembers.
struct Remembering {
    f: Fixture,
    random: fastrand::Rng,
    rules: RetentionRules,
    /// How far the clock has gone ahead, in hours.
    hours: i64,
    head: u32,
    late: Vec<u32>,
    quiet: Option<Quiet>,
    clone: Option<CloneDescription>,
}

impl Remembering {
    fn new(random: fastrand::Rng) -> Self {
        let mut site = Self {
            f: fixture(),
            random,
            rules: rules("REDUNDANCY 2"),
            hours: 0,
            head: 0,
            late: Vec::new(),
            quiet: None,
            clone: None,
        };
        (0..4).for_each(|_| site.archive());
        site.back_up();
        site
    }

    fn now(&self) -> TimestampMicros {
        TimestampMicros::from_unix_micros(now().unix_micros() + self.hours * 3_600_000_000)
    }

    /// The next segment; some of them come later.
    fn archive(&mut self) {
        self.head += 1;
        if self.random.u8(..8) == 0 {
            self.late.push(self.head);
            self.head += 1;
        }
        archive_segment(&self.f, self.head);
    }

    fn back_up(&mut self) {
        let first = self.head + 1;
        (0..2).for_each(|_| {
            self.head += 1;
            archive_segment(&self.f, self.head);
        });
        back_up_at(&self.f, first.into());
    }

    fn any_backup(&mut self) -> Option<Backup> {
        let backups = self.f.repository.backups(&self.f.server).unwrap();
        let place = self.random.usize(..backups.len().max(1));
        backups.into_iter().nth(place)
    }

    fn act(&mut self) {
        let repository = &self.f.repository;
        match self.random.u8(..14) {
            0..4 => self.archive(),
            4 => {
                if let Some(number) = self.late.pop() {
                    archive_segment(&self.f, number);
                }
            }
            5 => self.back_up(),
            6 | 7 => self.hours += self.random.i64(1..30),
            8 => {
                let target = self.random.choice([KeepTarget::Full, KeepTarget::Standalone]);
                let until = self.random.bool().then(|| in_days(self.hours / 24 + 2));
                if let Some(backup) = self.any_backup() {
                    let _refused = self
                        .f
                        .repository
                        .keep_backup(&backup, target.unwrap(), until, None);
                }
            }
            9 => {
                if let Some(backup) = self.any_backup() {
                    self.f.repository.release_backup(&backup).unwrap();
                }
            }
            10 => {
                if let Some(backup) = self.any_backup() {
                    let _refused = self.f.repository.delete_backup(&backup, true);
                }
            }
            11 => self.choose_rules(),
            12 => self.change_clone(),
            _ => {
                let run = begin(repository, &self.f.server);
                // It ends without success.
                drop(run);
            }
        }
    }

    fn choose_rules(&mut self) {
        let policies = [
            "REDUNDANCY 1",
            "REDUNDANCY 3",
            "RECOVERY WINDOW OF 2 DAYS",
            "KEEP 2 DAILY",
        ];
        self.rules = rules(self.random.choice(policies).unwrap());
        self.rules.failed_backups = Some(Duration::from_secs(24 * 3600));
        if self.random.bool() {
            self.rules.wal = "RECOVERY WINDOW OF 1 DAYS".parse().unwrap();
        }
        self.rules.minimum_redundancy = self.random.u32(..3);
    }

    fn change_clone(&mut self) {
        let repository = &self.f.repository;
        match self.clone.take() {
            Some(clone) => {
                let lock = repository.lock_clone(&clone.server, &clone.name, "test").unwrap();
                repository.remove_clone(&clone, lock).unwrap();
            }
            None => {
                let backups = repository.backups(&self.f.server).unwrap();
                if let Some(backup) = backups.iter().find(|backup| backup.status == BackupStatus::Done) {
                    let clone = clone_of(backup);
                    repository
                        .begin_clone(clone.clone(), backup)
                        .unwrap()
                        .finish()
                        .unwrap();
                    self.clone = Some(clone);
                }
            }
        }
    }

    /// What `cron` does when its memory promises nothing. Returns whether it does.
    fn cron(&mut self) -> bool {
        let (repository, server, now) = (&self.f.repository, &self.f.server, self.now());
        let newest = repository.newest_record().unwrap();
        let is_quiet = |quiet| {
            repository
                .is_quiet(server, &self.rules, quiet, newest, now)
                .unwrap()
        };
        if self.quiet.as_ref().is_some_and(is_quiet) {
            let plan = repository.retention(server, &self.rules, now).unwrap();
            assert_eq!(plan.doomed().count(), 0, "{:?}: {plan:?}", self.quiet);
            assert!(plan.removable_wal().is_empty(), "{:?}: {plan:?}", self.quiet);
            return true;
        }
        let basis = repository.retention_basis(server).unwrap();
        let done = repository.enforce_retention(server, &self.rules, now).unwrap();
        self.quiet = repository
            .quiet_after(server, &self.rules, &done.plan, &basis, now)
            .unwrap();
        false
    }
}

#[test]
fn a_plan_that_is_remembered_to_be_empty_is_empty() {
    let seed = 20_261_130;
    let (mut quiet, mut planned) = (0, 0);
    for round in 0..8 {
        let mut site = Remembering::new(fastrand::Rng::with_seed(seed + round));
        for _ in 0..40 {
            site.act();
            match site.cron() {
                true => quiet += 1,
                false => planned += 1,
            }
        }
    }
    assert!(quiet > 50 && planned > 50, "{quiet} quiet, {planned} planned");
}
