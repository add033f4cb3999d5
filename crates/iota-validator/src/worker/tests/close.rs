//! Audits that compare closely, with real tensors: the audited miner holds the middle stage and computes in bf16, the
//! validator in f32. What is tolerated was measured beforehand, on other samples and from other weights.

use std::sync::OnceLock;

use iota_model::Precision;
use iota_peer::drift::Course;
use iota_peer::{Device, measure_drift, tolerances};
use iota_protocol::CellIndex;
use iota_protocol::event::{Direction, Piece};
use iota_protocol::work::CellUpload;
use iota_run::{Codec, Comparison, Tokens, Wire};

use super::*;

const MIDDLE: StageIndex = StageIndex::new(1);
const LEARNING_RATE: f32 = 2e-3;
const SAMPLES: u64 = 16;

/// 256 rows to a sample, so that a hundredth of them is two.
fn described(comparison: Comparison) -> Description {
    Description {
        sequences: 8,
        wire: Wire {
            activations: Codec::Int8,
            gradients: Codec::Int8,
        },
        comparison,
        ..description()
    }
}

/// Numbers below `below`, the same for the same seed.
fn drawn(seed: u64, below: u64) -> impl Iterator<Item = u64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) % below
    })
}

/// Text of a sort that can be learned: words of four letters, one after the other.
fn tokens(sample: u64) -> Tokens {
    let (sequences, context) = (8, 32);
    let letters: Vec<u32> = drawn(sample + 1, 7)
        .flat_map(|word| (0..4).map(move |letter| (97 + 3 * word + letter) as u32))
        .take(sequences * context + 1)
        .collect();
    Tokens {
        inputs: letters[..sequences * context].to_vec(),
        targets: letters[1..].to_vec(),
        sequences,
        context,
    }
}

/// Measured once for all tests.
fn close() -> Comparison {
    static MEASURED: OnceLock<Comparison> = OnceLock::new();
    let measured = || {
        let other = Description {
            seed: 77,
            ..described(Comparison::Bits)
        };
        let mut samples = |sample| {
            let tokens = tokens(sample + 1_000);
            (tokens.inputs, tokens.targets)
        };
        let course = Course {
            before: 0,
            steps: 16,
            backwards_per_step: 2,
            learning_rate: LEARNING_RATE,
            warmup_steps: 0,
            cells: 3,
        };
        let doer = (&Device::Cpu, Precision::Bf16);
        let drifts = measure_drift(&other, &mut samples, doer, course, 1).unwrap();
        Comparison::Close {
            tolerances: tolerances(&[drifts], 4.0),
        }
    };
    MEASURED.get_or_init(measured).clone()
}

/// What the miner does with what it should send, in place of sending it.
type Lie = fn(Vec<f32>, &mut Vec<f32>) -> Vec<f32>;

fn honest(values: Vec<f32>, _: &mut Vec<f32>) -> Vec<f32> {
    values
}

fn zeros(values: Vec<f32>, _: &mut Vec<f32>) -> Vec<f32> {
    vec![0.0; values.len()]
}

/// As large as what it should be.
fn noise(values: Vec<f32>, _: &mut Vec<f32>) -> Vec<f32> {
    let mean_square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
    let unit = (3.0 * mean_square).sqrt();
    drawn(9, 1 << 20)
        .map(|number| unit * (number as f32 / (1_u32 << 19) as f32 - 1.0))
        .take(values.len())
        .collect()
}

/// What it sent of the sample before.
fn stale(values: Vec<f32>, before: &mut Vec<f32>) -> Vec<f32> {
    let sent = if before.is_empty() {
        values.clone()
    } else {
        before.clone()
    };
    *before = values;
    sent
}

fn a_twentieth_longer(values: Vec<f32>, _: &mut Vec<f32>) -> Vec<f32> {
    values.iter().map(|x| 1.05 * x).collect()
}

/// Of 256 rows, two are those of somebody else.
fn a_hundredth_of_the_rows(mut values: Vec<f32>, _: &mut Vec<f32>) -> Vec<f32> {
    let width = values.len() / 256;
    values[100 * width..102 * width].reverse();
    values
}

/// What the miner says it did, and what it uploads.
struct Mined {
    log: Vec<Fetched>,
    upload: UploadRecord,
    objects: Vec<bytes::Bytes>,
}

