mod begun;
mod merging;

use iota_data::{Corpus, Document, Preparation, Split, Tokenizer};
use iota_model::preset;
use iota_protocol::work::{ObjectRef, Purpose, Seal, Segment};
use iota_protocol::{ObjectId, RunId};
use iota_run::{Codec, Merge, Optimizer, Wire};
use iota_store::tensor;

use super::*;

const STAGES: u16 = 3;
const LEARNING_RATE: f32 = 0.01;

/// The `tiny` model in three stages over a short text; the optimizer steps after every second backward.
pub(crate) fn description() -> Arc<Description> {
    described(Wire::default())
}

fn described(wire: Wire) -> Arc<Description> {
    described_with(wire, Merge::default())
}

fn described_with(wire: Wire, merge: Merge) -> Arc<Description> {
    let documents = vec![Document {
        name: "song".to_owned(),
        text: "Row, row, row your boat, gently down the stream. ".repeat(20),
    }];
    let corpus = Corpus::from_documents(documents).unwrap();
    let mut shards =
        Preparation::new(&corpus, Tokenizer::default(), Split::Training, 1 << 12).unwrap();
    while shards.next().is_some() {}
    let description = Description {
        version: iota_run::VERSION,
        run: RunId::from_bytes([3; 16]),
        seed: 5,
        model: preset("tiny").unwrap(),
        cuts: (1..usize::from(STAGES)).collect(),
        sequences: 1,
        backwards_per_step: 2,
        optimizer: Optimizer::default(),
        precision: iota_model::Precision::F32,
        recompute: false,
        wire,
        merge,
        comparison: iota_run::Comparison::Bits,
        data: shards.finish(),
    };
    description.sampler().unwrap();
    Arc::new(description)
}

fn genesis(elements: u64) -> Checkpoint {
    checkpoint(0, vec![(0..elements, SegmentSource::Genesis)])
}

fn checkpoint(optimizer_steps: u64, segments: Vec<(Range<u64>, SegmentSource)>) -> Checkpoint {
    Checkpoint {
        stage: StageIndex::new(1),
        epoch: Epoch::new(4),
        optimizer_steps,
        segments: segments
            .into_iter()
            .map(|(range, source)| Segment { range, source })
            .collect(),
    }
}

fn engine(stage: u16, threads: usize) -> Engine {
    engine_of(description(), stage, threads)
}

fn engine_of(description: Arc<Description>, stage: u16, threads: usize) -> Engine {
    let mut engine = Engine::new(description, StageIndex::new(stage), threads).unwrap();
    let checkpoint = genesis(engine.elements() as u64);
    engine
        .install(&checkpoint, &BTreeMap::new(), Start::Anew)
        .unwrap();
    engine
}

/// Numbers between -1 and 1 that follow from `seed`, as many as an activation has.
fn values(seed: u64) -> Arc<[f32]> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let description = description();
    let elements = description.sample_tokens() * description.model.boundary_width();
    (0..elements).map(next).collect()
}

/// What a stage reads of a sample; `version` tells different activations of one sample apart.
fn input(stage: u16, sample: u64, version: u64) -> OperationInput {
    let tokens = |offset| (0..32).map(move |at| ((sample * 7 + at + offset) % 256) as u32);
    OperationInput {
        tokens: (stage == 0 || stage + 1 == STAGES).then(|| {
            Arc::new(Tokens {
                inputs: tokens(0).collect(),
                targets: tokens(1).collect(),
                sequences: 1,
                context: 32,
            })
        }),
        activation: (stage > 0).then(|| {
            let seed = sample * 10 + version;
            (Digest::of(&seed.to_le_bytes()), values(seed))
        }),
    }
}

/// What a miner is asked to do.
#[derive(Debug, Clone, Copy)]
enum Step {
    Forward {
        sample: u64,
    },
    /// A forward whose output never reached the store: nobody hears of it, and its ordinal is missing in the log.
    LostForward {
        sample: u64,
    },
    Backward {
        sample: u64,
        version: u64,
    },
}

/// A log entry: what was done and what was said of it.
#[derive(Debug, PartialEq)]
struct Entry {
    ordinal: u32,
    sample: u64,
    version: u64,
    /// None for a forward.
    recomputed: Option<bool>,
    output: Option<Digest>,
    loss_bits: Option<u32>,
}

impl Entry {
    fn of_forward(sample: u64, (ordinal, bytes): (u32, Bytes)) -> Self {
        Self {
            ordinal,
            sample,
            version: 0,
            recomputed: None,
            output: Some(Digest::of(&bytes)),
            loss_bits: None,
        }
    }

