//! Cells: fetching those of a checkpoint, averaging the copies of one.

use std::collections::BTreeMap;

use bytes::Bytes;
use iota_merge::Accumulator;
use iota_protocol::work::{
    Checkpoint, Failure, MergeInput, ObjectName, Outcome, SegmentSource, Work,
};
use iota_run::cell_spec;
use iota_store::tensor;
use iota_wire::LeasedWork;

use crate::engine::CellPlanes;
use crate::gate::Gate;
use crate::transfer::Transfer;

/// The merged cells that a checkpoint names, each fetched once.
///
/// # Errors
/// [`Failure::BadInput`] if one is missing, altered or of another shape.
pub async fn fetch_cells(
    transfer: &Transfer,
    checkpoint: &Checkpoint,
    leased: &LeasedWork,
) -> Result<BTreeMap<ObjectName, CellPlanes>, Failure> {
    let mut objects = BTreeMap::new();
    for segment in &checkpoint.segments {
        if let SegmentSource::Merged {
            object,
            cell_elements,
            ..
        } = &segment.source
        {
            objects.insert(object.name, (*object, *cell_elements as usize));
        }
    }
    let fetches = objects.into_values().map(|(object, elements)| async move {
        Ok((object.name, transfer.cell(&object, elements, leased).await?))
    });
    Ok(futures::future::try_join_all(fetches)
        .await?
        .into_iter()
        .collect())
}

/// Averages a cell over its uploads, as they arrive but in the order of the lease.
///
/// # Errors
/// [`Failure::BadInput`] if an upload is missing, altered or of another shape.
pub async fn merge(
    transfer: &Transfer,
    gate: &Gate,
    leased: &LeasedWork,
) -> Result<Outcome, Failure> {
    let Work::Merge {
        range,
        inputs,
        output,
        ..
    } = &leased.lease.work
    else {
        unreachable!("called for a merge")
    };
    let elements = (range.end - range.start) as usize;
    let mut planes = [(); 3].map(|()| Accumulator::new(elements));
    let mut quarantined = Vec::new();
    for MergeInput {
        session,
        object,
        weight,
    } in inputs
    {
        let copy = transfer.cell(object, elements, leased).await?;
        if copy
            .iter()
            .any(|plane| tensor::first_non_finite(plane).is_some())
        {
            quarantined.push(*session);
            continue;
        }
        let gate = gate.clone();
        let weight = *weight;
        planes = blocking(move || {
            gate.pass(|| {
                for (plane, values) in planes.iter_mut().zip(&copy) {
                    plane.add(values, weight).map_err(|_| Failure::Internal)?;
                }
                Ok(planes)
            })
        })
        .await??;
    }
    let bytes: Bytes = blocking(move || {
        let [Ok(parameters), Ok(first), Ok(second)] = planes.map(Accumulator::finish) else {
            // Every upload was quarantined: there is nothing to average.
            return Err(Failure::NotFinite);
        };
        let [a, b, c] = cell_spec(elements);
        Ok(tensor::encode(&[
            (a, &parameters.elements),
            (b, &first.elements),
            (c, &second.elements),
        ]))
    })
    .await??;
    let merged = transfer.upload(*output, bytes, leased).await?;
    Ok(Outcome::Merge {
        merged,
        quarantined,
    })
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(job)
        .await
        .map_err(|_| Failure::Internal)
}
