use iota_data::{Corpus, Document, Preparation, Split, Tokenizer};
use iota_protocol::{RunId, StageIndex};

use super::*;
use crate::Optimizer;

fn description(activations: Codec, gradients: Codec) -> Description {
    let documents = vec![Document {
        name: "song".to_owned(),
        text: "Row, row, row your boat, gently down the stream. ".repeat(20),
    }];
    let corpus = Corpus::from_documents(documents).unwrap();
    let mut shards =
        Preparation::new(&corpus, Tokenizer::default(), Split::Training, 1 << 12).unwrap();
    while shards.next().is_some() {}
    Description {
        version: crate::VERSION,
        run: RunId::from_bytes([3; 16]),
        seed: 5,
        model: iota_model::preset("tiny").unwrap(),
        cuts: vec![1, 2],
        sequences: 1,
        backwards_per_step: 2,
        optimizer: Optimizer::default(),
        precision: iota_model::Precision::F32,
        recompute: false,
        merge: crate::Merge::default(),
        wire: Wire {
            activations,
            gradients,
        },
        comparison: crate::Comparison::Bits,
        data: shards.finish(),
    }
}

fn values(description: &Description) -> Vec<f32> {
    (0..description.boundary_shape().elements())
        .map(|at| (at * 37 % 101) as f32 / 50.0 - 1.0)
        .collect()
}

fn piece(stage: u16, direction: Direction) -> Piece {
    let stage = StageIndex::new(stage);
    Piece { stage, direction }
}

const SAMPLE: SampleId = SampleId::new(7);

#[test]
fn each_direction_has_its_codec_and_every_object_the_length_that_is_granted() {
    for activations in Codec::ALL {
        for gradients in Codec::ALL {
            let run = description(activations, gradients);
            let values = values(&run);
            for (direction, codec) in [
                (Direction::Forward, activations),
                (Direction::Backward, gradients),
            ] {
                let object = run
                    .encode_boundary(SAMPLE, piece(1, direction), &values)
                    .unwrap();
                let encoded = codec.encoded_length(run.boundary_shape()) as u64;
                assert_eq!(object.len() as u64, 512 + encoded, "{codec}");
                assert_eq!(run.boundary_bytes(direction), 512 + encoded, "{codec}");

                let decoded = run.decode_boundary(direction, &object).unwrap();
                let worst = values
                    .iter()
                    .zip(&decoded)
                    .fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
                let bound = match codec {
                    Codec::F32 => 0.0,
                    Codec::Bf16 => 1.0 / 256.0,
                    Codec::Int8 => 1.1 / 127.0,
                    _ => 1.0,
                };
                assert!(worst <= bound, "{codec}: {worst}");
            }
        }
    }
}

#[test]
fn rounding_depends_on_the_run_the_sample_the_stage_and_the_direction() {
    let mut run = description(Codec::Int8, Codec::Int8);
    let values = values(&run);
    let object = |run: &Description, sample, stage, direction| {
        run.encode_boundary(SampleId::new(sample), piece(stage, direction), &values)
            .unwrap()
    };
    let first = object(&run, 7, 1, Direction::Forward);
    assert_eq!(object(&run, 7, 1, Direction::Forward), first);
    let others = [
        object(&run, 8, 1, Direction::Forward),
        object(&run, 7, 0, Direction::Forward),
        object(&run, 7, 1, Direction::Backward),
    ];
    run.seed += 1;
    let another_run = object(&run, 7, 1, Direction::Forward);
    for other in others.iter().chain([&another_run]) {
        assert_ne!(*other, first);
    }
}

#[test]
fn objects_of_another_codec_or_length_are_malformed() {
    let runs = Codec::ALL.map(|codec| description(codec, codec));
    for writer in &runs {
        let object = writer
            .encode_boundary(SAMPLE, piece(0, Direction::Forward), &values(writer))
            .unwrap();
        for reader in &runs {
            let read = reader.decode_boundary(Direction::Forward, &object);
            assert_eq!(read.is_ok(), reader.wire == writer.wire);
            let cut = reader.decode_boundary(Direction::Forward, &object[1..]);
            assert_eq!(cut, Err(BoundaryError::Malformed));
        }
    }
}

#[test]
fn what_is_not_finite_is_neither_written_nor_read() {
    for codec in Codec::ALL {
        let run = description(codec, codec);
        let mut values = values(&run);
        values[9] = f32::INFINITY;
        let written = run.encode_boundary(SAMPLE, piece(0, Direction::Forward), &values);
        assert_eq!(written, Err(BoundaryError::NotFinite), "{codec}");
    }
    let run = description(Codec::F32, Codec::F32);
    let object = run.encode_boundary(SAMPLE, piece(0, Direction::Forward), &values(&run));
    let mut object = object.unwrap().to_vec();
    let last = object.len() - 4;
    object[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(
        run.decode_boundary(Direction::Forward, &object),
        Err(BoundaryError::NotFinite)
    );
}

#[test]
fn what_a_setting_leaves_out_is_sent_as_it_is() {
    let wire: Wire = serde_json::from_str(r#"{"activations":"int4"}"#).unwrap();
    assert_eq!(
        wire,
        Wire {
            activations: Codec::Int4,
            gradients: Codec::F32
        }
    );
    assert!(serde_json::from_str::<Wire>(r#"{"activation":"int4"}"#).is_err());
}
