//! Peers and their stays.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ahead::Ahead;
use crate::command::Role;
use crate::id::{AuditId, Digest, Epoch, LeaseId, PeerId, Session, StageIndex};
use crate::score::Ledger;
use crate::time::Timestamp;
use crate::work::{LogEntry, Outcome, Seal, WorkKind};

/// Leases that a session may hold at a time, at most.
pub const CAPACITY_MAX: u32 = 64;

/// Answered and lapsed leases that are remembered per session, for retries and late results. A peer has no more than
/// [`CAPACITY_MAX`] requests under way, so what is older is never asked for by an honest one.
pub(crate) const REMEMBERED_LEASES: usize = 128;

/// A piece that was leased in vain counts as up to two to the power of this: who never delivers is tried again once in as
/// many pieces of others.
const VAIN_DOUBLES_MAX: u32 = 6;

/// How often a session is leased one epoch's checkpoint: whoever has not installed it by then will not.
pub(crate) const INSTALLS_MAX: u32 = 8;

/// Peers that a run remembers. Whoever makes up identities fills this table and not the machine's memory.
pub(crate) const PEERS_MAX: usize = 65_536;

/// What a run remembers of a peer, beyond its stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// As what it joined last.
    pub role: Role,
    /// Which stage it held last.
    pub stage: Option<StageIndex>,
    /// The number of its latest stay: each has a higher one than all before.
    pub generations: u32,
    /// Its present stay.
    pub live: Option<Session>,
    /// What it did and what that is worth.
    pub ledger: Ledger,
}

/// A checkpoint that a session says it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// Of which epoch.
    pub epoch: Epoch,
    /// Digest of parameters and optimizer state.
    pub state: Digest,
    /// Whether it is like that of the others in the stage. An odd one gets no work until it is installed again.
    pub odd: bool,
}

/// How a lease was answered; a retry gets the same answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub(crate) enum Answer {
    Accepted { outcome: Outcome },
    Superseded { outcome: Outcome },
    GivenBack,
}

/// A stay of a peer, while it lasts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionState {
    /// As what.
    pub role: Role,
    /// Which stage it holds; none for a validator.
    pub stage: Option<StageIndex>,
    /// Leases that it can hold at a time.
    pub capacity: u32,
    /// Leases that it takes beyond those it holds.
    pub room: u32,
    /// When it joined, moved by all time since in which nobody could be served.
    pub joined_at: Timestamp,
    /// When it was last heard of (to an eighth of the session timeout).
    pub last_contact: Timestamp,
    /// The checkpoint that it holds.
    pub installation: Option<Installation>,
    /// How often it was leased the epoch's checkpoint.
    pub(crate) installs: u32,
    /// Credited backward passes in this epoch: the weight of its upload.
    pub backwards: u64,
    /// What it keeps for itself since it uploaded; none from its next installation on.
    #[serde(default)]
    pub(crate) keeps: Option<Kept>,
    /// What it had kept when it began the epoch, if validators start from it.
    #[serde(default)]
    pub(crate) began_with: Option<Seal>,
    /// The same of the epoch before, for an audit of that, while it works ahead.
    #[serde(default)]
    pub(crate) began_before: Option<Seal>,
    /// The latest audit that was drawn of its log.
    #[serde(default)]
    pub(crate) drawn: Option<AuditId>,
    /// Whether it worked for this epoch before it installed its checkpoint.
    #[serde(default)]
    pub(crate) ahead: Option<Ahead>,
    /// What its stage has done in this epoch, in the order in which it reported it.
    pub(crate) log: Vec<LogEntry>,
    pub(crate) ordinals: BTreeSet<u32>,
    pub(crate) held: BTreeSet<LeaseId>,
    pub(crate) lapsed: BTreeSet<LeaseId>,
    pub(crate) answered: BTreeMap<LeaseId, Answer>,
    /// Work given to it so far, in expected microseconds: who has least is next (interleaved weighted round-robin).
    pub(crate) given_us: u64,
    /// Pieces that it was leased in vain, less those that it did since.
    #[serde(default)]
    pub(crate) vain: u32,
    /// Moving average of its measured durations, in microseconds.
    pub(crate) pace_us: BTreeMap<WorkKind, u64>,
}

/// What a session keeps for itself from one epoch to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// What it said that it is, if it was asked.
    #[serde(default)]
    pub(crate) seal: Option<Seal>,
}

impl SessionState {
    pub(crate) fn new(
        role: Role,
        stage: Option<StageIndex>,
        capacity: u32,
        given_us: u64,
        at: Timestamp,
    ) -> Self {
        Self {
            role,
            stage,
            capacity,
            room: 0,
            joined_at: at,
            last_contact: at,
            installation: None,
            installs: 0,
            backwards: 0,
            keeps: None,
            began_with: None,
            began_before: None,
            drawn: None,
            ahead: None,
            log: Vec::new(),
            ordinals: BTreeSet::new(),
            held: BTreeSet::new(),
            lapsed: BTreeSet::new(),
            answered: BTreeMap::new(),
            given_us,
            vain: 0,
            pace_us: BTreeMap::new(),
        }
    }

    /// Whether it holds this epoch's checkpoint as the others of its stage do, and so may do the stage's work.
    pub fn is_installed(&self, epoch: Epoch) -> bool {
        self.installation
            .is_some_and(|installation| installation.epoch == epoch && !installation.odd)
    }

    /// What its stage has done in this epoch, in the order in which it was reported: since it installed its checkpoint, or
    /// since it uploaded, if it trained on from there.
    pub fn log(&self) -> &[LogEntry] {
        &self.log
    }

