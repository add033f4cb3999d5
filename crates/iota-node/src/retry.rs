//! Trying again, later and later, within bounds.
//!
//! When a server stumbles, everybody who waits for it stumbles at the same moment; if all come back after the same
//! pause, they knock it over again. So each pause is drawn from *zero* up to a ceiling that doubles ("full jitter"):
//!
//! ```text
//!   ceiling  ▏──▏ ▏────▏ ▏────────▏ ▏────────────────▏ ▏────────────────▏   delay_max
//!   pause    ▏x  ▏   x ▏ ▏ x       ▏ ▏           x    ▏ ▏   x
//!   attempt  1     2      3           4                   5
//! ```
//!
//! The seed and the clock come in from outside: a simulation replays the same pauses without waiting for any.
//!
//! Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (full jitter).

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tracing::debug;

use crate::clock::Clock;
use crate::shutdown::Shutdown;

/// How patient to be. Both bounds hold: whichever is reached first ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Ceiling of the first pause; it doubles with every further one.
    pub delay_initial: Duration,
    /// The ceiling grows no further than this.
    pub delay_max: Duration,
    /// Attempts in all, the first one included. At least one is always made.
    pub attempts_max: u32,
    /// No attempt starts later than this after the first one did.
    pub elapsed_max: Duration,
}

impl Default for Policy {
    /// For a call to a server that may be restarting: about a minute.
    fn default() -> Self {
        Self {
            delay_initial: Duration::from_millis(200),
            delay_max: Duration::from_secs(10),
            attempts_max: 12,
            elapsed_max: Duration::from_secs(60),
        }
    }
}

/// What an error means for the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may work next time.
    Retry,
    /// It may work next time, and the server has said not to come before so long.
    RetryAfter(Duration),
    /// It will not work next time either.
    GiveUp,
}

/// Why there was no further attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stopped {
    /// The error was one that no attempt mends.
    Permanent,
    /// [`Policy::attempts_max`] attempts were made.
    Attempts,
    /// The next attempt would have started after [`Policy::elapsed_max`].
    Elapsed,
    /// The process is stopping.
    Shutdown,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permanent => "trying again would not help",
            Self::Attempts => "that was the last attempt",
            Self::Elapsed => "the time for it is used up",
            Self::Shutdown => "the process is stopping",
        })
    }
}

/// The last attempt's error, and why it was the last.
#[derive(Debug, thiserror::Error)]
#[error("gave up at attempt {attempts}: {stopped}")]
pub struct RetryError<E: std::error::Error + 'static> {
    /// Attempts made, at least 1.
    pub attempts: u32,
    /// Why there was no further one.
    pub stopped: Stopped,
    /// What the last attempt said.
    pub source: E,
}

/// The pauses of one operation: an endless sequence, the same for the same seed.
#[derive(Debug, Clone)]
pub struct Backoff {
    ceiling: Duration,
    delay_max: Duration,
    random: u64,
}

impl Backoff {
    /// The pauses that `policy` and `seed` give. Callers that may fail together need different seeds.
    pub fn new(policy: &Policy, seed: u64) -> Self {
        Self {
            ceiling: policy.delay_initial.min(policy.delay_max),
            delay_max: policy.delay_max,
            random: seed,
        }
    }

    /// The next pause: uniform between zero and the ceiling of its turn.
    pub fn next_delay(&mut self) -> Duration {
        let ceiling = self.ceiling;
        self.ceiling = ceiling.saturating_mul(2).min(self.delay_max);
        ceiling.mul_f64(self.next_fraction())
    }

    /// Uniform in `0.0..1.0`, in steps of 2^-53. SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): spreads out
    /// neighbouring seeds, which is all that pauses need.
    fn next_fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Runs an operation until it works, within a [`Policy`].
#[derive(Debug)]
pub struct Retry<'a> {
    policy: Policy,
    seed: u64,
    clock: &'a dyn Clock,
    shutdown: Shutdown,
}

impl<'a> Retry<'a> {
    /// Retries by `policy`, waiting by `clock`, until `shutdown` is requested.
    pub fn new(policy: Policy, seed: u64, clock: &'a dyn Clock, shutdown: &Shutdown) -> Self {
        Self {
            policy,
            seed,
            clock,
            shutdown: shutdown.clone(),
        }
    }

