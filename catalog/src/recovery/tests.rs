//! Compares the planner with a model that replays records as PostgreSQL does, over random WAL, timelines, backups and
//! gaps.

use std::collections::{BTreeMap, BTreeSet};

use barmanfs_pg::pg_control::RequiredSettings;
use barmanfs_pg::testing::{SYSTEM_ID, SampleWal};
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::wal_scan::{Parameters, RecordFacts, SegmentIndex, Stop, StopReason, WalLevel};
use barmanfs_pg::{Lsn, SegmentSize, ServerVersion, SystemId, TimelineId, TimestampMicros};
use barmanfs_store::{Attributes, DirectoryRef};
use proptest::prelude::*;

use super::*;
use crate::archive::backup::{Backup, BackupKind, BackupRoot, BackupStatus, Imported};
use crate::archive::wal::WalFile;
use crate::home::settings::CreateOptions;
use crate::index::records::{self, Kind};
use crate::names::{BackupId, ServerName};
use crate::{Repository, Silent, Writer};

mod retention;

const SIZE: SegmentSize = SegmentSize::MIN;
const FIRST_LSN: Lsn = Lsn(0x30_0000);
/// Seconds since 1970 of the first record.
const EPOCH: i64 = 1_700_000_000;
const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

fn at(seconds: i64) -> TimestampMicros {
    TimestampMicros::from_unix_seconds(EPOCH + seconds)
}

fn number(lsn: Lsn) -> u64 {
    lsn.segment_number(SIZE)
}

/// A cluster's WAL as it was written on all its timelines, and its backups.
struct World {
    logs: BTreeMap<u32, SampleWal>,
    /// Each timeline's ancestors and where they were left, oldest first.
    histories: BTreeMap<u32, Vec<(u32, Lsn)>>,
    backups: Vec<ModelBackup>,
    current: u32,
    clock: i64,
    xid: u32,
}

#[derive(Debug, Clone)]
struct ModelBackup {
    id: BackupId,
    timeline: u32,
    start: Lsn,
    stop: Lsn,
    begin: TimestampMicros,
}

#[derive(Debug, Clone)]
enum Act {
    /// A commit, or an abort, so many seconds after the last, and so many bytes long.
    End {
        commit: bool,
        seconds: i64,
        bytes: usize,
    },
    Point(usize),
    Other(usize),
    Switch,
    /// A backup during which so many transactions end.
    Backup(usize),
    /// A new timeline that begins before so many of the last records.
    Fork(usize),
    /// A return to an older timeline.
    Return(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        10 => (any::<bool>(), -20_i64..60, prop_oneof![4 => Just(0_usize), 1 => 0_usize..300_000])
            .prop_map(|(commit, seconds, bytes)| Act::End { commit, seconds, bytes }),
        3 => (0..NAMES.len()).prop_map(Act::Point),
        5 => (0_usize..400_000).prop_map(Act::Other),
        1 => Just(Act::Switch),
        3 => (0_usize..4).prop_map(Act::Backup),
        1 => (0_usize..8).prop_map(Act::Fork),
        1 => (0_usize..3).prop_map(Act::Return),
    ]
}

impl World {
    fn of(acts: &[Act]) -> Self {
        let mut world = Self {
            logs: BTreeMap::from([(1, SampleWal::new(FIRST_LSN, SIZE))]),
            histories: BTreeMap::from([(1, Vec::new())]),
            backups: Vec::new(),
            current: 1,
            clock: 0,
            xid: 100,
        };
        world.log().record(10, 0, &[1; 40]);
        acts.iter().for_each(|act| world.act(act));
        world
    }

