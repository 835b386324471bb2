//! Retention against the planner, over random WAL, timelines, policies and decisions of people: what a kept backup reaches
//! stays reachable, and what no backup needs is gone.

use super::*;
use crate::archive::keep::KeepTarget;
use crate::retention::{BackupPolicy, RetentionPlan, RetentionRules, WalPolicy};
use std::num::NonZeroU32;

/// What somebody does before retention runs.
#[derive(Debug, Clone, Copy)]
enum Decision {
    Keep(KeepTarget),
    Release,
    Nothing,
}

fn decision() -> impl Strategy<Value = Decision> {
    prop_oneof![
        1 => Just(Decision::Keep(KeepTarget::Full)),
        1 => Just(Decision::Keep(KeepTarget::Standalone)),
        1 => Just(Decision::Release),
        2 => Just(Decision::Nothing),
    ]
}

fn filled(world: &World) -> Archive {
    let archive = Archive::new();
    for (timeline, log) in &world.logs {
        let begin = world.histories[timeline].last().map_or(FIRST_LSN, |(_, at)| *at);
        for segment in log.segments() {
            if number(segment.name.start_lsn(SIZE)) >= number(begin) {
                archive.put(WalName::Segment(segment.name), &segment.bytes);
            }
        }
    }
    for (timeline, history) in world.histories.iter().skip(1) {
        archive.put_history(*timeline, history);
    }
    world.backups.iter().for_each(|backup| archive.put_backup(backup));
    archive
}

fn decide(archive: &Archive, decision: Decision, which: proptest::sample::Index) {
    let mut backups = archive.repository.backups(&archive.server).unwrap();
    backups.retain(|backup| backup.status == BackupStatus::Done);
    if backups.is_empty() {
        return;
    }
    let backup = &backups[which.index(backups.len())];
    match decision {
        Decision::Keep(target) => archive
            .repository
            .keep_backup(backup, target, None, None)
            .unwrap(),
        Decision::Release => drop(archive.repository.release_backup(backup).unwrap()),
        Decision::Nothing => {}
    }
}

/// The plans that lead from each backup to the targets that it reaches.
fn reached(archive: &Archive, world: &World) -> BTreeMap<BackupId, Vec<(TargetSpec, Plan)>> {
    let mut plans = BTreeMap::new();
    for backup in archive.repository.backups(&archive.server).unwrap() {
        let mut of_backup = Vec::new();
        for spec in targets(world).into_iter().step_by(11) {
            let spec = TargetSpec {
                backup: Some(backup.id),
                ..spec
            };
            if let Ok(plan) = archive.repository.plan(&archive.server, &spec).unwrap() {
                of_backup.push((spec, plan));
            }
        }
        plans.insert(backup.id, of_backup);
    }
    plans
}

fn check_still_reached(
    archive: &Archive,
    plan: &RetentionPlan,
    before: &BTreeMap<BackupId, Vec<(TargetSpec, Plan)>>,
) {
    for judged in plan.backups.iter().filter(|judged| !judged.deleted) {
        for (spec, reached) in &before[&judged.id] {
            if judged.keeps_wal || spec.target == Target::Immediate {
                let mut now = archive.repository.plan(&archive.server, spec).unwrap();
                // Notes are about what there is besides, such as other restore points of the name.
                if let Ok(plan) = &mut now {
                    plan.notes.clone_from(&reached.notes);
                }
                assert_eq!(now.as_ref(), Ok(reached), "{spec} from {judged:?}");
            }
        }
    }
}

/// Each segment that is left is needed by a backup that is left, or is of the newest timeline before its first backup.
fn check_nothing_is_left_over(archive: &Archive, world: &World, plan: &RetentionPlan) {
    let keeping: BTreeMap<BackupId, bool> = plan
        .backups
        .iter()
        .filter(|judged| !judged.deleted)
        .map(|judged| (judged.id, judged.keeps_wal))
        .collect();
    let left = |backup: &&ModelBackup| keeping.contains_key(&backup.id);
    let anchors: Vec<&ModelBackup> = world
        .backups
        .iter()
        .filter(left)
        .filter(|backup| keeping[&backup.id])
        .collect();
    if anchors.is_empty() {
        return;
    }
    let newest = *world.logs.keys().last().unwrap();
    for entry in archive.repository.wal(&archive.server).entries() {
        let WalName::Segment(name) = entry.unwrap().name else {
            continue;
        };
        let (timeline, place) = (name.timeline.0, number(name.start_lsn(SIZE)));
        let needs = |backup: &&ModelBackup| {
            let left = world.histories[&timeline]
                .iter()
                .find(|(of, _)| *of == backup.timeline);
            (timeline == backup.timeline && place >= number(backup.start))
                || left.is_some_and(|(_, at)| *at >= backup.start)
        };
        let for_its_end = |backup: &&ModelBackup| {
            timeline == backup.timeline
                && (number(backup.start)..=number(Lsn(backup.stop.0 - 1))).contains(&place)
        };
        let is_tail = timeline == newest && !anchors.iter().any(|backup| backup.timeline == newest);
        assert!(
            is_tail
                || anchors.iter().any(needs)
                || world
                    .backups
                    .iter()
                    .filter(left)
                    .any(|backup| for_its_end(&backup)),
            "{name} is needed by nobody: {plan:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::with_cases(8) })]

    #[test]
    fn what_a_kept_backup_reaches_stays_reachable_and_the_rest_is_gone(
        acts in proptest::collection::vec(act(), 20..70),
        runs in proptest::collection::vec((decision(), any::<proptest::sample::Index>(), 1_u32..5, 0_u32..4), 1..4),
    ) {
        let world = World::of(&acts);
        let archive = filled(&world);
        for (decision, which, backups, wal) in runs {
            decide(&archive, decision, which);
            let rules = RetentionRules {
                backups: NonZeroU32::new(backups).map(BackupPolicy::Redundancy),
                wal: NonZeroU32::new(wal).map_or(WalPolicy::Main, WalPolicy::Redundancy),
                ..RetentionRules::default()
            };
            let before = reached(&archive, &world);
            let done = archive.repository.enforce_retention(&archive.server, &rules, at(2_000_000)).unwrap();
            check_still_reached(&archive, &done.plan, &before);
            check_nothing_is_left_over(&archive, &world, &done.plan);
        }
        check_rebuilt(archive, &targets(&world));
    }
}
