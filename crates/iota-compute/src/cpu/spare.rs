//! Memory that one operation has used and the next will use again.

use std::sync::{Mutex, PoisonError};

/// Memory between uses, smallest first. Fresh memory of the system costs more than many an operation on it: the kernel
/// clears it page by page.
#[derive(Debug)]
pub(super) struct Spare<T>(Mutex<Vec<Vec<T>>>);

impl<T> Default for Spare<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Copy + Default> Spare<T> {
    /// At least so many elements, which hold what is left over from somewhere: the smallest memory that suffices. If none
    /// does, the largest is replaced, so that there never is more of it than was in use at one time.
    pub(super) fn take(&self, length: usize) -> Vec<T> {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = spare.partition_point(|memory| memory.len() < length);
        if fitting < spare.len() {
            return spare.remove(fitting);
        }
        let outgrown = spare.pop();
        drop(spare);
        // Freed before the new one is asked for.
        drop(outgrown);
        vec![T::default(); length]
    }

    /// Gives back what [`take`](Self::take) gave.
    pub(super) fn give(&self, memory: Vec<T>) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = spare.partition_point(|other| other.len() < memory.len());
        spare.insert(place, memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_memory_that_suffices_is_used_again() {
        let spare = Spare::<u32>::default();
        for length in [30, 10, 20] {
            spare.give(vec![length; length as usize]);
        }
        assert_eq!(spare.take(15), vec![20; 20]);
        assert_eq!(spare.take(5), vec![10; 10]);
        assert_eq!(spare.take(31).len(), 31, "none suffices");
        assert_eq!(spare.take(1).len(), 1, "the outgrown one is gone");
    }
}
