//! Text from a model, token by token.

use std::ops::ControlFlow;

use iota_compute::{Input, Stage};
use iota_data::Tokenizer;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

use crate::Error;

/// A whole model that writes.
///
/// It reads all tokens of its context anew for each that it writes: slow for a large model, and nothing is kept between
/// tokens that could be wrong.
#[derive(Debug)]
pub struct Writer {
    stage: Stage,
    tokenizer: Tokenizer,
}

/// How a token is chosen by the model's scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Scores are divided by it: below 1 what is likely becomes likelier. 0 takes the likeliest.
    pub temperature: f32,
    /// The same seed gives the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            seed: 0,
        }
    }
}

/// Bytes of a character, at most: as many tokens may have to come before there is one.
const CHARACTER_BYTES: usize = 4;

impl Writer {
    /// `stage`: a model in one piece.
    pub const fn new(stage: Stage, tokenizer: Tokenizer) -> Self {
        Self { stage, tokenizer }
    }

    /// Goes on from the prompt by so many tokens, and hands on the text as soon as there is any, until whoever gets it has
    /// enough.
    ///
    /// The model sees the last tokens that its context has room for.
    ///
    /// # Errors
    /// [`Error::NoPrompt`]; [`Error::NotFinite`]; those of [`Stage::next_scores`].
    pub fn write(
        &mut self,
        prompt: &str,
        count: usize,
        sampling: Sampling,
        mut hand_on: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut tokens = self.tokenizer.encode(prompt);
        if tokens.is_empty() {
            return Err(Error::NoPrompt);
        }
        let mut chance = ChaCha8Rng::seed_from_u64(sampling.seed);
        let context = self.stage.plan().config().context;
        let mut handed_on = tokens.len();
        for written in 1..=count {
            let seen = &tokens[tokens.len().saturating_sub(context)..];
            let scores = self.stage.next_scores(Input::Tokens(seen))?;
            tokens.push(choose(&scores, sampling.temperature, &mut chance)?);
            let text = self.tokenizer.decode(&tokens[handed_on..])?;
            // A character may have come in part only.
            let is_whole = !text.ends_with(char::REPLACEMENT_CHARACTER);
            if is_whole || tokens.len() - handed_on >= CHARACTER_BYTES || written == count {
                if hand_on(&text).is_break() {
                    return Ok(());
                }
                handed_on = tokens.len();
            }
        }
        Ok(())
    }
}

/// A token, each as often as the softmax of the scores has it.
fn choose(scores: &[f32], temperature: f32, chance: &mut ChaCha8Rng) -> Result<u32, Error> {
    if !scores.iter().all(|score| score.is_finite()) {
        return Err(Error::NotFinite);
    }
    let ranked = scores.iter().enumerate();
    let Some((likeliest, largest)) = ranked.max_by(|a, b| a.1.total_cmp(b.1)) else {
        return Err(Error::NotFinite);
    };
    if temperature <= 0.0 {
        return Ok(likeliest as u32);
    }
    let weight = |score: &f32| (f64::from(score - largest) / f64::from(temperature)).exp();
    let total: f64 = scores.iter().map(weight).sum();
    // In [0, 1), of 53 bits.
    let mut left = (chance.next_u64() >> 11) as f64 / (1_u64 << 53) as f64 * total;
    for (token, score) in scores.iter().enumerate() {
        left -= weight(score);
        if left < 0.0 {
            return Ok(token as u32);
        }
    }
    // Rounding has left a rest.
    Ok(likeliest as u32)
}

#[cfg(test)]
mod tests {
    use iota_compute::StageOptions;
    use iota_model::{Boundary, ModelConfig, StagePlan, preset};

    use super::*;

    const TEXT: &str = "Zürich, Köln, Genf. ";

    /// A model that has learned nothing.
    fn untaught() -> Writer {
        let model = ModelConfig {
            boundary: Boundary::Iota { channels: 24 },
            ..preset("tiny").unwrap()
        };
        let plan = StagePlan::new(&model, 2).unwrap().regroup(1).unwrap();
        let mut stage = Stage::new(&plan, 0, StageOptions::default()).unwrap();
        stage.initialise(5).unwrap();
        Writer::new(stage, Tokenizer::default())
    }

    /// A model that has learned nothing but the text above, again and again.
    fn taught() -> Writer {
        let mut writer = untaught();
        let context = writer.stage.plan().config().context;
        let text = writer.tokenizer.encode(&TEXT.repeat(4));
        for step in 0..150 {
            let start = step % TEXT.len();
            let tokens = &text[start..start + context];
            let targets = &text[start + 1..=start + context];
            let input = Input::Tokens(tokens);
            writer.stage.forward_backward_loss(input, targets).unwrap();
            writer.stage.step(0.01, 1).unwrap();
        }
        writer
    }

    /// Longer than the context, from shorter than it, and through characters of two bytes.
    #[test]
    fn a_model_writes_what_it_has_learned() {
        let mut writer = taught();
        let mut pieces = Vec::new();
        let sampling = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        let prompt = "Zürich, K";
        writer
            .write(prompt, 60, sampling, |piece| {
                pieces.push(piece.to_owned());
                ControlFlow::Continue(())
            })
            .unwrap();
        let expected = TEXT.repeat(5);
        let written = pieces.concat();
        assert!(expected[prompt.len()..].starts_with(&written), "{written}");
        assert!(written.len() >= 60);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
    }

    #[test]
    fn whoever_has_enough_gets_no_more() {
        let mut pieces = 0;
        // More than a test has time for.
        let written = untaught().write("Z", usize::MAX, Sampling::default(), |_| {
            pieces += 1;
            if pieces < 3 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        written.unwrap();
        assert_eq!(pieces, 3);
    }

    #[test]
    fn nothing_is_written_of_nothing() {
        let nobody = |_: &str| ControlFlow::Continue(());
        let refused = untaught().write("", 1, Sampling::default(), nobody);
        assert!(matches!(refused, Err(Error::NoPrompt)));
    }

    #[test]
    fn tokens_come_as_often_as_their_scores_say() {
        let mut chance = ChaCha8Rng::seed_from_u64(3);
        let scores = [0.0, 2.0_f32.ln(), f32::MIN, 1.0_f32.ln()];
        let mut counts = [0_i32; 4];
        for _ in 0..4000 {
            counts[choose(&scores, 1.0, &mut chance).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([1000, 2000, 0, 1000]) {
            // Four standard deviations.
            assert!((count - expected).abs() < 130, "{counts:?}");
        }
        assert_eq!(choose(&scores, 0.0, &mut chance).unwrap(), 1);
        let broken = choose(&[0.0, f32::NAN], 1.0, &mut chance);
        assert!(matches!(broken, Err(Error::NotFinite)));
    }
}
