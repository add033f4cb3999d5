//! Copies between the host and a card, through pinned memory.
//!
//! ```text
//!   upload    numbers --memcpy--> piece 0 ==DMA==> card        while a piece is on its way to or from the card,
//!                     --memcpy--> piece 1 ==DMA==> card        the other one is filled or emptied
//! ```
//!
//! From memory that is not pinned the driver would copy at a quarter of the speed or less, and wait for each copy. An upload
//! returns when the last piece is filled; what was asked for earlier may still be computing. Downloads that a pass has begun
//! arrive in memory of their own, see `tickets`: the host may be slow to take them.

use std::ffi::c_void;
use std::ptr::null_mut;

use cudarc::driver::result as driver;
use cudarc::driver::sys::{CUdeviceptr, CUevent, CUevent_flags, CUstream};

use super::Call;
use crate::error::Result;

/// At 50 GB/s on the bus 80 microseconds, far more than it takes to ask for the copy.
const PIECE_BYTES: usize = 4 << 20;

/// Two pieces of pinned memory, in turn.
pub(super) struct Staging {
    pieces: [Piece; 2],
    /// The one that was used longest ago.
    next: usize,
}

struct Piece {
    memory: *mut c_void,
    /// Recorded behind the last copy from or to it.
    copied: CUevent,
}

impl Staging {
    /// # Safety
    /// A context is current.
    pub(super) unsafe fn new() -> Result<Self> {
        let mut staging = Self {
            next: 0,
            pieces: [(); 2].map(|()| Piece {
                memory: null_mut(),
                copied: null_mut(),
            }),
        };
        for piece in &mut staging.pieces {
            // SAFETY: a context is current.
            piece.memory = unsafe { driver::malloc_host(PIECE_BYTES, 0) }.call("cuMemHostAlloc")?;
            piece.copied = driver::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING)
                .call("cuEventCreate")?;
        }
        Ok(staging)
    }

    /// On a stream. It returns when the last piece is filled.
    ///
    /// # Safety
    /// The context is current, and as many bytes are allocated at `to`.
    pub(super) unsafe fn upload(
        &mut self,
        stream: CUstream,
        to: CUdeviceptr,
        from: &[u8],
    ) -> Result<()> {
        for (index, bytes) in from.chunks(PIECE_BYTES).enumerate() {
            let piece = &self.pieces[self.next];
            self.next = 1 - self.next;
            // SAFETY: nobody reads the piece any more once its event has come; it has room for a chunk, and it is pinned
            // memory of this context.
            unsafe {
                driver::event::synchronize(piece.copied).call("cuEventSynchronize")?;
                let pinned = std::slice::from_raw_parts_mut(piece.memory.cast(), bytes.len());
                pinned.copy_from_slice(bytes);
                let at = to + (index * PIECE_BYTES) as u64;
                driver::memcpy_htod_async(at, &*pinned, stream).call("cuMemcpyHtoDAsync")?;
                driver::event::record(piece.copied, stream).call("cuEventRecord")?;
            }
        }
        Ok(())
    }

    /// On a stream, to its end.
    ///
    /// # Safety
    /// The context is current, and as many bytes are allocated at `from`.
    pub(super) unsafe fn download(
        &mut self,
        stream: CUstream,
        to: &mut [u8],
        from: CUdeviceptr,
    ) -> Result<()> {
        for piece in &self.pieces {
            // SAFETY: the events are there. An upload that another stream still has to do may be reading a piece.
            unsafe { driver::event::synchronize(piece.copied) }.call("cuEventSynchronize")?;
        }
        let mut chunks: Vec<&mut [u8]> = to.chunks_mut(PIECE_BYTES).collect();
        for index in 0..=chunks.len() {
            if let Some(bytes) = chunks.get(index) {
                let piece = &self.pieces[index % 2];
                // SAFETY: the piece was emptied two rounds ago, or nothing was on its way from or to it.
                unsafe {
                    let pinned: &mut [u8] =
                        std::slice::from_raw_parts_mut(piece.memory.cast(), bytes.len());
                    let at = from + (index * PIECE_BYTES) as u64;
                    driver::memcpy_dtoh_async(pinned, at, stream).call("cuMemcpyDtoHAsync")?;
                    driver::event::record(piece.copied, stream).call("cuEventRecord")?;
                }
            }
            // The one before, while this one is on its way.
            if let Some(before) = index.checked_sub(1) {
                let piece = &self.pieces[before % 2];
                let bytes = &mut *chunks[before];
                // SAFETY: the copy to the piece is done once its event has come.
                unsafe {
                    driver::event::synchronize(piece.copied).call("cuEventSynchronize")?;
                    let pinned = std::slice::from_raw_parts(piece.memory.cast(), bytes.len());
                    bytes.copy_from_slice(pinned);
                }
            }
        }
        Ok(())
    }

    /// # Safety
    /// The context is current, and nothing is on its way.
    pub(super) unsafe fn release(&mut self) {
        for piece in &mut self.pieces {
            if piece.memory.is_null() {
                continue;
            }
            // SAFETY: they were made by `new`, and are never used again.
            unsafe {
                let _ = driver::event::destroy(piece.copied);
                let _ = driver::free_host(piece.memory);
            }
            piece.memory = null_mut();
        }
    }
}
