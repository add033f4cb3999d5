//! Chance that nobody foresees and everybody can check afterwards.
//!
//! A draw is a BLAKE3 hash, keyed by the run's secret, of what the draw is about. Before the secret is known nobody can
//! tell how it will fall; the same question always gets the same answer (P4).

use crate::id::{Digest, ObjectId, Session};

/// A question put to chance: a purpose, then the values that make it this question and no other.
pub(crate) struct Draw(blake3::Hasher);

impl Draw {
    /// Begins a question. Purposes keep draws about the same values apart.
    pub(crate) fn about(secret: &[u8; 32], purpose: &str) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(secret);
        hasher.update(&(purpose.len() as u64).to_le_bytes());
        hasher.update(purpose.as_bytes());
        Self(hasher)
    }

    /// Adds a number.
    pub(crate) fn number(mut self, number: u64) -> Self {
        self.0.update(&number.to_le_bytes());
        self
    }

    /// Adds a session.
    pub(crate) fn session(mut self, session: Session) -> Self {
        self.0.update(session.peer.as_bytes());
        self.number(session.generation.into())
    }

    /// The answer as a number, every value equally likely.
    pub(crate) fn value(&self) -> u64 {
        let mut bytes = [0; 8];
        self.0.finalize_xof().fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// The answer as a number below `bound`, which must not be zero.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        // The upper half of a 128-bit product: uneven by less than bound / 2^64, which nobody will ever see.
        let product = u128::from(self.value()) * u128::from(bound);
        u64::try_from(product >> 64).expect("the upper half of 128 bits has 64")
    }

    /// The answer as what further draws are keyed with.
    pub(crate) fn digest(&self) -> Digest {
        Digest::from_bytes(*self.0.finalize().as_bytes())
    }

    /// The answer as the unguessable part of an object's key.
    pub(crate) fn object(&self) -> ObjectId {
        let mut bytes = [0; ObjectId::LENGTH];
        self.0.finalize_xof().fill(&mut bytes);
        ObjectId::from_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_secret_purpose_and_values() {
        let base = Draw::about(&[1; 32], "audit").number(7).value();
        assert_eq!(base, Draw::about(&[1; 32], "audit").number(7).value());
        assert_ne!(base, Draw::about(&[2; 32], "audit").number(7).value());
        assert_ne!(base, Draw::about(&[1; 32], "cells").number(7).value());
        assert_ne!(base, Draw::about(&[1; 32], "audit").number(8).value());
    }

    #[test]
    fn draws_below_a_bound_reach_every_value() {
        let mut seen = [0_u32; 5];
        for question in 0..500 {
            seen[usize::try_from(Draw::about(&[3; 32], "test").number(question).below(5))
                .unwrap()] += 1;
        }
        assert!(
            seen.iter().all(|count| (60..=140).contains(count)),
            "{seen:?}"
        );
    }
}
