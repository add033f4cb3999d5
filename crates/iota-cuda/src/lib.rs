//! The stage step on NVIDIA GPUs.
//!
//! ```text
//!   Stage<Cuda> ---- operations, shapes ----> Cuda ---- kernels, products, copies ----> dyn Driver
//!   (iota-compute)                             |                                          |
//!                               scratch space, buffers, views,           Card: driver, cuBLAS, NVRTC, three streams
//!                               landings for what passes are given       Planner: counts memory and costs
//!                                                                        the tests' emulator: the kernels on the CPU
//! ```
//!
//! [`Cuda`] is one more [`Backend`](iota_compute::Backend): what each operation of a stage is on a card, which kernels with
//! which arguments, and which matrix products. All of it goes through a [`Driver`], a dozen primitive requests to a card.
//! So everything but those requests runs in the tests, without a card: they compile the kernels' own sources with the host's
//! C++ compiler and run them thread by thread. The feature `cuda` adds `Card`, which is a real one; it needs no CUDA toolkit
//! to build and no driver to start. `docs/CUDA.md` says how to use it, and what no card has confirmed.
//!
//! ```
//! use iota_compute::StageOptions;
//! use iota_model::{StagePlan, preset};
//!
//! // What a miner of the second of ten stages needs on its card, for samples of 800 tokens of which 4 are on their way.
//! let plan = StagePlan::new(&preset("15B")?, 10)?;
//! let memory = iota_cuda::memory_plan(&plan, 1, &StageOptions::default(), 800, 4)?;
//! assert!(memory.total_bytes() < 80 << 30);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | concern |
//! |---|---|
//! | `device` | [`Cuda`]: what operations have at hand |
//! | `backend`, `attention`, `loss` | the operations |
//! | `memory`, `factors` | buffers, views, scratch space; what buffers are as factors of products |
//! | `copies` | what goes to and from the host beside the passes |
//! | [`driver`] | [`Driver`]: what is asked of a card |
//! | [`kernels`] | the kernels' sources and names |
//! | `planner`, `costs` | [`memory_plan`]: what a stage needs, before it is there; [`step_costs`]: what a step asks for |
//! | [`conformance`] | what every device must compute, beside its definition in f64 |
//! | `card` | `Card`, with the feature `cuda`: a real one |
//!
//! What it does *not* know: the model, the order of a pass, the optimizers' rules (all in iota-compute), and who asked for
//! the work.

mod attention;
mod backend;
#[cfg(feature = "cuda")]
mod card;
pub mod conformance;
mod copies;
mod costs;
mod device;
pub mod driver;
mod error;
mod factors;
pub mod kernels;
mod loss;
mod memory;
mod planner;

pub use attention::AttentionPath;
#[cfg(feature = "cuda")]
pub use card::{Card, CardInfo};
pub use copies::{Download, Indices};
pub use costs::Cost;
pub use device::{Cuda, Pieces};
pub use driver::Driver;
pub use error::{Error, Result};
pub use memory::{Buffer, View, ViewMut};
pub use planner::{Planner, memory_plan, step_costs};
