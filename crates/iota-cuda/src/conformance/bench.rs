//! Each operation on a device, from numbers to numbers, beside its definition.

use iota_compute::backend::{AdamUpdate, AttentionShape, MomentumUpdate, Product, Turn, Write};
use iota_compute::{Backend, Result};
use iota_model::Precision;

use super::{Outcome, exact};

const EPSILON: f32 = 1e-5;

const ADAM: AdamUpdate = AdamUpdate {
    learning_rate: 0.01,
    gradient_scale: 0.5,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    gradient_weight: 0.4,
    moment_weight: 1.7,
    second_correction: 3.0,
};

const fn momentum_update(look_ahead: bool) -> MomentumUpdate {
    MomentumUpdate {
        gradient_scale: 0.25,
        momentum: 0.95,
        look_ahead,
    }
}

/// What a result is before it is computed.
fn unwritten(elements: usize) -> Vec<f32> {
    vec![f32::NAN; elements]
}

/// A device with numbers going in and out.
pub(super) struct Bench<'a, B> {
    pub(super) device: &'a B,
}

impl<B: Backend> Bench<'_, B> {
    fn put(&self, values: &[f32]) -> Result<B::Buffer> {
        let mut buffer = self.device.allocate(values.len())?;
        self.device
            .upload(self.device.all_mut(&mut buffer), values)?;
        Ok(buffer)
    }

    fn get(&self, buffer: &B::Buffer) -> Result<Vec<f32>> {
        self.device.download(self.device.all(buffer))
    }
}

fn outcome(name: &'static str, computed: Vec<f32>, exact: Vec<f64>) -> Outcome {
    assert_eq!(computed.len(), exact.len(), "elements of the {name}");
    Outcome {
        name,
        computed,
        exact,
        is_factors: false,
    }
}

/// Of what an operation makes factors.
fn of_factors(name: &'static str, computed: Vec<f32>, exact: Vec<f64>) -> Outcome {
    Outcome {
        is_factors: true,
        ..outcome(name, computed, exact)
    }
}

