//! What the numbers that cross a boundary become on the way.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An encoding of activations and of their gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wire {
    /// As they are.
    F32,
    /// Rounded to bf16, to the nearest and ties to even.
    Bf16,
}

impl Wire {
    /// All of them, the most exact first.
    pub(crate) const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Bytes that a token's channels take, scales and the like included.
    pub(crate) fn bytes_per_token(self, channels: usize) -> f64 {
        match self {
            Self::F32 => 4.0 * channels as f64,
            Self::Bf16 => 2.0 * channels as f64,
        }
    }

    /// What the receiver gets of `[tokens, channels]`. The seed is for encodings that round by chance.
    pub(crate) fn cross(self, values: &mut [f32], _channels: usize, _seed: u64) {
        match self {
            Self::F32 => {}
            Self::Bf16 => values
                .iter_mut()
                .for_each(|value| *value = half::bf16::from_f32(*value).to_f32()),
        }
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_crosses_comes_out_as_exact_as_its_bytes_allow() {
        let sent: Vec<f32> = (0..1000).map(|index| (index as f32).sin()).collect();
        for (wire, relative_error) in [(Wire::F32, 0.0), (Wire::Bf16, 1.0 / 256.0)] {
            let mut received = sent.clone();
            wire.cross(&mut received, 10, 1);
            let worst = sent
                .iter()
                .zip(&received)
                .map(|(sent, received)| (sent - received).abs() / sent.abs().max(f32::MIN_POSITIVE))
                .fold(0.0, f32::max);
            assert!(worst <= relative_error, "{wire}: {worst}");
        }
    }
}
