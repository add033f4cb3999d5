//! Momentum that is orthogonalised: every direction of a matrix moves at about the same speed.

use crate::backend::{Backend, Form, MomentumUpdate, Product, Write};
use crate::error::Result;
use crate::recycler::Recycler;

use super::{AdamW, Common};

/// Muon. For each matrix inside a block, `[rows, columns]`, with the gradient `g` and the learning rate `r`:
///
/// ```text
/// m = momentum m + (1 - momentum) g                      first moment; the second is not used
/// u = momentum m + (1 - momentum) g                      with Nesterov momentum, else u = m
/// p = p - r decay p - r scale orthogonalise(u)
/// ```
///
/// For `u = U S V^T`, `orthogonalise(u)` is about `U V^T`: five Newton-Schulz iterations bring every singular value that
/// is not tiny to between 0.7 and 1.2. All other tensors step by [`AdamW`].
///
/// Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), as `torch.optim.Muon` has it,
/// but in f32 throughout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Muon {
    /// Decay of the first moment.
    pub momentum: f32,
    /// Whether the update looks one step of momentum ahead.
    pub nesterov: bool,
    /// How large an update is.
    pub scale: UpdateScale,
    /// For embedding, output projection and norm scales.
    pub rest: AdamW,
    /// Their learning rate, as a multiple of the matrices'.
    pub rest_rate: f32,
}

/// By what the orthogonalised momentum of a matrix is multiplied. Names and formulas are those of `torch.optim.Muon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateScale {
    /// `sqrt(max(1, rows / columns))`. Learning rates are some ten times those of AdamW.
    Original,
    /// `0.2 sqrt(max(rows, columns))`: an update's elements are about as large as AdamW's, so that its learning rates
    /// and weight decay hold.
    ///
    /// Source: Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982.
    MatchRmsAdamW,
}

impl Default for Muon {
    fn default() -> Self {
        Self {
            momentum: 0.95,
            nesterov: true,
            scale: UpdateScale::MatchRmsAdamW,
            rest: AdamW::default(),
            rest_rate: 1.0,
        }
    }
}

impl UpdateScale {
    fn of(self, [rows, columns]: [usize; 2]) -> f64 {
        match self {
            Self::Original => (rows as f64 / columns as f64).max(1.0).sqrt(),
            Self::MatchRmsAdamW => 0.2 * (rows.max(columns) as f64).sqrt(),
        }
    }
}

impl Muon {
    pub(super) fn update(&self, common: Common, shape: [usize; 2]) -> MatrixUpdate {
        MatrixUpdate {
            shape,
            momentum: MomentumUpdate {
                gradient_scale: common.gradient_scale,
                momentum: self.momentum,
                look_ahead: self.nesterov,
            },
            keep: 1.0 - common.learning_rate * common.weight_decay,
            rate: (f64::from(common.learning_rate) * self.scale.of(shape)) as f32,
        }
    }
}

/// The numbers of one step of one matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MatrixUpdate {
    shape: [usize; 2],
    momentum: MomentumUpdate,
    /// What weight decay leaves of the parameters.
    keep: f32,
    /// Of the orthogonalised momentum.
    rate: f32,
}

impl MatrixUpdate {
    pub(crate) fn apply<B: Backend>(
        self,
        backend: &B,
        buffers: &mut WorkspaceBuffers<B>,
        parameters: B::ViewMut<'_>,
        moment: B::ViewMut<'_>,
        gradients: B::View<'_>,
    ) -> Result<()> {
        let all = 0..self.shape[0] * self.shape[1];
        backend.momentum(
            backend.view_mut(&mut buffers.matrix, all.clone()),
            moment,
            gradients,
            self.momentum,
        )?;
        orthogonalise(backend, self.shape, buffers)?;
        backend.blend(
            (parameters, self.keep),
            (backend.view(&buffers.matrix, all), -self.rate),
        )
    }
}

/// Lengths of the buffers that orthogonalising needs for any matrix of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Workspace {
    matrix_elements: usize,
    square_elements: usize,
}

/// Room for one matrix at a time.
#[derive(Debug)]
pub(crate) struct WorkspaceBuffers<B: Backend> {
    /// The matrix that is orthogonalised, in place.
    matrix: B::Buffer,
    next: B::Buffer,
    gram: B::Buffer,
    polynomial: B::Buffer,
}

