//! What a stage has learned, as flat slices.

/// A stage's parameters and optimizer state, to read. The slices have one length, and the stage's layout is their map.
#[derive(Debug, Clone, Copy)]
pub struct State<'a> {
    /// Steps that the optimizer has taken.
    pub optimizer_steps: u64,
    /// f32 master weights.
    pub parameters: &'a [f32],
    /// The optimizer's running mean of the gradient.
    pub first_moment: &'a [f32],
    /// The optimizer's running mean of the squared gradient; zeros for tensors whose update rule has none.
    pub second_moment: &'a [f32],
}

/// A stage's parameters and optimizer state, to write: by a merge, or a checkpoint.
#[derive(Debug)]
pub struct StateMut<'a> {
    /// Steps that the optimizer has taken.
    pub optimizer_steps: &'a mut u64,
    /// f32 master weights.
    pub parameters: &'a mut [f32],
    /// The optimizer's running mean of the gradient.
    pub first_moment: &'a mut [f32],
    /// The optimizer's running mean of the squared gradient; zeros for tensors whose update rule has none.
    pub second_moment: &'a mut [f32],
}

impl State<'_> {
    /// BLAKE3 over the steps (u64) and the three slices (f32), all little-endian.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = StateHasher::new(self.optimizer_steps);
        for slice in [self.parameters, self.first_moment, self.second_moment] {
            hasher.update(slice);
        }
        hasher.finish()
    }
}

/// Makes [`State::digest`] from the slices in any pieces.
pub(crate) struct StateHasher {
    hasher: blake3::Hasher,
    bytes: Vec<u8>,
}

impl StateHasher {
    pub(crate) fn new(optimizer_steps: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&optimizer_steps.to_le_bytes());
        Self {
            hasher,
            bytes: Vec::with_capacity(4 * HASHED_AT_A_TIME),
        }
    }

    pub(crate) fn update(&mut self, values: &[f32]) {
        for chunk in values.chunks(HASHED_AT_A_TIME) {
            self.bytes.clear();
            self.bytes
                .extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
            self.hasher.update(&self.bytes);
        }
    }

    pub(crate) fn finish(&self) -> [u8; 32] {
        self.hasher.finalize().into()
    }
}

/// 64 KiB, which keeps all of BLAKE3's vector lanes busy.
const HASHED_AT_A_TIME: usize = 16 * 1024;
