//! Work that would hold up an async thread: long computations, and calls that wait for a disk.
//!
//! ```text
//!   spawn(work) ───┬──► tokio's threads for blocking work        every program
//!                  └──► a task: a pause, then the work at once   a simulation
//! ```
//!
//! A simulation has one thread, so that the same seed gives the same order, and its clock is not the machine's: work takes
//! as long as the simulation says. So everything in our runtimes that leaves its thread does it here.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Says how long the next piece of work takes.
type Pauses = Box<dyn Fn() -> Duration + Send + Sync>;

static SIMULATED: OnceLock<Pauses> = OnceLock::new();

/// From now on, and for the whole process, nothing leaves its thread: work is done in a task, after a pause by tokio's clock
/// that `pause` says the length of. For simulations, before anything is started.
///
/// # Panics
/// If it was called before.
pub fn simulate(pause: impl Fn() -> Duration + Send + Sync + 'static) {
    let first = SIMULATED.set(Box::new(pause)).is_ok();
    assert!(first, "a process simulates once");
}

/// Does `work` where it may take its time. It is done even if nobody waits for it.
///
/// # Panics
/// Outside a tokio runtime.
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match SIMULATED.get() {
        None => tokio::task::spawn_blocking(work),
        Some(pause) => {
            let pause = pause();
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                work()
            })
        }
    }
}

/// Does one job after the other in a thread of their own, for as long as somebody can send some. `name` is the thread's.
/// `work` is told how many jobs wait behind the one that it is given.
///
/// # Errors
/// If the system gives no thread.
pub fn spawn_thread<Job: Send + 'static>(
    name: &str,
    mut jobs: mpsc::Receiver<Job>,
    mut work: impl FnMut(Job, usize) + Send + 'static,
) -> std::io::Result<()> {
    match SIMULATED.get() {
        None => {
            let thread = std::thread::Builder::new().name(name.to_owned());
            thread.spawn(move || {
                while let Some(job) = jobs.blocking_recv() {
                    work(job, jobs.len());
                }
            })?;
        }
        Some(pause) => {
            tokio::spawn(async move {
                while let Some(job) = jobs.recv().await {
                    tokio::time::sleep(pause()).await;
                    work(job, jobs.len());
                }
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_are_done_in_order_until_nobody_can_send_any() {
        let (send, jobs) = mpsc::channel(4);
        let (done, mut heard) = mpsc::unbounded_channel();
        spawn_thread("jobs", jobs, move |job: u32, _| {
            done.send(job).expect("the test listens");
        })
        .expect("there is a thread");
        for job in 0..20 {
            send.send(job).await.expect("the thread takes jobs");
        }
        drop(send);
        for job in 0..20 {
            assert_eq!(heard.recv().await, Some(job));
        }
        assert_eq!(heard.recv().await, None);
    }

    #[tokio::test]
    async fn whoever_works_is_told_how_many_jobs_wait() {
        let (send, jobs) = mpsc::channel(4);
        let (done, mut heard) = mpsc::unbounded_channel();
        for job in 0..3 {
            send.try_send(job).expect("there is room");
        }
        spawn_thread("jobs", jobs, move |job: u32, waiting| {
            done.send((job, waiting)).expect("the test listens");
        })
        .expect("there is a thread");
        for expected in [(0, 2), (1, 1), (2, 0)] {
            assert_eq!(heard.recv().await, Some(expected));
        }
    }

    #[tokio::test]
    async fn work_that_panics_says_so_to_whoever_waits() {
        assert_eq!(spawn(|| 7).await.expect("it does not panic"), 7);
        let panicked = spawn(|| panic!("as the test wants it")).await;
        assert!(panicked.is_err_and(|error| error.is_panic()));
    }
}