    fn log(&mut self) -> &mut SampleWal {
        self.logs.get_mut(&self.current).unwrap()
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::End {
                commit,
                seconds,
                bytes,
            } => self.end(commit, seconds, bytes),
            Act::Point(name) => {
                let (name, time) = (NAMES[name].to_owned(), at(self.clock));
                self.log().say(&RecordFacts::RestorePoint { name, time }, 0);
            }
            Act::Other(bytes) => {
                self.log().record(10, 0, &vec![7; bytes]);
            }
            Act::Switch => self.log().say(&RecordFacts::Switch, 0),
            Act::Backup(ends) => self.back_up(ends),
            Act::Fork(records) => self.fork(records),
            Act::Return(nth) => {
                let timelines: Vec<u32> = self.logs.keys().copied().collect();
                self.current = timelines[nth % timelines.len()];
            }
        }
    }

    fn end(&mut self, commit: bool, seconds: i64, bytes: usize) {
        self.clock += seconds;
        self.xid += 1;
        let (time, xid) = (at(self.clock), self.xid);
        let facts = if commit {
            RecordFacts::Commit { time, xid }
        } else {
            RecordFacts::Abort { time, xid }
        };
        self.log().say(&facts, bytes);
    }

    fn back_up(&mut self, ends: usize) {
        let begin = at(self.clock);
        let (time, timeline) = (begin, TimelineId(self.current));
        self.log().say(
            &RecordFacts::Checkpoint {
                time,
                timeline,
                previous: timeline,
            },
            0,
        );
        let start = self.log().extents.last().unwrap().0;
        (0..ends).for_each(|_| self.end(true, 7, 100_000));
        self.log().say(&RecordFacts::BackupEnd { start_lsn: start }, 0);
        let stop = self.log().extents.last().unwrap().1;
        // Ids are unique and ascend, the clock may go back.
        let id = BackupId::at(at(1_000_000 + self.backups.len() as i64));
        let timeline = self.current;
        self.backups.push(ModelBackup {
            id,
            timeline,
            start,
            stop,
            begin,
        });
    }

    fn fork(&mut self, records: usize) {
        let history = &self.histories[&self.current];
        let begin = history.last().map_or(FIRST_LSN, |(_, at)| *at);
        let extents = &self.logs[&self.current].extents;
        let starts: Vec<Lsn> = extents
            .iter()
            .map(|(start, _)| *start)
            .filter(|lsn| *lsn > begin)
            .collect();
        let Some(&lsn) = starts.iter().rev().nth(records) else {
            return;
        };
        let new = self.logs.keys().last().unwrap() + 1;
        let log = self.logs[&self.current].fork(lsn, TimelineId(new));
        let history = history.iter().copied().chain([(self.current, lsn)]).collect();
        let (time, previous) = (at(self.clock), TimelineId(self.current));
        self.logs.insert(new, log);
        self.histories.insert(new, history);
        self.current = new;
        self.log().say(
            &RecordFacts::EndOfRecovery {
                time,
                timeline: TimelineId(new),
                previous,
            },
            0,
        );
    }

    /// The file that PostgreSQL requests first.
    fn name(&self, timeline: u32, number_: u64) -> SegmentName {
        let history = &self.histories[&timeline];
        let begins = history
            .iter()
            .map(|(_, at)| *at)
            .zip(history.iter().skip(1).map(|(id, _)| *id).chain([timeline]));
        let first = history.first().map_or(timeline, |(id, _)| *id);
        let mut of = first;
        for (begin, id) in begins {
            if number(begin) <= number_ {
                of = id;
            }
        }
        SegmentName::from_lsn(TimelineId(of), Lsn(number_ * SIZE.bytes()), SIZE)
    }

    /// Whether PostgreSQL would use the previous timeline's segment instead of the missing one.
    fn replay_would_diverge(&self, there: &BTreeSet<SegmentName>, timeline: u32, missing: u64) -> bool {
        let is_there = |timeline: u32| {
            let lsn = Lsn(missing * SIZE.bytes());
            there.contains(&SegmentName::from_lsn(TimelineId(timeline), lsn, SIZE))
        };
        !there.contains(&self.name(timeline, missing))
            && self.histories[&timeline]
                .iter()
                .any(|(before, at)| number(*at) == missing && is_there(*before))
    }

    fn contains(&self, timeline: u32, backup: &ModelBackup) -> bool {
        timeline == backup.timeline
            || self.histories[&timeline]
                .iter()
                .any(|(id, at)| *id == backup.timeline && backup.stop <= *at)
    }

    /// The records along a timeline, with their facts.
    fn records(&self, timeline: u32) -> Vec<(Lsn, Lsn, Option<&RecordFacts>)> {
        let log = &self.logs[&timeline];
        let facts: BTreeMap<Lsn, &RecordFacts> =
            log.written.iter().map(|(lsn, facts)| (*lsn, facts)).collect();
        log.extents
            .iter()
            .map(|(start, end)| (*start, *end, facts.get(start).copied()))
            .collect()
    }
}

/// Replays as PostgreSQL does, with the segments in `there`. Returns whether it ends well: at the target, after the
/// backup's end.
fn replay(
    world: &World,
    there: &BTreeSet<SegmentName>,
    backup: &ModelBackup,
    timeline: u32,
    spec: &TargetSpec,
) -> bool {
    let mut consistent = false;
    let mut readable = number(backup.start);
    for (start, end, facts) in world.records(timeline) {
        if start < backup.start {
            continue;
        }
        while readable <= number(Lsn(end.0 - 1)) && there.contains(&world.name(timeline, readable)) {
            readable += 1;
        }
        if readable <= number(Lsn(end.0 - 1)) {
            break;
        }
        if stops_before(spec, start, facts) {
            return consistent;
        }
        consistent |= end >= backup.stop;
        if stops_after(spec, start, facts) || (spec.target == Target::Immediate && consistent) {
            return consistent;
        }
    }
    spec.target == Target::Now && consistent && !world.replay_would_diverge(there, timeline, readable)
}

fn ended(facts: Option<&RecordFacts>) -> Option<(TimestampMicros, u32)> {
    match facts {
        Some(RecordFacts::Commit { time, xid } | RecordFacts::Abort { time, xid }) => Some((*time, *xid)),
        _ => None,
    }
}

fn stops_before(spec: &TargetSpec, lsn: Lsn, facts: Option<&RecordFacts>) -> bool {
    match (&spec.target, ended(facts)) {
        (Target::Lsn(target), _) => !spec.inclusive && lsn >= *target,
        (Target::Xid(target), Some((_, xid))) => !spec.inclusive && xid == *target,
        (Target::Time(TimeTarget::At(target)), Some((time, _))) => {
            time > *target || (!spec.inclusive && time == *target)
        }
        _ => false,
    }
}

fn stops_after(spec: &TargetSpec, lsn: Lsn, facts: Option<&RecordFacts>) -> bool {
    match (&spec.target, facts) {
        (Target::Lsn(target), _) => lsn >= *target,
        (Target::Xid(target), facts) => ended(facts).is_some_and(|(_, xid)| xid == *target),
        (Target::Name(target), Some(RecordFacts::RestorePoint { name, .. })) => name == target,
        _ => false,
    }
}

