use iota_merge::{Codec, Outer};
use iota_protocol::PeerId;
use iota_run::OptimizerState;

use super::*;

const ELEMENTS: usize = 5_000;

const NESTEROV: Outer = Outer::Nesterov {
    learning_rate: 0.7,
    momentum: 0.9,
    warmup_from: 0.5,
    warmup_rounds: 4,
};

fn session(generation: u32) -> Session {
    Session {
        peer: PeerId::from_bytes([7; 32]),
        generation,
    }
}

/// The same numbers for the same seed, around zero.
fn numbers(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % 2_001) as f32 / 1_000.0 - 1.0
    };
    (0..ELEMENTS).map(|_| next()).collect()
}

/// What miners that started from one checkpoint upload of a cell.
struct Stage {
    settings: Merge,
    base: Base,
    uploads: Vec<Vec<u8>>,
}

impl Stage {
    fn new(settings: Merge, miners: u64) -> Self {
        settings.validate().unwrap();
        let momentum = settings.outer.has_momentum();
        let base = Base {
            anchor: numbers(99),
            momentum: if momentum { numbers(98) } else { Vec::new() },
        };
        let uploads = (0..miners).map(|miner| {
            let trained = base.anchor.iter().zip(numbers(miner));
            let trained: Vec<f32> = trained.map(|(x, change)| x + 0.01 * change).collect();
            upload(&settings, &base.anchor, &trained)
        });
        Self {
            uploads: uploads.collect(),
            settings,
            base,
        }
    }

    fn merge(&self) -> Result<MergedCell, Unmergeable> {
        let mut cell = CellMerge::new(self.settings, ELEMENTS).unwrap();
        for (generation, copy) in (0..).zip(&self.uploads) {
            cell.add(session(generation), copy, 1).unwrap();
        }
        cell.finish(Some(self.base.clone()), 3).unwrap()
    }

    /// The merged parameters.
    fn parameters(&self, merged: &MergedCell) -> Vec<f32> {
        let spec = self.settings.cell_spec(ELEMENTS);
        tensor::decode(&merged.cell, &spec).unwrap().swap_remove(0)
    }
}

fn upload(settings: &Merge, anchor: &[f32], trained: &[f32]) -> Vec<u8> {
    let moments = [numbers(50), numbers(51).iter().map(|x| x * x).collect()];
    let moments: Vec<&[f32]> = moments
        .iter()
        .filter(|_| settings.shares_moments())
        .map(Vec::as_slice)
        .collect();
    if !settings.is_relative() {
        let planes = [trained.to_vec()]
            .into_iter()
            .chain(moments.iter().map(|plane| plane.to_vec()));
        return learned::encode_cell(settings, &planes.collect()).to_vec();
    }
    let mut residual = vec![0.0; ELEMENTS];
    let residual = settings
        .residual_decay()
        .map_or(&mut [][..], |_| &mut residual[..]);
    learned::encode_trained(settings, anchor, trained, &moments, residual)
        .unwrap()
        .to_vec()
}

fn every_kind() -> Vec<Merge> {
    let low_rank = Codec::LowRank {
        rank: 4,
        columns: 100,
    };
    let mut kinds = Vec::new();
    for outer in [Outer::None, Outer::Sgd { learning_rate: 0.8 }, NESTEROV] {
        for upload in [
            Codec::F32,
            Codec::Bf16,
            Codec::Int8,
            Codec::TOP_64,
            low_rank,
        ] {
            for delta in [
                None,
                Some(Codec::Int8),
                Some(Codec::Bf16),
                Some(Codec::Sparse),
            ] {
                if delta == Some(Codec::Sparse) && upload != Codec::TOP_64 {
                    continue;
                }
                for optimizer_state in [OptimizerState::Merged, OptimizerState::Dropped] {
                    kinds.push(Merge {
                        outer,
                        upload,
                        delta,
                        optimizer_state,
                        feedback: Some(0.95),
                        ..Merge::default()
                    });
                }
            }
        }
    }
    for rule in [
        Rule::GeometricMean,
        Rule::Median,
        Rule::TRIMMED,
        Rule::CLIPPED,
        Rule::Radial,
    ] {
        kinds.push(Merge {
            rule,
            clip: Clip::MedianNorm,
            ..Merge::default()
        });
    }
    kinds
}

#[test]
fn merging_copies_of_one_cell_gives_that_cell_back() {
    let mut stage = Stage::new(Merge::default(), 1);
    let copy = stage.uploads[0].clone();
    stage.uploads = vec![copy.clone(); 3];
    assert!(stage.merge().unwrap().cell == copy);
}

#[test]
fn every_plane_is_averaged_by_weight() {
    let settings = Merge::default();
    let copy = |values: [f32; 2]| learned::encode_cell(&settings, &vec![values.to_vec(); 3]);
    let mut cell = CellMerge::new(settings, 2).unwrap();
    cell.add(session(0), &copy([1.0, 2.0]), 3).unwrap();
    cell.add(session(1), &copy([5.0, 10.0]), 1).unwrap();
    let merged = cell.finish(None, 0).unwrap().unwrap();
    assert!(merged.cell == copy([2.0, 4.0]));
    assert_eq!((merged.quarantined, merged.delta), (vec![], None));
}

