//! Cells: fetching those of a checkpoint, merging the copies of one.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use iota_merge::{Clip, InProgress, Rule};
use iota_protocol::work::{
    Difference, Failure, MergeInput, ObjectName, ObjectRef, Outcome, Segment, SegmentSource, Work,
};
use iota_protocol::{Digest, Session};
use iota_run::Merge;
use iota_store::tensor;
use iota_wire::LeasedWork;
use tracing::debug;

use crate::Error;
use crate::gate::Gate;
use crate::learned::{self, Base, CellPlanes, Learned};
use crate::transfer::Transfer;

/// Uploads of a cell that are fetched before it is their turn.
const FETCHED_AHEAD: usize = 3;

/// The merged cells that segments of a checkpoint name, each fetched once and whole; those that
/// [this machine made](Transfer::keep_made) are not fetched.
///
/// # Errors
/// [`Failure::BadInput`] if one is missing, altered or of another shape.
pub async fn fetch_cells(
    transfer: &Transfer,
    segments: &[Segment],
    leased: &LeasedWork,
) -> Result<BTreeMap<ObjectName, CellPlanes>, Failure> {
    fetch_cells_with(transfer, segments, leased, |_, _| async { None }).await
}

/// As [`fetch_cells`], but in place of a merged cell what the merge changed, where there is such an object.
///
/// `step`: makes the merged cell of a range, and the digest of its object, out of what changed; none if it cannot. Where it
/// gives anything but what the checkpoint names, and where a delta cannot be read, the cell is fetched whole: the bits do
/// not depend on the way they came.
///
/// # Errors
/// As [`fetch_cells`].
pub async fn fetch_cells_with<Stepping>(
    transfer: &Transfer,
    segments: &[Segment],
    leased: &LeasedWork,
    step: impl Fn(Range<u64>, Bytes) -> Stepping,
) -> Result<BTreeMap<ObjectName, CellPlanes>, Failure>
where
    Stepping: Future<Output = Option<(CellPlanes, Digest)>>,
{
    let mut objects = BTreeMap::new();
    for segment in segments {
        if let SegmentSource::Merged {
            object,
            cell_elements,
            delta,
            ..
        } = &segment.source
        {
            let delta = delta.map(|delta| (delta, segment.range.clone()));
            objects.insert(object.name, (*object, *cell_elements as usize, delta));
        }
    }
    let step = &step;
    let fetches = objects
        .into_values()
        .map(|(object, elements, delta)| async move {
            if let Some((delta, range)) = delta
                && !transfer.has_made(&object.seal)
                && let Some(planes) = by_delta(transfer, &object, &delta, range, leased, step).await
            {
                return Ok((object.name, planes));
            }
            Ok((object.name, transfer.cell(&object, elements, leased).await?))
        });
    Ok(futures::future::try_join_all(fetches)
        .await?
        .into_iter()
        .collect())
}

async fn by_delta<Stepping>(
    transfer: &Transfer,
    object: &ObjectRef,
    delta: &ObjectRef,
    range: Range<u64>,
    leased: &LeasedWork,
    step: impl Fn(Range<u64>, Bytes) -> Stepping,
) -> Option<CellPlanes>
where
    Stepping: Future<Output = Option<(CellPlanes, Digest)>>,
{
    let bytes = transfer.object(delta, leased).await.ok()?;
    let (planes, digest) = step(range, bytes).await?;
    if digest != object.seal.digest {
        debug!(?delta, "a delta does not lead to its cell");
        return None;
    }
    Some(planes)
}

/// What came of a lease to merge a cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Merging {
    /// What to report.
    pub outcome: Outcome,
    /// The merged cell's object, stored or not; none if there is no finite one.
    pub cell: Option<Bytes>,
}

