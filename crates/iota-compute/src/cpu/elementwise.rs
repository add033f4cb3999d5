//! Operations on each element or row by itself: activations, rotary positions, column sums.
#![expect(
    unsafe_code,
    reason = "kernels are compiled for several instruction sets"
)]

use super::instructions::{InstructionSet, vectorised};
use super::numeric::{LANES, sigmoid};
use super::threads::Threads;
use crate::backend::{AttentionShape, Turn};

/// Elements per job, about: enough to be worth handing to a thread, few enough to stay in its cache.
pub(super) const ELEMENTS: usize = 16 * 1024;

pub(super) fn fill((_, threads): (InstructionSet, &Threads), out: &mut [f32], value: f32) {
    threads.each(out.chunks_mut(ELEMENTS), |out| out.fill(value));
}

/// Rows per job, for rows of this width.
const fn rows_per_job(width: usize) -> usize {
    let rows = ELEMENTS / width;
    if rows == 0 { 1 } else { rows }
}

pub(super) fn swiglu(
    (instructions, threads): (InstructionSet, &Threads),
    hidden: &mut [f32],
    gate_up: &[f32],
    width: usize,
) {
    assert_eq!(gate_up.len(), 2 * hidden.len(), "shapes of a SwiGLU");
    let rows = rows_per_job(width);
    let jobs = hidden
        .chunks_mut(rows * width)
        .zip(gate_up.chunks(rows * 2 * width));
    threads.each(jobs, |(hidden, gate_up)| {
        swiglu_rows(instructions, hidden, gate_up, width)
    });
}

vectorised! {
    fn swiglu_rows(hidden: &mut [f32], gate_up: &[f32], width: usize) {
        for (hidden, gate_up) in hidden.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
            let (gate, up) = gate_up.split_at(width);
            for ((hidden, &gate), &up) in hidden.iter_mut().zip(gate).zip(up) {
                *hidden = gate * sigmoid(gate) * up;
            }
        }
    }
}

pub(super) fn swiglu_backward(
    (instructions, threads): (InstructionSet, &Threads),
    gate_up: &mut [f32],
    hidden: &mut [f32],
    width: usize,
) {
    assert_eq!(
        gate_up.len(),
        2 * hidden.len(),
        "shapes of a SwiGLU's gradient"
    );
    let rows = rows_per_job(width);
    let jobs = hidden
        .chunks_mut(rows * width)
        .zip(gate_up.chunks_mut(rows * 2 * width));
    threads.each(jobs, |(hidden, gate_up)| {
        swiglu_backward_rows(instructions, gate_up, hidden, width)
    });
}

vectorised! {
    /// Goes through local arrays: of three slices that are written at once, the compiler would not believe that they do
    /// not overlap.
    fn swiglu_backward_rows(gate_up: &mut [f32], hidden: &mut [f32], width: usize) {
        for (hidden, gate_up) in hidden.chunks_exact_mut(width).zip(gate_up.chunks_exact_mut(2 * width)) {
            let (gate, up) = gate_up.split_at_mut(width);
            let (hidden, hidden_rest) = hidden.as_chunks_mut::<LANES>();
            let (gate, gate_rest) = gate.as_chunks_mut::<LANES>();
            let (up, up_rest) = up.as_chunks_mut::<LANES>();
            for ((hidden, gate), up) in hidden.iter_mut().zip(gate).zip(up) {
                let (mut h, mut g, mut u) = (*hidden, *gate, *up);
                for lane in 0..LANES {
                    (h[lane], g[lane], u[lane]) = swiglu_gradient(h[lane], g[lane], u[lane]);
                }
                (*hidden, *gate, *up) = (h, g, u);
            }
            for ((h, g), u) in hidden_rest.iter_mut().zip(gate_rest).zip(up_rest) {
                (*h, *g, *u) = swiglu_gradient(*h, *g, *u);
            }
        }
    }
}

/// From the gradient of a hidden channel, its gate and its up: the channel, and the gradients of gate and up.
#[inline(always)]
fn swiglu_gradient(gradient: f32, gate: f32, up: f32) -> (f32, f32, f32) {
    let open = sigmoid(gate);
    let silu = gate * open;
    (
        silu * up,
        gradient * up * silu_slope(open, silu),
        gradient * silu,
    )
}

/// The derivative of `silu(x) = x sigmoid(x)`: `sigmoid(x) (1 - silu(x)) + silu(x)`.
#[inline(always)]
fn silu_slope(open: f32, silu: f32) -> f32 {
    open * (1.0 - silu) + silu
}

