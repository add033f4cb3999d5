//! Whole training steps of an uncut model: tokens per second, peak memory, and where the time goes.
//!
//! ```text
//! cargo run --release -p iota-compute --example throughput -- [--model testnet] [--threads 1] [--sequences 4] [--steps 20]
//!     [--precision f32|bf16] [--recompute] [--learning-rate 1e-4] [--operations] [--weights FILE] [--json]
//! ```
//!
//! `--model wide` is a model of 45 million parameters with a vocabulary of 32,000; other names are presets.
//! `--operations` times each operation, and a large square matrix product beside them, which is what the machine can do.
//! `--weights` trains nothing and writes the initial weights and the tokens as safetensors, so that
//! `benches/peers/stage_step.py` can train the same model on the same text with PyTorch.

#![expect(unsafe_code, reason = "the gemm crate takes pointers")]

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use iota_compute::backend::{Form, Product, Write};
use iota_compute::timed::{Entry, Timed};
use iota_compute::{AdamW, Backend, Cpu, Input, OptimizerSettings, Recompute, Stage, UpdateRule};
use iota_model::{Boundary, ModelConfig, Precision, StagePlan, preset};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// As the programs have it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The first steps allocate.
const WARM_UP: usize = 2;

/// Rows of the matrix product that stands for what the machine can do.
const SQUARE: usize = 2048;

/// Rows whose logits the CPU holds at a time.
const LOSS_ROWS: usize = 512;

/// The seed of the initial weights.
const SEED: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let model = match arguments.model.as_str() {
        "wide" => wide()?,
        name => preset(name)?,
    };
    let plan = StagePlan::new(&model, 1)?;
    let text = text(arguments.sequences * model.context, model.vocabulary);
    let cpu = Cpu::new(arguments.threads)?.with_precision(arguments.precision);
    if let Some(path) = &arguments.weights {
        return write_weights(path, cpu, &plan, &text);
    }
    let tokens = text.len() - 1;
    let report = if arguments.operations {
        let mut beside = Beside::new(cpu.clone(), &arguments, &plan, tokens);
        let timed = Timed::new(cpu);
        measure(&arguments, &plan, &text, timed.clone(), || {
            (timed.take(), Some(beside.run()))
        })?
    } else {
        measure(&arguments, &plan, &text, cpu, || (Vec::new(), None))?
    };
    if arguments.json {
        println!("{}", report.json(&arguments, &plan, tokens));
    } else {
        report.print(&arguments, &plan, tokens);
    }
    Ok(())
}

struct Arguments {
    model: String,
    threads: usize,
    sequences: usize,
    steps: usize,
    learning_rate: f32,
    precision: Precision,
    recompute: Recompute,
    operations: bool,
    weights: Option<PathBuf>,
    json: bool,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut parsed = Self {
            model: "testnet".to_owned(),
            threads: 1,
            sequences: 4,
            steps: 20,
            learning_rate: 1e-4,
            precision: Precision::F32,
            recompute: Recompute::Nothing,
            operations: false,
            weights: None,
            json: false,
        };
        while let Some(name) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| format!("{name} takes a value"))
            };
            match name.as_str() {
                "--model" => parsed.model = value()?,
                "--threads" => parsed.threads = value()?.parse()?,
                "--sequences" => parsed.sequences = value()?.parse()?,
                "--steps" => parsed.steps = value()?.parse()?,
                "--learning-rate" => parsed.learning_rate = value()?.parse()?,
                "--precision" => {
                    parsed.precision = match value()?.as_str() {
                        "f32" => Precision::F32,
                        "bf16" => Precision::Bf16,
                        other => return Err(format!("there is no precision {other}").into()),
                    }
                }
                "--recompute" => parsed.recompute = Recompute::Blocks,
                "--operations" => parsed.operations = true,
                "--weights" => parsed.weights = Some(value()?.into()),
                "--json" => parsed.json = true,
                _ => return Err(format!("{name}: there is no such option or value").into()),
            }
        }
        if parsed.steps == 0 || parsed.sequences == 0 {
            return Err("--steps and --sequences count from 1".into());
        }
        Ok(parsed)
    }
}

