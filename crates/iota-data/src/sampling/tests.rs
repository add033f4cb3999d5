use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{Corpus, Document, Preparation, Split, Tokenizer};

/// Data whose text is `length_bytes` long and never repeats itself over 7 bytes, with their shards.
fn prepared(length_bytes: usize, shard_tokens: usize) -> (DataManifest, Vec<Shard>) {
    let mut text: String = (0..)
        .map(|i| format!("{i:06}\n"))
        .take(length_bytes / 7 + 1)
        .collect();
    text.truncate(length_bytes);
    let corpus = Corpus::from_documents(vec![Document {
        name: String::new(),
        text,
    }])
    .unwrap();
    let mut preparation =
        Preparation::new(&corpus, Tokenizer::default(), Split::Training, shard_tokens).unwrap();
    let shards = preparation
        .by_ref()
        .map(|shard| shard.entry.open(&shard.bytes).unwrap())
        .collect();
    (preparation.finish(), shards)
}

fn shape(sequences: u32, context: u32) -> BatchShape {
    BatchShape { sequences, context }
}

/// How often each window, by shard and start, is read by these samples.
fn visits(sampler: &Sampler, samples: std::ops::Range<u64>) -> BTreeMap<(usize, u64), u32> {
    let mut visits = BTreeMap::new();
    for slice in samples.map(|sample| sampler.slice(SampleId::new(sample))) {
        for start in slice.starts {
            *visits.entry((slice.shard, start)).or_default() += 1;
        }
    }
    visits
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_pass_reads_every_window_once(
        (sequences, context) in (1..6_u32, 1..20_u32), samples_per_shard in 1..20_u64, length_bytes in 200..4000_usize,
        seed in any::<u64>(), pass in 0..4_u64,
    ) {
        let shape = shape(sequences, context);
        let (manifest, _) = prepared(length_bytes, (samples_per_shard * shape.tokens()) as usize);
        prop_assume!(manifest.tokens > shape.tokens());
        let sampler = Sampler::new(&manifest, shape, seed).unwrap();
        let samples = sampler.samples_per_pass();
        let visits = visits(&sampler, pass * samples..(pass + 1) * samples);

        prop_assert!(visits.values().all(|count| *count == 1));
        for (index, shard) in manifest.shards.iter().enumerate() {
            let windows = (shard.tokens - 1) / u64::from(context);
            let read = visits.keys().filter(|(shard, _)| *shard == index).count() as u64;
            let sit_out = windows - read;
            prop_assert!(sit_out < u64::from(sequences));
            // Cut to fit, no window sits out but in the last shard, which took what remained.
            prop_assert!(sit_out == 0 || index + 1 == manifest.shards.len());
        }
        prop_assert!(visits.keys().all(|(_, start)| start % u64::from(context) == 0));
    }

    #[test]
    fn head_tail_and_auditor_read_the_same_tokens(seed in any::<u64>(), sample in any::<u64>()) {
        let (manifest, shards) = prepared(3000, 500);
        let head = Sampler::new(&manifest, shape(3, 16), seed).unwrap().slice(SampleId::new(sample));
        let tail_manifest = DataManifest::from_json(&manifest.to_json()).unwrap();
        let tail = Sampler::new(&tail_manifest, shape(3, 16), seed).unwrap().slice(SampleId::new(sample));
        prop_assert_eq!(&head, &tail);

        let batch = head.read(&shards[head.shard]).unwrap();
        prop_assert_eq!((batch.sequences, batch.context, batch.inputs.len(), batch.targets.len()), (3, 16, 48, 48));
        for ((inputs, targets), &start) in batch.inputs.chunks(16).zip(batch.targets.chunks(16)).zip(&head.starts) {
            let expected: Vec<u32> = shards[head.shard].tokens(start as usize..start as usize + 17).collect();
            prop_assert_eq!(inputs, &expected[..16]);
            prop_assert_eq!(targets, &expected[1..]);
        }
    }

    #[test]
    fn held_out_batches_are_the_text_in_order(
        sequences in 1..5_u32, context in 1..20_u32, length_bytes in 200..3000_usize,
    ) {
        let shape = shape(sequences, context);
        let (manifest, shards) = prepared(length_bytes, 2 * shape.tokens() as usize);
        let evaluation = Evaluation::new(&manifest, shape).unwrap();
        let mut next = (0, 0);
        for batch in evaluation.batches() {
            prop_assert_eq!(batch.starts.len(), sequences as usize);
            for &start in &batch.starts {
                prop_assert!((batch.shard, start) == next || (batch.shard, start) == (next.0 + 1, 0));
                next = (batch.shard, start + u64::from(context));
            }
            batch.read(&shards[batch.shard]).unwrap();
        }
        let left = manifest.shards[next.0].tokens - 1 - next.1;
        prop_assert!(left < shape.tokens());
        prop_assert_eq!(next.0, shards.len() - 1);
    }
}