impl Workspace {
    /// None if there is no matrix.
    pub(super) fn for_all(shapes: impl Iterator<Item = [usize; 2]>) -> Option<Self> {
        shapes
            .map(|[rows, columns]| Self {
                matrix_elements: rows * columns,
                square_elements: rows.min(columns).pow(2),
            })
            .reduce(|a, b| Self {
                matrix_elements: a.matrix_elements.max(b.matrix_elements),
                square_elements: a.square_elements.max(b.square_elements),
            })
    }

    pub(super) const fn elements(self) -> usize {
        2 * (self.matrix_elements + self.square_elements)
    }

    pub(crate) fn take<B: Backend>(
        self,
        backend: &B,
        recycler: &mut Recycler<B>,
    ) -> Result<WorkspaceBuffers<B>> {
        Ok(WorkspaceBuffers {
            matrix: recycler.take(backend, self.matrix_elements)?,
            next: recycler.take(backend, self.matrix_elements)?,
            gram: recycler.take(backend, self.square_elements)?,
            polynomial: recycler.take(backend, self.square_elements)?,
        })
    }
}

impl<B: Backend> WorkspaceBuffers<B> {
    pub(crate) fn give_back(self, backend: &B, recycler: &mut Recycler<B>) {
        for buffer in [self.matrix, self.next, self.gram, self.polynomial] {
            recycler.give(backend, buffer);
        }
    }
}

/// Newton-Schulz iterations.
const ITERATIONS: usize = 5;

/// Of `x`, `x^3` and `x^5`: an odd polynomial with a steep start (3.4 per iteration, so that five lift small singular
/// values 480-fold) that then keeps them around 1 instead of at 1. They are Jordan's.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// A matrix with a smaller norm is taken to have this one.
const SMALLEST_NORM: f64 = 1e-7;

/// Applies the polynomial to the singular values of `buffers.matrix` again and again, after dividing it by its Frobenius
/// norm, which brings all of them to 1 at most:
///
/// ```text
/// wide, rows <= columns:   G = X X^T    X = a X + (b G + c G G) X
/// tall, rows > columns:    G = X^T X    X = a X + X (b G + c G G)
/// ```
///
/// Either way the square of the smaller dimension is what `G` holds, and nothing has to be transposed, because `G` is
/// symmetric.
fn orthogonalise<B: Backend>(
    backend: &B,
    [rows, columns]: [usize; 2],
    buffers: &mut WorkspaceBuffers<B>,
) -> Result<()> {
    let [linear, cubic, quintic] = COEFFICIENTS;
    let (small, large) = (rows.min(columns), rows.max(columns));
    let (all, square) = (0..rows * columns, 0..small * small);
    let wide = rows <= columns;
    let gram_product = Product {
        form: if wide {
            Form::TransposedRight
        } else {
            Form::TransposedLeft
        },
        rows: small,
        columns: small,
        inner: large,
    };
    let square_product = Product {
        form: Form::Plain,
        rows: small,
        columns: small,
        inner: small,
    };
    let matrix_product = Product {
        form: Form::Plain,
        rows,
        columns,
        inner: small,
    };
    let WorkspaceBuffers {
        matrix,
        next,
        gram,
        polynomial,
    } = buffers;

    let norm = backend
        .squared_norm(backend.view(matrix, all.clone()))?
        .sqrt()
        .max(SMALLEST_NORM);
    backend.blend(
        (backend.view_mut(next, all.clone()), 0.0),
        (backend.view(matrix, all.clone()), (1.0 / norm) as f32),
    )?;
    std::mem::swap(matrix, next);
    for _ in 0..ITERATIONS {
        let x = || backend.view(matrix, all.clone());
        backend.matmul(
            gram_product,
            backend.view_mut(gram, square.clone()),
            x(),
            x(),
            Write::Replace,
        )?;
        let g = || backend.view(gram, square.clone());
        backend.matmul(
            square_product,
            backend.view_mut(polynomial, square.clone()),
            g(),
            g(),
            Write::Replace,
        )?;
        backend.blend(
            (backend.view_mut(polynomial, square.clone()), quintic),
            (g(), cubic),
        )?;
        let p = backend.view(polynomial, square.clone());
        let (left, right) = if wide { (p, x()) } else { (x(), p) };
        let out = backend.view_mut(next, all.clone());
        backend.matmul(matrix_product, out, left, right, Write::Replace)?;
        backend.blend((backend.view_mut(next, all.clone()), 1.0), (x(), linear))?;
        std::mem::swap(matrix, next);
    }
    Ok(())
}