/// Whether it is also what a user means: nothing in the backup is later than a time target, and the backup ends before
/// a position target, after which there is a record that is no fragment. (PostgreSQL would also accept the start of the
/// backup's very last record, and the start of a record that ends where all WAL ends.)
fn is_meant(
    world: &World,
    there: &BTreeSet<SegmentName>,
    backup: &ModelBackup,
    timeline: u32,
    spec: &TargetSpec,
) -> bool {
    match spec.target {
        Target::Lsn(lsn) => {
            let within = |start: Lsn, end: Lsn| number(start) == number(Lsn(end.0 - 1));
            lsn >= backup.stop
                && world.records(timeline).iter().any(|(start, end, _)| {
                    *start >= lsn
                        && within(*start, *end)
                        && there.contains(&world.name(timeline, number(*start)))
                })
        }
        Target::Time(TimeTarget::At(target)) => {
            let records = world.records(timeline);
            let mut before = records.iter().filter(|(lsn, _, _)| *lsn < backup.start);
            let is_later = |facts: Option<&RecordFacts>| {
                ended(facts).is_some_and(|(time, _)| time > target || (time == target && !spec.inclusive))
            };
            backup.begin <= target && !before.any(|(_, _, facts)| is_later(*facts))
        }
        _ => true,
    }
}

struct Archive {
    _directory: tempfile::TempDir,
    repository: Repository,
    writer: Writer,
    server: ServerName,
}

impl Archive {
    /// What `timelines` reports; the gaps are those that are found alone.
    fn timelines(&self) -> TimelineReport {
        let report = self.repository.timelines(&self.server).unwrap();
        let backups = self.repository.backups(&self.server).unwrap();
        let gaps = self.repository.gaps(&self.server, &backups).unwrap();
        assert_eq!(gaps, report.gaps);
        report
    }

    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("repository");
        let repository = Repository::create(&path, CreateOptions::default()).unwrap();
        let writer = repository.writer("test").unwrap();
        let server = "main".parse().unwrap();
        Self {
            _directory: directory,
            repository,
            writer,
            server,
        }
    }

    fn put(&self, name: WalName, bytes: &[u8]) {
        self.writer
            .archive_wal(&self.server, &name, &mut &*bytes, bytes.len() as u64, "test")
            .unwrap();
    }

    fn put_history(&self, timeline: u32, history: &[(u32, Lsn)]) {
        let text: String = history
            .iter()
            .map(|(id, at)| format!("{id}\t{at}\ttest\n"))
            .collect();
        self.put(WalName::History(TimelineId(timeline)), text.as_bytes());
    }

    fn put_backup(&self, backup: &ModelBackup) {
        let backup = complete(&self.server, backup);
        let record = records::record(Kind::Backup, &backup).unwrap();
        self.writer.write_records(vec![record]).unwrap();
    }
}

fn complete(server: &ServerName, backup: &ModelBackup) -> Backup {
    Backup {
        server: server.clone(),
        id: backup.id,
        status: BackupStatus::Done,
        kind: BackupKind::Full,
        cloned_from: None,
        imported: None,
        snapshot: None,
        annotations: BTreeMap::new(),
        parent: None,
        timezone: Some("Europe/Paris".to_owned()),
        label: None,
        begin_time: backup.begin,
        end_time: Some(backup.begin),
        start_lsn: Some(backup.start),
        stop_lsn: Some(backup.stop),
        timeline: Some(TimelineId(backup.timeline)),
        system_id: SystemId(SYSTEM_ID),
        server_version: ServerVersion(150_018),
        segment_size: SIZE,
        data_checksums: None,
        tablespaces: Vec::new(),
        wal_included: false,
        fork: None,
        from_standby: false,
        logical_bytes: 0,
        sent_bytes: 0,
        new_stored_bytes: 0,
        files: 0,
        checksum_failures: Vec::new(),
        error: None,
        root: Some(BackupRoot {
            directory: DirectoryRef::default(),
            attributes: Attributes {
                mode: 0o700,
                uid: 0,
                gid: 0,
                mtime_s: 0,
                mtime_ns: 0,
            },
        }),
        record: None,
        apart: None,
    }
}

/// All useful targets, and some that are not.
fn targets(world: &World) -> Vec<TargetSpec> {
    let mut targets = vec![
        Target::Now,
        Target::Immediate,
        Target::Xid(5),
        Target::Name("nobody".to_owned()),
    ];
    targets.extend(NAMES.iter().map(|name| Target::Name((*name).to_owned())));
    for timeline in world.logs.keys() {
        for (start, end, facts) in world.records(*timeline) {
            if let Some((time, xid)) = ended(facts) {
                for micros in [-500_000, 0, 500_000] {
                    let time = TimestampMicros::from_unix_micros(time.unix_micros() + micros);
                    targets.push(Target::Time(TimeTarget::At(time)));
                }
                targets.push(Target::Xid(xid));
            }
            targets.extend([start, Lsn(start.0 + 8), end].map(Target::Lsn));
        }
    }
    targets.dedup();
    let mut specs = Vec::new();
    for target in targets {
        let has_a_limit = matches!(target, Target::Time(_) | Target::Lsn(_) | Target::Xid(_));
        for inclusive in [true, false] {
            if inclusive || has_a_limit {
                specs.push(TargetSpec {
                    inclusive,
                    ..target.clone().into()
                });
            }
        }
    }
    specs
}

