//! Experiments: what a design choice costs in loss, measured by training, as commands that print a table.
//!
//! ```text
//!               variants x seeds
//!                      |
//!   text ──► [stage]─wire─[stage]─wire─[stage] ──► loss          one process, one thread a run, a batch at a time
//!                      |
//!           boundaries.jsonl  ──►  table (.md), curves (.csv), plots (.svg)
//! ```
//!
//! Every result is written down as it comes and skipped the next time, so a long table can be made in pieces.
//!
//! ```sh
//! cargo run --release -p iota-experiments -- boundaries --seeds 3 --jobs 2
//! ```
//!
//! | module | concern |
//! |---|---|
//! | [`boundaries`] | the experiment on boundaries: its variants, and the runs of them |
//! | [`merging`] | the experiment on merges: rules, outer steps, codecs, what becomes of optimizer state, garbage |
//! | [`parity`] | whole networks beside the uncut model |
//! | [`wire`] | [`wire::Wire`]: what the numbers that cross become on the way |
//! | [`pipeline`] | stages in sequence, trained and evaluated |
//! | [`text`] | the bundled text as batches |
//! | [`model`], [`curve`] | what is trained, and when it is looked at |
//! | [`jobs`] | many runs, several at a time |
//! | [`outcome`] | results on disk |
//! | [`summary`] | many seeds of a variant as one row |
//! | [`table`], [`chart`] | rows as Markdown and CSV, lines as SVG |
//!
//! What it does *not* know: how a network is made; `iota-testnet` trains across one for [`parity`].

mod boundaries;
mod chart;
mod curve;
mod jobs;
mod merging;
mod model;
mod outcome;
mod parity;
mod pipeline;
mod summary;
mod table;
mod text;
mod wire;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a design choice costs in loss, measured by training.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What crosses from a stage to the next: all channels or a bottleneck, in which encoding.
    Boundaries(boundaries::Options),
    /// What replicas of a model lose by training apart: how they are merged, in how many bytes.
    Merging(merging::Options),
    /// Whole networks beside the uncut model.
    Parity(parity::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Boundaries(options) => boundaries::run(&options),
        Command::Merging(options) => merging::run(&options),
        Command::Parity(options) => parity::run(&options),
    }
}