/// Merges the uploads of a cell, as they arrive but in the order of the lease. `base`: what the cell was in the checkpoint
/// that the uploads are relative to, if they are.
///
/// A copy is taken in while the next ones travel. No more is in memory than `FETCHED_AHEAD` uploads of this cell and what
/// the rule needs: a weighted mean keeps sums, other rules all copies of the cell.
///
/// # Errors
/// [`Failure::BadInput`] if an upload is missing, altered or malformed.
pub async fn merge(
    transfer: &Transfer,
    gate: &Gate,
    leased: &LeasedWork,
    base: Option<Base>,
) -> Result<Merging, Failure> {
    let Work::Merge {
        range,
        inputs,
        output,
        delta,
        stores,
        ..
    } = &leased.lease.work
    else {
        unreachable!("called for a merge")
    };
    let elements = (range.end - range.start) as usize;
    let settings = transfer.merge_settings();
    let mut cell = CellMerge::new(settings, elements)?;
    let mut copies = futures::stream::iter(inputs.iter().cloned())
        .map(|input| fetch(transfer, input, leased))
        .buffered(FETCHED_AHEAD);
    while let Some((input, copy)) = copies.try_next().await? {
        let gate = gate.clone();
        cell = blocking(move || {
            gate.pass(|| {
                let bad = |difference| Failure::BadInput {
                    object: input.object.name,
                    difference,
                };
                cell.add(input.session, &copy, input.weight).map_err(bad)?;
                Ok(cell)
            })
        })
        .await??;
    }
    let (gate, round) = (gate.clone(), leased.lease.epoch.get());
    let merged = match blocking(move || gate.pass(|| cell.finish(base, round))).await?? {
        Ok(merged) => merged,
        Err(Unmergeable { quarantined }) => {
            return Ok(Merging {
                outcome: Outcome::Unmergeable { quarantined },
                cell: None,
            });
        }
    };
    // The other owner's bits are the same: it is enough that one of the two stores them.
    let commit = async |name: &ObjectName, bytes: Bytes| {
        if *stores {
            transfer.upload(*name, bytes, leased).await
        } else {
            Ok(iota_store::seal(&bytes))
        }
    };
    let changed = match (delta, merged.delta) {
        (None, None) => None,
        (Some(name), Some(bytes)) => Some(commit(name, bytes).await?),
        // The orchestrator and this machine do not know the same run.
        _ => return Err(Failure::Internal),
    };
    Ok(Merging {
        outcome: Outcome::Merge {
            merged: commit(output, merged.cell.clone()).await?,
            quarantined: merged.quarantined,
            delta: changed,
        },
        cell: Some(merged.cell),
    })
}

async fn fetch(
    transfer: &Transfer,
    input: MergeInput,
    leased: &LeasedWork,
) -> Result<(MergeInput, Bytes), Failure> {
    let copy = transfer.object(&input.object, leased).await?;
    Ok((input, copy))
}

/// The copies of a cell on their way to a merged one.
///
/// The bits depend on the copies, their weights and their order, on nothing else (M3).
#[derive(Debug)]
pub struct CellMerge {
    settings: Merge,
    elements: usize,
    /// Copies so far, those that were left out included.
    copies: usize,
    /// One for the parameters, or for what was learned of them; one for each moment that is merged.
    planes: Vec<InProgress>,
    quarantined: Vec<Session>,
}

/// What became of the copies of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedCell {
    /// The merged cell's object.
    pub cell: Bytes,
    /// The object of what the merge changed, if the run has such.
    pub delta: Option<Bytes>,
    /// Whose copies were left out.
    pub quarantined: Vec<Session>,
}

/// A cell that has no merged one: there would be values in it that are not finite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmergeable {
    /// Whose copies were left out; often all of them.
    pub quarantined: Vec<Session>,
}

impl CellMerge {
    /// Of a cell of so many elements.
    ///
    /// # Errors
    /// [`Failure::Internal`] if the run's settings make no sense.
    pub fn new(settings: Merge, elements: usize) -> Result<Self, Failure> {
        let moments = if settings.shares_moments() { 2 } else { 0 };
        let parameters = (settings.rule, settings.clip);
        let rules = [parameters].into_iter().chain(std::iter::repeat_n(
            (rule_of_moments(settings.rule), Clip::None),
            moments,
        ));
        let planes = rules.map(|(rule, clip)| InProgress::new(rule, clip, elements));
        Ok(Self {
            settings,
            elements,
            copies: 0,
            planes: planes
                .collect::<Result<_, _>>()
                .map_err(|_| Failure::Internal)?,
            quarantined: Vec::new(),
        })
    }

