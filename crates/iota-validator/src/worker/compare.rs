//! What a validator computes beside what a miner committed to: the same bits, or close to it, as the run wants it.

use std::ops::Range;
use std::sync::Arc;

use iota_peer::{Distance, Engine, Error, OperationInput, is_within};
use iota_protocol::Digest;
use iota_protocol::event::Direction;
use iota_protocol::work::{Difference, LogEntry, Outcome, Seal, UploadRecord, Work};
use iota_run::{Description, Tolerance, Tolerances};

/// A logged operation with everything it reads, and what came of it.
pub(super) struct Fetched {
    pub(super) entry: LogEntry,
    pub(super) input: OperationInput,
    pub(super) output_gradient: Option<Arc<[f32]>>,
    /// What the miner committed to, where values are compared; or why that is not to be had.
    pub(super) said: Option<Result<Arc<[f32]>, Difference>>,
}

/// Does a logged operation again; says how its result differs from what the miner committed to, if it does. `keep`:
/// whether a backward will need what this forward leaves.
pub(super) fn redo(
    description: &Description,
    engine: &mut Engine,
    fetched: &Fetched,
    keep: bool,
) -> Result<Option<Difference>, Error> {
    let Fetched {
        entry,
        input,
        output_gradient,
        said,
    } = fetched;
    // Before the pass, which may end with a step: what it makes is of the weights before.
    let steps = engine.steps_since_installed();
    let tolerances = description.comparison.tolerances(steps);
    let said = said.as_ref();
    match (&entry.work, &entry.outcome) {
        (Work::Forward { sample, .. }, Outcome::Forward { output, .. }) => {
            let Some((_, bytes)) = finite(engine.forward(*sample, input))? else {
                return Ok(Some(Difference::NotFinite));
            };
            if !keep {
                engine.discard(*sample);
            }
            let ours = Ours {
                bytes: &bytes,
                direction: Direction::Forward,
            };
            Ok(ours.compare(description, tolerances, output, said))
        }
        (
            Work::Backward {
                sample,
                learning_rate,
                ..
            },
            Outcome::Backward {
                recomputed,
                gradient,
                loss,
                ..
            },
        ) => {
            let output_gradient = output_gradient.as_deref();
            let result =
                engine.backward(*sample, input, output_gradient, *learning_rate, *recomputed);
            let Some(result) = finite(result)? else {
                return Ok(Some(Difference::NotFinite));
            };
            let difference = match (&result.gradient, gradient) {
                (Some(bytes), Some(seal)) => {
                    let direction = Direction::Backward;
                    Ours { bytes, direction }.compare(description, tolerances, seal, said)
                }
                (None, None) => None,
                _ => Some(Difference::Output),
            };
            let same_loss = is_same_loss(tolerances, result.loss, *loss);
            Ok(difference.or_else(|| (!same_loss).then_some(Difference::Loss)))
        }
        _ => Err(Error::Input(
            "the log entry's outcome is not one of its work",
        )),
    }
}

/// What we would send.
struct Ours<'a> {
    bytes: &'a [u8],
    direction: Direction,
}

impl Ours<'_> {
    fn compare(
        &self,
        description: &Description,
        tolerances: Option<&Tolerances>,
        committed: &Seal,
        said: Option<&Result<Arc<[f32]>, Difference>>,
    ) -> Option<Difference> {
        if Digest::of(self.bytes) == committed.digest {
            return None;
        }
        let (Some(tolerances), Some(said)) = (tolerances, said) else {
            return Some(Difference::Output);
        };
        let theirs = match said {
            Ok(values) => values,
            Err(difference) => return Some(*difference),
        };
        let tolerance = match self.direction {
            Direction::Forward => &tolerances.activation,
            Direction::Backward => &tolerances.gradient,
        };
        let width = description.model.boundary_width();
        // Of both what the next stage gets to see of it, which may be less than what was computed.
        let ours = description.decode_boundary(self.direction, self.bytes);
        let is_close =
            ours.is_ok_and(|ours| is_within(Distance::between(&ours, theirs, width), tolerance));
        (!is_close).then_some(Difference::Output)
    }
}

fn is_same_loss(tolerances: Option<&Tolerances>, ours: Option<f32>, theirs: Option<f32>) -> bool {
    match (tolerances, ours, theirs) {
        (Some(tolerances), Some(ours), Some(theirs)) => {
            Distance::between(&[ours], &[theirs], 1).relative <= tolerances.loss
        }
        _ => ours.map(f32::to_bits) == theirs.map(f32::to_bits),
    }
}

/// Ends the replayed training; says how its end differs from what the miner says of it, before what it learned is looked
/// at.
pub(super) fn finish(
    engine: &mut Engine,
    upload: &UploadRecord,
) -> Result<Option<Difference>, Error> {
    if finite(engine.finish(upload.learning_rate))?.is_none() {
        return Ok(Some(Difference::NotFinite));
    }
    let is_whole = upload.cells.len() == upload.seals.len();
    let same_steps = engine.optimizer_steps() == upload.optimizer_steps;
    Ok((!is_whole || !same_steps).then_some(Difference::Upload))
}

/// Says how what was learned about a range, or with none what the miner keeps for itself, differs from what it committed to
/// of it. `said`: the digest, and the object where values are compared. What is kept comes last: it is made by the cells.
pub(super) fn compare_learned(
    description: &Description,
    engine: &mut Engine,
    range: Option<Range<u64>>,
    (digest, object): (Digest, Option<&[u8]>),
) -> Result<Option<Difference>, Error> {
    let ours = match &range {
        Some(range) => match finite(engine.cell(range))? {
            Some(cell) => Some(cell),
            None => return Ok(Some(Difference::NotFinite)),
        },
        None => engine.kept()?,
    };
    if ours.as_deref().map(Digest::of) == Some(digest) {
        return Ok(None);
    }
    let steps = engine.steps_since_installed();
    let (Some(tolerances), Some(object)) = (description.comparison.tolerances(steps), object)
    else {
        return Ok(Some(Difference::Upload));
    };
    let (change, moments) = match &range {
        Some(range) => match engine.upload_distance(range, object)? {
            Some(distance) => (Some(distance.change), distance.moments),
            None => return Ok(Some(Difference::Malformed)),
        },
        None => match engine.kept_distance(object)? {
            Some(distances) => (None, Some(distances)),
            None => return Ok(Some(Difference::Malformed)),
        },
    };
    let within = |distance: Option<Distance>, tolerance: &Tolerance| {
        distance.is_none_or(|distance| is_within(distance, tolerance))
    };
    let is_close = within(change, &tolerances.change)
        && within(moments.map(|[first, _]| first), &tolerances.first_moment)
        && within(moments.map(|[_, second]| second), &tolerances.second_moment);
    Ok((!is_close).then_some(Difference::Upload))
}

/// None for a result that is not finite. The miner's engine would have refused it in the same way, so a miner that has
/// committed to one anyway has not done the work.
fn finite<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(result) => Ok(Some(result)),
        Err(error) if error.is_not_finite() => Ok(None),
        Err(error) => Err(error),
    }
}
