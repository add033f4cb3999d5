//! Criterion benches, each one file beside this package's manifest. `docs/BENCHES.md` says what they measure and found.
//!
//! | bench | measures |
//! |---|---|
//! | `merge` | every rule on eight copies, beside reading the same memory; codecs of what is merged |
//! | `stage` | training steps of a whole model, passes through a body stage |
//! | `optimizer` | steps of AdamW, NAdam and Muon, beside copying the same bytes |
//! | `codec` | activations to bytes and back, digests |
//! | `scheduling` | commands that the rules decide per second |
//!
//! ```sh
//! cargo bench -p iota-benches --bench merge
//! ```
