//! Passes that have been begun, and what they come to.
//!
//! A device that works on its own may compute one pass while the host still encodes what the last one gave. Everything that
//! decides the bits is in the order in which passes are *begun*: ordinals, steps, which forwards are kept. When they are
//! finished decides nothing, so a replay may do it at another time.

use bytes::Bytes;
use iota_protocol::SampleId;
use iota_protocol::event::Direction;

use super::{BackwardResult, Engine, Kept};
use crate::Error;
use crate::device::DeviceOutgoing;

/// A forward pass that has its place in the order of operations, whose output may still be being computed.
#[derive(Debug)]
pub struct BegunForward {
    pub(super) sample: SampleId,
    pub(super) ordinal: u32,
    pub(super) output: DeviceOutgoing,
}

/// The same of a backward pass.
#[derive(Debug)]
pub struct BegunBackward {
    pub(super) sample: SampleId,
    pub(super) ordinal: u32,
    pub(super) recomputed: bool,
    pub(super) loss: Option<f32>,
    pub(super) gradient: Option<DeviceOutgoing>,
}

impl Engine {
    /// Whether its device works on its own, so that it pays to begin a pass before the last one is finished.
    pub const fn passes_overlap(&self) -> bool {
        self.stage.passes_overlap()
    }

    /// Waits for a forward pass, and encodes what it gives. For before the next checkpoint is installed.
    ///
    /// # Errors
    /// If the output is not finite, or the device fails: as [`forward`](Self::forward).
    pub fn finish_forward(&mut self, begun: BegunForward) -> Result<(u32, Bytes), Error> {
        let BegunForward {
            sample,
            ordinal,
            output,
        } = begun;
        let output = self.stage.arrive(output).map_err(Error::from);
        let encoded = output.and_then(|output| self.encode(sample, Direction::Forward, &output));
        if encoded.is_err() {
            // Unless another forward of the sample has been begun since.
            let is_its = |kept: &Kept| kept.ordinal == ordinal;
            if self.kept.get(&sample).is_some_and(is_its) {
                self.discard(sample);
            }
        }
        Ok((ordinal, encoded?))
    }

    /// Waits for a backward pass, and encodes what it gives. For before the next checkpoint is installed.
    ///
    /// # Errors
    /// If the gradient is not finite, or the device fails: as [`backward`](Self::backward).
    pub fn finish_backward(&mut self, begun: BegunBackward) -> Result<BackwardResult, Error> {
        let gradient = match begun.gradient {
            Some(gradient) => {
                let gradient = self.stage.arrive(gradient)?;
                Some(self.encode(begun.sample, Direction::Backward, &gradient)?)
            }
            None => None,
        };
        Ok(BackwardResult {
            ordinal: begun.ordinal,
            recomputed: begun.recomputed,
            gradient,
            loss: begun.loss,
        })
    }
}
