//! What the tests of several modules begin with.

use crate::{Participants, RunOptions, Setup};

/// A run of one small stage, without validators, whose training waits for so many miners.
pub(crate) fn setup(miners_to_start: u32) -> Setup {
    let options = RunOptions {
        preset: "tiny".to_owned(),
        stages: 1,
        ..RunOptions::default()
    };
    let participants = Participants {
        miners_to_start,
        validators: vec![],
    };
    Setup::new(&options, participants).unwrap()
}
