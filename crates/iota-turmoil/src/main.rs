//! Lives through many seeded worlds, each in a process of its own, and says what they went through.

use std::io::IsTerminal as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use clap::Parser;
use iota_turmoil::{Counts, Lived, kept_seeds, live};
use tracing_subscriber::EnvFilter;

/// Drives the runtimes of a run through seeded worlds full of trouble. Exit code 0: no world showed a fault.
#[derive(Debug, Parser)]
#[command(name = "iota-turmoil", version)]
struct Arguments {
    /// How many worlds to live through, after the kept ones
    #[arg(long, value_name = "N", default_value_t = 50, conflicts_with = "seed")]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "K", default_value_t = 0, conflicts_with = "seed")]
    from: u64,
    /// How many at a time [default: one for each core]
    #[arg(long, value_name = "N", conflicts_with = "seed")]
    jobs: Option<usize>,
    /// Only the world of this seed, in this process
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Print everything that happens in it
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Print what its runtimes log, such as `info` or `iota_peer=debug`, on standard error
    #[arg(long, value_name = "FILTER", requires = "seed")]
    log: Option<String>,
    /// Print the result as a line of JSON
    #[arg(long, requires = "seed")]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.seed {
        Some(seed) => one(seed, &arguments),
        None => many(&arguments),
    }
}

fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    if let Some(filter) = &arguments.log {
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(filter))
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .init();
    }
    match live(seed, arguments.trace) {
        Ok(lived) if arguments.json => {
            let line = serde_json::to_string(&lived).expect("numbers and texts are JSON");
            println!("{line}");
            ExitCode::SUCCESS
        }
        Ok(lived) => {
            println!("seed {seed}: trace {}", lived.trace);
            let mut totals = Totals::default();
            totals.add(&lived);
            totals.print();
            ExitCode::SUCCESS
        }
        Err(failed) => {
            eprintln!("{failed}");
            ExitCode::FAILURE
        }
    }
}

fn many(arguments: &Arguments) -> ExitCode {
    let jobs = arguments.jobs.unwrap_or_else(iota_node::threads::available);
    let seeds = arguments.from..arguments.from.saturating_add(arguments.seeds);
    let mut seeds = kept_seeds().chain(seeds);
    let started = Instant::now();
    let (mut totals, mut faulty) = (Totals::default(), 0_u64);
    let mut running = std::collections::VecDeque::new();
    loop {
        while running.len() < jobs.max(1)
            && let Some(seed) = seeds.next()
        {
            match start(seed) {
                Ok(child) => running.push_back(child),
                Err(error) => {
                    eprintln!("cannot start a process: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
        // The oldest is waited for; the others work meanwhile.
        let Some(child) = running.pop_front() else {
            break;
        };
        let output = child.wait_with_output();
        let lived = output.ok().filter(|output| output.status.success());
        match lived.and_then(|output| serde_json::from_slice::<Lived>(&output.stdout).ok()) {
            Some(lived) => totals.add(&lived),
            // The process has said what it was.
            None => faulty += 1,
        }
    }
    totals.print();
    let wall_seconds = started.elapsed().as_secs_f64();
    println!(
        "{wall_seconds:.1} s, {:.2} virtual hours in a minute",
        totals.virtual_ms as f64 / 60_000.0 / wall_seconds
    );
    if faulty > 0 {
        eprintln!("{faulty} worlds showed a fault");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// A process for one world: it answers for chance and time in all of its process.
fn start(seed: u64) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["--seed", &seed.to_string(), "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
}

#[derive(Debug, Default)]
struct Totals {
    worlds: u64,
    faults: Counts,
    virtual_ms: u64,
    events: u64,
    completed: u64,
    lost: u64,
    re_leased: u64,
    audits: u64,
    banned: u64,
}

impl Totals {
    fn add(&mut self, lived: &Lived) {
        self.worlds += 1;
        self.faults.add(&lived.faults);
        self.virtual_ms += lived.virtual_ms;
        self.events += lived.events;
        self.completed += lived.completed;
        self.lost += lived.lost;
        self.re_leased += lived.re_leased;
        self.audits += lived.audits;
        self.banned += lived.banned;
    }

    fn print(&self) {
        println!("faults injected, by kind:\n{}", self.faults);
        println!(
            "{} seeds, {} faults, {:.2} virtual hours, {} events",
            self.worlds,
            self.faults.total(),
            self.virtual_ms as f64 / 3_600_000.0,
            self.events,
        );
        println!(
            "{} samples completed, {} dropped as runs ended, {} pieces leased again, {} audits, {} cheaters banned",
            self.completed, self.lost, self.re_leased, self.audits, self.banned,
        );
    }
}
