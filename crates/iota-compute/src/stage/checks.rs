//! Checks of what comes from outside, before anything is computed.

use super::{Input, Saved, Stage};
use crate::backend::{AttentionShape, Backend};
use crate::error::{Error, Result};

const TOKENS: &str = "tokens";
const ACTIVATION: &str = "an activation";
const ANCHORED: &str = "an activation and tokens";

impl<B: Backend> Stage<B> {
    pub(super) fn must_pass_on(&self, operation: &'static str) -> Result<()> {
        self.must(self.output.is_none(), operation)
    }

    pub(super) fn must_compute_loss(&self, operation: &'static str) -> Result<()> {
        self.must(self.output.is_some(), operation)
    }

    fn must(&self, holds: bool, operation: &'static str) -> Result<()> {
        if holds {
            Ok(())
        } else {
            Err(Error::Unsupported {
                role: self.role,
                operation,
            })
        }
    }

    pub(super) fn check_saved(&self, saved: &Saved<B>) -> Result<()> {
        let heads = self.plan.config().heads;
        let elements: usize = saved
            .blocks
            .iter()
            .map(|block| block.elements(&self.backend))
            .sum();
        let per_row: usize = self
            .blocks
            .iter()
            .zip(&saved.blocks)
            .map(|(block, saved)| block.saved_elements(heads, saved.recompute()))
            .sum();
        let same_input = saved.tokens.is_some() == (self.takes_tokens() || self.takes_anchor());
        let same_blocks =
            saved.blocks.len() == self.blocks.len() && elements == per_row * saved.attention.rows();
        if same_input && same_blocks {
            Ok(())
        } else {
            Err(Error::ForeignSaved)
        }
    }

    pub(super) fn check_loss(&self, input: Input<'_>, targets: &[u32]) -> Result<AttentionShape> {
        self.must_compute_loss("compute a loss")?;
        let attention = self.check_input(input)?;
        check_length("the list of targets", attention.rows(), targets.len())?;
        self.check_vocabulary("target", targets)?;
        Ok(attention)
    }

    pub(super) fn check_input(&self, input: Input<'_>) -> Result<AttentionShape> {
        let config = self.plan.config();
        let expected = match (self.takes_tokens(), self.takes_anchor()) {
            (true, _) => TOKENS,
            (false, false) => ACTIVATION,
            (false, true) => ANCHORED,
        };
        let given = match input {
            Input::Tokens(_) => TOKENS,
            Input::Activation(_) => ACTIVATION,
            Input::Anchored { .. } => ANCHORED,
        };
        if expected != given {
            return Err(Error::InputKind {
                role: self.role,
                expected,
                given,
            });
        }
        let tokens = match input {
            Input::Tokens(tokens) => tokens.len(),
            Input::Activation(activation) => self.check_activation(activation)?,
            Input::Anchored { activation, tokens } => {
                let rows = self.check_activation(activation)?;
                check_length("the list of tokens", rows, tokens.len())?;
                rows
            }
        };
        if let Input::Tokens(tokens) | Input::Anchored { tokens, .. } = input {
            self.check_vocabulary("token", tokens)?;
        }
        let context = config.context;
        if tokens == 0 || (tokens > context && !tokens.is_multiple_of(context)) {
            return Err(Error::Sequences { tokens, context });
        }
        Ok(AttentionShape {
            sequences: tokens.div_ceil(context),
            tokens: tokens.min(context),
            heads: config.heads,
            key_value_heads: config.key_value_heads,
            head_width: config.head_width(),
        })
    }

    /// Returns the number of its rows.
    fn check_activation(&self, activation: &[f32]) -> Result<usize> {
        let width = self.plan.boundary_width();
        if !activation.len().is_multiple_of(width) {
            return Err(Error::Rows {
                elements: activation.len(),
                width,
            });
        }
        check_finite("the input activation", activation)?;
        Ok(activation.len() / width)
    }

    const fn takes_tokens(&self) -> bool {
        self.role.takes_tokens()
    }

    /// Whether it takes tokens beside an activation.
    const fn takes_anchor(&self) -> bool {
        !self.role.takes_tokens() && self.plan.config().boundary.is_anchored()
    }

    pub(super) fn check_vocabulary(&self, what: &'static str, tokens: &[u32]) -> Result<()> {
        let vocabulary = self.plan.config().vocabulary;
        match tokens
            .iter()
            .position(|&token| token as usize >= vocabulary)
        {
            None => Ok(()),
            Some(position) => Err(Error::Vocabulary {
                what,
                token: tokens[position],
                position,
                vocabulary,
            }),
        }
    }
}

pub(super) fn check_length(what: &'static str, expected: usize, actual: usize) -> Result<()> {
    if expected == actual {
        Ok(())
    } else {
        Err(Error::Length {
            what,
            expected,
            actual,
        })
    }
}

pub(super) fn check_finite(what: &'static str, values: &[f32]) -> Result<()> {
    if values.iter().all(|value| value.is_finite()) {
        Ok(())
    } else {
        Err(Error::NotFinite { what })
    }
}
