//! Checks and times a stage on a card, in one call: prints a short table last, and writes all numbers to a file.
//!
//! ```text
//! cargo build --release -p iota-cuda --features cuda --example cuda_check
//! target/release/examples/cuda_check [--out FILE] [--kernels FOLDER] [--device N] [--budget SECONDS] [--small]
//! ```
//!
//! 1. The card's ceilings: copies on the card, copies to and from the host, a large product.
//! 2. Every operation against its definition in f64, in f32 and bf16, beside the CPU; twice, for the bits.
//! 3. 200 steps of a small model on the CPU and on the card.
//! 4. Steps of body stages of the 8B and 15B models: tokens per second, MFU, and each operation beside its floor.
//!
//! Fails if an operation is wrong, bits differ between two runs, or the losses part. Ends within the budget, leaving out
//! what is left of 4. With `--small` everything is tiny: that is how it is tried where there is no card.

mod ceilings;
mod learning;
mod operations;
mod patient;
mod stages;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use iota_cuda::Card;
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Arguments {
    out: PathBuf,
    kernels: Option<PathBuf>,
    device: usize,
    budget: Duration,
    small: bool,
}

/// What the parts have found.
#[derive(Default)]
struct Findings {
    /// Lines of the short table.
    table: Vec<String>,
    /// What does not hold.
    failures: Vec<String>,
}

impl Findings {
    fn line(&mut self, line: String) {
        println!("{line}");
        self.table.push(line);
    }

    fn failure(&mut self, failure: String) {
        println!("WRONG: {failure}");
        self.failures.push(failure);
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cuda_check: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<usize> {
    let arguments = arguments()?;
    let start = Instant::now();
    let card = Card::open(arguments.device, arguments.kernels.as_deref())?;
    println!("{}", card.info());
    println!(
        "opened in {:.2} s, {:.1} GiB are free",
        start.elapsed().as_secs_f64(),
        gib(card.free_bytes()?)
    );
    let mut findings = Findings::default();
    findings.line(format!("card         {}", card.info()));
    let ceilings = ceilings::measure(&card, arguments.small, &mut findings)?;
    let operations = operations::check(&card, arguments.small, &mut findings)?;
    let learning = learning::compare(&card, arguments.small, &mut findings)?;
    println!("{:.0} s so far", start.elapsed().as_secs_f64());
    let deadline = start + arguments.budget;
    let stages = stages::time(&card, &ceilings, deadline, arguments.small, &mut findings)?;
    let elapsed_s = start.elapsed().as_secs_f64();
    let report = json!({
        "version": 1,
        "card": card.info().to_string(),
        "elapsed_s": elapsed_s,
        "ceilings": ceilings.to_json(),
        "operations": operations,
        "learning": learning,
        "stages": stages,
        "failures": findings.failures,
    });
    write(&arguments.out, &report)?;
    println!(
        "\n--- after {elapsed_s:.0} s; all numbers are in {}",
        arguments.out.display()
    );
    for line in &findings.table {
        println!("{line}");
    }
    match findings.failures.len() {
        0 => println!("all checks hold"),
        _ => findings
            .failures
            .iter()
            .for_each(|failure| println!("WRONG: {failure}")),
    }
    Ok(findings.failures.len())
}

fn write(path: &PathBuf, report: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn arguments() -> Result<Arguments> {
    let mut arguments = Arguments {
        out: "cuda_check.json".into(),
        kernels: None,
        device: 0,
        budget: Duration::from_secs(420),
        small: false,
    };
    let mut given = std::env::args().skip(1);
    while let Some(flag) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--out" => arguments.out = value()?.into(),
            "--kernels" => arguments.kernels = Some(value()?.into()),
            "--device" => arguments.device = value()?.parse()?,
            "--budget" => arguments.budget = Duration::from_secs(value()?.parse()?),
            "--small" => arguments.small = true,
            _ => return Err(format!("there is no flag {flag}").into()),
        }
    }
    Ok(arguments)
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1_u32 << 30)
}

/// Numbers in (-1, 1), the same for the same seed.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// The median of several measurements.
fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
