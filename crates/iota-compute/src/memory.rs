//! How much memory a stage needs.

use iota_model::StagePlan;

/// Memory of a stage, in bytes, for a sample of a given number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Parameters, gradients and two moments: always held.
    pub state_bytes: u64,
    /// One forward pass that waits for its backward pass: exact.
    pub saved_bytes: u64,
    /// Used in passing by a forward or a backward pass, at most.
    pub scratch_bytes: u64,
}

impl MemoryEstimate {
    /// For one stage of a plan.
    ///
    /// # Panics
    /// If there is no stage of this index.
    pub fn new(plan: &StagePlan, stage: usize, sample_tokens: usize) -> Self {
        let config = plan.config();
        let span = &plan.stages()[stage];
        let (width, packed) = (
            config.width as u64,
            (config.width + 2 * config.key_value_width()) as u64,
        );
        let (gate_up, rows) = (2 * config.feed_forward as u64, sample_tokens as u64);
        // Between the two layers of either end of a boundary, where they have two.
        let hidden = config.boundary.hidden_channels().unwrap_or(0) as u64;
        let saved_per_row: u64 = span
            .blocks
            .clone()
            .map(|block| {
                let received = if plan.receives_bottleneck(block) {
                    plan.boundary_width() as u64 + hidden
                } else {
                    0
                };
                let uncoded = if plan.sends_bottleneck(block) {
                    width + hidden
                } else {
                    0
                };
                received + 5 * width + 2 + packed + config.heads as u64 + gate_up + uncoded
            })
            .sum();
        // At most: the residual gradient, hidden channels, packed gradient, and three more of the full width;
        // a boundary's hidden channels.
        let scratch_per_row = 4 * width + gate_up / 2 + packed + hidden;
        let bytes = |elements: u64| elements * size_of::<f32>() as u64;
        Self {
            state_bytes: bytes(4 * plan.layout(stage).elements() as u64),
            saved_bytes: bytes(saved_per_row * rows),
            scratch_bytes: bytes(scratch_per_row * rows),
        }
    }

    /// With this many forward passes waiting for their backward passes.
    pub const fn total_bytes(&self, waiting: u64) -> u64 {
        self.state_bytes + self.saved_bytes * waiting + self.scratch_bytes
    }
}
