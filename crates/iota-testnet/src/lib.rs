//! A whole network in one process or in child processes.
