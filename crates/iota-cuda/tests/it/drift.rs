//! How far the kernels are from the CPU while a model trains on both: what an audit of a card's work would have to
//! tolerate, as far as an emulation shows it. `--no-capture` prints the table that is in docs/CUDA.md.

use iota_compute::drift::{Course, Drift, Quantity, drift};
use iota_compute::{Backend, Cpu, Distance, OptimizerSettings, Stage};
use iota_cuda::Cuda;
use iota_model::{Boundary, Precision, StagePlan};

use crate::emulator::Emulator;
use crate::stage::model;

const STEPS: u64 = 16;

fn stages<B: Backend>(plan: &StagePlan, device: impl Fn() -> B) -> Vec<Stage<B>> {
    (0..plan.stages().len())
        .map(|index| {
            let optimizer = OptimizerSettings::default();
            let mut stage = Stage::on(device(), plan, index, optimizer).unwrap();
            stage.initialise(3).unwrap();
            stage
        })
        .collect()
}

/// Sixteen steps on both; nothing is lost between stages. None where kernels cannot be compiled.
fn beside_the_cpu(precision: Precision) -> Option<Vec<Drift>> {
    let plan = StagePlan::new(&model(Boundary::None), 2).unwrap();
    let emulator = Emulator::new(1)?;
    let mut cpu = stages(&plan, || Cpu::new(1).unwrap().with_precision(precision));
    let mut cuda = stages(&plan, || Cuda::on(emulator.clone(), precision));
    let course = Course {
        before: 0,
        steps: STEPS,
        backwards_per_step: 1,
        learning_rate: 3e-3,
        warmup_steps: 4,
        cells: 3,
    };
    let mut samples = |sample: u64| {
        let text: Vec<u32> = (0..49_u64)
            .map(|at| ((at * at + (3 + sample % 5) * at) % 61) as u32)
            .collect();
        (text[..48].to_vec(), text[1..].to_vec())
    };
    let mut wire = |_, _, _, values| values;
    let drifts = drift(&mut cpu, &mut cuda, course, &mut samples, &mut wire).unwrap();
    println!("{precision:?}: relative, row, scale");
    for steps in [1, 4, STEPS] {
        let worst: Vec<String> = Quantity::ALL
            .into_iter()
            .map(|quantity| worst(&drifts, quantity, steps))
            .map(|it| format!("{:.0e}, {:.0e}, {:.0e}", it.relative, it.row, it.scale))
            .collect();
        println!("| {steps} | {} |", worst.join(" | "));
    }
    Some(drifts)
}

fn worst(drifts: &[Drift], quantity: Quantity, steps: u64) -> Distance {
    drifts
        .iter()
        .filter(|drift| drift.quantity == quantity && drift.steps <= steps)
        .fold(Distance::default(), |worst, drift| {
            worst.max(drift.distance)
        })
}

#[test]
fn kernels_and_cpu_stay_within_few_roundings_of_each_other_while_they_train_in_f32() {
    let Some(drifts) = beside_the_cpu(Precision::F32) else {
        return;
    };
    for quantity in [Quantity::Activation, Quantity::Gradient] {
        let passes = worst(&drifts, quantity, 1);
        assert!(passes.relative < 1e-5, "{quantity:?}: {passes:?}");
        assert!(passes.relative > 0.0, "they do not share their code");
    }
    let change = worst(&drifts, Quantity::Change, STEPS);
    assert!(change.relative < 1e-2, "{change:?}");
}

/// Within attention the CPU rounds no factors and the kernels do.
#[test]
fn kernels_and_cpu_are_a_thousandth_apart_while_they_train_in_bf16() {
    let Some(drifts) = beside_the_cpu(Precision::Bf16) else {
        return;
    };
    for quantity in [Quantity::Activation, Quantity::Gradient] {
        let passes = worst(&drifts, quantity, 1);
        assert!(passes.relative < 5e-2, "{quantity:?}: {passes:?}");
    }
    let change = worst(&drifts, Quantity::Change, STEPS);
    assert!(change.relative < 0.5, "{change:?}");
}
