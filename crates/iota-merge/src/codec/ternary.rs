//! A scale for every 64 values, or its opposite, or zero: a little more than 1.6 bits a value.
//!
//! ```text
//! chunk   largest scale bf16 │ 64 x 4 bits: scale of a block │ 820 bytes: five values each                    854 bytes
//!                              scales: 1, 3/4, 1/2, 3/8 ... 3/256, 1/128 of the largest, and 0
//! ```
//!
//! A block's scale is the one nearest to the mean of what is above 0.6 of its root mean square, which for a normal
//! distribution loses the least: 0.19 of the energy, where 1.6 bits could lose no less than 0.11. A value becomes the nearest of
//! the three. It makes no sense without feedback on the other side of a merge: what stays below half of the scale is heard of
//! only in so far as it varies, as means of deltas with error feedback do.
//!
//! Five values are one number of base 3, the first its lowest digit; digits are values plus one. Values that a last byte has no
//! values for are zeros. Of two halves of a byte the lower comes first, and a half that is left over is zero.
//!
//! Source: Max, *Quantizing for Minimum Distortion* (1960), for the three levels.

use super::Refused;
use super::float::{BF16_MAX, check, finite_bf16, from_bf16, to_bf16};

/// Values with a scale of their own.
const BLOCK: usize = 64;
/// Values in a byte.
const FIVE: usize = 5;
/// Numbers that five values make.
const NUMBERS: usize = 243;
/// Of a block of zeros.
const NOTHING: usize = 15;
/// Sums are made in so many pieces, so that vector instructions make the same.
const LANES: usize = 8;

/// Shares of the largest scale. Each is a few bits long.
const SHARES: [f32; 16] = {
    let mut shares = [0.0; 16];
    let (mut whole, mut index) = (1.0, 0);
    while index < NOTHING {
        shares[index] = whole;
        if index + 1 < NOTHING {
            shares[index + 1] = 0.75 * whole;
        }
        whole *= 0.5;
        index += 2;
    }
    shares
};

/// The five values of each number.
const VALUES: [[i8; FIVE]; NUMBERS] = {
    let mut values = [[0; FIVE]; NUMBERS];
    let mut number = 0;
    while number < NUMBERS {
        let (mut rest, mut digit) = (number, 0);
        while digit < FIVE {
            values[number][digit] = (rest % 3) as i8 - 1;
            rest /= 3;
            digit += 1;
        }
        number += 1;
    }
    values
};

const fn scales_length(elements: usize) -> usize {
    elements.div_ceil(BLOCK).div_ceil(2)
}

pub(super) const fn length(elements: usize) -> usize {
    2 + scales_length(elements) + elements.div_ceil(FIVE)
}

#[inline(always)]
pub(super) fn encode(values: &[f32], bytes: &mut Vec<u8>) -> Result<(), usize> {
    check(values, BF16_MAX)?;
    let mut scales = [0.0_f32; super::CHUNK / BLOCK];
    let scales = &mut scales[..values.len().div_ceil(BLOCK)];
    for (scale, block) in scales.iter_mut().zip(values.chunks(BLOCK)) {
        *scale = scale_of(block);
    }
    let largest = scales.iter().fold(0.0_f32, |largest, x| largest.max(*x));
    let largest = to_bf16(largest);
    bytes.extend_from_slice(&largest.to_le_bytes());
    let largest = from_bf16(largest);
    let start = bytes.len();
    bytes.resize(start + scales_length(values.len()), 0);
    for (index, scale) in scales.iter_mut().enumerate() {
        let share = nearest_share(*scale, largest);
        bytes[start + index / 2] |= (share as u8) << (index % 2 * 4);
        *scale = SHARES[share] * largest;
    }
    let mut digits = [1_u8; (super::CHUNK / FIVE + 1) * FIVE];
    for ((digits, block), scale) in digits
        .chunks_mut(BLOCK)
        .zip(values.chunks(BLOCK))
        .zip(&*scales)
    {
        let half = 0.5 * scale;
        for (digit, &value) in digits.iter_mut().zip(block) {
            let is_sent = half > 0.0 && value.abs() >= half;
            let sign = if value < 0.0 { 0 } else { 2 };
            *digit = if is_sent { sign } else { 1 };
        }
    }
    let fives = digits.as_chunks::<FIVE>().0.iter();
    bytes.extend(
        fives
            .take(values.len().div_ceil(FIVE))
            .map(|&[a, b, c, d, e]| a + 3 * b + 9 * c + 27 * d + 81 * e),
    );
    Ok(())
}

/// The mean of the magnitudes above 0.6 of the root mean square.
#[inline(always)]
fn scale_of(block: &[f32]) -> f32 {
    let mut squares = [0.0_f64; LANES];
    for row in block.chunks(LANES) {
        for (sum, &x) in squares.iter_mut().zip(row) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    let border = 0.36 * squares.iter().sum::<f64>() / block.len() as f64;
    let (mut sums, mut counts) = ([0.0_f64; LANES], [0.0_f64; LANES]);
    for row in block.chunks(LANES) {
        for ((sum, count), &x) in sums.iter_mut().zip(&mut counts).zip(row) {
            let x = f64::from(x.abs());
            let is_above = if x * x > border { 1.0 } else { 0.0 };
            *sum += is_above * x;
            *count += is_above;
        }
    }
    let count: f64 = counts.iter().sum();
    (sums.iter().sum::<f64>() / count.max(1.0)) as f32
}

/// Which of the shares of `largest` is nearest to a scale.
#[inline(always)]
fn nearest_share(scale: f32, largest: f32) -> usize {
    if scale == 0.0 {
        return NOTHING;
    }
    let borders = SHARES.windows(2).map(|pair| 0.5 * (pair[0] + pair[1]));
    borders
        .map(|border| usize::from(scale < border * largest))
        .sum()
}

#[inline(always)]
pub(super) fn decode(bytes: &[u8], values: &mut [f32]) -> Result<usize, Refused> {
    let used = length(values.len());
    let (&largest, rest) = bytes[..used].split_first_chunk().expect("it is no less");
    let largest = finite_bf16(largest)
        .filter(|scale| scale.is_sign_positive())
        .ok_or(Refused::Malformed("the largest scale"))?;
    let (shares, fives) = rest.split_at(scales_length(values.len()));
    let blocks = values.len().div_ceil(BLOCK);
    if blocks % 2 == 1 && shares.last().is_some_and(|byte| byte >> 4 != 0) {
        return Err(Refused::Malformed("the scale after the last"));
    }
    let mut digits = [0_i8; (super::CHUNK / FIVE + 1) * FIVE];
    let digits_of = |byte: u8| VALUES.get(usize::from(byte));
    for (digits, &five) in digits.as_chunks_mut::<FIVE>().0.iter_mut().zip(fives) {
        *digits = *digits_of(five).ok_or(Refused::Malformed("a byte of five values"))?;
    }
    let (digits, filling) = digits.split_at(values.len());
    if filling.iter().any(|digit| *digit != 0) {
        return Err(Refused::Malformed("the last byte"));
    }
    for (index, (block, digits)) in values
        .chunks_mut(BLOCK)
        .zip(digits.chunks(BLOCK))
        .enumerate()
    {
        let share = shares[index / 2] >> (index % 2 * 4) & 0xf;
        let scale = SHARES[usize::from(share)] * largest;
        for (value, &digit) in block.iter_mut().zip(digits) {
            *value = f32::from(digit) * scale;
        }
    }
    Ok(used)
}
