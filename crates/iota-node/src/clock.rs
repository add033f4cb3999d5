//! What time it is. The rules take time as a value; this is where their drivers get it.
//!
//! One trait both tells the time and wakes sleepers, so that no part of a runtime can wait by one clock and stamp by
//! another. [`ManualClock`] lets a test or a simulation move time by hand; nothing sleeps for real.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use iota_protocol::Timestamp;
use tokio::sync::watch;

/// A wait that ends when its clock says so. Dropping it ends it early.
pub type Sleep<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A source of time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time now. Never less than an earlier answer of the same clock.
    fn now(&self) -> Timestamp;

    /// Waits until about `at`; a time that has passed does not wait.
    ///
    /// A wake-up may be early when the wall clock is set back meanwhile: look at [`now`](Self::now) again, as drivers
    /// of the state machines do anyway.
    fn sleep_until(&self, at: Timestamp) -> Sleep<'_>;

    /// Waits for so long.
    fn sleep(&self, duration: Duration) -> Sleep<'_> {
        self.sleep_until(self.now() + duration)
    }
}

/// The wall clock of the machine. Sleeping needs a tokio runtime with its time driver on.
///
/// It is the wall clock and not a monotonic one since its timestamps are compared across machines and restarts (leases,
/// signed requests). When the wall clock is set back, time stands still here until it has caught up.
#[derive(Debug, Default)]
pub struct SystemClock {
    latest_ms: AtomicU64,
}

impl SystemClock {
    /// A clock that reads the machine's.
    pub fn new() -> Self {
        Self::default()
    }

    fn not_before_latest(&self, wall_ms: u64) -> Timestamp {
        let earlier_ms = self.latest_ms.fetch_max(wall_ms, Ordering::Relaxed);
        Timestamp::from_millis(wall_ms.max(earlier_ms))
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        // A machine that believes in a year before 1970 is at time zero: its requests are refused as too old, which is
        // the message that its owner needs.
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.not_before_latest(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
    }

    fn sleep_until(&self, at: Timestamp) -> Sleep<'_> {
        Box::pin(tokio::time::sleep(at.since(self.now())))
    }
}

/// A clock that moves when it is told to.
#[derive(Debug)]
pub struct ManualClock {
    now: watch::Sender<Timestamp>,
    skips: bool,
}

impl ManualClock {
    /// A clock that stands at `start` until [`advance`](Self::advance) moves it; sleepers wait for that.
    pub fn new(start: Timestamp) -> Self {
        Self {
            now: watch::Sender::new(start),
            skips: false,
        }
    }

    /// A clock for code that is alone with it: whoever sleeps moves it to the end of the sleep at once.
    pub fn skipping(start: Timestamp) -> Self {
        Self {
            skips: true,
            ..Self::new(start)
        }
    }

    /// Moves the clock forward and wakes everybody whose time has come.
    pub fn advance(&self, by: Duration) {
        self.now.send_modify(|now| *now = *now + by);
    }

    /// Moves the clock forward to `at`; does nothing if it is there already.
    pub fn advance_to(&self, at: Timestamp) {
        self.now.send_if_modified(|now| {
            let moves = at > *now;
            *now = (*now).max(at);
            moves
        });
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.now.borrow()
    }

    fn sleep_until(&self, at: Timestamp) -> Sleep<'_> {
        let mut changes = self.now.subscribe();
        Box::pin(async move {
            if self.skips {
                self.advance_to(at);
            }
            changes
                .wait_for(|now| *now >= at)
                .await
                .expect("the sender lives as long as the clock, which is borrowed");
        })
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    /// Polls once, without a runtime: these clocks need none.
    fn is_done(sleep: &mut Sleep<'_>) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        sleep.as_mut().poll(&mut context) == Poll::Ready(())
    }

    #[test]
    fn a_sleeper_wakes_when_its_time_has_come_and_not_before() {
        let clock = ManualClock::new(Timestamp::from_millis(100));
        let mut sleep = clock.sleep_until(Timestamp::from_millis(150));
        assert!(!is_done(&mut sleep));
        clock.advance(Duration::from_millis(49));
        assert!(!is_done(&mut sleep));
        clock.advance(Duration::from_millis(1));
        assert!(is_done(&mut sleep));
    }

    #[test]
    fn a_time_that_has_passed_is_not_waited_for() {
        let clock = ManualClock::new(Timestamp::from_millis(100));
        assert!(is_done(&mut clock.sleep_until(Timestamp::from_millis(100))));
        assert!(is_done(&mut clock.sleep(Duration::ZERO)));
    }

    #[test]
    fn a_skipping_clock_is_where_the_sleep_ends() {
        let clock = ManualClock::skipping(Timestamp::from_millis(0));
        assert!(is_done(&mut clock.sleep(Duration::from_secs(3600))));
        assert_eq!(clock.now(), Timestamp::from_millis(3_600_000));
    }

    #[test]
    fn a_manual_clock_never_goes_back() {
        let clock = ManualClock::new(Timestamp::from_millis(100));
        clock.advance_to(Timestamp::from_millis(40));
        assert_eq!(clock.now(), Timestamp::from_millis(100));
    }

    #[test]
    fn the_system_clock_stands_still_while_the_wall_clock_is_set_back() {
        let clock = SystemClock::new();
        assert_eq!(clock.not_before_latest(500), Timestamp::from_millis(500));
        assert_eq!(clock.not_before_latest(300), Timestamp::from_millis(500));
        assert_eq!(clock.not_before_latest(501), Timestamp::from_millis(501));
    }

    #[test]
    fn the_system_clock_counts_from_1970() {
        let start_of_2025 = Timestamp::from_millis(1_735_689_600_000);
        assert!(SystemClock::new().now() > start_of_2025);
    }

    #[tokio::test(start_paused = true)]
    async fn the_system_clock_sleeps_by_tokios_time() {
        let clock = SystemClock::new();
        let started = tokio::time::Instant::now();
        clock.sleep(Duration::from_secs(60)).await;
        let slept = started.elapsed();
        assert!(
            slept > Duration::from_secs(59) && slept < Duration::from_secs(61),
            "{slept:?}"
        );
    }
}
