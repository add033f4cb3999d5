//! Copies between the host and a card, through pinned memory.
//!
//! ```text
//!   upload    numbers --memcpy--> piece 0 ==DMA==> card        while a piece is on its way to or from the card,
//!                     --memcpy--> piece 1 ==DMA==> card        the other one is filled or emptied
//! ```
//!
//! From memory that is not pinned the driver would copy at a quarter of the speed or less, and wait for each copy. An upload
//! returns when the last piece is filled; what was asked for earlier may still be computing.

use std::ffi::c_void;
use std::ptr::null_mut;

use cudarc::driver::result as driver;
use cudarc::driver::sys::{CUdeviceptr, CUevent, CUevent_flags, CUstream};

use super::Call;
use crate::error::Result;

/// At 50 GB/s on the bus 80 microseconds, far more than it takes to ask for the copy.
const PIECE_BYTES: usize = 4 << 20;

/// Two pieces of pinned memory, and the stream of all copies.
pub(super) struct Staging {
    stream: CUstream,
    pieces: [Piece; 2],
}

struct Piece {
    memory: *mut c_void,
    /// Recorded behind the last copy from or to it.
    copied: CUevent,
}

impl Staging {
    /// # Safety
    /// The stream's context is current, and the stream stays until [`release`](Self::release).
    pub(super) unsafe fn new(stream: CUstream) -> Result<Self> {
        let mut staging = Self {
            stream,
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

    /// # Safety
    /// The context is current, and as many bytes are allocated at `to`.
    pub(super) unsafe fn upload(&mut self, to: CUdeviceptr, from: &[u8]) -> Result<()> {
        for (index, bytes) in from.chunks(PIECE_BYTES).enumerate() {
            let piece = &self.pieces[index % 2];
            // SAFETY: nobody reads the piece any more once its event has come; it has room for a chunk, and it is pinned
            // memory of this context.
            unsafe {
                driver::event::synchronize(piece.copied).call("cuEventSynchronize")?;
                let pinned = std::slice::from_raw_parts_mut(piece.memory.cast(), bytes.len());
                pinned.copy_from_slice(bytes);
                let at = to + (index * PIECE_BYTES) as u64;
                driver::memcpy_htod_async(at, &*pinned, self.stream).call("cuMemcpyHtoDAsync")?;
                driver::event::record(piece.copied, self.stream).call("cuEventRecord")?;
            }
        }
        Ok(())
    }

    /// # Safety
    /// The context is current, and as many bytes are allocated at `from`.
    pub(super) unsafe fn download(&mut self, to: &mut [u8], from: CUdeviceptr) -> Result<()> {
        let mut chunks: Vec<&mut [u8]> = to.chunks_mut(PIECE_BYTES).collect();
        for index in 0..=chunks.len() {
            if let Some(bytes) = chunks.get(index) {
                let piece = &self.pieces[index % 2];
                // SAFETY: the piece was emptied two rounds ago, or its last copy is ahead in the stream.
                unsafe {
                    let pinned: &mut [u8] =
                        std::slice::from_raw_parts_mut(piece.memory.cast(), bytes.len());
                    let at = from + (index * PIECE_BYTES) as u64;
                    driver::memcpy_dtoh_async(pinned, at, self.stream).call("cuMemcpyDtoHAsync")?;
                    driver::event::record(piece.copied, self.stream).call("cuEventRecord")?;
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
