//! Checks and times a stage on a card, in one call: prints a short table last, and writes all numbers to a file.
//!
//! ```text
//! cargo build --release -p iota-cuda --features cuda --example cuda_check
//! target/release/examples/cuda_check [--out FILE] [--kernels FOLDER] [--device N] [--budget SECONDS] [--small]
//! ```
//!
//! 1. The card's ceilings: copies on the card, copies to and from the host, a large product.
//! 2. Every operation against its definition in f64, in f32 and bf16, beside the CPU; twice, for the bits.
//! 3. Attention by fused kernels beside attention by products, on the 8B model's shapes: times, and how far apart.
//! 4. 200 steps of a small model on the CPU and on the card.
//! 5. How far card and CPU come apart while one redoes what the other does: what audits of a card have to tolerate.
//! 6. Steps of body stages of the 8B and 15B models: tokens per second, MFU, and each operation beside its floor.
//! 7. Steps of a body stage whose copies go beside its passes, and of one whose passes wait for them.
//!
//! Fails if an operation is wrong, bits differ between two runs, or the losses part. What a part has found is in the file as
//! soon as the part has ended, and each stage of 6 when it has been timed; a part that fails is a failure and costs no other
//! part. Ends within the budget, leaving out what is left of 6 and 7: exit code 0 if all holds, 1 if something does not, 2 if there
//! is no card to work on. With `--small` everything is tiny: that is how it is tried where there is no card.

mod attention;
mod cases;
mod ceilings;
mod copies;
mod drifting;
mod learning;
mod operations;
mod patient;
mod stages;

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use iota_cuda::Card;
use serde_json::{Map, Value};

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

/// What has been found so far, in the file.
struct Report {
    path: PathBuf,
    start: Instant,
    parts: Map<String, Value>,
}

impl Report {
    /// Adds what a part has found, or puts it in the place of what it had found before.
    fn save(&mut self, part: &str, found: Value, findings: &Findings) -> Result<()> {
        let elapsed_s = self.start.elapsed().as_secs_f64();
        self.parts.insert(part.to_owned(), found);
        self.parts.insert("elapsed_s".to_owned(), elapsed_s.into());
        self.parts
            .insert("failures".to_owned(), findings.failures.clone().into());
        let text = serde_json::to_string_pretty(&self.parts)?;
        std::fs::write(&self.path, text)
            .map_err(|error| format!("{}: {error}", self.path.display()).into())
    }
}

/// What a part comes to; none if it failed, which is noted.
fn part<T>(
    name: &str,
    findings: &mut Findings,
    work: impl FnOnce(&mut Findings) -> Result<T>,
) -> Option<T> {
    let done = catch_unwind(AssertUnwindSafe(|| work(findings)));
    let failure = match done {
        Ok(Ok(found)) => return Some(found),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("it panicked: {}", message(&*panic)),
    };
    findings.failure(format!("{name}: {failure}"));
    None
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
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
    let small = arguments.small;
    let mut report = Report {
        path: arguments.out,
        start,
        parts: Map::new(),
    };
    report.save("version", 2.into(), &findings)?;
    report.save("card", card.info().to_string().into(), &findings)?;
    let ceilings = part("ceilings", &mut findings, |findings| {
        ceilings::measure(&card, small, findings)
    });
    let found = ceilings.as_ref().map(ceilings::Ceilings::to_json);
    report.save("ceilings", found.into(), &findings)?;
    let found = part("operations", &mut findings, |findings| {
        operations::check(&card, small, findings)
    });
    report.save("operations", found.into(), &findings)?;
    if let Some(ceilings) = &ceilings {
        let found = part("attention", &mut findings, |findings| {
            attention::compare(&card, ceilings, small, findings)
        });
        report.save("attention", found.into(), &findings)?;
    }
    let found = part("learning", &mut findings, |findings| {
        learning::compare(&card, small, findings)
    });
    report.save("learning", found.into(), &findings)?;
    let found = part("drift", &mut findings, |findings| {
        drifting::measure(&card, small, findings)
    });
    report.save("drift", found.into(), &findings)?;
    println!("{:.0} s so far", start.elapsed().as_secs_f64());
    let mut entries = Vec::new();
    for case in cases::CASES {
        let name = format!("{} T={}", case.model, case.tokens);
        if start.elapsed() > arguments.budget {
            findings.line(format!("{name} left out: no time"));
            continue;
        }
        let Some(ceilings) = &ceilings else {
            continue;
        };
        entries.extend(part(&name, &mut findings, |findings| {
            stages::time_case(&card, ceilings, case, small, findings)
        }));
        report.save("stages", entries.clone().into(), &findings)?;
    }
    if start.elapsed() > arguments.budget {
        findings.line("copies left out: no time".to_owned());
    } else {
        let found = part("copies", &mut findings, |findings| {
            copies::measure(&card, small, findings)
        });
        report.save("copies", found.into(), &findings)?;
    }
    report.save("finished", true.into(), &findings)?;
    let elapsed_s = start.elapsed().as_secs_f64();
    println!(
        "\n--- after {elapsed_s:.0} s; all numbers are in {}",
        report.path.display()
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