/// Times in seconds, one per step that is counted.
struct Report {
    /// Of every step, the first ones too.
    losses: Vec<f32>,
    /// Forward and backward.
    passes: Vec<f64>,
    optimizer: Vec<f64>,
    /// What the fastest step was made of.
    operations: Vec<Entry>,
    /// The fastest of each.
    reference: Option<Reference>,
}

/// Trains, and asks after each step what it was made of.
fn measure<B: Backend>(
    arguments: &Arguments,
    plan: &StagePlan,
    text: &[u32],
    backend: B,
    mut between: impl FnMut() -> (Vec<Entry>, Option<Reference>),
) -> Result<Report, Box<dyn Error>> {
    let mut stage = Stage::on(backend, plan, 0, optimizer())?.with_recompute(arguments.recompute);
    stage.initialise(SEED)?;
    let (tokens, targets) = (&text[..text.len() - 1], &text[1..]);
    let mut report = Report {
        losses: Vec::new(),
        passes: Vec::new(),
        optimizer: Vec::new(),
        operations: Vec::new(),
        reference: None,
    };
    let mut fastest = f64::INFINITY;
    for step in 0..WARM_UP + arguments.steps {
        let start = Instant::now();
        let (loss, _) = stage.forward_backward_loss(Input::Tokens(tokens), targets)?;
        let passes = start.elapsed().as_secs_f64();
        stage.step(arguments.learning_rate, 1)?;
        let whole = start.elapsed().as_secs_f64();
        let (operations, reference) = between();
        report.losses.push(loss);
        if step < WARM_UP {
            continue;
        }
        report.passes.push(passes);
        report.optimizer.push(whole - passes);
        if whole < fastest {
            fastest = whole;
            report.operations = operations;
        }
        report.reference = match (report.reference, reference) {
            (Some(before), Some(now)) => Some(Reference {
                square_seconds: before.square_seconds.min(now.square_seconds),
                loss_seconds: before.loss_seconds.min(now.loss_seconds),
            }),
            (before, now) => before.or(now),
        };
    }
    Ok(report)
}

/// Without clipping; the norm is computed all the same.
fn optimizer() -> OptimizerSettings {
    OptimizerSettings {
        rule: UpdateRule::AdamW(rule()),
        clip_norm: f32::INFINITY,
        ..OptimizerSettings::default()
    }
}

fn rule() -> AdamW {
    AdamW::default()
}

/// Products that are done between the steps, so that they meet the same weather: nothing else on the machine is faster
/// than the first, and the others are those of the loss, which a step does not time by themselves.
struct Beside {
    cpu: Cpu,
    threads: usize,
    precision: Precision,
    square: [Vec<f32>; 3],
    loss: Vec<(Product, [Vec<f32>; 3])>,
    /// How often the loss does each of its products.
    loss_chunks: f64,
}

/// What [`Beside`] took.
struct Reference {
    square_seconds: f64,
    loss_seconds: f64,
}

impl Beside {
    fn new(cpu: Cpu, arguments: &Arguments, plan: &StagePlan, tokens: usize) -> Self {
        let (width, vocabulary) = (plan.config().width, plan.config().vocabulary);
        let rows = LOSS_ROWS.min(tokens);
        let product = |form, rows, columns, inner| Product {
            form,
            rows,
            columns,
            inner,
        };
        let loss = [
            product(Form::TransposedRight, rows, vocabulary, width),
            product(Form::Plain, rows, width, vocabulary),
            product(Form::TransposedLeft, vocabulary, width, rows),
        ];
        let buffers = |rows: usize, columns: usize, inner: usize| {
            [rows * columns, rows * inner, inner * columns].map(|elements| vec![1e-3; elements])
        };
        Self {
            cpu,
            threads: arguments.threads,
            precision: arguments.precision,
            square: buffers(SQUARE, SQUARE, SQUARE),
            loss: loss
                .map(|product| {
                    (
                        product,
                        buffers(product.rows, product.columns, product.inner),
                    )
                })
                .into(),
            loss_chunks: tokens as f64 / rows as f64,
        }
    }