/// Trains a while. `takes_steps`: whether the audited miner's optimizer does anything.
fn mine(precision: Precision, direction: Option<Direction>, lie: Lie, takes_steps: bool) -> Mined {
    let description = Arc::new(described(close()));
    let other = Arc::new(Description {
        precision,
        ..Description::clone(&description)
    });
    let engine = |description: &Arc<Description>, index| {
        let stage = StageIndex::new(index);
        let mut engine = Engine::new(Arc::clone(description), stage, 1).unwrap();
        install(&mut engine);
        engine
    };
    let mut head = engine(&description, 0);
    let mut middle = engine(&other, 1);
    let mut tail = engine(&description, 2);
    let mut log = Vec::new();
    let mut before = Vec::new();
    for number in 0..SAMPLES {
        let sample = SampleId::new(number);
        let tokens = Arc::new(tokens(number));
        let mut sent = |way, stage, object: &[u8]| {
            let values = description.decode_boundary(way, object).unwrap();
            if stage != MIDDLE || direction != Some(way) {
                return (bytes::Bytes::copy_from_slice(object), values);
            }
            let piece = Piece {
                stage,
                direction: way,
            };
            let said = lie(values, &mut before);
            let object = description.encode_boundary(sample, piece, &said).unwrap();
            let values = description.decode_boundary(way, &object).unwrap();
            (object, values)
        };
        let read = |object: &[u8], values: Vec<f32>| OperationInput {
            tokens: Some(Arc::clone(&tokens)),
            activation: Some((Digest::of(object), values.into())),
        };
        let begins = OperationInput {
            tokens: Some(Arc::clone(&tokens)),
            activation: None,
        };
        let (_, object) = head.forward(sample, &begins).unwrap();
        let (object, values) = sent(Direction::Forward, head.index(), &object);
        let input = read(&object, values);
        let (ordinal, object) = middle.forward(sample, &input).unwrap();
        let (object, values) = sent(Direction::Forward, MIDDLE, &object);
        log.push(Fetched {
            entry: forward(ordinal, number, &object),
            input: input.clone(),
            output_gradient: None,
            said: Some(Ok(values.clone().into())),
        });
        let last = read(&object, values);
        let from_tail = tail
            .backward(sample, &last, None, LEARNING_RATE, true)
            .unwrap()
            .gradient
            .unwrap();
        let (_, values) = sent(Direction::Backward, tail.index(), &from_tail);
        let rate = if takes_steps { LEARNING_RATE } else { 0.0 };
        let done = middle
            .backward(sample, &input, Some(&values), rate, false)
            .unwrap();
        let (object, said) = sent(Direction::Backward, MIDDLE, &done.gradient.unwrap());
        head.backward(sample, &begins, Some(&said), LEARNING_RATE, false)
            .unwrap();
        let mut entry = backward(done.ordinal, number, false, &object);
        if let Work::Backward { learning_rate, .. } = &mut entry.work {
            *learning_rate = LEARNING_RATE;
        }
        log.push(Fetched {
            entry,
            input,
            output_gradient: Some(values.into()),
            said: Some(Ok(said.into())),
        });
    }
    middle.finish(LEARNING_RATE).unwrap();
    let third = middle.elements() as u64 / 3;
    let ranges = [
        0..third,
        third..2 * third,
        2 * third..middle.elements() as u64,
    ];
    let objects: Vec<_> = ranges
        .iter()
        .map(|range| middle.cell(range).unwrap())
        .collect();
    let cells = ranges.into_iter().zip(0..).map(|(range, cell)| CellUpload {
        cell: CellIndex::new(cell),
        range,
        output: name(Purpose::Upload),
    });
    Mined {
        log,
        upload: UploadRecord {
            cells: cells.collect(),
            seals: objects.iter().map(|object| seal(object)).collect(),
            learning_rate: LEARNING_RATE,
            optimizer_steps: middle.optimizer_steps(),
            keeps: None,
            keeps_at: None,
        },
        objects,
    }
}

/// What an audit of everything finds first: at which operation, none at the upload; and what.
fn audit(mined: &Mined) -> Option<(Option<u32>, Difference)> {
    let description = Arc::new(described(close()));
    let mut engine = Engine::new(Arc::clone(&description), MIDDLE, 1)
        .unwrap()
        .with_anchor();
    install(&mut engine);
    for fetched in &mined.log {
        if let Some(difference) = redo(&description, &mut engine, fetched, true).unwrap() {
            return Some((Some(fetched.entry.ordinal), difference));
        }
    }
    let upload = finish(&mut engine, &mined.upload).unwrap();
    let learned = || {
        let cells = mined.upload.cells.iter().zip(&mined.objects);
        cells
            .zip(&mined.upload.seals)
            .find_map(|((cell, object), seal)| {
                let said = (seal.digest, Some(&object[..]));
                let range = Some(cell.range.clone());
                compare_learned(&description, &mut engine, range, said).unwrap()
            })
    };
    let difference = upload.or_else(learned)?;
    Some((None, difference))
}

