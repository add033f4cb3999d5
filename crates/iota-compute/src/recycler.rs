//! Buffers that are used again.

use std::collections::BTreeMap;

use crate::backend::Backend;
use crate::error::Result;

/// Keeps buffers that are done with, by their length, so that a pass after the first allocates nothing large.
///
/// It keeps those for samples of one length only: after passes over many lengths it would otherwise hold a set of buffers
/// for each. So it grows to what was in use at one time, at most; a run's samples are all of one length.
#[derive(Debug)]
pub(crate) struct Recycler<B: Backend> {
    /// Tokens of a sample.
    rows: usize,
    free: BTreeMap<usize, Vec<B::Buffer>>,
}

impl<B: Backend> Recycler<B> {
    pub(crate) const fn new() -> Self {
        Self {
            rows: 0,
            free: BTreeMap::new(),
        }
    }

    /// From now on for samples of so many tokens.
    pub(crate) fn serve(&mut self, backend: &B, rows: usize) {
        if rows != self.rows {
            self.rows = rows;
            self.clear(backend);
        }
    }

    /// A buffer of this length. What it holds is left over from somewhere.
    pub(crate) fn take(&mut self, backend: &B, elements: usize) -> Result<B::Buffer> {
        match self.free.get_mut(&elements).and_then(Vec::pop) {
            Some(buffer) => Ok(buffer),
            None => backend.allocate(elements),
        }
    }

    pub(crate) fn give(&mut self, backend: &B, mut buffer: B::Buffer) {
        backend.retire(&mut buffer);
        self.free
            .entry(backend.elements(&buffer))
            .or_default()
            .push(buffer);
    }

    /// The same for a buffer of a pass that began a while ago: kept only if samples still have so many tokens.
    pub(crate) fn give_late(&mut self, backend: &B, rows: usize, buffer: B::Buffer) {
        if rows == self.rows {
            self.give(backend, buffer);
        }
    }

    /// Frees what is not in use, here and on the device.
    pub(crate) fn clear(&mut self, backend: &B) {
        self.free.clear();
        backend.release_spare();
    }
}

#[cfg(test)]
mod tests {
    use iota_model::Precision;

    use super::*;
    use crate::cpu::Counting;
    use crate::memory::MemoryCount as _;

    #[test]
    fn samples_of_many_lengths_leave_no_more_behind_than_one_does() {
        let device = Counting::new(1, Precision::F32);
        let mut recycler = Recycler::new();
        for rows in [3, 8, 5, 8, 2] {
            recycler.serve(&device, rows);
            let first = recycler.take(&device, 10 * rows).unwrap();
            recycler.give(&device, first);
            let again = recycler.take(&device, 10 * rows).unwrap();
            recycler.give(&device, again);
            assert_eq!(device.held_bytes(), 4 * 10 * rows as u64);
        }
    }

    #[test]
    fn a_buffer_that_comes_back_late_is_kept_if_it_still_fits() {
        let device = Counting::new(1, Precision::F32);
        let mut recycler = Recycler::new();
        recycler.serve(&device, 3);
        let [fits, late] = [(); 2].map(|()| recycler.take(&device, 30).unwrap());
        recycler.give_late(&device, 3, fits);
        assert_eq!(device.held_bytes(), 4 * 60);
        recycler.serve(&device, 4);
        recycler.give_late(&device, 3, late);
        assert_eq!(device.held_bytes(), 0);
    }
}
