//! What a stage starts an epoch from, as a list of segments: merged cells, and older ones where a merge failed.

use std::ops::Range;

use crate::id::{Epoch, StageIndex};
use crate::work::{Checkpoint, ObjectName, ObjectRef, Segment, SegmentSource};

/// The checkpoint of epoch 0: everything from the run's seed.
pub(crate) fn genesis(stage: StageIndex, elements: u64) -> Checkpoint {
    let everything = Segment {
        range: 0..elements,
        source: SegmentSource::Genesis,
    };
    Checkpoint {
        stage,
        epoch: Epoch::new(0),
        optimizer_steps: 0,
        segments: vec![everything],
    }
}

/// A merged cell in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Merged {
    /// All of it.
    pub(crate) object: ObjectRef,
    /// What the merge changed.
    pub(crate) delta: Option<ObjectRef>,
}

/// The checkpoint that follows `previous`: for each cell its merged object, or, where there is none, what `previous`
/// holds in that range (split where needed). `cells` are in order and cover the stage exactly; so do the segments (M1).
pub(crate) fn succeed(
    previous: &Checkpoint,
    optimizer_steps: u64,
    cells: &[(Range<u64>, Option<Merged>)],
) -> Checkpoint {
    let mut segments = Vec::with_capacity(cells.len());
    for (range, merged) in cells {
        match merged {
            Some(merged) => push(&mut segments, whole(range.clone(), *merged)),
            None => {
                for segment in previous
                    .segments
                    .iter()
                    .filter_map(|segment| cut(segment, range))
                {
                    push(&mut segments, segment);
                }
            }
        }
    }
    Checkpoint {
        stage: previous.stage,
        epoch: previous.epoch.next(),
        optimizer_steps,
        segments,
    }
}

/// A merged cell of this range.
pub(crate) const fn whole(range: Range<u64>, merged: Merged) -> Segment {
    let cell_elements = range.end - range.start;
    Segment {
        range,
        source: SegmentSource::Merged {
            object: merged.object,
            offset: 0,
            cell_elements,
            delta: merged.delta,
        },
    }
}

/// The checkpoint without one of its objects. In its place comes a copy, or what `previous` holds in that range; where
/// that `is_lost` too, the values of the seed.
pub(crate) fn mend(
    broken: &Checkpoint,
    lost: ObjectName,
    copy: Option<ObjectRef>,
    previous: &Checkpoint,
    is_lost: impl Fn(ObjectName) -> bool,
) -> Checkpoint {
    let mut segments = Vec::with_capacity(broken.segments.len());
    for segment in &broken.segments {
        match &segment.source {
            SegmentSource::Merged {
                object,
                offset,
                cell_elements,
                delta,
            } if object.name == lost => {
                if let Some(object) = copy {
                    let source = SegmentSource::Merged {
                        object,
                        offset: *offset,
                        cell_elements: *cell_elements,
                        delta: *delta,
                    };
                    let range = segment.range.clone();
                    push(&mut segments, Segment { range, source });
                    continue;
                }
                let older = &previous.segments;
                for mut older in older.iter().filter_map(|older| cut(older, &segment.range)) {
                    if object_of(&older).is_some_and(&is_lost) {
                        older.source = SegmentSource::Genesis;
                    }
                    push(&mut segments, older);
                }
            }
            _ => push(&mut segments, segment.clone()),
        }
    }
    Checkpoint {
        segments,
        ..broken.clone()
    }
}

/// The objects that a checkpoint names.
pub(crate) fn objects(checkpoint: &Checkpoint) -> impl Iterator<Item = ObjectName> {
    checkpoint.segments.iter().filter_map(object_of)
}

fn object_of(segment: &Segment) -> Option<ObjectName> {
    match &segment.source {
        SegmentSource::Genesis => None,
        SegmentSource::Merged { object, .. } => Some(object.name),
    }
}

/// Whether the segments are in order, do not overlap and cover `elements` exactly (M1).
pub fn covers(checkpoint: &Checkpoint, elements: u64) -> bool {
    let mut next = 0;
    for Segment { range, source } in &checkpoint.segments {
        let fits = match source {
            SegmentSource::Genesis => true,
            SegmentSource::Merged {
                offset,
                cell_elements,
                ..
            } => offset
                .checked_add(range.end.saturating_sub(range.start))
                .is_some_and(|end| end <= *cell_elements),
        };
        if range.start != next || range.end <= range.start || !fits {
            return false;
        }
        next = range.end;
    }
    next == elements
}

/// What a checkpoint says of a range.
pub(crate) fn within(checkpoint: &Checkpoint, range: &Range<u64>) -> Vec<Segment> {
    let segments = checkpoint.segments.iter();
    segments.filter_map(|segment| cut(segment, range)).collect()
}

/// The part of a segment that lies in a range, as an older one.
fn cut(segment: &Segment, range: &Range<u64>) -> Option<Segment> {
    let start = segment.range.start.max(range.start);
    let end = segment.range.end.min(range.end);
    (start < end).then(|| {
        let source = match &segment.source {
            SegmentSource::Genesis => SegmentSource::Genesis,
            SegmentSource::Merged {
                object,
                offset,
                cell_elements,
                ..
            } => SegmentSource::Merged {
                object: *object,
                offset: offset + (start - segment.range.start),
                cell_elements: *cell_elements,
                // It was made from a checkpoint that is not the one before any more.
                delta: None,
            },
        };
        Segment {
            range: start..end,
            source,
        }
    })
}

