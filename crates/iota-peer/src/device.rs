//! What a peer computes on, and a stage there.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
#[cfg(feature = "cuda")]
use std::sync::Arc;

use iota_compute::{Cpu, Input, Outgoing, Result, Saved, Stage, StageOptions};
#[cfg(feature = "cuda")]
use iota_cuda::{Card, Cuda};
use iota_model::StagePlan;

use crate::Error;

/// A device by its name, as an operator writes it: `cpu`, or `cuda:0` for the first card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// A card of NVIDIA's, counted from 0.
    Cuda(usize),
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        if name == "cpu" {
            return Ok(Self::Cpu);
        }
        let ordinal = match name.strip_prefix("cuda") {
            Some("") => Some(0),
            Some(rest) => rest.strip_prefix(':').and_then(|rest| rest.parse().ok()),
            None => None,
        };
        ordinal.map(Self::Cuda).ok_or(UnknownDevice)
    }
}

/// What was written names no device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a device is cpu, cuda or cuda:N with N from 0")]
pub struct UnknownDevice;

/// A device that is there. Clones are handles to the same one.
#[derive(Debug, Clone, Default)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A card.
    #[cfg(feature = "cuda")]
    Cuda(Arc<Card>),
}

impl Device {
    /// Opens the device. `compiled`: a folder with kernels for cards, where they cannot be compiled.
    ///
    /// # Errors
    /// [`Error::Device`] if it is not there, or this program was built without what it takes to use it.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(unused_variables, reason = "only cards have kernels")
    )]
    pub fn open(name: DeviceName, compiled: Option<&std::path::Path>) -> Result<Self, Error> {
        match name {
            DeviceName::Cpu => Ok(Self::Cpu),
            #[cfg(feature = "cuda")]
            DeviceName::Cuda(ordinal) => match Card::open(ordinal, compiled) {
                Ok(card) => Ok(Self::Cuda(card)),
                Err(source) => Err(Error::Device {
                    name,
                    source: Box::new(source),
                }),
            },
            #[cfg(not(feature = "cuda"))]
            DeviceName::Cuda(_) => Err(Error::Device {
                name,
                source: "this program was built without the feature \"cuda\"".into(),
            }),
        }
    }
}

/// Does the same with a stage on any device.
macro_rules! on_any {
    ($of:expr, $stage:ident => $result:expr) => {
        match $of {
            DeviceStage::Cpu($stage) => $result,
            #[cfg(feature = "cuda")]
            DeviceStage::Cuda($stage) => $result,
        }
    };
}

/// A [`Stage`] on a device that is known when the program runs.
#[derive(Debug)]
pub(crate) enum DeviceStage {
    Cpu(Box<Stage<Cpu>>),
    #[cfg(feature = "cuda")]
    Cuda(Box<Stage<Cuda>>),
}

/// What its forward pass has left.
#[derive(Debug)]
pub(crate) enum DeviceSaved {
    Cpu(Saved<Cpu>),
    #[cfg(feature = "cuda")]
    Cuda(Saved<Cuda>),
}

/// What one of its passes gives, on its way to the host.
#[derive(Debug)]
pub(crate) enum DeviceOutgoing {
    Cpu(Outgoing<Cpu>),
    #[cfg(feature = "cuda")]
    Cuda(Outgoing<Cuda>),
}

