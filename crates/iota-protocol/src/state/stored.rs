//! A state as it is written: the facts. What follows from them is made anew when they are read.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{Leases, MergeRecord, Sessions, State, audits, merging, places, samples};
use crate::event::Phase;
use crate::id::{Epoch, PeerId, StageIndex};
use crate::index::Index;
use crate::lease::Durations;
use crate::settings::RunSettings;
use crate::time::Timestamp;
use crate::work::{Checkpoint, ObjectName, WorkKind};

/// The fields of [`State`] but for its index.
#[derive(Deserialize)]
pub(super) struct Stored {
    settings: RunSettings,
    clock: Timestamp,
    phase: Phase,
    epoch: Epoch,
    phase_since: Timestamp,
    phase_deadline: Option<Timestamp>,
    sessions: Sessions,
    #[serde(default)]
    places: places::Places,
    leases: Leases,
    samples: samples::Samples,
    checkpoints: Vec<Checkpoint>,
    previous_checkpoints: Vec<Checkpoint>,
    unreadable: BTreeSet<(StageIndex, ObjectName, PeerId)>,
    merging: Vec<merging::StageMerge>,
    merges: Vec<MergeRecord>,
    audits: audits::Audits,
    replicas_equal: bool,
    #[serde(with = "crate::pairs")]
    durations: BTreeMap<(StageIndex, WorkKind), Durations>,
}

impl From<Stored> for State {
    fn from(stored: Stored) -> Self {
        let Stored {
            settings,
            clock,
            phase,
            epoch,
            phase_since,
            phase_deadline,
            sessions,
            places,
            leases,
            samples,
            checkpoints,
            previous_checkpoints,
            unreadable,
            merging,
            merges,
            audits,
            replicas_equal,
            durations,
        } = stored;
        let mut state = Self {
            settings,
            clock,
            phase,
            epoch,
            phase_since,
            phase_deadline,
            sessions,
            places,
            leases,
            samples,
            checkpoints,
            previous_checkpoints,
            unreadable,
            merging,
            merges,
            audits,
            replicas_equal,
            durations,
            index: Index::default(),
        };
        state.index = Index::of(&state);
        state
    }
}
