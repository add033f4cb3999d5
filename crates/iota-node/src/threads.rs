//! How many threads there are to compute on.

/// Threads that run at one time on this machine; 1 if the system does not say.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
