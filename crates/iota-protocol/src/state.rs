//! Everything that is known of a run, and what it tells.
//!
//! The state changes in one place only ([`State::apply`], in `apply.rs`). What to change is decided elsewhere: by
//! commands in `decide.rs`, by what follows from them in `consequences.rs`.

pub(crate) mod audits;
pub(crate) mod merging;
pub(crate) mod places;
pub(crate) mod samples;
pub(crate) mod sessions;
mod stored;
pub(crate) mod vain;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use audits::{Audit, Coverage};
pub use merging::MergeRecord;
pub use samples::{CompletedSample, SampleCounts, WorkCounts};
pub use sessions::{CAPACITY_MAX, Installation, PeerRecord, SessionState};

use crate::checkpoint;
use crate::draw::Draw;
use crate::event::{BanReason, Phase};
use crate::id::{AuditId, Epoch, LeaseId, PeerId, SampleId, Session, StageIndex};
use crate::index::Index;
use crate::lease::Durations;
use crate::settings::{InvalidSetting, RunSettings};
use crate::time::Timestamp;
use crate::work::{Checkpoint, Lease, ObjectName, Purpose, Work, WorkKind};

/// A run: every session, lease, sample, upload, cell and audit that is not over, and counts of those that are.
///
/// Always true of it: what [`invariants`](crate::invariants) checks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "stored::Stored")]
pub struct State {
    pub(crate) settings: RunSettings,
    /// The latest time that anything happened at. Time never runs backwards, whatever a clock does.
    pub(crate) clock: Timestamp,
    pub(crate) phase: Phase,
    pub(crate) epoch: Epoch,
    pub(crate) phase_since: Timestamp,
    pub(crate) phase_deadline: Option<Timestamp>,
    pub(crate) sessions: Sessions,
    pub(crate) places: places::Places,
    pub(crate) leases: Leases,
    pub(crate) samples: samples::Samples,
    pub(crate) checkpoints: Vec<Checkpoint>,
    /// What each stage started the epoch before from.
    pub(crate) previous_checkpoints: Vec<Checkpoint>,
    /// Objects of checkpoints that miners could not read, and two of those who say so.
    pub(crate) unreadable: BTreeSet<(StageIndex, ObjectName, PeerId)>,
    pub(crate) merging: Vec<merging::StageMerge>,
    pub(crate) merges: Vec<MergeRecord>,
    pub(crate) audits: audits::Audits,
    pub(crate) replicas_equal: bool,
    #[serde(with = "crate::pairs")]
    pub(crate) durations: BTreeMap<(StageIndex, WorkKind), Durations>,
    /// Follows from all of the above.
    #[serde(skip)]
    pub(crate) index: Index,
}

use sessions::Sessions;

/// Leases that run, and those that ran out while their results could still come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Leases {
    pub(crate) held: BTreeMap<LeaseId, Lease>,
    /// Expired or superseded in this epoch, or of a sample when training closed: a late result is taken if the work is
    /// open, and logged if it is not and its session has not uploaded.
    pub(crate) lapsed: BTreeMap<LeaseId, Lease>,
    /// Of passes that nobody waits for any more.
    #[serde(default)]
    pub(crate) in_vain: vain::InVain,
    pub(crate) due: BTreeSet<(Timestamp, LeaseId)>,
    pub(crate) next: LeaseId,
    /// Leases before this one belong to a closed phase.
    pub(crate) stale_below: LeaseId,
}

impl State {
    /// A run that nobody has joined yet.
    ///
    /// # Errors
    /// Names the first setting that is out of range.
    pub fn new(settings: RunSettings, now: Timestamp) -> Result<Self, InvalidSetting> {
        settings.validate()?;
        let stages = settings.stages();
        let checkpoints: Vec<_> = (0..stages)
            .map(|stage| {
                checkpoint::genesis(
                    StageIndex::new(stage),
                    settings.stage_parameters[usize::from(stage)],
                )
            })
            .collect();
        let mut state = Self {
            places: places::Places::new(&settings.registration, now),
            settings,
            clock: now,
            phase: Phase::Gathering,
            epoch: Epoch::new(0),
            phase_since: now,
            phase_deadline: None,
            sessions: Sessions::new(stages),
            leases: Leases::default(),
            samples: samples::Samples::default(),
            previous_checkpoints: checkpoints.clone(),
            checkpoints,
            unreadable: BTreeSet::new(),
            merging: vec![merging::StageMerge::default(); stages.into()],
            merges: Vec::new(),
            audits: audits::Audits::default(),
            replicas_equal: true,
            durations: BTreeMap::new(),
            index: Index::default(),
        };
        state.index = Index::of(&state);
        Ok(state)
    }

    /// What was fixed when the run was created.
    pub const fn settings(&self) -> &RunSettings {
        &self.settings
    }

    /// The latest time that anything happened at.
    pub const fn clock(&self) -> Timestamp {
        self.clock
    }

    /// Where the run stands.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The number that work is stamped with. It rises when a merge is complete, as [`Phase::Installing`] begins.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// When the phase began.
    pub const fn phase_since(&self) -> Timestamp {
        self.phase_since
    }

    /// When the phase ends at the latest; none if it may wait for miners.
    pub const fn phase_deadline(&self) -> Option<Timestamp> {
        self.phase_deadline
    }

    /// Whether nothing will happen any more.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// A stay that lasts.
    pub fn session(&self, session: Session) -> Option<&SessionState> {
        self.sessions.get(session)
    }

    /// All stays that last, in order.
    pub fn sessions(&self) -> impl Iterator<Item = (Session, &SessionState)> {
        self.sessions
            .live
            .iter()
            .map(|(session, state)| (*session, state))
    }

