//! What buffers are as factors of products, where that is another thing than f32.
//!
//! ```text
//!   parameters            --round--> [bf16]  kept until a step changes them
//!   gradient of an output --round--> [bf16]  kept for the other product that it is a factor of
//!   normalised rows, ..    ========> [bf16]  made so, and never there as f32
//! ```
//!
//! Rounding a factor is a pass over memory, which takes as long as much of the product itself: for a stage of the 8B model and
//! one sample of 800 tokens, longer than all products together. So it is done once, and the buffer remembers what came of it.
//! Whoever is to write to a buffer has to borrow it alone, and at that moment it forgets.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::driver::{Address, Driver, Factors};
use crate::error::Result;
use crate::memory::Allocation;

/// Parts of a buffer as factors.
#[derive(Debug, Default)]
pub(crate) struct Rounded {
    parts: Mutex<Vec<Part>>,
}

#[derive(Debug)]
struct Part {
    /// Elements of the buffer.
    elements: Range<usize>,
    room: Room,
    /// Whether the buffer itself does not hold them.
    alone: bool,
}

impl Rounded {
    /// Where these elements lie as factors, if they do.
    pub(crate) fn find(&self, elements: &Range<usize>) -> Option<Address> {
        let parts = self.lock();
        let part = parts.iter().find(|part| part.elements == *elements)?;
        Some(part.room.address())
    }

    /// Remembers these elements as factors. `alone`: the buffer does not hold them.
    pub(crate) fn keep(&self, elements: Range<usize>, room: Room, alone: bool) {
        self.lock().push(Part {
            elements,
            room,
            alone,
        });
    }

    /// Whether the buffer does not hold all of these elements itself.
    pub(crate) fn are_alone(&self, elements: &Range<usize>) -> bool {
        let parts = self.lock();
        parts.iter().any(|part| part.alone && part.meets(elements))
    }

    /// These elements are about to change.
    ///
    /// # Panics
    /// If the buffer does not hold others beside them that are forgotten too.
    pub(crate) fn forget(&mut self, elements: &Range<usize>) {
        let parts = self.parts.get_mut().unwrap_or_else(PoisonError::into_inner);
        parts.retain(|part| {
            let meets = part.meets(elements);
            assert!(
                !(meets && part.alone) || part.is_within(elements),
                "of what is there as factors only, a part is overwritten"
            );
            !meets
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    fn meets(&self, elements: &Range<usize>) -> bool {
        self.elements.start < elements.end && elements.start < self.elements.end
    }

    fn is_within(&self, elements: &Range<usize>) -> bool {
        elements.start <= self.elements.start && self.elements.end <= elements.end
    }
}

/// Room for factors that is not in use, by its bytes.
///
/// Work on a card is done in order, so room that comes back can be taken again while what has last used it waits to be done.
#[derive(Debug)]
pub(crate) struct Rooms {
    driver: Arc<dyn Driver>,
    spare: Mutex<BTreeMap<usize, Vec<Allocation>>>,
}

/// Room that comes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    /// Gone only while it is dropped.
    memory: Option<Allocation>,
    home: Arc<Rooms>,
}

impl Rooms {
    pub(crate) fn new(driver: Arc<dyn Driver>) -> Arc<Self> {
        Arc::new(Self {
            driver,
            spare: Mutex::default(),
        })
    }

    /// For so many bf16 factors. What it holds is left over from somewhere.
    pub(crate) fn take(self: &Arc<Self>, elements: usize) -> Result<Room> {
        let bytes = elements * Factors::Bf16.bytes();
        let spare = self.lock().get_mut(&bytes).and_then(Vec::pop);
        let memory = match spare {
            Some(memory) => memory,
            None => Allocation::new(&self.driver, bytes)?,
        };
        Ok(Room {
            memory: Some(memory),
            home: Arc::clone(self),
        })
    }

    /// Frees what is not in use.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Vec<Allocation>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    pub(crate) fn address(&self) -> Address {
        let memory = self.memory.as_ref();
        memory.expect("it is not being dropped").address
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.home
                .lock()
                .entry(memory.bytes)
                .or_default()
                .push(memory);
        }
    }
}
