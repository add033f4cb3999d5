//! The CPU as a [`Backend`]: the same bits for any number of threads and any vector instructions.
//!
//! | module | concern |
//! |---|---|
//! | `instructions` | run-time choice of vector instructions |
//! | `threads` | cutting work into jobs by its shape |
//! | `spare` | memory that is used again |
//! | `numeric` | `exp`, sums and maxima in lanes |
//! | `counting` | the same without numbers, to plan memory |
//! | `matmul` | matrix products, defined to the bit |
//! | `bf16` | the same with factors rounded to bf16, twice as fast where the CPU can |
//! | `norm`, `attention`, `elementwise`, `loss`, `optimizers` | the operations |

mod attention;
mod bf16;
mod counting;
#[cfg(test)]
mod definition;
mod elementwise;
mod instructions;
mod loss;
mod matmul;
mod norm;
mod numeric;
mod optimizers;
mod spare;
mod threads;

use std::ops::Range;

use iota_model::Precision;

pub(crate) use self::counting::Counting;
pub use self::instructions::InstructionSet;
use self::matmul::{Matrix, Size};
use self::threads::Threads;
use crate::backend::{
    AdamUpdate, AttentionShape, Backend, Form, MomentumUpdate, Product, Turn, Write,
};
use crate::error::Result;

/// The CPU. Clones share its threads.
#[derive(Debug, Clone)]
pub struct Cpu {
    instructions: InstructionSet,
    threads: Threads,
    precision: Precision,
}

impl Cpu {
    /// Computes on `threads` threads of its own; with one (or none), on its caller's thread.
    ///
    /// # Errors
    /// [`crate::Error::Threads`] if the system refuses to start them.
    pub fn new(threads: usize) -> Result<Self> {
        Ok(Self {
            instructions: InstructionSet::detect(),
            threads: Threads::new(threads)?,
            precision: Precision::F32,
        })
    }

    /// With other factors in its matrix products: those of linear layers and of the output projection, not those within
    /// attention.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// With other vector instructions than the best: to measure, and to show that the bits are the same. Matrix products
    /// go through the `gemm` crate, which picks its instructions itself, unless these are the portable ones.
    #[must_use]
    pub fn with_instructions(self, instructions: InstructionSet) -> Self {
        Self {
            instructions,
            ..self
        }
    }

    const fn context(&self) -> (InstructionSet, &Threads) {
        (self.instructions, &self.threads)
    }
}

impl Backend for Cpu {
    type Buffer = Vec<f32>;
    type Indices = Vec<u32>;
    type View<'a> = &'a [f32];
    type ViewMut<'a> = &'a mut [f32];
    type Download = Vec<f32>;