pub(super) fn silu(
    (instructions, threads): (InstructionSet, &Threads),
    out: &mut [f32],
    x: &[f32],
) {
    assert_eq!(out.len(), x.len(), "shapes of a SiLU");
    threads.each(
        out.chunks_mut(ELEMENTS).zip(x.chunks(ELEMENTS)),
        |(out, x)| silu_elements(instructions, out, x),
    );
}

vectorised! {
    fn silu_elements(out: &mut [f32], x: &[f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * sigmoid(x);
        }
    }
}

pub(super) fn silu_backward(
    (instructions, threads): (InstructionSet, &Threads),
    x: &mut [f32],
    gradient: &mut [f32],
) {
    assert_eq!(gradient.len(), x.len(), "shapes of a SiLU's gradient");
    let jobs = x.chunks_mut(ELEMENTS).zip(gradient.chunks_mut(ELEMENTS));
    threads.each(jobs, |(x, gradient)| {
        silu_backward_elements(instructions, x, gradient)
    });
}

vectorised! {
    fn silu_backward_elements(x: &mut [f32], gradient: &mut [f32]) {
        for (x, gradient) in x.iter_mut().zip(gradient) {
            let open = sigmoid(*x);
            let silu = *x * open;
            *gradient *= silu_slope(open, silu);
            *x = silu;
        }
    }
}

/// Adds the first `columns` of each row. Left to one thread: it moves little.
pub(super) fn add_columns(
    (out, out_width): (&mut [f32], usize),
    (source, source_width): (&[f32], usize),
    columns: usize,
) {
    assert!(
        columns <= out_width && columns <= source_width,
        "more columns than there are"
    );
    assert_eq!(
        out.len() / out_width,
        source.len() / source_width,
        "rows of a column sum"
    );
    for (out, source) in out
        .chunks_exact_mut(out_width)
        .zip(source.chunks_exact(source_width))
    {
        out[..columns]
            .iter_mut()
            .zip(&source[..columns])
            .for_each(|(out, source)| *out += source);
    }
}

pub(super) fn rotate(
    (instructions, threads): (InstructionSet, &Threads),
    packed: &mut [f32],
    (cosines, sines): (&[f32], &[f32]),
    shape: AttentionShape,
    turn: Turn,
) {
    let (width, half) = (shape.packed_width(), shape.head_width / 2);
    assert_eq!(
        packed.len(),
        shape.rows() * width,
        "shape of what is rotated"
    );
    assert!(
        cosines.len() >= shape.tokens * half && sines.len() >= shape.tokens * half,
        "positions of the rotary tables"
    );
    let rotated = (shape.heads + shape.key_value_heads) * shape.head_width;
    let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
    threads.each(packed.chunks_mut(shape.tokens * width), |sequence| {
        rotate_sequence(
            instructions,
            sequence,
            width,
            rotated,
            half,
            cosines,
            sines,
            sign,
        );
    });
}

vectorised! {
    fn rotate_sequence(
        sequence: &mut [f32],
        width: usize,
        rotated: usize,
        half: usize,
        cosines: &[f32],
        sines: &[f32],
        sign: f32,
    ) {
        let angles = cosines.chunks_exact(half).zip(sines.chunks_exact(half));
        for (row, (cosines, sines)) in sequence.chunks_exact_mut(width).zip(angles) {
            for head in row[..rotated].chunks_exact_mut(2 * half) {
                let (first, second) = head.split_at_mut(half);
                for channel in 0..half {
                    let (a, b) = (first[channel], second[channel]);
                    let (cosine, sine) = (cosines[channel], sines[channel] * sign);
                    first[channel] = a * cosine - b * sine;
                    second[channel] = b * cosine + a * sine;
                }
            }
        }
    }
}

/// Sum of squares: each job in lanes of f64, then the jobs in order.
pub(super) fn squared_norm((instructions, threads): (InstructionSet, &Threads), x: &[f32]) -> f64 {
    threads
        .map(x.chunks(ELEMENTS), |x| squares(instructions, x))
        .into_iter()
        .sum()
}

vectorised! {
    fn squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0_f64; 8];
        let (chunks, rest) = x.as_chunks::<8>();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(value) * f64::from(value);
            }
        }
        let mut total = 0.0;
        for lane in lanes {
            total += lane;
        }
        for &value in rest {
            total += f64::from(value) * f64::from(value);
        }
        total
    }
}
