//! One run of one variant.

use std::time::Instant;

use anyhow::{Context as _, Result};
use iota_compute::{Error, OptimizerSettings};
use iota_model::{ModelConfig, StagePlan};
use iota_protocol::learning_rate_at;
use iota_protocol::settings::LearningRate;

use super::variant::Variant;
use crate::curve::{CURVE_BATCHES, RESULT_BATCHES, is_a_point};
use crate::model::small_model;
use crate::outcome::{Outcome, Setting};
use crate::pipeline::{Pipeline, Wires};
use crate::text::Text;
use crate::wire::Wire;

/// The model of a setting, without boundaries.
pub(super) fn model(setting: &Setting, vocabulary: usize) -> ModelConfig {
    small_model(setting.width, setting.blocks, setting.context, vocabulary)
}

/// Trains a variant with the seed's initial weights, on the seed's order of the text.
pub(super) fn train(
    model: &ModelConfig,
    setting: &Setting,
    variant: &Variant,
    optimizer: OptimizerSettings,
    seed: u64,
    text: &Text,
) -> Result<Outcome> {
    let model = ModelConfig {
        boundary: variant.boundary,
        ..model.clone()
    };
    let stages = if variant.is_uncut() {
        1
    } else {
        setting.stages
    };
    let plan = StagePlan::new(&model, stages)?;
    let uncut = Wires {
        forward: Wire::F32,
        backward: Wire::F32,
    };
    let wires = variant.wires.unwrap_or(uncut);
    let mut pipeline = Pipeline::new(&plan, wires, optimizer, seed)?;

    let batch_tokens = u64::from(setting.sequences) * setting.context as u64;
    let steps = setting.tokens.div_ceil(batch_tokens);
    let schedule = LearningRate::cosine(setting.learning_rate, steps.div_ceil(20), 0.1);
    let started = Instant::now();
    let mut curve = Vec::new();
    let mut all_of_it = || -> Result<f64> {
        let mut batches = text.batches(seed)?;
        for step in 0..steps {
            let batch = batches.next().context("there is always another batch")??;
            let learning_rate = learning_rate_at(&schedule, step, steps);
            pipeline.train(&batch, step, learning_rate)?;
            if is_a_point(step + 1, steps) {
                let loss = pipeline.evaluate(text.held_out(CURVE_BATCHES))?;
                curve.push(((step + 1) * batch_tokens, loss));
            }
        }
        pipeline.evaluate(text.held_out(RESULT_BATCHES))
    };
    let held_out = match all_of_it() {
        Ok(loss) => Some(loss),
        Err(error) if is_not_finite(&error) => None,
        Err(error) => return Err(error),
    };
    Ok(Outcome {
        variant: variant.to_string(),
        seed,
        setting: setting.clone(),
        held_out,
        curve,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// A variant that breaks down is a result.
pub(crate) fn is_not_finite(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<Error>(), Some(Error::NotFinite { .. }))
}
