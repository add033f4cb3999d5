//! Stage compute: explicit forward and backward of Llama-style stages over flat buffers.
//!
//! A [`Stage`] holds a stretch of a model and goes forward, back, and a step ahead:
//!
//! ```text
//!   tokens ------.                                               .------ targets
//!                v                                               v
//!        +--------------+   activation   +--------------+   +--------------+
//!        | head         | -------------> | body         |-->| tail         |--> loss
//!        |  forward     | [tokens, b]    |  forward     |   |  forward     |
//!        |  backward    | <------------- |  backward    |<--|  and backward|
//!        |  step        |   gradient     |  step        |   |  step        |
//!        +--------------+                +--------------+   +--------------+
//!          parameters | gradients | first moment | second moment      flat f32 slices of one length each
//! ```
//!
//! The forward and backward passes are written out, over a small set of operations ([`Backend`]); there is no tape. What a
//! backward pass needs is in the [`Saved`] value that its forward pass returns.
//!
//! **The same bits.** On a CPU a stage computes the same bits for any number of threads, with any vector instructions, and
//! the stages of a model that is cut compute the same bits as the uncut model: an auditor can recompute a miner's work and
//! compare digests. `tests/` shows it.
//!
//! ```
//! use iota_compute::{Input, Stage, StageOptions};
//! use iota_model::{StagePlan, preset};
//!
//! let plan = StagePlan::new(&preset("tiny")?, 2)?;
//! let mut head = Stage::new(&plan, 0, StageOptions::default())?;
//! let mut tail = Stage::new(&plan, 1, StageOptions::default())?;
//! head.initialise(1)?;
//! tail.initialise(1)?;
//!
//! let text: Vec<u32> = b"a miner holds a stage, not a mind".map(u32::from).to_vec();
//! let (tokens, targets) = (&text[..32], &text[1..]);
//! let mut losses = Vec::new();
//! for _ in 0..20 {
//!     let (activation, saved) = head.forward(Input::Tokens(tokens))?;
//!     let (loss, gradient) = tail.forward_backward_loss(Input::Activation(&activation), targets)?;
//!     head.backward(saved, &gradient.expect("a tail has a stage before it"))?;
//!     head.step(0.01, 1)?;
//!     tail.step(0.01, 1)?;
//!     losses.push(loss);
//! }
//! assert!(losses[19] < losses[0] - 1.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | concern |
//! |---|---|
//! | [`stage`] | [`Stage`]: passes through a stretch of a model, steps |
//! | [`backend`] | [`Backend`]: the operations, and the seam to a device |
//! | [`cpu`] | [`Cpu`]: the operations on a CPU |
//! | [`optimizer`], [`initialise`](Stage::initialise), [`state`] | AdamW, NAdam, Muon and clipping; initial weights; flat state and its digest |
//! | [`memory`], [`measure`] | [`MemoryPlan`]: what a stage needs, counted before it is there; what a model's pieces cost here, to cut it by |
//! | [`timed`] | where the time of a stage goes |
//! | [`mod@drift`] | how far two devices are apart that do the same work: what tolerances are made of |
//! | [`mod@reference`] | the same model as a plain composition of candle's tensors, with its autograd: the oracle |
//!
//! What it does *not* know: samples, peers, files, tokenizers, learning-rate schedules, and who asked for the work.

pub mod backend;
pub mod cpu;
pub mod drift;
mod error;
mod initialise;
pub mod measure;
pub mod memory;
pub mod optimizer;
mod recycler;
pub mod reference;
pub mod stage;
pub mod state;
pub mod timed;

pub use backend::Backend;
pub use cpu::{Cpu, InstructionSet};
pub use drift::{Distance, drift};
pub use error::{Error, Result};
pub use initialise::initialise;
pub use measure::measure_costs;
pub use memory::MemoryPlan;
pub use optimizer::{
    AdamW, Beta1, Muon, NAdam, OptimizerSettings, StepSummary, UpdateRule, UpdateScale,
};
pub use stage::{Input, Outgoing, Recompute, Saved, Stage, StageOptions};
pub use state::{State, StateMut};
