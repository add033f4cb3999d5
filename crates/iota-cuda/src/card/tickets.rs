//! Events, and the pinned memory that downloads arrive in: what tickets stand for.
//!
//! Waiting for an event is asked for by what it was recorded behind last, whatever it is recorded behind later. So an event
//! can be used again as soon as its ticket is back, even if what waits for it still does.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::driver::result as driver;
use cudarc::driver::sys::{CUevent, CUevent_flags, CUevent_wait_flags, CUstream};

use super::Call;
use crate::driver::Ticket;
use crate::error::Result;

/// What tickets stand for, and what is there for further ones.
#[derive(Default)]
pub(super) struct Tickets {
    given: HashMap<u64, Given>,
    next: u64,
    events: Vec<CUevent>,
    pinned: Vec<Pinned>,
}

pub(super) struct Given {
    pub(super) event: CUevent,
    /// What a download arrives in.
    pub(super) pinned: Option<Pinned>,
}

/// Memory of the host that a card copies from and to on its own.
pub(super) struct Pinned {
    pub(super) memory: *mut c_void,
    pub(super) bytes: usize,
}

impl Tickets {
    /// For what has been asked for on a stream so far.
    ///
    /// # Safety
    /// The stream is there, and its context is current: here and below.
    pub(super) unsafe fn mark(&mut self, stream: CUstream) -> Result<Ticket> {
        // SAFETY: the caller's.
        let event = unsafe { self.record(stream)? };
        Ok(self.give(event, None))
    }

    /// A stream goes on when another is done with what has been asked of it so far.
    pub(super) unsafe fn join(&mut self, waiting: CUstream, other: CUstream) -> Result<()> {
        // SAFETY: the caller's.
        unsafe {
            let event = self.record(other)?;
            self.events.push(event);
            wait_event(waiting, event)
        }
    }

    /// A stream goes on when what a ticket stands for is over.
    pub(super) unsafe fn wait(&mut self, waiting: CUstream, ticket: Ticket) -> Result<()> {
        let given = self.take(ticket);
        let event = given.event;
        self.put_back(given);
        // SAFETY: the caller's.
        unsafe { wait_event(waiting, event) }
    }

    /// For what has been asked for on a stream so far, which ends in this memory.
    pub(super) unsafe fn mark_download(
        &mut self,
        stream: CUstream,
        pinned: Pinned,
    ) -> Result<Ticket> {
        // SAFETY: the caller's.
        let event = unsafe { self.record(stream)? };
        Ok(self.give(event, Some(pinned)))
    }

    /// Memory of so many bytes at least, used again if there is any.
    pub(super) unsafe fn pinned(&mut self, bytes: usize) -> Result<Pinned> {
        let fits = |pinned: &Pinned| pinned.bytes >= bytes;
        if let Some(place) = self.pinned.iter().position(fits) {
            return Ok(self.pinned.swap_remove(place));
        }
        // Samples have become larger.
        // SAFETY: the caller's; nothing is on its way there.
        unsafe { self.free_pinned() };
        let bytes = bytes.max(1);
        // SAFETY: the caller's.
        let memory = unsafe { driver::malloc_host(bytes, 0) }.call("cuMemHostAlloc")?;
        Ok(Pinned { memory, bytes })
    }

    pub(super) fn take(&mut self, ticket: Ticket) -> Given {
        let Ticket(number) = ticket;
        let given = self.given.remove(&number);
        given.expect("a ticket is given back to the card that gave it, once")
    }

    /// What a ticket stood for may be used for another.
    pub(super) fn put_back(&mut self, given: Given) {
        self.events.push(given.event);
        self.pinned.extend(given.pinned);
    }

    /// # Safety
    /// The context is current, and nothing is on its way.
    pub(super) unsafe fn release(&mut self) {
        let left = std::mem::take(&mut self.given);
        left.into_values().for_each(|given| self.put_back(given));
        for event in self.events.drain(..) {
            // SAFETY: it was made here, and nobody has it any more.
            let _ = unsafe { driver::event::destroy(event) };
        }
        // SAFETY: the caller's.
        unsafe { self.free_pinned() };
    }

    unsafe fn free_pinned(&mut self) {
        for pinned in self.pinned.drain(..) {
            // SAFETY: it was made here, and nobody has it any more.
            let _ = unsafe { driver::free_host(pinned.memory) };
        }
    }

    unsafe fn record(&mut self, stream: CUstream) -> Result<CUevent> {
        let event = match self.events.pop() {
            Some(event) => event,
            None => driver::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING)
                .call("cuEventCreate")?,
        };
        // SAFETY: the caller's.
        unsafe { driver::event::record(event, stream) }.call("cuEventRecord")?;
        Ok(event)
    }

    fn give(&mut self, event: CUevent, pinned: Option<Pinned>) -> Ticket {
        self.next += 1;
        self.given.insert(self.next, Given { event, pinned });
        Ticket(self.next)
    }
}

/// # Safety
/// Both are there, and their context is current.
unsafe fn wait_event(waiting: CUstream, event: CUevent) -> Result<()> {
    // SAFETY: the caller's.
    unsafe { driver::stream::wait_event(waiting, event, CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
        .call("cuStreamWaitEvent")
}
