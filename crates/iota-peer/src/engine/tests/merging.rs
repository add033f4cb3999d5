//! Epochs: what is learned, merged, installed and kept, and what a validator makes of it.

use iota_merge::Outer;
use iota_run::OptimizerState;

use super::*;
use crate::cells::{CellMerge, MergedCell};

mod ahead;

/// Middle of the stage: two cells, neither a multiple of what codecs take together.
fn cells_of(engine: &Engine) -> [Range<u64>; 2] {
    let elements = engine.elements() as u64;
    [0..elements / 2 + 7, elements / 2 + 7..elements]
}

const NESTEROV: Outer = Outer::Nesterov {
    learning_rate: 0.7,
    momentum: 0.9,
    warmup_from: 0.5,
    warmup_rounds: 4,
};

/// Runs that differ in what miners keep for themselves and in what is relative to the checkpoint.
fn kinds() -> Vec<Merge> {
    let whole = Merge::default();
    let sparse = Merge {
        upload: iota_merge::Codec::TOP_64,
        delta: Some(iota_merge::Codec::Int8),
        feedback: Some(0.95),
        ..whole
    };
    let with = |optimizer_state, merge| Merge {
        optimizer_state,
        ..merge
    };
    let stepping = Merge {
        outer: NESTEROV,
        ..sparse
    };
    vec![
        whole,
        with(OptimizerState::Local, whole),
        with(OptimizerState::Dropped, whole),
        sparse,
        with(OptimizerState::Local, stepping),
        with(OptimizerState::Dropped, stepping),
    ]
}

/// A miner's epoch: what it logged, uploaded and kept.
struct Epoch1 {
    log: Vec<Entry>,
    uploads: Vec<Bytes>,
    kept: Option<Bytes>,
}

fn train(engine: &mut Engine) -> Epoch1 {
    let log = mine(engine, &script(1));
    end(engine, log)
}

fn end(engine: &mut Engine, log: Vec<Entry>) -> Epoch1 {
    engine.finish(LEARNING_RATE).unwrap();
    let cells = cells_of(engine);
    let uploads = cells.map(|range| engine.cell(&range).unwrap()).to_vec();
    let kept = engine.kept().unwrap();
    // However often it is asked for.
    for (range, upload) in cells_of(engine).iter().zip(&uploads) {
        assert!(engine.cell(range).unwrap() == *upload);
    }
    assert!(engine.kept().unwrap() == kept);
    Epoch1 { log, uploads, kept }
}

/// The checkpoint that follows if these miners' uploads are merged, with its cells, and what the merge changed.
fn merge(
    engine: &Engine,
    miners: &[&Epoch1],
    round: u64,
) -> (
    Checkpoint,
    BTreeMap<ObjectName, CellPlanes>,
    Vec<MergedCell>,
) {
    let settings = engine.description.merge;
    let (mut segments, mut planes, mut results) = (Vec::new(), BTreeMap::new(), Vec::new());
    for (at, range) in cells_of(engine).into_iter().enumerate() {
        let elements = (range.end - range.start) as usize;
        let mut cell = CellMerge::new(settings, elements).unwrap();
        for (generation, miner) in (1..).zip(miners) {
            let session = iota_protocol::Session {
                peer: iota_protocol::PeerId::from_bytes([1; 32]),
                generation,
            };
            cell.add(session, &miner.uploads[at], 1).unwrap();
        }
        let base = engine.base(&range).unwrap();
        let merged = cell.finish(base, round).unwrap().unwrap();
        let name = ObjectName {
            purpose: Purpose::Merged,
            epoch: Epoch::new(4),
            id: ObjectId::from_bytes([at as u8; 16]),
        };
        let seal = Seal {
            digest: Digest::of(&merged.cell),
            length: merged.cell.len() as u64,
        };
        let spec = settings.cell_spec(elements);
        planes.insert(name, tensor::decode(&merged.cell, &spec).unwrap());
        let source = SegmentSource::Merged {
            object: ObjectRef { name, seal },
            offset: 0,
            cell_elements: elements as u64,
            delta: None,
        };
        segments.push((range, source));
        results.push(merged);
    }
    let next = Checkpoint {
        epoch: Epoch::new(5),
        ..checkpoint(engine.optimizer_steps(), segments)
    };
    (next, planes, results)
}