#[test]
fn every_token_but_the_first_is_predicted_once_in_a_pass() {
    let shape = shape(4, 8);
    let (manifest, shards) = prepared(32 * 50 + 1, 32 * 5);
    let sampler = Sampler::new(&manifest, shape, 7).unwrap();
    assert_eq!(sampler.samples_per_pass(), 50);
    let mut predicted = vec![0; 32 * 50 + 1];
    for sample in 0..50 {
        let slice = sampler.slice(SampleId::new(sample));
        slice.read(&shards[slice.shard]).unwrap();
        for start in slice.starts {
            let first = slice.shard * 32 * 5 + start as usize + 1;
            predicted[first..first + 8]
                .iter_mut()
                .for_each(|count| *count += 1);
        }
    }
    assert_eq!(predicted[0], 0);
    assert!(predicted[1..].iter().all(|count| *count == 1));
}

#[test]
fn passes_and_seeds_differ_in_their_order() {
    let (manifest, _) = prepared(20_000, 2_000);
    let order = |seed, from| -> Vec<SampleSlice> {
        let sampler = Sampler::new(&manifest, shape(2, 10), seed).unwrap();
        (0..100)
            .map(|sample| sampler.slice(SampleId::new(from * sampler.samples_per_pass() + sample)))
            .collect()
    };
    assert_ne!(order(1, 0), order(1, 1));
    assert_ne!(order(1, 0), order(2, 0));
    assert_eq!(order(1, 1), order(1, 1));
}

#[test]
fn windows_that_sit_out_are_others_in_the_next_pass() {
    let (manifest, _) = prepared(101, 100);
    let sampler = Sampler::new(&manifest, shape(7, 10), 3).unwrap();
    assert_eq!(sampler.samples_per_pass(), 1);
    assert_eq!(visits(&sampler, 0..1).len(), 7);
    assert_eq!(
        visits(&sampler, 0..20).len(),
        10,
        "after twenty passes each of the ten windows has been read"
    );
}

#[test]
fn data_shorter_than_a_sample_are_refused() {
    let new = |length_bytes, shard_tokens, shape| {
        let (manifest, _) = prepared(length_bytes, shard_tokens);
        Sampler::new(&manifest, shape, 0).map(|sampler| sampler.samples_per_pass())
    };
    assert!(matches!(
        new(80, 100, shape(4, 20)),
        Err(Error::TooShort {
            tokens: 80,
            needed: 81,
            ..
        })
    ));
    assert!(matches!(new(81, 100, shape(4, 20)), Ok(1)));
    let error = new(200, 20, shape(4, 20)).unwrap_err();
    assert!(matches!(
        error,
        Error::ShardTooShort {
            shard: 0,
            tokens: 21,
            needed: 81,
            ..
        }
    ));
    assert!(matches!(
        new(200, 20, shape(0, 20)),
        Err(Error::Shape { .. })
    ));
    assert!(matches!(
        new(200, 20, shape(4, 0)),
        Err(Error::Shape { .. })
    ));
    assert!(matches!(
        new(200, 20, shape(u32::MAX, u32::MAX)),
        Err(Error::TooShort { .. })
    ));
}

#[test]
fn a_shard_too_short_for_the_slice_is_an_error() {
    let (_, shards) = prepared(100, 100);
    let read = |start| {
        SampleSlice {
            shard: 0,
            starts: vec![start],
            context: 10,
        }
        .read(&shards[0])
    };
    assert!(read(89).is_ok());
    assert!(matches!(
        read(90),
        Err(Error::WindowOutOfBounds {
            end: 101,
            tokens: 100
        })
    ));
    assert!(matches!(
        read(u64::MAX),
        Err(Error::WindowOutOfBounds { .. })
    ));
}

/// Recorded when the order was first fixed. Who changes it makes every run in progress read other tokens than its
/// auditors do.
#[test]
fn the_slices_of_a_run_never_change() {
    let (manifest, _) = prepared(2000, 300);
    let sampler = Sampler::new(&manifest, shape(3, 20), 42).unwrap();
    let slices: Vec<_> = [0, 1, 1000]
        .map(|sample| sampler.slice(SampleId::new(sample)))
        .to_vec();
    let expected = [
        (2, vec![180, 240, 60]),
        (3, vec![240, 180, 260]),
        (3, vec![120, 20, 280]),
    ]
    .map(|(shard, starts)| SampleSlice {
        shard,
        starts,
        context: 20,
    });
    assert_eq!(slices, expected);
}
