//! What a peer of a stage needs in memory, and whether it is there.

use iota_compute::MemoryPlan;
use iota_protocol::StageIndex;
use iota_run::Description;

use crate::Error;
use crate::device::Device;
use crate::engine::{KEPT_MAX, merging_bytes, stage_options};

/// Memory of a miner of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerMemory {
    /// Of the stage itself.
    pub stage: MemoryPlan,
    /// The checkpoint that what is learned is relative to, what is made up for, and what an audit may ask for.
    pub merging_bytes: u64,
    /// A stage's parameters and moments once more: encoded for an upload, or fetched for an install.
    pub transfer_bytes: u64,
}

impl PeerMemory {
    /// For a stage that keeps as many forward passes as an engine ever does.
    ///
    /// # Errors
    /// If the run has no such stage.
    pub fn new(
        description: &Description,
        index: StageIndex,
        threads: usize,
    ) -> Result<Self, Error> {
        let options = stage_options(description, threads);
        let tokens = description.sample_tokens();
        // Beside those that are kept there is the one that is being made.
        let waiting = KEPT_MAX as u64 + 1;
        let index = usize::from(index.get());
        let stage = MemoryPlan::new(&description.plan()?, index, &options, tokens, waiting)?;
        let elements = stage.parameters_bytes / size_of::<f32>() as u64;
        Ok(Self {
            stage,
            merging_bytes: merging_bytes(&description.merge, elements),
            transfer_bytes: stage.parameters_bytes + stage.optimizer_bytes,
        })
    }

    /// The same on a device, within what the device and the host have. The bytes of the stage are then the device's, and
    /// those of transfers the host's.
    ///
    /// # Errors
    /// If the run has no such stage; [`Error::Memory`] if it does not fit, even if it keeps no forward pass.
    pub fn planned(
        device: &Device,
        description: &Description,
        index: StageIndex,
        threads: usize,
        host_limit_bytes: Option<u64>,
    ) -> Result<Self, Error> {
        let all = match device {
            Device::Cpu => Self::new(description, index, threads)?,
            #[cfg(feature = "cuda")]
            Device::Cuda(card) => {
                return Self::planned_on_card(card, description, index, host_limit_bytes);
            }
        };
        match host_limit_bytes {
            None => Ok(all),
            Some(limit_bytes) => all.within(limit_bytes).ok_or_else(|| Error::Memory {
                stage: index,
                needed_bytes: all.least().total_bytes(),
                limit_bytes,
            }),
        }
    }

    #[cfg(feature = "cuda")]
    fn planned_on_card(
        card: &iota_cuda::Card,
        description: &Description,
        index: StageIndex,
        host_limit_bytes: Option<u64>,
    ) -> Result<Self, Error> {
        let too_little = |needed_bytes, limit_bytes| Error::Memory {
            stage: index,
            needed_bytes,
            limit_bytes,
        };
        let stage = iota_cuda::memory_plan(
            &description.plan()?,
            usize::from(index.get()),
            &stage_options(description, 1),
            description.sample_tokens(),
            KEPT_MAX as u64 + 1,
        )?;
        let on_card = Self {
            stage,
            merging_bytes: 0,
            transfer_bytes: 0,
        };
        let free_bytes = card.free_bytes().map_err(iota_compute::Error::from)?;
        let planned = on_card
            .within(free_bytes)
            .ok_or_else(|| too_little(on_card.least().total_bytes(), free_bytes))?;
        let transfer_bytes = stage.parameters_bytes + stage.optimizer_bytes;
        let elements = stage.parameters_bytes / size_of::<f32>() as u64;
        let merging_bytes = merging_bytes(&description.merge, elements);
        let on_host = merging_bytes + transfer_bytes;
        match host_limit_bytes {
            Some(limit_bytes) if limit_bytes < on_host => Err(too_little(on_host, limit_bytes)),
            _ => Ok(Self {
                merging_bytes,
                transfer_bytes,
                ..planned
            }),
        }
    }

    /// All of it.
    pub const fn total_bytes(&self) -> u64 {
        self.stage.total_bytes() + self.merging_bytes + self.transfer_bytes
    }

    /// The most that fits: with fewer kept forward passes, if need be. None if not even one fits.
    #[must_use]
    pub fn within(self, limit_bytes: u64) -> Option<Self> {
        let room = limit_bytes.checked_sub(self.merging_bytes + self.transfer_bytes)?;
        let waiting = self.stage.waiting_within(room)?;
        Some(Self {
            stage: MemoryPlan {
                waiting,
                ..self.stage
            },
            ..self
        })
    }

    /// The least that a miner of the stage can do with: it keeps nothing, and every backward pass redoes its forward.
    #[must_use]
    pub const fn least(self) -> Self {
        Self {
            stage: MemoryPlan {
                waiting: 1,
                ..self.stage
            },
            ..self
        }
    }

    /// Forward passes that an engine may keep.
    pub const fn kept_max(&self) -> usize {
        self.stage.waiting as usize - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::description;

    #[test]
    fn less_room_keeps_fewer_forwards_and_too_little_is_none() {
        let index = StageIndex::new(1);
        let all = PeerMemory::new(&description(), index, 1).unwrap();
        assert_eq!(all.kept_max(), KEPT_MAX);
        assert_eq!(all.within(u64::MAX), Some(all));
        let less = all.within(all.total_bytes() - 1).unwrap();
        assert_eq!(less.kept_max(), KEPT_MAX - 1);
        let least = all.least();
        assert_eq!(all.within(least.total_bytes()).unwrap().kept_max(), 0);
        assert_eq!(all.within(least.total_bytes() - 1), None);
    }
}