fn check(
    archive: &Archive,
    repository: &Repository,
    world: &World,
    there: &BTreeSet<SegmentName>,
    timeline: u32,
    spec: &TargetSpec,
) {
    let server = &archive.server;
    let done = |backup: &&ModelBackup| {
        (number(backup.start)..=number(Lsn(backup.stop.0 - 1))).all(|number| {
            let name = SegmentName::from_lsn(TimelineId(backup.timeline), Lsn(number * SIZE.bytes()), SIZE);
            there.contains(&name)
        })
    };
    if spec.target == Target::Immediate && spec.timeline == TimelineChoice::Latest {
        let newest = world.backups.iter().filter(done).max_by_key(|backup| backup.id);
        let plan = repository.plan(server, spec).unwrap().ok();
        let planned = plan.as_ref().map(|plan| (plan.backup.id, plan.timeline.0));
        assert_eq!(planned, newest.map(|backup| (backup.id, backup.timeline)));
        return;
    }
    let on_the_way: Vec<&ModelBackup> = world
        .backups
        .iter()
        .filter(done)
        .filter(|backup| world.contains(timeline, backup))
        .collect();
    let newest = on_the_way.iter().map(|backup| backup.stop).max();
    let leads_there = |backup: &&&ModelBackup| replay(world, there, backup, timeline, spec);
    let usable: Vec<&ModelBackup> = on_the_way.iter().filter(leads_there).copied().collect();
    let right = usable
        .iter()
        .filter(|backup| is_meant(world, there, backup, timeline, spec))
        // `now` means all WAL, not only the part before a gap that is older than a backup.
        .filter(|backup| spec.target != Target::Now || Some(backup.stop) == newest);
    let best = right.max_by_key(|backup| (backup.stop, backup.id));
    match repository.plan(server, spec).unwrap() {
        Ok(plan) => {
            assert_eq!(plan.timeline, TimelineId(timeline), "{spec}");
            let chosen = world
                .backups
                .iter()
                .find(|backup| backup.id == plan.backup.id)
                .unwrap();
            assert!(
                usable.iter().any(|backup| backup.id == chosen.id),
                "{spec}: PostgreSQL fails from {chosen:?}"
            );
            assert!(
                best.is_none_or(|best| chosen.stop >= best.stop),
                "{spec}: {best:?} is better than {chosen:?}"
            );
            let needed: BTreeSet<SegmentName> = repository
                .recovery_segments(&plan)
                .unwrap()
                .filter_map(|name| match name {
                    WalName::Segment(segment) => Some(segment),
                    _ => None,
                })
                .collect();
            assert_eq!(needed.len() as u64, plan.segments, "{spec}");
            assert!(needed.is_subset(there), "{spec}");
            assert!(
                replay(world, &needed, chosen, timeline, spec),
                "{spec}: {} is not the last needed",
                plan.last_segment
            );
        }
        Err(reason) => assert!(best.is_none(), "{spec}: {reason}, but {best:?} leads there"),
    }
}

proptest! {
    // Each case takes a second to write, archive and rebuild its world, so shrinking is limited.
    #![proptest_config(ProptestConfig { max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn plans_agree_with_a_model_of_postgresql(
        acts in proptest::collection::vec(act(), 5..60),
        missing in proptest::collection::vec(any::<proptest::sample::Index>(), 0..2),
        order: u64,
        keep_last: bool,
    ) {
        let world = World::of(&acts);
        let archive = Archive::new();
        let mut files = Vec::new();
        for (timeline, log) in &world.logs {
            let begin = world.histories[timeline].last().map_or(FIRST_LSN, |(_, at)| *at);
            let segments = log.segments();
            let last = segments.len() - usize::from(!keep_last);
            let own = |name: &SegmentName| number(name.start_lsn(SIZE)) >= number(begin);
            files.extend(segments.into_iter().take(last).filter(|segment| own(&segment.name)));
        }
        for index in missing {
            if !files.is_empty() {
                files.remove(index.index(files.len()));
            }
        }
        // Any order of arrival.
        files.sort_by_key(|file| (u64::from(crc32c::crc32c(file.name.to_string().as_bytes())) ^ order).reverse_bits());
        let there: BTreeSet<SegmentName> = files.iter().map(|file| file.name).collect();
        files.iter().for_each(|file| archive.put(WalName::Segment(file.name), &file.bytes));
        for (timeline, history) in world.histories.iter().skip(1) {
            archive.put_history(*timeline, history);
        }
        world.backups.iter().for_each(|backup| archive.put_backup(backup));

        let latest = *world.logs.keys().last().unwrap();
        for spec in targets(&world) {
            check(&archive, &archive.repository, &world, &there, latest, &spec);
        }
        for timeline in world.logs.keys() {
            let timeline_choice = TimelineChoice::Id(TimelineId(*timeline));
            for spec in targets(&world).into_iter().step_by(5) {
                let spec = TargetSpec { timeline: timeline_choice, ..spec };
                check(&archive, &archive.repository, &world, &there, *timeline, &spec);
            }
        }
        check_rebuilt(archive, &targets(&world));
    }
}

fn answers(
    repository: &Repository,
    server: &ServerName,
    specs: &[TargetSpec],
) -> Vec<Result<Plan, Unreachable>> {
    specs
        .iter()
        .map(|spec| repository.plan(server, spec).unwrap())
        .collect()
}

/// Checks that the result is the same when the records are read in another order.
fn check_rebuilt(archive: Archive, specs: &[TargetSpec]) {
    let Archive {
        _directory,
        repository,
        writer,
        server,
    } = archive;
    let before = answers(&repository, &server, specs);
    drop(writer);
    Repository::rebuild(repository.path(), &mut Silent).unwrap();
    let rebuilt = Repository::open(repository.path()).unwrap();
    assert_eq!(answers(&rebuilt, &server, specs), before);
}

