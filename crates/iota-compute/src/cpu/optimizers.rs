//! What optimizers do to each element, in one pass over the flat buffers.
//!
//! Memory is what limits these: a step of Adam reads 16 bytes and writes 12 for each parameter.
#![expect(
    unsafe_code,
    reason = "kernels are compiled for several instruction sets"
)]

use super::elementwise::ELEMENTS;
use super::instructions::{InstructionSet, vectorised};
use super::numeric::LANES;
use super::threads::Threads;
use crate::backend::{AdamUpdate, MomentumUpdate};

pub(super) fn adam(
    (instructions, threads): (InstructionSet, &Threads),
    parameters: &mut [f32],
    (first_moment, second_moment): (&mut [f32], &mut [f32]),
    gradients: &[f32],
    update: AdamUpdate,
) {
    let lengths = (first_moment.len(), second_moment.len(), gradients.len());
    assert_eq!(
        lengths,
        (parameters.len(), parameters.len(), parameters.len()),
        "lengths of the optimizer's buffers"
    );
    let jobs = parameters
        .chunks_mut(ELEMENTS)
        .zip(first_moment.chunks_mut(ELEMENTS))
        .zip(second_moment.chunks_mut(ELEMENTS))
        .zip(gradients.chunks(ELEMENTS));
    threads.each(jobs, |(((parameters, first), second), gradients)| {
        adam_elements(instructions, parameters, first, second, gradients, update);
    });
}

vectorised! {
    /// Goes through local arrays: of three slices that are written at once, the compiler would not believe that they do
    /// not overlap.
    fn adam_elements(
        parameters: &mut [f32],
        first_moment: &mut [f32],
        second_moment: &mut [f32],
        gradients: &[f32],
        update: AdamUpdate,
    ) {
        let (parameters, parameters_rest) = parameters.as_chunks_mut::<LANES>();
        let (first_moment, first_rest) = first_moment.as_chunks_mut::<LANES>();
        let (second_moment, second_rest) = second_moment.as_chunks_mut::<LANES>();
        let (gradients, gradients_rest) = gradients.as_chunks::<LANES>();
        for (((parameter, first), second), gradient) in parameters.iter_mut().zip(first_moment).zip(second_moment).zip(gradients) {
            let (mut p, mut m, mut v) = (*parameter, *first, *second);
            for lane in 0..LANES {
                (p[lane], m[lane], v[lane]) = adam_element(p[lane], m[lane], v[lane], gradient[lane], &update);
            }
            (*parameter, *first, *second) = (p, m, v);
        }
        for (((p, m), v), g) in parameters_rest.iter_mut().zip(first_rest).zip(second_rest).zip(gradients_rest) {
            (*p, *m, *v) = adam_element(*p, *m, *v, *g, &update);
        }
    }
}

/// The parameter and its moments after the step.
#[inline(always)]
fn adam_element(p: f32, m: f32, v: f32, g: f32, update: &AdamUpdate) -> (f32, f32, f32) {
    let g = g * update.gradient_scale;
    let m = update.beta1 * m + (1.0 - update.beta1) * g;
    let v = update.beta2 * v + (1.0 - update.beta2) * g * g;
    let towards = update.gradient_weight * g + update.moment_weight * m;
    let step = towards / ((v * update.second_correction).sqrt() + update.epsilon);
    let keep = 1.0 - update.learning_rate * update.weight_decay;
    (p * keep - update.learning_rate * step, m, v)
}

pub(super) fn momentum(
    (instructions, threads): (InstructionSet, &Threads),
    out: &mut [f32],
    moment: &mut [f32],
    gradients: &[f32],
    update: MomentumUpdate,
) {
    assert_eq!(
        (moment.len(), gradients.len()),
        (out.len(), out.len()),
        "lengths of the momentum's buffers"
    );
    let jobs = out
        .chunks_mut(ELEMENTS)
        .zip(moment.chunks_mut(ELEMENTS))
        .zip(gradients.chunks(ELEMENTS));
    threads.each(jobs, |((out, moment), gradients)| {
        momentum_elements(instructions, out, moment, gradients, update);
    });
}

vectorised! {
    fn momentum_elements(out: &mut [f32], moment: &mut [f32], gradients: &[f32], update: MomentumUpdate) {
        let (keep, take) = (update.momentum, 1.0 - update.momentum);
        let (ahead_keep, ahead_take) = if update.look_ahead { (keep, take) } else { (1.0, 0.0) };
        for ((out, moment), &gradient) in out.iter_mut().zip(moment).zip(gradients) {
            let gradient = gradient * update.gradient_scale;
            *moment = keep * *moment + take * gradient;
            *out = ahead_keep * *moment + ahead_take * gradient;
        }
    }
}

pub(super) fn blend(
    (instructions, threads): (InstructionSet, &Threads),
    (out, keep): (&mut [f32], f32),
    (x, weight): (&[f32], f32),
) {
    assert_eq!(out.len(), x.len(), "lengths of what is blended");
    let jobs = out.chunks_mut(ELEMENTS).zip(x.chunks(ELEMENTS));
    threads.each(jobs, |(out, x)| {
        blend_elements(instructions, out, keep, x, weight);
    });
}

vectorised! {
    fn blend_elements(out: &mut [f32], keep: f32, x: &[f32], weight: f32) {
        if keep == 0.0 {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = weight * x;
            }
        } else {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = keep * *out + weight * x;
            }
        }
    }
}
