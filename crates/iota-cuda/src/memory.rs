//! Memory of a card: buffers, views of them, and scratch space that operations share.
#![expect(
    unsafe_code,
    reason = "a driver is given addresses, and bytes of numbers"
)]

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::driver::{Address, Argument, Driver};
use crate::error::Result;
use crate::factors::{Room, Rooms, Rounded};

/// Memory that is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) address: Address,
    pub(crate) bytes: usize,
}

impl Allocation {
    pub(crate) fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        Ok(Self {
            driver: Arc::clone(driver),
            address: driver.allocate(bytes)?,
            bytes,
        })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: it came from there, and nothing that outlives it has its address: views borrow it, scratch space is handed
        // out under a lock, and copies under way own it.
        unsafe { self.driver.release(self.address, self.bytes) }
    }
}

/// f32 numbers on a card. It remembers what they are as factors of products.
#[derive(Debug)]
pub struct Buffer {
    memory: Allocation,
    elements: usize,
    rounded: Rounded,
}

impl Buffer {
    pub(crate) fn zeros(driver: &Arc<dyn Driver>, elements: usize) -> Result<Self> {
        let bytes = elements * size_of::<f32>();
        let memory = Allocation::new(driver, bytes)?;
        // SAFETY: these bytes are the allocation's.
        unsafe { driver.zero(memory.address, bytes)? };
        Ok(Self {
            memory,
            elements,
            rounded: Rounded::default(),
        })
    }

    pub(crate) const fn elements(&self) -> usize {
        self.elements
    }

    /// Forgets what all of it is as factors.
    pub(crate) fn retire(&mut self) {
        self.rounded.forget(&(0..self.elements));
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.memory.driver
    }

    /// # Panics
    /// If the range exceeds the buffer.
    pub(crate) fn view(&self, range: Range<usize>) -> View<'_> {
        self.check(&range);
        View {
            buffer: self,
            range: (range.start, range.end),
        }
    }

    /// Forgets what the numbers there are as factors, since they are about to change.
    ///
    /// # Panics
    /// If the range exceeds the buffer.
    pub(crate) fn view_mut(&mut self, range: Range<usize>) -> ViewMut<'_> {
        self.check(&range);
        let held_numbers = !self.rounded.are_alone(&range);
        self.rounded.forget(&range);
        ViewMut {
            buffer: self,
            range,
            held_numbers,
        }
    }

    fn check(&self, range: &Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.elements,
            "{range:?} exceeds a buffer of {}",
            self.elements
        );
    }

    fn at(&self, element: usize) -> Address {
        self.memory.address.offset(element * size_of::<f32>())
    }
}

/// A part of a [`Buffer`], to read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    buffer: &'a Buffer,
    /// First element, and the one behind the last.
    range: (usize, usize),
}

/// A part of a [`Buffer`], to write. The buffer is borrowed alone.
#[derive(Debug)]
pub struct ViewMut<'a> {
    buffer: &'a Buffer,
    range: Range<usize>,
    /// Whether there were numbers when it was borrowed, and not factors only.
    held_numbers: bool,
}

impl View<'_> {
    pub(crate) const fn len(&self) -> usize {
        self.range.1 - self.range.0
    }

    const fn elements(&self) -> Range<usize> {
        self.range.0..self.range.1
    }

    /// Of the f32 numbers.
    ///
    /// # Panics
    /// If the numbers are there as factors only.
    pub(crate) fn address(&self) -> Address {
        assert!(
            !self.buffer.rounded.are_alone(&self.elements()),
            "what is there as factors only is read as numbers"
        );
        self.buffer.at(self.range.0)
    }

    /// Of the numbers as factors, if the buffer remembers them.
    pub(crate) fn find_factors(&self) -> Option<Address> {
        self.buffer.rounded.find(&self.elements())
    }

    /// From now on these are the numbers as factors.
    pub(crate) fn keep_factors(&self, room: Room) {
        self.buffer.rounded.keep(self.elements(), room, false);
    }

    /// From the card, after all that was asked for.
    pub(crate) fn download(&self, driver: &dyn Driver) -> Result<Vec<f32>> {
        match self.find_factors() {
            Some(factors) if self.buffer.rounded.are_alone(&self.elements()) => {
                let mut halves = vec![0_u16; self.len()];
                // SAFETY: any bytes are numbers, and these are factors of a buffer that is borrowed.
                unsafe { driver.download(bytes_of_mut(&mut halves), factors)? };
                let widened = |half: u16| f32::from_bits(u32::from(half) << 16);
                Ok(halves.into_iter().map(widened).collect())
            }
            _ => {
                let mut values = vec![0.0_f32; self.len()];
                // SAFETY: any bytes are f32 numbers, and these are of a buffer that is borrowed.
                unsafe { driver.download(bytes_of_mut(&mut values), self.address())? };
                Ok(values)
            }
        }
    }
}

