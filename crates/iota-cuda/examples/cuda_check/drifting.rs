//! How far the card is from the CPU that redoes its work, as a validator would: what audits have to tolerate.

use std::sync::Arc;

use iota_compute::drift::{Course, Quantity, drift};
use iota_compute::{Backend, Cpu, Distance, OptimizerSettings, Stage};
use iota_cuda::{Card, Cuda};
use iota_model::{Boundary, ModelConfig, Precision, StagePlan};
use serde_json::{Value, json};

use crate::learning::{model, processors, text};
use crate::{Findings, Result};

/// Between f32 and f32, and where the card rounds factors: beside a CPU that does too, and one that does not.
const PAIRS: [(Precision, Precision); 3] = [
    (Precision::F32, Precision::F32),
    (Precision::Bf16, Precision::Bf16),
    (Precision::F32, Precision::Bf16),
];

pub(crate) fn measure(card: &Arc<Card>, small: bool, findings: &mut Findings) -> Result<Value> {
    let config = ModelConfig {
        boundary: Boundary::None,
        ..model(small)?
    };
    let plan = StagePlan::new(&config, 3)?;
    let text = text(config.vocabulary);
    let tokens = config.context * 4;
    let course = Course {
        before: 0,
        steps: if small { 4 } else { 64 },
        backwards_per_step: 1,
        learning_rate: 1e-3,
        warmup_steps: 16,
        cells: 6,
    };
    let mut entries = Vec::new();
    for (cpu, on_card) in PAIRS {
        let checker = Cpu::new(processors())?.with_precision(cpu);
        let mut checker = stages(&plan, &checker)?;
        let mut doer = stages(&plan, &Cuda::on(card.clone(), on_card))?;
        let mut samples = |sample: u64| {
            let start = sample as usize * 37 % (text.len() - tokens - 1);
            let read = |from: usize| text[from..from + tokens].to_vec();
            (read(start), read(start + 1))
        };
        let mut wire = |_, _, _, values| values;
        let drifts = drift(&mut checker, &mut doer, course, &mut samples, &mut wire)?;
        let worst = |quantity, steps| {
            drifts
                .iter()
                .filter(|drift| drift.quantity == quantity && drift.steps <= steps)
                .fold(Distance::default(), |worst, drift| {
                    worst.max(drift.distance)
                })
        };
        for steps in [1, course.steps] {
            let apart: Vec<String> = Quantity::ALL
                .into_iter()
                .map(|quantity| format!("{quantity:?} {:.0e}", worst(quantity, steps).relative))
                .collect();
            let apart = apart.join(", ");
            findings.line(format!(
                "drift        {on_card:?} beside {cpu:?} on the CPU, {steps} steps: {apart}"
            ));
        }
        let rows: Vec<Value> = drifts
            .iter()
            .map(|it| {
                json!({
                    "quantity": format!("{:?}", it.quantity),
                    "steps": it.steps,
                    "relative": it.distance.relative,
                    "row": it.distance.row,
                    "scale": it.distance.scale,
                })
            })
            .collect();
        entries.push(json!({
            "cpu": format!("{cpu:?}"),
            "card": format!("{on_card:?}"),
            "rows": rows,
        }));
    }
    Ok(entries.into())
}

fn stages<B: Backend>(plan: &StagePlan, device: &B) -> Result<Vec<Stage<B>>> {
    (0..plan.stages().len())
        .map(|index| {
            let optimizer = OptimizerSettings::default();
            let mut stage = Stage::on(device.clone(), plan, index, optimizer)?;
            stage.initialise(1)?;
            Ok(stage)
        })
        .collect()
}