#[test]
fn a_replay_from_what_a_miner_kept_gives_the_bits_of_its_upload() {
    for merge_settings in kinds() {
        let description = described_with(Wire::default(), merge_settings);
        let engine = || engine_of(Arc::clone(&description), 1, 1);
        let mut miner = engine();
        let first = train(&mut miner);
        assert_eq!(first.kept.is_some(), merge_settings.keeps_something());
        let (next, cells, _) = merge(&miner, &[&first], 4);
        miner.install(&next, &cells, Start::GoesOn).unwrap();
        let second = train(&mut miner);

        let replayed = |start: Start<'_>| {
            let mut validator = engine();
            validator.install(&next, &cells, start).unwrap();
            let log = replay(&mut validator, &second.log);
            let same_log = log == second.log;
            let end = end(&mut validator, log);
            let same_steps = validator.optimizer_steps() == miner.optimizer_steps();
            same_log && same_steps && end.uploads == second.uploads && end.kept == second.kept
        };
        let start = first.kept.as_deref().map_or(Start::Anew, Start::Kept);
        assert!(replayed(start), "{merge_settings:?}");
        // Who begins with something else than it committed to is found out.
        if merge_settings.keeps_something() {
            assert!(!replayed(Start::Anew), "{merge_settings:?}");
        }
    }
}

#[test]
fn a_delta_leads_from_the_checkpoint_before_to_the_cell_that_joiners_take_whole() {
    for merge_settings in kinds() {
        let description = described_with(Wire::default(), merge_settings);
        let mut miner = engine_of(Arc::clone(&description), 1, 1);
        let first = train(&mut miner);
        let epoch = miner.epoch().unwrap().get();
        let (next, cells, merged) = merge(&miner, &[&first, &first], epoch);
        for (range, cell) in cells_of(&miner).into_iter().zip(merged) {
            let Some(delta) = cell.delta else {
                assert!(merge_settings.delta.is_none());
                continue;
            };
            let (planes, digest) = miner.stepped(&range, &delta).unwrap();
            assert_eq!(digest, Digest::of(&cell.cell));
            assert!(cells.values().any(|whole| *whole == planes));
            assert!(miner.stepped(&range, &delta[1..]).is_err());
        }
        let mut joiner = engine_of(description, 1, 1);
        let theirs = joiner.install(&next, &cells, Start::Anew).unwrap();
        let ours = miner.install(&next, &cells, Start::GoesOn).unwrap();
        assert_eq!(ours, theirs, "{merge_settings:?}");
    }
}

#[test]
fn moments_are_merged_kept_or_dropped() {
    let moments = |state: OptimizerState| {
        let merge_settings = Merge {
            optimizer_state: state,
            ..Merge::default()
        };
        let description = described_with(Wire::default(), merge_settings);
        let (mut miner, mut other) = (
            engine_of(Arc::clone(&description), 1, 1),
            engine_of(description, 1, 1),
        );
        let first = train(&mut miner);
        let second = end(&mut other, Vec::new());
        let own = miner.stage.cpu().state().second_moment.to_vec();
        let (next, cells, _) = merge(&miner, &[&first, &second], 4);
        miner.install(&next, &cells, Start::GoesOn).unwrap();
        (own, miner.stage.cpu().state().second_moment.to_vec())
    };
    let (own, after) = moments(OptimizerState::Local);
    assert!(own.iter().any(|x| *x > 0.0) && own == after);
    let (own, after) = moments(OptimizerState::Merged);
    // The other has none.
    let halves: Vec<f32> = own.iter().map(|x| x / 2.0).collect();
    assert_eq!(halves, after);
    let (_, after) = moments(OptimizerState::Dropped);
    assert!(after.iter().all(|x| *x == 0.0));
}

