//! The operations of a stage, each as one kernel or a few, and products.

#![expect(
    unsafe_code,
    reason = "places on the card are copied from and to the host"
)]

use std::ops::Range;

use iota_compute::Backend;
use iota_compute::backend::{
    AdamUpdate, AttentionShape, Form, MomentumUpdate, Product, Turn, Write,
};
use iota_model::Precision;

use crate::copies::{Download, Indices};
use crate::device::{Cuda, element_blocks, to_u32};
use crate::driver::Address;
use crate::kernels::THREADS;
use crate::loss::assert_tokens;
use crate::memory::{Buffer, View, ViewMut};

type Result<T> = iota_compute::Result<T>;

/// Rows of a partial sum of a norm scale's gradient.
const NORM_ROWS: usize = 64;

/// Partial sums of a squared norm, at most: they are summed up on the host.
const NORM_BLOCKS: usize = 1024;

impl Backend for Cuda {
    type Buffer = Buffer;
    type Indices = Indices;
    type View<'a> = View<'a>;
    type ViewMut<'a> = ViewMut<'a>;
    type Download = Download;

    const OVERLAPS: bool = true;

    fn allocate(&self, elements: usize) -> Result<Buffer> {
        Ok(Buffer::zeros(&self.driver, elements)?)
    }

    fn elements(&self, buffer: &Buffer) -> usize {
        buffer.elements()
    }

