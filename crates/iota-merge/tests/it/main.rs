//! The crate from outside: what every rule, outer step and codec promises, for any copies.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod codecs; // round trips, error feedback, bytes from strangers
mod mean; // the weighted mean, element by element
mod outer; // steps on pseudo-gradients
mod rules; // what holds for all rules, and what each one is for
mod streaming; // copies one after the other
mod support;
