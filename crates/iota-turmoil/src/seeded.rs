//! Chance and time of the operating system, replaced: the one by the seed's, the other by the world's.
//!
//! Hash maps, tokio's order of `select!` branches, keys and nonces begin with bytes that the C library's `getrandom` gives;
//! `Instant` and `SystemTime` end in its `clock_gettime`. A program that defines these symbols itself is asked instead of
//! the library. Here they answer the thread that [`begin`] was called in, from then on; all other threads, and every other
//! clock, are passed on to the kernel. Linux only: elsewhere the standard library asks for randomness by other names, and a
//! seed gives the same faults, but not the same trace.
//!
//! The idea, for turmoil, is that of the crate mad-turmoil, which had it from madsim.

#![expect(
    unsafe_code,
    reason = "symbols of the C library are defined here, with its signatures"
)]

use std::cell::{Cell, RefCell};
use std::time::Duration;

use crate::chance::Chance;

/// When worlds begin: a second of the year 2023.
pub(crate) const BEGAN: Duration = Duration::from_secs(1_700_000_000);
/// What a monotonic clock shows when worlds begin: long since the machine was started.
const STARTED: Duration = Duration::from_secs(1_000_000);

thread_local! {
    static NOW: Cell<Option<Duration>> = const { Cell::new(None) };
    static BYTES: RefCell<Option<Chance>> = const { RefCell::new(None) };
}

/// From now on this thread, which must not have asked for either before, gets its chance from `seed` and its time from
/// [`move_to`].
pub(crate) fn begin(seed: u64) {
    BYTES.set(Some(Chance::new(seed, "operating system")));
    NOW.set(Some(Duration::ZERO));
}

/// It is so long since the world began.
pub(crate) fn move_to(elapsed: Duration) {
    NOW.set(Some(elapsed));
}

/// The C library's `getrandom`: fills `buffer`, says how many bytes that were.
///
/// # Safety
/// As of the C library: `buffer` must be good for `length` bytes.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, flags: libc::c_uint) -> isize {
    let seeded = BYTES.try_with(|bytes| {
        let mut bytes = bytes.try_borrow_mut().ok()?;
        let chance = bytes.as_mut()?;
        // SAFETY: the caller says that the buffer is good for so many bytes, and nobody else has it meanwhile. They are
        // written before anybody reads them as a slice.
        let filled = unsafe {
            buffer.write_bytes(0, length);
            std::slice::from_raw_parts_mut(buffer, length)
        };
        chance.fill(filled);
        isize::try_from(length).ok()
    });
    match seeded {
        Ok(Some(filled)) => filled,
        // SAFETY: the arguments are the caller's, of the call that has just these.
        _ => unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize },
    }
}

/// The C library's `clock_gettime`: writes the time to `time`, returns 0.
///
/// # Safety
/// As of the C library: `time` must be good for a `timespec`.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(
    clock: libc::clockid_t,
    time: *mut libc::timespec,
) -> libc::c_int {
    let since = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => Some(BEGAN),
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_COARSE | libc::CLOCK_BOOTTIME => {
            Some(STARTED)
        }
        _ => None,
    };
    let now = NOW.try_with(Cell::get).ok().flatten();
    let (Some(since), Some(now)) = (since, now) else {
        // SAFETY: the arguments are the caller's, of the call that has just these.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int };
    };
    let shown = since + now;
    let shown = libc::timespec {
        tv_sec: shown.as_secs().cast_signed(),
        tv_nsec: shown.subsec_nanos().into(),
    };
    // SAFETY: the caller says that it is good for one.
    unsafe { time.write(shown) };
    0
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::collections::hash_map::RandomState;
    use std::hash::BuildHasher as _;
    use std::time::{Instant, UNIX_EPOCH};

    use super::*;

    fn in_a_new_thread<T: Send + 'static>(seed: u64, ask: fn() -> T) -> T {
        let thread = std::thread::spawn(move || {
            begin(seed);
            ask()
        });
        thread.join().expect("what it asks for is given")
    }

    #[test]
    fn what_the_system_would_draw_follows_from_the_seed() {
        let ask = || {
            let key = *iota_identity::Keypair::generate().peer_id().as_bytes();
            (RandomState::new().hash_one(7), key)
        };
        let first = in_a_new_thread(1, ask);
        assert_eq!(first, in_a_new_thread(1, ask));
        assert_ne!(first, in_a_new_thread(2, ask));
        assert_ne!(ask().1, ask().1, "this thread has no seed");
    }

    #[test]
    fn clocks_stand_still_until_they_are_moved() {
        in_a_new_thread(1, || {
            let begun = Instant::now();
            assert_eq!(begun.elapsed(), Duration::ZERO);
            move_to(Duration::from_millis(1_500));
            assert_eq!(begun.elapsed(), Duration::from_millis(1_500));
            let wall = UNIX_EPOCH.elapsed().unwrap();
            assert_eq!(wall, BEGAN + Duration::from_millis(1_500));
        });
        assert_ne!(
            Instant::now(),
            Instant::now(),
            "this thread has the machine's"
        );
    }
}
