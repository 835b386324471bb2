use super::*;
use proptest::prelude::*;

const SIZE: SegmentSize = SegmentSize::DEFAULT;

fn lsn(segment: u64) -> Lsn {
    Lsn(segment * SIZE.bytes() + 40)
}

fn anchor(timeline: u32, segment: u64) -> Anchor {
    Anchor {
        timeline: TimelineId(timeline),
        start: lsn(segment),
        size: SIZE,
    }
}

fn island(timeline: u32, segment: u64, segments: u64) -> Island {
    Island {
        timeline: TimelineId(timeline),
        start: lsn(segment),
        stop: lsn(segment + segments - 1),
        size: SIZE,
    }
}

/// Timelines with their parents and the segments in which they left them; 0: of unknown origin.
fn histories(timelines: &[(u32, u32, u64)]) -> Histories {
    let mut known = Histories::default();
    known.0.insert(
        TimelineId(1),
        Origin::Known(TimelineHistory::without_ancestors(TimelineId(1))),
    );
    for (timeline, parent, left) in timelines {
        let mut file = String::new();
        if let Some(Origin::Known(history)) = known.0.get(&TimelineId(*parent)) {
            for entry in history.entries() {
                file += &format!("{}\t{}\tno reason\n", entry.timeline.0, entry.switch_lsn);
            }
            file += &format!("{parent}\t{}\tno reason\n", lsn(*left));
        }
        let id = TimelineId(*timeline);
        let origin = match *parent {
            0 => Origin::Unknown,
            _ => Origin::Known(TimelineHistory::parse(file.as_bytes(), id).unwrap()),
        };
        known.0.insert(id, origin);
    }
    known
}

/// The segments of a timeline that are needed, of the first `count`.
fn needed(needs: &Needs, timeline: u32, histories: &Histories, count: u64) -> Vec<u64> {
    let ranges = needs.unneeded(TimelineId(timeline), histories);
    (0..count)
        .filter(|number| {
            let name = SegmentName::from_lsn(TimelineId(timeline), lsn(*number), SIZE);
            !ranges
                .iter()
                .any(|range| (range.first..=range.last).contains(&name))
        })
        .collect()
}

#[test]
fn an_anchor_needs_everything_from_its_start() {
    let needs = Needs {
        anchors: vec![anchor(1, 7), anchor(1, 5)],
        islands: vec![island(1, 1, 2)],
    };
    assert_eq!(needed(&needs, 1, &histories(&[]), 9), [1, 2, 5, 6, 7, 8]);
}

#[test]
fn an_island_that_overlaps_the_rest_changes_nothing() {
    let needs = Needs {
        anchors: vec![anchor(1, 5)],
        islands: vec![island(1, 3, 4), island(1, 4, 1), island(1, 7, 1)],
    };
    assert_eq!(needed(&needs, 1, &histories(&[]), 8), [3, 4, 5, 6, 7]);
}

#[test]
fn timelines_that_left_an_anchor_are_needed_and_others_are_not() {
    // 2 leaves 1 in segment 3, before the anchor; 3 leaves it behind the anchor, and 4 leaves 3.
    let histories = histories(&[(2, 1, 3), (3, 1, 8), (4, 3, 9)]);
    let needs = Needs {
        anchors: vec![anchor(1, 5)],
        islands: Vec::new(),
    };
    assert_eq!(needed(&needs, 1, &histories, 7), [5, 6]);
    assert!(needed(&needs, 2, &histories, 12).is_empty());
    assert_eq!(needed(&needs, 3, &histories, 12).len(), 12);
    assert_eq!(needed(&needs, 4, &histories, 12).len(), 12);
}

#[test]
fn what_is_not_known_is_kept() {
    let needs = Needs {
        anchors: vec![anchor(1, 5)],
        islands: Vec::new(),
    };
    // It may have left timeline 1 anywhere.
    assert_eq!(
        needed(&needs, 2, &histories(&[(2, 0, 0), (3, 1, 9)]), 4),
        [0, 1, 2, 3]
    );
    // The newest one, on which no backup was taken yet.
    assert_eq!(needed(&needs, 2, &histories(&[(2, 1, 3)]), 4), [0, 1, 2, 3]);
    // A server that was on timeline 5 when its archive began has no history file of it.
    let needs = Needs {
        anchors: vec![anchor(5, 5)],
        islands: Vec::new(),
    };
    assert_eq!(needed(&needs, 5, &histories(&[(5, 0, 0)]), 7), [5, 6]);
}

proptest! {
    /// The rule as a sentence for one segment, against the ranges.
    #[test]
    fn the_ranges_are_what_no_backup_needs(
        anchors in prop::collection::vec((1_u32..5, 0_u64..20), 1..4),
        islands in prop::collection::vec((1_u32..5, 0_u64..20, 1_u64..4), 0..4),
        parents in (0_u32..2, 0_u64..20, 0_u32..3, 0_u64..20, 0_u32..4, 0_u64..20),
    ) {
        let histories = histories(&[(2, parents.0, parents.1), (3, parents.2, parents.3), (4, parents.4, parents.5)]);
        let needs = Needs {
            anchors: anchors.iter().map(|(timeline, start)| anchor(*timeline, *start)).collect(),
            islands: islands.iter().map(|(timeline, start, count)| island(*timeline, *start, *count)).collect(),
        };
        for timeline in 1..5_u32 {
            let found = needed(&needs, timeline, &histories, 24);
            let origin = histories.of(TimelineId(timeline));
            let own = anchors.iter().filter(|(of, _)| *of == timeline).map(|(_, start)| *start).min();
            for number in 0..24 {
                let descends = match &origin {
                    Origin::Unknown => anchors.iter().any(|(of, _)| *of < timeline),
                    Origin::Known(history) => anchors.iter().any(|(of, start)| {
                        history.switch_point(TimelineId(*of)).is_some_and(|left| left >= lsn(*start))
                    }),
                };
                let is_tail = own.is_none() && timeline == 4;
                let on_island = islands.iter().any(|(of, start, count)| {
                    *of == timeline && (*start..start + count).contains(&number)
                });
                let expected = own.is_some_and(|start| number >= start) || descends || is_tail || on_island;
                prop_assert_eq!(found.contains(&number), expected, "{} {}", timeline, number);
            }
        }
    }
}