#[test]
fn nobody_goes_on_with_what_it_does_not_have() {
    let sparse = kinds().swap_remove(3);
    let description = described_with(Wire::default(), sparse);
    let mut fresh = Engine::new(description, StageIndex::new(1), 1).unwrap();
    let checkpoint = genesis(fresh.elements() as u64);
    let refused = fresh.install(&checkpoint, &BTreeMap::new(), Start::GoesOn);
    assert!(matches!(refused, Err(Error::Checkpoint(_))));
    assert_eq!(fresh.epoch(), None);
    let malformed = fresh.install(&checkpoint, &BTreeMap::new(), Start::Kept(b"nothing"));
    assert!(matches!(malformed, Err(Error::Kept)));
}

/// An engine of the middle stage that has trained a little. `precision`: what it computes in.
fn trained(merge: Merge, precision: iota_model::Precision, passes: u64) -> Engine {
    let description = Description {
        precision,
        ..Description::clone(&described_with(Wire::default(), merge))
    };
    let mut engine = Engine::new(Arc::new(description), StageIndex::new(1), 1)
        .unwrap()
        .with_anchor();
    let elements = engine.elements() as u64;
    engine
        .install(&genesis(elements), &BTreeMap::new(), Start::Anew)
        .unwrap();
    for sample in 0..passes {
        backward(&mut engine, sample, 0, true);
    }
    engine.finish(LEARNING_RATE).unwrap();
    engine
}

#[test]
fn what_two_precisions_have_learned_is_close_whatever_of_it_is_uploaded_and_kept() {
    use iota_model::Precision::{Bf16, F32};
    let relative = Merge {
        outer: Outer::Sgd { learning_rate: 0.7 },
        upload: iota_merge::Codec::Bf16,
        optimizer_state: OptimizerState::Local,
        ..Merge::default()
    };
    for merge in [Merge::default(), relative] {
        let mut ours = trained(merge, F32, 4);
        let mut theirs = trained(merge, Bf16, 4);
        let range = 10..ours.elements() as u64 - 7;
        let object = theirs.cell(&range).unwrap();
        let far = ours.upload_distance(&range, &object).unwrap().unwrap();
        let moments = match ours.kept_distance(&theirs.kept().unwrap().unwrap_or_default()) {
            Ok(Some(moments)) => moments,
            kept => {
                assert!(kept.unwrap().is_none() && merge.shares_moments());
                far.moments.unwrap()
            }
        };
        assert_eq!(far.moments.is_some(), merge.shares_moments());
        for distance in [far.change, moments[0], moments[1]] {
            assert!((1e-6..0.5).contains(&distance.relative), "{distance:?}");
        }
        // What the other did not learn is as far away as nothing is.
        let untrained = trained(merge, F32, 0).cell(&range).unwrap();
        let far = ours.upload_distance(&range, &untrained).unwrap().unwrap();
        assert!((far.change.relative - 1.0).abs() < 1e-3, "{far:?}");
        assert_eq!(ours.upload_distance(&range, b"none").unwrap(), None);
        let own = ours.cell(&range).unwrap();
        let none = ours.upload_distance(&range, &own).unwrap().unwrap();
        assert_eq!(none.change, Distance::default());
    }
}

#[test]
fn moments_of_other_steps_are_not_the_moments_that_are_kept() {
    let merge = Merge {
        optimizer_state: OptimizerState::Local,
        ..Merge::default()
    };
    let precision = iota_model::Precision::F32;
    let ours = trained(merge, precision, 4);
    let kept = |passes| trained(merge, precision, passes).kept().unwrap().unwrap();
    let same = ours.kept_distance(&kept(4)).unwrap();
    assert_eq!(same, Some([Distance::default(); 2]));
    assert_eq!(ours.kept_distance(&kept(2)).unwrap(), None);
    assert_eq!(ours.kept_distance(b"none").unwrap(), None);
}