    /// Moving average of its measured durations of this kind of work, in microseconds.
    pub fn pace_us(&self, kind: WorkKind) -> Option<u64> {
        self.pace_us.get(&kind).copied()
    }

    /// How many of these operations, the first in their order, it did before it installed its checkpoint.
    pub(crate) fn done_ahead(&self, entries: &[LogEntry]) -> u32 {
        let until = self
            .ahead
            .map_or(0, |ahead| ahead.installed_after.unwrap_or(u32::MAX));
        let ahead = entries.iter().take_while(|entry| entry.ordinal < until);
        u32::try_from(ahead.count()).expect("ordinals are distinct and 32 bits")
    }

    /// Remembers how a lease was answered, forgetting the oldest answer if there are many.
    pub(crate) fn remember(&mut self, lease: LeaseId, answer: Answer) {
        self.answered.insert(lease, answer);
        if self.answered.len() > REMEMBERED_LEASES {
            self.answered.pop_first();
        }
    }

    /// A piece that was expected to take so long was leased to it in vain. It counts as work that it was given, and the more
    /// often that happens the more it counts, so that work goes to others first. Whatever it does makes up for one.
    pub(crate) fn charge_for_vain_work(&mut self, expected_us: u64) {
        self.vain = self.vain.saturating_add(1);
        let times = 1_u64 << self.vain.min(VAIN_DOUBLES_MAX);
        let charge = expected_us.saturating_mul(times);
        self.given_us = self.given_us.saturating_add(charge);
    }

    /// Takes a measured duration into the pace. A quarter of the new, three of the old: a change shows within a few
    /// pieces, a hiccup does not.
    pub(crate) fn measure(&mut self, kind: WorkKind, duration_us: u64) {
        let pace = self.pace_us.entry(kind).or_insert(duration_us);
        *pace = (*pace / 4 * 3).saturating_add(duration_us / 4).max(1);
    }

    /// A new epoch, or a second start of one: what was done before is not in these weights.
    pub(crate) fn begin_epoch(&mut self, goes_on: bool) {
        let kept = self.keeps.take().filter(|_| goes_on);
        self.began_with = kept.and_then(|kept| kept.seal);
        self.began_before = None;
        self.ahead = None;
        self.backwards = 0;
        self.log.clear();
        self.ordinals.clear();
    }
}

/// Every peer that ever joined and every stay that lasts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sessions {
    pub(crate) peers: BTreeMap<PeerId, PeerRecord>,
    #[serde(with = "crate::pairs")]
    pub(crate) live: BTreeMap<Session, SessionState>,
    /// The live miners of each stage, from the head.
    pub(crate) miners: Vec<BTreeSet<Session>>,
    pub(crate) validators: BTreeSet<Session>,
    /// Stays have higher numbers than this; 0 unless the run was restored, and stays are unknown that others began.
    #[serde(default)]
    pub(crate) generations_before: u32,
}

impl Sessions {
    pub(crate) fn new(stages: u16) -> Self {
        Self {
            peers: BTreeMap::new(),
            live: BTreeMap::new(),
            miners: vec![BTreeSet::new(); stages.into()],
            validators: BTreeSet::new(),
            generations_before: 0,
        }
    }

    pub(crate) fn get(&self, session: Session) -> Option<&SessionState> {
        self.live.get(&session)
    }

    pub(crate) fn get_mut(&mut self, session: Session) -> Option<&mut SessionState> {
        self.live.get_mut(&session)
    }

    /// The live miners of a stage.
    pub(crate) fn miners_of(
        &self,
        stage: StageIndex,
    ) -> impl Iterator<Item = (Session, &SessionState)> {
        self.miners[usize::from(stage.get())]
            .iter()
            .map(|session| (*session, &self.live[session]))
    }

    /// The live miners of a stage that may do its work.
    pub(crate) fn installed(
        &self,
        stage: StageIndex,
        epoch: Epoch,
    ) -> impl Iterator<Item = (Session, &SessionState)> {
        self.miners_of(stage)
            .filter(move |(_, state)| state.is_installed(epoch))
    }

    pub(crate) fn is_banned(&self, peer: PeerId) -> bool {
        self.peers
            .get(&peer)
            .is_some_and(|record| record.ledger.banned.is_some())
    }

    pub(crate) fn ledger_mut(&mut self, peer: PeerId) -> Option<&mut Ledger> {
        self.peers.get_mut(&peer).map(|record| &mut record.ledger)
    }

    pub(crate) fn join(&mut self, session: Session, state: SessionState) {
        let record = self
            .peers
            .entry(session.peer)
            .or_insert_with(|| PeerRecord {
                role: state.role,
                stage: None,
                generations: 0,
                live: None,
                ledger: Ledger::default(),
            });
        record.role = state.role;
        record.stage = state.stage;
        record.generations = session.generation;
        record.live = Some(session);
        match state.stage {
            Some(stage) => self.miners[usize::from(stage.get())].insert(session),
            None => self.validators.insert(session),
        };
        self.live.insert(session, state);
    }

    pub(crate) fn end(&mut self, session: Session) {
        let Some(state) = self.live.remove(&session) else {
            return;
        };
        match state.stage {
            Some(stage) => self.miners[usize::from(stage.get())].remove(&session),
            None => self.validators.remove(&session),
        };
        if let Some(record) = self.peers.get_mut(&session.peer) {
            record.live = None;
        }
    }
}
