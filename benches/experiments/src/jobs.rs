//! Many runs, several at a time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

/// Works off a queue on so many threads, and prints what `run_one` says of each run as it ends. Returns the outcomes; the
/// first error ends its thread after the run that it is in.
pub(crate) fn run_all<J: Send, T: Send>(
    open: VecDeque<J>,
    jobs: usize,
    run_one: &(impl Fn(&J) -> Result<(T, String)> + Sync),
) -> Result<Vec<T>> {
    let total = open.len();
    let (open, done) = (Mutex::new(open), AtomicUsize::new(0));
    let next = || {
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        open.pop_front()
    };
    let work = || -> Result<Vec<T>> {
        let mut outcomes = Vec::new();
        while let Some(job) = next() {
            let (outcome, said) = run_one(&job)?;
            let nth = done.fetch_add(1, Ordering::Relaxed) + 1;
            println!("{nth} of {total}: {said}");
            outcomes.push(outcome);
        }
        Ok(outcomes)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        let mut outcomes = Vec::new();
        for worker in workers {
            let worker = worker.join();
            outcomes.extend(worker.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(outcomes)
    })
}

/// Whether a variant of this name is among those that `--only` asks for: all if it is not given.
pub(crate) fn is_asked_for(name: &str, only: &[String]) -> bool {
    only.is_empty()
        || only.iter().any(|word| match word.strip_prefix('=') {
            Some(whole) => name == whole,
            None => name.contains(word.as_str()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_asked_for_by_a_part_of_their_name_or_by_all_of_it() {
        let only = ["top-k".to_owned(), "=mean, f32".to_owned()];
        assert!(is_asked_for("mean, top-k 64", &only));
        assert!(is_asked_for("mean, f32", &only));
        assert!(!is_asked_for("mean, f32, moments merged", &only));
        assert!(is_asked_for("anything", &[]));
    }
}
