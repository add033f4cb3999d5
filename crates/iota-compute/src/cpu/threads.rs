//! Spreading work over threads without changing its result.

use std::sync::Arc;

use rayon::prelude::*;

use super::spare::Spare;
use crate::error::{Error, Result};

/// The threads that a stage computes on: its caller's alone, or a pool of its own; and the memory that their work shares.
///
/// Work is cut into jobs by its shape, never by the number of threads, so that results have the same bits for any number.
#[derive(Debug, Clone)]
pub(super) struct Threads {
    /// `None`: the caller's thread does everything. Many stages of one process do best that way.
    pool: Option<Arc<rayon::ThreadPool>>,
    /// For packed factors.
    pub(super) words: Arc<Spare<u32>>,
    /// For logits.
    pub(super) numbers: Arc<Spare<f32>>,
}

impl Threads {
    pub(super) fn new(threads: usize) -> Result<Self> {
        if threads <= 1 {
            return Ok(Self {
                pool: None,
                words: Arc::default(),
                numbers: Arc::default(),
            });
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("iota-compute-{index}"))
            .build()
            .map_err(|source| Error::Threads { threads, source })?;
        Ok(Self {
            pool: Some(Arc::new(pool)),
            words: Arc::default(),
            numbers: Arc::default(),
        })
    }

    pub(super) fn count(&self) -> usize {
        self.pool
            .as_ref()
            .map_or(1, |pool| pool.current_num_threads())
    }

    /// Runs `work` where [`each`](Self::each) is cheapest to call.
    pub(super) fn scope<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Does every job, in any order.
    pub(super) fn each<J: Send>(
        &self,
        jobs: impl Iterator<Item = J>,
        work: impl Fn(J) + Send + Sync,
    ) {
        match &self.pool {
            None => jobs.for_each(work),
            Some(pool) => {
                let jobs: Vec<J> = jobs.collect();
                pool.install(|| jobs.into_par_iter().for_each(work));
            }
        }
    }

    /// Does every job and returns the results in the jobs' order.
    pub(super) fn map<J: Send, R: Send>(
        &self,
        jobs: impl Iterator<Item = J>,
        work: impl Fn(J) -> R + Send + Sync,
    ) -> Vec<R> {
        match &self.pool {
            None => jobs.map(work).collect(),
            Some(pool) => {
                let jobs: Vec<J> = jobs.collect();
                pool.install(|| jobs.into_par_iter().map(work).collect())
            }
        }
    }

    /// For the `gemm` crate, called within [`scope`](Self::scope).
    pub(super) fn parallelism(&self) -> gemm::Parallelism {
        match &self.pool {
            Some(pool) => gemm::Parallelism::Rayon(pool.current_num_threads()),
            None => gemm::Parallelism::None,
        }
    }
}
