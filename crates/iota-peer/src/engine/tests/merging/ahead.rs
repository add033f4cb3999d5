//! Engines that train on while what they uploaded is merged.

use super::*;

/// Runs that train while they merge, with and without something that uploads leave out.
fn overlapping() -> [Merge; 2] {
    let whole = Merge {
        optimizer_state: OptimizerState::Local,
        overlaps: true,
        ..Merge::default()
    };
    let encoded = Merge {
        upload: iota_merge::Codec::TOP_64,
        delta: Some(iota_merge::Codec::Int8),
        feedback: Some(0.95),
        ..whole
    };
    [whole, encoded]
}

/// A miner that has uploaded, what it uploaded, and the checkpoint that came of that and of somebody else's upload.
struct Uploaded {
    miner: Engine,
    kept: Bytes,
    next: Checkpoint,
    cells: BTreeMap<ObjectName, CellPlanes>,
}

fn engine(merge_settings: Merge) -> Engine {
    engine_of(described_with(Wire::default(), merge_settings), 1, 1)
}

fn uploaded(merge_settings: Merge) -> Uploaded {
    let (mut miner, mut other) = (engine(merge_settings), engine(merge_settings));
    let first = train(&mut miner);
    let log = mine(&mut other, &script(1)[..3]);
    let second = end(&mut other, log);
    let (next, cells, _) = merge(&miner, &[&first, &second], 4);
    miner.go_ahead().unwrap();
    Uploaded {
        miner,
        kept: first.kept.expect("it keeps what it trains on from"),
        next,
        cells,
    }
}

#[test]
fn a_replay_of_who_trained_on_gives_the_bits_of_its_upload() {
    for merge_settings in overlapping() {
        let script = script(1);
        // After 7 and 10 steps a pass is pending; and forwards are done before whose backwards come after.
        for ahead in [0, 7, 10, script.len()] {
            let Uploaded {
                mut miner,
                kept,
                next,
                cells,
            } = uploaded(merge_settings);
            let before = mine(&mut miner, &script[..ahead]);
            let installed = miner.install(&next, &cells, Start::GoesOn).unwrap();
            let done_before = before.len();
            let done = before.last().map_or(0, |entry| entry.ordinal + 1);
            assert!(installed.operations >= done);
            let after = mine(&mut miner, &script[ahead..]);
            let end_of_miner = end(&mut miner, Vec::new());

            let log: Vec<Entry> = before.into_iter().chain(after).collect();
            let replayed = |installs_after: usize| {
                let mut validator = engine_without_weights(merge_settings);
                validator.go_ahead_from(&kept).unwrap();
                let mut again = replay(&mut validator, &log[..installs_after]);
                validator.install(&next, &cells, Start::GoesOn).unwrap();
                again.extend(replay(&mut validator, &log[installs_after..]));
                let end = end(&mut validator, Vec::new());
                let steps = validator.optimizer_steps() == miner.optimizer_steps();
                steps
                    && again == log
                    && end.uploads == end_of_miner.uploads
                    && end.kept == end_of_miner.kept
            };
            assert!(replayed(done_before), "{merge_settings:?} after {ahead}");
            // Who says that it installed at another time is found out: a pass of it was of other weights.
            let elsewhere = if ahead == 0 { log.len() } else { 0 };
            assert!(!replayed(elsewhere), "{merge_settings:?} after {ahead}");
        }
    }
}

fn engine_without_weights(merge_settings: Merge) -> Engine {
    let description = described_with(Wire::default(), merge_settings);
    Engine::new(description, StageIndex::new(1), 1).unwrap()
}

#[test]
fn what_was_learned_meanwhile_goes_on_top_of_what_was_merged() {
    for merge_settings in overlapping() {
        let Uploaded {
            mut miner,
            next,
            cells,
            ..
        } = uploaded(merge_settings);
        let parameters = |engine: &mut Engine| engine.stage.cpu().state().parameters.to_vec();
        let (then, steps) = (parameters(&mut miner), miner.optimizer_steps());
        mine(&mut miner, &script(1));
        let now = parameters(&mut miner);
        let learned = miner.optimizer_steps() - steps;
        assert!(then != now && learned > 0);
        let ours = miner.install(&next, &cells, Start::GoesOn).unwrap();

        let mut joiner = engine_without_weights(merge_settings);
        let theirs = joiner.install(&next, &cells, Start::Anew).unwrap();
        assert_eq!(
            ours.state, theirs.state,
            "what they have in common is what was merged"
        );
        assert_eq!(theirs.operations, 0);
        let expected: Vec<f32> = parameters(&mut joiner)
            .iter()
            .zip(then.iter().zip(&now))
            .map(|(merged, (then, now))| (now - then) + merged)
            .collect();
        assert!(parameters(&mut miner) == expected);
        assert_eq!(miner.optimizer_steps(), joiner.optimizer_steps() + learned);
    }
}

#[test]
fn an_installation_that_is_asked_for_twice_changes_nothing() {
    for merge_settings in overlapping() {
        let Uploaded {
            mut miner,
            next,
            cells,
            ..
        } = uploaded(merge_settings);
        mine(&mut miner, &script(1)[..7]);
        let first = miner.install(&next, &cells, Start::GoesOn).unwrap();
        mine(&mut miner, &script(1)[7..]);
        let before = miner.stage.cpu().state().parameters.to_vec();
        let again = miner.install(&next, &cells, Start::GoesOn).unwrap();
        assert_eq!(again, first);
        assert!(miner.stage.cpu().state().parameters == before);
        // Another checkpoint is not what it went on with, and there is nothing left to put on top of it.
        let other = Checkpoint {
            epoch: Epoch::new(6),
            ..next
        };
        let refused = miner.install(&other, &cells, Start::GoesOn);
        assert!(matches!(refused, Err(Error::Checkpoint(_))));
    }
}

#[test]
fn nobody_trains_on_from_what_is_nothing_of_the_kind() {
    let mut engine = engine_without_weights(overlapping()[0]);
    assert!(matches!(engine.go_ahead_from(b"nothing"), Err(Error::Kept)));
    let Uploaded { mut miner, .. } = uploaded(overlapping()[0]);
    assert!(!miner.has_trained_ahead());
    mine(&mut miner, &script(1)[..1]);
    assert!(miner.has_trained_ahead());
}