    fn view<'a>(&self, buffer: &'a Buffer, range: Range<usize>) -> View<'a> {
        buffer.view(range)
    }

    fn view_mut<'a>(&self, buffer: &'a mut Buffer, range: Range<usize>) -> ViewMut<'a> {
        buffer.view_mut(range)
    }

    fn retire(&self, buffer: &mut Buffer) {
        buffer.retire();
    }

    fn release_spare(&self) {
        self.rooms.clear();
        self.scratch.clear();
    }

    fn upload(&self, mut into: ViewMut<'_>, values: &[f32]) -> Result<()> {
        Ok(into.upload(&*self.driver, values)?)
    }

    fn download(&self, from: View<'_>) -> Result<Vec<f32>> {
        Ok(from.download(&*self.driver)?)
    }

    fn upload_beside(&self, into: ViewMut<'_>, values: &[f32]) -> Result<()> {
        assert_eq!(values.len(), into.len(), "length of what is uploaded");
        // SAFETY: as many bytes are of a buffer that is borrowed alone.
        unsafe { self.copies.upload(into.address(), values)? };
        Ok(())
    }

    fn begin_download(&self, buffer: Buffer) -> Result<Download> {
        Ok(Download::begin(&*self.driver, buffer)?)
    }

    fn finish_download(&self, download: Download) -> Result<(Vec<f32>, Buffer)> {
        Ok(download.finish(&*self.driver)?)
    }

    fn upload_indices(&self, indices: &[u32]) -> Result<Indices> {
        Ok(self.copies.upload_indices(indices.to_vec())?)
    }

    fn fill(&self, out: ViewMut<'_>, value: f32) -> Result<()> {
        let elements = out.len();
        let arguments = [(&out).into(), (elements as u64).into(), value.into()];
        Ok(self.launch_elements("fill", elements, &arguments)?)
    }

    fn copy(&self, mut out: ViewMut<'_>, source: View<'_>) -> Result<()> {
        Ok(out.copy(&*self.driver, source)?)
    }

    fn add_columns(
        &self,
        (out, out_width): (ViewMut<'_>, usize),
        (source, source_width): (View<'_>, usize),
        columns: usize,
    ) -> Result<()> {
        assert!(
            columns <= out_width && columns <= source_width,
            "more columns than there are"
        );
        let rows = out.len() / out_width;
        assert_eq!(
            (out.len(), source.len()),
            (rows * out_width, rows * source_width),
            "rows of a column sum"
        );
        let arguments = [
            out.numbers().into(),
            to_u32(out_width).into(),
            source.into(),
            to_u32(source_width).into(),
            to_u32(columns).into(),
        ];
        Ok(self.launch("add_columns", [rows, 1], &arguments)?)
    }

    fn matmul(
        &self,
        product: Product,
        out: ViewMut<'_>,
        a: View<'_>,
        b: View<'_>,
        into: Write,
    ) -> Result<()> {
        let Product {
            rows,
            columns,
            inner,
            ..
        } = product;
        assert_eq!(
            (out.len(), a.len(), b.len()),
            (rows * columns, rows * inner, inner * columns),
            "shapes of {product:?}"
        );
        // Weights and the gradients of outputs are factors of another product too, activations of this one only.
        let [a_again, b_again] = match product.form {
            Form::TransposedRight => [false, true],
            Form::Plain => [true, true],
            Form::TransposedLeft => [true, false],
        };
        let room = self
            .scratch
            .take([self.factor_room(a, a_again), self.factor_room(b, b_again)])?;
        let right = self.factor(b, b_again, room.parts[1])?;
        let left = self.factor(a, a_again, room.parts[0])?;
        Ok(self.multiply(
            product,
            [place(&out, into), left, right],
            into == Write::Add,
        )?)
    }

    fn rms_norm(
        &self,
        out: ViewMut<'_>,
        inverse: ViewMut<'_>,
        x: View<'_>,
        scale: View<'_>,
        epsilon: f32,
    ) -> Result<()> {
        let (rows, width) = (inverse.len(), scale.len());
        assert_eq!(
            (out.len(), x.len()),
            (rows * width, rows * width),
            "shapes of an RMSNorm"
        );
        let arguments = [
            self.as_factors(&out)?.into(),
            (&inverse).into(),
            x.into(),
            scale.into(),
            to_u32(width).into(),
            epsilon.into(),
        ];
        let kernel = self.by_factors("rms_norm_f32", "rms_norm_bf16");
        Ok(self.launch(kernel, [rows, 1], &arguments)?)
    }

    fn rms_norm_backward(
        &self,
        (x_gradient, into): (ViewMut<'_>, Write),
        scale_gradient: ViewMut<'_>,
        out_gradient: View<'_>,
        x: View<'_>,
        scale: View<'_>,
        inverse: View<'_>,
    ) -> Result<()> {
        let (rows, width) = (inverse.len(), scale.len());
        let elements = rows * width;
        assert_eq!(
            (
                x_gradient.len(),
                out_gradient.len(),
                x.len(),
                scale_gradient.len()
            ),
            (elements, elements, elements, width),
            "shapes of an RMSNorm's gradient"
        );
        let pieces = rows.div_ceil(NORM_ROWS);
        let room = self.scratch.take([pieces * width * size_of::<f32>()])?;
        let [partial] = room.parts;
        let channel_blocks = width.div_ceil(THREADS as usize);
        self.launch(
            "rms_norm_scale_partial",
            [pieces, channel_blocks],
            &[
                partial.into(),
                out_gradient.into(),
                x.into(),
                inverse.into(),
                to_u32(rows).into(),
                to_u32(NORM_ROWS).into(),
                to_u32(width).into(),
            ],
        )?;
        self.launch(
            "add_partial_sums",
            [channel_blocks, 1],
            &[
                scale_gradient.numbers().into(),
                partial.into(),
                to_u32(pieces).into(),
                to_u32(width).into(),
            ],
        )?;
        let arguments = [
            place(&x_gradient, into).into(),
            out_gradient.into(),
            x.into(),
            scale.into(),
            inverse.into(),
            to_u32(width).into(),
            u32::from(into == Write::Add).into(),
        ];
        Ok(self.launch("rms_norm_backward", [rows, 1], &arguments)?)
    }

    fn rotate(
        &self,
        packed: ViewMut<'_>,
        (cosines, sines): (View<'_>, View<'_>),
        shape: AttentionShape,
        turn: Turn,
    ) -> Result<()> {
        let half = shape.head_width / 2;
        assert_eq!(
            packed.len(),
            shape.rows() * shape.packed_width(),
            "shape of what is rotated"
        );
        assert!(
            cosines.len().min(sines.len()) >= shape.tokens * half,
            "positions of the rotary tables"
        );
        let tables = [cosines.into(), sines.into()];
        let sizes = [
            to_u32(shape.tokens).into(),
            to_u32(shape.heads + shape.key_value_heads).into(),
            to_u32(half).into(),
            to_u32(shape.packed_width()).into(),
        ];
        let rows = [shape.rows(), 1];
        if (turn, self.precision) == (Turn::Back, Precision::Bf16) {
            let places = [self.as_factors(&packed)?.into(), packed.numbers().into()];
            let arguments = [&places[..], &tables, &sizes].concat();
            return Ok(self.launch("rotate_back_bf16", rows, &arguments)?);
        }
        let sign = match turn {
            Turn::Forward => 1.0_f32,
            Turn::Back => -1.0,
        };
        let (place, sign) = ([packed.numbers().into()], [sign.into()]);
        let arguments = [&place[..], &tables, &sizes, &sign].concat();
        Ok(self.launch("rotate", rows, &arguments)?)
    }

    fn attention(
        &self,
        out: ViewMut<'_>,
        log_sums: ViewMut<'_>,
        packed: View<'_>,
        shape: AttentionShape,
    ) -> Result<()> {
        Ok(self.attention_forward(&out, &log_sums, packed, shape)?)
    }

    fn attention_backward(
        &self,
        packed_gradient: ViewMut<'_>,
        out_gradient: View<'_>,
        out: View<'_>,
        log_sums: View<'_>,
        packed: View<'_>,
        shape: AttentionShape,
    ) -> Result<()> {
        Ok(self.attention_backward_pass(
            &packed_gradient,
            out_gradient,
            out,
            log_sums,
            packed,
            shape,
        )?)
    }

    fn swiglu(&self, hidden: ViewMut<'_>, gate_up: View<'_>, width: usize) -> Result<()> {
        let rows = rows_of(hidden.len(), width);
        assert_eq!(gate_up.len(), 2 * hidden.len(), "shapes of a SwiGLU");
        let hidden = self.as_factors(&hidden)?;
        let arguments = [hidden.into(), gate_up.into(), to_u32(width).into()];
        let kernel = self.by_factors("swiglu_f32", "swiglu_bf16");
        Ok(self.launch(kernel, [rows, 1], &arguments)?)
    }

    fn swiglu_backward(
        &self,
        gate_up: ViewMut<'_>,
        hidden: ViewMut<'_>,
        width: usize,
    ) -> Result<()> {
        let rows = rows_of(hidden.len(), width);
        assert_eq!(
            gate_up.len(),
            2 * hidden.len(),
            "shapes of a SwiGLU's gradient"
        );
        let arguments = [
            self.as_factors(&gate_up)?.into(),
            self.as_factors(&hidden)?.into(),
            gate_up.numbers().into(),
            hidden.numbers().into(),
            to_u32(width).into(),
        ];
        let kernel = self.by_factors("swiglu_backward_f32", "swiglu_backward_bf16");
        Ok(self.launch(kernel, [rows, 1], &arguments)?)
    }

    fn silu(&self, out: ViewMut<'_>, x: View<'_>) -> Result<()> {
        assert_eq!(out.len(), x.len(), "shapes of a SiLU");
        let arguments = [(&out).into(), x.into(), (x.len() as u64).into()];
        Ok(self.launch_elements("silu", x.len(), &arguments)?)
    }

    fn silu_backward(&self, x: ViewMut<'_>, gradient: ViewMut<'_>) -> Result<()> {
        assert_eq!(gradient.len(), x.len(), "shapes of a SiLU's gradient");
        let arguments = [
            x.numbers().into(),
            gradient.numbers().into(),
            (x.len() as u64).into(),
        ];
        Ok(self.launch_elements("silu_backward", x.len(), &arguments)?)
    }

    fn relu(&self, x: ViewMut<'_>) -> Result<()> {
        let arguments = [x.numbers().into(), (x.len() as u64).into()];
        Ok(self.launch_elements("relu", x.len(), &arguments)?)
    }

    fn relu_backward(&self, gradient: ViewMut<'_>, out: View<'_>) -> Result<()> {
        assert_eq!(gradient.len(), out.len(), "shapes of a ReLU's gradient");
        let arguments = [
            gradient.numbers().into(),
            out.into(),
            (out.len() as u64).into(),
        ];
        Ok(self.launch_elements("relu_backward", out.len(), &arguments)?)
    }

    fn embedding(
        &self,
        out: ViewMut<'_>,
        table: View<'_>,
        tokens: &Indices,
        width: usize,
    ) -> Result<()> {
        let rows = tokens.host().len();
        assert_eq!(out.len(), rows * width, "shape of an embedding");
        assert_tokens(tokens, table.len() / width);
        let arguments = [
            (&out).into(),
            table.into(),
            tokens.address().into(),
            to_u32(width).into(),
        ];
        Ok(self.launch("embedding", [rows, 1], &arguments)?)
    }

    fn embedding_backward(
        &self,
        table_gradient: ViewMut<'_>,
        out_gradient: View<'_>,
        tokens: &Indices,
        width: usize,
    ) -> Result<()> {
        Ok(self.embedding_gradient(&table_gradient, out_gradient, tokens, width)?)
    }

    fn cross_entropy(
        &self,
        gradients: Option<(ViewMut<'_>, ViewMut<'_>)>,
        x: View<'_>,
        projection: View<'_>,
        targets: &Indices,
        width: usize,
    ) -> Result<f32> {
        let gradients = gradients.as_ref().map(|(x, projection)| (x, projection));
        Ok(self.projected_cross_entropy(gradients, x, projection, targets, width)?)
    }

    fn squared_norm(&self, x: View<'_>) -> Result<f64> {
        let blocks = element_blocks(x.len()).min(NORM_BLOCKS);
        let room = self.scratch.take([blocks * size_of::<f64>()])?;
        let [partial] = room.parts;
        let arguments = [partial.into(), x.into(), (x.len() as u64).into()];
        self.launch("squared_norm_partial", [blocks, 1], &arguments)?;
        // SAFETY: the part was taken for as many.
        let partial: Vec<f64> = unsafe { room.download(0, blocks)? };
        Ok(partial.into_iter().sum())
    }

    fn adam(
        &self,
        parameters: ViewMut<'_>,
        (first_moment, second_moment): (ViewMut<'_>, ViewMut<'_>),
        gradients: View<'_>,
        update: AdamUpdate,
    ) -> Result<()> {
        let elements = parameters.len();
        assert_eq!(
            (first_moment.len(), second_moment.len(), gradients.len()),
            (elements, elements, elements),
            "lengths of the optimizer's buffers"
        );
        let arguments = [
            parameters.numbers().into(),
            first_moment.numbers().into(),
            second_moment.numbers().into(),
            gradients.into(),
            (elements as u64).into(),
            update.learning_rate.into(),
            update.gradient_scale.into(),
            update.beta1.into(),
            update.beta2.into(),
            update.epsilon.into(),
            (1.0 - update.learning_rate * update.weight_decay).into(),
            update.gradient_weight.into(),
            update.moment_weight.into(),
            update.second_correction.into(),
        ];
        Ok(self.launch_elements("adam", elements, &arguments)?)
    }

    fn momentum(
        &self,
        out: ViewMut<'_>,
        moment: ViewMut<'_>,
        gradients: View<'_>,
        update: MomentumUpdate,
    ) -> Result<()> {
        let elements = out.len();
        assert_eq!(
            (moment.len(), gradients.len()),
            (elements, elements),
            "lengths of the momentum's buffers"
        );
        let arguments = [
            (&out).into(),
            moment.numbers().into(),
            gradients.into(),
            (elements as u64).into(),
            update.gradient_scale.into(),
            update.momentum.into(),
            u32::from(update.look_ahead).into(),
        ];
        Ok(self.launch_elements("momentum", elements, &arguments)?)
    }

    fn blend(&self, (out, keep): (ViewMut<'_>, f32), (x, weight): (View<'_>, f32)) -> Result<()> {
        assert_eq!(out.len(), x.len(), "lengths of what is blended");
        let arguments = [
            if keep == 0.0 {
                out.address()
            } else {
                out.numbers()
            }
            .into(),
            keep.into(),
            x.into(),
            weight.into(),
            (x.len() as u64).into(),
        ];
        Ok(self.launch_elements("blend", x.len(), &arguments)?)
    }
}

/// Where a result goes that replaces what is there, or is added to it.
fn place(out: &ViewMut<'_>, into: Write) -> Address {
    match into {
        Write::Replace => out.address(),
        Write::Add => out.numbers(),
    }
}

/// Rows of so many elements.
fn rows_of(elements: usize, width: usize) -> usize {
    assert!(
        width > 0 && elements.is_multiple_of(width),
        "{elements} elements are not rows of {width}"
    );
    elements / width
}
