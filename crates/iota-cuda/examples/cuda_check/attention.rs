//! Attention by fused kernels and by matrix products, side by side, on the shapes of the models that are timed.

use std::sync::Arc;

use iota_compute::backend::AttentionShape;
use iota_compute::timed::Timed;
use iota_compute::{Backend, Distance};
use iota_cuda::{AttentionPath, Buffer, Card, Cuda};
use iota_model::Precision;
use serde_json::{Value, json};

use crate::ceilings::{Ceilings, repeated};
use crate::{Findings, Result, noise};

/// How far apart the two paths may be: both round probabilities to bf16, one before they are divided by their sum.
const ALLOWED: f64 = 1e-2;

const PATHS: [AttentionPath; 2] = [AttentionPath::Fused, AttentionPath::Products];

/// Heads of the 8B model: about as many tokens in all at both lengths.
fn shapes(small: bool) -> Vec<AttentionShape> {
    let shape = |sequences, tokens| AttentionShape {
        sequences,
        tokens,
        heads: if small { 4 } else { 32 },
        key_value_heads: if small { 1 } else { 8 },
        head_width: if small { 64 } else { 128 },
    };
    if small {
        vec![shape(1, 70)]
    } else {
        vec![shape(10, 800), shape(2, 4096)]
    }
}

/// What attention is given, and what it makes.
struct Bench {
    device: Cuda,
    shape: AttentionShape,
    packed: Buffer,
    out_gradient: Buffer,
    out: Buffer,
    log_sums: Buffer,
    packed_gradient: Buffer,
}

impl Bench {
    fn new(card: &Arc<Card>, shape: AttentionShape, path: AttentionPath) -> Result<Self> {
        let device = Cuda::on(card.clone(), Precision::Bf16).with_attention_path(path);
        let drawn = |elements, seed| -> Result<Buffer> {
            let mut buffer = device.allocate(elements)?;
            device.upload(device.all_mut(&mut buffer), &noise(elements, seed))?;
            Ok(buffer)
        };
        let (packed, out) = (
            shape.rows() * shape.packed_width(),
            shape.rows() * shape.width(),
        );
        Ok(Self {
            packed: drawn(packed, 1)?,
            out_gradient: drawn(out, 2)?,
            out: device.allocate(out)?,
            log_sums: device.allocate(shape.rows() * shape.heads)?,
            packed_gradient: device.allocate(packed)?,
            shape,
            device,
        })
    }

    fn forward<B>(&mut self, device: &B) -> iota_compute::Result<()>
    where
        B: Backend<Buffer = Buffer>,
    {
        device.attention(
            device.all_mut(&mut self.out),
            device.all_mut(&mut self.log_sums),
            device.all(&self.packed),
            self.shape,
        )
    }

    fn backward<B>(&mut self, device: &B) -> iota_compute::Result<()>
    where
        B: Backend<Buffer = Buffer>,
    {
        device.attention_backward(
            device.all_mut(&mut self.packed_gradient),
            device.all(&self.out_gradient),
            device.all(&self.out),
            device.all(&self.log_sums),
            device.all(&self.packed),
            self.shape,
        )
    }

    /// Seconds forward and backward.
    fn time(&mut self, card: &Card) -> Result<[f64; 2]> {
        let device = self.device.clone();
        Ok([
            repeated(card, 5, || self.forward(&device))?,
            repeated(card, 5, || self.backward(&device))?,
        ])
    }

    /// Seconds that they take at least, by the arithmetic or by the operands that each reads and writes.
    fn floors(&mut self, ceilings: &Ceilings) -> Result<[f64; 2]> {
        let device = Timed::new(self.device.clone());
        let mut floors = [0.0; 2];
        for (floor, backward) in floors.iter_mut().zip([false, true]) {
            if backward {
                self.backward(&device)?;
            } else {
                self.forward(&device)?;
            }
            *floor = device
                .take()
                .iter()
                .map(|entry| ceilings.floor_s(entry))
                .sum();
        }
        Ok(floors)
    }

    fn results(&self) -> Result<[Vec<f32>; 2]> {
        let device = &self.device;
        Ok([
            device.download(device.all(&self.out))?,
            device.download(device.all(&self.packed_gradient))?,
        ])
    }
}

pub(crate) fn compare(
    card: &Arc<Card>,
    ceilings: &Ceilings,
    small: bool,
    findings: &mut Findings,
) -> Result<Value> {
    println!("\nattention in bf16, forward and backward; floor by arithmetic or operands");
    let mut entries = Vec::new();
    for shape in shapes(small) {
        let mut results = Vec::new();
        let mut seconds = Vec::new();
        let mut floors = [0.0; 2];
        for path in PATHS {
            let mut bench = Bench::new(card, shape, path)?;
            floors = bench.floors(ceilings)?;
            let times = bench.time(card)?;
            println!(
                "  {:<8} {} x {:<5} forward {:>8.3} ms ({:>3.0}% of its floor's rate), backward {:>8.3} ms ({:>3.0}%)",
                format!("{path:?}"),
                shape.sequences,
                shape.tokens,
                1e3 * times[0],
                100.0 * floors[0] / times[0],
                1e3 * times[1],
                100.0 * floors[1] / times[1],
            );
            results.push(bench.results()?);
            seconds.push(times);
        }
        let [fused, products] = [&results[0], &results[1]];
        let row_elements = [shape.width(), shape.packed_width()];
        let apart =
            [0, 1].map(|i| Distance::between(&products[i], &fused[i], row_elements[i]).relative);
        if !apart.iter().all(|apart| *apart <= ALLOWED) {
            findings.failure(format!(
                "fused attention and that of products are {apart:?} apart at {shape:?}"
            ));
        }
        findings.line(format!(
            "attention    T={:<5} fused {:.2} + {:.2} ms, by products {:.2} + {:.2} ms, floor {:.2} + {:.2} ms (forward + backward, {} sequences); {:.1e} apart",
            shape.tokens,
            1e3 * seconds[0][0],
            1e3 * seconds[0][1],
            1e3 * seconds[1][0],
            1e3 * seconds[1][1],
            1e3 * floors[0],
            1e3 * floors[1],
            shape.sequences,
            f64::max(apart[0], apart[1]),
        ));
        entries.push(json!({
            "sequences": shape.sequences,
            "tokens": shape.tokens,
            "heads": shape.heads,
            "key_value_heads": shape.key_value_heads,
            "head_width": shape.head_width,
            "fused_s": seconds[0],
            "products_s": seconds[1],
            "floor_s": floors,
            "apart": apart,
        }));
    }
    Ok(entries.into())
}
