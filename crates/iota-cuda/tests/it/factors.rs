use iota_compute::Backend;
use iota_compute::backend::{Form, Product, Write};
use iota_cuda::{Buffer, Cuda, step_costs};
use iota_model::{Precision, StagePlan, preset};

use crate::emulator::Emulator;

const SIDE: usize = 8;

const fn product(form: Form) -> Product {
    Product {
        form,
        rows: SIDE,
        columns: SIDE,
        inner: SIDE,
    }
}

fn numbers(start: f32) -> Vec<f32> {
    (0..SIDE * SIDE).map(|i| start + 0.37 * i as f32).collect()
}

/// A product of these, on a device that has seen neither.
fn fresh(form: Form, left: &[f32], right: &[f32]) -> Vec<f32> {
    let device = Cuda::on(Emulator::new(1).unwrap(), Precision::Bf16);
    let [left, right] = [left, right].map(|values| {
        let mut buffer = device.allocate(values.len()).unwrap();
        let into = device.all_mut(&mut buffer);
        device.upload(into, values).unwrap();
        buffer
    });
    multiply(&device, form, &left, &right)
}

fn multiply<B: Backend>(device: &B, form: Form, left: &B::Buffer, right: &B::Buffer) -> Vec<f32> {
    let mut out = device.allocate(SIDE * SIDE).unwrap();
    let (into, left, right) = (
        device.all_mut(&mut out),
        device.all(left),
        device.all(right),
    );
    let write = Write::Replace;
    device
        .matmul(product(form), into, left, right, write)
        .unwrap();
    device.download(device.all(&out)).unwrap()
}

/// Every way to write to a buffer borrows it alone, so one stands for all; a part of it is enough.
#[test]
fn what_is_written_to_a_buffer_is_what_the_next_product_multiplies() {
    let Some(emulator) = Emulator::new(1) else {
        return;
    };
    let device = Cuda::on(emulator, Precision::Bf16);
    for form in [Form::TransposedRight, Form::Plain, Form::TransposedLeft] {
        let [mut left, mut right] = [1.0, -9.0].map(|start| {
            let mut buffer = device.allocate(SIDE * SIDE).unwrap();
            let into = device.all_mut(&mut buffer);
            device.upload(into, &numbers(start)).unwrap();
            buffer
        });
        let before = multiply(&device, form, &left, &right);
        assert_eq!(before, multiply(&device, form, &left, &right));
        assert_eq!(before, fresh(form, &numbers(1.0), &numbers(-9.0)));
        let (mut on_the_left, mut on_the_right) = (numbers(1.0), numbers(-9.0));
        device.fill(device.view_mut(&mut left, 3..5), 40.0).unwrap();
        on_the_left[3..5].fill(40.0);
        let after = multiply(&device, form, &left, &right);
        assert_ne!(before, after);
        assert_eq!(after, fresh(form, &on_the_left, &on_the_right));
        device
            .fill(device.view_mut(&mut right, 60..64), -70.0)
            .unwrap();
        on_the_right[60..64].fill(-70.0);
        assert_eq!(
            multiply(&device, form, &left, &right),
            fresh(form, &on_the_left, &on_the_right)
        );
    }
}

/// Hidden channels, which are there as factors only.
fn hidden() -> Option<(Cuda, Buffer)> {
    let device = Cuda::on(Emulator::new(1)?, Precision::Bf16);
    let gate_up = device.allocate(2 * SIDE).unwrap();
    let mut hidden = device.allocate(SIDE).unwrap();
    let into = device.all_mut(&mut hidden);
    device.swiglu(into, device.all(&gate_up), SIDE).unwrap();
    Some((device, hidden))
}

#[test]
#[should_panic(expected = "factors only")]
fn what_is_there_as_factors_only_is_not_read_as_numbers() {
    let Some((device, hidden)) = hidden() else {
        panic!("factors only: no compiler to try it with");
    };
    let mut sum = device.allocate(SIDE).unwrap();
    let _ = device.silu(device.all_mut(&mut sum), device.all(&hidden));
}

/// The rest would be what was there before.
#[test]
#[should_panic(expected = "a part is overwritten")]
fn what_is_there_as_factors_only_is_not_overwritten_in_part() {
    let Some((device, mut hidden)) = hidden() else {
        panic!("a part is overwritten: no compiler to try it with");
    };
    let _ = device.view_mut(&mut hidden, 0..SIDE / 2);
}

#[test]
#[should_panic(expected = "factors only")]
fn what_was_there_as_factors_only_is_not_changed_in_place() {
    let Some(emulator) = Emulator::new(1) else {
        panic!("factors only: no compiler to try it with");
    };
    let device = Cuda::on(emulator, Precision::Bf16);
    let gate_up = device.allocate(2 * SIDE).unwrap();
    let mut hidden = device.allocate(SIDE).unwrap();
    let into = device.all_mut(&mut hidden);
    device.swiglu(into, device.all(&gate_up), SIDE).unwrap();
    // To replace all of it is as good as new.
    device.fill(device.all_mut(&mut hidden), 1.0).unwrap();
    device.relu(device.all_mut(&mut hidden)).unwrap();
    let into = device.all_mut(&mut hidden);
    device.swiglu(into, device.all(&gate_up), SIDE).unwrap();
    let _ = device.relu(device.all_mut(&mut hidden));
}

/// What the two blocks before a boundary round for one sample. Normalised rows, hidden channels and the gradients of gate and
/// up and of queries, keys and values are made as factors.
#[test]
fn no_factor_of_two_products_is_rounded_twice() {
    let plan = StagePlan::new(&preset("tiny").unwrap(), 2).unwrap();
    let options = iota_compute::StageOptions {
        precision: Precision::Bf16,
        ..iota_compute::StageOptions::default()
    };
    let costs = step_costs(&plan, 0, &options, 32).unwrap();
    let rounded = costs.iter().find(|cost| cost.name == "round_to_bf16");
    let weights = ["queries, keys, values", "output", "gate and up", "down"].len();
    // Each is a factor of one product going forward, and of one going back.
    let attended = 2;
    let gradients = ["output", "middle"].len();
    // What the encoder takes, going forward and back, its weight, and its gradient, from which the block's own differs.
    let encoder = 4;
    let expected = 2 * (weights + attended + gradients) + encoder;
    assert_eq!(rounded.unwrap().calls, expected as u64);
}
