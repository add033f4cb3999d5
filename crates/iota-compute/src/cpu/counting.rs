//! A CPU without numbers: it counts the bytes that a pass holds.
//!
//! A stage is written over [`Backend`], so that its passes run here as they do on [`Cpu`](super::Cpu), buffer by buffer,
//! in no time and without the memory. What the operations of the CPU allocate for themselves is counted as each of their
//! modules says.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iota_model::Precision;

use super::instructions::InstructionSet;
use super::{attention, bf16, loss, matmul, norm};
use crate::backend::{AdamUpdate, AttentionShape, Backend, MomentumUpdate, Product, Turn, Write};
use crate::error::Result;
use crate::memory::MemoryCount;

/// Counts what a [`Cpu`](super::Cpu) of so many threads and this precision would hold. Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Counting {
    threads: usize,
    precision: Precision,
    tally: Arc<Tally>,
}

/// Bytes.
#[derive(Debug, Default)]
struct Tally {
    held: AtomicU64,
    /// The most of `held`.
    held_max: AtomicU64,
    /// The most of `held` and what an operation took in passing.
    in_use_max: AtomicU64,
    /// The most of what an operation keeps for the next one.
    kept_max: AtomicU64,
}

/// A buffer of which only the length is there.
#[derive(Debug)]
pub(crate) struct Counted {
    elements: usize,
    tally: Arc<Tally>,
}

impl Counting {
    pub(crate) fn new(threads: usize, precision: Precision) -> Self {
        Self {
            threads: threads.max(1),
            precision,
            tally: Arc::default(),
        }
    }

    /// An operation takes memory and gives it back before it returns.
    fn pass(&self, elements: usize) -> Result<()> {
        let in_use = self.held_bytes() + bytes(elements);
        self.tally.in_use_max.fetch_max(in_use, Ordering::Relaxed);
        Ok(())
    }

    /// An operation takes memory that stays for the next one, see `spare`.
    fn keep(&self, elements: usize) {
        self.tally
            .kept_max
            .fetch_max(bytes(elements), Ordering::Relaxed);
    }
}

impl MemoryCount for Counting {
    fn held_bytes(&self) -> u64 {
        self.tally.held.load(Ordering::Relaxed)
    }

    fn held_bytes_max(&self) -> u64 {
        self.tally.held_max.load(Ordering::Relaxed)
    }

    /// And with what the threads keep.
    fn in_use_bytes_max(&self) -> u64 {
        let by_threads = matmul::KEPT_BYTES_PER_THREAD * self.threads as u64;
        let by_operations = self.tally.kept_max.load(Ordering::Relaxed);
        self.tally.in_use_max.load(Ordering::Relaxed) + by_threads + by_operations
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.tally
            .held
            .fetch_sub(bytes(self.elements), Ordering::Relaxed);
    }
}

/// Bytes of f32.
const fn bytes(elements: usize) -> u64 {
    (elements * size_of::<f32>()) as u64
}

/// Views are lengths.
impl Backend for Counting {
    type Buffer = Counted;
    type Indices = usize;
    type View<'a> = usize;
    type ViewMut<'a> = usize;
    type Download = Counted;

    fn allocate(&self, elements: usize) -> Result<Counted> {
        let bytes = bytes(elements);
        let held = self.tally.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.tally.held_max.fetch_max(held, Ordering::Relaxed);
        self.tally.in_use_max.fetch_max(held, Ordering::Relaxed);
        Ok(Counted {
            elements,
            tally: Arc::clone(&self.tally),
        })
    }

    fn elements(&self, buffer: &Counted) -> usize {
        buffer.elements
    }

    fn view(&self, _: &Counted, range: Range<usize>) -> usize {
        range.len()
    }

    fn view_mut(&self, _: &mut Counted, range: Range<usize>) -> usize {
        range.len()
    }

    fn upload(&self, _: usize, _: &[f32]) -> Result<()> {
        Ok(())
    }

    fn download(&self, from: usize) -> Result<Vec<f32>> {
        self.pass(from)?;
        Ok(vec![0.0; from])
    }

    fn begin_download(&self, buffer: Counted) -> Result<Counted> {
        Ok(buffer)
    }

    fn finish_download(&self, download: Counted) -> Result<(Vec<f32>, Counted)> {
        Ok((self.download(download.elements)?, download))
    }

    fn upload_indices(&self, indices: &[u32]) -> Result<usize> {
        Ok(indices.len())
    }

    fn fill(&self, _: usize, _: f32) -> Result<()> {
        Ok(())
    }

    fn copy(&self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn add_columns(&self, _: (usize, usize), _: (usize, usize), _: usize) -> Result<()> {
        Ok(())
    }

    fn matmul(&self, product: Product, _: usize, _: usize, _: usize, _: Write) -> Result<()> {
        match self.precision {
            Precision::F32 => self.pass(matmul::packed_elements(product)),
            Precision::Bf16 => {
                self.keep(bf16::packed_elements(InstructionSet::detect(), product));
                Ok(())
            }
        }
    }

    fn rms_norm(&self, _: usize, _: usize, _: usize, _: usize, _: f32) -> Result<()> {
        Ok(())
    }

    fn rms_norm_backward(
        &self,
        _: (usize, Write),
        scale_gradient: usize,
        _: usize,
        _: usize,
        _: usize,
        inverse: usize,
    ) -> Result<()> {
        self.pass(norm::backward_elements(inverse, scale_gradient))
    }

    fn rotate(&self, _: usize, _: (usize, usize), _: AttentionShape, _: Turn) -> Result<()> {
        Ok(())
    }

    fn attention(&self, _: usize, _: usize, _: usize, shape: AttentionShape) -> Result<()> {
        self.pass(attention::forward_elements(shape, self.threads))
    }

    fn attention_backward(
        &self,
        _: usize,
        _: usize,
        _: usize,
        _: usize,
        _: usize,
        shape: AttentionShape,
    ) -> Result<()> {
        self.pass(attention::backward_elements(shape, self.threads))
    }

    fn swiglu(&self, _: usize, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn swiglu_backward(&self, _: usize, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn silu(&self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn silu_backward(&self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn relu(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn relu_backward(&self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn embedding(&self, _: usize, _: usize, _: &usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn embedding_backward(&self, _: usize, _: usize, _: &usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn cross_entropy(
        &self,
        gradients: Option<(usize, usize)>,
        _: usize,
        projection: usize,
        targets: &usize,
        width: usize,
    ) -> Result<f32> {
        let (kept, passing) = loss::cross_entropy_elements(
            self.precision,
            gradients.is_some(),
            *targets,
            projection / width,
            width,
        );
        self.keep(kept);
        self.pass(passing)?;
        Ok(0.0)
    }

    fn squared_norm(&self, _: usize) -> Result<f64> {
        Ok(0.0)
    }

    fn adam(&self, _: usize, _: (usize, usize), _: usize, _: AdamUpdate) -> Result<()> {
        Ok(())
    }

    fn momentum(&self, _: usize, _: usize, _: usize, _: MomentumUpdate) -> Result<()> {
        Ok(())
    }

    fn blend(&self, _: (usize, f32), _: (usize, f32)) -> Result<()> {
        Ok(())
    }
}
