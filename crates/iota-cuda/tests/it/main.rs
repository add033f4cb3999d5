//! A card's operations without a card: the kernels' own sources run on the CPU, thread by thread.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in helpers too"
)]

/// The code that calls NVIDIA's driver and libraries, with stand-ins for them.
#[cfg(feature = "cuda")]
mod card;
/// How far kernels and CPU come apart while a model trains on both.
mod drift;
/// A driver whose card is the C++ compiler.
mod emulator;
/// Factors are rounded once, and again when they have changed.
mod factors;
/// Attention by fused kernels, and by products.
mod fused;
/// What tensor cores do, as it is documented.
mod instructions;
/// Memory is planned, and what does not fit is an error.
mod memory;
/// Every operation is what its definition says, in f32 and in bf16.
mod operations;
/// Passes that overlap give the same bits.
mod overlap;
/// A whole stage learns as it does on the CPU.
mod stage;
