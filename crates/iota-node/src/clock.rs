//! What time it is. The rules take time as a value; this is where their drivers get it.
//!
//! One trait both tells the time and wakes sleepers, so that no part of a runtime can wait by one clock and stamp by
//! another. [`ManualClock`] lets a test or a simulation move time by hand; nothing sleeps for real.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use iota_protocol::Timestamp;
use tokio::sync::watch;

/// A wait that ends when its clock says so. Dropping it ends it early.
pub type Sleep<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A source of time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time now. Never less than an earlier answer of the same clock.
    fn now(&self) -> Timestamp;

    /// From now on it shows no earlier time than `at`: whatever was written down with that time has happened.
    fn not_before(&self, at: Timestamp);

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
/// signed requests). When the wall clock is set back, this one goes on at half the pace until the other has caught up: were
/// it to stand still, after a leap forward that somebody corrected by hours no lease would run out for hours.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
    together: Mutex<Together>,
}

/// When the clock and the wall clock last showed the same, by both; or what else it has not to fall behind.
#[derive(Debug, Clone, Copy, Default)]
struct Together {
    shown_ms: u64,
    since_start: Duration,
}

impl Together {
    /// What to show when the wall clock shows this, so long after the start.
    fn show(&mut self, wall_ms: u64, since_start: Duration) -> u64 {
        let since = since_start.saturating_sub(self.since_start);
        let slow_ms = self.at_half_pace(since);
        if wall_ms >= slow_ms {
            (self.shown_ms, self.since_start) = (wall_ms, since_start);
        }
        wall_ms.max(slow_ms)
    }

    fn at_half_pace(&self, since: Duration) -> u64 {
        let passed_ms = u64::try_from((since / 2).as_millis()).unwrap_or(u64::MAX);
        self.shown_ms.saturating_add(passed_ms)
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            together: Mutex::default(),
        }
    }
}

impl SystemClock {
    /// A clock that reads the machine's.
    pub fn new() -> Self {
        Self::default()
    }

    fn together(&self) -> MutexGuard<'_, Together> {
        // Two numbers are whole whoever panicked with them in hand.
        self.together.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        // A machine that believes in a year before 1970 is at time zero: its requests are refused as too old, which is
        // the message that its owner needs.
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let wall_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        let mut together = self.together();
        Timestamp::from_millis(together.show(wall_ms, self.started.elapsed()))
    }

    fn not_before(&self, at: Timestamp) {
        let now = self.now();
        if at > now {
            *self.together() = Together {
                shown_ms: at.as_millis(),
                since_start: self.started.elapsed(),
            };
        }
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

    fn not_before(&self, at: Timestamp) {
        self.advance_to(at);
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
    fn the_system_clock_slows_down_while_the_wall_clock_is_set_back_and_never_stands_still() {
        let mut together = Together::default();
        let mut show =
            |wall_ms, since_start_ms| together.show(wall_ms, Duration::from_millis(since_start_ms));
        assert_eq!(show(5_000, 0), 5_000);
        // Set back by two seconds: the next four are shown as two, however often it is read.
        for passed in 1..=4_000 {
            assert_eq!(show(3_000 + passed, passed), 5_000 + passed / 2);
        }
        assert_eq!(show(7_001, 4_001), 7_001);
        // A leap forward is shown at once, such as that of a machine that slept, whose other clock stood still.
        assert_eq!(show(90_000, 4_002), 90_000);
        assert_eq!(show(89_999, 4_010), 90_004);
    }

    #[test]
    fn what_was_written_down_with_a_time_is_not_in_a_clocks_future() {
        let clock = SystemClock::new();
        let ahead = clock.now() + Duration::from_secs(3600);
        clock.not_before(ahead);
        assert!(clock.now() >= ahead);
        assert!(clock.now() < ahead + Duration::from_secs(60));
        clock.not_before(Timestamp::from_millis(0));
        assert!(clock.now() >= ahead);
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
