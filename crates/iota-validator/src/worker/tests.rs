mod close;

use iota_data::{Corpus, Document, Preparation, Split, Tokenizer};
use iota_protocol::work::Seal;
use iota_protocol::{Digest, Epoch, LeaseId, ObjectId, RunId, SampleId};

use super::*;

/// Three stages of the `tiny` model, f32, samples of one sequence.
fn description() -> Description {
    let corpus = Corpus::from_documents(vec![Document {
        name: "song".to_owned(),
        text: "Row, row, row your boat, gently down the stream. ".repeat(20),
    }]);
    let corpus = corpus.unwrap();
    let mut shards =
        Preparation::new(&corpus, Tokenizer::default(), Split::Training, 1 << 12).unwrap();
    while shards.next().is_some() {}
    Description {
        version: iota_run::VERSION,
        run: RunId::from_bytes([3; 16]),
        seed: 5,
        model: iota_model::preset("tiny").unwrap(),
        cuts: vec![1, 2],
        sequences: 1,
        backwards_per_step: 2,
        optimizer: iota_run::Optimizer::default(),
        precision: iota_model::Precision::F32,
        recompute: false,
        wire: iota_run::Wire::default(),
        merge: iota_run::Merge::default(),
        comparison: iota_run::Comparison::Bits,
        data: shards.finish(),
    }
}

/// The middle stage, with the weights of genesis.
fn engine() -> Engine {
    let stage = StageIndex::new(1);
    let mut engine = Engine::new(Arc::new(description()), stage, 1).unwrap();
    install(&mut engine);
    engine
}

fn install(engine: &mut Engine) {
    let segments = vec![Segment {
        range: 0..engine.elements() as u64,
        source: SegmentSource::Genesis,
    }];
    let checkpoint = Checkpoint {
        stage: engine.index(),
        epoch: Epoch::new(0),
        optimizer_steps: 0,
        segments,
    };
    engine
        .install(&checkpoint, &BTreeMap::new(), Start::Anew)
        .unwrap();
}

/// An activation of 32 tokens, 16 wide.
fn values() -> Arc<[f32]> {
    (0..32 * 16).map(|at| (at % 7) as f32 - 3.0).collect()
}

fn input() -> OperationInput {
    OperationInput {
        tokens: None,
        activation: Some((Digest::of(b"input"), values())),
    }
}

fn name(purpose: Purpose) -> ObjectName {
    ObjectName {
        purpose,
        epoch: Epoch::new(0),
        id: ObjectId::from_bytes([1; 16]),
    }
}

fn seal(bytes: &[u8]) -> Seal {
    Seal {
        digest: Digest::of(bytes),
        length: bytes.len() as u64,
    }
}

fn forward(ordinal: u32, sample: u64, output: &[u8]) -> LogEntry {
    LogEntry {
        ordinal,
        lease: LeaseId::new(ordinal.into()),
        credited: true,
        work: Work::Forward {
            sample: SampleId::new(sample),
            input: None,
            output: name(Purpose::Activation),
        },
        outcome: Outcome::Forward {
            ordinal,
            output: seal(output),
        },
    }
}

fn backward(ordinal: u32, sample: u64, recomputed: bool, gradient: &[u8]) -> LogEntry {
    LogEntry {
        ordinal,
        lease: LeaseId::new(ordinal.into()),
        credited: true,
        work: Work::Backward {
            sample: SampleId::new(sample),
            input: None,
            output_gradient: None,
            gradient: Some(name(Purpose::Gradient)),
            learning_rate: 0.01,
        },
        outcome: Outcome::Backward {
            ordinal,
            recomputed,
            gradient: Some(seal(gradient)),
            loss: None,
        },
    }
}

/// For a comparison of digests.
fn fetched(entry: &LogEntry, output_gradient: Arc<[f32]>) -> Fetched {
    Fetched {
        entry: entry.clone(),
        input: input(),
        output_gradient: Some(output_gradient),
        said: None,
    }
}

#[test]
fn only_forwards_that_a_backward_made_use_of_are_kept() {
    let log = [
        forward(0, 10, b""),
        forward(1, 11, b""),
        forward(3, 12, b""),
        backward(4, 11, true, b""),
        forward(5, 10, b""),
        backward(6, 10, false, b""),
        backward(8, 13, false, b""),
        backward(9, 10, false, b""),
    ];
    assert_eq!(reused_forwards(&log), BTreeSet::from([5]));
}

#[test]
fn an_honest_log_agrees_and_another_output_differs() {
    let mut miner = engine();
    let sample = SampleId::new(4);
    let (_, output) = miner.forward(sample, &input()).unwrap();
    let gradient = miner
        .backward(sample, &input(), Some(&values()), 0.01, false)
        .unwrap()
        .gradient
        .unwrap();
    let log = [forward(0, 4, &output), backward(1, 4, false, &gradient)];
    let replay = |log: &[LogEntry]| {
        let mut validator = engine();
        let reused = reused_forwards(log);
        log.iter()
            .map(|entry| {
                let keep = reused.contains(&entry.ordinal);
                let fetched = fetched(entry, values());
                redo(&description(), &mut validator, &fetched, keep).unwrap()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(replay(&log), [None, None]);
    let other = [forward(0, 4, b"free ride"), backward(1, 4, false, b"again")];
    assert_eq!(replay(&other), [Some(Difference::Output); 2]);
}

#[test]
fn who_commits_to_what_cannot_be_finite_has_not_done_the_work() {
    let mut validator = engine();
    let huge = vec![f32::MAX; values().len()].into();
    let fetched = fetched(&backward(0, 4, true, b"made up"), huge);
    assert_eq!(
        redo(&description(), &mut validator, &fetched, false).unwrap(),
        Some(Difference::NotFinite)
    );
    let upload = UploadRecord {
        cells: Vec::new(),
        seals: Vec::new(),
        optimizer_steps: 1,
        learning_rate: 0.01,
        keeps: None,
        keeps_at: None,
    };
    assert_eq!(
        finish(&mut validator, &upload).unwrap(),
        Some(Difference::NotFinite)
    );
}
