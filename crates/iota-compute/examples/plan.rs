//! Prints what each stage of a model needs in memory.
//!
//! ```text
//! cargo run -p iota-compute --example plan -- PRESET [--stages 1] [--sequences 1] [--waiting 1] [--threads 1] [--recompute]
//! ```
//!
//! `--waiting`: forward passes that wait for their backward passes at one time. `--recompute`: blocks keep their input only
//! and compute the rest again.

use iota_compute::{MemoryPlan, Recompute, StageOptions};
use iota_model::{StagePlan, preset};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut name = None;
    let (mut stages, mut sequences, mut waiting) = (1, 1, 1);
    let mut options = StageOptions::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next();
            let value = value.ok_or_else(|| format!("{argument} needs a number"))?;
            value
                .parse::<usize>()
                .map_err(|error| format!("{argument} {value}: {error}"))
        };
        match argument.as_str() {
            "--stages" => stages = number()?,
            "--sequences" => sequences = number()?,
            "--waiting" => waiting = number()?,
            "--threads" => options.threads = number()?,
            "--recompute" => options.recompute = Recompute::Blocks,
            flag if flag.starts_with('-') => return Err(format!("unknown flag {flag}").into()),
            _ => name = Some(argument),
        }
    }
    let model = preset(&name.ok_or("which preset? such as testnet or 15B")?)?;
    let plan = StagePlan::new(&model, stages)?;
    for index in 0..stages {
        let tokens = sequences * model.context;
        let memory = MemoryPlan::new(&plan, index, &options, tokens, waiting as u64)?;
        println!("stage {index}, {memory}\n");
    }
    Ok(())
}