    /// Takes in the object that a session uploaded, or leaves all of it out if any of it is not finite.
    ///
    /// # Errors
    /// Says what is wrong with the object if it is no upload of such a cell.
    pub fn add(&mut self, session: Session, copy: &[u8], weight: u64) -> Result<(), Difference> {
        self.copies += 1;
        let Some(planes) = self.decode(copy)? else {
            self.quarantined.push(session);
            return Ok(());
        };
        for (plane, values) in self.planes.iter_mut().zip(&planes) {
            plane
                .add(values, weight)
                .map_err(|_| Difference::Malformed)?;
        }
        Ok(())
    }

    /// The planes of an upload; none if they are not finite.
    fn decode(&self, copy: &[u8]) -> Result<Option<CellPlanes>, Difference> {
        if self.settings.is_relative() {
            let codec = self.settings.upload;
            return match learned::decode(&self.settings, codec, self.elements, copy) {
                Ok(Learned { delta, moments }) => {
                    Ok(Some([delta].into_iter().chain(moments).collect()))
                }
                Err(error) if error.is_not_finite() => Ok(None),
                Err(_) => Err(Difference::Malformed),
            };
        }
        let spec = self.settings.cell_spec(self.elements);
        let planes = tensor::decode(copy, &spec).map_err(|_| Difference::Malformed)?;
        let is_finite = |plane: &Vec<f32>| tensor::first_non_finite(plane).is_none();
        Ok(planes.iter().all(is_finite).then_some(planes))
    }

    /// The merged cell, or that there is none. `base`: as for [`merge`]; `round`: merges before this one.
    ///
    /// # Errors
    /// [`Failure::Internal`] without a base if the uploads are relative to one.
    pub fn finish(
        self,
        base: Option<Base>,
        round: u64,
    ) -> Result<Result<MergedCell, Unmergeable>, Failure> {
        if self.settings.is_relative() && base.is_none() {
            return Err(Failure::Internal);
        }
        let quarantined = self.quarantined.clone();
        if quarantined.len() == self.copies {
            return Ok(Err(Unmergeable { quarantined }));
        }
        match self.merged(base, round) {
            Ok(merged) => Ok(Ok(merged)),
            // For what the copies hold, so that all owners come to this.
            Err(error) if error.is_not_finite() => {
                debug!(%error, "a cell has no finite merge");
                Ok(Err(Unmergeable { quarantined }))
            }
            Err(error) => {
                debug!(%error, "a cell could not be merged");
                Err(Failure::Internal)
            }
        }
    }

    fn merged(self, base: Option<Base>, round: u64) -> Result<MergedCell, Error> {
        let settings = &self.settings;
        let planes = self.planes.into_iter().map(InProgress::finish);
        let merged = planes.map(|plane| plane.map(|merged| merged.elements));
        let mut planes: CellPlanes = merged.collect::<Result<_, _>>()?;
        let mut delta = None;
        if let Some(base) = base.filter(|_| settings.is_relative()) {
            let mut learned = Learned {
                moments: planes.split_off(1),
                delta: planes.remove(0),
            };
            if let Some(codec) = settings.delta {
                let (bytes, decoded) =
                    learned::encode_merged(settings, codec, learned, self.copies)?;
                delta = Some(bytes);
                learned = decoded;
            }
            planes = learned::step(settings, base, learned, round)?;
        }
        Ok(MergedCell {
            cell: learned::encode_cell(settings, &planes),
            delta,
            quarantined: self.quarantined,
        })
    }
}

/// Moments are no directions: a rule about lengths and directions has nothing to say of them.
const fn rule_of_moments(rule: Rule) -> Rule {
    match rule {
        Rule::Radial => Rule::WeightedMean,
        rule => rule,
    }
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    iota_node::blocking::spawn(job)
        .await
        .map_err(|_| Failure::Internal)
}

#[cfg(test)]
mod tests;