    fn run(&mut self) -> Reference {
        let start = Instant::now();
        self.square();
        let square_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for (product, [out, a, b]) in &mut self.loss {
            self.cpu
                .matmul(*product, out, a, b, Write::Add)
                .expect("a product on a CPU has no errors");
        }
        Reference {
            square_seconds,
            loss_seconds: start.elapsed().as_secs_f64() * self.loss_chunks,
        }
    }

    /// The `gemm` crate as it is, without our cutting of sums; in bf16, our own product.
    fn square(&mut self) {
        let [out, a, b] = &mut self.square;
        if self.precision == Precision::Bf16 {
            let product = Product {
                form: Form::Plain,
                rows: SQUARE,
                columns: SQUARE,
                inner: SQUARE,
            };
            self.cpu
                .matmul(product, out, a, b, Write::Replace)
                .expect("a product on a CPU has no errors");
            return;
        }
        let parallelism = match self.threads {
            1 => gemm::Parallelism::None,
            threads => gemm::Parallelism::Rayon(threads),
        };
        let stride = SQUARE as isize;
        // SAFETY: each of the three slices has SQUARE x SQUARE elements, which these strides stay within; `out` is
        // borrowed mutably, so it overlaps neither of the others.
        self.cpu.scope(|| unsafe {
            gemm::gemm(
                SQUARE,
                SQUARE,
                SQUARE,
                out.as_mut_ptr(),
                stride,
                1,
                false,
                a.as_ptr(),
                stride,
                1,
                b.as_ptr(),
                stride,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        });
    }
}

impl Report {
    fn print(&self, arguments: &Arguments, plan: &StagePlan, tokens: usize) {
        let steps: Vec<f64> = self.step_seconds().collect();
        let (median, best) = (median(&steps), least(&steps));
        println!(
            "{}: {} parameters, {} x {} tokens, {} threads: {:.0} tokens/s (best {:.0}), {:.1} ms a step, of which {:.1} for \
             the optimizer; loss {:.5}; peak memory {} MiB",
            arguments.model,
            plan.parameters(),
            arguments.sequences,
            plan.config().context,
            arguments.threads,
            tokens as f64 / median,
            tokens as f64 / best,
            median * 1e3,
            self.optimizer_median() * 1e3,
            self.losses[self.losses.len() - 1],
            peak_memory_bytes().unwrap_or(0) >> 20,
        );
        let Some(reference) = &self.reference else {
            return;
        };
        let peak = square_operations() / reference.square_seconds;
        println!(
            "a {SQUARE} x {SQUARE} x {SQUARE} product: {:.0} GFLOP/s; the fastest step, {:.1} ms:\n",
            peak / 1e9,
            best * 1e3
        );
        println!(
            "{:<36} {:>5} {:>8} {:>6} {:>8} {:>6} {:>6}",
            "operation", "calls", "ms", "%", "GFLOP/s", "peak", "GB/s"
        );
        for entry in &self.operations {
            let seconds = entry.elapsed.as_secs_f64();
            let rate = entry.operations as f64 / seconds;
            let (gigaflops, of_peak) = if entry.operations > 0 {
                (format!("{:.0}", rate / 1e9), format!("{:.2}", rate / peak))
            } else {
                (String::new(), String::new())
            };
            println!(
                "{:<36} {:>5} {:>8.2} {:>6.1} {:>8} {:>6} {:>6.1}",
                name(entry),
                entry.calls,
                seconds * 1e3,
                100.0 * seconds / best,
                gigaflops,
                of_peak,
                entry.operand_bytes as f64 / seconds / 1e9,
            );
        }
        println!(
            "\nthe products of the loss alone: {:.2} ms",
            reference.loss_seconds * 1e3
        );
    }