    fn scope<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.threads.scope(work)
    }

    fn allocate(&self, elements: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; elements])
    }

    fn elements(&self, buffer: &Vec<f32>) -> usize {
        buffer.len()
    }

    fn view<'a>(&self, buffer: &'a Vec<f32>, range: Range<usize>) -> &'a [f32] {
        &buffer[range]
    }

    fn view_mut<'a>(&self, buffer: &'a mut Vec<f32>, range: Range<usize>) -> &'a mut [f32] {
        &mut buffer[range]
    }

    fn upload(&self, into: &mut [f32], values: &[f32]) -> Result<()> {
        into.copy_from_slice(values);
        Ok(())
    }

    fn download(&self, from: &[f32]) -> Result<Vec<f32>> {
        Ok(from.to_vec())
    }

    fn begin_download(&self, buffer: Vec<f32>) -> Result<Vec<f32>> {
        Ok(buffer)
    }

    fn finish_download(&self, download: Vec<f32>) -> Result<(Vec<f32>, Vec<f32>)> {
        Ok((download.clone(), download))
    }

    fn upload_indices(&self, indices: &[u32]) -> Result<Vec<u32>> {
        Ok(indices.to_vec())
    }

    fn fill(&self, out: &mut [f32], value: f32) -> Result<()> {
        elementwise::fill(self.context(), out, value);
        Ok(())
    }

    fn copy(&self, out: &mut [f32], source: &[f32]) -> Result<()> {
        out.copy_from_slice(source);
        Ok(())
    }

    fn add_columns(
        &self,
        out: (&mut [f32], usize),
        source: (&[f32], usize),
        columns: usize,
    ) -> Result<()> {
        elementwise::add_columns(out, source, columns);
        Ok(())
    }

    fn matmul(
        &self,
        product: Product,
        out: &mut [f32],
        a: &[f32],
        b: &[f32],
        write: Write,
    ) -> Result<()> {
        let Product {
            form,
            rows,
            columns,
            inner,
        } = product;
        let lengths = (out.len(), a.len(), b.len());
        assert_eq!(
            lengths,
            (rows * columns, rows * inner, inner * columns),
            "shapes of {product:?}"
        );
        let (a, b) = match form {
            Form::TransposedRight => (Matrix::rows(a, inner), Matrix::transposed(b, inner)),
            Form::Plain => (Matrix::rows(a, inner), Matrix::rows(b, columns)),
            Form::TransposedLeft => (Matrix::transposed(a, rows), Matrix::rows(b, columns)),
        };
        let size = Size {
            rows,
            columns,
            inner,
        };
        let add = write == Write::Add;
        // gemm takes the threads of the pool that it is called in.
        self.threads.scope(|| match self.precision {
            Precision::F32 => {
                let parallelism = self.threads.parallelism();
                let out = (out, columns);
                matmul::matmul(self.instructions, parallelism, size, out, a, b, add);
            }
            Precision::Bf16 => bf16::matmul(self.context(), size, out, a, b, add),
        });
        Ok(())
    }

    fn rms_norm(
        &self,
        out: &mut [f32],
        inverse: &mut [f32],
        x: &[f32],
        scale: &[f32],
        epsilon: f32,
    ) -> Result<()> {
        norm::forward(self.context(), out, inverse, x, scale, epsilon);
        Ok(())
    }

    fn rms_norm_backward(
        &self,
        x_gradient: (&mut [f32], Write),
        scale_gradient: &mut [f32],
        out_gradient: &[f32],
        x: &[f32],
        scale: &[f32],
        inverse: &[f32],
    ) -> Result<()> {
        norm::backward(
            self.context(),
            x_gradient,
            scale_gradient,
            out_gradient,
            x,
            scale,
            inverse,
        );
        Ok(())
    }

    fn rotate(
        &self,
        packed: &mut [f32],
        tables: (&[f32], &[f32]),
        shape: AttentionShape,
        turn: Turn,
    ) -> Result<()> {
        elementwise::rotate(self.context(), packed, tables, shape, turn);
        Ok(())
    }

    fn attention(
        &self,
        out: &mut [f32],
        log_sums: &mut [f32],
        packed: &[f32],
        shape: AttentionShape,
    ) -> Result<()> {
        attention::forward(self.context(), out, log_sums, packed, shape);
        Ok(())
    }

    fn attention_backward(
        &self,
        packed_gradient: &mut [f32],
        out_gradient: &[f32],
        out: &[f32],
        log_sums: &[f32],
        packed: &[f32],
        shape: AttentionShape,
    ) -> Result<()> {
        attention::backward(
            self.context(),
            packed_gradient,
            out_gradient,
            out,
            log_sums,
            packed,
            shape,
        );
        Ok(())
    }

    fn swiglu(&self, hidden: &mut [f32], gate_up: &[f32], width: usize) -> Result<()> {
        elementwise::swiglu(self.context(), hidden, gate_up, width);
        Ok(())
    }

    fn swiglu_backward(&self, gate_up: &mut [f32], hidden: &mut [f32], width: usize) -> Result<()> {
        elementwise::swiglu_backward(self.context(), gate_up, hidden, width);
        Ok(())
    }

    fn silu(&self, out: &mut [f32], x: &[f32]) -> Result<()> {
        elementwise::silu(self.context(), out, x);
        Ok(())
    }

    fn silu_backward(&self, x: &mut [f32], gradient: &mut [f32]) -> Result<()> {
        elementwise::silu_backward(self.context(), x, gradient);
        Ok(())
    }

    fn relu(&self, x: &mut [f32]) -> Result<()> {
        x.iter_mut()
            .for_each(|x| *x = if *x > 0.0 { *x } else { 0.0 });
        Ok(())
    }

    fn relu_backward(&self, gradient: &mut [f32], out: &[f32]) -> Result<()> {
        assert_eq!(gradient.len(), out.len(), "shapes of a ReLU's gradient");
        gradient
            .iter_mut()
            .zip(out)
            .for_each(|(gradient, &out)| *gradient = if out > 0.0 { *gradient } else { 0.0 });
        Ok(())
    }

    fn embedding(
        &self,
        out: &mut [f32],
        table: &[f32],
        tokens: &Vec<u32>,
        width: usize,
    ) -> Result<()> {
        loss::embedding(out, table, tokens, width);
        Ok(())
    }

    fn embedding_backward(
        &self,
        table_gradient: &mut [f32],
        out_gradient: &[f32],
        tokens: &Vec<u32>,
        width: usize,
    ) -> Result<()> {
        loss::embedding_backward(table_gradient, out_gradient, tokens, width);
        Ok(())
    }

    fn cross_entropy(
        &self,
        gradients: Option<(&mut [f32], &mut [f32])>,
        x: &[f32],
        projection: &[f32],
        targets: &Vec<u32>,
        width: usize,
    ) -> Result<f32> {
        Ok(self.threads.scope(|| {
            loss::cross_entropy(
                self.context(),
                self.precision,
                gradients,
                x,
                projection,
                targets,
                width,
            )
        }))
    }

    fn squared_norm(&self, x: &[f32]) -> Result<f64> {
        Ok(elementwise::squared_norm(self.context(), x))
    }

    fn adam(
        &self,
        parameters: &mut [f32],
        moments: (&mut [f32], &mut [f32]),
        gradients: &[f32],
        update: AdamUpdate,
    ) -> Result<()> {
        optimizers::adam(self.context(), parameters, moments, gradients, update);
        Ok(())
    }

    fn momentum(
        &self,
        out: &mut [f32],
        moment: &mut [f32],
        gradients: &[f32],
        update: MomentumUpdate,
    ) -> Result<()> {
        optimizers::momentum(self.context(), out, moment, gradients, update);
        Ok(())
    }

    fn blend(&self, out: (&mut [f32], f32), x: (&[f32], f32)) -> Result<()> {
        optimizers::blend(self.context(), out, x);
        Ok(())
    }
}
