//! A card that can be made to wait for each kernel, so that a host's clock sees what it takes.
#![expect(unsafe_code, reason = "it passes on what a driver is asked for")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iota_cuda::driver::{Address, Driver, Launch, Multiplication, Ticket};
use iota_cuda::{Card, Result};

#[derive(Debug)]
pub(crate) struct Patient {
    card: Arc<Card>,
    waits: AtomicBool,
}

impl Patient {
    pub(crate) fn new(card: Arc<Card>) -> Self {
        Self {
            card,
            waits: AtomicBool::new(false),
        }
    }

    pub(crate) fn wait_from_now_on(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    fn after(&self, done: Result<()>) -> Result<()> {
        if self.waits.load(Ordering::Relaxed) {
            done.and_then(|()| self.card.synchronize())
        } else {
            done
        }
    }
}

// SAFETY: it passes everything on.
unsafe impl Driver for Patient {
    fn allocate(&self, bytes: usize) -> Result<Address> {
        self.card.allocate(bytes)
    }

    unsafe fn release(&self, address: Address, bytes: usize) {
        // SAFETY: the caller's, here and below.
        unsafe { self.card.release(address, bytes) }
    }

    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<()> {
        // SAFETY: see above.
        self.after(unsafe { self.card.zero(at, bytes) })
    }

    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<()> {
        // SAFETY: see above.
        self.after(unsafe { self.card.upload(to, from) })
    }

    unsafe fn download(&self, to: &mut [u8], from: Address) -> Result<()> {
        // SAFETY: see above.
        unsafe { self.card.download(to, from) }
    }

    fn mark(&self) -> Result<Ticket> {
        self.card.mark()
    }

    unsafe fn begin_upload(
        &self,
        to: Address,
        from: &[u8],
        after: Option<Ticket>,
    ) -> Result<Ticket> {
        // SAFETY: see above.
        let ticket = unsafe { self.card.begin_upload(to, from, after)? };
        self.after(Ok(()))?;
        Ok(ticket)
    }

    fn wait(&self, upload: Ticket) -> Result<()> {
        self.card.wait(upload)
    }

    unsafe fn begin_download(&self, from: Address, bytes: usize) -> Result<Ticket> {
        // SAFETY: see above.
        unsafe { self.card.begin_download(from, bytes) }
    }

    fn finish_download(&self, to: &mut [u8], download: Ticket) -> Result<()> {
        self.card.finish_download(to, download)
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        // SAFETY: see above.
        self.after(unsafe { self.card.copy(to, from, bytes) })
    }

    fn shared_bytes_max(&self) -> u32 {
        self.card.shared_bytes_max()
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        // SAFETY: see above.
        self.after(unsafe { self.card.launch(launch) })
    }

    unsafe fn multiply(&self, multiplication: &Multiplication) -> Result<()> {
        // SAFETY: see above.
        self.after(unsafe { self.card.multiply(multiplication) })
    }
}
