//! Where the time of a stage goes: a device that notes what each operation took.
//!
//! ```text
//!   Stage<Timed<Cpu>> ---- matmul, attention, .. ----> Timed ----> Cpu
//!                                                        |
//!                                                        '--> operation, calls, time, arithmetic, bytes
//! ```
//!
//! A stage on a plain device knows nothing of this module, so it costs nothing where it is not asked for. What it costs
//! where it is: two readings of a clock and a lock for each operation.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::{AdamUpdate, AttentionShape, Backend, MomentumUpdate, Product, Turn, Write};
use crate::error::Result;

/// A device that passes every operation on to another, and adds up the time until it returns.
///
/// For a device whose operations return before they are done, that is the time to submit them, and what is waited for
/// shows in `download` and `finish_download`.
#[derive(Debug, Clone)]
pub struct Timed<B> {
    inner: B,
    entries: Arc<Mutex<Vec<Entry>>>,
}

/// What the calls of one operation took together; of matrix products, the calls of one shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// The operation's name in [`Backend`].
    pub operation: &'static str,
    /// The shape, if it is a matrix product.
    pub product: Option<Product>,
    /// How often it ran.
    pub calls: u64,
    /// Time in it.
    pub elapsed: Duration,
    /// Multiplications and additions of the matrix products in it: of causal attention, those of keys that are seen.
    pub operations: u64,
    /// Bytes of its operands: each that is read, plus each that is written.
    pub operand_bytes: u64,
}

/// What one call works through.
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    product: Option<Product>,
    operations: usize,
    /// Elements read, plus elements written.
    elements: usize,
}

/// A view that knows its length.
#[derive(Debug)]
pub struct Part<V> {
    view: V,
    elements: usize,
}

impl<B: Backend> Timed<B> {
    /// Notes what this device does.
    pub fn new(inner: B) -> Self {
        Self {
            inner,
            entries: Arc::default(),
        }
    }

    /// What was noted since the last call, the longest first.
    pub fn take(&self) -> Vec<Entry> {
        let mut entries = std::mem::take(&mut *self.entries());
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.elapsed));
        entries
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        // Entries are whole at any time, even if a thread panicked while it held the lock.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<R>(&self, operation: &'static str, work: Work, run: impl FnOnce(&B) -> R) -> R {
        let start = Instant::now();
        let result = run(&self.inner);
        let elapsed = start.elapsed();
        let mut entries = self.entries();
        let known = entries
            .iter_mut()
            .find(|entry| (entry.operation, entry.product) == (operation, work.product));
        let entry = match known {
            Some(entry) => entry,
            None => {
                entries.push(Entry {
                    operation,
                    product: work.product,
                    calls: 0,
                    elapsed: Duration::ZERO,
                    operations: 0,
                    operand_bytes: 0,
                });
                entries.last_mut().expect("one was pushed")
            }
        };
        entry.calls += 1;
        entry.elapsed += elapsed;
        entry.operations += work.operations as u64;
        entry.operand_bytes += (work.elements * size_of::<f32>()) as u64;
        result
    }
}

/// Elements only.
fn moves(elements: usize) -> Work {
    Work {
        elements,
        ..Work::default()
    }
}

/// Twice, if what is there is read too.
const fn written(elements: usize, write: Write) -> usize {
    match write {
        Write::Replace => elements,
        Write::Add => 2 * elements,
    }
}

/// A multiplication and an addition for each channel, each pair of a query and a key that it sees, and each product.
const fn attention_operations(shape: AttentionShape, products: usize) -> usize {
    let pairs = shape.sequences * shape.heads * shape.tokens * (shape.tokens + 1) / 2;
    products * 2 * pairs * shape.head_width
}

// An operation that this did not pass on would go uncounted.
#[deny(clippy::missing_trait_methods)]
impl<B: Backend> Backend for Timed<B> {
    type Buffer = B::Buffer;
    type Indices = B::Indices;
    type View<'a> = Part<B::View<'a>>;
    type ViewMut<'a> = Part<B::ViewMut<'a>>;
    type Download = B::Download;

    const OVERLAPS: bool = B::OVERLAPS;

