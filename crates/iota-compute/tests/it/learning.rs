use iota_compute::{Input, StageOptions};
use iota_model::{StagePlan, preset};

use crate::{optimizers, train_pass};

#[test]
fn the_loss_on_a_repeated_text_falls_in_every_cut_with_every_update_rule() {
    let text = "every stage is held by a miner, and every miner may leave. ".repeat(3);
    let text: Vec<u32> = text.bytes().map(u32::from).collect();
    let model = preset("tiny").unwrap();
    let (tokens, targets) = (&text[..4 * model.context], &text[1..=4 * model.context]);
    for (count, optimizer) in [1, 3]
        .into_iter()
        .flat_map(|count| optimizers().map(|o| (count, o)))
    {
        let plan = StagePlan::new(&model, count).unwrap();
        let options = StageOptions {
            optimizer,
            ..StageOptions::default()
        };
        let mut stages: Vec<_> = (0..count)
            .map(|index| {
                let mut stage = iota_compute::Stage::new(&plan, index, options).unwrap();
                stage.initialise(3).unwrap();
                stage
            })
            .collect();
        let first = train_pass(&mut stages, tokens, targets);
        let uniform = (model.vocabulary as f32).ln();
        assert!(
            (first - uniform).abs() < 0.1,
            "before training, {first} nats are those of a guess"
        );
        let mut last = first;
        for _ in 0..120 {
            for stage in &mut stages {
                stage.step(0.01, 1).unwrap();
            }
            last = train_pass(&mut stages, tokens, targets);
        }
        assert!(
            last < 1.0,
            "{count} stages, {optimizer:?}: from {first} to {last} nats"
        );
    }
}

#[test]
fn evaluating_gives_the_loss_of_training_and_changes_nothing() {
    let plan = StagePlan::new(&preset("tiny").unwrap(), 2).unwrap();
    let mut stages = crate::stages(&plan, StageOptions::default());
    let (tokens, targets) = (crate::tokens(64, 256, 1), crate::tokens(64, 256, 2));
    let digests: Vec<_> = stages.iter().map(|stage| stage.digest()).collect();
    let activation = stages[0].forward_only(Input::Tokens(&tokens)).unwrap();
    let evaluated = stages[1]
        .evaluate(Input::Activation(&activation), &targets)
        .unwrap();
    assert!(
        stages
            .iter()
            .all(|stage| stage.gradients().iter().all(|gradient| *gradient == 0.0))
    );
    assert_eq!(train_pass(&mut stages, &tokens, &targets), evaluated);
    assert_eq!(
        stages
            .iter()
            .map(|stage| stage.digest())
            .collect::<Vec<_>>(),
        digests
    );
}
