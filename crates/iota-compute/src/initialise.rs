//! Initial weights: the same bits on every machine, and however the model is cut.

use std::ops::Range;

use iota_model::{Initialisation, TensorLayout};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::Result;

/// Makes a tensor's initial elements and hands them on in stretches, with the first one's place in the tensor: a large
/// tensor is never held twice.
///
/// Each tensor has a generator of its own, keyed by the run's seed and the tensor's name. Normal numbers come in pairs by
/// Box and Muller's method in f64, with the logarithm and the circle functions of `libm`, which is the same code
/// everywhere, unlike those of the system.
///
/// # Errors
/// Those of `write`.
pub fn initialise(
    tensor: &TensorLayout,
    seed: u64,
    mut write: impl FnMut(Range<usize>, &[f32]) -> Result<()>,
) -> Result<()> {
    let mut generator = generator(tensor, seed);
    let mut values = vec![0.0; STRETCH.min(tensor.elements())];
    for start in (0..tensor.elements()).step_by(STRETCH) {
        let values = &mut values[..STRETCH.min(tensor.elements() - start)];
        match tensor.initialisation {
            Initialisation::Ones => values.fill(1.0),
            Initialisation::Normal { standard_deviation } => {
                normals(&mut generator, standard_deviation.into(), values);
            }
        }
        write(start..start + values.len(), values)?;
    }
    Ok(())
}

/// Elements made at a time. Even, because they are made in pairs.
const STRETCH: usize = 16 * 1024;

fn generator(tensor: &TensorLayout, seed: u64) -> ChaCha8Rng {
    let mut key = blake3::Hasher::new_derive_key("iota 2026 initial weights");
    key.update(&seed.to_le_bytes())
        .update(tensor.name().as_bytes());
    ChaCha8Rng::from_seed(key.finalize().into())
}

fn normals(generator: &mut ChaCha8Rng, standard_deviation: f64, out: &mut [f32]) {
    for pair in out.chunks_mut(2) {
        // In (0, 1], so that its logarithm is finite.
        let radius = (-2.0 * libm::log(1.0 - uniform(generator))).sqrt() * standard_deviation;
        let angle = std::f64::consts::TAU * uniform(generator);
        let normals = [radius * libm::cos(angle), radius * libm::sin(angle)];
        pair.iter_mut()
            .zip(normals)
            .for_each(|(out, normal)| *out = normal as f32);
    }
}

/// In [0, 1), of 53 bits.
fn uniform(generator: &mut ChaCha8Rng) -> f64 {
    (generator.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use iota_model::{StagePlan, TensorId, preset};

    use super::*;

    fn embedding(seed: u64) -> Vec<f32> {
        let layout = StagePlan::new(&preset("testnet").unwrap(), 1)
            .unwrap()
            .layout(0);
        let tensor = layout.find(TensorId::Embedding).unwrap();
        let mut out = vec![0.0; tensor.elements()];
        initialise(tensor, seed, |range, values| {
            out[range].copy_from_slice(values);
            Ok(())
        })
        .unwrap();
        out
    }

    #[test]
    fn weights_are_normal_with_the_standard_deviation_of_their_tensor() {
        let weights = embedding(1);
        let count = weights.len() as f64;
        let moment = |power: i32| {
            weights
                .iter()
                .map(|&w| f64::from(w).powi(power))
                .sum::<f64>()
                / count
        };
        assert!(moment(1).abs() < 3.0 * 0.02 / count.sqrt());
        assert!((moment(2).sqrt() / 0.02 - 1.0).abs() < 0.01);
        assert!(
            (moment(4) / moment(2).powi(2) - 3.0).abs() < 0.1,
            "a normal distribution has a kurtosis of 3"
        );
    }

    #[test]
    fn a_seed_always_gives_the_same_bits() {
        assert_eq!(embedding(7), embedding(7));
        assert_ne!(embedding(7), embedding(8));
        // Fixed here, so that a change of generator, library or platform is noticed: runs could not be resumed.
        let first: Vec<u32> = embedding(7)[..4]
            .iter()
            .map(|weight| weight.to_bits())
            .collect();
        assert_eq!(first, FIRST_BITS_OF_SEED_7);
    }

    const FIRST_BITS_OF_SEED_7: [u32; 4] =
        [3_174_156_277, 3_108_869_434, 3_176_401_782, 3_155_552_912];
}
