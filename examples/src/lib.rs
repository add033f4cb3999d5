//! Programs that show the crates at work. Each is one file beside this package's manifest.
//!
//! | program | shows |
//! |---|---|
//! | `merge_in_memory` | the numbers without a network: a cut model, replicas that learn from other samples, butterfly merges |
//! | `embed_a_miner` | miners, and an orchestrator, as tasks of a program that has other things to do |
//!
//! ```sh
//! cargo run --release -p iota-examples --example merge_in_memory
//! cargo run --release -p iota-examples --example embed_a_miner
//! cargo run --release -p iota-examples --example embed_a_miner -- --orchestrator http://10.0.0.1:7400
//! ```
