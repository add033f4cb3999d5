//! Copies that go beside the passes: what a pass is given, and what it gives.
//!
//! ```text
//!   host ==begin_upload==> landing --copy--> a pass's buffer ... a pass's buffer ==begin_download==> host
//!                          |                                    |
//!                          no pass touches it: one copy on      kept from all passes until it has been
//!                          the card reads it, soon after        taken by the host
//!                          its pass has begun
//! ```
//!
//! A pass's buffers are used again while work on them may still be waiting to be done, which is right for whatever waits in
//! the same line, and wrong for an upload that does not. So uploads land in memory of their own, and a copy on the card, some
//! 30 times as fast as the one from the host, takes them where the pass wants them.
#![expect(unsafe_code, reason = "a driver is given addresses")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::driver::{Address, Driver, Ticket};
use crate::error::Result;
use crate::memory::{Allocation, Buffer, Number, bytes_of, bytes_of_mut};

/// What one device copies beside its passes.
#[derive(Debug)]
pub(crate) struct Copies {
    driver: Arc<dyn Driver>,
    /// Activations and gradients from other stages, and what is as large at most.
    inputs: Landing,
    /// Tokens and targets.
    indices: Landing,
    spare: Spare,
}

impl Copies {
    pub(crate) fn new(driver: Arc<dyn Driver>) -> Self {
        Self {
            driver,
            inputs: Landing::default(),
            indices: Landing::default(),
            spare: Spare::default(),
        }
    }

    /// Copies numbers to the card. What is still being computed need not be over.
    ///
    /// # Safety
    /// There is room for as many at `to`.
    pub(crate) unsafe fn upload<T: Number>(&self, to: Address, values: &[T]) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.inputs.upload(&self.driver, to, bytes_of(values)) }
    }

    pub(crate) fn upload_indices(&self, host: Vec<u32>) -> Result<Indices> {
        let bytes = size_of_val(&*host);
        let memory = match self.spare.take(bytes) {
            Some(memory) => memory,
            None => Allocation::new(&self.driver, bytes)?,
        };
        // SAFETY: the allocation has as many bytes.
        unsafe {
            self.indices
                .upload(&self.driver, memory.address, bytes_of(&host))?;
        }
        Ok(Indices {
            memory: Some(memory),
            host,
            spare: self.spare.clone(),
        })
    }
}

/// Uploads that may be on their way together without waiting for the passes that they are for. A pass takes two of a kind
/// at most: input and gradient, tokens and targets.
const SLOTS: usize = 2;

/// Where uploads arrive, one slot after the other; each as large as the most that came to it.
#[derive(Debug, Default)]
struct Landing {
    /// The one that was used longest ago is in front.
    slots: Mutex<VecDeque<Slot>>,
}

#[derive(Debug)]
struct Slot {
    memory: Allocation,
    /// Behind the work that has last read it.
    read: Option<Ticket>,
}

impl Landing {
    /// # Safety
    /// As many bytes are allocated at `to`.
    unsafe fn upload(&self, driver: &Arc<dyn Driver>, to: Address, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = if slots.len() < SLOTS {
            None
        } else {
            slots.pop_front()
        };
        // One that is too small is given back before there is a larger one.
        let mut slot = match oldest.filter(|slot| slot.memory.bytes >= from.len()) {
            Some(slot) => slot,
            None => Slot {
                memory: Allocation::new(driver, from.len())?,
                read: None,
            },
        };
        // SAFETY: the slot has room for as many; the copy here is the only work that reads it, between a wait for the upload
        // and the ticket that the next upload is given. If a call fails, the slot goes back to the driver, which waits.
        unsafe {
            let landed = driver.begin_upload(slot.memory.address, from, slot.read.take())?;
            driver.wait(landed)?;
            driver.copy(to, slot.memory.address, from.len())?;
        }
        slot.read = Some(driver.mark()?);
        slots.push_back(slot);
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(read) = self.read.take() {
            // To give it back; nothing is asked for that would wait.
            let _ = self.memory.driver.wait(read);
        }
    }
}

/// u32 numbers, on a card and on the host.
#[derive(Debug)]
pub struct Indices {
    /// Gone only while it is dropped.
    memory: Option<Allocation>,
    host: Vec<u32>,
    spare: Spare,
}

impl Indices {
    pub(crate) fn host(&self) -> &[u32] {
        &self.host
    }

    pub(crate) fn address(&self) -> Address {
        let memory = self.memory.as_ref();
        memory.expect("they are not being dropped").address
    }
}

impl Drop for Indices {
    fn drop(&mut self) {
        self.spare.give(self.memory.take());
    }
}

/// Memory of indices that are done with, all of one size: to give it back to the driver would wait for the pass that reads
/// it. In the line of work it may be written to again at once.
#[derive(Debug, Clone, Default)]
struct Spare(Arc<Mutex<Vec<Allocation>>>);

impl Spare {
    fn take(&self, bytes: usize) -> Option<Allocation> {
        let mut spare = self.lock();
        spare.retain(|memory| memory.bytes == bytes);
        spare.pop()
    }

    fn give(&self, memory: Option<Allocation>) {
        self.lock().extend(memory);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Allocation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer whose numbers are on their way to the host. Nobody else has it, so no work can touch it.
#[derive(Debug)]
pub struct Download {
    /// Gone only while it is dropped.
    on_its_way: Option<(Buffer, Ticket)>,
}

impl Download {
    pub(crate) fn begin(driver: &dyn Driver, buffer: Buffer) -> Result<Self> {
        let view = buffer.view(0..buffer.elements());
        // SAFETY: the bytes are the buffer's, which stays here until the copy is over.
        let ticket =
            unsafe { driver.begin_download(view.address(), view.len() * size_of::<f32>())? };
        Ok(Self {
            on_its_way: Some((buffer, ticket)),
        })
    }

    pub(crate) fn finish(mut self, driver: &dyn Driver) -> Result<(Vec<f32>, Buffer)> {
        let (buffer, ticket) = self.on_its_way.take().expect("it is not being dropped");
        let mut values = vec![0.0_f32; buffer.elements()];
        driver.finish_download(bytes_of_mut(&mut values), ticket)?;
        Ok((values, buffer))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some((buffer, ticket)) = self.on_its_way.take() {
            // Nobody wants the numbers, nor to hear that they cannot be had.
            let _ = buffer.driver().finish_download(&mut [], ticket);
        }
    }
}
