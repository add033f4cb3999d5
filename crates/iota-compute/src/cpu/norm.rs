//! RMSNorm, forward and backward.
#![expect(
    unsafe_code,
    reason = "kernels are compiled for several instruction sets"
)]

use super::instructions::{InstructionSet, vectorised};
use super::numeric::sum;
use super::threads::Threads;
use crate::backend::Write;

/// Rows per job. The scale's gradient is summed within a job, then over the jobs in order.
const ROWS: usize = 64;

/// Elements that [`backward`] takes in passing: a sum for the scale's gradient from each job.
pub(super) const fn backward_elements(rows: usize, width: usize) -> usize {
    rows.div_ceil(ROWS) * width
}

pub(super) fn forward(
    (instructions, threads): (InstructionSet, &Threads),
    out: &mut [f32],
    inverse: &mut [f32],
    x: &[f32],
    scale: &[f32],
    epsilon: f32,
) {
    let width = scale.len();
    assert_eq!(
        (out.len(), x.len()),
        (inverse.len() * width, inverse.len() * width),
        "shapes of an RMSNorm"
    );
    let jobs = out
        .chunks_mut(ROWS * width)
        .zip(inverse.chunks_mut(ROWS))
        .zip(x.chunks(ROWS * width));
    threads.each(jobs, |((out, inverse), x)| {
        normalise(instructions, out, inverse, x, scale, epsilon)
    });
}

pub(super) fn backward(
    (instructions, threads): (InstructionSet, &Threads),
    (x_gradient, write): (&mut [f32], Write),
    scale_gradient: &mut [f32],
    out_gradient: &[f32],
    x: &[f32],
    scale: &[f32],
    inverse: &[f32],
) {
    let width = scale.len();
    let elements = inverse.len() * width;
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
    let jobs = x_gradient
        .chunks_mut(ROWS * width)
        .zip(out_gradient.chunks(ROWS * width))
        .zip(x.chunks(ROWS * width))
        .zip(inverse.chunks(ROWS));
    let partial_sums = threads.map(jobs, |(((x_gradient, out_gradient), x), inverse)| {
        let mut partial = vec![0.0; width];
        gradients(
            instructions,
            x_gradient,
            write == Write::Add,
            &mut partial,
            out_gradient,
            x,
            scale,
            inverse,
        );
        partial
    });
    for partial in partial_sums {
        scale_gradient
            .iter_mut()
            .zip(partial)
            .for_each(|(total, partial)| *total += partial);
    }
}

vectorised! {
    fn normalise(out: &mut [f32], inverse: &mut [f32], x: &[f32], scale: &[f32], epsilon: f32) {
        let width = scale.len();
        for ((out, inverse), x) in out.chunks_exact_mut(width).zip(inverse).zip(x.chunks_exact(width)) {
            let mean_square = sum(width, |channel| x[channel] * x[channel]) / width as f32;
            *inverse = 1.0 / (mean_square + epsilon).sqrt();
            for ((out, &x), &scale) in out.iter_mut().zip(x).zip(scale) {
                *out = x * *inverse * scale;
            }
        }
    }
}

vectorised! {
    /// With `y = x r s` and `r = (mean(x^2) + epsilon)^(-1/2)`: `dx = dy s r - x r^3 sum(dy s x) / width`.
    fn gradients(
        x_gradient: &mut [f32],
        add: bool,
        scale_gradient: &mut [f32],
        out_gradient: &[f32],
        x: &[f32],
        scale: &[f32],
        inverse: &[f32],
    ) {
        let width = scale.len();
        let scale_gradient = &mut scale_gradient[..width];
        let rows = x_gradient.chunks_exact_mut(width).zip(out_gradient.chunks_exact(width)).zip(x.chunks_exact(width));
        for (((x_gradient, out_gradient), x), &inverse) in rows.zip(inverse) {
            let along = sum(width, |channel| out_gradient[channel] * scale[channel] * x[channel]);
            let shrink = along * inverse * inverse * inverse / width as f32;
            for channel in 0..width {
                scale_gradient[channel] += out_gradient[channel] * x[channel] * inverse;
            }
            for channel in 0..width {
                let gradient = out_gradient[channel] * scale[channel] * inverse - x[channel] * shrink;
                x_gradient[channel] = if add { x_gradient[channel] + gradient } else { gradient };
            }
        }
    }
}
