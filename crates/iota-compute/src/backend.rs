//! The operations that a stage is made of, and the seam between them and a device.
//!
//! The stage step ([`crate::Stage`]) is written once, over this trait. Data stays in device buffers from the moment that
//! an input is uploaded to the moment that an output is downloaded; an operation may return before its result is there,
//! as long as later operations see it.
//!
//! All matrices are row-major and dense. A *row* is one token. Shapes are in square brackets.
//!
//! Some results are wanted as factors of products and as nothing else. Where an operation says that it makes *factors*, a
//! device may keep them in the form in which its products take them, and in no other: until they are overwritten,
//! [`matmul`](Backend::matmul), [`cross_entropy`](Backend::cross_entropy) and [`download`](Backend::download) of all of them
//! may read them, and no other operation.

use std::fmt::Debug;
use std::ops::Range;

use crate::error::Result;

/// A device that can run a stage. Clones are handles to the same device.
///
/// Every operation panics if a view is too short or too long for the shape that it is given: shapes come from the
/// stage, never from a peer. Errors are the device's own.
pub trait Backend: Clone + Debug + Send + Sync {
    /// f32 elements on the device.
    type Buffer: Debug + Send + Sync;
    /// u32 indices on the device: tokens.
    type Indices: Debug + Send + Sync;
    /// A part of a buffer, to read.
    type View<'a>;
    /// A part of a buffer, to write.
    type ViewMut<'a>;
    /// A buffer whose numbers are on their way to the host.
    type Download: Debug + Send + Sync;

    /// Whether a [`Download`](Self::Download) may still be on its way, or its numbers not even computed, when it has been
    /// begun: then it pays to begin the next pass before it is waited for.
    const OVERLAPS: bool = false;

    /// Runs the work of one pass, on the threads (or the stream) that the operations use.
    fn scope<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    /// A buffer of zeros.
    fn allocate(&self, elements: usize) -> Result<Self::Buffer>;

    /// Number of elements.
    fn elements(&self, buffer: &Self::Buffer) -> usize;

