//! The iota-orchestrator program: a whole local testnet in one command, or an orchestrator that waits for miners.

mod arguments;
mod commands;
mod history;
mod model;

use clap::Parser as _;
use iota_node::Exit;

use arguments::Arguments;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Exit {
    let arguments = Arguments::parse();
    commands::execute(arguments).unwrap_or_else(|error| {
        eprintln!("iota-orchestrator: {error:#}");
        commands::exit_code(&error)
    })
}