    /// The stay of a peer that lasts, if one does.
    pub fn session_of(&self, peer: PeerId) -> Option<Session> {
        self.sessions.peers.get(&peer)?.live
    }

    /// What the run remembers of a peer.
    pub fn peer(&self, peer: PeerId) -> Option<&PeerRecord> {
        self.sessions.peers.get(&peer)
    }

    /// Every peer that the run remembers, in order.
    pub fn peers(&self) -> impl Iterator<Item = (PeerId, &PeerRecord)> {
        self.sessions
            .peers
            .iter()
            .map(|(peer, record)| (*peer, record))
    }

    /// What a peer's recent work is worth, in backward passes.
    pub fn score(&self, peer: PeerId) -> f64 {
        self.peer(peer)
            .map_or(0.0, |record| record.ledger.score(self.epoch))
    }

    /// The banned peers and why.
    pub fn cheaters(&self) -> impl Iterator<Item = (PeerId, &BanReason)> {
        self.peers()
            .filter_map(|(peer, record)| Some((peer, record.ledger.banned.as_ref()?)))
    }

    /// A lease that runs.
    pub fn lease(&self, lease: LeaseId) -> Option<&Lease> {
        self.leases.held.get(&lease)
    }

    /// All leases that run, in the order in which they were given.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.held.values()
    }

    /// The leases that a session holds, in the order in which they were given. It should know them all; if an answer was
    /// lost, it learns of them with the next.
    pub fn leases_of(&self, session: Session) -> impl Iterator<Item = &Lease> {
        let held = self.sessions.get(session).map(|state| &state.held);
        held.into_iter()
            .flatten()
            .map(|lease| &self.leases.held[lease])
    }

    /// What a stage starts the present epoch from.
    ///
    /// # Panics
    /// If the run has no such stage.
    pub fn checkpoint(&self, stage: StageIndex) -> &Checkpoint {
        &self.checkpoints[usize::from(stage.get())]
    }

    /// How many samples went which way, over the whole run.
    pub const fn sample_counts(&self) -> SampleCounts {
        self.samples.counts
    }

    /// How much work was finished, and how much of it was wasted, over the whole run.
    pub const fn work_counts(&self) -> WorkCounts {
        self.samples.work
    }

    /// Samples on their way.
    pub fn samples_in_flight(&self) -> usize {
        self.samples.flying.len()
    }

    /// The samples that this epoch's training completed, in the order in which they were opened. Kept until the next
    /// epoch trains; [`Event::SampleCompleted`](crate::Event::SampleCompleted) has them all.
    pub fn completed_samples(&self) -> impl Iterator<Item = (SampleId, &CompletedSample)> {
        self.samples
            .completed
            .iter()
            .map(|(sample, completed)| (*sample, completed))
    }

    /// How every merge so far went, by epoch and stage.
    pub fn merges(&self) -> &[MergeRecord] {
        &self.merges
    }

    /// Whether after every merge all who installed it came to the same bits.
    pub const fn replicas_equal(&self) -> bool {
        self.replicas_equal
    }

    /// Audits with a verdict in the subject's favour, and against it.
    pub const fn audits_settled(&self) -> (u64, u64) {
        (self.audits.passed, self.audits.failed)
    }

    /// Audits without a verdict yet.
    pub fn audits_pending(&self) -> impl Iterator<Item = (AuditId, &Audit)> {
        self.audits.pending.iter().map(|(id, audit)| (*id, audit))
    }

    /// The oldest epoch whose activations, gradients and uploads somebody may still have to read, and that before it whose
    /// miners' own state. Merged cells are kept as long as a checkpoint names them.
    pub fn oldest_epoch_in_use(&self) -> Epoch {
        self.audits
            .pending
            .values()
            .map(|audit| audit.epoch)
            .fold(self.epoch, Epoch::min)
    }

    /// The audit without a verdict that this work is.
    pub(crate) fn audit_of(&self, work: &Work) -> Option<(AuditId, &Audit)> {
        let audits = self.index.audits_of(work.subject()?);
        let mut audits = audits.filter_map(|id| Some((id, self.audits.pending.get(&id)?)));
        audits.find(|(_, audit)| audit.work == *work)
    }

    pub(crate) fn stages(&self) -> impl DoubleEndedIterator<Item = StageIndex> + use<> {
        (0..self.settings.stages()).map(StageIndex::new)
    }

    /// The merge that a stage is in, or was in last.
    pub(crate) fn merge_of(&self, stage: StageIndex) -> &merging::StageMerge {
        &self.merging[usize::from(stage.get())]
    }

    /// The name of the `index`-th object that the next lease writes.
    pub(crate) fn object_name(&self, purpose: Purpose, index: u64) -> ObjectName {
        let id = Draw::about(&self.settings.secret, "object")
            .number(self.leases.next.get())
            .number(index)
            .object();
        let epoch = match purpose {
            Purpose::Activation | Purpose::Gradient => self.trains_for(),
            Purpose::Upload | Purpose::Merged | Purpose::Delta | Purpose::Kept => self.epoch,
        };
        ObjectName { purpose, epoch, id }
    }

    /// Whether the epoch has begun to learn what its checkpoint does not have, and the next does not yet.
    pub(crate) const fn is_learning(&self) -> bool {
        matches!(
            self.phase,
            Phase::Training | Phase::Uploading | Phase::Merging
        )
    }

    /// Whether every stage has a live miner that may do its work. If not, training pauses.
    pub(crate) fn is_staffed(&self) -> bool {
        self.stages()
            .all(|stage| !self.index.stage(stage).installed.is_empty())
    }
}