impl<B: Backend> Bench<'_, B> {
    /// A part in the middle is filled, its neighbours are not; and copied.
    pub(super) fn moves(&self, values: Vec<f32>) -> Result<Vec<Outcome>> {
        let (device, part) = (self.device, 3..values.len() - 4);
        let mut filled = self.put(&values)?;
        device.fill(device.view_mut(&mut filled, part.clone()), 0.5)?;
        let mut exact: Vec<f64> = values.iter().map(|x| f64::from(*x)).collect();
        exact[part.clone()].fill(0.5);
        let source = self.put(&values)?;
        let mut copied = self.put(&unwritten(part.len()))?;
        device.copy(
            device.all_mut(&mut copied),
            device.view(&source, part.clone()),
        )?;
        let of_part = values[part].iter().map(|x| f64::from(*x)).collect();
        let zeros = device.allocate(values.len())?;
        Ok(vec![
            outcome("part that is filled", self.get(&filled)?, exact),
            outcome("part that is copied", self.get(&copied)?, of_part),
            outcome("new buffer", self.get(&zeros)?, vec![0.0; values.len()]),
        ])
    }

    pub(super) fn add_columns(
        &self,
        (out, out_width): (Vec<f32>, usize),
        (source, source_width): (Vec<f32>, usize),
    ) -> Result<Vec<Outcome>> {
        let (device, columns) = (self.device, out_width.min(source_width));
        let (mut sum, on_device) = (self.put(&out)?, self.put(&source)?);
        device.add_columns(
            (device.all_mut(&mut sum), out_width),
            (device.all(&on_device), source_width),
            columns,
        )?;
        let exact = exact::add_columns(&out, out_width, &source, source_width);
        Ok(vec![outcome("sum", self.get(&sum)?, exact)])
    }

    pub(super) fn multiply(
        &self,
        product: Product,
        precision: Precision,
        a: Vec<f32>,
        b: Vec<f32>,
        before: Vec<f32>,
    ) -> Result<Vec<Outcome>> {
        let device = self.device;
        let (left, right) = (self.put(&a)?, self.put(&b)?);
        let result = |start: &[f32], write| {
            let mut out = self.put(start)?;
            device.matmul(
                product,
                device.all_mut(&mut out),
                device.all(&left),
                device.all(&right),
                write,
            )?;
            self.get(&out)
        };
        let exact = exact::multiply(product, precision, &a, &b);
        let added = exact
            .iter()
            .zip(&before)
            .map(|(product, before)| product + f64::from(*before))
            .collect();
        Ok(vec![
            outcome(
                "product",
                result(&unwritten(before.len()), Write::Replace)?,
                exact,
            ),
            outcome("product that is added", result(&before, Write::Add)?, added),
        ])
    }

    pub(super) fn rms_norm(
        &self,
        x: Vec<f32>,
        scale: Vec<f32>,
        out_gradient: Vec<f32>,
        x_before: Vec<f32>,
        scale_before: Vec<f32>,
    ) -> Result<Vec<Outcome>> {
        let (device, rows) = (self.device, x.len() / scale.len());
        let (on_device, factors) = (self.put(&x)?, self.put(&scale)?);
        let mut out = self.put(&unwritten(x.len()))?;
        let mut inverse = self.put(&unwritten(rows))?;
        device.rms_norm(
            device.all_mut(&mut out),
            device.all_mut(&mut inverse),
            device.all(&on_device),
            device.all(&factors),
            EPSILON,
        )?;
        let gradient = self.put(&out_gradient)?;
        let back = |x_start: &[f32], write| {
            let (mut x_gradient, mut scale_gradient) =
                (self.put(x_start)?, self.put(&scale_before)?);
            device.rms_norm_backward(
                (device.all_mut(&mut x_gradient), write),
                device.all_mut(&mut scale_gradient),
                device.all(&gradient),
                device.all(&on_device),
                device.all(&factors),
                device.all(&inverse),
            )?;
            Ok::<_, iota_compute::Error>((self.get(&x_gradient)?, self.get(&scale_gradient)?))
        };
        let (x_replaced, scale_gradient) = back(&unwritten(x.len()), Write::Replace)?;
        let (x_added, _) = back(&x_before, Write::Add)?;
        let exact = exact::rms_norm(&x, &scale, &out_gradient, f64::from(EPSILON));
        let sum = |gradient: &[f64], before: &[f32]| {
            let pairs = gradient.iter().zip(before);
            pairs.map(|(a, b)| a + f64::from(*b)).collect::<Vec<f64>>()
        };
        let added = sum(&exact.x_gradient, &x_before);
        let scale_added = sum(&exact.scale_gradient, &scale_before);
        Ok(vec![
            of_factors("out", self.get(&out)?, exact.out),
            outcome("inverse", self.get(&inverse)?, exact.inverse),
            outcome("gradient of x", x_replaced, exact.x_gradient),
            outcome("gradient of x that is added", x_added, added),
            outcome("gradient of scale", scale_gradient, scale_added),
        ])
    }

    pub(super) fn rotate(
        &self,
        shape: AttentionShape,
        packed: Vec<f32>,
        cosines: Vec<f32>,
        sines: Vec<f32>,
    ) -> Result<Vec<Outcome>> {
        let device = self.device;
        let tables = (self.put(&cosines)?, self.put(&sines)?);
        [("forward", Turn::Forward), ("back", Turn::Back)]
            .into_iter()
            .map(|(name, turn)| {
                let mut turned = self.put(&packed)?;
                device.rotate(
                    device.all_mut(&mut turned),
                    (device.all(&tables.0), device.all(&tables.1)),
                    shape,
                    turn,
                )?;
                let exact = exact::rotate(shape, &packed, &cosines, &sines, turn);
                Ok(Outcome {
                    is_factors: turn == Turn::Back,
                    ..outcome(name, self.get(&turned)?, exact)
                })
            })
            .collect()
    }

    pub(super) fn attention(
        &self,
        shape: AttentionShape,
        packed: Vec<f32>,
        out_gradient: Vec<f32>,
    ) -> Result<Vec<Outcome>> {
        let device = self.device;
        let on_device = self.put(&packed)?;
        let mut out = self.put(&unwritten(out_gradient.len()))?;
        let mut log_sums = self.put(&unwritten(shape.rows() * shape.heads))?;
        device.attention(
            device.all_mut(&mut out),
            device.all_mut(&mut log_sums),
            device.all(&on_device),
            shape,
        )?;
        let gradient = self.put(&out_gradient)?;
        let mut packed_gradient = self.put(&unwritten(packed.len()))?;
        device.attention_backward(
            device.all_mut(&mut packed_gradient),
            device.all(&gradient),
            device.all(&out),
            device.all(&log_sums),
            device.all(&on_device),
            shape,
        )?;
        let exact = exact::attention(shape, &packed, &out_gradient);
        Ok(vec![
            outcome("out", self.get(&out)?, exact.out),
            outcome(
                "logarithms of denominators",
                self.get(&log_sums)?,
                exact.log_sums,
            ),
            outcome(
                "gradient of queries, keys and values",
                self.get(&packed_gradient)?,
                exact.packed_gradient,
            ),
        ])
    }

    pub(super) fn swiglu(
        &self,
        width: usize,
        gate_up: Vec<f32>,
        hidden_gradient: Vec<f32>,
    ) -> Result<Vec<Outcome>> {
        let device = self.device;
        let mut on_device = self.put(&gate_up)?;
        let mut hidden = self.put(&unwritten(hidden_gradient.len()))?;
        device.swiglu(device.all_mut(&mut hidden), device.all(&on_device), width)?;
        let mut gradient = self.put(&hidden_gradient)?;
        device.swiglu_backward(
            device.all_mut(&mut on_device),
            device.all_mut(&mut gradient),
            width,
        )?;
        let (exact_hidden, exact_gradient) = exact::swiglu(&gate_up, &hidden_gradient, width);
        Ok(vec![
            of_factors("hidden", self.get(&hidden)?, exact_hidden.clone()),
            of_factors("hidden again", self.get(&gradient)?, exact_hidden),
            of_factors("gradient", self.get(&on_device)?, exact_gradient),
        ])
    }

    pub(super) fn activations(&self, x: Vec<f32>, gradient: Vec<f32>) -> Result<Vec<Outcome>> {
        let device = self.device;
        let mut on_device = self.put(&x)?;
        let mut out = self.put(&unwritten(x.len()))?;
        device.silu(device.all_mut(&mut out), device.all(&on_device))?;
        let mut silu_gradient = self.put(&gradient)?;
        device.silu_backward(
            device.all_mut(&mut on_device),
            device.all_mut(&mut silu_gradient),
        )?;
        let mut rectified = self.put(&x)?;
        device.relu(device.all_mut(&mut rectified))?;
        let mut relu_gradient = self.put(&gradient)?;
        device.relu_backward(device.all_mut(&mut relu_gradient), device.all(&rectified))?;
        let exact = exact::activations(&x, &gradient);
        Ok(vec![
            outcome("silu", self.get(&out)?, exact.silu.clone()),
            outcome("silu again", self.get(&on_device)?, exact.silu),
            outcome(
                "gradient of silu",
                self.get(&silu_gradient)?,
                exact.silu_gradient,
            ),
            outcome("relu", self.get(&rectified)?, exact.relu),
            outcome(
                "gradient of relu",
                self.get(&relu_gradient)?,
                exact.relu_gradient,
            ),
        ])
    }

    pub(super) fn embedding(
        &self,
        width: usize,
        table: Vec<f32>,
        tokens: Vec<u32>,
        out_gradient: Vec<f32>,
        before: Vec<f32>,
    ) -> Result<Vec<Outcome>> {
        let device = self.device;
        let (on_device, indices) = (self.put(&table)?, device.upload_indices(&tokens)?);
        let mut out = self.put(&unwritten(out_gradient.len()))?;
        device.embedding(
            device.all_mut(&mut out),
            device.all(&on_device),
            &indices,
            width,
        )?;
        let gradient = self.put(&out_gradient)?;
        let mut table_gradient = self.put(&before)?;
        device.embedding_backward(
            device.all_mut(&mut table_gradient),
            device.all(&gradient),
            &indices,
            width,
        )?;
        let (exact_out, exact_gradient) =
            exact::embedding(width, &table, &tokens, &out_gradient, &before);
        Ok(vec![
            outcome("out", self.get(&out)?, exact_out),
            outcome(
                "gradient of the table",
                self.get(&table_gradient)?,
                exact_gradient,
            ),
        ])
    }

    pub(super) fn cross_entropy(
        &self,
        precision: Precision,
        width: usize,
        x: Vec<f32>,
        projection: Vec<f32>,
        targets: Vec<u32>,
        before: Vec<f32>,
    ) -> Result<Vec<Outcome>> {
        let device = self.device;
        let (on_device, matrix) = (self.put(&x)?, self.put(&projection)?);
        let indices = device.upload_indices(&targets)?;
        let mut x_gradient = self.put(&unwritten(x.len()))?;
        let mut projection_gradient = self.put(&before)?;
        let alone = device.cross_entropy(
            None,
            device.all(&on_device),
            device.all(&matrix),
            &indices,
            width,
        )?;
        let loss = device.cross_entropy(
            Some((
                device.all_mut(&mut x_gradient),
                device.all_mut(&mut projection_gradient),
            )),
            device.all(&on_device),
            device.all(&matrix),
            &indices,
            width,
        )?;
        let exact = exact::cross_entropy(precision, width, &x, &projection, &targets, &before);
        Ok(vec![
            outcome("loss", vec![loss], vec![exact.loss]),
            outcome("loss alone", vec![alone], vec![exact.loss]),
            outcome("gradient of x", self.get(&x_gradient)?, exact.x_gradient),
            outcome(
                "gradient of the projection",
                self.get(&projection_gradient)?,
                exact.projection_gradient,
            ),
        ])
    }

    pub(super) fn squared_norm(&self, x: Vec<f32>) -> Result<Vec<Outcome>> {
        let on_device = self.put(&x)?;
        let norm = self.device.squared_norm(self.device.all(&on_device))?;
        let exact = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        Ok(vec![outcome("norm", vec![norm as f32], vec![exact])])
    }

    pub(super) fn adam(&self, before: [Vec<f32>; 4]) -> Result<Vec<Outcome>> {
        let device = self.device;
        let [mut parameters, mut first, mut second, gradients] = [
            self.put(&before[0])?,
            self.put(&before[1])?,
            self.put(&before[2])?,
            self.put(&before[3])?,
        ];
        device.adam(
            device.all_mut(&mut parameters),
            (device.all_mut(&mut first), device.all_mut(&mut second)),
            device.all(&gradients),
            ADAM,
        )?;
        let [exact_parameters, exact_first, exact_second] = exact::adam(&before, &ADAM);
        Ok(vec![
            outcome("parameters", self.get(&parameters)?, exact_parameters),
            outcome("first moment", self.get(&first)?, exact_first),
            outcome("second moment", self.get(&second)?, exact_second),
        ])
    }

    pub(super) fn momentum(&self, [out, moment, gradients]: [Vec<f32>; 3]) -> Result<Vec<Outcome>> {
        let device = self.device;
        let on_device = self.put(&gradients)?;
        let mut outcomes = Vec::new();
        for (name, moment_name, look_ahead) in [
            ("mean", "moment", false),
            ("mean ahead", "moment ahead", true),
        ] {
            let update = momentum_update(look_ahead);
            let (mut mean, mut moved) = (self.put(&unwritten(out.len()))?, self.put(&moment)?);
            device.momentum(
                device.all_mut(&mut mean),
                device.all_mut(&mut moved),
                device.all(&on_device),
                update,
            )?;
            let (exact_mean, exact_moment) = exact::momentum(&moment, &gradients, &update);
            outcomes.push(outcome(name, self.get(&mean)?, exact_mean));
            outcomes.push(outcome(moment_name, self.get(&moved)?, exact_moment));
        }
        for (name, before, keep) in [
            ("blend", out.clone(), 0.75),
            ("blend with nothing", unwritten(out.len()), 0.0),
        ] {
            let mut blended = self.put(&before)?;
            device.blend(
                (device.all_mut(&mut blended), keep),
                (device.all(&on_device), -0.3),
            )?;
            let exact = exact::blend(&out, keep, &gradients, -0.3);
            outcomes.push(outcome(name, self.get(&blended)?, exact));
        }
        Ok(outcomes)
    }
}