    /// A part of a buffer, to read.
    fn view<'a>(&self, buffer: &'a Self::Buffer, range: Range<usize>) -> Self::View<'a>;

    /// A part of a buffer, to write.
    fn view_mut<'a>(&self, buffer: &'a mut Self::Buffer, range: Range<usize>) -> Self::ViewMut<'a>;

    /// All of a buffer, to read.
    fn all<'a>(&self, buffer: &'a Self::Buffer) -> Self::View<'a> {
        self.view(buffer, 0..self.elements(buffer))
    }

    /// All of a buffer, to write.
    fn all_mut<'a>(&self, buffer: &'a mut Self::Buffer) -> Self::ViewMut<'a> {
        let elements = self.elements(buffer);
        self.view_mut(buffer, 0..elements)
    }

    /// What the buffer holds will not be read again.
    fn retire(&self, _buffer: &mut Self::Buffer) {}

    /// Frees memory that is kept for later operations.
    fn release_spare(&self) {}

    /// Copies from the host.
    fn upload(&self, into: Self::ViewMut<'_>, values: &[f32]) -> Result<()>;

    /// Copies to the host, and waits for what is still being computed.
    fn download(&self, from: Self::View<'_>) -> Result<Vec<f32>>;

    /// Copies from the host like [`upload`](Self::upload), but what is still being computed need not be over before it
    /// begins. For what every pass is given: a device may hold room of its own for as much.
    fn upload_beside(&self, into: Self::ViewMut<'_>, values: &[f32]) -> Result<()> {
        self.upload(into, values)
    }

    /// Begins to copy to the host what has been asked for so far, beside what is computed from now on.
    fn begin_download(&self, buffer: Self::Buffer) -> Result<Self::Download>;

    /// Waits for the numbers. Gives the buffer back.
    fn finish_download(&self, download: Self::Download) -> Result<(Vec<f32>, Self::Buffer)>;

    /// Copies tokens from the host, as [`upload_beside`](Self::upload_beside) does.
    fn upload_indices(&self, indices: &[u32]) -> Result<Self::Indices>;

    /// Sets every element.
    fn fill(&self, out: Self::ViewMut<'_>, value: f32) -> Result<()>;

    /// `out = source`.
    fn copy(&self, out: Self::ViewMut<'_>, source: Self::View<'_>) -> Result<()>;

    /// Adds the first `columns` channels of each row of `source` to those of `out`.
    ///
    /// `out`: `[rows, out_width]`, `source`: `[rows, source_width]`.
    fn add_columns(
        &self,
        out: (Self::ViewMut<'_>, usize),
        source: (Self::View<'_>, usize),
        columns: usize,
    ) -> Result<()>;

    /// `out = a b`, or `out += a b`, with either factor transposed as `product` says.
    fn matmul(
        &self,
        product: Product,
        out: Self::ViewMut<'_>,
        a: Self::View<'_>,
        b: Self::View<'_>,
        into: Write,
    ) -> Result<()>;

    /// `out = x * inverse * scale` with `inverse = 1 / sqrt(mean(x^2) + epsilon)` for each row. Makes `out` factors.
    ///
    /// `out`, `x`: `[rows, width]`; `inverse`: `[rows]`; `scale`: `[width]`.
    fn rms_norm(
        &self,
        out: Self::ViewMut<'_>,
        inverse: Self::ViewMut<'_>,
        x: Self::View<'_>,
        scale: Self::View<'_>,
        epsilon: f32,
    ) -> Result<()>;

    /// The gradients of [`rms_norm`](Self::rms_norm): that of `x` as `into` says, that of `scale` is added to.
    fn rms_norm_backward(
        &self,
        x_gradient: (Self::ViewMut<'_>, Write),
        scale_gradient: Self::ViewMut<'_>,
        out_gradient: Self::View<'_>,
        x: Self::View<'_>,
        scale: Self::View<'_>,
        inverse: Self::View<'_>,
    ) -> Result<()>;

    /// Turns the rotary pairs of all query and key heads by their position, in place; or back, which makes factors.
    ///
    /// `packed`: as [`AttentionShape`] says; `cosines`, `sines`: `[positions, head_width / 2]`. A pair is made of the
    /// channels `i` and `i + head_width / 2`.
    fn rotate(
        &self,
        packed: Self::ViewMut<'_>,
        tables: (Self::View<'_>, Self::View<'_>),
        shape: AttentionShape,
        turn: Turn,
    ) -> Result<()>;

    /// Causal attention: `softmax(q k^T / sqrt(head_width)) v`, for each head on its own.
    ///
    /// `out`: `[rows, heads * head_width]`; `log_sums`: `[sequences, heads, tokens]`, the logarithms of the softmax's
    /// denominators; `packed`: as [`AttentionShape`] says. Never holds all of `[tokens, tokens]`.
    fn attention(
        &self,
        out: Self::ViewMut<'_>,
        log_sums: Self::ViewMut<'_>,
        packed: Self::View<'_>,
        shape: AttentionShape,
    ) -> Result<()>;

    /// The gradient of [`attention`](Self::attention) for queries, keys and values.
    fn attention_backward(
        &self,
        packed_gradient: Self::ViewMut<'_>,
        out_gradient: Self::View<'_>,
        out: Self::View<'_>,
        log_sums: Self::View<'_>,
        packed: Self::View<'_>,
        shape: AttentionShape,
    ) -> Result<()>;

    /// `hidden = silu(gate) * up`. Makes `hidden` factors.
    ///
    /// `hidden`: `[rows, width]`; `gate_up`: `[rows, 2 * width]`, in each row first the gate.
    fn swiglu(
        &self,
        hidden: Self::ViewMut<'_>,
        gate_up: Self::View<'_>,
        width: usize,
    ) -> Result<()>;

    /// The gradient of [`swiglu`](Self::swiglu), in place: `gate_up` becomes its own gradient, and `hidden`, which comes
    /// in as the gradient of `hidden`, becomes `hidden` itself, so that nobody has to keep it. Makes both factors.
    fn swiglu_backward(
        &self,
        gate_up: Self::ViewMut<'_>,
        hidden: Self::ViewMut<'_>,
        width: usize,
    ) -> Result<()>;

    /// `out = silu(x)`.
    fn silu(&self, out: Self::ViewMut<'_>, x: Self::View<'_>) -> Result<()>;

    /// The gradient of [`silu`](Self::silu), in place: `x` becomes `silu(x)`, and the gradient of that becomes the
    /// gradient of `x`.
    fn silu_backward(&self, x: Self::ViewMut<'_>, gradient: Self::ViewMut<'_>) -> Result<()>;

    /// `x = max(x, 0)`.
    fn relu(&self, x: Self::ViewMut<'_>) -> Result<()>;

    /// Zeroes the gradient wherever `out`, the result of [`relu`](Self::relu), is zero.
    fn relu_backward(&self, gradient: Self::ViewMut<'_>, out: Self::View<'_>) -> Result<()>;

    /// Row `i` of `out` is row `tokens[i]` of `table`.
    fn embedding(
        &self,
        out: Self::ViewMut<'_>,
        table: Self::View<'_>,
        tokens: &Self::Indices,
        width: usize,
    ) -> Result<()>;

    /// Adds row `i` of the gradient to row `tokens[i]` of the table's gradient, in the order of `i`.
    fn embedding_backward(
        &self,
        table_gradient: Self::ViewMut<'_>,
        out_gradient: Self::View<'_>,
        tokens: &Self::Indices,
        width: usize,
    ) -> Result<()>;

    /// Mean over the rows of `-log softmax(x projection^T)[target]`, and, if asked for, its gradients: that of `x` is
    /// set, that of the projection is added to. Never holds all logits.
    ///
    /// `x`: `[rows, width]`; `projection`: `[vocabulary, width]`.
    fn cross_entropy(
        &self,
        gradients: Option<(Self::ViewMut<'_>, Self::ViewMut<'_>)>,
        x: Self::View<'_>,
        projection: Self::View<'_>,
        targets: &Self::Indices,
        width: usize,
    ) -> Result<f32>;

    /// Sum of squares, in f64.
    fn squared_norm(&self, x: Self::View<'_>) -> Result<f64>;

    /// One step of AdamW or NAdam on a stretch of the flat buffers, all of one length: see [`AdamUpdate`].
    fn adam(
        &self,
        parameters: Self::ViewMut<'_>,
        moments: (Self::ViewMut<'_>, Self::ViewMut<'_>),
        gradients: Self::View<'_>,
        update: AdamUpdate,
    ) -> Result<()>;

    /// Takes a gradient into a running mean, and sets `out` to the mean or to what it may be next: see
    /// [`MomentumUpdate`]. All are of one length.
    fn momentum(
        &self,
        out: Self::ViewMut<'_>,
        moment: Self::ViewMut<'_>,
        gradients: Self::View<'_>,
        update: MomentumUpdate,
    ) -> Result<()>;

    /// `out = keep * out + weight * x`, for `(out, keep)` and `(x, weight)` of one length. If `keep` is 0, what `out`
    /// held is not read.
    fn blend(&self, out: (Self::ViewMut<'_>, f32), x: (Self::View<'_>, f32)) -> Result<()>;
}

/// Whether a result replaces what is there, or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// `out = ..`
    Replace,
    /// `out += ..`
    Add,
}

/// A matrix product: which factor is transposed, and the sizes of the result and of the dimension summed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// How the factors lie.
    pub form: Form,
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result.
    pub columns: usize,
    /// Terms in each of its sums.
    pub inner: usize,
}

/// How the factors of a product lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `a: [rows, inner]`, `b: [columns, inner]`: a linear layer forward, `x w^T`.
    TransposedRight,
    /// `a: [rows, inner]`, `b: [inner, columns]`: a linear layer's input gradient, `dy w`.
    Plain,
    /// `a: [inner, rows]`, `b: [inner, columns]`: a linear layer's weight gradient, `dy^T x`.
    TransposedLeft,
}

/// Sizes of an attention. Queries, keys and values of a token lie in one row of
/// `(heads + 2 * key_value_heads) * head_width` channels: all query heads, then the key heads, then the value heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Sequences, which know nothing of each other.
    pub sequences: usize,
    /// Tokens in each.
    pub tokens: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads, and value heads. Divides `heads`.
    pub key_value_heads: usize,
    /// Channels of one head.
    pub head_width: usize,
}

impl AttentionShape {
    /// Tokens in all sequences.
    pub const fn rows(&self) -> usize {
        self.sequences * self.tokens
    }

    /// Channels of a token's queries, and of its result.
    pub const fn width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Channels of a token's queries, keys and values.
    pub const fn packed_width(&self) -> usize {
        (self.heads + 2 * self.key_value_heads) * self.head_width
    }
}

/// Which way to turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// By the position's angle: the forward pass.
    Forward,
    /// Back: the gradient.
    Back,
}

/// The numbers of one step of AdamW or NAdam. With the gradient `g`, the parameter `p` and the moments `m` and `v`:
///
/// ```text
/// g = gradient_scale g
/// m = beta1 m + (1 - beta1) g
/// v = beta2 v + (1 - beta2) g^2
/// n = gradient_weight g + moment_weight m
/// p = (1 - learning_rate weight_decay) p - learning_rate n / (sqrt(second_correction v) + epsilon)
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamUpdate {
    /// Step size.
    pub learning_rate: f32,
    /// The accumulated gradient is multiplied by this first: one over the number of passes, times clipping.
    pub gradient_scale: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// The parameters shrink by this times the learning rate.
    pub weight_decay: f32,
    /// How much of the gradient itself goes into the step: 0 in AdamW.
    pub gradient_weight: f32,
    /// How much of the first moment goes into the step: `1 / (1 - beta1^t)` at step `t`, from 1, in AdamW.
    pub moment_weight: f32,
    /// `1 / (1 - beta2^t)` at step `t`, from 1.
    pub second_correction: f32,
}

/// The numbers of one step of momentum. With the gradient `g` and the moment `m`:
///
/// ```text
/// g = gradient_scale g
/// m = momentum m + (1 - momentum) g
/// out = momentum m + (1 - momentum) g, if it looks ahead, else m
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MomentumUpdate {
    /// The accumulated gradient is multiplied by this first.
    pub gradient_scale: f32,
    /// Decay of the moment.
    pub momentum: f32,
    /// Whether the moment is taken one step further, as if the gradient came once more (Nesterov).
    pub look_ahead: bool,
}
