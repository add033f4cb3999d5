use iota_compute::{StageOptions, measure_costs};
use iota_model::{ModelConfig, StagePlan, preset};

#[test]
fn a_large_vocabulary_is_measured_to_cost_the_tail_more_than_a_block_and_leaves_it_one() {
    // Its projection has some thirty times the multiplications of a block, so that no load on the machine turns this round.
    let model = ModelConfig {
        vocabulary: 8192,
        ..preset("tiny").unwrap()
    };
    let whole = StagePlan::new(&model, 1).unwrap();
    let costs = measure_costs(&whole, 2, StageOptions::default()).unwrap();
    assert!(costs.block > 0.0 && costs.head >= 0.0, "{costs:?}");
    assert!(
        costs.tail > 3.0 * costs.block && costs.tail > costs.head,
        "{costs:?}"
    );

    let plan = StagePlan::weighted(&model, 2, &costs).unwrap();
    assert_eq!(plan.stages()[1].blocks, 3..4, "{costs:?}");
}
