//! Cells: fetching those of a checkpoint, averaging the copies of one.

use std::collections::BTreeMap;

use bytes::Bytes;
use iota_merge::Accumulator;
use iota_protocol::Session;
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
    let mut mean = CellMean::new(elements);
    for MergeInput {
        session,
        object,
        weight,
    } in inputs
    {
        let copy = transfer.cell(object, elements, leased).await?;
        let (gate, session, weight) = (gate.clone(), *session, *weight);
        mean = blocking(move || {
            gate.pass(|| {
                mean.add(session, &copy, weight)?;
                Ok(mean)
            })
        })
        .await??;
    }
    let (bytes, quarantined) = blocking(move || mean.finish()).await??;
    let merged = transfer.upload(*output, bytes, leased).await?;
    Ok(Outcome::Merge {
        merged,
        quarantined,
    })
}

/// The weighted mean of the copies of a cell, as it grows.
///
/// Its bits depend on the copies, their weights and their order, on nothing else (M3).
#[derive(Debug)]
pub struct CellMean {
    elements: usize,
    planes: [Accumulator; 3],
    quarantined: Vec<Session>,
}

impl CellMean {
    /// Of a cell of so many elements.
    pub fn new(elements: usize) -> Self {
        Self {
            elements,
            planes: [(); 3].map(|()| Accumulator::new(elements)),
            quarantined: Vec::new(),
        }
    }

    /// Takes in the copy that a session uploaded, or leaves all of it out if any of it is not finite.
    ///
    /// # Errors
    /// [`Failure::Internal`] if the copy has another number of elements.
    pub fn add(&mut self, session: Session, copy: &CellPlanes, weight: u64) -> Result<(), Failure> {
        if copy
            .iter()
            .any(|plane| tensor::first_non_finite(plane).is_some())
        {
            self.quarantined.push(session);
            return Ok(());
        }
        for (plane, values) in self.planes.iter_mut().zip(copy) {
            plane.add(values, weight).map_err(|_| Failure::Internal)?;
        }
        Ok(())
    }

    /// The merged cell's object, and whose copies were left out.
    ///
    /// # Errors
    /// [`Failure::NotFinite`] if every copy was left out: there is nothing to average.
    pub fn finish(self) -> Result<(Bytes, Vec<Session>), Failure> {
        let [Ok(parameters), Ok(first), Ok(second)] = self.planes.map(Accumulator::finish) else {
            return Err(Failure::NotFinite);
        };
        let [a, b, c] = cell_spec(self.elements);
        let bytes = tensor::encode(&[
            (a, &parameters.elements),
            (b, &first.elements),
            (c, &second.elements),
        ]);
        Ok((bytes, self.quarantined))
    }
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(job)
        .await
        .map_err(|_| Failure::Internal)
}

#[cfg(test)]
mod tests {
    use iota_protocol::PeerId;

    use super::*;

    fn session(generation: u32) -> Session {
        Session {
            peer: PeerId::from_bytes([7; 32]),
            generation,
        }
    }

    fn mean(copies: &[(CellPlanes, u64)]) -> Result<(Bytes, Vec<Session>), Failure> {
        let mut mean = CellMean::new(2);
        for (generation, (copy, weight)) in (0..).zip(copies) {
            mean.add(session(generation), copy, *weight).unwrap();
        }
        mean.finish()
    }

    fn planes(bytes: &[u8]) -> Vec<Vec<f32>> {
        tensor::decode(bytes, &cell_spec(2)).unwrap()
    }

    const COPY: [[f32; 2]; 3] = [[0.1, -7.25], [1e-30, 0.3], [3.0, f32::MAX]];

    #[test]
    fn merging_copies_of_one_cell_gives_that_cell_back() {
        let copy = COPY.map(Vec::from);
        let (bytes, _) = mean(&[(copy.clone(), 3), (copy.clone(), 1), (copy.clone(), 7)]).unwrap();
        assert_eq!(planes(&bytes), copy);
    }

    #[test]
    fn every_plane_is_averaged_by_weight() {
        let (a, b) = (
            [[1.0, 2.0]; 3].map(Vec::from),
            [[5.0, 10.0]; 3].map(Vec::from),
        );
        let (bytes, quarantined) = mean(&[(a, 3), (b, 1)]).unwrap();
        assert_eq!(planes(&bytes), [[2.0, 4.0]; 3]);
        assert_eq!(quarantined, []);
    }

    #[test]
    fn a_copy_with_one_bad_moment_is_left_out_as_a_whole() {
        let (good, mut bad) = (COPY.map(Vec::from), [[9.0, 9.0]; 3].map(Vec::from));
        bad[2][1] = f32::NAN;
        let (bytes, quarantined) = mean(&[(bad.clone(), 5), (good.clone(), 1)]).unwrap();
        assert_eq!(planes(&bytes), good);
        assert_eq!(quarantined, [session(0)]);
        assert_eq!(mean(&[(bad, 5)]), Err(Failure::NotFinite));
    }
}
