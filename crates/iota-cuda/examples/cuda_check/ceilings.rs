//! What the card can do at best, measured in the same run as everything else.

use std::sync::Arc;
use std::time::Instant;

use iota_compute::Backend;
use iota_compute::backend::{Form, Product, Write};
use iota_compute::timed::Entry;
use iota_cuda::{Card, Cuda};
use iota_model::Precision;
use serde_json::{Value, json};

use crate::{Findings, Result, median, noise};

pub(crate) struct Ceilings {
    /// Bytes read and bytes written by a large copy on the card.
    pub(crate) memory_bytes_per_s: f64,
    /// A large product of bf16 factors, their rounding left out: what its matrices take is subtracted at the memory's rate.
    pub(crate) product_per_s: f64,
    /// From the card's data sheet, where it is known: what MFU is a share of.
    pub(crate) peak_per_s: f64,
    to_card_bytes_per_s: f64,
    to_host_bytes_per_s: f64,
}

impl Ceilings {
    /// Seconds that an operation takes at least, by its arithmetic or by the operands that it reads and writes.
    pub(crate) fn floor_s(&self, entry: &Entry) -> f64 {
        let by_arithmetic = entry.operations as f64 / self.product_per_s;
        let by_memory = entry.operand_bytes as f64 / self.memory_bytes_per_s;
        f64::max(by_arithmetic, by_memory)
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "memory_bytes_per_s": self.memory_bytes_per_s,
            "product_per_s": self.product_per_s,
            "peak_per_s": self.peak_per_s,
            "to_card_bytes_per_s": self.to_card_bytes_per_s,
            "to_host_bytes_per_s": self.to_host_bytes_per_s,
        })
    }
}

pub(crate) fn measure(card: &Arc<Card>, small: bool, findings: &mut Findings) -> Result<Ceilings> {
    let device = Cuda::on(card.clone(), Precision::Bf16);
    let elements = if small { 1 << 14 } else { 1 << 29 };
    let values = noise(elements.min(1 << 24), 1);
    let mut source = device.allocate(elements)?;
    let mut copy = device.allocate(elements)?;
    let part = 0..values.len();
    let to_card_s = repeated(card, 5, || {
        device.upload(device.view_mut(&mut source, part.clone()), &values)
    })?;
    let to_host_s = repeated(card, 5, || {
        device
            .download(device.view(&source, part.clone()))
            .map(drop)
    })?;
    let copy_s = repeated(card, 9, || {
        device.copy(device.all_mut(&mut copy), device.all(&source))
    })?;
    drop((source, copy));
    let memory_bytes_per_s = (8 * elements) as f64 / copy_s;

    let side = if small { 64 } else { 8192 };
    let product = Product {
        form: Form::TransposedRight,
        rows: side,
        columns: side,
        inner: side,
    };
    let numbers = noise(side * side, 2);
    let [mut a, mut b, mut out] = [
        device.allocate(side * side)?,
        device.allocate(side * side)?,
        device.allocate(side * side)?,
    ];
    device.upload(device.all_mut(&mut a), &numbers)?;
    device.upload(device.all_mut(&mut b), &numbers)?;
    let product_s = repeated(card, 9, || {
        let (a, b) = (device.all(&a), device.all(&b));
        device.matmul(product, device.all_mut(&mut out), a, b, Write::Replace)
    })?;
    // Both factors are read as f32 and written as bf16 before they are multiplied.
    let rounding_s = (2 * 6 * side * side) as f64 / memory_bytes_per_s;
    let product_per_s = 2.0 * (side as f64).powi(3) / (product_s - rounding_s).max(product_s / 2.0);
    let name = &card.info().name;
    let peak_per_s = match card.info().capability {
        // SXM cards, dense bf16.
        (9, 0) if name.contains("H100") || name.contains("H200") => 989e12,
        (8, 0) => 312e12,
        _ => product_per_s,
    };
    let ceilings = Ceilings {
        memory_bytes_per_s,
        product_per_s,
        peak_per_s,
        to_card_bytes_per_s: (4 * values.len()) as f64 / to_card_s,
        to_host_bytes_per_s: (4 * values.len()) as f64 / to_host_s,
    };
    findings.line(format!(
        "ceilings     memory {:.2} TB/s, bf16 product {:.0} TFLOP/s (data sheet {:.0}), host to card {:.1} GB/s, back {:.1} GB/s",
        memory_bytes_per_s / 1e12,
        product_per_s / 1e12,
        peak_per_s / 1e12,
        ceilings.to_card_bytes_per_s / 1e9,
        ceilings.to_host_bytes_per_s / 1e9,
    ));
    Ok(ceilings)
}

/// Seconds that something takes until the card is done with it: the median, after one to warm up.
pub(crate) fn repeated(
    card: &Card,
    times: usize,
    mut work: impl FnMut() -> iota_compute::Result<()>,
) -> Result<f64> {
    work()?;
    card.synchronize()?;
    let mut seconds = Vec::new();
    for _ in 0..times {
        let start = Instant::now();
        work()?;
        card.synchronize()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(median(seconds))
}
