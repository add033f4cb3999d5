//! Lives through many seeded worlds and says what they went through.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use iota_sim::{Counts, kept_seeds, run};

/// Drives the rules of a run through seeded worlds full of trouble. Exit code 0: no world showed a fault.
#[derive(Debug, Parser)]
#[command(name = "iota-sim", version)]
struct Arguments {
    /// How many worlds to live through. Without --seed the kept ones come first [default: 1 with --seed, else 1000]
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long, value_name = "K")]
    seed: Option<u64>,
    /// Print everything that happens
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let first = arguments.seed.unwrap_or(0);
    let usual = if arguments.seed.is_some() { 1 } else { 1_000 };
    let count = arguments.seeds.unwrap_or(usual);
    let kept = kept_seeds().filter(|_| arguments.seed.is_none());
    let started = Instant::now();
    let mut totals = Totals::default();
    let mut faulty = 0_u64;
    for seed in kept.chain(first..first.saturating_add(count)) {
        match run(seed, arguments.trace) {
            Ok(run) => {
                if arguments.trace || count == 1 {
                    println!("seed {seed}: trace {}", run.trace);
                }
                totals.add(&run);
            }
            Err(failed) => {
                eprintln!("{failed}");
                faulty += 1;
            }
        }
    }
    totals.print(started.elapsed().as_secs_f64());
    if faulty > 0 {
        eprintln!("{faulty} worlds showed a fault");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

#[derive(Debug, Default)]
struct Totals {
    worlds: u64,
    faults: Counts,
    virtual_ms: u64,
    commands: u64,
    events: u64,
    banned: u64,
    audits: u64,
    ahead: u64,
    completed: u64,
    lost: u64,
    places: iota_sim::Places,
}

impl Totals {
    fn add(&mut self, run: &iota_sim::Run) {
        self.worlds += 1;
        self.faults += run.faults;
        self.virtual_ms += run.virtual_ms;
        self.commands += run.commands;
        self.events += run.events;
        self.banned += run.banned;
        self.audits += run.audits;
        self.ahead += run.ahead;
        self.completed += run.samples.completed;
        self.lost += run.samples.lost;
        self.places += run.places;
    }

    fn print(&self, wall_seconds: f64) {
        println!("faults injected, by kind:\n{}", self.faults);
        println!(
            "{} seeds, {} faults, {:.1} virtual hours, {} commands checked, {} events",
            self.worlds,
            self.faults.total(),
            self.virtual_ms as f64 / 3_600_000.0,
            self.commands,
            self.events,
        );
        println!(
            "{} samples completed, {} dropped as runs ended, {} audits, {} cheaters banned, {} replays of work done while stages merged",
            self.completed, self.lost, self.audits, self.banned, self.ahead,
        );
        println!(
            "{} had to wait for a place, {} were admitted, {} places expired, {} windows opened",
            self.places.waited, self.places.admitted, self.places.expired, self.places.windows,
        );
        println!(
            "{wall_seconds:.1} s, {:.0} seeds per second",
            self.worlds as f64 / wall_seconds
        );
    }
}