/// WAL with a backup, a restore point, and transactions before and after.
fn small_world() -> (World, Archive) {
    let end = |seconds| Act::End {
        commit: true,
        seconds,
        bytes: 90_000,
    };
    let acts = [
        vec![end(5), Act::Backup(2)],
        vec![end(10); 40],
        vec![Act::Point(0)],
        vec![end(10); 20],
    ]
    .concat();
    let world = World::of(&acts);
    let archive = Archive::new();
    let segments = world.logs[&1].segments();
    for segment in &segments[..segments.len() - 1] {
        archive.put(WalName::Segment(segment.name), &segment.bytes);
    }
    world.backups.iter().for_each(|backup| archive.put_backup(backup));
    (world, archive)
}

#[test]
fn opening_upgrades_a_catalog_of_the_previous_layout() {
    let (world, archive) = small_world();
    let specs = targets(&world);
    let Archive {
        _directory,
        repository,
        writer,
        server,
    } = archive;
    let before = answers(&repository, &server, &specs);
    assert!(before.iter().any(Result::is_ok));
    repository
        .db
        .write(|db| {
            Ok(db.execute_batch("DROP TABLE segments; DROP TABLE restore_points; PRAGMA user_version = 1")?)
        })
        .unwrap();
    let path = repository.path().to_path_buf();
    drop((writer, repository));
    let reopened = Repository::open(&path).unwrap();
    assert_eq!(answers(&reopened, &server, &specs), before);
}

/// Changes the segments as if archived by a release that could not read this PostgreSQL's WAL.
fn make_unread(archive: &Archive) -> u64 {
    let mut count = 0;
    for file in archive
        .repository
        .wal(&archive.server)
        .files(None, 10_000)
        .unwrap()
    {
        let (Some(old), Some(index)) = (file.record, &file.index) else {
            continue;
        };
        let stop = Stop {
            lsn: index.end_lsn,
            reason: StopReason::UnknownVersion,
        };
        let unread = WalFile {
            index: Some(SegmentIndex {
                stopped: Some(stop),
                ..SegmentIndex::default()
            }),
            record: None,
            ..file.clone()
        };
        let deletion = records::Deletion {
            of: old,
            deleted_at: at(0),
            what: String::new(),
        };
        let new = [
            records::record(Kind::Deletion, &deletion).unwrap(),
            records::record(Kind::Wal, &unread).unwrap(),
        ];
        archive.writer.write_records(new.into()).unwrap();
        count += 1;
    }
    count
}

#[test]
fn wal_that_an_earlier_release_could_not_read_is_reported_and_read_again() {
    let (world, archive) = small_world();
    let specs = targets(&world);
    let before = answers(&archive.repository, &archive.server, &specs);
    assert!(before.iter().any(Result::is_ok));
    let count = make_unread(&archive);
    assert!(count > 2);
    let (repository, server) = (&archive.repository, &archive.server);
    let now = repository.plan(server, &Target::Now.into()).unwrap();
    assert!(matches!(now, Err(Unreachable::NotIndexed { .. })), "{now:?}");
    assert_eq!(repository.outdated_segments(server).unwrap(), count);
    assert_eq!(repository.unknown_segments(server).unwrap().unwrap().1, count);
    let report = archive.writer.reindex_wal(server, &mut Silent).unwrap();
    assert_eq!(
        (report.segments, report.unknown, report.problems.len()),
        (count, 0, 0)
    );
    assert_eq!(answers(repository, server, &specs), before);
    assert_eq!(repository.outdated_segments(server).unwrap(), 0);
    assert_eq!(repository.unknown_segments(server).unwrap(), None);
    let again = archive.writer.reindex_wal(server, &mut Silent).unwrap();
    assert_eq!(again.segments, 0);
    // A rebuild from the packs gives the same.
    let Archive {
        _directory,
        repository,
        writer,
        server,
    } = archive;
    let path = repository.path().to_path_buf();
    drop((writer, repository));
    Repository::rebuild(&path, &mut Silent).unwrap();
    let rebuilt = Repository::open(&path).unwrap();
    assert_eq!(answers(&rebuilt, &server, &specs), before);
}

/// An obstacle on the way: a start with a setting that no recovery can pass.
#[test]
fn nothing_is_planned_past_a_start_with_minimal_wal() {
    let (mut world, archive) = small_world();
    let archived = world.logs[&1].segments().len() - 1;
    let minimal = |wal_level| {
        RecordFacts::ParameterChange(Parameters {
            wal_level,
            required: RequiredSettings {
                max_connections: 300,
                ..RequiredSettings::default()
            },
        })
    };
    let log = world.log();
    log.say(&minimal(WalLevel::Minimal), 0);
    let lsn = log.written.last().unwrap().0;
    log.say(&minimal(WalLevel::Replica), 0);
    world.act(&Act::End {
        commit: true,
        seconds: 1000,
        bytes: 0,
    });
    world.act(&Act::Switch);
    for segment in &world.logs[&1].segments()[archived..] {
        archive.put(WalName::Segment(segment.name), &segment.bytes);
    }
    let plan = |spec: TargetSpec| archive.repository.plan(&archive.server, &spec).unwrap();
    let exclusive = |lsn| TargetSpec {
        inclusive: false,
        ..Target::Lsn(lsn).into()
    };
    for blocked in [
        Target::Now.into(),
        Target::Lsn(lsn).into(),
        exclusive(Lsn(lsn.0 + 8)),
    ] {
        let planned = plan(blocked);
        assert!(
            matches!(planned, Err(Unreachable::Minimal { lsn: at, .. }) if at == lsn),
            "{planned:?}"
        );
    }
    let plan = plan(exclusive(lsn)).unwrap();
    assert_eq!(plan.required.unwrap().max_connections, 300);
    let report = archive.timelines();
    assert_eq!(report.minimal.len(), 1);
    assert!(report.minimal[0].matters() && report.minimal[0].backup_after.is_none());
    assert!(report.newest.is_some());
}

