//! What the numbers that cross a boundary become on the way.

use std::fmt;

use anyhow::Result;
use iota_codec::{Codec, Seed, Shape};

/// An encoding of activations or of their gradients: there and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Zeros arrive: what a model is worth whose stages hear nothing of each other.
    Nothing,
    /// What this leaves of the numbers arrives.
    By(Codec),
}

impl Wire {
    pub(crate) const F32: Self = Self::By(Codec::F32);
    pub(crate) const BF16: Self = Self::By(Codec::Bf16);

    /// All that something arrives by, the most exact first.
    pub(crate) const ALL: [Self; 4] = [
        Self::F32,
        Self::BF16,
        Self::By(Codec::Int8),
        Self::By(Codec::Int4),
    ];

    /// Bytes that a token's channels take, scales and the like included.
    pub(crate) const fn bytes_per_token(self, channels: usize) -> f64 {
        match self {
            Self::Nothing => 0.0,
            Self::By(codec) => codec.token_bytes(channels) as f64,
        }
    }

    /// What the receiver gets of `[tokens, channels]`. The seed is for encodings that round by chance.
    pub(crate) fn cross(self, values: &mut [f32], channels: usize, seed: u64) -> Result<()> {
        let codec = match self {
            Self::F32 => return Ok(()),
            Self::Nothing => {
                values.fill(0.0);
                return Ok(());
            }
            Self::By(codec) => codec,
        };
        let shape = Shape::new(values.len() / channels, channels);
        let mut bytes = vec![0; codec.encoded_length(shape)];
        codec.encode(values, shape, Seed::new(seed), &mut bytes)?;
        Ok(codec.decode(&bytes, shape, values)?)
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Nothing => "nothing",
            Self::By(codec) => codec.name(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_crosses_comes_out_as_exact_as_its_bytes_allow() {
        let sent: Vec<f32> = (0..1000).map(|index| (index as f32).sin()).collect();
        let mut last = 0.0;
        for wire in Wire::ALL {
            let mut received = sent.clone();
            wire.cross(&mut received, 10, 1).unwrap();
            let worst = sent
                .iter()
                .zip(&received)
                .map(|(sent, received)| (sent - received).abs())
                .fold(0.0, f32::max);
            // A step of 4 bits is a seventh of the largest of a token's ten channels.
            assert!(worst >= last && worst < 0.6, "{wire}: {worst}");
            last = worst;
        }
        assert!(last > 0.05, "four bits are felt: {last}");
        let mut received = sent;
        Wire::Nothing.cross(&mut received, 10, 1).unwrap();
        assert!(received.iter().all(|value| *value == 0.0));
    }
}