impl DeviceStage {
    pub(crate) fn new(
        device: &Device,
        plan: &StagePlan,
        index: usize,
        options: StageOptions,
    ) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::Cpu(Box::new(Stage::new(plan, index, options)?))),
            #[cfg(feature = "cuda")]
            Device::Cuda(card) => {
                let cuda = Cuda::on(card.clone(), options.precision);
                let stage = Stage::on(cuda, plan, index, options.optimizer)?;
                Ok(Self::Cuda(Box::new(
                    stage.with_recompute(options.recompute),
                )))
            }
        }
    }

    pub(crate) fn plan(&self) -> &StagePlan {
        on_any!(self, stage => stage.plan())
    }

    pub(crate) fn elements(&self) -> usize {
        on_any!(self, stage => stage.layout().elements())
    }

    pub(crate) fn optimizer_steps(&self) -> u64 {
        on_any!(self, stage => stage.optimizer_steps())
    }

    pub(crate) fn set_optimizer_steps(&mut self, steps: u64) {
        on_any!(self, stage => stage.set_optimizer_steps(steps));
    }

    pub(crate) fn initialise(&mut self, seed: u64) -> Result<()> {
        on_any!(self, stage => stage.initialise(seed))
    }

    pub(crate) fn zero_gradients(&mut self) -> Result<()> {
        on_any!(self, stage => stage.zero_gradients())
    }

    /// As if the optimizer had never stepped.
    pub(crate) fn forget_moments(&mut self) -> Result<()> {
        on_any!(self, stage => stage.forget_moments())
    }

    pub(crate) fn upload_state(&mut self, start: usize, planes: [&[f32]; 3]) -> Result<()> {
        on_any!(self, stage => stage.upload_state(start, planes))
    }

    /// Parameters, first and second moment: where they are, or copied from a card.
    pub(crate) fn state(&self, range: Range<usize>) -> Result<[Cow<'_, [f32]>; 3]> {
        match self {
            Self::Cpu(stage) => {
                let state = stage.state();
                let planes = [state.parameters, state.first_moment, state.second_moment];
                Ok(planes.map(|plane| Cow::Borrowed(&plane[range.clone()])))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(stage) => Ok(stage.download_state(range)?.map(Cow::Owned)),
        }
    }

    pub(crate) fn digest(&self) -> Result<[u8; 32]> {
        match self {
            Self::Cpu(stage) => Ok(stage.digest()),
            #[cfg(feature = "cuda")]
            Self::Cuda(stage) => stage.download_digest(),
        }
    }

    /// Whether the device works on its own, so that it pays to begin a pass before what the last one gives is waited for.
    pub(crate) const fn passes_overlap(&self) -> bool {
        match self {
            Self::Cpu(_) => false,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => true,
        }
    }

    pub(crate) fn begin_forward(
        &mut self,
        input: Input<'_>,
    ) -> Result<(DeviceOutgoing, DeviceSaved)> {
        match self {
            Self::Cpu(stage) => {
                let (output, saved) = stage.begin_forward(input)?;
                Ok((DeviceOutgoing::Cpu(output), DeviceSaved::Cpu(saved)))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(stage) => {
                let (output, saved) = stage.begin_forward(input)?;
                Ok((DeviceOutgoing::Cuda(output), DeviceSaved::Cuda(saved)))
            }
        }
    }

    pub(crate) fn forward_again(&mut self, input: Input<'_>) -> Result<DeviceSaved> {
        match self {
            Self::Cpu(stage) => stage.forward_again(input).map(DeviceSaved::Cpu),
            #[cfg(feature = "cuda")]
            Self::Cuda(stage) => stage.forward_again(input).map(DeviceSaved::Cuda),
        }
    }

    pub(crate) fn begin_backward(
        &mut self,
        saved: DeviceSaved,
        output_gradient: &[f32],
    ) -> Result<Option<DeviceOutgoing>> {
        match (self, saved) {
            (Self::Cpu(stage), DeviceSaved::Cpu(saved)) => {
                let gradient = stage.begin_backward(saved, output_gradient)?;
                Ok(gradient.map(DeviceOutgoing::Cpu))
            }
            #[cfg(feature = "cuda")]
            (Self::Cuda(stage), DeviceSaved::Cuda(saved)) => {
                let gradient = stage.begin_backward(saved, output_gradient)?;
                Ok(gradient.map(DeviceOutgoing::Cuda))
            }
            #[cfg(feature = "cuda")]
            _ => Err(iota_compute::Error::ForeignSaved),
        }
    }

    pub(crate) fn begin_forward_backward_loss(
        &mut self,
        input: Input<'_>,
        targets: &[u32],
    ) -> Result<(f32, Option<DeviceOutgoing>)> {
        match self {
            Self::Cpu(stage) => {
                let (loss, gradient) = stage.begin_forward_backward_loss(input, targets)?;
                Ok((loss, gradient.map(DeviceOutgoing::Cpu)))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(stage) => {
                let (loss, gradient) = stage.begin_forward_backward_loss(input, targets)?;
                Ok((loss, gradient.map(DeviceOutgoing::Cuda)))
            }
        }
    }

    /// Waits for what a pass gives.
    pub(crate) fn arrive(&mut self, outgoing: DeviceOutgoing) -> Result<Vec<f32>> {
        match (self, outgoing) {
            (Self::Cpu(stage), DeviceOutgoing::Cpu(outgoing)) => stage.arrive(outgoing),
            #[cfg(feature = "cuda")]
            (Self::Cuda(stage), DeviceOutgoing::Cuda(outgoing)) => stage.arrive(outgoing),
            #[cfg(feature = "cuda")]
            _ => Err(iota_compute::Error::ForeignSaved),
        }
    }

    pub(crate) fn step(&mut self, learning_rate: f32, backwards: u32) -> Result<()> {
        on_any!(self, stage => stage.step(learning_rate, backwards).map(drop))
    }

    /// The stage, which is on a CPU.
    #[cfg(test)]
    pub(crate) fn cpu(&mut self) -> &mut Stage<Cpu> {
        match self {
            Self::Cpu(stage) => stage,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => panic!("the stage is on a card"),
        }
    }

    /// Takes back what a forward pass has left, if it is one of this stage's.
    pub(crate) fn discard(&mut self, saved: DeviceSaved) {
        match (self, saved) {
            (Self::Cpu(stage), DeviceSaved::Cpu(saved)) => stage.discard(saved),
            #[cfg(feature = "cuda")]
            (Self::Cuda(stage), DeviceSaved::Cuda(saved)) => stage.discard(saved),
            #[cfg(feature = "cuda")]
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_is_printed_and_nothing_else_is_one() {
        for name in [DeviceName::Cpu, DeviceName::Cuda(0), DeviceName::Cuda(7)] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda0", "cuda:-1", "cuda:x", "cpu:0"] {
            assert_eq!(wrong.parse::<DeviceName>(), Err(UnknownDevice), "{wrong}");
        }
    }

    /// Without a driver, or without the feature: either way it is said which device, and why.
    #[test]
    fn a_card_that_is_not_there_is_refused_by_name() {
        let name = DeviceName::Cuda(4_000);
        let error = Device::open(name, None).unwrap_err();
        let Error::Device { name: refused, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*refused, name);
        assert!(std::error::Error::source(&error).is_some());
    }
}
