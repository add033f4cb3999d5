//! Where each element of a checkpoint comes from, and whether that is where it should.
//!
//! ```text
//!   cells of the merge     0          1               2
//!   settled with           an object  the old values  an object
//!   expected               all of it  as before       all of it
//!                             ║          ║               ║
//!   segments named         ───────── ──── ─────────── ─────────      element by element the same
//! ```
//!
//! A segment says how much of its object lies before it. So it says at which element of the stage the object begins, and
//! two segments that say the same of an element take it from the same place of the same object, however they are cut.

use std::ops::Range;

use iota_protocol::work::{Checkpoint, ObjectRef, Segment, SegmentSource};

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The run's seed.
    Seed,
    /// A merged cell.
    Cell {
        object: ObjectRef,
        /// The element of the stage that is the object's first. Modulo 2^64, should a segment claim more before it than
        /// there is.
        begins: u64,
        /// Elements of the whole cell.
        elements: u64,
        /// What the merge changed, which leads to the same.
        delta: Option<ObjectRef>,
    },
}

/// A range of a stage and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) range: Range<u64>,
    pub(crate) origin: Origin,
}

impl Holding {
    /// As it is in a later checkpoint: what a merge changed leads only from the one before it.
    pub(crate) const fn carried(mut self) -> Self {
        if let Origin::Cell { delta, .. } = &mut self.origin {
            *delta = None;
        }
        self
    }
}

impl Origin {
    pub(crate) const fn object(&self) -> Option<&ObjectRef> {
        match self {
            Self::Seed => None,
            Self::Cell { object, .. } => Some(object),
        }
    }
}

impl From<&Segment> for Holding {
    fn from(segment: &Segment) -> Self {
        let origin = match &segment.source {
            SegmentSource::Genesis => Origin::Seed,
            SegmentSource::Merged {
                object,
                offset,
                cell_elements,
                delta,
            } => Origin::Cell {
                object: *object,
                begins: segment.range.start.wrapping_sub(*offset),
                elements: *cell_elements,
                delta: *delta,
            },
        };
        Self {
            range: segment.range.clone(),
            origin,
        }
    }
}

/// What a checkpoint says, segment by segment. Without one everything is from the seed.
pub(crate) fn holdings(checkpoint: Option<&Checkpoint>, elements: u64) -> Vec<Holding> {
    match checkpoint {
        Some(checkpoint) => checkpoint.segments.iter().map(Holding::from).collect(),
        None => vec![Holding {
            range: 0..elements,
            origin: Origin::Seed,
        }],
    }
}

/// The part of holdings, which are in order, that lies in a range.
pub(crate) fn within<'a>(
    holdings: &'a [Holding],
    range: &'a Range<u64>,
) -> impl Iterator<Item = Holding> + 'a {
    let first = holdings.partition_point(|holding| holding.range.end <= range.start);
    let inside = holdings[first..].iter();
    let inside = inside.take_while(|holding| holding.range.start < range.end);
    inside.map(|holding| Holding {
        range: holding.range.start.max(range.start)..holding.range.end.min(range.end),
        origin: holding.origin,
    })
}

/// Whether two ways to cut a range agree about every element that both speak of.
pub(crate) fn agree(expected: &[Holding], said: &[Holding]) -> bool {
    expected
        .iter()
        .all(|expected| within(said, &expected.range).all(|said| said.origin == expected.origin))
}

/// The `index`-th of `count` near-equal contiguous shares of `elements`: the first ones are longer by one, if any are.
pub(crate) const fn share(elements: u64, count: u64, index: u64) -> Range<u64> {
    let (length, longer) = (elements / count, elements % count);
    let start = index * length + if index < longer { index } else { longer };
    let end = start + length + if index < longer { 1 } else { 0 };
    start..end
}