    fn scope<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.inner.scope(work)
    }

    fn allocate(&self, elements: usize) -> Result<Self::Buffer> {
        self.note("allocate", moves(elements), |inner| {
            inner.allocate(elements)
        })
    }

    fn elements(&self, buffer: &Self::Buffer) -> usize {
        self.inner.elements(buffer)
    }

    fn view<'a>(&self, buffer: &'a Self::Buffer, range: Range<usize>) -> Self::View<'a> {
        Part {
            elements: range.len(),
            view: self.inner.view(buffer, range),
        }
    }

    fn view_mut<'a>(&self, buffer: &'a mut Self::Buffer, range: Range<usize>) -> Self::ViewMut<'a> {
        Part {
            elements: range.len(),
            view: self.inner.view_mut(buffer, range),
        }
    }

    fn all<'a>(&self, buffer: &'a Self::Buffer) -> Self::View<'a> {
        self.view(buffer, 0..self.elements(buffer))
    }

    fn all_mut<'a>(&self, buffer: &'a mut Self::Buffer) -> Self::ViewMut<'a> {
        let elements = self.elements(buffer);
        self.view_mut(buffer, 0..elements)
    }

    fn retire(&self, buffer: &mut B::Buffer) {
        self.inner.retire(buffer);
    }

    fn release_spare(&self) {
        self.inner.release_spare();
    }

    fn upload(&self, into: Self::ViewMut<'_>, values: &[f32]) -> Result<()> {
        self.note("upload", moves(2 * into.elements), |inner| {
            inner.upload(into.view, values)
        })
    }

    fn download(&self, from: Self::View<'_>) -> Result<Vec<f32>> {
        self.note("download", moves(2 * from.elements), |inner| {
            inner.download(from.view)
        })
    }

    fn upload_beside(&self, into: Self::ViewMut<'_>, values: &[f32]) -> Result<()> {
        self.note("upload_beside", moves(2 * into.elements), |inner| {
            inner.upload_beside(into.view, values)
        })
    }

    fn begin_download(&self, buffer: Self::Buffer) -> Result<Self::Download> {
        let elements = self.elements(&buffer);
        self.note("begin_download", moves(2 * elements), |inner| {
            inner.begin_download(buffer)
        })
    }

    fn finish_download(&self, download: Self::Download) -> Result<(Vec<f32>, Self::Buffer)> {
        self.note("finish_download", Work::default(), |inner| {
            inner.finish_download(download)
        })
    }

    fn upload_indices(&self, indices: &[u32]) -> Result<Self::Indices> {
        self.note("upload_indices", moves(2 * indices.len()), |inner| {
            inner.upload_indices(indices)
        })
    }

    fn fill(&self, out: Self::ViewMut<'_>, value: f32) -> Result<()> {
        self.note("fill", moves(out.elements), |inner| {
            inner.fill(out.view, value)
        })
    }

    fn copy(&self, out: Self::ViewMut<'_>, source: Self::View<'_>) -> Result<()> {
        self.note("copy", moves(2 * out.elements), |inner| {
            inner.copy(out.view, source.view)
        })
    }

    fn add_columns(
        &self,
        (out, out_width): (Self::ViewMut<'_>, usize),
        (source, source_width): (Self::View<'_>, usize),
        columns: usize,
    ) -> Result<()> {
        let work = moves(3 * (out.elements / out_width) * columns);
        self.note("add_columns", work, |inner| {
            inner.add_columns((out.view, out_width), (source.view, source_width), columns)
        })
    }

    fn matmul(
        &self,
        product: Product,
        out: Self::ViewMut<'_>,
        a: Self::View<'_>,
        b: Self::View<'_>,
        into: Write,
    ) -> Result<()> {
        let work = Work {
            product: Some(product),
            operations: 2 * product.rows * product.columns * product.inner,
            elements: a.elements + b.elements + written(out.elements, into),
        };
        self.note("matmul", work, |inner| {
            inner.matmul(product, out.view, a.view, b.view, into)
        })
    }

    fn rms_norm(
        &self,
        out: Self::ViewMut<'_>,
        inverse: Self::ViewMut<'_>,
        x: Self::View<'_>,
        scale: Self::View<'_>,
        epsilon: f32,
    ) -> Result<()> {
        self.note("rms_norm", moves(x.elements + out.elements), |inner| {
            inner.rms_norm(out.view, inverse.view, x.view, scale.view, epsilon)
        })
    }

    fn rms_norm_backward(
        &self,
        (x_gradient, write): (Self::ViewMut<'_>, Write),
        scale_gradient: Self::ViewMut<'_>,
        out_gradient: Self::View<'_>,
        x: Self::View<'_>,
        scale: Self::View<'_>,
        inverse: Self::View<'_>,
    ) -> Result<()> {
        let elements = out_gradient.elements + x.elements + written(x_gradient.elements, write);
        self.note("rms_norm_backward", moves(elements), |inner| {
            inner.rms_norm_backward(
                (x_gradient.view, write),
                scale_gradient.view,
                out_gradient.view,
                x.view,
                scale.view,
                inverse.view,
            )
        })
    }

    fn rotate(
        &self,
        packed: Self::ViewMut<'_>,
        (cosines, sines): (Self::View<'_>, Self::View<'_>),
        shape: AttentionShape,
        turn: Turn,
    ) -> Result<()> {
        let turned = shape.rows() * (shape.heads + shape.key_value_heads) * shape.head_width;
        self.note("rotate", moves(2 * turned), |inner| {
            inner.rotate(packed.view, (cosines.view, sines.view), shape, turn)
        })
    }

    fn attention(
        &self,
        out: Self::ViewMut<'_>,
        log_sums: Self::ViewMut<'_>,
        packed: Self::View<'_>,
        shape: AttentionShape,
    ) -> Result<()> {
        let work = Work {
            operations: attention_operations(shape, 2),
            ..moves(packed.elements + out.elements)
        };
        self.note("attention", work, |inner| {
            inner.attention(out.view, log_sums.view, packed.view, shape)
        })
    }

    fn attention_backward(
        &self,
        packed_gradient: Self::ViewMut<'_>,
        out_gradient: Self::View<'_>,
        out: Self::View<'_>,
        log_sums: Self::View<'_>,
        packed: Self::View<'_>,
        shape: AttentionShape,
    ) -> Result<()> {
        let work = Work {
            operations: attention_operations(shape, 5),
            ..moves(2 * (packed.elements + out.elements))
        };
        self.note("attention_backward", work, |inner| {
            inner.attention_backward(
                packed_gradient.view,
                out_gradient.view,
                out.view,
                log_sums.view,
                packed.view,
                shape,
            )
        })
    }

    fn swiglu(
        &self,
        hidden: Self::ViewMut<'_>,
        gate_up: Self::View<'_>,
        width: usize,
    ) -> Result<()> {
        let work = moves(hidden.elements + gate_up.elements);
        self.note("swiglu", work, |inner| {
            inner.swiglu(hidden.view, gate_up.view, width)
        })
    }

    fn swiglu_backward(
        &self,
        gate_up: Self::ViewMut<'_>,
        hidden: Self::ViewMut<'_>,
        width: usize,
    ) -> Result<()> {
        let work = moves(2 * (hidden.elements + gate_up.elements));
        self.note("swiglu_backward", work, |inner| {
            inner.swiglu_backward(gate_up.view, hidden.view, width)
        })
    }

    fn silu(&self, out: Self::ViewMut<'_>, x: Self::View<'_>) -> Result<()> {
        self.note("silu", moves(2 * x.elements), |inner| {
            inner.silu(out.view, x.view)
        })
    }

    fn silu_backward(&self, x: Self::ViewMut<'_>, gradient: Self::ViewMut<'_>) -> Result<()> {
        self.note("silu_backward", moves(4 * x.elements), |inner| {
            inner.silu_backward(x.view, gradient.view)
        })
    }

    fn relu(&self, x: Self::ViewMut<'_>) -> Result<()> {
        self.note("relu", moves(2 * x.elements), |inner| inner.relu(x.view))
    }

    fn relu_backward(&self, gradient: Self::ViewMut<'_>, out: Self::View<'_>) -> Result<()> {
        self.note("relu_backward", moves(3 * out.elements), |inner| {
            inner.relu_backward(gradient.view, out.view)
        })
    }

    fn embedding(
        &self,
        out: Self::ViewMut<'_>,
        table: Self::View<'_>,
        tokens: &Self::Indices,
        width: usize,
    ) -> Result<()> {
        self.note("embedding", moves(2 * out.elements), |inner| {
            inner.embedding(out.view, table.view, tokens, width)
        })
    }

    fn embedding_backward(
        &self,
        table_gradient: Self::ViewMut<'_>,
        out_gradient: Self::View<'_>,
        tokens: &Self::Indices,
        width: usize,
    ) -> Result<()> {
        let work = moves(3 * out_gradient.elements);
        self.note("embedding_backward", work, |inner| {
            inner.embedding_backward(table_gradient.view, out_gradient.view, tokens, width)
        })
    }

    fn cross_entropy(
        &self,
        gradients: Option<(Self::ViewMut<'_>, Self::ViewMut<'_>)>,
        x: Self::View<'_>,
        projection: Self::View<'_>,
        targets: &Self::Indices,
        width: usize,
    ) -> Result<f32> {
        let passes = if gradients.is_some() { 3 } else { 1 };
        let work = Work {
            operations: passes * 2 * x.elements * (projection.elements / width),
            ..moves(passes * (x.elements + projection.elements))
        };
        self.note("cross_entropy", work, |inner| {
            let gradients = gradients.map(|(x, projection)| (x.view, projection.view));
            inner.cross_entropy(gradients, x.view, projection.view, targets, width)
        })
    }

    fn squared_norm(&self, x: Self::View<'_>) -> Result<f64> {
        self.note("squared_norm", moves(x.elements), |inner| {
            inner.squared_norm(x.view)
        })
    }

    fn adam(
        &self,
        parameters: Self::ViewMut<'_>,
        (first, second): (Self::ViewMut<'_>, Self::ViewMut<'_>),
        gradients: Self::View<'_>,
        update: AdamUpdate,
    ) -> Result<()> {
        self.note("adam", moves(7 * parameters.elements), |inner| {
            inner.adam(
                parameters.view,
                (first.view, second.view),
                gradients.view,
                update,
            )
        })
    }

    fn momentum(
        &self,
        out: Self::ViewMut<'_>,
        moment: Self::ViewMut<'_>,
        gradients: Self::View<'_>,
        update: MomentumUpdate,
    ) -> Result<()> {
        self.note("momentum", moves(4 * out.elements), |inner| {
            inner.momentum(out.view, moment.view, gradients.view, update)
        })
    }

    fn blend(
        &self,
        (out, keep): (Self::ViewMut<'_>, f32),
        (x, weight): (Self::View<'_>, f32),
    ) -> Result<()> {
        self.note("blend", moves(3 * out.elements), |inner| {
            inner.blend((out.view, keep), (x.view, weight))
        })
    }
}
