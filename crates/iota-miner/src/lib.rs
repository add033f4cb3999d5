//! The miner as a library: takes leases, runs a stage, moves tensors.