    fn json(&self, arguments: &Arguments, plan: &StagePlan, tokens: usize) -> Value {
        let operations = self.operations.iter().map(|entry| {
            json!({
                "operation": entry.operation,
                "shape": entry.product.map(shape),
                "calls": entry.calls,
                "seconds": entry.elapsed.as_secs_f64(),
                "operations": entry.operations,
                "operand_bytes": entry.operand_bytes,
            })
        });
        json!({
            "model": arguments.model,
            "parameters": plan.parameters(),
            "threads": arguments.threads,
            "tokens": tokens,
            "losses": self.losses,
            "step_seconds": self.step_seconds().collect::<Vec<_>>(),
            "optimizer_seconds": self.optimizer_median(),
            "peak_memory_bytes": peak_memory_bytes(),
            "operations": operations.collect::<Vec<_>>(),
            "peak_flops": self.reference.as_ref().map(|reference| square_operations() / reference.square_seconds),
            "loss_products_seconds": self.reference.as_ref().map(|reference| reference.loss_seconds),
        })
    }

    fn step_seconds(&self) -> impl Iterator<Item = f64> {
        self.passes
            .iter()
            .zip(&self.optimizer)
            .map(|(passes, optimizer)| passes + optimizer)
    }

    fn optimizer_median(&self) -> f64 {
        median(&self.optimizer)
    }
}

fn name(entry: &Entry) -> String {
    match entry.product {
        Some(product) => format!("{} {}", entry.operation, shape(product)),
        None => entry.operation.to_owned(),
    }
}

/// Which of a linear layer's products it is, and rows x columns x terms of each sum.
fn shape(product: Product) -> String {
    let form = match product.form {
        Form::TransposedRight => "x w^T",
        Form::Plain => "dy w",
        Form::TransposedLeft => "dy^T x",
    };
    format!(
        "{form} {}x{}x{}",
        product.rows, product.columns, product.inner
    )
}

fn square_operations() -> f64 {
    2.0 * (SQUARE as f64).powi(3)
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn least(seconds: &[f64]) -> f64 {
    seconds.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The most that this process has held at a time, where the system says so.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// The initial weights by name, and the text as `tokens`; the model and the optimizer as metadata.
fn write_weights(
    path: &Path,
    cpu: Cpu,
    plan: &StagePlan,
    text: &[u32],
) -> Result<(), Box<dyn Error>> {
    let mut stage = Stage::on(cpu, plan, 0, optimizer())?;
    stage.initialise(SEED)?;
    let bytes = |values: &[f32]| {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for tensor in stage.layout().tensors() {
        let values = bytes(&stage.state().parameters[tensor.range()]);
        tensors.push((tensor.name(), Dtype::F32, tensor.shape.clone(), values));
    }
    let tokens = text
        .iter()
        .flat_map(|&token| i64::from(token).to_le_bytes())
        .collect();
    tensors.push(("tokens".to_owned(), Dtype::I64, vec![text.len()], tokens));
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let OptimizerSettings { weight_decay, .. } = optimizer();
    let AdamW {
        beta1,
        beta2,
        epsilon,
    } = rule();
    let optimizer =
        json!({"beta1": beta1, "beta2": beta2, "epsilon": epsilon, "weight_decay": weight_decay});
    let metadata = HashMap::from([
        ("model".to_owned(), serde_json::to_string(plan.config())?),
        ("optimizer".to_owned(), optimizer.to_string()),
    ]);
    safetensors::serialize_to_file(views, Some(metadata), path)?;
    Ok(())
}

/// Tokens that are all over the vocabulary, and that a model can learn.
fn text(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..=count)
        .map(|index| (index * index % 251 * 127 % vocabulary) as u32)
        .collect()
}

/// The model that PyTorch was measured on: 45 million parameters.
fn wide() -> Result<ModelConfig, iota_model::UnknownPreset> {
    Ok(ModelConfig {
        vocabulary: 32_000,
        width: 512,
        blocks: 4,
        heads: 8,
        key_value_heads: 4,
        feed_forward: 1408,
        context: 256,
        boundary: Boundary::None,
        ..preset("testnet")?
    })
}