impl ViewMut<'_> {
    pub(crate) const fn len(&self) -> usize {
        self.range.end - self.range.start
    }

    pub(crate) fn address(&self) -> Address {
        self.buffer.at(self.range.start)
    }

    /// Of the f32 numbers, to be read before they are written.
    ///
    /// # Panics
    /// If they were there as factors only.
    pub(crate) fn numbers(&self) -> Address {
        assert!(
            self.held_numbers,
            "what was there as factors only is read as numbers"
        );
        self.address()
    }

    /// Room for the numbers as factors. From now on they are there as such only.
    pub(crate) fn make_factors(&self, rooms: &Arc<Rooms>) -> Result<Address> {
        let room = rooms.take(self.len())?;
        let address = room.address();
        self.buffer.rounded.keep(self.range.clone(), room, true);
        Ok(address)
    }

    /// To the card.
    pub(crate) fn upload(&mut self, driver: &dyn Driver, values: &[f32]) -> Result<()> {
        assert_eq!(values.len(), self.len(), "length of what is uploaded");
        // SAFETY: as many bytes are of a buffer that is borrowed alone.
        unsafe { driver.upload(self.address(), bytes_of(values)) }
    }

    /// On the card.
    pub(crate) fn copy(&mut self, driver: &dyn Driver, from: View<'_>) -> Result<()> {
        assert_eq!(from.len(), self.len(), "length of what is copied");
        // SAFETY: one buffer is borrowed, the other borrowed alone, so they are two.
        unsafe {
            driver.copy(
                self.address(),
                from.address(),
                self.len() * size_of::<f32>(),
            )
        }
    }
}

impl From<View<'_>> for Argument {
    fn from(view: View<'_>) -> Self {
        Self::Address(view.address())
    }
}

impl From<&ViewMut<'_>> for Argument {
    fn from(view: &ViewMut<'_>) -> Self {
        Self::Address(view.address())
    }
}

/// Room that one operation uses after the other, as large as the most that one of them has needed.
///
/// Work on a card is done in order, so an operation may write there while those before it still wait to be done.
#[derive(Debug)]
pub(crate) struct Scratch {
    driver: Arc<dyn Driver>,
    room: Mutex<Option<Allocation>>,
}

/// Scratch space in use. Nobody else is handed any until it is dropped.
#[derive(Debug)]
pub(crate) struct InUse<'a, const PARTS: usize> {
    pub(crate) parts: [Address; PARTS],
    driver: &'a dyn Driver,
    _room: MutexGuard<'a, Option<Allocation>>,
}

impl Scratch {
    pub(crate) fn new(driver: Arc<dyn Driver>) -> Self {
        Self {
            driver,
            room: Mutex::new(None),
        }
    }

    /// Frees the room.
    pub(crate) fn clear(&self) {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Parts of so many bytes each, aligned as allocations are.
    pub(crate) fn take<const PARTS: usize>(
        &self,
        bytes: [usize; PARTS],
    ) -> Result<InUse<'_, PARTS>> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let needed: usize = bytes.iter().map(|bytes| aligned(*bytes)).sum();
        if room.as_ref().is_none_or(|room| room.bytes < needed) {
            // First, so that the two are never there together.
            *room = None;
            *room = Some(Allocation::new(&self.driver, needed)?);
        }
        let start = room.as_ref().expect("there is room by now").address;
        let mut taken = 0;
        let parts = bytes.map(|bytes| {
            let part = start.offset(taken);
            taken += aligned(bytes);
            part
        });
        Ok(InUse {
            parts,
            driver: &*self.driver,
            _room: room,
        })
    }
}

impl<const PARTS: usize> InUse<'_, PARTS> {
    /// Copies so many numbers from the start of a part, after all that was asked for.
    ///
    /// # Safety
    /// The part has room for as many.
    pub(crate) unsafe fn download<T: Number>(&self, part: usize, count: usize) -> Result<Vec<T>> {
        let mut values = vec![T::default(); count];
        // SAFETY: the caller says that the part has as many bytes; any bytes are numbers.
        unsafe {
            self.driver
                .download(bytes_of_mut(&mut values), self.parts[part])?;
        }
        Ok(values)
    }
}

/// What allocations are aligned to.
pub(crate) const ALIGNMENT: usize = 256;

const fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Numbers without padding, of which any bytes are one.
pub(crate) trait Number: Copy + Default {}

impl Number for f32 {}
impl Number for f64 {}
impl Number for u32 {}
impl Number for u16 {}

pub(crate) fn bytes_of<T: Number>(values: &[T]) -> &[u8] {
    // SAFETY: numbers have no padding, and bytes no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

pub(crate) fn bytes_of_mut<T: Number>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: numbers have no padding, bytes no alignment, and any bytes that are written are numbers.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
