use iota_compute::{Input, Stage, StageOptions};
use iota_model::{Boundary, ModelConfig, StagePlan, preset};

use crate::{optimizers, train_pass};

#[test]
fn the_loss_on_a_repeated_text_falls_in_every_cut_with_every_update_rule() {
    let text = "every stage is held by a miner, and every miner may leave. ".repeat(3);
    let text: Vec<u32> = text.bytes().map(u32::from).collect();
    let iota = preset("tiny").unwrap();
    let resbm = ModelConfig {
        boundary: Boundary::ResBm { channels: 16 },
        ..iota.clone()
    };
    let anchored = ModelConfig {
        boundary: Boundary::Anchored { channels: 2 },
        ..iota.clone()
    };
    let (tokens, targets) = (&text[..4 * iota.context], &text[1..=4 * iota.context]);
    let [default, others @ ..] = optimizers();
    let cases = [
        (&iota, 1, default),
        (&iota, 3, default),
        (&resbm, 3, default),
        (&anchored, 3, default),
    ];
    for (model, count, optimizer) in cases
        .into_iter()
        .chain(others.map(|optimizer| (&iota, 3, optimizer)))
    {
        let plan = StagePlan::new(model, count).unwrap();
        let options = StageOptions {
            optimizer,
            ..StageOptions::default()
        };
        let mut stages: Vec<_> = (0..count)
            .map(|index| {
                let mut stage = Stage::new(&plan, index, options).unwrap();
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
        let boundary = model.boundary;
        assert!(
            last < 1.0,
            "{count} stages, {boundary:?}, {optimizer:?}: from {first} to {last} nats"
        );
    }
}

#[test]
fn before_training_a_residual_bottleneck_passes_its_channels_on_as_they_are() {
    let model = ModelConfig {
        boundary: Boundary::ResBm { channels: 20 },
        ..preset("tiny").unwrap()
    };
    let open = ModelConfig {
        boundary: Boundary::None,
        ..model.clone()
    };
    // The same seed: all tensors that both models have are equal.
    let sent = |model: &ModelConfig| {
        let plan = StagePlan::new(model, 2).unwrap();
        let mut head = Stage::new(&plan, 0, StageOptions::default()).unwrap();
        head.initialise(4).unwrap();
        let tokens = crate::tokens(model.context, model.vocabulary, 5);
        head.forward_only(Input::Tokens(&tokens)).unwrap()
    };
    let (all, crossing) = (sent(&open), sent(&model));
    let first: Vec<f32> = all
        .chunks(model.width)
        .flat_map(|row| row[..20].to_vec())
        .collect();
    let away = crate::distance(&crossing, &first);
    assert!(away < 0.05, "{away} away from the identity");
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