    fn of_backward(sample: u64, version: u64, result: &BackwardResult) -> Self {
        Self {
            ordinal: result.ordinal,
            sample,
            version,
            recomputed: Some(result.recomputed),
            output: result.gradient.as_deref().map(Digest::of),
            loss_bits: result.loss.map(f32::to_bits),
        }
    }
}

fn forward(engine: &mut Engine, sample: u64) -> Entry {
    let input = input(engine.index().get(), sample, 0);
    let done = engine.forward(SampleId::new(sample), &input).unwrap();
    Entry::of_forward(sample, done)
}

fn backward(engine: &mut Engine, sample: u64, version: u64, recompute: bool) -> Entry {
    let gradient = (!engine.is_tail()).then(|| values(1_000 + sample));
    let result = engine
        .backward(
            SampleId::new(sample),
            &input(engine.index().get(), sample, version),
            gradient.as_deref(),
            LEARNING_RATE,
            recompute,
        )
        .unwrap();
    Entry::of_backward(sample, version, &result)
}

fn mine(engine: &mut Engine, script: &[Step]) -> Vec<Entry> {
    let mut log = Vec::new();
    for step in script {
        match *step {
            Step::Forward { sample } => log.push(forward(engine, sample)),
            Step::LostForward { sample } => {
                forward(engine, sample);
                engine.discard(SampleId::new(sample));
            }
            Step::Backward { sample, version } => {
                log.push(backward(engine, sample, version, false));
            }
        }
    }
    log
}

/// What a validator makes of a log; its own ordinals have no gaps, so those of the log are taken.
fn replay(engine: &mut Engine, log: &[Entry]) -> Vec<Entry> {
    log.iter()
        .map(|entry| Entry {
            ordinal: entry.ordinal,
            ..match entry.recomputed {
                None => forward(engine, entry.sample),
                Some(recomputed) => backward(engine, entry.sample, entry.version, recomputed),
            }
        })
        .collect()
}

/// Ends the training and takes the whole stage as one cell.
fn upload(engine: &mut Engine) -> Bytes {
    engine.finish(LEARNING_RATE).unwrap();
    engine.cell(&(0..engine.elements() as u64)).unwrap()
}

/// Backwards from kept, lost, altered and aged forwards, an odd number of them: a step is pending at the end.
fn script(stage: u16) -> Vec<Step> {
    use Step::{Backward, Forward, LostForward};
    let script = vec![
        Forward { sample: 0 },
        LostForward { sample: 1 },
        Forward { sample: 2 },
        Backward {
            sample: 0,
            version: 0,
        },
        Forward { sample: 3 },
        Forward { sample: 4 },
        Backward {
            sample: 1,
            version: 0,
        },
        // The optimizer has stepped since the forwards of 2, 3 and 4.
        Backward {
            sample: 2,
            version: 0,
        },
        LostForward { sample: 5 },
        Backward {
            sample: 3,
            version: 1,
        },
        Forward { sample: 4 },
        Forward { sample: 6 },
        Backward {
            sample: 7,
            version: 0,
        },
        Backward {
            sample: 6,
            version: 0,
        },
        Backward {
            sample: 4,
            version: 0,
        },
    ];
    if stage + 1 < STAGES {
        return script;
    }
    let only_backwards = |step: &Step| matches!(step, Backward { .. });
    script.into_iter().filter(only_backwards).collect()
}

#[test]
fn a_replay_of_the_log_gives_the_bits_of_the_miner() {
    for stage in 0..STAGES {
        let (mut miner, mut validator) = (engine(stage, 1), engine(stage, 2));
        let log = mine(&mut miner, &script(stage));
        assert_eq!(replay(&mut validator, &log), log, "stage {stage}");
        assert_eq!(miner.optimizer_steps(), 3, "stage {stage}");
        assert!(
            upload(&mut miner) == upload(&mut validator),
            "the uploads of stage {stage} differ"
        );
        assert_eq!(miner.optimizer_steps(), 4, "the pending step was taken");
    }
}

#[test]
fn a_replay_gives_the_bytes_that_were_sent_whatever_the_codec() {
    for codec in Codec::ALL {
        let wire = Wire {
            activations: codec,
            gradients: codec,
        };
        let run = described(wire);
        let [mut miner, mut validator] =
            [1, 2].map(|threads| engine_of(Arc::clone(&run), 1, threads));
        let log = mine(&mut miner, &script(1));
        assert_eq!(replay(&mut validator, &log), log, "{codec}");
        let (_, sent) = miner.forward(SampleId::new(9), &input(1, 9, 0)).unwrap();
        assert_eq!(
            sent.len() as u64,
            run.boundary_bytes(Direction::Forward),
            "{codec}"
        );
        assert!(run.decode_boundary(Direction::Forward, &sent).is_ok());
    }
}