#[test]
fn now_includes_the_segment_being_received() {
    let (world, archive) = small_world();
    let now = || {
        archive
            .repository
            .plan(&archive.server, &Target::Now.into())
            .unwrap()
            .unwrap()
    };
    let archived = now();
    assert!(!archived.ends_in_partial);
    let last = world.logs[&1].segments().pop().unwrap();
    let spool = archive.repository.spool(&archive.server).unwrap();
    let mut file = spool.begin(last.name, SIZE).unwrap();
    file.append(&last.bytes[..300_000]).unwrap();
    let plan = now();
    assert!(plan.ends_in_partial);
    assert_eq!(
        (plan.last_segment, plan.segments),
        (last.name, archived.segments + 1)
    );
    assert!(plan.reaches > archived.reaches && plan.wal_bytes > archived.wal_bytes);
    // Only what is archived counts for a target that must be found.
    let later = plan
        .reaches
        .map(|time| Target::Time(TimeTarget::At(time)))
        .unwrap();
    assert!(
        archive
            .repository
            .plan(&archive.server, &later.into())
            .unwrap()
            .is_err()
    );
}

/// Whose own WAL a backup has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Primary,
    Standby,
    ShutDown,
}

impl Origin {
    /// A backup that has its own WAL.
    fn backup(self, server: &ServerName, model: &ModelBackup) -> Backup {
        let imported = Imported {
            tool: "a stopped server".to_owned(),
            name: "/srv/cold".to_owned(),
            imported_at: model.begin,
            shut_down: true,
        };
        Backup {
            wal_included: true,
            from_standby: self == Self::Standby,
            imported: (self == Self::ShutDown).then_some(imported),
            ..complete(server, model)
        }
    }
}

/// A standby, or a server that was shut down, has only the beginning of the segment in which its backup stops: what follows
/// needs the whole segment.
#[test]
fn a_standbys_own_wal_only_reaches_the_end_of_its_backup() {
    let (world, _) = small_world();
    let model = &world.backups[0];
    let stop_in = number(Lsn(model.stop.0 - 1));
    let acting = |own_wal: bool, origin: Origin, first: u64, spec: TargetSpec| {
        let archive = Archive::new();
        let backup = Backup {
            wal_included: own_wal,
            ..origin.backup(&archive.server, model)
        };
        let record = records::record(Kind::Backup, &backup).unwrap();
        archive.writer.write_records(vec![record]).unwrap();
        for segment in world.logs[&1].segments() {
            if number(segment.name.start_lsn(SIZE)) >= first {
                archive.put(WalName::Segment(segment.name), &segment.bytes);
            }
        }
        let plan = archive.repository.plan(&archive.server, &spec);
        plan.unwrap()
            .map(|plan| number(plan.last_segment.start_lsn(SIZE)))
            .ok()
    };
    let planned =
        |origin: Origin, first: u64, target: &Target| acting(true, origin, first, target.clone().into());
    let later = Target::Name(NAMES[0].to_owned());
    for origin in [Origin::Primary, Origin::Standby, Origin::ShutDown] {
        assert_eq!(planned(origin, u64::MAX, &Target::Immediate), Some(stop_in));
        assert_eq!(planned(origin, u64::MAX, &Target::Now), Some(stop_in));
        assert!(planned(origin, stop_in, &later).is_some_and(|last| last > stop_in));
    }
    assert!(planned(Origin::Primary, stop_in + 1, &later).is_some());
    for origin in [Origin::Standby, Origin::ShutDown] {
        assert_eq!(planned(origin, stop_in + 1, &later), None);
        assert_eq!(planned(origin, stop_in + 1, &Target::Now), Some(stop_in));
        // PostgreSQL only stops at the end of the backup when it meets a later record.
        for action in [Action::Pause, Action::Shutdown] {
            let spec = TargetSpec::from(Target::Immediate).or_action(action);
            assert_eq!(acting(true, origin, u64::MAX, spec.clone()), None);
            assert_eq!(acting(true, origin, stop_in, spec), Some(stop_in));
        }
    }
    // Without WAL of its own, a copy that is to be promoted has a target, too.
    let first = number(model.start);
    let whole = acting(false, Origin::Standby, first, Target::Immediate.into());
    assert_eq!(whole, Some(stop_in));
}

/// What was received behind a backup's end is safe only as far as it is here, and the rest of a segment is not.
#[test]
fn now_from_a_standbys_own_wal_ends_where_its_wal_ends() {
    let (world, _) = small_world();
    let model = &world.backups[0];
    let stop_in = number(Lsn(model.stop.0 - 1));
    let stop_at = (model.stop.0 % SIZE.bytes()) as usize;
    let newest = |origin: Origin, archived: &dyn Fn(u64) -> bool, received: usize| {
        let archive = Archive::new();
        let backup = origin.backup(&archive.server, model);
        let record = records::record(Kind::Backup, &backup).unwrap();
        archive.writer.write_records(vec![record]).unwrap();
        let segments = world.logs[&1].segments();
        for segment in &segments {
            if archived(number(segment.name.start_lsn(SIZE))) {
                archive.put(WalName::Segment(segment.name), &segment.bytes);
            }
        }
        if received > 0 {
            let last = segments
                .iter()
                .find(|segment| number(segment.name.start_lsn(SIZE)) == stop_in)
                .unwrap();
            let spool = archive.repository.spool(&archive.server).unwrap();
            let mut file = spool.begin(last.name, SIZE).unwrap();
            file.append(&last.bytes[..received]).unwrap();
        }
        let reach = archive.repository.newest(&archive.server).unwrap().unwrap();
        (reach.lsn, reach.receiving)
    };
    let (none, before) = (|_| false, |number| number < stop_in);
    let whole = Lsn((stop_in + 1) * SIZE.bytes());
    assert_eq!(
        newest(Origin::Primary, &none, 0),
        (whole, false),
        "a primary left its last segment"
    );
    for origin in [Origin::Standby, Origin::ShutDown] {
        assert_eq!(newest(origin, &none, 0), (model.stop, false));
        assert_eq!(newest(origin, &before, 0), (model.stop, false));
        // What was received so far has less than the backup.
        assert_eq!(newest(origin, &none, stop_at / 2), (model.stop, false));
        let (more, receiving) = newest(origin, &none, SIZE.bytes() as usize - 8192);
        assert!(receiving && more > model.stop && more < whole, "{more}");
        assert!(newest(origin, &|_| true, 0).0 > whole);
    }
}

