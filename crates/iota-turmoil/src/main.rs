//! Lives through many seeded worlds, each in a process of its own, and says what they went through.

use std::io::IsTerminal as _;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::Instant;

use clap::Parser;
use iota_turmoil::{Counts, Death, Lived, Which, kept_seeds, live};
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
    /// Instead, for every write to the journal of an otherwise untroubled run, two worlds in which the orchestrator dies of
    /// it: with the write lost, and with the write kept and nobody told
    #[arg(long, conflicts_with_all = ["seed", "seeds", "from"])]
    every_write: bool,
    /// Only the untroubled world, in this process
    #[arg(long, conflicts_with_all = ["seed", "seeds", "from", "every_write"])]
    calm: bool,
    /// The write to the journal that the orchestrator dies of, counted from 0
    #[arg(long, value_name = "N", requires = "calm")]
    dies_at: Option<u64>,
    /// That write is there afterwards
    #[arg(long, requires = "dies_at")]
    kept: bool,
    /// Print everything that happens in it
    #[arg(long)]
    trace: bool,
    /// Print what its runtimes log, such as `info` or `iota_peer=debug`, on standard error
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Print the result as a line of JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let which = match arguments.seed {
        Some(seed) => Some(Which::Troubled { seed }),
        None if arguments.calm => Some(Which::Calm {
            death: arguments.dies_at.map(|write| Death {
                write,
                kept: arguments.kept,
            }),
        }),
        None => None,
    };
    match which {
        Some(which) => one(which, &arguments),
        None if arguments.every_write => every_write(&arguments),
        None => {
            let seeds = arguments.from..arguments.from.saturating_add(arguments.seeds);
            let seeds = kept_seeds().chain(seeds);
            many(
                &arguments,
                seeds.map(|seed| Which::Troubled { seed }),
                |_| true,
            )
        }
    }
}

fn one(which: Which, arguments: &Arguments) -> ExitCode {
    if let Some(filter) = &arguments.log {
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(filter))
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .init();
    }
    match live(which, arguments.trace) {
        Ok(lived) if arguments.json => {
            let line = serde_json::to_string(&lived).expect("numbers and texts are JSON");
            println!("{line}");
            ExitCode::SUCCESS
        }
        Ok(lived) => {
            println!("{which}: trace {}", lived.trace);
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

/// Each of so many writes of a run without trouble, lost and kept.
fn every_write(arguments: &Arguments) -> ExitCode {
    let calm = start(Which::Calm { death: None }).and_then(Child::wait_with_output);
    let Some(calm) = calm.ok().and_then(|output| said(&output)) else {
        eprintln!("the world in which nothing goes wrong shows a fault");
        return ExitCode::FAILURE;
    };
    println!("a run of {} writes", calm.writes);
    let deaths = (0..calm.writes).flat_map(|write| {
        let death = move |kept| Which::Calm {
            death: Some(Death { write, kept }),
        };
        [false, true].map(death)
    });
    // Everybody's session outlives the orchestrator, and nobody's work is given to another.
    many(arguments, deaths, |lived| {
        lived.joins == calm.joins
            && lived.re_leased == calm.re_leased
            && lived.completed == calm.completed
    })
}

/// Lives through worlds that have to be as they should.
fn many(
    arguments: &Arguments,
    mut worlds: impl Iterator<Item = Which>,
    should: impl Fn(&Lived) -> bool,
) -> ExitCode {
    let jobs = arguments.jobs.unwrap_or_else(iota_node::threads::available);
    let started = Instant::now();
    let (mut totals, mut faulty) = (Totals::default(), 0_u64);
    let mut running = std::collections::VecDeque::new();
    loop {
        while running.len() < jobs.max(1)
            && let Some(which) = worlds.next()
        {
            match start(which) {
                Ok(child) => running.push_back((which, child)),
                Err(error) => {
                    eprintln!("cannot start a process: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
        // The oldest is waited for; the others work meanwhile.
        let Some((which, child)) = running.pop_front() else {
            break;
        };
        let output = child.wait_with_output();
        match output.ok().and_then(|output| said(&output)) {
            Some(lived) => {
                if !should(&lived) {
                    eprintln!("{which}: somebody noticed more than calls to repeat: {lived:?}");
                    faulty += 1;
                }
                totals.add(&lived);
            }
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

/// What the process of a world said, if the world came to a good end.
fn said(output: &Output) -> Option<Lived> {
    let lived = output.status.success().then_some(&output.stdout)?;
    serde_json::from_slice(lived).ok()
}

/// A process for one world: it answers for chance and time in all of its process.
fn start(which: Which) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(which.to_string().split(' '))
        .arg("--json")
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
            "{} worlds, {} faults, {:.2} virtual hours, {} events",
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
