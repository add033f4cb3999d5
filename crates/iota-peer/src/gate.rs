//! How many stages compute at a time on one machine.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Lets a fixed number of operations compute at a time; the others wait.
///
/// A testnet runs more stages than the machine has cores. Left to the operating system they would all compute at once
/// and take turns every few milliseconds, each time with cold caches.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Gate {
    /// A gate for `places` operations at a time, at least one.
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Inner {
            free: Mutex::new(places.max(1)),
            freed: Condvar::new(),
        }))
    }

    /// Runs `operation` as soon as there is a place. Blocks the thread.
    pub fn pass<T>(&self, operation: impl FnOnce() -> T) -> T {
        let _place = self.enter();
        operation()
    }

    fn enter(&self) -> Place<'_> {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self
                .0
                .freed
                .wait(free)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Place(self)
    }
}

/// Gives the place back even if the operation panics.
struct Place<'a>(&'a Gate);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn no_more_pass_at_a_time_than_there_are_places() {
        let gate = Gate::new(2);
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        gate.pass(|| {
                            let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                            most.fetch_max(now, Ordering::SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)));
    }

    #[test]
    fn an_operation_that_panics_gives_its_place_back() {
        let gate = Gate::new(1);
        let panicked = std::thread::spawn({
            let gate = gate.clone();
            move || gate.pass(|| panic!("as the test wants it"))
        });
        assert!(panicked.join().is_err());
        assert_eq!(gate.pass(|| 7), 7);
    }
}