#[test]
fn a_time_without_a_zone_is_read_in_the_servers() {
    let (world, archive) = small_world();
    let (time, _) = world
        .records(1)
        .into_iter()
        .filter_map(|(_, _, facts)| ended(facts))
        .nth(30)
        .unwrap();
    let utc = TimeTarget::At(time).to_string();
    // Paris is one hour ahead in November.
    let local = TimestampMicros::from_unix_micros(time.unix_micros() + 3_600_000_000).to_string();
    let local = local.strip_suffix("+00").unwrap();
    let plan = |text: &str| {
        archive
            .repository
            .plan(&archive.server, &text.parse().unwrap())
            .unwrap()
            .unwrap()
    };
    let (plain, zoned) = (plan(local), plan(&utc));
    assert_eq!((plain.time, plain.last_segment), (Some(time), zoned.last_segment));
    assert!(plain.notes[0].contains("Europe/Paris") && zoned.notes.is_empty());
}

#[test]
fn unreachable_targets_are_explained() {
    let (world, archive) = small_world();
    let explain = |text: &str| {
        let reason = archive
            .repository
            .plan(&archive.server, &text.parse().unwrap())
            .unwrap()
            .unwrap_err();
        format!("{reason}; {:?}; {:?}", reason.nearest(), reason.hint())
    };
    let backup = &world.backups[0];
    for (target, parts) in [
        (
            "2020-01-01 00:00:00Z",
            vec![
                "before the end of every backup",
                "the earliest is the end of backup 20231126T120000",
            ],
        ),
        (
            "2030-01-01 00:00:00Z",
            vec![
                "Nothing that committed after 2030-01-01 00:00:00+00",
                "newest commit",
                "'now'",
            ],
        ),
        ("lsn:FF-0", vec!["No record at or after FF/0", "the WAL ends at"]),
        ("xid:7", vec!["transaction 7"]),
        ("name:nobody", vec!["No restore point 'nobody'"]),
        ("now,timeline=7", vec!["There is no timeline 7", "There are: 1"]),
        (
            "now,backup=20200101T000000",
            vec!["Backup 20200101T000000 cannot be started from: there is none"],
        ),
    ] {
        let text = explain(target);
        assert!(parts.iter().all(|part| text.contains(part)), "{target}: {text}");
    }
    let lsn = explain(&Target::Lsn(backup.start).to_string());
    assert!(lsn.contains(&backup.stop.to_string()), "{lsn}");
}

#[test]
fn a_segment_taken_out_leaves_no_trace() {
    let (world, archive) = small_world();
    let specs = targets(&world);
    let without = Archive::new();
    let segments = world.logs[&1].segments();
    // A record crosses into it and one out of it.
    let gone = WalName::Segment(segments[1].name);
    for segment in &segments[..segments.len() - 1] {
        if WalName::Segment(segment.name) != gone {
            without.put(WalName::Segment(segment.name), &segment.bytes);
        }
    }
    world.backups.iter().for_each(|backup| without.put_backup(backup));
    let file = archive
        .repository
        .wal(&archive.server)
        .find(&gone)
        .unwrap()
        .unwrap();
    assert!(file.index.unwrap().head.is_some());
    let deletion = records::Deletion {
        of: file.record.unwrap(),
        deleted_at: at(0),
        what: "a segment".to_owned(),
    };
    let record = records::record(Kind::Deletion, &deletion).unwrap();
    archive.writer.write_records(vec![record]).unwrap();
    let reasons = |archive: &Archive| -> Vec<String> {
        let plans = answers(&archive.repository, &archive.server, &specs);
        plans
            .into_iter()
            .map(|plan| format!("{:?}", plan.map(|plan| (plan.segments, plan.reaches))))
            .collect()
    };
    assert_eq!(reasons(&archive), reasons(&without));
    check_rebuilt(archive, &specs);
}