    /// Calls `operation` with the number of the attempt (from 1) until it returns `Ok` or `decide` or the policy ends
    /// it. An attempt under way is never cut short, not even by a shutdown; a pause is.
    ///
    /// A server's [`Decision::RetryAfter`] is added to the pause of that turn: nobody comes before the server is ready,
    /// and not all at once when it is.
    ///
    /// # Errors
    /// The last attempt's error.
    pub async fn run<T, E, F>(
        &self,
        mut operation: impl FnMut(u32) -> F,
        mut decide: impl FnMut(&E) -> Decision,
    ) -> Result<T, RetryError<E>>
    where
        E: std::error::Error + 'static,
        // An `AsyncFnMut` would read better, but its futures cannot be spawned: "`Send` is not general enough".
        F: Future<Output = Result<T, E>>,
    {
        let mut backoff = Backoff::new(&self.policy, self.seed);
        let last_start = self.clock.now() + self.policy.elapsed_max;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let source = match operation(attempts).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let stop = |stopped, source| {
                Err(RetryError {
                    attempts,
                    stopped,
                    source,
                })
            };
            let asked_for = match decide(&source) {
                Decision::Retry => Duration::ZERO,
                Decision::RetryAfter(delay) => delay,
                Decision::GiveUp => return stop(Stopped::Permanent, source),
            };
            if attempts >= self.policy.attempts_max {
                return stop(Stopped::Attempts, source);
            }
            let delay = asked_for.saturating_add(backoff.next_delay());
            let next_start = self.clock.now() + delay;
            // Waiting for a moment that is too late anyway would only hide the error for longer.
            if next_start > last_start {
                return stop(Stopped::Elapsed, source);
            }
            debug!(attempts, delay_ms = delay.as_millis(), error = %source, "trying again");
            tokio::select! {
                biased;
                () = self.shutdown.wait() => return stop(Stopped::Shutdown, source),
                () = self.clock.sleep_until(next_start) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use iota_protocol::Timestamp;

    use super::*;
    use crate::clock::ManualClock;

    #[derive(Debug, PartialEq, thiserror::Error)]
    #[error("attempt {0} failed")]
    struct Failed(u32);

    const POLICY: Policy = Policy {
        delay_initial: Duration::from_millis(100),
        delay_max: Duration::from_secs(1),
        attempts_max: 5,
        elapsed_max: Duration::MAX,
    };

    fn clock() -> ManualClock {
        ManualClock::skipping(Timestamp::from_millis(0))
    }

    async fn always_failing(
        policy: Policy,
        clock: &ManualClock,
        decision: Decision,
    ) -> RetryError<Failed> {
        let retry = Retry::new(policy, 7, clock, &Shutdown::new());
        retry
            .run(
                |attempt| async move { Err::<(), _>(Failed(attempt)) },
                |_| decision,
            )
            .await
            .expect_err("it always fails")
    }

    #[tokio::test]
    async fn the_first_success_ends_it() {
        let clock = clock();
        let retry = Retry::new(POLICY, 7, &clock, &Shutdown::new());
        let third = retry
            .run(
                |attempt| async move {
                    if attempt < 3 {
                        Err(Failed(attempt))
                    } else {
                        Ok(attempt)
                    }
                },
                |_| Decision::Retry,
            )
            .await;
        assert_eq!(third.expect("the third attempt works"), 3);
    }

    #[tokio::test]
    async fn the_number_of_attempts_is_bounded_and_the_last_error_comes_out() {
        let error = always_failing(POLICY, &clock(), Decision::Retry).await;
        assert_eq!(
            (error.attempts, error.stopped, error.source),
            (5, Stopped::Attempts, Failed(5))
        );
    }

    #[tokio::test]
    async fn a_permanent_error_is_not_tried_again() {
        let clock = clock();
        let error = always_failing(POLICY, &clock, Decision::GiveUp).await;
        assert_eq!((error.attempts, error.stopped), (1, Stopped::Permanent));
        assert_eq!(clock.now(), Timestamp::from_millis(0));
    }

    #[tokio::test]
    async fn no_attempt_starts_after_the_time_is_used_up() {
        let policy = Policy {
            attempts_max: u32::MAX,
            elapsed_max: Duration::from_secs(5),
            ..POLICY
        };
        let clock = clock();
        let error = always_failing(policy, &clock, Decision::Retry).await;
        assert_eq!(error.stopped, Stopped::Elapsed);
        assert!(error.attempts > 2);
        assert!(clock.now() <= Timestamp::from_millis(5_000));
    }

    #[tokio::test]
    async fn the_server_is_left_alone_for_as_long_as_it_asked() {
        let clock = clock();
        let decision = Decision::RetryAfter(Duration::from_secs(20));
        let error = always_failing(
            Policy {
                attempts_max: 3,
                ..POLICY
            },
            &clock,
            decision,
        )
        .await;
        assert_eq!(error.attempts, 3);
        let waited = clock.now().since(Timestamp::from_millis(0));
        assert!(
            waited >= Duration::from_secs(40) && waited < Duration::from_secs(41),
            "{waited:?}"
        );
    }

    #[tokio::test]
    async fn a_server_that_asks_for_too_long_is_given_up_without_waiting() {
        let clock = clock();
        let policy = Policy {
            elapsed_max: Duration::from_secs(60),
            ..POLICY
        };
        let error = always_failing(policy, &clock, Decision::RetryAfter(Duration::MAX)).await;
        assert_eq!((error.attempts, error.stopped), (1, Stopped::Elapsed));
        assert_eq!(clock.now(), Timestamp::from_millis(0));
    }

    #[tokio::test]
    async fn a_shutdown_ends_the_pause_but_not_the_attempt() {
        // This clock stands still: a pause that the shutdown does not end would never end.
        let clock = ManualClock::new(Timestamp::from_millis(0));
        let shutdown = Shutdown::new();
        let retry = Retry::new(POLICY, 7, &clock, &shutdown);
        let stops = &shutdown;
        let attempt = |attempt| async move {
            stops.request();
            tokio::task::yield_now().await;
            Err::<(), _>(Failed(attempt))
        };
        let error = retry
            .run(attempt, |_| Decision::Retry)
            .await
            .expect_err("it always fails");
        assert_eq!(
            (error.attempts, error.stopped, error.source),
            (1, Stopped::Shutdown, Failed(1))
        );
    }

    #[tokio::test]
    async fn a_retry_may_run_in_a_task_of_its_own() {
        let clock: Arc<dyn Clock> = Arc::new(clock());
        let (calls, shutdown) = (Arc::new(AtomicU32::new(0)), Shutdown::new());
        let counted = Arc::clone(&calls);
        let task = tokio::spawn(async move {
            let message = String::from("a request that every attempt borrows");
            let retry = Retry::new(POLICY, 7, &*clock, &shutdown);
            let (message, counted) = (&message, &counted);
            let call = |attempt| async move {
                tokio::task::yield_now().await;
                counted.fetch_add(1, Ordering::Relaxed);
                if attempt < 2 {
                    Err(Failed(attempt))
                } else {
                    Ok(message.len())
                }
            };
            retry
                .run(call, |_| Decision::Retry)
                .await
                .map_err(|error| error.stopped)
        });
        assert_eq!(task.await.expect("the task does not panic"), Ok(36));
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn ceilings_double_up_to_the_cap() {
        let ceilings_ms = [100, 200, 400, 800, 1_000, 1_000];
        let mut longest_ms = [0; 6];
        for seed in 0..500 {
            let mut backoff = Backoff::new(&POLICY, seed);
            for (longest_ms, ceiling_ms) in longest_ms.iter_mut().zip(ceilings_ms) {
                let delay_ms = backoff.next_delay().as_millis();
                assert!(
                    delay_ms <= ceiling_ms,
                    "seed {seed}: {delay_ms} ms over {ceiling_ms} ms"
                );
                *longest_ms = delay_ms.max(*longest_ms);
            }
        }
        for (longest_ms, ceiling_ms) in longest_ms.into_iter().zip(ceilings_ms) {
            assert!(
                longest_ms * 100 >= ceiling_ms * 95,
                "{longest_ms} ms is far from {ceiling_ms} ms"
            );
        }
    }

    #[test]
    fn pauses_spread_evenly_over_the_whole_range() {
        let mut quarters = [0; 4];
        for seed in 0..4_000 {
            let delay = Backoff::new(&POLICY, seed).next_delay();
            quarters[(delay.as_millis() / 25) as usize] += 1;
        }
        // Expected 1000 each with a standard deviation of 27.
        assert!(
            quarters.iter().all(|count| (890..1_110).contains(count)),
            "{quarters:?}"
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_pauses() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(&POLICY, seed);
            [(); 8].map(|()| backoff.next_delay())
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
    }
}