#[test]
fn a_copy_with_one_bad_moment_is_left_out_as_a_whole() {
    for settings in [
        Merge::default(),
        Merge {
            upload: Codec::Int8,
            ..Merge::default()
        },
    ] {
        let mut stage = Stage::new(settings, 2);
        let alone = Stage {
            uploads: vec![stage.uploads[1].clone()],
            base: stage.base.clone(),
            settings,
        };
        // The last number of the object is of the second moment.
        let end = stage.uploads[0].len();
        stage.uploads[0][end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        let merged = stage.merge().unwrap();
        assert_eq!(merged.quarantined, [session(0)]);
        assert!(merged.cell == alone.merge().unwrap().cell);
        stage.uploads.truncate(1);
        let quarantined = vec![session(0)];
        assert_eq!(stage.merge(), Err(Unmergeable { quarantined }));
    }
}

#[test]
fn what_a_delta_makes_of_the_checkpoint_is_the_merged_cell_bit_for_bit() {
    for settings in every_kind() {
        let stage = Stage::new(settings, 4);
        let merged = stage.merge().unwrap();
        assert_eq!(merged, stage.merge().unwrap(), "two owners: {settings:?}");
        assert_eq!(merged.delta.is_some(), settings.delta.is_some());
        let Some((codec, delta)) = settings.delta.zip(merged.delta) else {
            continue;
        };
        let learned = learned::decode(&settings, codec, ELEMENTS, &delta).unwrap();
        let planes = learned::step(&settings, stage.base.clone(), learned, 3).unwrap();
        let cell = learned::encode_cell(&settings, &planes);
        assert!(cell == merged.cell, "{settings:?}");
    }
}

#[test]
fn objects_are_as_long_as_grants_say() {
    for settings in every_kind() {
        let stage = Stage::new(settings, 2);
        let merged = stage.merge().unwrap();
        let length = |bytes: &[u8]| bytes.len() as u64;
        let elements = ELEMENTS as u64;
        if let Some(size) = settings.upload_size() {
            assert_eq!(length(&stage.uploads[0]), size.bytes(elements));
        }
        assert_eq!(settings.cell_elements(length(&merged.cell)), Some(ELEMENTS));
        let delta = merged.delta.as_deref().map(length);
        let size = settings.delta_size();
        assert_eq!(delta, size.map(|size| size.bytes_from(elements, 2)));
    }
}

#[test]
fn garbage_in_one_of_eight_uploads_does_little_with_a_robust_rule_and_ruins_a_mean() {
    let distance = |rule, clip| {
        let settings = Merge {
            rule,
            clip,
            upload: Codec::Bf16,
            ..Merge::default()
        };
        let honest = Stage::new(settings, 7);
        let mut poisoned = Stage::new(settings, 8);
        let garbage: Vec<f32> = numbers(1_234).iter().map(|x| x * 1e6).collect();
        poisoned.uploads[7] = upload(&settings, &poisoned.base.anchor, &garbage);
        let (a, b) = (honest.merge().unwrap(), poisoned.merge().unwrap());
        let pairs = honest
            .parameters(&a)
            .into_iter()
            .zip(poisoned.parameters(&b));
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    // Honest miners have changed every parameter by 0.01 at most.
    let trimmed = Rule::TrimmedMean { trim_percent: 13 };
    for rule in [Rule::Median, trimmed, Rule::CLIPPED] {
        let moved = distance(rule, Clip::None);
        assert!(moved < 0.02, "{rule:?} moved by {moved}");
    }
    assert!(distance(Rule::WeightedMean, Clip::MedianNorm) < 0.02);
    assert!(distance(Rule::WeightedMean, Clip::None) > 1_000.0);
}

#[test]
fn whatever_bytes_are_uploaded_are_an_upload_or_refused() {
    for settings in every_kind() {
        let stage = Stage::new(settings, 1);
        let whole = &stage.uploads[0];
        let mut cell = CellMerge::new(settings, ELEMENTS).unwrap();
        let cut = &whole[..whole.len() - 1];
        assert_eq!(cell.add(session(0), cut, 1), Err(Difference::Malformed));
        let mut damaged = whole.clone();
        for at in (512..damaged.len()).step_by(97) {
            damaged[at] ^= 0xFF;
        }
        // Either is fine; what is taken in is finite.
        let _ = cell.add(session(1), &damaged, 1);
        cell.add(session(2), whole, 1).unwrap();
        assert!(cell.finish(Some(stage.base), 0).unwrap().is_ok());
    }
}

#[test]
fn whatever_bytes_are_a_delta_are_finite_values_or_refused() {
    for settings in every_kind() {
        let merged = Stage::new(settings, 3).merge().unwrap();
        let Some((codec, delta)) = settings.delta.zip(merged.delta) else {
            continue;
        };
        let decode = |bytes: &[u8]| learned::decode(&settings, codec, ELEMENTS, bytes);
        for length in [0, 7, 100, delta.len() - 1] {
            assert!(decode(&delta[..length]).is_err(), "{settings:?}: {length}");
        }
        for seed in 0..40 {
            let mut damaged = delta.to_vec();
            for at in (seed..damaged.len()).step_by(211) {
                damaged[at] ^= 1 << (at % 8);
            }
            if let Ok(learned) = decode(&damaged) {
                let planes = [learned.delta].into_iter().chain(learned.moments);
                let is_fine = |plane: Vec<f32>| {
                    plane.len() == ELEMENTS && plane.iter().all(|x| x.is_finite())
                };
                assert!(planes.into_iter().all(is_fine), "{settings:?}");
            }
        }
    }
}

/// A step so far that parameters leave what an f32 can be, from copies that are all finite.
#[test]
fn finite_copies_without_a_finite_merge_are_unmergeable_and_nobody_is_to_blame() {
    let settings = Merge {
        outer: Outer::Sgd { learning_rate: 1e3 },
        optimizer_state: OptimizerState::Dropped,
        ..Merge::default()
    };
    let mut stage = Stage::new(settings, 0);
    let far = vec![f32::MAX / 4.0; ELEMENTS];
    stage.uploads = vec![upload(&settings, &stage.base.anchor, &far); 2];
    let quarantined = Vec::new();
    assert_eq!(stage.merge(), Err(Unmergeable { quarantined }));
}