#[test]
fn lost_forwards_leave_gaps_and_their_backwards_redo_them() {
    let log = mine(&mut engine(1, 1), &script(1));
    let ordinals: Vec<_> = log.iter().map(|entry| entry.ordinal).collect();
    assert_eq!(ordinals, [0, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14]);
    let recomputed: Vec<_> = log
        .iter()
        .filter_map(|entry| Some((entry.sample, entry.recomputed?)))
        .collect();
    assert_eq!(
        recomputed,
        [
            (0, false),
            (1, true),  // its forward was lost
            (2, false), // although the weights have moved on
            (3, true),  // another activation than the forward's
            (7, true),  // somebody else's forward
            (6, false),
            (4, false),
        ]
    );
}

#[test]
fn whether_a_forward_is_redone_after_a_step_decides_the_bits() {
    let mut log = mine(&mut engine(1, 1), &script(1));
    let aged = log
        .iter_mut()
        .find(|entry| entry.sample == 2 && entry.recomputed.is_some())
        .unwrap();
    aged.recomputed = Some(true);
    assert_ne!(replay(&mut engine(1, 1), &log), log);
}

#[test]
fn only_the_newest_forwards_are_kept() {
    let mut engine = engine(1, 1);
    for sample in 0..=KEPT_MAX as u64 {
        forward(&mut engine, sample);
    }
    assert_eq!(engine.kept.len(), KEPT_MAX);
    assert_eq!(backward(&mut engine, 0, 0, false).recomputed, Some(true));
    assert_eq!(backward(&mut engine, 1, 0, false).recomputed, Some(false));
}

#[test]
fn with_no_room_for_forwards_every_backward_redoes_its_own() {
    let mut engine = engine(1, 1).with_kept_max(0);
    forward(&mut engine, 0);
    assert!(engine.kept.is_empty());
    assert_eq!(backward(&mut engine, 0, 0, false).recomputed, Some(true));
}

/// A merged cell under a name of its own, and how a segment refers to it.
fn merged(
    cells: &mut BTreeMap<ObjectName, CellPlanes>,
    bytes: &[u8],
) -> impl Fn(u64) -> SegmentSource + use<> {
    let name = ObjectName {
        purpose: Purpose::Merged,
        epoch: Epoch::new(3),
        id: ObjectId::from_bytes([cells.len() as u8; 16]),
    };
    let seal = Seal {
        digest: Digest::of(bytes),
        length: bytes.len() as u64,
    };
    let merge = Merge::default();
    let elements = merge.cell_elements(seal.length).unwrap();
    let planes = tensor::decode(bytes, &merge.cell_spec(elements)).unwrap();
    cells.insert(name, planes);
    move |offset| SegmentSource::Merged {
        object: ObjectRef { name, seal },
        offset,
        cell_elements: elements as u64,
        delta: None,
    }
}

#[test]
fn a_checkpoint_of_all_cells_is_the_state_that_they_were_taken_from() {
    let mut trained = engine(1, 1);
    mine(&mut trained, &script(1));
    trained.finish(LEARNING_RATE).unwrap();
    let elements = trained.elements() as u64;
    let mut cells = BTreeMap::new();
    let low = merged(&mut cells, &trained.cell(&(0..1_000)).unwrap());
    let high = merged(&mut cells, &trained.cell(&(1_000..elements)).unwrap());
    // The second cell comes in two segments, as after a change of the cut.
    let segments = vec![
        (0..1_000, low(0)),
        (1_000..1_500, high(0)),
        (1_500..elements, high(500)),
    ];
    let mut fresh = engine(1, 1);
    let checkpoint = checkpoint(trained.optimizer_steps(), segments);
    let installed = fresh.install(&checkpoint, &cells, Start::Anew).unwrap();
    assert_eq!(
        installed.state,
        Digest::from_bytes(trained.stage.digest().unwrap())
    );
    assert_eq!(fresh.epoch(), Some(checkpoint.epoch));
    // From here on the two go the same way.
    let log = mine(&mut fresh, &script(1));
    trained.install(&checkpoint, &cells, Start::Anew).unwrap();
    assert_eq!(replay(&mut trained, &log), log);
}

