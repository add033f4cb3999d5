//! A card without a card: it counts the memory that a pass takes, and what it asks for.

#![expect(unsafe_code, reason = "it stands in for a driver")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use iota_compute::memory::MemoryCount;
use iota_compute::{MemoryPlan, StageOptions};
use iota_model::StagePlan;

use crate::costs::{self, Cost, Tally};
use crate::device::Cuda;
use crate::driver::{Address, Driver, Launch, Multiplication, Ticket};
use crate::error::Result;

/// A [`Driver`] that takes no memory and computes nothing, but counts. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Planner {
    held_bytes: Arc<AtomicU64>,
    held_bytes_max: Arc<AtomicU64>,
    tally: Arc<Mutex<Tally>>,
}

/// What a card takes for allocations that are not small: the driver hands out pages of 2 MiB.
const PAGE_BYTES: u64 = 2 << 20;

/// What a card really takes for an allocation. Small ones share a page.
const fn taken_bytes(bytes: usize) -> u64 {
    let bytes = bytes as u64;
    if bytes < PAGE_BYTES {
        bytes.next_multiple_of(crate::memory::ALIGNMENT as u64)
    } else {
        bytes.next_multiple_of(PAGE_BYTES)
    }
}

impl Planner {
    fn tally(&self, cost: Cost) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.add(cost);
    }
}

impl MemoryCount for Planner {
    fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    fn held_bytes_max(&self) -> u64 {
        self.held_bytes_max.load(Ordering::Relaxed)
    }

    /// Scratch space is allocated like everything else.
    fn in_use_bytes_max(&self) -> u64 {
        self.held_bytes_max()
    }
}

/// Memory of a stage on a card, in bytes. Not in it: what the driver takes for itself before there is a stage (its
/// context, the kernels, cuBLAS's workspace), so compare it with the memory that is free afterwards.
///
/// # Errors
/// As [`MemoryPlan::new`].
pub fn memory_plan(
    plan: &StagePlan,
    index: usize,
    options: &StageOptions,
    sample_tokens: usize,
    waiting: u64,
) -> iota_compute::Result<MemoryPlan> {
    Ok(count(plan, index, options, sample_tokens, waiting)?.0)
}

/// What a forward pass, a backward pass and a step of a stage ask of a card: what moves most comes first.
///
/// # Errors
/// As [`MemoryPlan::new`].
pub fn step_costs(
    plan: &StagePlan,
    index: usize,
    options: &StageOptions,
    sample_tokens: usize,
) -> iota_compute::Result<Vec<Cost>> {
    let (_, planner) = count(plan, index, options, sample_tokens, 1)?;
    let mut tally = planner.tally.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(tally.take())
}

fn count(
    plan: &StagePlan,
    index: usize,
    options: &StageOptions,
    sample_tokens: usize,
    waiting: u64,
) -> iota_compute::Result<(MemoryPlan, Planner)> {
    let planner = Planner::default();
    let device = Cuda::on(Arc::new(planner.clone()), options.precision);
    let memory = MemoryPlan::counted(
        (device, &planner),
        plan,
        index,
        options,
        sample_tokens,
        waiting,
    )?;
    Ok((memory, planner))
}

// SAFETY: it touches no memory but the slices that it is given.
unsafe impl Driver for Planner {
    fn allocate(&self, bytes: usize) -> Result<Address> {
        let taken = taken_bytes(bytes);
        let held = self.held_bytes.fetch_add(taken, Ordering::Relaxed) + taken;
        self.held_bytes_max.fetch_max(held, Ordering::Relaxed);
        Ok(Address(crate::memory::ALIGNMENT as u64))
    }

    unsafe fn release(&self, _: Address, bytes: usize) {
        self.held_bytes
            .fetch_sub(taken_bytes(bytes), Ordering::Relaxed);
    }

    /// New buffers are zeroed once: no part of a pass.
    unsafe fn zero(&self, _: Address, _: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn upload(&self, _: Address, _: &[u8]) -> Result<()> {
        Ok(())
    }

    unsafe fn download(&self, to: &mut [u8], _: Address) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    fn mark(&self) -> Result<Ticket> {
        Ok(Ticket(0))
    }

    unsafe fn begin_upload(&self, _: Address, _: &[u8], _: Option<Ticket>) -> Result<Ticket> {
        Ok(Ticket(0))
    }

    fn wait(&self, _: Ticket) -> Result<()> {
        Ok(())
    }

    unsafe fn begin_download(&self, _: Address, _: usize) -> Result<Ticket> {
        Ok(Ticket(0))
    }

    fn finish_download(&self, to: &mut [u8], _: Ticket) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    unsafe fn copy(&self, _: Address, _: Address, bytes: usize) -> Result<()> {
        self.tally(costs::of_copy(bytes));
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.tally(costs::of_launch(launch));
        Ok(())
    }

    unsafe fn multiply(&self, multiplication: &Multiplication) -> Result<()> {
        self.tally(costs::of_product(multiplication));
        Ok(())
    }
}