#[test]
fn an_honest_miner_that_computes_in_another_precision_passes_although_no_bits_are_the_same() {
    let mined = mine(Precision::Bf16, None, honest, true);
    assert_eq!(audit(&mined), None);
    let bits = described(Comparison::Bits);
    let mut engine = engine_of(&bits);
    let differs = redo(&bits, &mut engine, &mined.log[0], true).unwrap();
    assert_eq!(differs, Some(Difference::Output));
}

fn engine_of(description: &Description) -> Engine {
    let mut engine = Engine::new(Arc::new(description.clone()), MIDDLE, 1).unwrap();
    install(&mut engine);
    engine
}

#[test]
fn whoever_sends_anything_else_is_found_at_the_first_such_operation() {
    let lies: [(&str, Lie, u32); 5] = [
        ("zeros", zeros, 0),
        ("noise", noise, 0),
        // The first it sends is its own.
        ("stale", stale, 2),
        ("longer", a_twentieth_longer, 0),
        ("rows", a_hundredth_of_the_rows, 0),
    ];
    for (name, lie, first) in lies {
        for (direction, offset) in [(Direction::Forward, 0), (Direction::Backward, 1)] {
            let mined = mine(Precision::Bf16, Some(direction), lie, true);
            let found = Some((Some(first + offset), Difference::Output));
            assert_eq!(audit(&mined), found, "{name}, {direction:?}");
        }
    }
}

#[test]
fn a_miner_that_skips_its_optimizer_steps_is_found_by_what_it_uploads_if_not_before() {
    let mined = mine(Precision::Bf16, None, honest, false);
    let (_, difference) = audit(&mined).unwrap();
    assert!(matches!(
        difference,
        Difference::Output | Difference::Upload
    ));
    // With an eye on its upload alone.
    let steps = mine(Precision::Bf16, None, honest, true);
    let skipped = Mined {
        log: steps.log,
        ..mined
    };
    assert_eq!(audit(&skipped), Some((None, Difference::Upload)));
}

/// Says of the parameters what `lie` makes of what it learned.
fn upload_lie(lie: Lie) -> Mined {
    let mut mined = mine(Precision::Bf16, None, honest, true);
    let description = described(close());
    let start = Engine::initial(&description, MIDDLE).unwrap();
    for (index, cell) in mined.upload.cells.iter().enumerate() {
        let range = cell.range.start as usize..cell.range.end as usize;
        let spec = description.merge.cell_spec(range.len());
        let mut planes = iota_store::tensor::decode(&mined.objects[index], &spec).unwrap();
        let learned = planes[0].iter().zip(&start[range.clone()]);
        let learned = lie(
            learned.map(|(now, then)| now - then).collect(),
            &mut Vec::new(),
        );
        for (value, (learned, then)) in planes[0].iter_mut().zip(learned.iter().zip(&start[range]))
        {
            *value = then + learned;
        }
        let tensors: Vec<_> = spec
            .into_iter()
            .zip(planes.iter().map(Vec::as_slice))
            .collect();
        mined.objects[index] = iota_store::tensor::encode(&tensors);
        mined.upload.seals[index] = seal(&mined.objects[index]);
    }
    mined
}

#[test]
fn whoever_uploads_anything_but_what_it_learned_is_found() {
    assert_eq!(audit(&upload_lie(honest)), None);
    for lie in [zeros, noise, a_twentieth_longer as Lie] {
        assert_eq!(audit(&upload_lie(lie)), Some((None, Difference::Upload)));
    }
}

#[test]
fn an_object_that_is_gone_or_spoilt_is_held_against_whoever_committed_to_it() {
    let mut mined = mine(Precision::Bf16, None, honest, true);
    mined.log[3].said = Some(Err(Difference::Missing));
    let ordinal = mined.log[3].entry.ordinal;
    assert_eq!(audit(&mined), Some((Some(ordinal), Difference::Missing)));
    let mut mined = mine(Precision::Bf16, None, honest, true);
    mined.objects[1] = bytes::Bytes::from_static(b"something else");
    assert_eq!(audit(&mined), Some((None, Difference::Malformed)));
}