#[test]
fn what_nobody_has_merged_yet_starts_from_genesis() {
    let mut trained = engine(1, 1);
    mine(&mut trained, &script(1));
    let elements = trained.elements() as u64;
    let (start, middle, end) = (0..700, 700..2_000, 2_000..elements);
    let mut cells = BTreeMap::new();
    let source = merged(&mut cells, &trained.cell(&middle).unwrap());
    let segments = vec![
        (start.clone(), SegmentSource::Genesis),
        (middle.clone(), source(0)),
        (end.clone(), SegmentSource::Genesis),
    ];
    // On a stage that has been trained: nothing of that may shine through.
    let mut mixed = engine(1, 1);
    mine(&mut mixed, &script(1));
    mixed
        .install(&checkpoint(3, segments), &cells, Start::Anew)
        .unwrap();
    let mut untrained = engine(1, 1);
    assert!(mixed.cell(&start).unwrap() == untrained.cell(&start).unwrap());
    assert!(mixed.cell(&middle).unwrap() == trained.cell(&middle).unwrap());
    assert!(mixed.cell(&end).unwrap() == untrained.cell(&end).unwrap());
    assert_eq!(mixed.optimizer_steps(), 3);
}

#[test]
fn a_checkpoint_that_does_not_cover_the_stage_leaves_it_without_an_epoch() {
    let mut cells = BTreeMap::new();
    let mut engine = engine(1, 1);
    let elements = engine.elements() as u64;
    let source = merged(&mut cells, &engine.cell(&(0..10)).unwrap());
    for (segments, known) in [
        (vec![(0..elements - 1, SegmentSource::Genesis)], &cells),
        (vec![(1..elements, SegmentSource::Genesis)], &cells),
        (
            vec![(0..10, source(1)), (10..elements, SegmentSource::Genesis)],
            &cells,
        ),
        (
            vec![(0..10, source(0)), (10..elements, SegmentSource::Genesis)],
            &BTreeMap::new(),
        ),
    ] {
        engine
            .install(&genesis(elements), &cells, Start::Anew)
            .unwrap();
        let refused = engine.install(&checkpoint(0, segments), known, Start::Anew);
        assert!(matches!(refused, Err(Error::Checkpoint(_))), "{refused:?}");
        assert_eq!(engine.epoch(), None);
    }
}

/// An input that is finite and whose output is not.
fn overflowing() -> OperationInput {
    let mut input = input(1, 0, 0);
    let elements = values(0).len();
    input.activation = Some((Digest::of(b"overflow"), vec![f32::MAX; elements].into()));
    input
}

#[test]
fn a_forward_that_overflows_leaves_nothing_to_go_back_from() {
    let mut engine = engine(1, 1);
    for parameter in engine.stage.cpu().state_mut().parameters.iter_mut() {
        *parameter *= 100.0;
    }
    let before = engine.stage.digest().unwrap();
    let kept = forward(&mut engine, 0);
    let refused = engine
        .forward(SampleId::new(0), &overflowing())
        .unwrap_err();
    assert!(refused.is_not_finite(), "{refused}");
    assert_eq!(engine.stage.digest().unwrap(), before);
    let backward = backward(&mut engine, 0, 0, false);
    assert_eq!((kept.ordinal, backward.ordinal), (0, 2));
    assert_eq!(backward.recomputed, Some(true));
    // In the log there is no such forward, and whoever replays it gets there too.
    let log = [kept, backward];
    let mut validator = self::engine(1, 1);
    for parameter in validator.stage.cpu().state_mut().parameters.iter_mut() {
        *parameter *= 100.0;
    }
    assert_eq!(replay(&mut validator, &log), log);
}

#[test]
fn a_gradient_that_overflows_is_refused_and_never_stepped_on() {
    let mut engine = engine(1, 1);
    let before = engine.stage.digest().unwrap();
    let huge = vec![f32::MAX; values(0).len()];
    let refused = engine
        .backward(
            SampleId::new(0),
            &input(1, 0, 0),
            Some(&huge),
            LEARNING_RATE,
            false,
        )
        .unwrap_err();
    assert!(refused.is_not_finite(), "{refused}");
    let refused = engine.finish(LEARNING_RATE).unwrap_err();
    assert!(refused.is_not_finite(), "{refused}");
    // The gradients are gone now; a step on nothing would still decay the weights.
    engine.finish(LEARNING_RATE).unwrap();
    assert_eq!(engine.stage.digest().unwrap(), before);
    assert_eq!(engine.optimizer_steps(), 0);
}