#[test]
fn a_time_at_which_a_timeline_ended_is_reported_as_ambiguous() {
    let end = |seconds| Act::End {
        commit: true,
        seconds,
        bytes: 0,
    };
    let acts = [
        vec![end(5), Act::Backup(1)],
        vec![end(10); 6],
        vec![Act::Other(400_000); 4],
        vec![
            Act::Fork(7),
            end(1000),
            end(1000),
            Act::Other(400_000),
            Act::Other(400_000),
            Act::Other(400_000),
        ],
    ]
    .concat();
    let world = World::of(&acts);
    let archive = Archive::new();
    for (timeline, log) in &world.logs {
        let segments = log.segments();
        segments[..segments.len() - 1]
            .iter()
            .for_each(|segment| archive.put(WalName::Segment(segment.name), &segment.bytes));
        if *timeline > 1 {
            archive.put_history(*timeline, &world.histories[timeline]);
        }
    }
    world.backups.iter().for_each(|backup| archive.put_backup(backup));
    let times: Vec<TimestampMicros> = world
        .records(1)
        .into_iter()
        .filter_map(|(_, _, facts)| ended(facts))
        .map(|(time, _)| time)
        .collect();
    let notes = |time: TimestampMicros, choice: &str| {
        let spec = format!("{}{choice}", TimeTarget::At(time)).parse().unwrap();
        archive
            .repository
            .plan(&archive.server, &spec)
            .unwrap()
            .unwrap()
            .notes
    };
    // The last but one transaction of timeline 1 is on no other timeline.
    let late = times[times.len() - 2];
    assert!(
        notes(late, "")[0].contains("Timeline 1 went on after timeline 2 left it"),
        "{:?}",
        notes(late, "")
    );
    assert!(notes(late, ",timeline=1").is_empty());
    assert!(
        notes(
            TimestampMicros::from_unix_micros(late.unix_micros() + 1_200_000_000),
            ""
        )
        .is_empty()
    );
    assert!(notes(times[2], "").is_empty());
}

/// A catalog like that of a busy month: the data about its segments is made up, and they have no content.
mod scale {
    use super::*;
    use crate::archive::wal::WalFile;
    use barmanfs_pg::wal_scan::{RestorePoint, SegmentIndex};
    use barmanfs_store::{ClosedPack, FileMap, PackId, Window};

    const SEGMENTS: u64 = 10_000;
    const BACKUPS: u64 = 100;
    const SEGMENTS_PER_BACKUP: u64 = SEGMENTS / BACKUPS;

    fn segment(server: &ServerName, number: u64) -> WalFile {
        let start = Lsn(number * SIZE.bytes());
        let name = SegmentName::from_lsn(TimelineId(1), start, SIZE);
        let minute = i64::try_from(number * 60).unwrap();
        let window = Window {
            chunk: None,
            crc32c: 0,
        };
        let xid = u32::try_from(number * 100).unwrap();
        WalFile {
            server: server.clone(),
            name: WalName::Segment(name),
            size_bytes: SIZE.bytes(),
            archived_at: at(minute + 60),
            origin: "test".to_owned(),
            new_stored_bytes: 0,
            index: Some(SegmentIndex {
                commit_time_min: Some(at(minute)),
                commit_time_max: Some(at(minute + 59)),
                commits: 100,
                xid_min: Some(xid),
                xid_max: Some(xid + 99),
                last_lsn: Some(Lsn(start.0 + SIZE.bytes() - 100)),
                end_lsn: Lsn(start.0 + SIZE.bytes()),
                restore_points: vec![RestorePoint {
                    name: format!("minute {number}"),
                    lsn: Lsn(start.0 + 500_000),
                    time: at(minute + 30),
                }],
                ..SegmentIndex::default()
            }),
            map: FileMap::inline(SIZE.bytes(), 1 << 20, vec![window]).unwrap(),
            record: None,
        }
    }

    fn backup(nth: u64) -> ModelBackup {
        let number = 3 + nth * SEGMENTS_PER_BACKUP;
        let begin = at(i64::try_from(number * 60).unwrap());
        ModelBackup {
            id: BackupId::at(begin),
            timeline: 1,
            start: Lsn(number * SIZE.bytes() + 1000),
            stop: Lsn(number * SIZE.bytes() + 9000),
            begin,
        }
    }

    #[test]
    fn a_month_of_segments_is_planned_over() {
        let archive = Archive::new();
        let segments =
            (3..3 + SEGMENTS).map(|number| records::record(Kind::Wal, &segment(&archive.server, number)));
        let records = segments.collect::<crate::Result<Vec<_>>>().unwrap();
        let pack = ClosedPack {
            id: PackId([7; 16]),
            bytes: 0,
            chunks: Vec::new(),
            records,
        };
        archive
            .repository
            .db
            .write(|db| records::enter(db, crate::archive::derive::derive, &pack, None))
            .unwrap();
        (0..BACKUPS).for_each(|nth| archive.put_backup(&backup(nth)));

        let plan = |target: &str| {
            archive
                .repository
                .plan(&archive.server, &target.parse().unwrap())
                .unwrap()
        };
        for (nth, offset) in [(0, 50), (57, 50), (99, 98)] {
            let number = 3 + nth * SEGMENTS_PER_BACKUP + offset;
            let middle = TimeTarget::At(at(i64::try_from(number * 60 + 30).unwrap()));
            let lsn = Target::Lsn(Lsn(number * SIZE.bytes() + 7)).to_string();
            for target in [middle.to_string(), lsn, format!("name:minute {number}")] {
                let planned = plan(&target).unwrap();
                assert_eq!(planned.backup.id, backup(nth).id, "{target}");
                assert_eq!(planned.segments, offset + 1, "{target}");
            }
        }
        assert_eq!(plan("now").unwrap().segments, SEGMENTS_PER_BACKUP);
        assert_eq!(plan("now,backup=20231114T221620").unwrap().segments, SEGMENTS);
        assert!(plan("2023-11-14 22:14Z").is_err() && plan("2100-01-01 00:00Z").is_err());
        assert!(plan("name:minute 5000000").is_err());
        let report = archive.timelines();
        assert_eq!(
            (report.timelines[0].ranges[0].segments, report.gaps.len()),
            (SEGMENTS, 0)
        );
    }
}
