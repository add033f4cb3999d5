//! A merge whose copies come one after the other, whatever the rule.

use crate::element::Element;
use crate::error::Error;
use crate::mean::{Accumulator, Merged, WeightedCopy};
use crate::rule::{Clip, Rule};

/// A merge under way: copies are added in order as they arrive.
///
/// Gives the bits of [`Rule::merge`] over the same copies in the same order. A weighted mean without clipping keeps sums
/// only and so takes the same memory for any number of copies; all other rules need every copy at the end and keep them.
/// [`InProgress::bytes`] says how much that is, so that whoever merges many ranges can bound those under way.
///
/// ```
/// use iota_merge::{Clip, InProgress, Rule};
///
/// let mut cell = InProgress::new(Rule::Median, Clip::None, 2)?;
/// cell.add(&[1.0_f32, 2.0], 1)?;
/// cell.add(&[9e9_f32, 0.0], 1)?;
/// cell.add(&[3.0_f32, 2.0], 1)?;
/// assert_eq!(cell.finish()?.elements, [3.0, 2.0]);
/// # Ok::<(), iota_merge::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct InProgress {
    rule: Rule,
    clip: Clip,
    elements: usize,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Sums(Accumulator),
    Copies(Vec<(Vec<f32>, u64)>),
}

impl InProgress {
    /// A merge of copies of this many elements.
    ///
    /// # Errors
    /// [`Error::Setting`], as [`Rule::validate`].
    pub fn new(rule: Rule, clip: Clip, elements: usize) -> Result<Self, Error> {
        rule.validate()?;
        let state = if is_a_sum(rule, clip) {
            State::Sums(Accumulator::new(elements))
        } else {
            State::Copies(Vec::new())
        };
        Ok(Self {
            rule,
            clip,
            elements,
            state,
        })
    }

    /// Bytes that a merge of so many copies holds before it is finished.
    #[must_use]
    pub fn bytes(rule: Rule, clip: Clip, elements: usize, copies: usize) -> u64 {
        let per_element = if is_a_sum(rule, clip) {
            size_of::<f64>() as u64
        } else {
            size_of::<f32>() as u64 * copies as u64
        };
        per_element * elements as u64
    }

    /// Takes in the next copy.
    ///
    /// # Errors
    /// [`Error::Length`] if it has another number of elements. It then does not count as a copy.
    pub fn add<E: Element>(&mut self, copy: &[E], weight: u64) -> Result<(), Error> {
        match &mut self.state {
            State::Sums(sums) => sums.add(copy, weight),
            State::Copies(copies) => {
                if copy.len() != self.elements {
                    return Err(Error::Length {
                        copy: copies.len(),
                        expected: self.elements,
                        found: copy.len(),
                    });
                }
                copies.push((copy.iter().map(|x| x.to_f32()).collect(), weight));
                Ok(())
            }
        }
    }

    /// The merged range.
    ///
    /// # Errors
    /// [`Error::NoCopies`], [`Error::NoneFinite`], [`Error::ZeroWeight`].
    pub fn finish(self) -> Result<Merged, Error> {
        match self.state {
            State::Sums(sums) => sums.finish(),
            State::Copies(copies) => {
                let copies: Vec<WeightedCopy<'_>> = copies
                    .iter()
                    .map(|(elements, weight)| WeightedCopy {
                        elements,
                        weight: *weight,
                    })
                    .collect();
                self.rule.merge(&copies, self.clip)
            }
        }
    }
}

fn is_a_sum(rule: Rule, clip: Clip) -> bool {
    rule == Rule::WeightedMean && clip == Clip::None
}