/// Adds a segment, joined to the last one if it merely continues it: so carrying ranges forward for many epochs does
/// not shred a checkpoint.
fn push(segments: &mut Vec<Segment>, segment: Segment) {
    if let Some(last) = segments.last_mut() {
        let continues = match (&last.source, &segment.source) {
            (SegmentSource::Genesis, SegmentSource::Genesis) => true,
            (
                SegmentSource::Merged { object, offset, .. },
                SegmentSource::Merged {
                    object: same,
                    offset: next,
                    ..
                },
            ) => object == same && offset + (last.range.end - last.range.start) == *next,
            _ => false,
        };
        if continues {
            last.range.end = segment.range.end;
            return;
        }
    }
    segments.push(segment);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Digest, ObjectId};
    use crate::work::{ObjectName, Purpose, Seal};

    fn object(n: u8) -> ObjectRef {
        ObjectRef {
            name: ObjectName {
                purpose: Purpose::Merged,
                epoch: Epoch::new(0),
                id: ObjectId::from_bytes([n; 16]),
            },
            seal: Seal {
                digest: Digest::of(&[n]),
                length: 8,
            },
        }
    }

    fn merged_cell(n: u8) -> Option<Merged> {
        Some(Merged {
            object: object(n),
            delta: None,
        })
    }

    fn merged(range: Range<u64>, n: u8, offset: u64, cell_elements: u64) -> Segment {
        Segment {
            range,
            source: SegmentSource::Merged {
                object: object(n),
                offset,
                cell_elements,
                delta: None,
            },
        }
    }

    #[test]
    fn merged_cells_become_the_segments() {
        let next = succeed(
            &genesis(StageIndex::new(0), 10),
            3,
            &[(0..4, merged_cell(1)), (4..10, merged_cell(2))],
        );
        assert_eq!(next.epoch, Epoch::new(1));
        assert_eq!(next.optimizer_steps, 3);
        assert_eq!(
            next.segments,
            vec![merged(0..4, 1, 0, 4), merged(4..10, 2, 0, 6)]
        );
        assert!(covers(&next, 10));
    }

    #[test]
    fn a_cell_that_nobody_merged_keeps_the_older_objects_with_offsets() {
        let first = succeed(
            &genesis(StageIndex::new(0), 10),
            1,
            &[(0..5, merged_cell(1)), (5..10, merged_cell(2))],
        );
        let second = succeed(
            &first,
            2,
            &[
                (0..3, merged_cell(3)),
                (3..7, None),
                (7..10, merged_cell(4)),
            ],
        );
        assert_eq!(
            second.segments,
            vec![
                merged(0..3, 3, 0, 3),
                merged(3..5, 1, 3, 5),
                merged(5..7, 2, 0, 5),
                merged(7..10, 4, 0, 3)
            ]
        );
        assert!(covers(&second, 10));
    }

    #[test]
    fn carrying_everything_forward_does_not_shred_the_checkpoint() {
        let first = succeed(
            &genesis(StageIndex::new(0), 10),
            1,
            &[(0..5, merged_cell(1)), (5..10, None)],
        );
        let second = succeed(&first, 1, &[(0..3, None), (3..6, None), (6..10, None)]);
        assert_eq!(second.segments, first.segments);
    }

    #[test]
    fn a_delta_is_named_by_the_checkpoint_that_it_leads_to_and_by_no_later_one() {
        let cell = Some(Merged {
            object: object(1),
            delta: Some(object(2)),
        });
        let delta_of = |checkpoint: &Checkpoint| match checkpoint.segments[0].source {
            SegmentSource::Merged { delta, .. } => delta,
            SegmentSource::Genesis => None,
        };
        let first = succeed(&genesis(StageIndex::new(0), 10), 1, &[(0..10, cell)]);
        assert_eq!(delta_of(&first), Some(object(2)));
        let second = succeed(&first, 2, &[(0..10, None)]);
        assert_eq!(delta_of(&second), None);
        assert!(covers(&second, 10));
    }

    #[test]
    fn a_lost_object_gives_way_to_a_copy_or_to_older_values_or_to_the_seed() {
        let first = succeed(
            &genesis(StageIndex::new(0), 10),
            1,
            &[(0..5, merged_cell(1)), (5..10, merged_cell(2))],
        );
        let cells = [(0..3, merged_cell(3)), (3..10, merged_cell(4))];
        let second = succeed(&first, 2, &cells);
        let lost = object(4).name;
        let copied = mend(&second, lost, Some(object(5)), &first, |_| false);
        assert_eq!(copied.segments[1], merged(3..10, 5, 0, 7));
        let older = mend(&second, lost, None, &first, |name| name == object(2).name);
        let seed = Segment {
            range: 5..10,
            source: SegmentSource::Genesis,
        };
        let expected = vec![merged(0..3, 3, 0, 3), merged(3..5, 1, 3, 5), seed];
        assert_eq!(older.segments, expected);
        assert!(covers(&copied, 10) && covers(&older, 10));
        assert_eq!(older.epoch, second.epoch);
    }

    #[test]
    fn gaps_overlaps_and_segments_beyond_their_cell_are_noticed() {
        let with = |segments| Checkpoint {
            segments,
            ..genesis(StageIndex::new(0), 10)
        };
        assert!(!covers(&with(vec![merged(0..4, 1, 0, 4)]), 10));
        assert!(!covers(
            &with(vec![merged(0..6, 1, 0, 6), merged(5..10, 2, 0, 5)]),
            10
        ));
        assert!(!covers(&with(vec![merged(0..10, 1, 1, 10)]), 10));
    }
}
