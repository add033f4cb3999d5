//! Tensors like those that travel, from whole-number arithmetic and a sum: the same on every machine.

/// Numbers between 0 and 1 that follow from `seed`.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn uniform(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }

    /// Mean 0, deviation 1, very nearly Gaussian: twelve uniform numbers.
    pub(crate) fn gaussian(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }
}

/// Every value Gaussian with deviation 1.
pub(crate) fn gaussian(tokens: usize, channels: usize) -> Vec<f32> {
    let mut numbers = Numbers::new(1);
    (0..tokens * channels).map(|_| numbers.gaussian()).collect()
}

/// As [`gaussian`], but three channels of every token are 30, 50 and 100 times as large, as in trained transformers.
pub(crate) fn outlier_channels(tokens: usize, channels: usize) -> Vec<f32> {
    let mut values = gaussian(tokens, channels);
    for row in values.chunks_exact_mut(channels) {
        for (channel, factor) in [(1, 30.0), (channels / 2, 50.0), (channels - 2, 100.0)] {
            row[channel] *= factor;
        }
    }
    values
}

/// Heavy tails everywhere: a Gaussian over the root of a uniform number, whose variance is infinite.
pub(crate) fn heavy_tails(tokens: usize, channels: usize) -> Vec<f32> {
    let mut numbers = Numbers::new(2);
    let mut next = || numbers.gaussian() / (numbers.uniform() + 1e-6).sqrt();
    (0..tokens * channels).map(|_| next()).collect()
}

/// 4 bits without a rotation: as [`Codec::Int4`](iota_codec::Codec::Int4) but for that (and for scales in f32).
pub(crate) fn plain_int4(values: &[f32], channels: usize) -> Vec<f32> {
    let mut numbers = Numbers::new(3);
    let mut decoded = Vec::with_capacity(values.len());
    for tile in values.chunks_exact(channels).flat_map(|row| row.chunks(64)) {
        let largest = tile.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
        let step = largest / 7.0;
        decoded.extend(
            tile.iter()
                .map(|value| (value / step + numbers.uniform()).floor() * step),
        );
    }
    decoded
}

/// The length of the difference over the length of the values.
pub(crate) fn relative_error(values: &[f32], decoded: &[f32]) -> f64 {
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let mut differences = values
        .iter()
        .zip(decoded)
        .map(|(a, b)| f64::from(*a) - f64::from(*b));
    length(&mut differences) / length(&mut values.iter().map(|x| f64::from(*x)))
}
